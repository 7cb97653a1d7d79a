"""The examples for class, run as a user runs them: what they print, draw, and leave behind."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_examples import count_pixels, draw_archives

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


def run(run_script, folder, example, *flags):
    """Runs Examples/<example>.py; returns its output and its run folder, which holds it too."""
    process = run_script(folder, ROOT / "Examples" / f"{example}.py", *flags)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", ".cache"}
    run_dir = folder / "runs" / example
    assert process.stdout.strip().splitlines()[-1] in (run_dir / "log.txt").read_text()
    return process.stdout, run_dir


@pytest.mark.slow
def test_pitfalls_measures_and_draws_all_five(run_script, tmp_path):
    draw_archives(tmp_path)
    text, run_dir = run(run_script, tmp_path, "pitfalls", "--quick", "--train-images", "24")
    assert "strided 25%, dense 100%" in text
    wrong, right = re.search(r"star: (\S+) with shape\[0\], (\S+) with shape\[1\]", text).groups()
    assert float(wrong) == 0 < float(right)
    assert 0 < int(re.search(r"(\d+)% of an untrained network", text)[1]) < 100
    quiet, loud = re.search(r"change (\d+) mask pixels in eval mode, (\d+) in", text).groups()
    assert int(quiet) == 0 < int(loud)
    norms = re.search(r"there: squared Dice (\S+), linear Dice (\S+), BCE (\S+)\n", text).groups()
    squared, linear, bce = map(float, norms)
    assert squared == 0 < linear < bce
    blue, orange = SegStudio.PALETTE[:2]
    for name in ("1-lattice", "2-channel_loop", "3-dice_pole", "5-empty_channels"):
        assert count_pixels(run_dir / f"{name}.png", blue) > 1000
        assert count_pixels(run_dir / f"{name}.png", orange) > 1000
    # A quarter of the strided square and all of the dense one are blue.
    lattice = [count_pixels(run_dir / "1-lattice.png", color) for color in (blue, orange)]
    assert 1.3 < lattice[0] / lattice[1] < 2
    with Image.open(run_dir / "4-missing_eval.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels.max(axis=2) < 20).mean() > 0.2, "five dark images"


@pytest.mark.slow
def test_classroom_demo_ends_in_time_with_a_film_that_loops_and_both_scores(run_script, tmp_path):
    text, run_dir = run(run_script, tmp_path, "classroom_demo", "--seconds", "40")
    settings = json.loads((run_dir / "settings.json").read_text())
    assert 2 * settings["training"]["max_seconds"] < 40
    table = text[text.index("strided -> dense") :]
    assert len(re.findall(r"^\w+ .*\d\.\d{3} -> \d\.\d{3}", table, re.MULTILINE)) == 6
    with Image.open(run_dir / "live.gif") as film:
        assert film.n_frames >= 3  # each network, and the end
        assert film.info["loop"] == 0, "for ever"
        width, height = film.size
        assert width / height == pytest.approx(16 / 9, abs=0.01)
        durations = []
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
        assert durations[-1] >= 10 * durations[0], "the last frame stays"
        film.convert("RGB").save(tmp_path / "last.png")
    for color in (*SegStudio.PALETTE[:5], "#D55E00", "#222222"):  # legend, curves of both networks
        assert count_pixels(tmp_path / "last.png", color, tolerance=40) > 20
    arguments = json.loads((run_dir / "settings.json").read_text())["network"]["arguments"]
    assert arguments["upsampling"] == "dense"
    loaded = torch.load(run_dir / "model.pt", weights_only=True)
    Segmentation.mUnet(**arguments).load_state_dict(loaded)


@pytest.mark.slow
def test_classroom_demo_trains_for_exactly_so_many_iterations(run_script, tmp_path):
    draw_archives(tmp_path)
    text, run_dir = run(
        run_script, tmp_path, "classroom_demo", "--iterations", "5", "--train-images", "24"
    )
    assert text.count("iter=   5 ") == 2
    assert (run_dir / "losses.csv").read_text().splitlines()[-1].startswith("5,")
