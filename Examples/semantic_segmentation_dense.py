"""Masks without holes: the homework's network, but every output pixel depends on the image.

    python Examples/semantic_segmentation_dense.py --quick    # 150 seconds on any 2-core computer
    python Examples/semantic_segmentation_dense.py            # the homework's schedule: two hours

The last layer of DLStudio's network has stride 2 and dilation 2, so its kernel reaches only every
second row and column: three output pixels in four are one constant, whatever the loss and the
training. That is the "strided" network. The "dense" one has as many parameters, but its kernels
reach every pixel. The script

    1. draws which output pixels depend on the image (reach.png),
    2. trains both networks with the homework's loss, MSE, by one recipe,
    3. prints both score tables and draws both networks' masks beside the truth (side_by_side.png).

Without --quick the recipe is the homework's for both. --quick trains a smaller network by Muon and
AdamW instead of SGD, with the same loss; expected mean IoU: 0.1 to 0.2 strided, 0.3 to 0.6 dense.
The folder of the run holds the dense network, its folder "strided" the other one.
"""

import torch
from matplotlib.patches import Patch
from side_by_side import first_items, generated_or_not, save_side_by_side
from small_recipe import train_small

from SegStudio import SegStudio

CLASSES = ("rectangle", "triangle", "disk", "oval", "star")

# The homework's settings.
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16

# The settings of --quick.
QUICK_SECONDS = 150
QUICK_DEPTH = 4
QUICK_WIDTH = 16
QUICK_BATCH_SIZE = 16
QUICK_ADAMW_RATE = 3e-2  # the last layer has to reach outputs up to 250


def main():
    flags = SegStudio.example_flags(
        __doc__, quick=(2000, 3), quick_seconds=QUICK_SECONDS, last_file="side_by_side.png"
    )
    dense = make_segmenter(flags)
    strided = dense.part_of_run("strided")
    save_reach(dense)
    max_seconds = flags.training_seconds(trainings_left=2, reserve=12)  # the same for both

    strided.dl_studio.log("\nThe strided network")
    strided_net = train(strided, flags, "strided", max_seconds)
    strided_scores = strided.run_code_for_testing_semantic_segmentation(strided_net)
    dense.dl_studio.log("\nThe dense network")
    dense_net = train(dense, flags, "dense", max_seconds)
    dense.dl_studio.log("In the next table each cell is strided -> dense.")
    dense.run_code_for_testing_semantic_segmentation(dense_net, before=strided_scores)

    examples = first_items(dense.dataserver_test, 5)
    preds = {
        name: dense.binarize(net, dense.infer(net, examples["image"])).cpu()
        for name, net in (("strided", strided_net), ("dense", dense_net))
    }
    source = generated_or_not(dense.dataserver_test)
    picture = save_side_by_side(
        dense,
        examples,
        preds,
        "side_by_side.png",
        f"Five test images ({source}), both networks trained with MSE",
    )
    dense.dl_studio.log(f"\nThe picture: {picture}\nAll pictures and numbers: {picture.parent}")
    dense.dl_studio.log(
        "Next: python Examples/best_segmentation.py --quick  (the best scores on these images)"
    )


def make_segmenter(flags):
    """A SemanticSegmentation with its data."""
    dls = SegStudio(
        image_size=[64, 64],
        momentum=MOMENTUM,
        learning_rate=LEARNING_RATE,
        batch_size=QUICK_BATCH_SIZE if flags.quick else BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(
        flags.train_images,
        test_images=200 if flags.quick else 1000,
        validation_images=100 if flags.quick else 500,
    )
    return segmenter


def train(segmenter, flags, upsampling, max_seconds):
    """Train a network with this upsampling by the recipe that both share; returns it."""
    torch.manual_seed(flags.seed)  # both networks start with the same weights
    if not flags.quick:
        net = segmenter.mUnet(skip_connections=True, depth=DEPTH, upsampling=upsampling)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            net,
            criterion=segmenter.SegmentationLossMSE(),
            evaluate_every=len(segmenter.train_dataloader),  # each epoch, on validation images
            resume=flags.resume,
        )
        return net

    net = segmenter.mUnet(
        skip_connections=True,
        depth=QUICK_DEPTH,
        width=QUICK_WIDTH,
        upsampling=upsampling,
        input_scale=1 / 255,
    )
    criterion = segmenter.SegmentationLossMSE()
    options = {"evaluate_every": 200, "resume": flags.resume}
    train_small(segmenter, net, criterion, QUICK_ADAMW_RATE, max_seconds, **options)
    return net


def save_reach(segmenter):
    """Draw which output pixels of both networks depend on the image."""
    dls = segmenter.dl_studio
    figure = dls.new_figure(figsize=(8, 5), dpi=110, layout="constrained")
    for axes, upsampling in zip(figure.subplots(1, 2), ("strided", "dense"), strict=True):
        net = segmenter.mUnet(depth=QUICK_DEPTH, upsampling=upsampling)
        reach = segmenter.probe_output_coverage(net, (64, 64))
        dls.log(f"{upsampling}: {reach.fraction:.0%} of the output pixels depend on the image")
        corner = reach.picture[:, :128, :128]  # 16x16 output pixels: single ones are visible
        axes.imshow(corner.permute(1, 2, 0).numpy(), extent=(0, 16, 16, 0))
        axes.set_xticks([0, 4, 8, 12, 16])
        axes.set_yticks([0, 4, 8, 12, 16])
        axes.set_title(f"{upsampling}: {reach.fraction:.0%}", fontsize=15)
    figure.legend(
        handles=[
            Patch(color=SegStudio.PALETTE[0], label="depends on the image"),
            Patch(color=SegStudio.PALETTE[1], label="constant: no training can correct it"),
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=12,
    )
    figure.suptitle("A corner of the output, 16x16 pixels", fontsize=15)
    dls.save_figure(figure, "reach.png")


if __name__ == "__main__":
    SegStudio.run_example(main)
