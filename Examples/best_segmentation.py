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


def train(segmenter, seconds, evaluate_every=None):
    """Train a UNet on the images of `segmenter` for so many seconds; returns it."""
    net = segmenter.UNet(out_channels=len(CLASSES))
    hidden, rest = segmenter.Muon.split(net)
    course = Course()
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net,
        criterion=segmenter.SegmentationLossBCEDice(),
        optimizer=[
            segmenter.Muon(hidden, lr=MUON_RATE),
            torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.95)),
        ],
        scheduler=course.schedule,
        precision="auto",
        channels_last=True,
        augment=course.augment,
        max_seconds=seconds,
        log_every=200,
        evaluate_every=evaluate_every,
    )
    return net


class Course:
    """The learning rate and the augmentation, which both follow the fraction of training done."""

    def __init__(self):
        self.done = 0.0

    def schedule(self, done):
        """The factor on the learning rates: a warm-up, then half a cosine wave down to 0."""
        self.done = done
        if done < WARM_UP:
            return 0.04 + 0.96 * done / WARM_UP
        return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))

    def augment(self, images, masks):
        images, masks = flip_and_turn(images, masks)
        if self.done < COPY_PASTE:
            images, masks = copy_paste(images, masks)
        return images, masks


def flip_and_turn(images, masks):
    """Turn the batch by a random number of quarter turns, and mirror every second one."""
    turns = int(torch.randint(4, ()))
    images = torch.rot90(images, turns, dims=(2, 3))
    masks = torch.rot90(masks, turns, dims=(2, 3))
    if torch.rand(()) < 0.5:
        images = images.flip(3)
        masks = masks.flip(3)
    return images, masks


def copy_paste(images, masks):
    """Paste the shapes of each image, turned, in front of those of the next image of the batch.

    Source: Ghiasi et al., "Simple copy-paste is a strong data augmentation", CVPR 2021.
    """
    turns = int(torch.randint(4, ()))
    front_images = torch.rot90(images.roll(1, dims=0), turns, dims=(2, 3))
    front_masks = torch.rot90(masks.roll(1, dims=0), turns, dims=(2, 3))
    covered = (front_masks > 0).any(dim=1, keepdim=True)  # (N, 1, H, W): a shape of any class
    return (
        torch.where(covered, front_images, images),
        torch.where(covered, front_masks, masks),
    )


if __name__ == "__main__":
    SegStudio.run_example(main)
