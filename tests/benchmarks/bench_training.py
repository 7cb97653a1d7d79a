"""The training loop of the homework, timed: DLStudio 2.3.6's and ours, by the CPU's own measure.

    pip install '.[bench]' && python tests/benchmarks/bench_training.py        # about 4 minutes
    python tests/benchmarks/bench_training.py --no-compile                     # about 1 minute

Network of depth 16, batches of 4 images of 64x64, SGD, MSE. Each way trains in a process of its own
by the training method that a script calls, on the same DataLoader over a drawn archive. The ways
take turns, so that a machine that slows down slows all of them; the table shows medians.

ms              one iteration, waiting for its batch included
DLStudio / it   how much faster than DLStudio: above 1 is faster
waiting         the share of that time until the DataLoader gives the batch
GFLOP/s         multiplications and additions of the convolutions, forward and backward, by time
of the rate     GFLOP/s as a share of the best matrix multiplication in this precision, which is
                measured in the same turns
compiling       how long torch.compile takes before the first iteration

Where CUDA is there, the same rows follow for the GPU.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import BATCH, name_machine
from torch.utils.flop_counter import FlopCounterMode

from SegStudio import SegStudio, recording

WARM_UP = 2  # turns: the first ones pay for memory, caches and compiling
ARCHIVE = "PurdueShapes5MultiObject-1000-train.gz"
ITERATIONS = {"cpu": 4, "cuda": 50}  # of a turn: a GPU is waited for at its end only
WAYS = {
    "DLStudio 2.3.6": {},
    "SegStudio": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "torch.compile": {"compile": True},
    "torch.compile, bf16, channels_last": {
        "compile": True, "precision": "bf16", "channels_last": True,
    },
}  # fmt: skip
MATRICES = (  # (rows, summed, columns): two squares, two convolutions of the network as a product
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 576, 64),
    (1024, 1152, 128),
)


# ---- what a process measures --------------------------------------------------------------------


def take_turns(pipe, device):
    """Make every DataLoader of this process wait for the parent before each turn.

    Replacing DataLoader.__iter__ times both trainings as they are, without a change of their code.
    """
    iterate = torch.utils.data.DataLoader.__iter__
    clock = {"start": None, "waiting": 0.0, "left": 0}

    def next_turn():
        if device == "cuda":
            torch.cuda.synchronize()
        if clock["start"] is not None:
            pipe.send((time.perf_counter() - clock["start"], clock["waiting"]))
        pipe.recv()
        clock.update(start=time.perf_counter(), waiting=0.0, left=ITERATIONS[device])

    def timed(loader):
        batches = iterate(loader)
        while True:
            if clock["left"] == 0:
                next_turn()
            start = time.perf_counter()
            batch = next(batches, None)
            clock["waiting"] += time.perf_counter() - start
            if batch is None:
                return
            clock["left"] -= 1
            yield batch

    torch.utils.data.DataLoader.__iter__ = timed


def train(pipe, way, device, dataroot):
    """Train without an end; the process ends with the pipe."""
    options = dict(WAYS[way])
    settings = {
        "dataroot": dataroot, "learning_rate": 1e-5, "batch_size": BATCH, "epochs": 10**6,
        "use_gpu": device == "cuda",
    }  # fmt: skip
    dls = SegStudio(**settings, seed=0, run_name="bench")
    segmenter = SegStudio.SemanticSegmentation(dls, max_num_objects=5)
    dataset = segmenter.PurdueShapes5MultiObjectDataset(dls, segmenter, "train", ARCHIVE)
    segmenter.load_PurdueShapes5MultiObject_dataset(dataset, dataset)
    torch.manual_seed(0)
    if way == "DLStudio 2.3.6":
        from DLStudio import DLStudio

        classes = ("rectangle", "triangle", "disk", "oval", "star")
        theirs = DLStudio(
            **settings, image_size=[64, 64], path_saved_model="saved", momentum=0.9, classes=classes
        )
        theirs.device = dls.device
        loader = segmenter.train_dataloader
        segmenter = DLStudio.SemanticSegmentation(dl_studio=theirs, max_num_objects=5)
        segmenter.train_dataloader = loader
    net = segmenter.mUnet(skip_connections=True, depth=16)
    if options.pop("compile", False):
        net.compile()
    take_turns(pipe, device)
    segmenter.run_code_for_training_for_semantic_segmentation(net, **options)


def multiply(pipe, precision, device, _):
    """Answer each turn with the seconds per operation of each of MATRICES."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    kind = {"device": device, "dtype": dtype}
    pairs = [(torch.randn(m, k, **kind), torch.randn(k, n, **kind)) for m, k, n in MATRICES]
    repeats = {"cpu": 3, "cuda": 50}[device]
    while True:
        pipe.recv()
        seconds = []
        for (a, b), (m, k, n) in zip(pairs, MATRICES, strict=True):
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / (2 * m * k * n * repeats))
        pipe.send(seconds)


