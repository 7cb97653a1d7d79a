"""The examples for class, run as a user runs them: what they print, draw, and leave behind."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from SegStudio import SegStudio

ROOT = Path(__file__).resolve().parents[1]
Segmentation = SegStudio.SemanticSegmentation


@pytest.fixture
def folder(tmp_path):
    """An empty folder but for 24-image archives under the names of the sets that examples draw."""
    data = tmp_path / "data" / "PurdueShapes5MultiObject"
    data.mkdir(parents=True)
    for seed, name in enumerate(("2000-train", "200-test")):
        archive = data / f"PurdueShapes5MultiObject-{name}.gz"
        Segmentation.PurdueShapes5MultiObjectDataset.generate(archive, 24, seed=seed)
    return tmp_path


def run(run_script, folder, example, *flags):
    """Runs Examples/<example>.py; returns its output and its run folder, which holds it too."""
    process = run_script(folder, ROOT / "Examples" / f"{example}.py", *flags)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", ".cache"}
    run_dir = folder / "runs" / example
    assert process.stdout.strip().splitlines()[-1] in (run_dir / "log.txt").read_text()
    return process.stdout, run_dir


def test_pitfalls_measures_and_draws_all_five(run_script, folder):
    text, run_dir = run(run_script, folder, "pitfalls", "--train-images", "12")
    assert "strided 25%, dense 100%" in text
    wrong, right = re.search(r"norms of the star: \[([\d.]+), ([\d.]+)\]", text).groups()
    assert float(wrong) == 0 < float(right)
    assert 0 < int(re.search(r"(\d+)% of an untrained network", text)[1]) < 100
    quiet, loud = re.search(r"change (\d+) mask pixels in eval\(\), (\d+) in train", text).groups()
    assert int(quiet) == 0 < int(loud)
    norms = re.search(r"without the class: (\S+), (\S+) and (\S+)\.\n", text).groups()
    squared, linear, bce = map(float, norms)
    assert squared == 0 < linear < bce
    names = ("lattice", "channel_loop", "dice_pole", "missing_eval", "empty_channels")
    for number, name in enumerate(names, start=1):
        with Image.open(run_dir / f"{number}-{name}.png") as picture:
            assert min(picture.size) > 200


def test_classroom_demo_ends_with_a_film_and_both_tables(run_script, folder):
    flags = ("--seconds", "2", "--train-images", "24")
    text, run_dir = run(run_script, folder, "classroom_demo", *flags)
    table = text[text.index("Test scores, strided -> dense") :]
    assert len(re.findall(r"^\w+ .*\d\.\d{3} -> \d\.\d{3}", table, re.MULTILINE)) == 6
    with Image.open(run_dir / "live.gif") as film:
        assert film.n_frames >= 2  # at least the first report of each network
    arguments = json.loads((run_dir / "settings.json").read_text())["network"]["arguments"]
    assert arguments["upsampling"] == "dense"
    loaded = torch.load(run_dir / "model.pt", weights_only=True)
    Segmentation.mUnet(**arguments).load_state_dict(loaded)


def test_coco_exploding_mse_measures_every_case(run_script, tmp_path):
    classes = ("cake", "dog", "motorcycle")
    for split, number in (("train", 12), ("test", 3)):
        source, out = tmp_path / "data" / "drawn", tmp_path / "data" / "coco"
        annotations = Segmentation.CocoSyntheticSet(progress=False).write(source, split, number)
        selection = Segmentation.CocoSelection(Segmentation.CocoAnnotations(annotations), classes)
        preparer = Segmentation.CocoPreparer(selection, image_size=64, split=split)
        preparer.write(source / split, out, progress=False)
    text, run_dir = run(
        run_script, tmp_path, "coco_exploding_mse", "--coco", "data/coco", "--starts", "1"
    )
    number = r"([\d.]+(?:e[+-]\d+)?|inf)"
    rows = re.findall(rf"^masks (.*?) +(MSE|MAE) +\d of 1 +{number} +{number}$", text, re.MULTILINE)
    gradient = {(case, loss): float(norm) for case, loss, norm, _ in rows}
    assert len(gradient) == 10
    for mask in ("0/255", "0/1"):
        assert gradient[mask, "MSE"] > 10 * gradient[mask, "MAE"]
        assert gradient[mask, "MSE"] > gradient[f"{mask}, clipped", "MSE"]
    assert gradient["0/255, images 0..1", "MSE"] < gradient["0/255", "MSE"] / 10
    with Image.open(run_dir / "norms.png") as picture:
        assert min(picture.size) > 300
