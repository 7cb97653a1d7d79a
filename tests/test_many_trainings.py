"""Two hundred trainings in one process: a notebook that is open all day does not fill up."""

import gc
import threading
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import train


def in_use():
    """What this process holds after a garbage collection; what a system cannot tell is left out."""
    gc.collect()
    objects = gc.get_objects()
    counts = {
        "threads": threading.active_count(),
        "figures": len(plt.get_fignums()),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects),
        "modules": sum(issubclass(type(thing), torch.nn.Module) for thing in objects),
        "objects": len(objects),
    }
    if Path("/proc/self/fd").is_dir():
        counts["open files"] = len(list(Path("/proc/self/fd").iterdir()))
    if Path("/proc/self/status").is_file():
        status = Path("/proc/self/status").read_text()
        counts["memory, KiB"] = int(status.partition("RssAnon:")[2].split()[0])
    return counts


@pytest.mark.slow
def test_two_hundred_trainings_leave_nothing_behind(experiment, small_net):
    def train_and_test(number):
        segmenter = experiment(
            train=8, test=4, run_name=f"run-{number}", num_workers=2 * (number % 50 == 0)
        )
        net = small_net()
        train(segmenter, net, "Combined", evaluate_every=1, evaluate_on=0.5)
        if number % 10 == 0:
            segmenter.run_code_for_testing_semantic_segmentation(net)

    for number in range(20):  # caches fill up at first
        train_and_test(number)
    before = in_use()
    for number in range(20, 220):
        train_and_test(number)
    after = in_use()
    # A network of 70,000 weights that stays in memory is 0.3 MiB, 54 MiB after 200 trainings.
    allowed = {"objects": 200, "memory, KiB": 16 * 1024}
    grown = {name: after[name] - before[name] for name in before}
    assert {name: more for name, more in grown.items() if more > allowed.get(name, 0)} == {}
