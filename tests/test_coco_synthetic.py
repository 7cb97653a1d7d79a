"""The synthetic set in COCO's format, and the folder that the COCO examples use."""

import json

import coco_synthetic
import numpy as np
import pytest
from coco_annotations import CocoAnnotations
from coco_folder import find_or_draw_coco
from coco_sets import CLASSES, draw, prepare, select, tree

from SegStudio import SegStudio


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set: (folder of images, annotation file)."""
    return draw(tmp_path_factory.mktemp("synthetic"))


def test_it_has_every_form_of_annotation_and_says_what_it_is(synthetic):
    data = json.loads(synthetic[1].read_text())
    forms = {
        type(a["segmentation"]["counts"] if isinstance(a["segmentation"], dict) else ())
        for a in data["annotations"]
    }
    assert forms == {tuple, list, str}
    assert {a["iscrowd"] for a in data["annotations"]} == {0, 1}
    assert "SYNTHETIC" in data["info"]["description"]
    assert CocoAnnotations(synthetic[1]).problems == []


@pytest.mark.parametrize("number", [1, 16])
def test_as_many_images_pass_the_selection_as_were_asked_for(tmp_path, number):
    images, file = draw(tmp_path, number=number)
    assert len(select(file).samples) == number
    everything = number + coco_synthetic.rejected_images(number)
    assert len(list(images.iterdir())) == everything


def test_an_object_that_hides_the_other_one_is_drawn_again():
    """Else the image would pass the selection, as one of a single object."""
    for seed in (0, 18, 33):  # the last two hide it at first
        drawing = coco_synthetic.SyntheticDrawing(np.random.default_rng(seed))
        _, objects = drawing.compose("two classes", coco_synthetic.CAKE)
        assert sum(o["category_id"] in coco_synthetic.CLASSES for o in objects) == 2


def test_it_is_reproducible(tmp_path):
    for name, options in {
        "same": {},
        "same again": {"workers": 3},
        "other": {"seed": 4},
    }.items():
        options = {"seed": 3, "progress": False, **options}
        coco_synthetic.draw_synthetic_coco(tmp_path / name, "test", 1, **options)
    first, same, other = (tree(tmp_path / name) for name in ("same", "same again", "other"))
    assert first == same
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


# ---- Examples/coco_folder.py --------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path):
    """Makes the settings of an example that runs in tmp_path."""

    def make(size=64):
        return SegStudio(
            dataroot=str(tmp_path / "data"), results_dir=str(tmp_path / "runs"),
            image_size=[size, size],
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def prepared(synthetic, tmp_path_factory):
    """A prepared folder with both splits."""
    folder = tmp_path_factory.mktemp("prepared") / "coco-64"
    for split in ("train", "test"):
        prepare(*synthetic, folder, split=split, limit=1)
    return folder


def test_a_prepared_folder_is_returned(prepared, settings, tmp_path):
    assert find_or_draw_coco(prepared, settings()) == prepared
    assert find_or_draw_coco(str(prepared), settings()) == prepared
    assert not (tmp_path / "data").exists()


def test_a_folder_that_is_not_prepared_is_one_sentence_with_a_command(prepared, settings, tmp_path):
    raw = tmp_path / "my coco"
    for name in ("annotations", "train2017", "val2017"):
        (raw / name).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half"
    (half / "train").mkdir(parents=True)
    (half / "train/manifest.json").write_bytes((prepared / "train/manifest.json").read_bytes())
    cases = {
        tmp_path / "nowhere": (FileNotFoundError, "prepare_coco.py --download --split both"),
        tmp_path / "empty": (FileNotFoundError, "prepare_coco.py --download --split both"),
        half: (FileNotFoundError, "no test split.*--split test --image-size 64 --out .*half"),
        prepared / "train": (ValueError, f"one split; give .*{prepared}$"),
        prepared.parent: (ValueError, f"too high; give {prepared}$"),
        raw: (ValueError, r"--annotations '.*my coco/annotations/instances_val2017.json'"),
        raw / "train2017": (ValueError, r"--images-dir '.*my coco/train2017' --split train"),
    }
    for folder, (kind, sentence) in cases.items():
        with pytest.raises(kind, match=sentence) as caught:
            find_or_draw_coco(folder, settings())
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def draw_few(monkeypatch, number=2):
    """Has the examples' own command draw a few images only; returns the commands it ran."""
    import coco_folder

    commands, run = [], coco_folder.subprocess.run

    def fewer(command, **options):
        commands.append(command)
        return run([*command, "--synthetic-images", str(number)], **options)

    monkeypatch.setattr(coco_folder.subprocess, "run", fewer)
    return commands


@pytest.mark.slow
def test_without_a_folder_a_set_is_drawn_once_and_said_to_be_synthetic(
    settings, tmp_path, monkeypatch
):
    commands = draw_few(monkeypatch)
    dls = settings(size=32)
    folder = find_or_draw_coco(None, dls)
    assert folder == tmp_path / "data/synthetic-coco-32"
    for split in ("train", "test"):
        manifest = json.loads((folder / split / "manifest.json").read_text())
        assert "SYNTHETIC" in manifest["description"]
        assert manifest["options"]["image_size"] == 32
        assert manifest["options"]["classes"] == list(CLASSES)
    assert find_or_draw_coco(None, dls) == folder
    assert len(commands) == 1
    assert (dls.run_dir / "log.txt").read_text().count("SYNTHETIC") == 2


@pytest.mark.slow
def test_a_set_of_an_earlier_version_is_drawn_again(settings, synthetic, tmp_path, monkeypatch):
    """Earlier versions wrote some photos twice, with different masks."""
    commands = draw_few(monkeypatch)
    folder = tmp_path / "data/synthetic-coco-64"
    for split in ("train", "test"):
        prepare(*synthetic, folder, split=split, limit=1, single_instance="category")
    find_or_draw_coco(None, settings())
    assert len(commands) == 1
    manifest = json.loads((folder / "train/manifest.json").read_text())
    assert manifest["options"]["single_instance"] == "selected"


@pytest.mark.slow
def test_a_set_that_cannot_be_drawn_is_one_sentence(settings, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/synthetic-coco-64").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="could not be drawn"):
        find_or_draw_coco(None, settings())
