"""MSE + scale * Dice: which of the two terms trains the network?

    python Examples/semantic_segmentation_combined.py --quick             # 100 s, 2-core computer
    python Examples/semantic_segmentation_combined.py --dice-scale 300    # figures 7, 8: an hour

The homework adds the two losses with scales of 200, 300 and 400, because its MSE is in the hundreds
and its Dice near 1: then the two terms have values of the same size. But a training step depends on
the gradient of each term, not on its value. So the script also prints the norm of each term's
gradient at the network's output, measured once in each interval of the log.

Without --quick the settings are the homework's: its strided network, SGD with learning rate 1e-4.
--quick trains a small dense network by Muon and AdamW. Expected mean IoU with --quick: 0.4 to 0.7,
depending on the computer.
"""

from statistics import mean

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
            "--dice-scale": {
                "type": float,
                "default": 200,
                "metavar": "N",
                "help": "factor on Dice: 200, 300 or 400 in the homework; default 200",
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
    criterion = segmenter.SegmentationLossComb(dice_scale=flags.dice_scale, base="mse")
    if flags.quick:
        model = segmenter.mUnet(
            depth=QUICK_DEPTH, width=QUICK_WIDTH, upsampling="dense", input_scale=1 / 255
        )
    else:
        model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    untrained = segmenter.score(model)
    if flags.quick:
        max_seconds = flags.training_seconds(reserve=14)
        history = train_small(
            segmenter,
            model,
            criterion,
            QUICK_ADAMW_RATE,
            max_seconds,
            evaluate_every=200,
            resume=flags.resume,
        )
    else:
        history = segmenter.custom_run_code_for_training_for_semantic_segmentation(
            model,
            criterion=criterion,
            evaluate_every=len(segmenter.train_dataloader),  # each epoch, on validation images
            resume=flags.resume,
        )
    log_gradients(dls, history, flags.dice_scale)
    dls.log("In this table each cell is untrained -> trained.")
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/reproduce_homework.py --quick  (all losses, on one page)")


def log_gradients(dls, history, dice_scale):
    """Print the value of each term, the norm of its gradient, and which gradient is larger."""
    names = {"mse": "MSE", "dice": f"{dice_scale:g} * Dice"}
    norms = {}
    dls.log(f"{'':14}{'value':>12}{'gradient norm':>16}   (means over the whole training)")
    for term, name in names.items():
        value = mean(value for _, value in history.column(term))
        norms[name] = mean(value for _, value in history.column(f"grad_norm_{term}"))
        dls.log(f"{name:14}{value:12.4g}{norms[name]:16.4g}")
    weaker, stronger = sorted(norms, key=norms.get)
    if norms[weaker] > 0:
        dls.log(
            f"At the output the gradient of {stronger} is {norms[stronger] / norms[weaker]:.1f} "
            f"times as large as that of {weaker}: a step follows {stronger} more."
        )


if __name__ == "__main__":
    SegStudio.run_example(main)
