"""The recipe of Examples/best_segmentation.py beside segmentation_models_pytorch's U-Net.

All networks see the same 10,000 generated images through the same loop, with the same loss
(BCE + Dice), schedule and precision, and are scored by the same code on 1,000 test images:
    ours         UNet, Muon and AdamW, copy-paste: best_segmentation.py
    peer         smp.Unet("resnet18", encoder_weights=None) with AdamW, and copy-paste too
    peer-muon    the same with Muon for its hidden kernels and AdamW for the rest
The steps of the recipe, each of which changes one thing:
    munet        mUnet (dense, depth 4, width 32) with AdamW, images flipped and turned
    unet         UNet instead of mUnet
    unet-muon    Muon for the hidden kernels; with copy-paste this is "ours"
SETTINGS holds the batch sizes and learning rates. Those of both peers are the best that --tune
found, on 1,000 images held out of the training set.

    python tests/benchmarks/bench_peer.py --only peer --seconds 120 --tune 32:1e-3 32:2e-3 32:4e-3
    python tests/benchmarks/bench_peer.py --only munet unet unet-muon ours --seconds 60 --held-out
    python tests/benchmarks/bench_peer.py --seconds 60 120 300 600
    python tests/benchmarks/bench_peer.py --only ours --seconds 120 --seeds 1 2
    python tests/benchmarks/bench_peer.py --draw doc/figures/peer.png     # of all runs so far

Each run adds a line to runs/bench_peer/results.json; what is in there is not run again. For a CPU
without bf16: --precision fp32, and ONEDNN_MAX_CPU_ISA=AVX512_CORE in the environment.

Needs: pip install '.[bench]'.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from common import name_machine
from torch import nn
from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "Examples"))

import best_segmentation  # noqa: E402 - the examples are no package

from SegStudio import SegStudio  # noqa: E402

HELD_OUT = 1000
# (batch size, learning rate of AdamW, learning rate of Muon)
OURS = (
    best_segmentation.BATCH_SIZE,
    best_segmentation.ADAMW_RATE,
    best_segmentation.MUON_RATE,
)
SETTINGS = {
    "munet": (16, 6e-3, None),
    "unet": (16, 6e-3, None),
    "unet-muon": OURS,
    "ours": OURS,
    "peer": (32, 4e-3, None),
    "peer-muon": (32, 4e-3, 0.05),
}
COMPARED = ("ours", "peer", "peer-muon")


class Peer(nn.Module):
    """The peer's network, for images of 0..255."""

    def __init__(self):
        super().__init__()
        self.unet = smp.Unet("resnet18", encoder_weights=None, classes=5)

    def forward(self, x):
        return self.unet(x / 255)


def train(segmenter, name, seconds, precision, rates):
    """Train one of SETTINGS for so many seconds; returns (network, images that it saw, seconds)."""
    adamw_rate, muon_rate = rates
    if name.startswith("peer"):
        net = Peer()
    elif name == "munet":
        net = segmenter.mUnet(depth=4, width=32, upsampling="dense", input_scale=1 / 255)
    else:
        net = segmenter.UNet()
    if muon_rate is None:
        optimizer = torch.optim.AdamW(net.parameters(), lr=adamw_rate, betas=(0.9, 0.95))
    else:
        hidden, rest = segmenter.Muon.split(net)
        optimizer = [
            segmenter.Muon(hidden, lr=muon_rate),
            torch.optim.AdamW(rest, lr=adamw_rate, betas=(0.9, 0.95)),
        ]
    course = best_segmentation.Course()
    augment = course.augment if name in COMPARED else best_segmentation.flip_and_turn
    history = segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net,
        criterion=segmenter.SegmentationLossBCEDice(),
        optimizer=optimizer,
        scheduler=course.schedule,
        precision=precision,
        channels_last=True,
        augment=augment,
        max_seconds=seconds,
        log_every=500,
    )
    images = history.iterations * segmenter.dl_studio.batch_size
    return net, images, history.seconds


