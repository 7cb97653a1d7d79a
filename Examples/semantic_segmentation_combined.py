"""MSE + scale * Dice: which of the two terms trains the network? (figures 5 to 10)

The homework adds the two losses with scales of 200, 300 and 400, because its MSE is in the
hundreds and its Dice near 1. Training follows gradients and not values, so the script also says
how hard each term pulls at the weights: the norm of its gradient, once in each interval.

    python Examples/semantic_segmentation_combined.py --quick              # 3 minutes on 2 cores
    python Examples/semantic_segmentation_combined.py --dice-scale 400     # an hour there

Expected mean IoU: see the README's tables.
"""

from statistics import mean

from torch.utils.data import Subset

from SegStudio import SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
CLASSES = ("rectangle", "triangle", "disk", "oval", "star")


def main():
    scale = {"type": float, "default": 200, "metavar": "N", "help": "200, 300 or 400; default 200"}
    flags = SegStudio.example_flags(__doc__, extra={"--dice-scale": scale})
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
    segmenter.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    untrained = segmenter.score(model)
    test_images = segmenter.dataserver_test
    history = segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        "Combined",
        dice_scale=flags.dice_scale,
        dice_form="squared",  # "pixelwise", the report's, has a pole: nan within 5 iterations
        report_every=50 if flags.quick else 500,
        # Scores after every epoch, for compare_losses.py. Nothing is chosen by them.
        evaluate_every=len(segmenter.train_dataloader),
        held_out=Subset(test_images, range(min(200, len(test_images)))),
    )
    report_pull(dls, history, flags.dice_scale)
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/compare_losses.py  (all runs beside one yardstick)")


def report_pull(dls, history, scale):
    """Say what the gradient norms of both terms say."""

    def average(name):
        values = [value for _, value in history.column(name)]
        return mean(values) if values else float("nan")

    names = {"mse": "MSE", "dice": f"{scale:g} * Dice"}
    dls.log(f"{'':14}{'value':>12}{'gradient norm':>16}   (means of the whole training)")
    for term, name in names.items():
        dls.log(f"{name:14}{average(term):12.4g}{average('grad_norm_' + term):16.4g}")
    pull = {names[term]: average(f"grad_norm_{term}") for term in names}
    weaker, stronger = sorted(pull, key=pull.get)
    dls.log(
        f"{stronger} pulls {pull[stronger] / max(pull[weaker], 1e-12):.1f} times as hard at the "
        f"weights as {weaker}, so it is what trains the network here."
    )


if __name__ == "__main__":
    SegStudio.run_example(main)
