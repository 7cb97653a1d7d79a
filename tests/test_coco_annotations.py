"""COCO's annotation files: selection and masks against pycocotools, and hostile records."""

import contextlib
import io
import json
import math
import re

import coco_annotations
import coco_single_object
import numpy as np
import pytest
from coco_annotations import CocoAnnotations
from coco_outlines import unpack_rle
from coco_sets import (
    CLASSES,
    ROOT,
    draw,
    prepare,
    run,
    run_with_a_good_image,
    select,
    small_set,
)
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tqdm import tqdm


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set: (folder of images, annotation file)."""
    return draw(tmp_path_factory.mktemp("synthetic"))


# ---- selection and masks ------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["category", "selected", "image"])
def test_selection_and_masks_agree_with_pycocotools(synthetic, tmp_path, reading):
    images, file = synthetic
    preparer, manifest = prepare(images, file, tmp_path, single_instance=reading)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    ids = {name: coco.getCatIds(catNms=[name])[0] for name in CLASSES}
    expected, table = {}, {}
    for name in CLASSES:
        having = coco.getImgIds(catIds=[ids[name]])
        single = {"category": 0, "selected": 0, "image": 0}
        passed = 0
        for image in having:
            wanted = {"category": [ids[name]], "selected": list(ids.values()), "image": []}
            for key, categories in wanted.items():
                found = coco.loadAnns(coco.getAnnIds(imgIds=[image], catIds=categories))
                if len(found) == 1 and not found[0]["iscrowd"]:
                    single[key] += 1
                    if key == reading and found[0]["bbox"][2] >= 200 <= found[0]["bbox"][3]:
                        passed += 1
                        expected[f"{image}_{ids[name]}"] = coco.annToMask(found[0])
        table[name] = [len(having), *single.values(), passed, passed]
    rows = [line.split() for line in preparer.selection.table(preparer.kept).splitlines()[1:]]
    assert {row[0]: list(map(int, row[1:])) for row in rows} == table
    assert 0 < len(expected) < sum(row[0] for row in table.values())
    found = sorted(p.stem for p in (manifest.parent / "masks").iterdir())
    assert found == sorted(expected)
    for name, mask in expected.items():
        small = np.asarray(Image.open(manifest.parent / "masks" / f"{name}.png"))
        oracle = Image.fromarray(mask * 255).resize((64, 64), Image.Resampling.NEAREST)
        assert small.dtype == np.uint8
        assert np.array_equal(small, np.asarray(oracle))


def test_readings_differ_on_the_synthetic_set(synthetic):
    numbers = [
        len(select(synthetic[1], single_instance=reading).samples)
        for reading in ("category", "selected", "image")
    ]
    assert numbers[0] > numbers[1] > numbers[2] > 0


def test_by_default_no_image_is_selected_twice(synthetic):
    selection = select(synthetic[1])
    assert selection.options["single_instance"] == "selected"
    ids = [annotation["image_id"] for annotation, _ in selection.samples]
    assert len(ids) == len(set(ids)) == 16
    assert selection.repeated_images == []


def two_classes_in_one_image(folder):
    data = small_set(folder)
    data["annotations"].append({**data["annotations"][0], "id": 8, "category_id": 61})
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return file


def test_category_selects_one_image_twice_and_says_so(tmp_path):
    file = two_classes_in_one_image(tmp_path)
    selection = select(file, ["dog", "cake"], single_instance="category", min_bbox=10)
    assert [name for _, name in selection.samples] == ["dog", "cake"]
    assert selection.repeated_images == [1]
    assert select(file, ["dog", "cake"], min_bbox=10).samples == []
    assert len(select(file, ["dog"], min_bbox=10).samples) == 1  # cakes are not counted then


def test_limit_and_min_bbox(synthetic):
    every = select(synthetic[1]).samples
    limited = select(synthetic[1], limit=2).samples
    for name in CLASSES:
        first = [a["id"] for a, n in every if n == name][:2]
        assert [a["id"] for a, n in limited if n == name] == first
    assert len(select(synthetic[1], min_bbox=1).samples) > len(every)
    assert not select(synthetic[1], min_bbox=400).samples


def test_the_core_runs_as_the_docstring_prints_it(synthetic, tmp_path, monkeypatch):
    """A student copies the two functions and the lines of the docstring into a script."""
    text = (ROOT / "Datasets" / "coco_single_object.py").read_text(encoding="utf-8")
    functions = text[text.index("def single_large_objects") : text.index("class CocoSelection")]
    lines = re.findall(r"^    (.*)\n", text[: text.index('"""\n\n')], re.MULTILINE)
    images, file = synthetic
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_bytes(file.read_bytes())
    (tmp_path / "train2017").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    lines.append("        results.append((annotation, image, mask))")
    space = {"results": []}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(functions + "\n".join(lines), space)
    selection = select(file)
    found = sorted(annotation["id"] for annotation, _, _ in space["results"])
    assert found == sorted(annotation["id"] for annotation, _ in selection.samples)
    for _, image, mask in space["results"]:
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert mask.getextrema() == (0, 255)


