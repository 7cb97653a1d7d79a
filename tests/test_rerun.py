"""`python -m SegStudio rerun`: the same command again, and a comparison of the results."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from SegStudio import rerun

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from conftest import Segmentation, TinyShapes
from SegStudio import SegStudio


def main():
    flags = SegStudio.example_flags(
        "A run.", quick=(8, 1), extra={{"--seconds": {{"type": float}}}})
    dls = SegStudio(image_size=[32, 32], **flags.settings)
    segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(12), TinyShapes(4))
    for part in (segmenter.part_of_run("first"), segmenter):
        net = segmenter.mUnet(depth=4, width=4)
        part.run_code_for_training_for_semantic_segmentation(
            net, max_seconds=flags.seconds, scheduler=lambda done: 1 - done / 2, log_every=2,
            resume=flags.resume)
        part.run_code_for_testing_semantic_segmentation(net)


SegStudio.run_example(main)
"""


@pytest.fixture
def make_run(tmp_path):
    """make_run(*flags): a script that trains two networks; returns the folder of its run."""
    path = tmp_path / "two_parts.py"
    path.write_text(SCRIPT.format(tests=str(ROOT / "tests")))

    def make(*flags):
        command = [sys.executable, str(path), "--results-dir", "runs", *flags]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return tmp_path / "runs" / "two_parts"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--epochs", "2"), ("--seconds", "0.7")])
def test_a_run_repeats_itself_also_if_time_ended_it(make_run, capfd, flags):
    run = make_run(*flags)
    assert rerun.repeat(run) == 0
    printed = capfd.readouterr().out
    for name in ("first/losses.csv", "first/model.pt", "losses.csv", "metrics.json", "model.pt"):
        assert f"\n{name}: the same" in printed
    assert "two_parts-rerun: the same results, bit for bit" in printed
    assert rerun.repeat(run) == 0
    assert (run.parent / "two_parts-rerun_before_1").is_dir()


@pytest.fixture
def two_runs(tmp_path):
    """The folders of a run and of its repetition, made by hand."""
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"a": torch.arange(3.0), "b": torch.ones(2)}, run / "model.pt")
    (run / "losses.csv").write_text("iteration,seconds,loss\n1,0.5,3.0\n2,0.9,2.5\n")
    (run / "metrics.json").write_text(json.dumps({"mean_iou": 0.5, "classes": {"a": [1, 2]}}))
    machine = {"device": "the CPU (2 threads)", "torch": "2.14"}
    (run / "settings.json").write_text(json.dumps({"machine": machine}))
    copy = tmp_path / "run-rerun"
    shutil.copytree(run, copy)
    return run, copy


def test_equal_results_are_the_same_whatever_their_seconds(two_runs, capsys):
    run, copy = two_runs
    (copy / "losses.csv").write_text("iteration,seconds,loss\n1,7.5,3.0\n2,9.9,2.5\n")
    assert rerun.compare(run, copy) == 0
    assert capsys.readouterr().out.count(": the same\n") == 3


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.pt", lambda path: torch.save({"a": torch.arange(3.0), "b": torch.zeros(2)}, path),
         "model.pt: differs by up to 1 (b)"),
        ("model.pt", lambda path: torch.save({"a": torch.arange(3.0)}, path),
         "model.pt: other entries (2 and 1)"),
        ("losses.csv", lambda path: path.write_text("iteration,seconds,loss\n1,0,3.0\n2,0,2.75\n"),
         "losses.csv: differs by up to 0.25 (row 2, loss)"),
        ("metrics.json", lambda path: path.write_text(
            json.dumps({"mean_iou": 0.5, "classes": {"a": [1, 4]}})),
         "metrics.json: differs by up to 2 (/classes/a/1)"),
        ("metrics.json", lambda path: path.unlink(), "metrics.json: missing"),
    ],
)  # fmt: skip
def test_each_difference_is_named_with_its_size(two_runs, capsys, name, change, said):
    run, copy = two_runs
    change(copy / name)
    assert rerun.compare(run, copy) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert "other results" in printed


def test_another_number_of_threads_is_named_as_a_cause(two_runs, capsys):
    run, copy = two_runs
    (copy / "metrics.json").unlink()
    machine = {"device": "the CPU (1 threads)", "torch": "2.14"}
    (copy / "settings.json").write_text(json.dumps({"machine": machine}))
    assert rerun.compare(run, copy) == 1
    printed = capsys.readouterr().out
    assert "device was the CPU (2 threads) and is the CPU (1 threads) now" in printed
    assert "torch was" not in printed


def test_what_cannot_be_repeated_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no settings.json"):
        rerun.repeat(tmp_path)
    facts = {"command": ["script.py"], "settings": {"seed": None}}
    (tmp_path / "settings.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="version 2.1 or older"):
        rerun.repeat(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(facts | {"folder": str(tmp_path)}))
    with pytest.raises(ValueError, match="was not made by a script that can run again"):
        rerun.repeat(tmp_path)
    (tmp_path / "script.py").touch()
    with pytest.raises(ValueError, match="has no seed"):
        rerun.repeat(tmp_path)
