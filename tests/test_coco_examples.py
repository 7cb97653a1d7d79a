"""The examples on COCO-like data and the prediction, run as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from SegStudio import SegStudio

EXAMPLES = Path(__file__).resolve().parents[1] / "Examples"
S = SegStudio.SemanticSegmentation


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A small prepared folder: 12 synthetic training and 6 test images."""
    folder = tmp_path_factory.mktemp("coco")
    for split, number in (("train", 12), ("test", 6)):
        annotations = S.CocoSyntheticSet(progress=False).write(folder / "raw", split, number)
        selection = S.CocoSelection(S.CocoAnnotations(annotations), ("cake", "dog", "motorcycle"))
        preparer = S.CocoPreparer(selection, image_size=64, split=split)
        preparer.write(folder / "raw" / split, folder / "64", progress=False)
    return folder / "64"


def run(run_script, folder, example, *flags):
    done = run_script(folder, EXAMPLES / example, *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", ".cache"}
    return done.stdout, folder / "runs" / Path(example).stem


def test_coco_segmentation_then_predict(run_script, coco, tmp_path):
    text, folder = run(
        run_script, tmp_path, "coco_segmentation.py", "--quick", "--coco", str(coco),
        "--train-images", "8", "--epochs", "1", "--loss", "combined",
    )  # fmt: skip
    assert "MAE+100*Dice" in text
    assert text.count("per-image mean IoU") == 3  # the network and two trivial answers
    pictures = {path.name for path in folder.glob("*.png")}
    panels = {f"test-panel-{name}.png" for name in ("cake", "dog", "motorcycle")}
    assert pictures >= {"samples.png", "loss.png", "worst.png"} | panels
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["classes"]) == ["cake", "dog", "motorcycle"]
    columns = (folder / "losses.csv").read_text().splitlines()[0].split(",")
    assert {"mae", "dice", "grad_norm_mae", "grad_norm_dice"} <= set(columns)

    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    for mode, name in (("RGB", "a.png"), ("L", "b.jpg"), ("P", "c.gif"), ("RGBA", "d.webp")):
        Image.fromarray(pixels).convert(mode).save(photos / name)
    text, folder = run(run_script, tmp_path, "predict.py", str(photos), "--model", str(folder))
    boxes = json.loads((folder / "predictions.json").read_text())
    assert len(boxes) == 4
    for number, stem in enumerate("abcd", start=1):
        for kind in ("mask", "overlay"):
            with Image.open(folder / f"{number:03d}-{stem}-{kind}.png") as picture:
                assert picture.size == (90, 50)


def test_best_coco_prints_one_table(run_script, coco, tmp_path):
    text, folder = run(
        run_script, tmp_path, "best_coco_segmentation.py", "--seconds", "0.3", "--coco", str(coco)
    )
    table = text[text.index("0.3 seconds of training each") :]
    names = ("MAE", "Dice", "MAE+100*Dice", "best", "all foreground", "mean training mask")
    for name in names:
        assert any(line.startswith(f"{name:20}") for line in table.splitlines()), name
    assert (folder / "model.pt").exists()
    assert json.loads((folder / "settings.json").read_text())["network"]["binary_targets"] is True


def test_best_segmentation(run_script, tmp_path):
    data = tmp_path / "data" / "PurdueShapes5MultiObject"
    data.mkdir(parents=True)
    for seed, name in enumerate(("2000-train", "1000-test")):
        archive = data / f"PurdueShapes5MultiObject-{name}.gz"
        S.PurdueShapes5MultiObjectDataset.generate(archive, 24, seed=seed)
    text, folder = run(
        run_script, tmp_path, "best_segmentation.py", "--seconds", "1", "--train-images", "24"
    )
    assert "BCE+Dice loss" in text
    assert json.loads((folder / "metrics.json").read_text())["images"] == 24


def predict(tmp_path, *arguments):
    """An in-process call of load_run, where predict.py's mistakes come from."""
    dls = SegStudio(results_dir=tmp_path / "runs", run_name="p")
    return S(dl_studio=dls, max_num_objects=5).load_run(*arguments)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="settings.json"):
        predict(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"network": 3}'])
def test_a_damaged_run(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        predict(tmp_path, tmp_path)


def test_a_network_of_ones_own_is_named(tmp_path):
    facts = {
        "network": {"class": "MyNet", "arguments": None, "binary_targets": False},
        "data": {"class_names": ["a"], "mask_values": [50]},
        "settings": {"image_size": [64, 64]},
    }
    (tmp_path / "settings.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="MyNet"):
        predict(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["missing.png"], "missing.png"), (["empty"], "no image in the folder")],
)
def test_predict_without_an_image(arguments, reason, run_script, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_script(tmp_path, EXAMPLES / "predict.py", *arguments, "--model", "x")
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
