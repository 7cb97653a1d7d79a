"""How the cost of training grows: with the images, their size, the depth and the batch size.

    python tests/benchmarks/bench_cost.py --figure cost.png         # about 4 minutes
    python tests/benchmarks/bench_cost.py --most-images 10000       # less, with 4 GB less on disk

Each row is measured in a process of its own, so that its peak memory is its own. Memory is what
the process itself has allocated. Pages of files are not in it, because the system takes them
back when it needs room: 0.3 GB of torch's libraries, and the part of the cache that was read.

The first table draws sets of images, opens them for the first time, which writes the cache, and
trains one convolution on all of them for one epoch, in batches of 64. In the other tables the
homework's network (depth 16, batches of 4 images of 64x64) changes in one respect at a time. Every
training is the method that a script calls. Where CUDA is there, the other tables follow for the
GPU.

Linux only: the memory is read from /proc.
"""

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import name_machine
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Dataset

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
IMAGES = (1000, 10_000, 100_000)
HOMEWORK = {"size": 64, "depth": 16, "batch": 4}
AXES = {"size": (64, 128, 256), "depth": (4, 8, 16), "batch": (1, 4, 16, 64)}
ITERATIONS, WARM_UP = 5, 2
TASKS = ("draw", "first", "open", "train")
MIB = 2**20


# ---- one measurement, in a process of its own ---------------------------------------------------


class MemoryWatch(threading.Thread):
    """Keeps the largest amount of memory that this process had, looking 200 times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.allocated = self.mapped = 0
        self.start()

    def look(self):
        status = Path("/proc/self/status").read_text()
        kib = {name: int(number) for name, number in re.findall(r"(\w+):\s+(\d+) kB", status)}
        self.allocated = max(self.allocated, 1024 * kib["RssAnon"])
        self.mapped = max(self.mapped, 1024 * kib["RssFile"])

    def run(self):
        while True:
            self.look()
            time.sleep(0.005)


class RandomImages(Dataset):
    """A few random images with five mask planes: what is on them does not change the cost."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star")
    mask_values = (50, 100, 150, 200, 250)

    def __init__(self, number, size):
        self.number = number
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand(3, size, size, generator=generator) * 255
        planes = torch.rand(5, size, size, generator=generator) < 0.03
        values = torch.tensor(self.mask_values, dtype=torch.uint8)[:, None, None]
        self.mask = planes * values

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return {"image": self.image, "mask_tensor": self.mask}


