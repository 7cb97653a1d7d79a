"""The first experiment: mUnet learns to find five kinds of shapes.

    python Examples/semantic_segmentation.py --quick    # 120 seconds on any 2-core computer
    python Examples/semantic_segmentation.py            # the homework: about an hour there

--quick shows the main flaw of the homework's network, and its cure. It trains that network
("strided" upsampling) and its "dense" twin, from the same first weights, by one small recipe. It
prints one table and saves one picture, side_by_side.png: input, truth, strided, dense. Expected
mean IoU: 0.2 strided, 0.5 to 0.8 dense, depending on the computer. The folder of the run then holds
the dense network, its subfolder strided/ the strided one.

Without --quick the script is exactly the homework's first experiment: depth 16, the MSE loss, SGD
with learning rate 1e-4 and momentum 0.9, batches of 4, 6 epochs over 10,000 images. Expected mean
IoU: about 0.1, because the network is the strided one.
"""

import torch
from side_by_side import first_items, generated_or_not, save_side_by_side
from small_recipe import train_small

from SegStudio import SegStudio

CLASSES = ("rectangle", "triangle", "disk", "oval", "star")

# The homework's settings.
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16

# The settings of --quick: a network and a batch that a CPU trains in a minute.
QUICK_SECONDS = 120
QUICK_DEPTH = 4
QUICK_WIDTH = 16
QUICK_BATCH_SIZE = 16
QUICK_ADAMW_RATE = 6e-3


def main():
    flags = SegStudio.example_flags(__doc__, quick=(2000, 3), quick_seconds=QUICK_SECONDS)
    if flags.quick:
        strided_and_dense(flags)
    else:
        homework(flags)


# ---- The homework's first experiment ------------------------------------------------------------


def homework(flags):
    dls = SegStudio(
        image_size=[64, 64],
        momentum=MOMENTUM,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=1000, validation_images=500)
    model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    parameters = list(model.parameters())
    dls.log(f"Learnable parameters: {sum(p.numel() for p in parameters):,} in {len(parameters)}")
    untrained = segmenter.score(model)
    segmenter.run_code_for_training_for_semantic_segmentation(
        model,
        evaluate_every=len(segmenter.train_dataloader),  # each epoch, on the validation images
        resume=flags.resume,
    )
    dls.log("In this table each cell is untrained -> trained.")
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/semantic_segmentation_dense.py --quick  (masks without holes)")


# ---- --quick: the homework's network and its dense twin -----------------------------------------


def strided_and_dense(flags):
    dls = SegStudio(
        image_size=[64, 64],
        batch_size=QUICK_BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200, validation_images=100)
    examples = first_items(segmenter.dataserver_test, 5)
    max_seconds = flags.training_seconds(trainings_left=2, reserve=10)  # the same for both
    parts = {"strided": segmenter.part_of_run("strided"), "dense": segmenter}
    nets = {}
    for upsampling, part in parts.items():
        part.dl_studio.log(f"\nThe {upsampling} network")
        torch.manual_seed(flags.seed)  # both networks start with the same weights
        nets[upsampling] = segmenter.mUnet(
            skip_connections=True,
            depth=QUICK_DEPTH,
            width=QUICK_WIDTH,
            upsampling=upsampling,
            input_scale=1 / 255,
        )
        criterion = segmenter.SegmentationLossBCEDice()
        options = {"evaluate_every": 200, "resume": flags.resume}
        train_small(part, nets[upsampling], criterion, QUICK_ADAMW_RATE, max_seconds, **options)

    dls.log("In this table each cell is strided -> dense.")
    strided_scores = segmenter.score(nets["strided"])
    segmenter.run_code_for_testing_semantic_segmentation(nets["dense"], before=strided_scores)
    preds = {
        name: segmenter.binarize(net, segmenter.infer(net, examples["image"])).cpu()
        for name, net in nets.items()
    }
    source = generated_or_not(segmenter.dataserver_test)
    picture = save_side_by_side(
        segmenter, examples, preds, "side_by_side.png", f"Five test images ({source})"
    )
    dls.log(
        f"\nThe picture: {picture}\n"
        f"In the strided output, the homework's, three pixels in four are a constant that no "
        f"training can change: its masks are dotted.\n"
        f"The dense network has as many weights, but every output pixel depends on the image.\n"
        f"\nNext: python Examples/explore.py {dls.run_dir}  (both networks in your browser)\n"
        f"      python Examples/semantic_segmentation_dense.py --quick  (the same with the "
        f"homework's loss)\n"
        f"      python Examples/best_segmentation.py --quick  (the best scores on these images)\n"
        f"      python Examples/semantic_segmentation.py  (the homework itself, an hour)"
    )


if __name__ == "__main__":
    SegStudio.run_example(main)