def test_the_core_is_short():
    code = coco_single_object.single_large_objects, coco_single_object.resized_image_and_mask
    names = {name for function in code for name in function.__code__.co_names}
    assert {"getImgIds", "getAnnIds", "loadAnns", "annToMask"} <= names  # pycocotools, directly


def test_near_class_names_are_offered(synthetic):
    annotations = CocoAnnotations(synthetic[1])
    with pytest.raises(ValueError, match="'dgo'.*dog"):
        annotations.find_categories(["dgo"])
    with pytest.raises(ValueError, match="2 times"):
        annotations.find_categories(["dog", "dog"])


def test_every_step_of_a_large_file_has_a_progress_bar(synthetic, monkeypatch):
    """COCO's own file has 860,000 objects: reading and checking it takes half a minute."""
    bars = {}

    def noted(items=None, **options):
        options |= {"mininterval": 0, "miniters": 1, "file": io.StringIO()}
        bars[options["desc"]] = tqdm(items, **options)
        return bars[options["desc"]]

    monkeypatch.setattr(coco_annotations, "progress_bar", noted)
    data = json.loads(synthetic[1].read_text())
    annotations = CocoAnnotations(synthetic[1])
    assert annotations.annotations == data["annotations"], "a bar changes nothing"
    annotations.to_pycocotools([18])
    records = sum(len(data[key]) for key in ("images", "annotations", "categories"))
    outlines = sum(isinstance(a["segmentation"], dict) for a in data["annotations"])
    assert bars["reading"].n == records + outlines + 2  # and `info`, and the file itself
    assert bars["checking"].n == bars["outlines"].n == len(data["annotations"])


def test_broken_annotation_still_counts(tmp_path):
    data = small_set(tmp_path)
    broken = {**data["annotations"][0], "id": 8, "bbox": [0, 0, 900, 900]}
    data["annotations"].append(broken)
    code, _, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert [s["image_id"] for s in manifest["samples"]] == [100]


@pytest.mark.parametrize("reading", ["category", "selected", "image"])
def test_an_annotation_of_no_category_counts_as_one_of_the_image(tmp_path, reading):
    data = small_set(tmp_path)
    data["annotations"].append({**data["annotations"][0], "id": 8, "category_id": 99})
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data))
    selection = select(file, ["dog"], min_bbox=10, single_instance=reading)
    assert len(selection.samples) == (0 if reading == "image" else 1)


def test_sole_crowd_is_no_object(tmp_path):
    data = small_set(tmp_path)
    data["annotations"][0]["iscrowd"] = 1
    code, problems, out = run_with_a_good_image(tmp_path, data)
    assert (code, problems) == (0, [])
    row = next(line for line in out.splitlines() if line.split()[0] == "dog")
    assert row.split() == ["dog", "2", "1", "1", "1", "1", "1"]