def measure(flags, name, seconds, seed, settings, held_out):
    """Train from scratch and score, on the test images or on held-out training images."""
    batch_size, *rates = settings
    with tempfile.TemporaryDirectory() as results:
        dls = SegStudio(
            dataroot=flags.dataroot, batch_size=batch_size, seed=seed, results_dir=results,
            run_name="run",
        )  # fmt: skip
        segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
        segmenter.load_shapes(10000, 1000)
        if held_out:
            data = segmenter.dataserver_train
            kept = len(data) - HELD_OUT
            segmenter.load_PurdueShapes5MultiObject_dataset(
                Subset(data, range(kept)), Subset(data, range(kept, len(data)))
            )
        net, images, trained = train(segmenter, name, seconds, flags.precision, rates)
        found = segmenter.score(net).compute()
        classes = {key: round(value["iou"], 4) for key, value in found["classes"].items()}
    return {
        "name": name,
        "seconds": seconds,
        "seed": seed,
        "mean_iou": round(found["mean_iou"], 4),
        "mean_dice": round(found["mean_dice"], 4),
        "classes": classes,
        "images": images,
        "images_per_second": round(images / trained, 1),
        "batch_size": batch_size,
        "rates": rates,
        "part": "held-out" if held_out else "test",
        "precision": flags.precision,
        "machine": name_machine(),
        "torch": torch.__version__,
        "day": time.strftime("%Y-%m-%d"),
    }


def draw(rows, path):
    """Score over the seconds of training: one curve per network and optimizer."""
    from matplotlib.figure import Figure

    labels = {
        "ours": "UNet, Muon + AdamW (best_segmentation.py)",
        "peer": 'smp Unet("resnet18"), AdamW',
        "peer-muon": 'smp Unet("resnet18"), Muon + AdamW',
    }
    figure = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="mean IoU on 1,000 test images")
    for name, color, marker in zip(COMPARED, SegStudio.PALETTE, "os^", strict=False):
        budgets = sorted({row["seconds"] for row in rows if row["name"] == name})
        scores = [
            [row["mean_iou"] for row in rows if (row["name"], row["seconds"]) == (name, budget)]
            for budget in budgets
        ]
        if not budgets:
            continue
        means = [sum(values) / len(values) for values in scores]
        axes.plot(budgets, means, color=color, marker=marker, label=labels[name])
        for budget, values in zip(budgets, scores, strict=True):
            axes.plot([budget] * len(values), values, color=color, marker="_", linestyle="")
    axes.axhline(0.9, color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(0.4, 1.0))
    ticks = sorted({row["seconds"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, nargs="+", default=[60, 120, 300, 600])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--only", nargs="+", choices=SETTINGS, default=COMPARED)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--dataroot", default="./data/PurdueShapes5MultiObject/")
    add("--results", type=Path, default=Path("runs/bench_peer/results.json"), metavar="FILE")
    add("--tune", nargs="+", metavar="BATCH:ADAMW[:MUON]", help="choices, on held-out images")
    add("--held-out", action="store_true", help="score on held-out training images")
    add("--draw", metavar="FILE", help="draw the figure of all runs on the test images so far")
    flags = parser.parse_args()
    rows = json.loads(flags.results.read_text()) if flags.results.is_file() else []
    if flags.draw:
        draw([row for row in rows if row["part"] == "test"], flags.draw)
        return
    held_out = flags.held_out or bool(flags.tune)
    for seconds in flags.seconds:
        for seed in flags.seeds:
            for name in flags.only:
                choices = [SETTINGS[name]]
                if flags.tune:
                    choices = [[float(part) for part in c.split(":")] for c in flags.tune]
                    choices = [(int(c[0]), c[1], (*c, None)[2]) for c in choices]
                for settings in choices:
                    known = functools.partial(is_run, name=name, seconds=seconds, seed=seed)
                    if any(known(row, settings, held_out, flags) for row in rows):
                        continue
                    rows.append(measure(flags, name, seconds, seed, settings, held_out))
                    flags.results.parent.mkdir(parents=True, exist_ok=True)
                    text = json.dumps(rows, indent=1)
                    SegStudio.write_atomically(
                        flags.results, functools.partial(Path.write_text, data=text)
                    )
                    print({key: rows[-1][key] for key in ("name", "seconds", "mean_iou")})
    print(f"\n{name_machine()}, torch {torch.__version__}, smp {smp.__version__}")
    heads = ("seconds", "seed", "mean IoU", "Dice", "images", "per s")
    print(" " * 14 + "".join(f"{head:>9}" for head in heads))
    for row in rows:
        print(
            f"{row['name']:14}{row['seconds']:9g}{row['seed']:9}{row['mean_iou']:9.3f}"
            f"{row['mean_dice']:9.3f}{row['images']:9}{row['images_per_second']:9.0f}  "
            f"{row['part']} images, {row['precision']}, batch {row['batch_size']}, {row['rates']}"
        )


def is_run(row, settings, held_out, flags, *, name, seconds, seed):
    """Whether a row of the results is this run."""
    batch_size, *rates = settings
    return (
        (row["name"], row["seconds"], row["seed"]) == (name, seconds, seed)
        and (row["batch_size"], row["rates"]) == (batch_size, rates)
        and (row["part"] == "held-out") == held_out
        and row["precision"] == flags.precision
    )


if __name__ == "__main__":
    main()
