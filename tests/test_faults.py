"""What a run survives: a full disk, a lost folder, a killed worker, a NaN in the last epoch."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import resumable
import torch
from matplotlib.figure import Figure
from test_resume import assert_same

from SegStudio import recording


class FullDisk:
    """Writing a file fails after a part of it, from the given time on, until there is room."""

    def __init__(self, monkeypatch):
        self.after = None  # how many files can still be written
        save, write_csv, savefig = torch.save, recording.TrainingHistory.write_csv, Figure.savefig

        def guard(write):
            def write_or_fail(content, path, *arguments, **options):
                if self.is_full():
                    Path(path).write_bytes(b"a part of it")
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                return write(content, path, *arguments, **options)

            return write_or_fail

        self.patch = {
            "checkpoint.pt": lambda: monkeypatch.setattr(torch, "save", guard(save)),
            "losses.csv": lambda: monkeypatch.setattr(
                recording.TrainingHistory, "write_csv", guard(write_csv)
            ),
            "loss.png": lambda: monkeypatch.setattr(Figure, "savefig", guard(savefig)),
        }

    def is_full(self):
        if self.after is not None:
            self.after -= 1
        return self.after is not None and self.after < 0


@pytest.mark.parametrize(
    ("name", "after"), [("checkpoint.pt", 0), ("checkpoint.pt", 4), ("losses.csv", 3),
                        ("loss.png", 0)],
)  # fmt: skip
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(tmp_path, monkeypatch, name, after):
    resumable.run(tmp_path, "whole")
    disk = FullDisk(monkeypatch)
    disk.after = after
    disk.patch[name]()
    with pytest.raises(OSError, match=f"{name} could not be written .the disk is full") as caught:
        resumable.run(tmp_path, "run")
    assert "\n" not in str(caught.value)
    folder = tmp_path / "run"
    assert not list(folder.glob("*.part"))
    assert not (folder / "metrics.json").exists()
    if after and name == "checkpoint.pt":  # the one before it is whole
        assert torch.load(folder / name, weights_only=True)["history"]["iterations"] > 0
    disk.after = None
    resumable.run(tmp_path, "run")
    assert_same(tmp_path / "whole", folder)


def test_a_run_folder_that_is_deleted_is_named(tmp_path):
    def delete(history, net):
        if history.iterations == 8:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(OSError, match="there is no such folder") as caught:
        resumable.run(tmp_path, "run", on_log=delete)
    assert str(tmp_path / "run") in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is half-written"


def test_a_run_folder_that_becomes_read_only_is_named(tmp_path, monkeypatch, capsys):
    """root may write everywhere, so the refusal is simulated."""
    replace = Path.replace

    def refuse(path, target):
        if path.parent == tmp_path / "run":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return replace(path, target)

    def protect(history, net):
        if history.iterations == 8:
            monkeypatch.setattr(Path, "replace", refuse)

    with pytest.raises(OSError, match=r"model.pt could not be written: .*read-only"):
        resumable.run(tmp_path, "run", on_log=protect)
    assert "warning: " in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("*.part"))
    monkeypatch.undo()
    resumable.run(tmp_path, "run", on_log=lambda history, net: None)
    resumable.run(tmp_path, "whole")
    assert_same(tmp_path / "whole", tmp_path / "run")


class Deadly(resumable.RandomShapes):
    """An item that kills the worker which loads it, as a full memory does."""

    armed = True

    def __getitem__(self, idx):
        if self.armed and idx == 17 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(idx)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_worker_is_named_and_the_run_goes_on_without_workers(tmp_path, monkeypatch):
    with pytest.raises(ChildProcessError, match="a process that loads images was killed") as caught:
        resumable.run(tmp_path, "run", workers=2, data=Deadly)
    assert "num_workers=0" in str(caught.value)
    assert "To go on" in str(caught.value)
    monkeypatch.setattr(Deadly, "armed", False)
    resumable.run(tmp_path, "run", data=Deadly)
    resumable.run(tmp_path, "whole", data=Deadly)
    assert_same(tmp_path / "whole", tmp_path / "run")


class NaNAt(torch.nn.Module):
    """The mean squared error, once NaN."""

    name = "MSE"

    def __init__(self, iteration):
        super().__init__()
        self.left = iteration

    def forward(self, output, mask):
        self.left -= 1
        return ((output - mask) ** 2).mean() * (float("nan") if self.left == 0 else 1.0)


def test_a_loss_that_turns_nan_in_the_last_epoch_leaves_the_checkpoint_before_it(tmp_path):
    with pytest.raises(FloatingPointError, match="became nan at iteration 17"):
        resumable.run(tmp_path, "run", criterion=NaNAt(17))
    folder = tmp_path / "run"
    assert not (folder / "model.pt").exists()
    state = torch.load(folder / "checkpoint-before-nan.pt", weights_only=True)
    assert state["history"]["iterations"] == 16
    assert all(torch.isfinite(value).all() for value in state["parts"]["net"].values())
    assert not (folder / recording.LATEST).exists()
    _, history = resumable.run(tmp_path, "run", rate=2e-4)  # the message's advice
    assert history.iterations == 18


def test_a_loss_that_is_nan_in_another_process_sets_the_checkpoint_aside(tmp_path, monkeypatch):
    """One process alone sees the NaN; the main one holds the checkpoint."""
    recorder, here = recording.TrainingRecorder, recording.processes.reduce
    check = recorder.stop_unless_finite

    def with_another_process(self):
        seen = self.history.iterations == 17
        answer = (lambda values, _: [1.0]) if seen else here
        monkeypatch.setattr(recording.processes, "reduce", answer)
        check(self)
        monkeypatch.setattr(recording.processes, "reduce", here)

    monkeypatch.setattr(recorder, "stop_unless_finite", with_another_process)
    with pytest.raises(FloatingPointError, match="of another process became nan or inf"):
        resumable.run(tmp_path, "run")
    assert (tmp_path / "run" / "checkpoint-before-nan.pt").exists()
    assert not (tmp_path / "run" / recording.LATEST).exists()
    assert not (tmp_path / "run" / "model.pt").exists()
