"""One training iteration, side by side with DLStudio 2.3.6's, in one process.

    pip install '.[bench]' && python tests/benchmarks/bench_training.py

The network of the homework (depth 16), batches of 4 images of 64x64, SGD, MSE. The ways take
turns, so that a machine that slows down slows all of them; the table shows medians. The bar: an
iteration of SegStudio is no slower than DLStudio's.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from SegStudio import SegStudio
from SegStudio.recording import MEMORY_FORMATS, TrainingRecorder, make_optimizer

BATCH = 4


def name_machine():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def make_batches(number=8):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([50, 100, 150, 200, 250], dtype=torch.uint8)[:, None, None]
    for _ in range(number):
        mask = (torch.rand(BATCH, 5, 64, 64, generator=generator) < 0.03) * values
        yield {
            "image": torch.rand(BATCH, 3, 64, 64, generator=generator) * 255,
            "mask_tensor": mask,
            "bbox_tensor": torch.zeros(BATCH, 64, 5, 4),
        }


def dlstudio_iterations(batches):
    """The body of DLStudio's loop, as a generator: one iteration for each next()."""
    import DLStudio

    torch.manual_seed(0)
    net = DLStudio.DLStudio.SemanticSegmentation.mUnet(True, 16)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9)
    running_loss = 0.0
    while True:
        for data in batches:
            images, masks, boxes = data["image"], data["mask_tensor"], data["bbox_tensor"]
            images = images.to("cpu")
            masks = masks.type(torch.FloatTensor).to("cpu")
            boxes.to("cpu")
            optimizer.zero_grad()
            loss = criterion(net(images), masks)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            yield running_loss


def segstudio_iterations(batches, folder, upsampling="strided", bf16=False, channels_last=False):
    """The package's own loop, one iteration for each next(): a loader of one batch, one epoch."""
    torch.manual_seed(0)
    dls = SegStudio(learning_rate=1e-5, results_dir=folder, run_name="bench", epochs=10**6)
    segmenter = SegStudio.SemanticSegmentation(dls, max_num_objects=5)
    net = segmenter.mUnet(True, 16, upsampling=upsampling)
    net.to(memory_format=MEMORY_FORMATS[channels_last])
    criterion = segmenter.SegmentationLossMSE()
    optimizer = make_optimizer(None, net, dls)
    recorder = TrainingRecorder(dls, net, criterion, optimizer, list(batches), log_every=10**5)
    recorder.epochs = lambda: [1]
    recorder.estimate_time = lambda: None
    recorder.bar = tqdm(disable=True)
    recorder.clock = time.perf_counter()
    while True:
        for batch in batches:
            segmenter.training_loop(net, [batch], criterion, optimizer, recorder, bf16=bf16)
            yield


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--folder", default="bench-runs", help="where a run folder is made")
    flags = parser.parse_args()
    batches = list(make_batches())
    ways = {
        "DLStudio 2.3.6": dlstudio_iterations(batches),
        "SegStudio": segstudio_iterations(batches, flags.folder),
        "SegStudio, dense": segstudio_iterations(batches, flags.folder, "dense"),
        "SegStudio, channels_last": segstudio_iterations(
            batches, flags.folder, channels_last=True
        ),
        "SegStudio, bf16": segstudio_iterations(batches, flags.folder, bf16=True),
        "SegStudio, bf16 and channels_last": segstudio_iterations(
            batches, flags.folder, bf16=True, channels_last=True
        ),
    }  # fmt: skip
    times = {name: [] for name in ways}
    for number in range(flags.rounds + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            next(way)
            if number >= 2:  # the first two pay for memory and caches
                times[name].append(time.perf_counter() - start)
        if number == 2:  # a way that would take minutes (bf16 without hardware) is shown once
            slow = [name for name in ways if times[name][0] > 5 * times["DLStudio 2.3.6"][0]]
            for name in slow:
                del ways[name]
    print(f"A training iteration, depth 16, batch {BATCH}; {name_machine()}, torch "
          f"{torch.__version__}; medians of {flags.rounds} turns")  # fmt: skip
    base = statistics.median(times["DLStudio 2.3.6"])
    print(f"{'':36}{'ms':>8}{'DLStudio / it':>16}")
    for name, values in times.items():
        each = statistics.median(values)
        print(f"{name:36}{1000 * each:8.1f}{base / each:15.2f}x")


if __name__ == "__main__":
    main()
