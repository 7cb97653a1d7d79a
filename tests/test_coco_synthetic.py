"""The synthetic set in COCO's format, and the folder that the COCO examples use."""

import json
import re
import shlex

import coco_synthetic
import numpy as np
import prepare_coco
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
    folder = tmp_path_factory.mktemp("prepared") / "coco"
    for split in ("train", "test"):
        prepare(*synthetic, folder, split=split, limit=1)
    return folder


def test_a_prepared_folder_is_returned(prepared, settings, tmp_path):
    assert find_or_draw_coco(prepared, settings()) == prepared
    assert find_or_draw_coco(str(prepared), settings()) == prepared
    assert not (tmp_path / "data").exists()


def test_splits_of_different_classes_are_refused(synthetic, settings, tmp_path):
    """Class 0 would be cake in training and dog in the test."""
    prepare(*synthetic, tmp_path / "coco", split="train", limit=1)
    prepare(*synthetic, tmp_path / "coco", split="test", limit=1, classes=("dog",))
    with pytest.raises(ValueError, match=r"'motorcycle'\] in train and \['dog'\] in test: prepare"):
        find_or_draw_coco(tmp_path / "coco", settings())


def test_a_damaged_manifest_is_left_to_the_dataset_to_report(prepared, settings, tmp_path):
    folder = tmp_path / "coco"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "manifest.json").write_text('{"options": []}')
    assert find_or_draw_coco(folder, settings()) == folder


def test_a_size_that_no_network_takes_is_found_before_drawing(settings, few, tmp_path):
    with pytest.raises(ValueError, match="--image-size is 60; .* a multiple of 8"):
        find_or_draw_coco(None, settings(size=60))
    assert few == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folders(prepared, tmp_path):
    """Folders that a user may give by mistake: {name: path}."""
    raw, layout, half = tmp_path / "my coco", tmp_path / "layout", tmp_path / "half"
    for folder in (raw / "annotations", raw / "train2017", raw / "val2017", tmp_path / "empty",
                   layout / "annotations", layout / "images/train2017", layout / "images/val2017",
                   half / "train"):  # fmt: skip
        folder.mkdir(parents=True)
    (half / "train/manifest.json").write_bytes((prepared / "train/manifest.json").read_bytes())
    return {
        "nowhere": tmp_path / "nowhere",
        "empty": tmp_path / "empty",
        "half": half,
        "half, split": half / "train",
        "split": prepared / "train",
        "two too deep": prepared / "train/images",
        "a file": prepared / "train/manifest.json",
        "too high": prepared.parent,
        "raw": raw,
        "raw, images": raw / "train2017",
        "raw, another layout": layout / "images/train2017",
    }


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("nowhere", r"There is no folder .*--download --split both --out '?{tmp}/nowhere'?$"),
        ("empty", r"prepare_coco.py --download --split both --out {tmp}/empty$"),
        ("half", r"no test split; .*--download --split test --out {tmp}/half$"),
        ("half, split", r"no test split; .*--download --split test --out {tmp}/half$"),
        ("split", r"only a part of a prepared COCO folder: give {prepared}$"),
        ("two too deep", r"only a part of a prepared COCO folder: give {prepared}$"),
        ("a file", r"only a part of a prepared COCO folder: give {prepared}$"),
        ("too high", r"one level too high: give {prepared}$"),
        ("raw", r"'{tmp}/my coco/annotations/instances_val2017.json'.* give data/coco$"),
        ("raw, images", r"--images-dir '{tmp}/my coco/train2017' --split train --out data/coco &"),
        ("raw, another layout", r"--images-dir {tmp}/layout/images/val2017 --split test"),
    ],
)
def test_a_folder_that_is_not_prepared_is_one_sentence(
    mistake, sentence, folders, prepared, settings, tmp_path
):
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        find_or_draw_coco(folders[mistake], settings())
    assert re.search(sentence.format(tmp=tmp_path, prepared=prepared), str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "runs").exists()


def test_the_commands_it_gives_are_valid_and_keep_the_size(folders, settings):
    for mistake, size in (("nowhere", 64), ("raw", 64), ("raw", 256), ("half", 256)):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            find_or_draw_coco(folders[mistake], settings(size=size))
        text = str(caught.value)
        commands = re.findall(r"python Datasets/prepare_coco.py (.*?)(?= && | and give |$)", text)
        assert commands
        for command in commands:
            options = prepare_coco.parse(shlex.split(command))
            assert options.image_size == size
        if mistake == "raw":
            assert str(options.out) == {64: "data/coco", 256: "data/coco-256"}[size]
            assert text.endswith(f"give {options.out}")


@pytest.fixture
def few(monkeypatch):
    """Has the examples draw a few images only; the list of the splits that they draw."""
    monkeypatch.setattr(prepare_coco, "SYNTHETIC_IMAGES", {"train": 2, "test": 2})
    drawn, prepare_split = [], prepare_coco.prepare

    def noted(options, split):
        drawn.append(split)
        return prepare_split(options, split)

    monkeypatch.setattr(prepare_coco, "prepare", noted)
    return drawn


def test_without_a_folder_a_set_is_drawn_once_and_said_to_be_synthetic(settings, few, tmp_path):
    dls = settings(size=32)
    folder = find_or_draw_coco(None, dls)
    assert folder == tmp_path / "data/synthetic-coco-32"
    for split in ("train", "test"):
        manifest = json.loads((folder / split / "manifest.json").read_text())
        assert "SYNTHETIC" in manifest["description"]
        assert manifest["options"]["image_size"] == 32
        assert manifest["options"]["classes"] == list(CLASSES)
    assert find_or_draw_coco(None, dls) == folder
    assert few == ["train", "test"]
    assert (dls.run_dir / "log.txt").read_text().count("SYNTHETIC") == 2


def test_a_set_of_an_earlier_version_is_drawn_again(settings, few, synthetic, tmp_path):
    """Earlier versions wrote some photos twice, with different masks."""
    folder = tmp_path / "data/synthetic-coco"
    for split in ("train", "test"):
        prepare(*synthetic, folder, split=split, limit=1, single_instance="category")
    find_or_draw_coco(None, settings())
    assert few == ["train", "test"]
    manifest = json.loads((folder / "train/manifest.json").read_text())
    assert manifest["options"]["single_instance"] == "selected"


def test_a_set_that_cannot_be_drawn_is_one_sentence_and_leaves_nothing(settings, few, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="could not be drawn.*another folder by --dataroot$"):
        find_or_draw_coco(None, settings())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_results_folder_that_cannot_be_written_is_found_before_drawing(settings, few, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="--results-dir"):
        find_or_draw_coco(None, settings())
    assert few == []
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
