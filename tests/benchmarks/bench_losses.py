"""The losses, side by side with loops over images and channels as in homework reports.

    pip install '.[bench]' && python tests/benchmarks/bench_losses.py

Forward and backward at batch 4, 5 channels of 64x64. The two ways take turns, ten times each, so
that threads and caches are warm, as after a network's backward pass. The loop takes every image and
channel as a step, as reports have it (with the number of channels where they had the batch size, so
that both compute the same). Also: the difference to MONAI's and segmentation_models_pytorch's Dice.
"""

import argparse
import statistics
import time

import torch
from common import make_batches, name_machine

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


def loop(of_plane):
    """A report's loss: a tensor of one number per image and channel, filled in a loop."""

    def loss(output, mask):
        composite = torch.zeros(1, output.shape[0])
        for idx in range(output.shape[0]):
            per_channel = torch.zeros(1, output.shape[1])
            for channel in range(output.shape[1]):
                per_channel[0, channel] = of_plane(output[idx, channel], mask[idx, channel])
            composite[0, idx] = torch.sum(per_channel)
        return torch.sum(composite) / (output.shape[0] * output.shape[1])

    return loss


def mse(p, m):
    return torch.mean((p - m) ** 2)


def mae(p, m):
    return torch.mean(torch.abs(p - m))


def pixelwise(p, m):
    return torch.mean(1 - (2 * p * m + 1) / (p + m + 1))


def squared(p, m):
    return 1 - 2 * torch.sum(p * m) / (torch.sum(p * p) + torch.sum(m * m) + 1e-6)


def linear(p, m):
    return 1 - (2 * torch.sum(p * m) + 1) / (torch.sum(p) + torch.sum(m) + 1)


def combined(p, m):
    return mse(p, m) + 200 * squared(p, m)


PAIRS = {
    "MSE": (Segmentation.SegmentationLossMSE(), mse),
    "MAE": (Segmentation.SegmentationLossMAE(), mae),
    "Dice, pixelwise": (Segmentation.SegmentationLossDice(form="pixelwise"), pixelwise),
    "Dice, squared": (Segmentation.SegmentationLossDice(form="squared"), squared),
    "Dice, linear": (Segmentation.SegmentationLossDice(form="linear"), linear),
    "MSE + 200*Dice": (Segmentation.SegmentationLossComb(4, 200), combined),
}


def time_once(loss, output, mask):
    output = output.clone().requires_grad_()
    start = time.perf_counter()
    value = loss(output, mask)
    value.backward()
    return time.perf_counter() - start, value.item(), output.grad


def show_agreement(output, mask):
    """The largest difference to the big libraries, over losses and gradients."""
    ours = Segmentation.SegmentationLossDice
    pairs = {}
    try:
        from monai.losses import DiceLoss

        pairs["MONAI DiceLoss"] = ours(form="linear"), DiceLoss(smooth_nr=1, smooth_dr=1)
        pairs["MONAI DiceLoss(squared_pred=True)"] = (
            ours(form="squared"), DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
        )  # fmt: skip
    except ImportError:
        print("MONAI is not installed")
    try:
        from segmentation_models_pytorch.losses import DiceLoss as PeerDice

        theirs = PeerDice("multilabel", from_logits=False, smooth=0.5)  # it halves the smooth
        pairs["smp DiceLoss, one image"] = ours(form="linear"), theirs
    except ImportError:
        print("segmentation_models_pytorch is not installed")
    for name, (mine, theirs) in pairs.items():
        number = 1 if "one image" in name else len(output)
        _, a, a_grad = time_once(mine, output[:number], mask[:number])
        _, b, b_grad = time_once(theirs, output[:number], mask[:number])
        print(f"{name:36} differs by {abs(a - b):.1e}, its gradient by "
              f"{(a_grad - b_grad).abs().max():.1e}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    mask = next(iter(make_batches(1)))["mask_tensor"].float()
    output = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * 100
    print(f"Loss forward and backward, batch 4; {name_machine()}, torch {torch.__version__}; "
          f"medians of {rounds} turns of ten")  # fmt: skip
    print(f"{'':20}{'loop ms':>10}{'SegStudio ms':>14}{'ratio':>9}{'difference':>13}")
    for name, (ours, of_plane) in PAIRS.items():
        slow, fast = [], []
        for _ in range(rounds):
            for _ in range(10):
                seconds, expected, _ = time_once(loop(of_plane), output, mask)
                slow.append(seconds)
            for _ in range(10):
                seconds, value, _ = time_once(ours, output, mask)
                fast.append(seconds)
        slow, fast = statistics.median(slow), statistics.median(fast)
        difference = abs(value - expected) / abs(expected)
        print(f"{name:20}{1000 * slow:10.2f}{1000 * fast:14.3f}{slow / fast:8.1f}x"
              f"{difference:13.0e}")  # fmt: skip
    show_agreement(output / 100, (mask > 0).float())


if __name__ == "__main__":
    main()