def train(net, dataset, batch_size, gpu=False):
    """Train one epoch by the public method: the median seconds of a step, and the peak memory.

    The training calls `augment` once per step, so it is where this looks at the clock.
    """
    dls = SegStudio(batch_size=batch_size, epochs=1, learning_rate=1e-6, use_gpu=gpu, seed=0)
    segmenter = Segmentation(dls, max_num_objects=5)
    segmenter.dataserver_train = dataset
    segmenter.train_dataloader = DataLoader(dataset, batch_size, shuffle=True)
    times, memory, watch = [], [], MemoryWatch()

    def look(images, masks):
        if dls.device.type == "cuda":
            torch.cuda.synchronize()
        watch.look()
        times.append(time.perf_counter())
        peak = torch.cuda.max_memory_allocated() if gpu else watch.allocated
        memory.append((peak, watch.mapped))
        return images, masks

    segmenter.run_code_for_training_for_semantic_segmentation(net, augment=look)
    steps = [end - start for start, end in zip(times, times[1:], strict=False)]
    allocated, mapped = memory[-1]  # not of the figures that are drawn after the training
    return {
        "seconds": statistics.median(steps[WARM_UP - 1 :]),
        "memory": allocated,
        "mapped": mapped,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def measure_training(size, depth, batch, gpu):
    net = Segmentation.mUnet(depth=depth)
    number = batch * (WARM_UP + ITERATIONS + 1)
    return train(net, RandomImages(number, size), batch, gpu)


def measure_data(task, archive, number):
    """"draw", "first" (which writes the cache), "open" or "train": seconds and peak memory."""
    path = Path(archive)
    watch, start = MemoryWatch(), time.perf_counter()
    if task == "draw":
        Segmentation.PurdueShapes5MultiObjectDataset.generate(path, number)
    else:
        dls = SegStudio(dataroot=str(path.parent))
        dataset = Segmentation.PurdueShapes5MultiObjectDataset(dls, None, "train", path.name)
    seconds = time.perf_counter() - start
    watch.look()
    if task == "train":
        return train(torch.nn.Conv2d(3, 5, 3, padding=1), dataset, 64)
    return {"seconds": seconds, "memory": watch.allocated}


def here(task, *details):
    """Measure in this process, in a folder of its own, and print the result as the last line."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        measure = measure_training if task == "training" else functools.partial(measure_data, task)
        found = measure(*details)
        os.chdir("/")
    print(json.dumps(found))


def apart(*task):
    """Measure in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--here", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{task} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- tables and figure --------------------------------------------------------------------------


def measure_images(numbers):
    """{number of images: {task: what it costs}}"""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            archive = Path(folder, f"PurdueShapes5MultiObject-{number}-train.gz")
            rows[number] = {task: apart(task, str(archive), number) for task in TASKS}
            cache = next(Path(folder).glob(f"{archive.name}*.cache.npy"))
            for name, file in (("archive", archive), ("cache", cache)):
                rows[number][name] = file.stat().st_size
                file.unlink()
    return rows


def print_table(head, rows):
    """A table in Markdown."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        print("|", " | ".join(map(str.rjust, row, widths)), "|")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    print(flush=True)


def print_images(rows):
    head = (
        "images", "archive", "cache", "drawing", "its memory", "first use", "its memory",
        "opening", "training step", "memory of training", "cache in memory",
    )  # fmt: skip
    print_table(head, [
        (
            f"{number:,}", f"{row['archive'] / MIB:,.0f} MiB",
            f"{row['cache'] / MIB:,.0f} MiB",
            f"{row['draw']['seconds']:.1f} s", f"{row['draw']['memory'] / MIB:,.0f} MiB",
            f"{row['first']['seconds']:.1f} s", f"{row['first']['memory'] / MIB:,.0f} MiB",
            f"{row['open']['seconds']:.3f} s", f"{1000 * row['train']['seconds']:.1f} ms",
            f"{row['train']['memory'] / MIB:,.0f} MiB", f"{row['train']['mapped'] / MIB:,.0f} MiB",
        )
        for number, row in rows.items()
    ])  # fmt: skip


def print_axis(axis, rows):
    title = {"size": "image size", "depth": "depth", "batch": "batch size"}[axis]
    head = (title, "parameters", "iteration", "per image", "memory")
    print_table(head, [
        (
            f"{value}x{value}" if axis == "size" else value, f"{row['parameters']:,}",
            f"{1000 * row['seconds']:.1f} ms",
            f"{1000 * row['seconds'] / (value if axis == 'batch' else HOMEWORK['batch']):.1f} ms",
            f"{row['memory'] / MIB:,.0f} MiB",
        )
        for value, row in rows.items()
    ])  # fmt: skip


def draw(images, axes_rows, path):
    """Above seconds, below memory; a column for each thing that grows."""
    titles = {
        "images": "number of images", "size": "side of the images, pixels", "depth": "depth",
        "batch": "batch size",
    }  # fmt: skip
    figure = Figure(figsize=(10, 5.2), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(titles), sharey="row")
    for (above, below), (name, title) in zip(grid.T, titles.items(), strict=True):
        if name == "images":
            ticks = list(images)
            labels = ("drawing", "first use (writes the cache)", "opening", "a training step")
            for color, task, label in zip(SegStudio.PALETTE, TASKS, labels, strict=False):
                style = {"color": color, "marker": "o", "label": label}
                above.plot(ticks, [row[task]["seconds"] for row in images.values()], **style)
                if task != "open":
                    memory = [row[task]["memory"] / MIB for row in images.values()]
                    below.plot(ticks, memory, **style)
            below.legend(*above.get_legend_handles_labels(), fontsize=7, loc="upper left")
        else:
            ticks = list(axes_rows[name])
            rows = axes_rows[name].values()
            style = {"color": SegStudio.PALETTE[3], "marker": "o"}
            above.plot(ticks, [row["seconds"] for row in rows], **style)
            below.plot(ticks, [row["memory"] / MIB for row in rows], **style)
        for axes in (above, below):
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
            axes.grid(alpha=0.3)
        above.set_title(title, fontsize=10)
    for axes, label, ticks in (
        (grid[0][0], "seconds", (0.001, 0.01, 0.1, 1, 10, 100)),
        (grid[1][0], "peak memory, MiB", (250, 500, 1000, 2000, 4000, 8000)),
    ):
        axes.set_ylabel(label)
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    for axes in grid.flat:
        axes.minorticks_off()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--here", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--most-images", type=int, default=100_000, help="of 1k, 10k and 100k")
    parser.add_argument("--figure", type=Path, help="draw the tables into this file")
    flags = parser.parse_args()
    if flags.here:
        return here(*flags.here)
    if not Path("/proc/self/status").exists():
        return "bench_cost.py: this system has no /proc/self/status, from which memory is read"
    start = time.perf_counter()
    print(f"{name_machine()}, torch {torch.__version__}, fp32\n", flush=True)
    images = measure_images([number for number in IMAGES if number <= flags.most_images])
    print_images(images)
    for gpu in (False, True)[: 1 + torch.cuda.is_available()]:
        print(f"On the {'GPU' if gpu else 'CPU'}:\n")
        seen, axes = {}, {}
        for axis, values in AXES.items():
            axes[axis] = {}
            for value in values:
                settings = HOMEWORK | {axis: value}
                key = tuple(settings.values())
                if key not in seen:  # the homework's own is on each axis
                    seen[key] = apart("training", *key, gpu)
                axes[axis][value] = seen[key]
            print_axis(axis, axes[axis])
        if flags.figure and not gpu:
            draw(images, axes, flags.figure)
    print(f"{time.perf_counter() - start:.0f} seconds in all")
    return None


if __name__ == "__main__":
    sys.exit(main())
