"""Draws the figure of doc/scores.md: what boundary F1 and boundary IoU see of a dotted mask.

    python doc/scripts/scores.py        # 5 seconds
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from SegStudio import SegStudio

FIGURES = Path(__file__).resolve().parents[1] / "figures"
GREY, DARK = "#D9D9D9", "#555555"
BLUE, ORANGE = SegStudio.PALETTE[0], SegStudio.PALETTE[5]
CORNER, SIDE = 27, 11  # the part of the 64x64 image that is drawn


def edge(mask):
    """The boundary pixels of boundary F1: set, with an unset one above, below, left or right."""
    around = nn.functional.pad(mask, (1, 1, 1, 1))
    up, down = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    return mask & ~(up & down & left & right)


def draw(axes, title, note, layers):
    """Squares in the colours of the layers; later layers lie over earlier ones."""
    for mask, color, size in layers:
        for y, x in mask[0, 0].nonzero().tolist():
            inset = (1 - size) / 2
            axes.add_patch(
                Rectangle(
                    (x - CORNER + inset, y - CORNER + inset), size, size, facecolor=color,
                    edgecolor="white", linewidth=0.5,
                )
            )  # fmt: skip
    axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=8.5)
    axes.set_xlabel(note, fontsize=8)


def main():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disk = ((x - 32) ** 2 + (y - 32) ** 2 < 16)[None, None]
    lattice = disk & (x % 2 == 0) & (y % 2 == 0)
    Scores = SegStudio.SemanticSegmentation.SegmentationScores
    disk_edge, dots = edge(disk), edge(lattice)
    near = nn.functional.max_pool2d(disk_edge.float(), 3, stride=1, padding=1) > 0
    band, dots_band = Scores.boundary(disk), Scores.boundary(lattice)
    both, union = (band & dots_band).sum().item(), (band | dots_band).sum().item()
    figure = Figure(figsize=(7, 2.35), dpi=200, layout="constrained")
    panels = figure.subplots(1, 4)
    draw(panels[0], "mask", f"{disk.sum().item()} pixels", [(disk, DARK, 1)])
    draw(panels[1], "prediction", f"{lattice.sum().item()} pixels", [(lattice, DARK, 1)])
    hit, miss = dots & near, dots & ~near
    draw(
        panels[2], "boundary F1 (version 1)",
        f"{hit.sum().item()} of {dots.sum().item()} dots lie within\n1 pixel of the grey boundary",
        [(disk_edge, GREY, 1), (hit, BLUE, 0.6), (miss, ORANGE, 0.6)],
    )  # fmt: skip
    draw(
        panels[3], "boundary IoU",
        f"{both} of {union} pixels of the\nbands are in both",
        [(band | dots_band, GREY, 1), (band & dots_band, BLUE, 1)],
    )  # fmt: skip
    SegStudio.write_atomically(
        FIGURES / "scores-lattice.png", lambda part: figure.savefig(part, format="png")
    )


if __name__ == "__main__":
    main()
