"""Compares the scores with those of torchmetrics, on the 20 test images of Datasets/.

    python doc/scripts/scores_torchmetrics.py       # 10 seconds; needs: pip install '.[bench]'

The preds are the true masks, moved by one pixel, and with the triangle called a star.
"""

from pathlib import Path

import torch
from torchmetrics.classification import (
    MultilabelAccuracy,
    MultilabelF1Score,
    MultilabelJaccardIndex,
)
from torchmetrics.segmentation import MeanIoU

from SegStudio import SegStudio

DATASETS = Path(__file__).resolve().parents[2] / "Datasets"
NAME = "PurdueShapes5MultiObject-20-test.gz"


def lines():
    """The comparison, line by line."""
    segmentation = SegStudio.SemanticSegmentation
    dls = SegStudio(dataroot=DATASETS)
    data = segmentation.PurdueShapes5MultiObjectDataset(dls, None, "test", NAME)
    masks = torch.stack([item["mask_tensor"] for item in data]) > 0  # (20, 5, 64, 64)
    preds = masks.roll((1, 1), dims=(2, 3))
    preds[:, 4] |= preds[:, 1]
    preds[:, 1] = False
    scores = segmentation.SegmentationScores(data.class_names)
    scores.update(preds, masks)
    found = scores.compute()
    pred, mask = preds.int(), masks.int()
    theirs = {
        "iou": MultilabelJaccardIndex(5, average="none")(pred, mask),
        "dice": MultilabelF1Score(5, average="none")(pred, mask),
        "pixel_accuracy": MultilabelAccuracy(5, average="none")(pred, mask),
    }
    yield f"{'':10}" + "".join(f"{name:>30}" for name in theirs)
    for k, (name, row) in enumerate(found["classes"].items()):
        cells = [f"{row[metric]:.6f} {values[k]:.6f}" for metric, values in theirs.items()]
        yield f"{name:10}" + "".join(f"{cell:>30}" for cell in cells)
    single = MeanIoU(5, include_background=True)
    of_images = [single(p[None], m[None]).item() for p, m in zip(pred, mask, strict=True)]
    ours = scores.update(preds, masks).mean().item()
    yield f"mean over the images of their mean IoU: {ours:.6f} {sum(of_images) / 20:.6f}"


if __name__ == "__main__":
    print("\n".join(lines()))
