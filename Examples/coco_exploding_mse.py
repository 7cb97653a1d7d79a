"""Why the squared error diverges on COCO's masks of 0 and 255.

    python Examples/coco_exploding_mse.py             # about two minutes on a 2-core computer
    python Examples/coco_exploding_mse.py --quick     # TIME
    python Examples/coco_exploding_mse.py --coco data/coco-64

The homework's report saw its MSE loss become NaN on COCO, and used MAE instead. The script trains
mUnet with one output channel by the homework's SGD (learning rate 1e-4, momentum 0.9) with both
losses, in five cases: masks of 0/255 or 0/1, each with and without clipping the gradient, and
images of 0 to 1. It prints and draws the norm of the gradient and the size of the output at each
iteration. Depth is 4, which diverges like 16 in a third of the time.

--coco is a folder that Datasets/prepare_coco.py wrote. Without it a synthetic set in COCO's format
is drawn first. No scores are expected: nothing is trained for long enough.
"""

import math
import time
from dataclasses import dataclass

import torch
from coco_folder import find_or_draw_coco
from matplotlib.lines import Line2D
from torch import nn

from SegStudio import SegStudio

DEPTH = 4
BATCH_SIZE = 4
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
CLASSES = ("cake", "dog", "motorcycle")
COLORS = {"MSE": SegStudio.PALETTE[5], "MAE": SegStudio.PALETTE[0]}


@dataclass(frozen=True)
class Case:
    title: str
    mask_value: int = 255  # of the pixels on the object
    largest_gradient: float = math.inf  # a gradient with a larger norm is scaled down to it
    input_scale: float = 1.0  # factor on the pixel values of the image


CASES = (
    Case("masks 0/255"),
    Case("masks 0/255, clipped", largest_gradient=1.0),
    Case("masks 0/1", mask_value=1),
    Case("masks 0/1, clipped", mask_value=1, largest_gradient=1.0),
    Case("masks 0/255, images 0..1", input_scale=1 / 255),
)


@dataclass
class Run:
    """What one training did: at each iteration, the gradient's norm and the output's size."""

    gradient_norms: list
    output_sizes: list

    @property
    def end(self):
        """How it ended: "finite", or "inf" or "NaN", the first loss that is not finite."""
        return self._end

    @end.setter
    def end(self, value):
        self._end = value
