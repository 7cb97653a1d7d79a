"""The examples as a user runs them: by their command line, in an empty folder."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "Examples"
RUN_FILES = {"settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt"}

# The script, and flags that make it as small as it can be.
SMALL = [
    ("semantic_segmentation.py", ["--quick", "--train-images", "20"]),
]


@pytest.mark.parametrize(("script", "flags"), SMALL, ids=[script for script, _ in SMALL])
def test_an_example_leaves_data_and_runs_alone(script, flags, tmp_path, run_script):
    done = run_script(tmp_path, EXAMPLES / script, *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {".cache"} == {"data", "runs"}
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == Path(script).stem
    assert {path.name for path in run.iterdir()} >= RUN_FILES
    assert list(run.glob("*.png"))
    assert not list(tmp_path.rglob("*.part"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["mean_iou"] <= 1
    log = (run / "log.txt").read_text()
    assert "mean" in log
    assert "per-image mean IoU" in log
    assert "Next: " in log
    assert set(log.splitlines()) <= set(done.stdout.splitlines())


@pytest.mark.parametrize("script", [script for script, _ in SMALL])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--train-images", "-5"], "--train-images"),
        (["--train-images", "many"], "--train-images"),
        (["--epoch-count", "3"], "--epoch-count"),
        (["--results-dir", "a-file"], "a-file"),
        (["--dataroot", "a-file"], "a-file"),
    ],
)
def test_a_bad_flag_is_one_sentence(script, flags, said, tmp_path, run_script):
    (tmp_path / "a-file").write_text("mine")
    done = run_script(tmp_path, EXAMPLES / script, "--quick", *flags)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "a-file").read_text() == "mine"
    if said.startswith("--"):
        assert {path.name for path in tmp_path.iterdir()} - {".cache"} == {"a-file"}


@pytest.mark.parametrize("script", [script for script, _ in SMALL])
def test_help_shows_what_the_example_shows(script, tmp_path, run_script):
    done = run_script(tmp_path, EXAMPLES / script, "--help")
    assert done.returncode == 0
    assert f"python Examples/{script}" in done.stdout
    for flag in ("--quick", "--epochs", "--train-images", "--dataroot", "--results-dir",
                 "--run-name", "--seed", "--show"):  # fmt: skip
        assert flag in done.stdout
    assert not {path.name for path in tmp_path.iterdir()} - {".cache"}
