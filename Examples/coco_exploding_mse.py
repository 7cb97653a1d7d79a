"""Why training with the squared error diverges on COCO.

    python Examples/coco_exploding_mse.py --quick     # 115 seconds at most; 50 if the data is there
    python Examples/coco_exploding_mse.py             # about 3 minutes on 2 cores
    python Examples/coco_exploding_mse.py --coco data/coco

The homework's report saw its MSE loss become NaN on COCO, and used MAE instead. The script trains
mUnet with one output channel by the homework's SGD (learning rate 1e-4, momentum 0.9), with both
losses, in five cases: masks of 0/255 or 0/1, each with and without clipping the gradient, and
images of 0 to 1. It prints and draws the norm of the gradient and the size of the output at each
iteration, and prints which trainings end in inf or in NaN. The depth is 4: such a network diverges
like one of depth 16, in a third of the time.

--coco is a folder that Datasets/prepare_coco.py wrote. Without it a synthetic set in COCO's format
is drawn first, once, in about a minute. No scores are expected: nothing is trained for long enough.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from coco_folder import find_or_draw_coco
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import nn

from SegStudio import SegStudio
from SegStudio.backstage import kind_of_images, progress_bar

CLASSES = ("cake", "dog", "motorcycle")
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 4
QUICK_SECONDS = 115

LOSSES = ("MSE", "MAE")
COLORS = {"MSE": SegStudio.PALETTE[5], "MAE": SegStudio.PALETTE[0]}
END_MARKERS = {"inf": "^", "NaN": "X"}


@dataclass(frozen=True)
class Case:
    title: str
    mask_value: int = 255  # of the pixels on the object
    largest_gradient: float | None = None  # the norm above which a gradient is clipped
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
    """One training: at each iteration, the norm of the gradient and the size of the output."""

    gradient_norms: list = field(default_factory=list)
    output_sizes: list = field(default_factory=list)  # root mean square over the batch
    end: str = "finite"  # or "inf" or "NaN": the first loss that was not finite


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(48, 1),
        full=(160, 1),
        quick_seconds=QUICK_SECONDS,
        last_file="norms.json",
        extra={
            "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
            "--starts": {
                "type": int,
                "metavar": "N",
                "help": "initializations of each case; default 3, with --quick 2",
            },
        },
    )
    starts = 2 if flags.quick else 3
    if flags.starts is not None:
        if flags.starts < 1:
            raise ValueError(f"--starts is 1 or more, not {flags.starts}")
        starts = flags.starts
    settings = dict(flags.settings)
    settings.setdefault("dataroot", "./data/")
    dls = SegStudio(batch_size=BATCH_SIZE, classes=CLASSES, **settings)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
    folder = find_or_draw_coco(flags.coco, dls)
    segmenter.load_coco(folder, flags.train_images, test_images=3, mask_value=1)
    batches = [
        (batch["image"], batch["mask_tensor"].float()) for batch in segmenter.train_dataloader
    ] * flags.epochs

    runs = {(case, loss): [] for case in CASES for loss in LOSSES}
    runs_left = len(runs) * starts
    dls.log(f"{'':26}loss  ends in            largest gradient norm  largest output (r.m.s.)")
    with progress_bar(desc="trainings", total=runs_left) as bar:
        for (case, loss), runs_of_case in runs.items():
            for start in range(starts):
                torch.manual_seed(flags.seed + start)
                net = segmenter.mUnet(depth=DEPTH, out_channels=1, input_scale=case.input_scale)
                seconds = flags.training_seconds(runs_left, reserve=0.4)
                runs_of_case.append(train(net, loss, case, batches, seconds))
                runs_left -= 1
                bar.update()
            dls.log(table_row(case, loss, runs_of_case))
    path = save_figure(dls, runs, kind_of_images(segmenter, "images"))
    save_numbers(dls, runs)
    dls.log(f"\nThe figure: {path}")
    dls.log("Next: python Examples/coco_segmentation.py --quick  (the homework's solution: MAE)")


def train(net, loss, case, batches, seconds):
    """Train on each batch once, for `seconds` seconds at most; returns the Run.

    It stops at the first loss that is not finite: after that the network cannot learn.
    """
    run = Run()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    started = time.perf_counter()
    for images, masks in batches:
        if seconds is not None and time.perf_counter() - started > seconds:
            break
        output = net(images)  # (N, 1, H, W)
        error = output - case.mask_value * masks
        value = (error**2).mean() if loss == "MSE" else error.abs().mean()
        if not value.isfinite():
            run.end = "NaN" if value.isnan() else "inf"
            break
        optimizer.zero_grad()
        value.backward()
        run.output_sizes.append(output.detach().double().square().mean().sqrt().item())
        run.gradient_norms.append(gradient_norm(net))
        if case.largest_gradient is not None:
            nn.utils.clip_grad_norm_(net.parameters(), case.largest_gradient)
        optimizer.step()
    return run


def gradient_norm(net):
    """The norm of the gradient over all parameters; in float32 its squares would overflow."""
    gradients = [p.grad.double() for p in net.parameters() if p.grad is not None]
    return torch.stack([gradient.norm() for gradient in gradients]).norm().item()


def table_row(case, loss, runs):
    """A row of the table: how the runs ended, and their largest finite norms."""
    ends = Counter(run.end for run in runs)
    ended = ", ".join(f"{ends[end]} {end}" for end in ("NaN", "inf", "finite") if ends[end])
    gradient = largest_finite(value for run in runs for value in run.gradient_norms)
    output = largest_finite(value for run in runs for value in run.output_sizes)
    return f"{case.title:26}{loss:6}{ended:18}{gradient:22.3g}{output:25.3g}"


def largest_finite(values):
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def save_figure(dls, runs, kind):
    """One column for each case: gradient above, output below; a line for each training."""
    figure = dls.new_figure(figsize=(17, 8), dpi=100, layout="constrained")
    grid = figure.subplots(2, len(CASES), sharex=True, sharey="row")
    for column, case in enumerate(CASES):
        for loss in LOSSES:
            for run in runs[case, loss]:
                draw_line(grid[0][column], run.gradient_norms, run.end, COLORS[loss])
                draw_line(grid[1][column], run.output_sizes, run.end, COLORS[loss])
        grid[0][column].set_title(case.title, fontsize=14)
        grid[1][column].set_xlabel("iteration", fontsize=13)
        grid[1][column].xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (grid[0][column], grid[1][column]):
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=11)
    grid[0][0].set_ylabel("norm of the gradient\n(before clipping)", fontsize=13)
    grid[1][0].set_ylabel("output, root mean square", fontsize=13)
    lines = [Line2D([], [], color=COLORS[loss], label=loss) for loss in LOSSES]
    ends = [
        Line2D([], [], color="black", marker=marker, linestyle="", label=f"the next loss is {end}")
        for end, marker in END_MARKERS.items()
    ]
    figure.legend(handles=lines + ends, loc="outside lower center", ncols=4, fontsize=14)
    figure.suptitle(
        f"MSE and MAE by SGD at 1e-4 on {kind}: each line is one initialization", fontsize=16
    )
    return dls.save_figure(figure, "norms.png")


def draw_line(axes, values, end, color):
    """The finite values; a marker on the last one if the training ended in inf or NaN."""
    points = [(k, value) for k, value in enumerate(values, start=1) if math.isfinite(value)]
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5)
    if end in END_MARKERS:
        axes.plot(*points[-1], color=color, marker=END_MARKERS[end], markersize=10)


def save_numbers(dls, runs):
    """norms.json: all that the figure shows. JSON has no NaN and inf: they are written as text."""

    def in_json(values):
        return [value if math.isfinite(value) else str(value) for value in values]

    numbers = [
        {
            "case": case.title,
            "loss": loss,
            "start": start,
            "end": run.end,
            "gradient_norms": in_json(run.gradient_norms),
            "output_sizes": in_json(run.output_sizes),
        }
        for (case, loss), runs_of_case in runs.items()
        for start, run in enumerate(runs_of_case)
    ]
    dls.write_json("norms.json", numbers)


if __name__ == "__main__":
    SegStudio.run_example(main)
