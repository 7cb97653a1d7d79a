"""Why the squared error went to NaN on COCO: gradient and output norms, iteration by iteration.

Trains mUnet with one output channel by the homework's SGD (1e-4, momentum 0.9), with MSE and MAE,
on masks of 0/255 and 0/1, with and without clipping the gradient, from three initializations each;
a fifth column scales the images to 0..1. Depth is 4, which diverges like 16 in a third of the time.

    python Examples/coco_exploding_mse.py               # about two minutes on a 2-core CPU
    python Examples/coco_exploding_mse.py --coco data/coco-64

--coco is a folder that Datasets/prepare_coco.py wrote. Without it a synthetic set in COCO's format
is drawn first. No scores are expected: nothing is trained for long enough.
"""

import math

import torch
from torch import nn

from SegStudio.SegStudio import PALETTE, SegStudio

DEPTH, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 4, 4, 1e-4, 0.9
LOSSES = {"MSE": (nn.MSELoss(), PALETTE[5]), "MAE": (nn.L1Loss(), PALETTE[0])}
CASES = {  # value of a mask's set pixels, largest norm of a gradient, factor on the image
    "masks 0/255": (255, math.inf, 1),
    "masks 0/255, clipped": (255, 1.0, 1),
    "masks 0/1": (1, math.inf, 1),
    "masks 0/1, clipped": (1, 1.0, 1),
    "masks 0/255, images 0..1": (255, math.inf, 1 / 255),
}


def record_norms(net, loss, batches, clip):
    """Train; returns (norm of the gradient, root mean square of the output) per iteration."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    norms = []
    for images, masks in batches:
        output = net(images)  # (N, 1, H, W)
        optimizer.zero_grad()
        loss(output, masks).backward()
        gradient = nn.utils.clip_grad_norm_(net.parameters(), clip)  # returns the unclipped norm
        optimizer.step()
        norms.append((gradient.item(), output.detach().square().mean().sqrt().item()))
        if not math.isfinite(sum(norms[-1])):
            break
    return norms


def main():
    extra = {
        "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
        "--starts": {"type": int, "default": 3, "help": "initializations; default 3"},
    }
    flags = SegStudio.example_flags(__doc__, quick=(60, 1), full=(160, 1), extra=extra)
    dls = SegStudio(
        batch_size=BATCH_SIZE,
        classes=("cake", "dog", "motorcycle"),
        **({"dataroot": "./data/"} | flags.settings),
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
    segmenter.load_coco(flags.coco, flags.train_images, test_images=3, mask_value=1)
    batches = [(b["image"], b["mask_tensor"].float()) for b in segmenter.train_dataloader]
    figure = dls.new_figure(figsize=(14, 6), layout="constrained")
    grid = figure.subplots(2, len(CASES), sharex=True, sharey="row")
    dls.log(f"{'':26}loss  diverged  largest gradient norm  largest output (r.m.s.)")
    for panels, (title, (value, clip, factor)) in zip(grid.T, CASES.items(), strict=True):
        scaled = [(images, value * masks) for images, masks in batches]
        for name, (loss, color) in LOSSES.items():
            diverged, largest = 0, torch.zeros(2)
            for start in range(flags.starts):
                torch.manual_seed(flags.seed + start)
                net = segmenter.mUnet(depth=DEPTH, out_channels=1, input_scale=factor)
                norms = torch.tensor(record_norms(net, loss, scaled, clip))  # (iterations, 2)
                diverged += not norms.isfinite().all()
                largest = torch.maximum(largest, norms.nan_to_num(math.inf).amax(dim=0))
                for panel, curve in zip(panels, norms.T, strict=True):
                    panel.plot(curve, color=color, linewidth=1, label=None if start else name)
            of_all, (gradient, output) = f"{diverged} of {flags.starts}", largest.tolist()
            dls.log(f"{title:26}{name:6}{of_all:>8}  {gradient:21.3g}  {output:23.3g}")
        panels[0].set(title=title, yscale="log", ylim=(0.1, 1e14))
        panels[1].set(xlabel="iteration", yscale="log", ylim=(0.1, 1e14))
    grid[0, 0].set_ylabel("norm of the gradient\n(before clipping)")
    grid[1, 0].set_ylabel("output (root mean square)")
    grid[0, 0].legend()
    figure.suptitle("Why MSE went to NaN: each line is one initialization; a line that ends is NaN")
    path = dls.save_figure(figure, "norms.png")
    dls.log(f"The figure: {path}")


if __name__ == "__main__":
    SegStudio.run_example(main)
