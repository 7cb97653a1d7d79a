"""The Dice loss: train for the overlap of the masks, not for the value of every pixel.

    python Examples/semantic_segmentation_dice.py --quick            # 100 seconds, 2-core computer
    python Examples/semantic_segmentation_dice.py                    # figures 3 and 4: an hour
    python Examples/semantic_segmentation_dice.py --form pixelwise   # diverges at once

With p for the output and m for the mask, three losses have this name:
    squared      1 - 2 sum(pm) / (sum(pp) + sum(mm))             the homework's handout
    linear       1 - (2 sum(pm) + 1) / (sum(p) + sum(m) + 1)     most libraries, for p and m of 0..1
    pixelwise    mean of 1 - (2pm + 1) / (p + m + 1)             the homework report's text
Only the first one works for masks of 50 to 250. "linear" falls to -249 there, and "pixelwise" has a
pole at p + m = -1 that training soon reaches; with --quick it learns nothing. Examples/pitfalls.py
draws all three.

Without --quick the settings are the homework's: its strided network, SGD with learning rate 1e-4.
--quick trains a small dense network by Muon and AdamW. Expected mean IoU with --quick: 0.4 to 0.7,
depending on the computer: a little more than with MSE in semantic_segmentation_dense.py --quick.
"""

from small_recipe import train_small

from SegStudio import SegStudio

CLASSES = ("rectangle", "triangle", "disk", "oval", "star")

# The homework's settings.
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16

# The settings of --quick.
QUICK_SECONDS = 100
QUICK_DEPTH = 4
QUICK_WIDTH = 16
QUICK_BATCH_SIZE = 16
QUICK_ADAMW_RATE = 3e-2  # the last layer has to reach outputs up to 250


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(2000, 3),
        quick_seconds=QUICK_SECONDS,
        extra={
            "--form": {
                "choices": ("squared", "linear", "pixelwise"),
                "default": "squared",
                "help": "of the Dice loss; default squared",
            },
        },
    )
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
    criterion = segmenter.SegmentationLossDice(form=flags.form)
    if flags.quick:
        model = segmenter.mUnet(
            depth=QUICK_DEPTH, width=QUICK_WIDTH, upsampling="dense", input_scale=1 / 255
        )
    else:
        model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    untrained = segmenter.score(model)
    if flags.quick:
        max_seconds = flags.training_seconds(reserve=14)
        train_small(
            segmenter,
            model,
            criterion,
            QUICK_ADAMW_RATE,
            max_seconds,
            evaluate_every=200,
            resume=flags.resume,
        )
    else:
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            model,
            criterion=criterion,
            evaluate_every=len(segmenter.train_dataloader),  # each epoch, on validation images
            resume=flags.resume,
        )
    dls.log("In this table each cell is untrained -> trained.")
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/semantic_segmentation_combined.py --quick  (MSE and Dice)")


if __name__ == "__main__":
    SegStudio.run_example(main)
