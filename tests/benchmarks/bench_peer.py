"""The recipe of Examples/best_segmentation.py beside segmentation_models_pytorch's U-Net.

Both see the same archives through the same loop and are scored by the same code: BCE+Dice, AdamW,
a schedule that ends when the time does, bf16 and channels_last where they help. The peer is
Unet("resnet18", encoder_weights=None), with a one-cycle schedule. PEER holds its learning rate and
batch size for each budget (others take the nearest one's): the best that --tune found there, on
images held out of the training set.

    python tests/benchmarks/bench_peer.py --seconds 120 --tune --only peer   # all of GRID
    python tests/benchmarks/bench_peer.py --seconds 600 --tune --only peer --grid 32:2e-3 16:2e-3
    python tests/benchmarks/bench_peer.py --seconds 120 600                  # on the test images
    python tests/benchmarks/bench_peer.py --seconds 60 --tune --only ours    # what the parts bring

The last one trains our recipe on the same part with fewer of mUnet's options.

Needs: pip install '.[bench]'.
"""

import argparse
import functools
import math
import platform
import sys
import tempfile
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "Examples"))

import best_segmentation  # noqa: E402 - the examples are no package

from SegStudio import SegStudio  # noqa: E402

HELD_OUT = 1000
PEER = {120: (32, 2e-3), 600: (16, 2e-3)}  # seconds: (batch size, learning rate)
OURS = [
    ("best_segmentation.py", {}),
    ("without full_resolution", {"full_resolution": False}),
    ('and with wiring="dlstudio"', {"full_resolution": False, "wiring": "dlstudio"}),
]
GRID = [(size, rate) for size in (8, 16, 32) for rate in (1e-3, 2e-3, 4e-3)]


class Peer(nn.Module):
    """The peer's network, for images of 0..255."""

    def __init__(self):
        super().__init__()
        self.unet = smp.Unet("resnet18", encoder_weights=None, classes=5)

    def forward(self, x):
        return self.unet(x / 255)


def one_cycle(done):
    """The shape of torch's OneCycleLR, over the fraction of the time that is done."""
    if done < 0.3:
        return 0.04 + 0.96 * (0.5 - 0.5 * math.cos(math.pi * done / 0.3))
    return 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7)


def train_peer(segmenter, seconds, lr):
    """Train the peer for so many seconds; returns it."""
    model = Peer()
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        loss_type="BCEDice",
        optimizer=functools.partial(torch.optim.AdamW, lr=lr, fused=True),
        scheduler=one_cycle,
        precision="auto",
        channels_last=True,
        augment=best_segmentation.augment,
        max_seconds=seconds,
        report_every=200,
    )
    return model


def measure(args, batch_size, train, tune):
    """Train from scratch; returns the scores on the test or the held-out images."""
    with tempfile.TemporaryDirectory() as results:
        dls = SegStudio(
            dataroot=args.dataroot, batch_size=batch_size, use_gpu=True, seed=0, results_dir=results
        )
        segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
        segmenter.load_shapes(10000, 1000)
        if tune:
            data = segmenter.dataserver_train
            kept = len(data) - HELD_OUT
            segmenter.load_PurdueShapes5MultiObject_dataset(
                Subset(data, range(kept)), Subset(data, range(kept, len(data)))
            )
        model = train(segmenter)
        return segmenter.score(model).compute()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[90, 150, 240, 600])
    parser.add_argument("--dataroot", default="./data/PurdueShapes5MultiObject/")
    parser.add_argument("--tune", action="store_true", help="try GRID on held-out images")
    parser.add_argument("--grid", nargs="+", metavar="SIZE:RATE", help="other choices for --tune")
    parser.add_argument("--only", choices=("ours", "peer"))
    args = parser.parse_args()
    grid = [(int(size), float(rate)) for size, rate in (c.split(":") for c in args.grid or ())]
    lines = []
    for seconds in args.seconds:
        runs = []
        for name, changes in (OURS if args.tune else OURS[:1]) if args.only != "peer" else ():
            ours = functools.partial(best_segmentation.train, seconds=seconds, **changes)
            runs.append((f"SegStudio, {name}", best_segmentation.BATCH_SIZE, ours))
        best = PEER[min(PEER, key=lambda budget: abs(budget - seconds))]
        for size, rate in ((grid or GRID) if args.tune else [best]) if args.only != "ours" else ():
            peer = functools.partial(train_peer, seconds=seconds, lr=rate)
            runs.append((f"smp Unet(resnet18), lr {rate:g}, batch {size}", size, peer))
        for name, batch_size, train in runs:
            found = measure(args, batch_size, train, args.tune)
            lines.append(
                f"{seconds:6g} s  {name:44}{found['mean_iou']:9.3f}{found['mean_dice']:10.3f}"
            )
            print(lines[-1], flush=True)
    part = f"{HELD_OUT} held-out training" if args.tune else "1000 test"
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"torch {torch.__version__}, smp {smp.__version__}; scores on the {part} images")
    print(f"{'':54}mean IoU mean Dice", *lines, sep="\n")


if __name__ == "__main__":
    main()
