"""A run that is interrupted ends as one that is not."""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import resumable
import torch
from conftest import ROOT, Numbered, TinyShapes
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from SegStudio import backstage, loading, recording


def result_of(folder):
    """What must be the same: the weights, losses.csv without the seconds, metrics.json."""
    state = torch.load(folder / "model.pt", weights_only=True)
    with (folder / "losses.csv").open(newline="") as file:
        losses = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return state, losses, json.loads((folder / "metrics.json").read_text())


def assert_same(one, other):
    (weights, losses, metrics), (weights_2, losses_2, metrics_2) = map(result_of, (one, other))
    assert list(weights) == list(weights_2)
    different = [name for name in weights if not torch.equal(weights[name], weights_2[name])]
    assert not different
    assert losses == losses_2
    assert metrics == metrics_2


class Cut(Exception):
    pass


def cut_after(iterations, run, monkeypatch):
    """Run until the given iteration has been recorded; then all stops, as by SIGKILL."""
    after_step = recording.TrainingRecorder.after_step

    def cut(recorder, *arguments):
        after_step(recorder, *arguments)
        if recorder.history.iterations == iterations:
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(recording.TrainingRecorder, "after_step", cut)
        run()


@pytest.fixture
def whole(tmp_path):
    resumable.run(tmp_path, "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 6, 7, 12, 17, 18])
def test_a_cut_run_ends_as_a_whole_one(tmp_path, whole, monkeypatch, iterations):
    cut_after(iterations, lambda: resumable.run(tmp_path, "cut"), monkeypatch)
    assert not (tmp_path / "cut" / "model.pt").exists()
    resumable.run(tmp_path, "cut")
    assert_same(whole, tmp_path / "cut")


@pytest.mark.parametrize("iterations", [4, 9, 18])
def test_also_from_a_checkpoint_between_two_reports(tmp_path, whole, monkeypatch, iterations):
    monkeypatch.setattr(recording, "CHECKPOINT_SECONDS", 0)  # after each step
    cut_after(iterations, lambda: resumable.run(tmp_path, "cut", log_every=50), monkeypatch)
    resumable.run(tmp_path, "cut", log_every=50)
    monkeypatch.undo()
    resumable.run(tmp_path, "long", log_every=50)
    assert_same(tmp_path / "long", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_ten_random_moments_a_run_ends_as_a_whole_one(tmp_path, workers):
    context = multiprocessing.get_context("forkserver")  # starts in a blink: torch is loaded
    context.set_forkserver_preload(["resumable"])
    options = {"workers": workers, "pause": 0.1}

    def start(name):
        process = context.Process(target=resumable.run, args=(tmp_path, name), kwargs=options)
        process.start()
        return process

    started = time.perf_counter()
    process = start("whole")
    process.join()
    seconds = time.perf_counter() - started
    assert process.exitcode == 0
    rng = random.Random(7)
    kills = 0
    while kills < 10:
        process = start("killed")
        process.join(rng.uniform(0.1, 0.7) * seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if (tmp_path / "killed" / "metrics.json").exists():
            assert_same(tmp_path / "whole", tmp_path / "killed")
            (tmp_path / "killed").rename(tmp_path / f"ended-{kills}")
    process = start("killed")
    process.join()
    assert process.exitcode == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


# ---- the same seed gives the same run -----------------------------------------------------------


def test_workers_do_not_change_a_run(tmp_path, whole):
    resumable.run(tmp_path, "workers", workers=2)
    assert_same(whole, tmp_path / "workers")


def test_evaluations_do_not_change_a_run(tmp_path, whole):
    plain, _ = resumable.run(tmp_path, "plain", evaluate_every=None, evaluate_on=None)
    state = torch.load(whole / "model.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())


def order_of(batches, epochs=2):
    """The images of each batch of some epochs, told by a number in each image."""
    found = []
    for epoch in range(epochs):
        batches.begin(epoch)
        found.append([batch["image"][:, 0, 0, 0].tolist() for batch in batches])
    return found


def loader_of(kind, data):
    weights = torch.linspace(1, 2, len(data))
    generator = torch.Generator().manual_seed(5)
    return {
        "shuffled": lambda: DataLoader(data, 4, shuffle=True),
        "own generator": lambda: DataLoader(data, 4, shuffle=True, generator=generator),
        "weighted": lambda: DataLoader(data, 4, sampler=WeightedRandomSampler(weights, 20)),
        "in order": lambda: DataLoader(data, 4),
    }[kind]()


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("kind", ["shuffled", "own generator", "weighted", "in order"])
def test_any_epoch_can_begin_at_any_batch(kind, seed):
    cpu = torch.device("cpu")
    torch.manual_seed(1)
    batches = loading.TrainingBatches(loader_of(kind, Numbered(10)), seed, None, cpu)
    whole = order_of(batches)
    torch.manual_seed(1)
    batches = loading.TrainingBatches(loader_of(kind, Numbered(10)), seed, None, cpu)
    batches.begin(0)
    assert len(list(batches)) == (5 if kind == "weighted" else 3)
    batches.begin(1)
    start, iterator = batches.start, iter(batches)
    next(iterator)
    now = loading.random_states(cpu, batches.generators)
    del iterator
    torch.manual_seed(99)
    again = loading.TrainingBatches(loader_of(kind, Numbered(10)), seed, None, cpu)
    again.begin(1, skip=1, start=start, now=now)
    rest = [batch["image"][:, 0, 0, 0].tolist() for batch in again]
    assert rest == whole[1][1:]
    assert whole[0] != whole[1] or kind == "in order"


def test_with_a_seed_the_order_is_that_of_the_loader_itself():
    """Shuffled by hand with the same generator: a script of one's own sees the same batches."""
    order = torch.Generator()
    loader = DataLoader(Numbered(10), 4, shuffle=True, generator=order)
    batches = loading.TrainingBatches(loader, 6, order, torch.device("cpu"))
    (found,) = order_of(batches, epochs=1)
    order.manual_seed(1_000_003 * 6)
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in loader] == found


def test_without_a_seed_the_random_numbers_of_the_items_are_the_loaders():
    data = resumable.RandomShapes(8)
    loader = DataLoader(data, 4)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    expected = [batch["image"].sum().item() for batch in loader]
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    batches = loading.TrainingBatches(loader, None, None, torch.device("cpu"))
    assert [batch["image"].sum().item() for batch in batches] == expected


# ---- what is refused ----------------------------------------------------------------------------


def another_net():
    return nn.Conv2d(3, 5, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"criterion": nn.MSELoss()}, "loss is"),
        ({"rate": 2e-4}, "learning rate is 0.0002 here and was 0.002"),
        ({"batch_size": 3}, "batch size is 3 here and was 4"),
        ({"images": 21}, "number of images is 21 here and was 22"),
        ({"data": TinyShapes}, "data is"),
        ({"epochs": 4}, "number of epochs is 4 here and was 3"),
        ({"augment": None}, "augment is None"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm is 1.0 here and was None"),
        ({"precision": "bf16"}, "precision is bf16 here and was fp32"),
        ({"net": another_net}, "network is"),
    ],
)
def test_another_setting_is_refused_by_name_before_anything_is_touched(
    tmp_path, monkeypatch, changes, named
):
    cut_after(7, lambda: resumable.run(tmp_path, "cut"), monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()}
    if "net" in changes:
        changes = changes | {"net": changes["net"](), "scheduler": None}
        changes["optimizer"] = torch.optim.AdamW(changes["net"].parameters(), lr=2e-3)
    with pytest.raises(ValueError, match="cannot be continued with other settings") as caught:
        resumable.run(tmp_path, "cut", **changes)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == before


def test_a_finished_training_is_loaded_and_said_to_be_finished(tmp_path, whole, capsys):
    before = result_of(whole)
    net, history = resumable.run(tmp_path, "whole")
    assert "This training is finished" in capsys.readouterr().out
    assert [str(row["loss"]) for row in history.rows if "loss" in row] == [
        row["loss"] for row in before[1] if row["loss"]
    ]
    assert all(torch.equal(v, before[0][k]) for k, v in net.state_dict().items())
    assert result_of(whole)[1:] == before[1:]
    with pytest.raises(ValueError, match="learning rate is 0.1 here"):
        resumable.run(tmp_path, "whole", rate=0.1)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, whole, monkeypatch, capsys
):
    cut_after(9, lambda: resumable.run(tmp_path, "cut"), monkeypatch)
    latest = tmp_path / "cut" / recording.LATEST
    latest.write_bytes(latest.read_bytes()[:5000])
    resumable.run(tmp_path, "cut")
    assert f"warning: {latest} is damaged" in capsys.readouterr().out
    assert_same(whole, tmp_path / "cut")


