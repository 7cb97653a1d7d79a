"""Draws the figures of doc/masks.md: one picture, its planes, one row in numbers, its boxes, and
two ways to read an output.

    python doc/scripts/masks.py         # 5 seconds

The picture is the first one of Datasets/PurdueShapes5MultiObject-20-test.gz.
"""

import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from SegStudio import SegStudio

DOC = Path(__file__).resolve().parents[1]
ARCHIVE = "PurdueShapes5MultiObject-20-test.gz"
ROW, FIRST, LAST = 26, 15, 26  # the row that the page shows in numbers, and its columns
RED = "#E8000B"
Shapes = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset
WINDOWS = ((25, 85), (65, 135), (115, 185), (165, 230), (210, 300))  # the last has no upper end

# The output that the page reads in both ways: each true plane slightly blurred, times a factor.
FACTORS = {"rectangle": 1.8, "triangle": 0.6, "disk": 1.0}
FALSE_STAR = 150  # and a star that is not there: the disk's pixels, in the plane of the star


def open_picture():
    """The experiment, and the picture as an item of its dataset."""
    dls = SegStudio(dataroot=str(DOC.parent / "Datasets"))
    segmenter = SegStudio.SemanticSegmentation(dls, max_num_objects=5)
    with tempfile.TemporaryDirectory() as folder:  # its cache does not belong beside the archive
        copy = Path(folder, ARCHIVE)
        copy.write_bytes((DOC.parent / "Datasets" / ARCHIVE).read_bytes())
        dls.dataroot = folder
        item = Shapes(dls, segmenter, "test", ARCHIVE)[0]
    return segmenter, item


def made_up_output(mask):
    """An output (5, H, W) with one right plane and four kinds of errors; see FACTORS."""
    output = nn.functional.avg_pool2d(mask.float()[None], 3, stride=1, padding=1)[0]
    for k, name in enumerate(Shapes.class_names):
        output[k] *= FACTORS.get(name, 1.0)
    output[4] = torch.where(mask[2] > 0, float(FALSE_STAR), 0.0)
    return output


def new_figure(width, height):
    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def save(figure, name):
    path = DOC / "figures" / f"masks-{name}.png"
    SegStudio.write_atomically(path, lambda part: figure.savefig(part, format="png"))


def show(axes, picture, title):
    """A picture (H, W) of grey values 0..255 or (3, H, W) in colour."""
    if picture.dim() == 3:
        axes.imshow(picture.permute(1, 2, 0).byte().numpy())
    else:
        axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([0, 31, 63])
    axes.set_yticks([0, 31, 63])
    axes.tick_params(labelsize=7, length=2)


def draw_planes(item):
    figure = new_figure(7, 5)
    grid = figure.subplots(2, 3).flat
    mask = item["mask_tensor"]
    show(grid[0], item["image"], "image (3, 64, 64)")
    for k, (axes, name, value) in enumerate(
        zip(grid[1:], Shapes.class_names, Shapes.mask_values, strict=True)
    ):
        there = "0 and " + str(value) if mask[k].any() else "all 0"
        show(axes, mask[k], f"plane {k}, {name}: {there}")
    for axes in grid:
        axes.add_patch(
            Rectangle(
                (FIRST - 0.5, ROW - 0.5), LAST - FIRST + 1, 1, fill=False, color=RED, linewidth=1.2
            )
        )
    grid[0].annotate(
        f"row {ROW}", (LAST + 0.5, ROW), (44, 8), color="white", fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "white", "linewidth": 0.8},
    )  # fmt: skip
    save(figure, "planes")


def draw_row(item):
    """The numbers of one row: a table whose cells have the colours of the pixels."""
    columns = range(FIRST, LAST + 1)
    image, mask = item["image"].int(), item["mask_tensor"].int()
    names = [f"plane {k}, {name}" for k, name in enumerate(Shapes.class_names)]
    labels = ["column", "image", "image, red", "image, green", "image, blue", *names]
    figure = Figure(figsize=(7, 2.9), dpi=200)
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    start = -3.4
    axes.set(xlim=(start, len(columns) - 0.4), ylim=(len(labels) - 0.4, -0.6))
    axes.set_axis_off()
    for row, label in enumerate(labels):
        axes.text(start, row, label, fontsize=8.5, va="center")
    for place, x in enumerate(columns):
        axes.text(place, 0, x, fontsize=8, ha="center", va="center", color="#555555")
        pixel = [image[c, ROW, x].item() for c in range(3)]
        cells = [(pixel, "")]
        for c, value in enumerate(pixel):
            cells.append(([value if k == c else 0 for k in range(3)], value))
        cells += [([mask[k, ROW, x].item()] * 3, mask[k, ROW, x].item()) for k in range(5)]
        for row, (color, number) in enumerate(cells, start=1):
            axes.add_patch(
                Rectangle(
                    (place - 0.48, row - 0.45), 0.96, 0.9, facecolor=[v / 255 for v in color],
                    edgecolor=RED if row == 1 else "#888888", linewidth=0.8,
                )
            )  # fmt: skip
            bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 130
            axes.text(
                place, row, number, fontsize=8, ha="center", va="center",
                color="black" if bright else "white",
            )  # fmt: skip
    save(figure, "row")


