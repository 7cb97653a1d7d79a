"""Two processes, started by torchrun, train and test one network together (gloo, on the CPU)."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, Segmentation
from torch import nn

from SegStudio import processes

SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from conftest import Segmentation, TinyShapes
from SegStudio import SegStudio, processes
from torch import nn


def main():
    flags = SegStudio.example_flags("A run.", quick=(8, 1))
    kind = os.environ["TEST_KIND"]
    dls = SegStudio(image_size=[32, 32], batch_size=4, learning_rate=1e-6, num_workers=0,
                    **flags.settings | {{"epochs": 8}})
    segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
    # Batches of 4, 4 and 1: the last one is smaller than the number of processes.
    segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(9), TinyShapes(11))
    torch.manual_seed(0 if processes.is_main() else 1)  # the main process's weights count
    if kind == "plain":
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    else:
        net = segmenter.mUnet(depth=4, width=4, input_scale=1 / 255)
    options = {{"log_every": 1, "resume": flags.resume}}
    if kind == "dies":
        def die(history, net):
            if processes.rank() == 1 and history.iterations == 3:
                raise ValueError("rank one cannot go on")
        options["on_log"] = die
    if kind == "killed":
        def die(history, net):
            if processes.rank() == 1 and history.iterations == 3:
                os.kill(os.getpid(), 9)
        options["on_log"] = die
    if kind == "time":
        options["max_seconds"] = 1.0
        options["scheduler"] = lambda done: 1 - done / 2
    if kind == "stops":
        def stop(history, net):
            if processes.rank() == 1 and history.iterations == 4 and not flags.resume:
                os.kill(os.getpid(), 15)
        options["on_log"] = stop
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net, criterion=segmenter.SegmentationLossComb(dice_scale=30), evaluate_every=5,
        evaluate_on=TinyShapes(3), **options)
    segmenter.run_code_for_testing_semantic_segmentation(net, show_every=2)


SegStudio.run_example(main)
"""


@pytest.fixture
def run(tmp_path):
    """run(kind, number of processes, *flags): the script, to its end."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(tests=str(ROOT / "tests")))

    def start(kind, count, *flags, name=None):
        command = [sys.executable, str(path)]
        if count > 1:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [*torchrun, "--nproc-per-node", str(count), str(path)]
        command += ["--run-name", name or f"{kind}-{count}", *flags]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TEST_KIND": kind,
        }  # fmt: skip
        for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.pop(variable, None)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300
        )

    return start


def table(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def without(row, *names):
    return {k: v for k, v in row.items() if k not in names}


@pytest.mark.slow
def test_two_processes_train_as_one_does(run, tmp_path):
    one, two = run("plain", 1), run("plain", 2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    first, second = (table(tmp_path / "runs" / f"plain-{count}") for count in (1, 2))
    assert len(first) == len(second) == 24
    for row, other in zip(first, second, strict=True):
        expected = pytest.approx(without(row, "seconds"), rel=1e-4)
        assert without(other, "seconds") == expected
    metrics = [
        json.loads((tmp_path / "runs" / f"plain-{count}" / "metrics.json").read_text())
        for count in (1, 2)
    ]
    assert metrics[0]["images"] == metrics[1]["images"] == 11  # each image once
    assert metrics[1]["mean_iou"] == pytest.approx(metrics[0]["mean_iou"], abs=1e-3)
    pictures = [
        sorted(path.name for path in (tmp_path / "runs" / f"plain-{count}").glob("*.png"))
        for count in (1, 2)
    ]
    assert pictures[0] == pictures[1]
    assert "predictions-003.png" in pictures[1]
    # The main process alone prints and writes.
    assert two.stdout.count("Finished Training") == 1
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == [
        "plain-1", "plain-2",
    ]  # fmt: skip


@pytest.mark.slow
def test_batch_norm_of_each_process_sees_its_own_share(run, tmp_path):
    for count in (1, 2):
        ended = run("munet", count)
        assert ended.returncode == 0, ended.stderr
    first, second = (table(tmp_path / "runs" / f"munet-{count}") for count in (1, 2))
    assert first[0]["loss"] != second[0]["loss"]
    assert second[0]["loss"] == pytest.approx(first[0]["loss"], rel=0.2)
    state = torch.load(tmp_path / "runs" / "munet-2" / "model.pt", weights_only=True)
    assert list(state) == list(Segmentation.mUnet(depth=4, width=4).state_dict())


@pytest.mark.slow
def test_a_time_limit_ends_all_processes_in_the_same_step(run, tmp_path):
    ended = run("time", 2)
    assert ended.returncode == 0, ended.stderr
    assert "Finished Training" in ended.stdout
    assert table(tmp_path / "runs" / "time-2")[-1]["seconds"] >= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sign"), [("dies", "rank one cannot go on"), ("killed", "-9")])
def test_a_process_that_dies_ends_the_job_with_its_own_error(run, kind, sign):
    started = time.monotonic()
    ended = run(kind, 2)
    assert ended.returncode != 0
    assert sign in ended.stderr
    print(f"ended after {time.monotonic() - started:.0f} s")  # a minute at most, measured by hand


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(run, tmp_path):
    whole = run("munet", 2, name="whole")
    assert whole.returncode == 0, whole.stderr
    stopped = run("stops", 2, name="run")
    assert stopped.returncode != 0
    assert "stopped after iteration" in stopped.stderr
    assert "To go on: torchrun --nproc-per-node 2" in stopped.stderr
    resumed = run("stops", 2, "--resume", name="run")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming after iteration" in resumed.stdout
    states = [
        torch.load(tmp_path / "runs" / name / "model.pt", weights_only=True)
        for name in ("whole", "run")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("net", "used"),
    [
        (Segmentation.mUnet(depth=16, width=4), False),  # six of its blocks are never used
        (Segmentation.UNet(), True),
        (nn.Sequential(nn.Conv2d(3, 5, 1)), True),
    ],
)
def test_unused_parameters_are_found(net, used):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert processes.all_parameters_used(net, torch.device("cpu"), (64, 64)) is used
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def test_layers_of_a_gpu_share_their_statistics_and_come_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weight = net[1].weight
    with processes.shared_batch_norm(net):
        assert type(net[1]) is nn.SyncBatchNorm
        assert net[1].weight is weight
        net[1].running_mean += 1
    assert type(net[1]) is nn.BatchNorm2d
    assert net[1].weight is weight
    assert net[1].running_mean.tolist() == [1.0] * 4