def test_iscrowd_may_be_left_out(tmp_path):
    data = small_set(tmp_path)
    del data["annotations"][0]["iscrowd"]
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    assert (tmp_path / "out/train/images/1_18.png").is_file()


def test_compressed_rle_of_every_kind_is_read_as_pycocotools_does():
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width = random.integers(1, 90, 2)
        mask = np.asfortranarray(random.random((height, width)) < random.random()).astype(np.uint8)
        if random.random() < 0.5:
            mask[: height // 2] = 1
        counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        flat = np.concatenate([[0], mask.ravel(order="F"), [2]]).astype(int)
        runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
        assert unpack_rle(counts) == runs


# ---- hostile input ------------------------------------------------------------------------------


def image_field(**fields):
    return lambda data: data["images"][0].update(fields)


def image_id(number):
    def spoiler(data):
        data["images"][0]["id"] = data["annotations"][0]["image_id"] = number

    return spoiler


def annotation_field(**fields):
    return lambda data: data["annotations"][0].update(fields)


def add(kind, **fields):
    return lambda data: data[kind].append({**data[kind][0], **fields})


def rle(counts, size=(30, 40)):
    return annotation_field(segmentation={"size": list(size), "counts": counts})


HOSTILE = {
    "file_name up": (image_field(file_name="../1.jpg"), "image 1 .*leads out"),
    "file_name inside up": (image_field(file_name="a/../../1.jpg"), "image 1 .*leads out"),
    "file_name absolute": (image_field(file_name="/etc/hostname"), "image 1 .*leads out"),
    "file_name of Windows": (image_field(file_name="C:\\1.jpg"), "image 1 .*leads out"),
    "file_name control": (image_field(file_name="\x1b[2J.jpg"), "image 1 .*file_name"),
    "file_name surrogate": (image_field(file_name="\ud800.jpg"), "image 1 .*file_name"),
    "file_name long": (image_field(file_name="a" * 5000), "image 1 "),
    "file_name a number": (image_field(file_name=5), "image 1 .*file_name"),
    "file missing": (image_field(file_name="none.jpg"), "image 1 .*not there"),
    "file a folder": (image_field(file_name="."), "image 1 .*not there"),
    "size none": (image_field(width=None), "image 1 .*width"),
    "size other": (image_field(width=41), "image 1 .*40x30"),
    "size a bomb": (image_field(width=100_000, height=100_000), "image 1 .*more than"),
    "image id text": (image_id("1"), "image '1' .*id"),
    "image id negative": (image_id(-1), "image -1 .*id"),
    "image id float": (image_id(1.0), "image 1.0 .*id"),
    "image id path": (image_id("../../x"), "image '../../x' .*id"),
    "image id true": (image_id(True), "image True .*id"),
    "image id huge": (image_id(10**300), "image 1000.*id"),
    "image id twice": (add("images", file_name="other.jpg"), "image 1 .*before"),
    "category id twice": (add("categories", name="dog2"), "category 18 .*before"),
    "category no name": (add("categories", id=5, name=None), "category 5 .*name"),
    "annotation id twice": (add("annotations"), "annotation 7 .*before"),
    "annotation id text": (annotation_field(id="../7"), "annotation '../7' .*id"),
    "image missing": (annotation_field(image_id=5), "annotation 7 .*no image 5"),
    "image a list": (annotation_field(image_id=[1]), "annotation 7 .*no image"),
    "category missing": (annotation_field(category_id=99), "annotation 7 .*no category 99"),
    "category a dict": (annotation_field(category_id={}), "annotation 7 .*no category"),
    "crowd text": (annotation_field(iscrowd="no"), "annotation 7 .*iscrowd"),
    "bbox none": (annotation_field(bbox=None), "annotation 7 .*bbox"),
    "bbox NaN": (annotation_field(bbox=[0, 0, math.nan, 5]), "annotation 7 .*bbox"),
    "bbox outside": (annotation_field(bbox=[5, 5, 300, 15]), "annotation 7 .*bbox"),
    "bbox negative": (annotation_field(bbox=[30, 25, -20, -15]), "annotation 7 .*bbox"),
    "polygon of two": (annotation_field(segmentation=[[5, 5, 20, 20]]), "annotation 7 .*three"),
    "polygon odd": (annotation_field(segmentation=[[5, 5, 20, 20, 5, 20, 1]]), "annotation 7 "),
    "polygon NaN": (
        annotation_field(segmentation=[[5, 5, 25, math.nan, 25, 20]]),
        "annotation 7 .*finite",
    ),
    "polygon inf": (
        annotation_field(segmentation=[[5, 5, 25, math.inf, 25, 20]]),
        "annotation 7 .*finite",
    ),
    "polygon text": (annotation_field(segmentation=[["a"] * 6]), "annotation 7 .*finite"),
    "polygon huge": (annotation_field(segmentation=[[5, 5, 10**400, 5, 5, 9]]), "annotation 7 "),
    "polygon outside": (
        annotation_field(segmentation=[[500, 500, 520, 500, 520, 520]]),
        "annotation 7 .*outside",
    ),
    "polygon partly outside": (
        annotation_field(segmentation=[[5, 5, 520, 5, 25, 20]]),
        "annotation 7 .*outside",
    ),
    "polygon negative": (
        annotation_field(segmentation=[[-50, 5, 20, 5, 25, 20]]),
        "annotation 7 .*outside",
    ),
    "polygon endless": (
        annotation_field(segmentation=[[0, 0, 40, 0] * 30_000]),
        "annotation 7 .*longer",
    ),
    "segmentation none": (annotation_field(segmentation=None), "annotation 7 .*neither"),
    "segmentation empty": (annotation_field(segmentation=[]), "annotation 7 .*neither"),
    "RLE size": (rle([1200], (40, 30)), "annotation 7 .*size"),
    "RLE short": (rle([600, 10]), "annotation 7 .*add up"),
    "RLE long": (rle([600, 10**12]), "annotation 7 .*add up"),
    "RLE negative": (rle([1300, -100]), "annotation 7 .*read"),
    "RLE float": (rle([600.5, 599.5]), "annotation 7 .*read"),
    "RLE none": (rle(None), "annotation 7 .*read"),
    "RLE text empty": (rle(""), "annotation 7 .*read"),
    "RLE text foreign": (rle("héllo wörld"), "annotation 7 .*read"),
    "RLE text open": (rle("oooo"), "annotation 7 .*read"),
    "RLE text endless": (rle("o" * 60 + "0"), "annotation 7 .*read"),
    "RLE text long": (rle("ooo0ooo0"), "annotation 7 .*add up"),
    "record a number": (lambda data: data["annotations"].append(5), "annotation .*position 1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_record_is_one_sentence_and_the_rest_goes_on(tmp_path, name):
    spoil, sentence = HOSTILE[name]
    data = small_set(tmp_path)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "images/1.jpg").read_bytes())
    spoil(data)
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    assert len(problems) == 2, problems  # the sentence, and how many there are
    assert re.match(sentence, problems[0])
    assert problems[0].count(" is left out: ") == 1
    assert problems[0].isprintable()
    assert (tmp_path / "out/train/masks/100_18.png").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"1.jpg", "images", "instances.json", "out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"train"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"5",
        b"{}",
        b'{"images": {}, "annotations": [], "categories": []}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=["empty", "torn", "list", "number", "no lists", "dicts", "deep", "bytes"],
)
def test_json_that_is_not_coco_ends_the_run(tmp_path, content):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    code, problems, _ = run(
        "--annotations", file, "--images-dir", tmp_path, "--out", tmp_path / "out"
    )
    assert code == 2
    assert len(problems) == 1
    assert "bad.json" in problems[0]
    assert not (tmp_path / "out").exists()