def draw_boxes(item):
    figure = new_figure(7, 3.6)
    left, right = figure.subplots(1, 2)
    show(left, item["image"], "the boxes of all objects")
    show(right, item["mask_tensor"][1], "plane 1: three triangles, two that touch")
    for k in range(5):
        for x1, y1, x2, y2 in item["bbox_tensor"][:, k].tolist():
            if (x1, y1, x2, y2) == (0, 0, 0, 0):
                continue
            for axes in (left, right) if k == 1 else (left,):
                axes.add_patch(
                    Rectangle(
                        (x1 - 0.5, y1 - 0.5), x2 - x1 + 1, y2 - y1 + 1, fill=False,
                        edgecolor=SegStudio.PALETTE[(1, 6, 2)[k]], linewidth=1.5,
                    )
                )  # fmt: skip
    save(figure, "boxes")


def draw_windows():
    """For each class, the outputs that a threshold and DLStudio's window take for the class."""
    figure = new_figure(7, 2.9)
    axes = figure.add_subplot()
    for k, value in enumerate(Shapes.mask_values):
        low, high = WINDOWS[k]
        axes.barh(k - 0.17, 300 - value / 2, 0.3, left=value / 2, color=SegStudio.PALETTE[4])
        axes.barh(k + 0.17, high - low, 0.3, left=low, color=SegStudio.PALETTE[1])
        axes.plot([value] * 2, [k - 0.4, k + 0.4], color="black", linewidth=1.5)
        axes.text(value / 2 - 3, k - 0.17, f"{value / 2:g}", fontsize=7.5, ha="right", va="center")
        axes.text(low - 3, k + 0.17, low, fontsize=7.5, ha="right", va="center")
        if k < 4:
            axes.text(high + 3, k + 0.17, high, fontsize=7.5, ha="left", va="center")
    axes.set(xlim=(0, 300), ylim=(4.6, -0.6), xlabel="output at a pixel")
    axes.set_yticks(range(5), [f"{k}: {n}" for k, n in enumerate(Shapes.class_names)])
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(8.5)
    handles = [
        Rectangle((0, 0), 1, 1, color=SegStudio.PALETTE[4]),
        Rectangle((0, 0), 1, 1, color=SegStudio.PALETTE[1]),
        Rectangle((0, 0), 0.1, 1, color="black"),
    ]
    labels = ["above the threshold", "inside DLStudio's window", "the mask value"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, "windows")


def draw_reading(segmenter, item):
    """One output, read by threshold and by windows."""
    mask = item["mask_tensor"]
    output = made_up_output(mask)
    net = segmenter.ConstantMask(output)
    pred = segmenter.binarize(net, output[None])[0]
    figure = new_figure(7, 4.6)
    grid = figure.subplots(3, 5)
    notes = ("too bright", "too faint", "right", "right: all 0", "a false star")
    for k, name in enumerate(Shapes.class_names):
        low, high = WINDOWS[k]
        inside = (output[k] > low) & (output[k] < (high if k < 4 else torch.inf))
        peak = output[k].max().item()
        show(grid[0][k], output[k], f"{name}\n{notes[k]}\nlargest value {peak:.0f}")
        show(grid[1][k], pred[k] * 255, f"above {Shapes.mask_values[k] / 2:g}")
        show(grid[2][k], inside * 255, f"{low} to {high}" if k < 4 else f"above {low}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for row, label in zip(grid, ("output", "threshold", "window"), strict=True):
        row[0].set_ylabel(label, fontsize=9)
    save(figure, "reading")


if __name__ == "__main__":
    segmenter, item = open_picture()
    draw_planes(item)
    draw_row(item)
    draw_boxes(item)
    draw_windows()
    draw_reading(segmenter, item)
