"""The homework's first experiment: mUnet learns PurdueShapes5MultiObject with the MSE loss.

Shows how a network with one output channel per class segments a picture, how its loss falls,
and how good its masks are beside those of the untrained network. The masks come out dotted:
run semantic_segmentation_dense.py next to see why, and the cure.

    python Examples/semantic_segmentation.py --quick      # about 3 minutes on a 2-core CPU
    python Examples/semantic_segmentation.py              # the homework: about 45 minutes there

--quick has too little time for the homework's recipe to show anything, so it trains a shallower
network with AdamW on batches of 8; it prints that. Expected mean IoU: see the README.
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
QUICK = {"batch_size": 8, "depth": 8, "learning_rate": 3e-3}


def warm_up_then_decay(done):
    """The factor on AdamW's learning rate, of the fraction of training done."""
    return min(done / 0.1, (1 - done) / 0.6, 1.0)


def main():
    flags = SegStudio.example_flags(__doc__, quick=(2000, 3))
    dls = SegStudio(
        image_size=[64, 64],
        momentum=MOMENTUM,
        learning_rate=LEARNING_RATE,
        batch_size=QUICK["batch_size"] if flags.quick else BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    depth, recipe = DEPTH, {}
    if flags.quick:
        depth = QUICK["depth"]
        optimizer = functools.partial(torch.optim.AdamW, lr=QUICK["learning_rate"])
        recipe = {"optimizer": optimizer, "scheduler": warm_up_then_decay, "report_every": 125}
        dls.log(f"Quick: depth {depth} and AdamW; the homework has depth {DEPTH} and SGD")
    model = segmenter.mUnet(skip_connections=True, depth=depth)
    parameters = list(model.parameters())
    dls.log(f"Learnable parameters: {sum(p.numel() for p in parameters):,} in {len(parameters)}")
    untrained = segmenter.score(model)
    test_images = segmenter.dataserver_test
    segmenter.run_code_for_training_for_semantic_segmentation(
        model,
        # Scores after every epoch, for compare_losses.py. Nothing is chosen by them.
        evaluate_every=len(segmenter.train_dataloader),
        held_out=Subset(test_images, range(min(200, len(test_images)))),
        **recipe,
    )
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/semantic_segmentation_dense.py --quick  (masks without holes)")


if __name__ == "__main__":
    SegStudio.run_example(main)
