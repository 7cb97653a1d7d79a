"""One figure for several networks: the input images, the true masks, and each network's masks."""

import torch
import torchvision
from matplotlib.patches import Patch

from SegStudio.backstage import class_colors


def first_items(dataset, count):
    """The first `count` items of a dataset as one batch."""
    return as_batch([dataset[index] for index in range(min(count, len(dataset)))])


def as_batch(items):
    """Items of a dataset as one batch of images and masks."""
    return {key: torch.stack([item[key] for item in items]) for key in ("image", "mask_tensor")}


def save_side_by_side(segmenter, batch, preds, name, heading):
    """Save a figure with one column for each image and one row for each network.

    Args:
        segmenter: a SemanticSegmentation; the picture goes to the folder of its run.
        batch: images and masks, as a DataLoader gives them.
        preds: {name of the network: pred (N, C, H, W)}, from segmenter.binarize.
        name: of the file.
        heading: the title of the figure.

    A class keeps its colour in all rows. The IoU of an image is the mean over the classes that are
    in the mask or in the pred.
    """
    images = batch["image"]
    truth = batch["mask_tensor"] > 0
    rows = {"input": None, "truth": truth, **preds}
    count = len(images)
    figure = segmenter.dl_studio.new_figure(
        figsize=(1.75 * count + 0.5, 1.9 * len(rows) + 1.0), dpi=110, layout="constrained"
    )
    grid = figure.subplots(len(rows), count, squeeze=False)
    for panels, (row_name, masks) in zip(grid, rows.items(), strict=True):
        panels[0].set_ylabel(row_name, fontsize=15 if len(row_name) < 10 else 12)
        for column, axes in enumerate(panels):
            picture = images[column].byte()
            if masks is not None:
                picture = paint_masks(images[column], masks[column])
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row_name in preds:
                axes.set_title(iou_of_image(segmenter, masks[column], truth[column]), fontsize=13)
    patches = class_patches(names_of_channels(segmenter, truth.shape[1]))
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=len(patches),
        fontsize=13,
        handlelength=1,
        columnspacing=1.2,
    )
    figure.suptitle(heading, fontsize=15)
    return segmenter.dl_studio.save_figure(figure, name)


def names_of_channels(segmenter, channels):
    """The class names; "object" for the one channel of the COCO networks."""
    class_names = segmenter.data_spec()["class_names"]
    return class_names if channels == len(class_names) else ["object"]


def iou_of_image(segmenter, pred, truth):
    """The mean IoU of one image in words. Shape: pred and truth (C, H, W)."""
    if not pred.any():
        return "no pixel set"
    scores = segmenter.SegmentationScores(range(len(pred)))
    iou = scores.update(pred[None], truth[None]).item()
    return f"IoU {iou:.2f}"


def paint_masks(image, masks):
    """The masks in the classes' colours over a dark, grey copy of the image.

    A hole in a mask is dark; a pixel that is in several masks is white.

    Shape: image (3, H, W) 0..255, masks (C, H, W) bool -> (3, H, W) uint8.
    """
    dark = 0.3 * image.clamp(0, 255).mean(dim=0, keepdim=True).expand(3, -1, -1)
    picture = torchvision.utils.draw_segmentation_masks(
        dark.byte(), masks, alpha=1, colors=class_colors(len(masks))
    )
    picture[:, masks.sum(dim=0) > 1] = 255
    return picture


def class_patches(class_names):
    """The entries of a legend for pictures by paint_masks."""
    colors = class_colors(len(class_names))
    patches = [Patch(color=c, label=name) for c, name in zip(colors, class_names, strict=True)]
    missed = Patch(facecolor="#444444", label="no class")
    if len(patches) == 1:
        return [*patches, missed]
    return [
        *patches,
        Patch(facecolor="white", edgecolor="black", label="several classes"),
        missed,
    ]


def generated_or_not(dataset):
    """The word in a picture's title that tells whether SegStudio drew the images."""
    if not getattr(dataset, "generated", False):
        return "original"
    return "synthetic" if hasattr(dataset, "manifest") else "generated"