def test_two_damaged_checkpoints_are_an_error(tmp_path, monkeypatch):
    cut_after(9, lambda: resumable.run(tmp_path, "cut"), monkeypatch)
    for name in (recording.LATEST, recording.PREVIOUS):
        (tmp_path / "cut" / name).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*previous\.pt is damaged"):
        resumable.run(tmp_path, "cut")


def test_a_new_training_moves_an_earlier_run_aside(tmp_path, whole):
    earlier = {path.name: path.read_bytes() for path in whole.iterdir()}
    resumable.run(tmp_path, "whole", resume=False, rate=1e-3)
    aside = tmp_path / "whole_before_1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == earlier
    log = (whole / "log.txt").read_text()
    assert log.startswith(f"The earlier run in {whole} is now in {aside}")
    assert log.count("Finished Training") == 1


def test_parts_of_a_new_run_stay_when_the_earlier_run_moves_aside(tmp_path):
    for seed in (1, 2):  # as a script that is started twice
        segmenter = resumable.experiment(tmp_path, "run", seed=seed, epochs=1)
        for each in (segmenter.part_of_run("strided"), segmenter):
            net = segmenter.mUnet(depth=4, width=4)
            each.run_code_for_training_for_semantic_segmentation(net)
            each.dl_studio.write_json("seed.json", seed)
    folders = {
        tmp_path / "run": 2,
        tmp_path / "run" / "strided": 2,
        tmp_path / "run_before_1": 1,
        tmp_path / "run" / "strided_before_1": 1,
    }
    for folder, seed in folders.items():
        assert json.loads((folder / "seed.json").read_text()) == seed
        assert json.loads((folder / "settings.json").read_text())["settings"]["seed"] == seed


