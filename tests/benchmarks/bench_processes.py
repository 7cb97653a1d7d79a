"""One process beside two: how far the first 20 losses differ, and the time of an iteration.

    python tests/benchmarks/bench_processes.py           # about 2 minutes

Both train on the same global batches of 4 images. Without BatchNorm the two must agree. With
BatchNorm they differ on a CPU, because each process normalises its own two images. The processes
are started by torchrun and use gloo.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import name_machine
from torch import nn

from SegStudio import SegStudio, processes

NETWORKS = ("three convolutions without BatchNorm", "mUnet, depth 16")
ITERATIONS = 40


def train(network, folder):
    """Train in this process, or in this share of a job of torchrun."""
    dls = SegStudio(
        dataroot=folder / "data", results_dir=folder, run_name="run", seed=0, batch_size=4, epochs=1
    )
    segmenter = SegStudio.SemanticSegmentation(dls, max_num_objects=5)
    segmenter.load_shapes(4 * ITERATIONS, test_images=4)
    if network == NETWORKS[0]:
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 5, 3, padding=1),
        )  # fmt: skip
    else:
        net = segmenter.mUnet(depth=16)
    history = segmenter.run_code_for_training_for_semantic_segmentation(net, log_every=1)
    rows = history.rows
    if processes.is_main():
        seconds = (rows[-1]["seconds"] - rows[9]["seconds"]) / (len(rows) - 10)
        (folder / "result.json").write_text(json.dumps([history.losses, seconds]))


def measure(network, count, folder):
    """(losses, seconds of an iteration) with `count` processes that share the threads."""
    threads = max(1, torch.get_num_threads() // count)
    launch = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone",
                                    "--nproc-per-node", str(count)]  # fmt: skip
    command = [sys.executable, *launch, __file__, "--train", network, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads((folder / "result.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.train:
        train(flags.train, flags.folder)
        return
    print(f"{name_machine()}, torch {torch.__version__}; largest relative difference")
    print(f"{'':40}{'1st loss':>10}{'20 losses':>11}{'1 process':>12}{'2 processes':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            (one, time_1), (two, time_2) = (
                measure(network, count, Path(folder) / f"{count}") for count in (1, 2)
            )
            differences = [abs(b - a) / abs(a) for a, b in zip(one[:20], two[:20], strict=True)]
            print(
                f"{network:40}{differences[0]:10.1e}{max(differences):11.1e}"
                f"{1000 * time_1:9.0f} ms{1000 * time_2:10.0f} ms"
            )


if __name__ == "__main__":
    main()
