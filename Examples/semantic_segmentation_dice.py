"""The Dice loss: judge the overlap of the masks, not the value of every pixel (figures 3 and 4).

Shows how smoothly a Dice loss falls, and how little its masks gain by it. --form is one of the
three definitions in use: "squared" (the handout's, and the default), "pixelwise" (the homework
report's text: it sums no overlap, and its pole sends the loss below zero), "linear" (the
libraries', for masks of 0 and 1). Examples/pitfalls.py shows what goes wrong with each.

    python Examples/semantic_segmentation_dice.py --quick               # 3 minutes on 2 cores
    python Examples/semantic_segmentation_dice.py --form pixelwise      # an hour there

Expected mean IoU: see the README's tables.
"""

from torch.utils.data import Subset

from SegStudio import SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
CLASSES = ("rectangle", "triangle", "disk", "oval", "star")


def main():
    forms = {"choices": ("squared", "pixelwise", "linear"), "default": "squared"}
    flags = SegStudio.example_flags(__doc__, extra={"--form": forms})
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
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        "Dice",
        dice_form=flags.form,
        report_every=50 if flags.quick else 500,
        # Scores after every epoch, for compare_losses.py. Nothing is chosen by them.
        evaluate_every=len(segmenter.train_dataloader),
        held_out=Subset(test_images, range(min(200, len(test_images)))),
    )
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/semantic_segmentation_combined.py --quick  (MSE and Dice)")


if __name__ == "__main__":
    SegStudio.run_example(main)
