"""Prints how much faster the shapes data loads here than in DLStudio 2.3.6, side by side.

    pip install '.[bench]' && python tests/benchmarks/bench_data.py

Both read the same archive of 10,000 drawn images (with lists, as in the course) in a temporary
folder, in turns, each time in a process of its own. Takes some minutes and 4 GB of memory.
"""

import argparse
import functools
import gzip
import importlib.util
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader

from SegStudio import SegStudio

CLASS = "PurdueShapes5MultiObjectDataset"
NAMES = {
    "first load": ["first load (s)"],
    "later load": ["later load (s)"],
    "batch": ["batch of 4, first epoch (ms)", "batch of 4, later epochs (ms)"],
}


def hold_lists(archive):
    """Write an archive again with R, G and B as lists of ints, as in the course."""
    with gzip.open(archive) as file:
        items, label_map = pickle.load(file)
    for item in items.values():
        item[:3] = [channel.tolist() for channel in item[:3]]
    with gzip.open(archive, "wb", 1) as file:
        pickle.dump([items, label_map], file)


def load(who):
    """Loads the archive of the working directory; returns the dataset and the seconds it took."""
    settings = SimpleNamespace(dataroot="./", image_size=[64, 64])
    segmenter = SimpleNamespace(max_num_objects=5)
    if who == "DLStudio":
        from DLStudio import DLStudio as studio

        # Since torch 2.6 DLStudio's own cache only loads when it is allowed to unpickle anything.
        torch.load = functools.partial(torch.load, weights_only=False)
    else:
        studio = SegStudio
    dataset_class = getattr(studio.SemanticSegmentation, CLASS)
    (archive,) = (path.name for path in Path().glob("*.gz"))
    start = time.perf_counter()
    dataset = dataset_class(settings, segmenter, "train", archive)
    return dataset, time.perf_counter() - start


def fetch(dataset):
    """Seconds for a shuffled batch of 4 through a DataLoader, medians of the 1st and 2nd epoch.

    In the first one the system maps the pages of our cache file, in all later ones it has them.
    """
    loader = DataLoader(dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    medians = []
    for _ in range(2):
        seconds, batches = [], iter(loader)
        for _ in range(len(loader)):
            start = time.perf_counter()
            next(batches)
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    return medians


def measure(who, what):
    """Measures in a process of its own, so that no one profits from another's memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", who, what]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(word) for word in lines.splitlines()[-1].split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3, help="of the later loads and batches")
    parser.add_argument("--num-images", type=int, default=10000, help="fewer, to try it out")
    args = parser.parse_args()
    if args.measure:
        who, what = args.measure
        torch.set_num_threads(1)
        dataset, seconds = load(who)
        if not getattr(dataset, "num_shapes", None):
            dataset.num_shapes = 5
        print(*(fetch(dataset) if what == "batch" else [seconds]))
        return
    if importlib.util.find_spec("DLStudio") is None:
        sys.exit("bench_data.py: DLStudio is not installed: pip install '.[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        drawing = time.perf_counter()
        generate = getattr(SegStudio.SemanticSegmentation, CLASS).generate
        # DLStudio only makes a cache for an archive of this very name.
        archive = generate("PurdueShapes5MultiObject-10000-train.gz", args.num_images)
        drawing = time.perf_counter() - drawing
        hold_lists(archive)
        rows = []
        for what in NAMES:
            repeats = 1 if what == "first load" else args.repeats
            # In turns, so that a busy spell of the machine falls on both.
            turns = range(repeats)
            pairs = [(measure("DLStudio", what), measure("SegStudio", what)) for _ in turns]
            for k, name in enumerate(NAMES[what]):
                theirs = statistics.median(dlstudio[k] for dlstudio, _ in pairs)
                ours = statistics.median(segstudio[k] for _, segstudio in pairs)
                rows.append((name, theirs, ours))
        os.chdir("/")
    machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    print(f"drawing {args.num_images} images: {drawing:.1f} s; {machine}")
    print(f"{'':32}{'DLStudio 2.3.6':>16}{'SegStudio':>12}{'times faster':>14}")
    for name, theirs, ours in rows:
        unit = 1000 if "(ms)" in name else 1
        print(f"{name:32}{theirs * unit:16.3f}{ours * unit:12.3f}{theirs / ours:14.1f}")


if __name__ == "__main__":
    main()
