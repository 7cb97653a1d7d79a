"""Masks without holes: the homework's network, but every output pixel can be learned.

DLStudio's last layer has stride 2 and dilation 2, so its kernel lands on every second row and
column only: three output pixels in four are one constant, whatever the loss and the training.
upsampling="dense" reaches them all with the same parameters. The script draws the reach of
both networks, trains both with the same recipe, and prints both score tables.

    python Examples/semantic_segmentation_dense.py --quick      # 2 minutes on a 2-core CPU
    python Examples/semantic_segmentation_dense.py              # an hour and a half there

--quick trains a smaller network with AdamW on images of 0 to 1, with the same MSE, the same for
both. The folder of the run holds the dense network, its folder "strided" the other one.
Expected mean IoU: see the README's tables.
"""

import functools

import torch
from torch.utils.data import Subset

from SegStudio import SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
CLASSES = ("rectangle", "triangle", "disk", "oval", "star")
QUICK = {"batch_size": 16, "learning_rate": 1e-2}
QUICK_NETWORK = {"depth": 4, "width": 32, "input_scale": 1 / 255}


def warm_up_then_decay(done):
    """The factor on AdamW's learning rate, of the fraction of training done."""
    return min(done / 0.1, (1 - done) / 0.6, 1.0)


def main():
    flags = SegStudio.example_flags(__doc__, quick=(2000, 5))
    network, batch_size, recipe = {"depth": DEPTH}, BATCH_SIZE, {}
    if flags.quick:
        network, batch_size = QUICK_NETWORK, QUICK["batch_size"]
        optimizer = functools.partial(torch.optim.AdamW, lr=QUICK["learning_rate"])
        recipe = {"optimizer": optimizer, "scheduler": warm_up_then_decay, "report_every": 125}
    settings = {
        "image_size": [64, 64],
        "momentum": MOMENTUM,
        "learning_rate": LEARNING_RATE,
        "batch_size": batch_size,
        "classes": CLASSES,
        "use_gpu": True,
    }
    dense = SegStudio(**settings | flags.settings)
    data = SegStudio.SemanticSegmentation(dl_studio=dense, max_num_objects=5)
    data.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    inside = {"run_name": f"{dense.run_dir.name}/strided"}
    strided = SegStudio(**settings | flags.settings | inside)
    scores = {}
    for upsampling, dls in (("strided", strided), ("dense", dense)):
        torch.manual_seed(flags.seed)  # both networks start from the same weights
        segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
        segmenter.load_PurdueShapes5MultiObject_dataset(
            data.dataserver_train, data.dataserver_test
        )
        model = segmenter.mUnet(skip_connections=True, upsampling=upsampling, **network)
        reach = segmenter.probe_output_coverage(model, (64, 64))
        dls.log(f"\n{upsampling}: {reach.fraction:.0%} of the output depends on the input")
        corner = reach.picture[:, :128, :128]  # 16 x 16 pixels, to see single ones
        dls.display_tensor_as_image(corner, f"reach of the {upsampling} output: blue yes")
        segmenter.run_code_for_training_for_semantic_segmentation(
            model,
            **recipe,
            # Scores after every epoch, for compare_losses.py. Nothing is chosen by them.
            evaluate_every=len(segmenter.train_dataloader),
            held_out=Subset(data.dataserver_test, range(min(200, len(data.dataserver_test)))),
        )
        scores[upsampling] = segmenter.run_code_for_testing_semantic_segmentation(model)
    dense.log(
        f"\nThe same recipe, strided -> dense:\n{scores['dense'].table(before=scores['strided'])}"
    )
    dense.log(f"\nPictures and numbers: {dense.run_dir}")
    dense.log("Next: python Examples/best_segmentation.py --quick  (what the data allows)")


if __name__ == "__main__":
    SegStudio.run_example(main)
