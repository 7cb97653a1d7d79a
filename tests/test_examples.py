"""The examples as a user runs them: by their command line, in an empty folder."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from SegStudio import SegStudio

EXAMPLES = Path(__file__).resolve().parents[1] / "Examples"
RUN_FILES = {"settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt"}

# The script, and flags that make it as small as it can be.
SMALL = [
    ("semantic_segmentation.py", ["--quick", "--train-images", "20", "--epochs", "1"]),
    ("semantic_segmentation_dice.py", ["--quick", "--train-images", "8"]),
    ("semantic_segmentation_combined.py", ["--quick", "--train-images", "8"]),
    ("semantic_segmentation_dense.py", ["--quick", "--train-images", "8", "--epochs", "1"]),
    ("skip_connections_ablation.py", ["--quick", "--train-images", "8"]),
]


@pytest.fixture
def small_data(tmp_path):
    """24-image archives under the names of the sets that the examples draw with --quick."""
    folder = tmp_path / "data" / "PurdueShapes5MultiObject"
    folder.mkdir(parents=True)
    draw = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset.generate
    for seed, name in enumerate(("2000-train", "200-test")):
        draw(folder / f"PurdueShapes5MultiObject-{name}.gz", 24, seed=seed)


@pytest.mark.parametrize(("script", "flags"), SMALL, ids=[script for script, _ in SMALL])
def test_an_example_leaves_data_and_runs_alone(script, flags, tmp_path, run_script, request):
    if script != "semantic_segmentation.py":  # that one draws its data itself
        request.getfixturevalue("small_data")
    done = run_script(tmp_path, EXAMPLES / script, *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {".cache"} == {"data", "runs"}
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == Path(script).stem
    assert {path.name for path in run.rglob("*")} >= RUN_FILES  # the ablation has a folder each
    assert list(run.glob("*.png"))
    assert not list(tmp_path.rglob("*.part"))
    metrics = json.loads((run / "metrics.json").read_text())
    scores = metrics if "mean_iou" in metrics else [*metrics.values()][0]  # the ablation has four
    assert 0 <= scores["mean_iou"] <= 1
    log = (run / "log.txt").read_text()
    assert "mean" in log
    assert "per-image mean IoU" in done.stdout
    assert "Next: " in log
    assert set(log.splitlines()) <= set(done.stdout.splitlines())


def run_here(script, folder, monkeypatch, *flags):
    """Run an example in this process, which saves the seconds of its imports; its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / script), *flags])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return caught.value.code


SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", [script for script, _ in SMALL])
@pytest.mark.parametrize("flag", ["--results-dir", "--dataroot"])
def test_a_bad_folder_is_one_sentence(script, flag, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("mine")
    sentence = run_here(script, tmp_path, monkeypatch, "--quick", flag, "a-file/inside")
    assert isinstance(sentence, str), "an error ends with a sentence and not with a traceback"
    assert "\n" not in sentence
    assert "a-file" in sentence
    assert {path.name for path in tmp_path.iterdir()} <= {"a-file", "data"}
    assert (tmp_path / "a-file").read_text() == "mine"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--train-images", "-5"),
        ("--train-images", "many"),
        ("--epoch-count", "3"),
    ],
    ids=" ".join,
)
def test_a_bad_flag_is_named_and_nothing_is_written(script, flags, tmp_path, monkeypatch, capsys):
    needed = ["photo.jpg", "--model", "run"] if script == "predict.py" else []
    code = run_here(script, tmp_path, monkeypatch, *needed, *flags)
    said = code if isinstance(code, str) else capsys.readouterr().err.strip().splitlines()[-1]
    assert code != 0
    assert flags[0] in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_what_the_example_shows(script, tmp_path, monkeypatch, capsys):
    assert run_here(script, tmp_path, monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert f"python Examples/{script}" in shown
    for flag in ("--quick", "--epochs", "--train-images", "--dataroot", "--results-dir",
                 "--run-name", "--seed", "--show"):  # fmt: skip
        assert flag in shown
    assert not list(tmp_path.iterdir())


def test_a_mistake_shows_no_traceback_on_the_command_line(tmp_path, run_script):
    done = run_script(tmp_path, EXAMPLES / "predict.py", "photo.jpg", "--model", "run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("predict.py: error: no image or folder at ")
    assert not {path.name for path in tmp_path.iterdir()} - {".cache"}