def test_after_a_nan_the_same_run_with_a_smaller_learning_rate_works(tmp_path):
    with pytest.raises(FloatingPointError, match="learning rate ten times smaller"):
        resumable.run(tmp_path, "run", rate=1e30)
    assert (tmp_path / "run" / "checkpoint-before-nan.pt").exists() or not list(
        (tmp_path / "run").glob("checkpoint*.pt")
    )
    resumable.run(tmp_path, "run", rate=2e-3)
    assert (tmp_path / "run" / "metrics.json").exists()


# ---- a time limit -------------------------------------------------------------------------------


def test_a_run_bounded_by_time_goes_on_with_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    times = {"max_seconds": 1.5, "pause": 0.0, "evaluate_every": None, "evaluate_on": None}
    cut_after(8, lambda: resumable.run(tmp_path, "cut", **times), monkeypatch)
    used = torch.load(tmp_path / "cut" / recording.LATEST, weights_only=True)["history"]["seconds"]
    _, history = resumable.run(tmp_path, "cut", **times | {"max_seconds": 99.0})
    assert f"{1.5 - used:.0f} of 2 seconds are left" in capsys.readouterr().out
    assert 1.5 <= history.seconds < 9
    fractions = json.loads((tmp_path / "cut" / backstage.FRACTIONS).read_text())
    assert len(fractions) == history.iterations
    assert fractions[-1] >= 1 > fractions[-2]


# ---- Ctrl-C and SIGTERM -------------------------------------------------------------------------

SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import resumable
from SegStudio import SegStudio, backstage

def main():
    flags = SegStudio.example_flags("A run.", quick=(8, 1))
    # A small pause in each step: the signal arrives inside of one.
    resumable.run(flags.results_dir, flags.run_name, pause=0.2, resume=flags.resume,
                  epochs=int(os.environ.get("TEST_EPOCHS", 6)))

SegStudio.run_example(main)
"""


@pytest.fixture
def script(tmp_path):
    """Starts a run as its own process; returns it once it has written its first losses."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(tests=str(ROOT / "tests")))
    started = []

    def start(*flags, until="losses.csv", name="run", epochs=6):
        command = [sys.executable, str(path), "--run-name", name, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["TEST_EPOCHS"] = str(epochs)
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        while until and process.poll() is None and not (tmp_path / "runs" / name / until).exists():
            time.sleep(0.05)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_the_step_and_names_the_command(tmp_path, script, number):
    process = script("--seed", "0")
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "script.py: stopped after iteration" in printed
    (command,) = [line for line in printed.splitlines() if "To go on: " in line]
    assert command.endswith("script.py --seed 0 --run-name run --resume")
    assert "Traceback" not in printed
    assert (tmp_path / "runs" / "run" / recording.LATEST).exists()
    printed, _ = script("--seed", "0", "--resume", until=None).communicate(timeout=120)
    assert "Resuming after iteration" in printed
    resumable.run(tmp_path, "whole", epochs=6)
    assert_same(tmp_path / "whole", tmp_path / "runs" / "run")
    process = script("--resume", until=None)
    printed, _ = process.communicate(timeout=60)
    assert "is finished: there is nothing to resume" in printed
    assert process.returncode == 0


@pytest.mark.slow
def test_another_process_with_the_same_run_name_is_refused(script, tmp_path):
    first = script(epochs=10_000)
    before = (tmp_path / "runs" / "run" / "settings.json").read_bytes()
    printed, _ = script(until=None).communicate(timeout=90)
    assert "another process writes to" in printed
    assert "--run-name" in printed
    assert first.poll() is None
    assert (tmp_path / "runs" / "run" / "settings.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["run"]


def test_a_second_ctrl_c_stops_at_once():
    with recording.Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.noted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
