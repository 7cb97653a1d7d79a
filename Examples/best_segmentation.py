"""What the shapes data allows: the same images, network family and loop, another recipe.

Nothing here is beyond the homework's means. The network is mUnet, narrower and shallower, so that
a CPU shows it many more images a second; dense, wired as U-Net is (edges and names meet before the
blocks of a level, not after), and with a last step at the image's own resolution. The loss reads
the outputs as logits (BCE+Dice); AdamW follows a schedule over the time that --seconds gives;
images and masks are flipped and turned together, which makes eight images of one.

    python Examples/best_segmentation.py --quick          # 60 s of training on a 2-core CPU
    python Examples/best_segmentation.py --seconds 600

Expected mean IoU: see the README's tables.
"""

import functools
import math

import torch

from SegStudio import SegStudio

BATCH_SIZE, LEARNING_RATE, WARM_UP = 16, 6e-3, 0.15
NETWORK = {"depth": 4, "width": 32, "upsampling": "dense", "input_scale": 1 / 255}
NETWORK |= {"wiring": "unet", "full_resolution": True}
CLASSES = ("rectangle", "triangle", "disk", "oval", "star")


def augment(images, masks):
    """Turn the batch by a random number of quarter turns and flip every other one."""
    turns = int(torch.randint(4, ()))
    flip = [3] if torch.rand(()) < 0.5 else []
    return tuple(torch.rot90(x, turns, (2, 3)).flip(flip) for x in (images, masks))


def schedule(done):
    """Warm up, then let the learning rate fall to 0 along half a cosine wave."""
    if done < WARM_UP:
        return 0.04 + 0.96 * done / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def train(segmenter, seconds, **changes):
    """Train the network of this recipe, or a changed one, for so many seconds; returns it."""
    model = segmenter.mUnet(out_channels=len(CLASSES), **NETWORK | changes)
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        loss_type="BCEDice",
        optimizer=functools.partial(
            torch.optim.AdamW, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True
        ),
        scheduler=schedule,
        precision="auto",
        channels_last=True,
        augment=augment,
        max_seconds=seconds,
        report_every=200,
    )
    return model


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(10000, None),
        full=(10000, None),
        extra={"--seconds": {"type": float, "metavar": "N", "help": "default 600, --quick 60"}},
    )
    dls = SegStudio(
        image_size=[64, 64],
        batch_size=BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images)
    model = train(segmenter, flags.seconds or (60 if flags.quick else 600))
    segmenter.run_code_for_testing_semantic_segmentation(model)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log(f"Next: python Examples/predict.py IMAGE --model {dls.run_dir}")


if __name__ == "__main__":
    SegStudio.run_example(main)