def work(pipe, task, *details):
    """A process of one way, in a folder of its own. It sends the reason if it cannot go on."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as silence:
        os.chdir(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # else it may find what was compiled before
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            try:
                task(pipe, *details)
            except (EOFError, BrokenPipeError):  # the parent has closed the pipe
                pass
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
            os.chdir("/")


# ---- the turns and the table --------------------------------------------------------------------


class Way:
    """A process that measures one way when it is asked to."""

    def __init__(self, task, *details):
        self.pipe, end = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=work, args=(end, task, *details)
        )
        self.process.start()
        end.close()
        self.turns, self.failure = [], None

    def turn(self):
        if self.failure:
            return
        try:
            self.pipe.send("go")
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            answer = "its process ended"
        if isinstance(answer, str):
            self.failure = answer
        else:
            self.turns.append(answer)

    def median(self, place):
        return statistics.median(turn[place] for turn in self.turns[WARM_UP:])

    def end(self):
        self.pipe.close()
        self.process.join(10)
        self.process.kill()


def flops_of_an_iteration():
    """Multiplications and additions of forward and backward pass, as torch counts them."""
    net = SegStudio.SemanticSegmentation.mUnet(depth=16)
    counter = FlopCounterMode(display=False)
    with counter:
        torch.nn.functional.mse_loss(
            net(torch.rand(BATCH, 3, 64, 64)), torch.zeros(BATCH, 5, 64, 64)
        ).backward()
    return counter.get_total_flops()


def reason_to_skip(options, device, compile_too):
    """Why a way is not measured on this machine; None if it is."""
    if options.get("precision") == "bf16" and not recording.use_bf16("auto", torch.device(device)):
        return "no bf16 in hardware"
    if not options.get("compile"):
        return None
    if not compile_too:
        return "--no-compile"
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if device == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        return "no C++ compiler, which torch.compile needs"
    return None


def rate(precision):
    return f"matrix multiplications, {precision}"


def measure(device, rounds, compile_too, dataroot):
    """{name: Way, or the reason why there is none} after all turns on one device."""
    skipped = {name: reason_to_skip(WAYS[name], device, compile_too) for name in WAYS}
    ways = {
        name: Way(train, name, device, dataroot) for name, reason in skipped.items() if not reason
    }
    precisions = ["fp32", "bf16"] if skipped["bf16"] is None else ["fp32"]
    ways |= {rate(precision): Way(multiply, precision, device, None) for precision in precisions}
    try:
        for _ in range(rounds + WARM_UP):
            for way in ways.values():
                way.turn()
    finally:
        for way in ways.values():
            way.end()
    return {**{name: reason for name, reason in skipped.items() if reason}, **ways}


def print_table(ways, device, flops):
    each = ITERATIONS[device]
    rates = {}
    for precision in ("fp32", "bf16"):
        way = ways.get(rate(precision))
        if way is not None:
            best = min(range(len(MATRICES)), key=way.median)
            rates[precision] = 1 / way.median(best)
            print(f"{precision}: {rates[precision] / 1e9:,.0f} GFLOP/s in the best of "
                  f"{len(MATRICES)} matrix multiplications, {MATRICES[best]}")  # fmt: skip
    print()
    head = ("     ms", "DLStudio / it", "waiting", "GFLOP/s", "of the rate", "compiling")
    title = f"on the {'GPU' if device == 'cuda' else 'CPU'}"
    print(f"| {title:35}|", " | ".join(head), "|")
    print(f"|{'-' * 36}|", " | ".join("-" * (len(name) - 1) + ":" for name in head), "|")
    base = ways["DLStudio 2.3.6"]
    for name, options in WAYS.items():
        way = ways[name]
        failure = way if isinstance(way, str) else way.failure
        if failure:
            print(f"| {name:35}| not measured: {failure} |")
            continue
        seconds = way.median(0) / each
        faster = "-" if base.failure else f"{base.median(0) / each / seconds:.2f}x"
        share = flops / seconds / rates[options.get("precision", "fp32")]
        slow_start = sum(turn[0] for turn in way.turns[:WARM_UP]) - WARM_UP * each * seconds
        compiling = f"{slow_start:.0f} s" if options.get("compile") else "-"
        cells = (
            f"{1000 * seconds:.1f}", faster, f"{way.median(1) / each / seconds:.2%}",
            f"{flops / seconds / 1e9:,.0f}", f"{share:.0%}", compiling,
        )  # fmt: skip
        print(f"| {name:35}|", " | ".join(map(str.rjust, cells, map(len, head))), "|")
    print()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each way")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True,
        help="also measure torch.compile, which compiles for a minute or two each time",
    )  # fmt: skip
    flags = parser.parse_args()
    flops = flops_of_an_iteration()
    with tempfile.TemporaryDirectory() as dataroot:
        dls = SegStudio(dataroot=dataroot)
        shapes = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset
        shapes.find_or_generate(dataroot, ARCHIVE)
        shapes(dls, None, "train", ARCHIVE)  # writes the cache
        print(f"A training iteration, depth 16, batch {BATCH}: {flops / 1e9:.1f} GFLOP")
        print(f"{name_machine()}, torch {torch.__version__}; medians of {flags.rounds} turns")
        for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
            print_table(measure(device, flags.rounds, flags.compile, dataroot), device, flops)


if __name__ == "__main__":
    sys.exit(main())
