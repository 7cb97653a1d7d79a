"""Homework scripts in the manner of students' reports, in tests/clients, and their pictures.

They use DLStudio's interface, and some the package's own loops; they run on the 20-image archives.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / "tests" / "clients"

# What each client displays: pictures of images in colour, and single masks, white on black.
COLORED = {
    "notebook": ("display-001-input-and-prediction", "display-003-image-0"),
    "loops_21": ("display-001-train-0-0", "display-005-train-0-4", "display-007", "display-008"),
    "loops_25": ("display-001",),
    "coco": ("display-001-test-0", "display-002", "worst"),
    "dataset_surgery": ("predictions-001", "worst"),  # masks of 0 and 1
    "own_everything": ("display-001-0", "display-003-1", "test-batch-001", "worst"),
    "compare": ("display-001", "display-007", "test-batch-001", "worst"),
}
MASKS = {
    "notebook": ("display-002",),
    "dataset_surgery": ("display-001", "display-002-any", "display-010-any"),
    "own_everything": ("display-002-mask-of-0", "display-004-mask-of-1"),
}


def inside(path):
    """The pixels of a picture (rows, columns, 3) without its white margin."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    drawn = pixels.min(axis=2) < 250
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", COLORED)
def test_a_students_script_runs_and_shows_its_pictures(tmp_path, run_script, name):
    data = tmp_path / "data" / "PurdueShapes5MultiObject"
    data.mkdir(parents=True)
    for archive in (ROOT / "Datasets").glob("PurdueShapes5MultiObject-20-*.gz"):
        shutil.copy(archive, data)
    script = tmp_path / f"{name}.py"
    text = (CLIENTS / script.name).read_text(encoding="utf-8")
    script.write_text(text.replace("LIBRARY_FOLDER", str(ROOT / "SegStudio")), encoding="utf-8")
    environment = {"PYTHONPATH": ""} if name == "notebook" else {}
    done = run_script(tmp_path, script, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all done"

    run = tmp_path / "runs" / name
    for picture in COLORED[name]:
        pixels = inside(run / f"{picture}.png")
        colored = pixels.max(axis=2) - pixels.min(axis=2) > 40
        boxes = (pixels[..., 0] > 240) & (pixels[..., 1:].max(axis=2) < 25)  # drawn in pure red
        assert (colored & ~boxes).mean() > 0.002, picture
    for picture in MASKS.get(name, ()):
        pixels = inside(run / f"{picture}.png")
        assert 0.005 < (pixels.min(axis=2) > 200).mean() < 0.6, picture
        assert (pixels.max(axis=2) < 20).mean() > 0.3, picture


def test_the_clients_are_all_run():
    assert {path.stem for path in CLIENTS.glob("*.py")} == set(COLORED)
