"""COCO: selection, masks, hostile files, downloads, the synthetic set and the dataset."""

import contextlib
import copy
import hashlib
import http.server
import importlib
import importlib.util
import inspect
import io
import json
import math
import pickle
import re
import struct
import textwrap
import threading
import time
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from SegStudio import SegStudio

module = importlib.import_module("SegStudio.SegStudio")  # `import ... as` gives the class
Segmentation = SegStudio.SemanticSegmentation
CLASSES = ("cake", "dog", "motorcycle")
NAMES = (
    "CocoAnnotations",
    "CocoSelection",
    "CocoPreparer",
    "CocoDownloader",
    "CocoSyntheticSet",
    "CocoSingleObjectDataset",
)
ROOT = Path(__file__).parents[1]

spec = importlib.util.spec_from_file_location("prepare_coco", ROOT / "Datasets" / "prepare_coco.py")
prepare_coco = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_coco)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set, made once: (folder of images, annotation file)."""
    folder = tmp_path_factory.mktemp("synthetic")
    drawer = Segmentation.CocoSyntheticSet(seed=3, progress=False)
    return folder / "train", drawer.write(folder, "train", 16)


@pytest.fixture(scope="session")
def prepared(synthetic, tmp_path_factory):
    """The synthetic set prepared at 64x64: the folder of the split."""
    return prepare(*synthetic, tmp_path_factory.mktemp("prepared"))[1].parent


def prepare(images, file, out, *, classes=CLASSES, workers=1, split="train", **options):
    size = options.pop("image_size", 64)
    selection = Segmentation.CocoSelection(Segmentation.CocoAnnotations(file), classes, **options)
    preparer = Segmentation.CocoPreparer(selection, image_size=size, split=split)
    return preparer, preparer.write(images, out, workers=workers, progress=False)


def small_set(folder, *, name="1.jpg", size=(40, 30)):
    """One image with one object of the class 'dog', to be spoiled by a test."""
    (folder / "images").mkdir(exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(picture).save(folder / "images" / name)
    box = [5.0, 5.0, 20.0, 15.0]
    return {
        "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 61, "name": "cake"}],
        "annotations": [
            {
                "id": 7,
                "image_id": 1,
                "category_id": 18,
                "iscrowd": 0,
                "bbox": box,
                "segmentation": [[5, 5, 25, 5, 25, 20, 5, 20]],
            }
        ],
    }


def spoil(folder, data):
    """Adds a second, sound image to data, writes the JSON, and returns the command's result."""
    data = copy.deepcopy(data)
    other = small_set(folder, name="good.jpg")
    data["images"].append({**other["images"][0], "id": 100, "file_name": "good.jpg"})
    data["annotations"].append({**other["annotations"][0], "id": 700, "image_id": 100})
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return run(
        "--annotations",
        file,
        "--images-dir",
        folder / "images",
        "--classes",
        "dog",
        "--min-bbox",
        10,
        "--image-size",
        16,
        "--out",
        folder / "out",
    )


def run(*arguments):
    """The command line: (exit code, sentences on the error output, all of the output)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = prepare_coco.main([str(a) for a in arguments])
        except SystemExit as error:
            code = error.code
    lines = [line for line in re.split(r"[\r\n]+", err.getvalue()) if line.strip()]
    return code, [line for line in lines if "image/s" not in line and "?" not in line], out


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def settings(folder, size=64):
    return types.SimpleNamespace(dataroot=str(folder), image_size=[size, size])


# ---- selection and masks against pycocotools ----------------------------------------------------


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
    annotations = Segmentation.CocoAnnotations(synthetic[1])
    numbers = [
        len(Segmentation.CocoSelection(annotations, CLASSES, single_instance=r).samples)
        for r in ("category", "selected", "image")
    ]
    assert numbers[0] > numbers[1] > numbers[2] > 0


def test_limit_and_min_bbox(synthetic):
    annotations = Segmentation.CocoAnnotations(synthetic[1])
    every = Segmentation.CocoSelection(annotations, CLASSES).samples
    limited = Segmentation.CocoSelection(annotations, CLASSES, limit=2).samples
    for name in CLASSES:
        first = [a["id"] for a, n in every if n == name][:2]
        assert [a["id"] for a, n in limited if n == name] == first
    more = Segmentation.CocoSelection(annotations, CLASSES, min_bbox=1).samples
    assert len(more) > len(every)
    assert not Segmentation.CocoSelection(annotations, CLASSES, min_bbox=400).samples


def test_synthetic_set_has_every_form_and_says_so(synthetic):
    data = json.loads(synthetic[1].read_text())
    forms = {
        type(a["segmentation"]["counts"] if isinstance(a["segmentation"], dict) else ())
        for a in data["annotations"]
    }
    assert forms == {tuple, list, str}
    assert {a["iscrowd"] for a in data["annotations"]} == {0, 1}
    assert "SYNTHETIC" in data["info"]["description"]
    annotations = Segmentation.CocoAnnotations(synthetic[1])
    assert annotations.problems == []


def test_synthetic_set_is_reproducible(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        drawer = Segmentation.CocoSyntheticSet(seed=seed, progress=False)
        drawer.write(tmp_path / name, "test", 1)
    first, same, other = (tree(tmp_path / name) for name in "abc")
    assert first == same
    assert first.keys() == other.keys()
    assert all(first[k] != other[k] for k in first)


def test_bytes_do_not_depend_on_workers(synthetic, prepared, tmp_path):
    _, manifest = prepare(*synthetic, tmp_path, workers=2)
    assert tree(manifest.parent) == {
        k: v for k, v in tree(prepared).items() if not k.endswith(".cache.npy")
    }


def test_manifest(synthetic, tmp_path):
    data = small_set(tmp_path)
    data["licenses"] = [{"id": 3, "name": "CC BY", "url": "http://x/by"}, {"id": 4, "name": "-"}]
    data["images"][0].update(license=3, coco_url="http://x/1.jpg", flickr_url="https://y/1.jpg")
    data["info"] = {"description": "mine"}
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data))
    _, path = prepare(
        tmp_path / "images",
        file,
        tmp_path,
        classes=["dog"],
        min_bbox=10,
        split="test",
        image_size=8,
    )
    manifest = json.loads(path.read_text())
    assert path == tmp_path / "test" / "manifest.json"
    assert manifest["source"] == {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert manifest["description"] == "mine"
    assert manifest["licenses"] == {"3": data["licenses"][0]}
    assert manifest["options"] == {
        "classes": ["dog"],
        "min_bbox": 10,
        "single_instance": "category",
        "limit": None,
        "image_size": 8,
        "split": "test",
    }
    sample = manifest["samples"][0]
    assert sample["image"] == "images/1_18.png"
    assert (sample["width"], sample["height"]) == (40, 30)
    assert sample["bbox"] == [5.0, 5.0, 20.0, 15.0]
    assert (sample["license"], sample["category"]) == (3, "dog")
    assert (sample["coco_url"], sample["flickr_url"]) == ("http://x/1.jpg", "https://y/1.jpg")
    content = (path.parent / sample["mask"]).read_bytes()
    assert sample["mask_sha256"] == hashlib.sha256(content).hexdigest()


def test_prepared_anew_replaces_the_old_folder(synthetic, tmp_path):
    prepare(*synthetic, tmp_path)
    _, manifest = prepare(*synthetic, tmp_path, limit=1)
    assert len(list((manifest.parent / "images").iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train"]


def test_failed_run_keeps_the_old_folder(synthetic, tmp_path, monkeypatch):
    prepare(*synthetic, tmp_path, limit=1)
    before = tree(tmp_path)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        prepare(*synthetic, tmp_path)
    assert tree(tmp_path) == before


def test_foreign_folder_is_left_alone(synthetic, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a prepared folder"):
        prepare(*synthetic, tmp_path)
    assert tree(tmp_path) == {"train/mine.txt": b"mine"}


# ---- images of every mode -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "1.jpg"),
        ("CMYK", "1.jpg"),
        ("P", "1.png"),
        ("RGBA", "1.png"),
        ("1", "1.png"),
        ("RGB", "1.png"),
        ("I;16", "1.png"),
    ],
)
def test_modes_become_rgb(tmp_path, mode, name):
    data = small_set(tmp_path, name=name)
    color = (200, 40, 90)
    picture = Image.new("RGB", (40, 30), color)
    expected = np.array(color)
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 40), 60 * 256 + 9, np.uint16))
        expected = np.array([60, 60, 60])
    else:
        picture = picture.quantize(8) if mode == "P" else picture.convert(mode)
        if mode == "L":
            expected = np.array([picture.getpixel((0, 0))] * 3)
        if mode == "1":
            picture = Image.new("1", (40, 30), 1)
            expected = np.array([255] * 3)
    picture.save(tmp_path / "images" / name, **({"transparency": 0} if mode == "P" else {}))
    code, problems, _ = spoil(tmp_path, data)
    assert (code, problems) == (0, [])
    result = Image.open(tmp_path / "out/train/images/1_18.png")
    assert result.mode == "RGB"
    assert np.abs(np.asarray(result).astype(int) - expected).max() <= 4


def test_exif_orientation_is_not_applied(tmp_path):
    data = small_set(tmp_path)
    half = np.zeros((30, 40, 3), np.uint8)
    half[:15] = 255  # white above; turned by 180 degrees it would be below
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(half).save(tmp_path / "images/1.jpg", exif=exif)
    assert spoil(tmp_path, data)[0] == 0
    result = np.asarray(Image.open(tmp_path / "out/train/images/1_18.png"))
    assert result[2].min() > 200 > 50 > result[13].max()


def test_image_is_antialiased(tmp_path):
    data = small_set(tmp_path, name="1.png", size=(160, 160))
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "images/1.png")
    assert spoil(tmp_path, data)[0] == 0
    result = np.asarray(Image.open(tmp_path / "out/train/images/1_18.png")).astype(int)
    assert np.abs(result - 127).max() < 12  # nearest neighbor would give 0 or 255


def test_empty_mask_is_reported_and_dropped(tmp_path):
    data = small_set(tmp_path, size=(400, 300))
    data["annotations"][0]["segmentation"] = [[5, 5, 6, 5, 6, 6, 5, 6]]
    code, problems, _ = spoil(tmp_path, data)
    assert code == 0
    assert problems == ["image 1 is dropped: its dog's mask is empty after resizing to 16x16."]
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert [s["image_id"] for s in manifest["samples"]] == [100]
    assert manifest["left_out"] == problems


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
    "address file:": (image_field(coco_url="file:///etc/hostname"), "image 1 .*http"),
    "address script": (image_field(flickr_url="javascript:1"), "image 1 .*http"),
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
    spoiler, sentence = HOSTILE[name]
    data = small_set(tmp_path)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "images/1.jpg").read_bytes())
    spoiler(data)
    code, problems, _ = spoil(tmp_path, data)
    assert code == 1
    assert len(problems) == 2, problems  # the sentence, and how many there are
    assert re.match(sentence, problems[0])
    assert problems[0].count(" is left out: ") == 1
    assert problems[0].isprintable()
    assert (tmp_path / "out/train/masks/100_18.png").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"1.jpg", "images", "instances.json", "out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"train"}


def test_links(tmp_path):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    file.rename(tmp_path / "secret.jpg")
    file.symlink_to(tmp_path / "secret.jpg")
    code, problems, _ = spoil(tmp_path, data)
    assert code == 1
    assert re.match("image 1 is left out: its file is a link that leads out", problems[0])
    (tmp_path / "out/test").symlink_to(tmp_path / "images")
    before = tree(tmp_path / "images")
    code, problems, _ = run(
        "--annotations",
        tmp_path / "instances.json",
        "--images-dir",
        tmp_path / "images",
        "--classes",
        "dog",
        "--min-bbox",
        1,
        "--out",
        tmp_path / "out",
        "--split",
        "test",
    )
    assert code == 2
    assert "not a prepared folder" in problems[-1]
    assert tree(tmp_path / "images") == before


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def jpeg_header(width, height):
    """A JPEG whose header claims a size (65,535 at most in this format)."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff",
        png_header(100_000, 100_000),
        jpeg_header(65_000, 65_000),
        jpeg_header(12_000, 9_000),
        png_header(40, 30),
        b"GIF89a" + bytes(50),
    ],
    ids=["empty", "text", "torn", "bomb", "jpeg bomb", "jpeg small bomb", "short", "gif"],
)
def test_hostile_image_file(tmp_path, content):
    data = small_set(tmp_path)
    (tmp_path / "images/1.jpg").write_bytes(content)
    code, problems, _ = spoil(tmp_path, data)
    assert code == 1
    assert len(problems) == 2
    assert re.match("image 1 is left out: (its file cannot be decoded|it.* is 12000x)", problems[0])
    assert (tmp_path / "out/train/images/100_18.png").is_file()


def test_truncated_jpeg(tmp_path):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    code, problems, _ = spoil(tmp_path, data)
    assert code == 1
    assert "image 1 is left out: its file cannot be decoded" in problems[0]


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


def test_broken_annotation_still_counts_for_single(tmp_path):
    data = small_set(tmp_path)
    broken = {**data["annotations"][0], "id": 8, "bbox": [0, 0, 900, 900]}
    data["annotations"].append(broken)
    code, _, _ = spoil(tmp_path, data)
    assert code == 1
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert [s["image_id"] for s in manifest["samples"]] == [100]


def test_sole_crowd_is_no_object(tmp_path):
    data = small_set(tmp_path)
    data["annotations"][0]["iscrowd"] = 1
    code, problems, out = spoil(tmp_path, data)
    assert (code, problems) == (0, [])
    assert out.getvalue().splitlines()[1].split() == ["dog", "2", "1", "1", "1", "1", "1"]


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
        assert Segmentation.CocoSelection._unpack_rle(counts) == runs


@pytest.mark.parametrize(
    "arguments",
    [
        ["--classes", "dgo"],
        ["--classes", "dog", "dog"],
        ["--image-size", "0"],
        ["--limit", "0"],
        ["--min-bbox", "-1"],
        ["--single-instance", "any"],
        ["--workers", "0"],
        ["--images-dir", "nowhere"],
        ["--download"],
        ["--annotations", "nowhere.json"],
    ],
)
def test_user_mistakes_are_one_sentence(synthetic, tmp_path, arguments):
    code, problems, _ = run(
        "--annotations",
        synthetic[1],
        "--images-dir",
        synthetic[0],
        "--out",
        tmp_path / "out",
        *arguments,
    )
    assert code == 2
    assert not any("Traceback" in p for p in problems)
    assert not (tmp_path / "out").exists()


def test_near_class_names_are_offered(synthetic):
    annotations = Segmentation.CocoAnnotations(synthetic[1])
    with pytest.raises(ValueError, match="'dgo'.*dog"):
        Segmentation.CocoSelection(annotations, ["dgo"])


def test_command_with_synthetic_set(tmp_path):
    code, problems, out = run(
        "--synthetic",
        "--synthetic-images",
        3,
        "--split",
        "test",
        "--image-size",
        32,
        "--out",
        tmp_path,
        "--limit",
        1,
    )
    assert code == 0, problems
    assert "SYNTHETIC" in out.getvalue()
    manifest = json.loads((tmp_path / "test/manifest.json").read_text())
    assert "SYNTHETIC" in manifest["description"]
    assert manifest["kept"] == dict.fromkeys(CLASSES, 1)


# ---- download -----------------------------------------------------------------------------------


class Server:
    """A loopback server whose answers to each path follow a plan; the last one repeats."""

    def __init__(self, files, plans=None):
        self.files, self.plans, self.requests = files, plans or {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                tries = outer.requests.count(self.path)
                plan = outer.plans.get(self.path, ["ok"])
                outer.answer(self, plan[min(tries, len(plan)) - 1], outer.files.get(self.path))

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def answer(handler, action, content):
        if action == "drop":
            handler.connection.close()
            return
        if isinstance(action, int) or content is None:
            handler.send_error(action if isinstance(action, int) else 404)
            return
        if action == "file":
            handler.send_response(302)
            handler.send_header("Location", "file:///etc/hostname")
            handler.end_headers()
            return
        lengths = {"long": len(content) + 100, "short": len(content) // 2}
        handler.send_response(200)
        handler.send_header("Content-Length", str(lengths.get(action, len(content))))
        handler.end_headers()
        if action == "delay":
            time.sleep(0.6)
        sent = {"truncate": content[: len(content) // 2], "garbage": bytes(len(content))}
        with contextlib.suppress(OSError):
            handler.wfile.write(sent.get(action, content))

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(files, plans=None):
        servers.append(Server(files, plans))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def downloader(**options):
    options = {"backoff": 0.005, "timeout": 0.3, "progress": False, "workers": 4, **options}
    return Segmentation.CocoDownloader(**options)


def jpeg(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def records(server, number):
    return [
        {"id": k, "file_name": "../x", "width": 40, "height": 30, "coco_url": f"{server.url}/{k}"}
        for k in range(1, number + 1)
    ]


def test_download_gets_over_every_passing_fault(serve, tmp_path):
    faults = ["drop", "truncate", "delay", 500, 503, 429, "long", "short", "garbage", "file"]
    files = {f"/{k}": jpeg(k) for k in range(1, len(faults) + 1)}
    server = serve(files, {f"/{k}": [fault, "ok"] for k, fault in enumerate(faults, 1)})
    results = downloader().fetch_images(records(server, len(faults)), tmp_path)
    # A redirection to another kind of address is an answer of code 302 that does not pass.
    assert {k for k, v in results.items() if isinstance(v, Exception)} == {10}
    for k in range(1, 10):
        assert results[k] == tmp_path / f"{k:012d}.jpg"
        assert results[k].read_bytes() == files[f"/{k}"]
        assert server.requests.count(f"/{k}") == 2
    assert len(list(tmp_path.iterdir())) == 9  # no .part is left


def test_download_gives_up_with_a_reason_and_resumes(serve, tmp_path):
    files = {f"/{k}": jpeg(k) for k in range(1, 6)}
    server = serve(files, {"/2": [404], "/3": ["drop"], "/4": ["truncate"]})
    first = downloader(retries=2).fetch_images(records(server, 5), tmp_path)
    assert [k for k, v in first.items() if isinstance(v, Exception)] == [2, 3, 4]
    assert "404" in str(first[2])
    assert re.search(r"\d+ of \d+ bytes", str(first[4]))
    tries = {k: server.requests.count(f"/{k}") for k in range(1, 6)}
    assert tries == {1: 1, 2: 1, 3: 3, 4: 3, 5: 1}
    server.plans, server.requests[:] = {}, []
    (tmp_path / f"{5:012d}.jpg").write_bytes(b"spoiled")
    second = downloader().fetch_images(records(server, 5), tmp_path)
    assert all(v.read_bytes() == files[f"/{k}"] for k, v in second.items())
    assert sorted(server.requests) == ["/2", "/3", "/4", "/5"]
    server.requests.clear()
    downloader().fetch_images(records(server, 5), tmp_path)
    assert server.requests == []


def test_download_refuses_other_sizes_and_addresses(serve, tmp_path):
    server = serve({"/1": jpeg(1)})
    wanted = records(server, 1) + [
        {"id": 2, "width": 40, "height": 30, "coco_url": (tmp_path / "x.jpg").as_uri()},
        {"id": 3, "width": 40, "height": 30, "coco_url": "ftp://127.0.0.1/x"},
        {"id": 4, "width": 40, "height": 30},
        {"id": 5, "width": 40, "height": 30, "coco_url": "http://127.0.0.1:1/\r\nx"},
    ]
    (tmp_path / "x.jpg").write_bytes(jpeg(2))
    wanted[0]["width"] = 41
    results = downloader(retries=1).fetch_images(wanted, tmp_path / "out")
    assert all(isinstance(v, Exception) for v in results.values())
    assert "40x30" in str(results[1])
    assert all("http(s)" in str(results[k]) for k in (2, 3, 4))
    assert list((tmp_path / "out").iterdir()) == []


def test_download_stops_on_a_full_disk(serve, tmp_path, monkeypatch):
    server = serve({f"/{k}": jpeg(k) for k in range(1, 4)})

    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Segmentation.CocoDownloader, "_stream", full)
    with pytest.raises(OSError, match="No space"):
        downloader(backoff=60).fetch_images(records(server, 3), tmp_path)


def test_download_waits_longer_each_time(serve, tmp_path, monkeypatch):
    server = serve({}, {"/1": [500]})
    waits = []
    tool = downloader(backoff=0.5, retries=3)
    monkeypatch.setattr(tool._stopped, "wait", lambda seconds: waits.append(seconds))
    result = tool.fetch_images(records(server, 1), tmp_path)
    assert "500" in str(result[1])
    assert waits == [0.5, 1.0, 2.0]


def test_endless_answer_is_cut(serve, tmp_path, monkeypatch):
    server = serve({"/1": jpeg(1)})
    monkeypatch.setattr(Segmentation.CocoDownloader, "MAX_IMAGE_BYTES", 100)
    result = downloader(retries=0).fetch_images(records(server, 1), tmp_path)
    assert "more than 100 bytes" in str(result[1])


def archive(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return stream.getvalue()


def test_annotation_archive_unpacks_only_what_is_wanted(serve, tmp_path):
    members = {
        "../evil.json": b"evil",
        "/tmp/evil.json": b"evil",
        "annotations/../../evil.json": b"evil",
        "annotations/captions_train2017.json": b"{}",
        "annotations/instances_train2017.json": b'{"a": 1}',
        "annotations/instances_val2017.json": b'{"b": 2}',
    }
    server = serve({"/a.zip": archive(members)}, {"/a.zip": ["truncate", 500, "garbage", "ok"]})
    folder = tmp_path / "deep" / "downloads"
    files = downloader().fetch_annotations(folder, url=f"{server.url}/a.zip")
    assert [f.read_bytes() for f in files] == [b'{"a": 1}', b'{"b": 2}']
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {f"deep/downloads/instances_{s}2017.json" for s in ("train", "val")}
    downloader().fetch_annotations(folder, url=f"{server.url}/a.zip")
    assert len(server.requests) == 4


def test_annotation_archive_without_the_member_or_damaged(serve, tmp_path):
    name = "annotations/instances_train2017.json"
    content = archive({name: bytes(5000), "annotations/instances_val2017.json": b"{}"})
    spoiled = bytearray(content)
    spoiled[len(name) + 31] ^= 255
    files = {"/none.zip": archive({"x": b"x"}), "/bad.zip": bytes(spoiled)}
    server = serve(files)
    for path in files:
        with pytest.raises(ValueError, match="not COCO's archive"):
            downloader().fetch_annotations(tmp_path, url=server.url + path)
        assert list(tmp_path.iterdir()) == []


def test_command_downloads_and_lists_failures(serve, tmp_path, monkeypatch):
    data = small_set(tmp_path)
    content = (tmp_path / "images/1.jpg").read_bytes()
    server = serve({"/1": content, "/2": content}, {"/2": [404]})
    data["images"][0]["coco_url"] = f"{server.url}/1"
    data["images"].append({**data["images"][0], "id": 2, "coco_url": f"{server.url}/2"})
    data["images"].append({**data["images"][0], "id": 3, "coco_url": f"{server.url}/3"})
    data["annotations"].append({**data["annotations"][0], "id": 8, "image_id": 2})
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data))
    arguments = (
        "--annotations",
        file,
        "--download",
        "--classes",
        "dog",
        "--min-bbox",
        10,
        "--image-size",
        16,
        "--out",
        tmp_path / "out",
    )
    code, problems, _ = run(*arguments)
    assert code == 1
    problems = [p for p in problems if "download" not in p]
    assert len(problems) == 2
    assert re.match("image 2 is left out: .*404", problems[0])
    assert (tmp_path / "out/train/images/1_18.png").is_file()
    assert sorted(server.requests) == ["/1", "/2"]  # image 3 was not selected
    server.plans = {}
    assert run(*arguments)[0] == 0
    assert server.requests.count("/1") == 1
    assert (tmp_path / "out/train/images/2_18.png").is_file()


# ---- the dataset --------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_value", [255, 1])
def test_items_agree_with_the_files(prepared, mask_value):
    data = Segmentation.CocoSingleObjectDataset(
        settings(prepared.parent), None, "train", "train", mask_value=mask_value
    )
    samples = json.loads((prepared / "manifest.json").read_text())["samples"]
    assert len(data) == len(samples)
    assert data.class_names == CLASSES
    assert data.class_labels == {0: "cake", 1: "dog", 2: "motorcycle"}
    assert data.mask_values == (mask_value,)
    for item, sample in zip((data[k] for k in range(len(data))), samples, strict=True):
        image = np.asarray(Image.open(prepared / sample["image"]))
        mask = np.asarray(Image.open(prepared / sample["mask"]))
        assert item["image"].dtype == torch.float32
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), image)
        assert item["mask_tensor"].dtype == torch.uint8
        assert np.array_equal(item["mask_tensor"][0].numpy(), mask // 255 * mask_value)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert item["bbox_tensor"].shape == (1, 1, 4)
        assert item["bbox_tensor"].dtype == torch.float32
        assert item["bbox_tensor"][0, 0].tolist() == box
        assert CLASSES[item["category"]] == sample["category"]


def test_num_images_and_index(prepared):
    data = Segmentation.CocoSingleObjectDataset(
        settings("/nowhere"), None, "train", str(prepared), num_images=3
    )
    assert len(data) == 3
    assert torch.equal(data[-1]["image"], data[2]["image"])
    with pytest.raises(IndexError):
        data[3]


def test_workers_of_a_loader(prepared):
    data = Segmentation.CocoSingleObjectDataset(
        settings(prepared.parent), None, "train", "train", num_images=4
    )
    content = pickle.dumps(data)  # what a spawned worker gets
    assert len(content) < 50_000 < data.cache_file.stat().st_size
    copied = pickle.loads(content)
    assert isinstance(copied._records, np.memmap)
    loader = DataLoader(copied, 2, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    together = torch.cat([b["image"] for b in batches])
    assert torch.equal(together, torch.stack([data[k]["image"] for k in range(4)]))
    assert batches[0]["bbox_tensor"].shape == (2, 1, 1, 4)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_damaged_cache_is_made_again(prepared, damage):
    def load():
        return Segmentation.CocoSingleObjectDataset(
            settings(prepared.parent), None, "train", "train"
        )

    data = load()
    sound = data.cache_file.read_bytes()
    assert data.cache_file.parent == prepared
    spoiled = bytearray(sound)
    spoiled[len(sound) // 2] ^= 255
    contents = {"truncate": sound[:-5000], "flip": spoiled, "empty": b"", "text": b"no cache"}
    data.cache_file.unlink()
    data.cache_file.write_bytes(contents[damage])
    assert load().cache_file.read_bytes() == sound
    assert not list(prepared.glob("*.part"))


def test_stale_cache_is_not_used(synthetic, tmp_path):
    prepare(*synthetic, tmp_path, limit=2)
    first = Segmentation.CocoSingleObjectDataset(settings(tmp_path), None, "train", "train")
    prepare(*synthetic, tmp_path, limit=1)
    stale = tmp_path / "train" / first.cache_file.name
    stale.write_bytes(b"of an older set")
    second = Segmentation.CocoSingleObjectDataset(settings(tmp_path), None, "train", "train")
    assert (len(first), len(second)) == (6, 3)
    assert list((tmp_path / "train").glob("*.npy")) == [second.cache_file]


def test_read_only_folder_uses_the_users_cache(synthetic, tmp_path, monkeypatch):
    prepare(*synthetic, tmp_path, limit=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make = module.tempfile.mkstemp

    def refuse(suffix, prefix, folder):  # chmod does not stop root, who may run the tests
        if Path(folder) == tmp_path / "train":
            raise PermissionError(13, "Permission denied")
        return make(suffix, prefix, folder)

    monkeypatch.setattr(module.tempfile, "mkstemp", refuse)
    data = Segmentation.CocoSingleObjectDataset(settings(tmp_path), None, "train", "train")
    assert data.cache_file.parent == tmp_path / "cache" / "SegStudio"
    assert len(data) == 3


def test_full_disk_leaves_no_torn_cache(synthetic, tmp_path, monkeypatch):
    prepare(*synthetic, tmp_path, limit=1)

    def full(self, stream):
        stream.write(b"torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Segmentation.CocoSingleObjectDataset, "_write_cache", full)
    with pytest.raises(OSError, match="No space"):
        Segmentation.CocoSingleObjectDataset(settings(tmp_path), None, "train", "train")
    assert not list((tmp_path / "train").glob("*cache*"))


def test_dataset_errors_say_what_to_do(synthetic, tmp_path):
    prepare(*synthetic, tmp_path, limit=1)

    def load(size=64, split="train", folder="train", **options):
        Segmentation.CocoSingleObjectDataset(
            settings(tmp_path, size), None, split, folder, **options
        )

    with pytest.raises(FileNotFoundError, match=r"prepare_coco\.py"):
        load(folder="elsewhere")
    with pytest.raises(ValueError, match=r"\[64, 64\].*\[32, 32\]"):
        load(size=32)
    with pytest.raises(ValueError, match="train images, not test"):
        load(split="test")
    for options in ({"split": "val"}, {"mask_value": 0}, {"mask_value": 256}, {"num_images": 0}):
        with pytest.raises(ValueError, match=next(iter(options)).replace("split", "train_or")):
            load(**options)
    manifest = tmp_path / "train/manifest.json"
    picture = next((tmp_path / "train/masks").iterdir())
    Image.new("L", (64, 64)).save(picture)
    with pytest.raises(ValueError, match="not the file that was prepared"):
        load()
    picture.unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load()
    for content in ("", "[]", "{}", '{"format": 1, "samples": []}'):
        manifest.write_text(content)
        with pytest.raises(ValueError, match="not a manifest"):
            load()


# ---- the classes copy out -----------------------------------------------------------------------


def copied_out():
    """The classes, each executed alone under nothing but the module's import lines."""
    lines = inspect.getsource(module).split("__version__")[0]
    found = {}
    for name in NAMES:
        space = {"__name__": "copied"}
        exec(lines, space)
        exec(textwrap.dedent(inspect.getsource(getattr(Segmentation, name))), space)
        found[name] = space[name]
    return types.SimpleNamespace(**found)


def test_classes_copy_out_and_work(serve, tmp_path):
    own = copied_out()
    file = own.CocoSyntheticSet(seed=1, progress=False).write(tmp_path, "train", 3)
    selection = own.CocoSelection(own.CocoAnnotations(file), CLASSES)
    server = serve({f"/{p.name}": p.read_bytes() for p in (tmp_path / "train").iterdir()})
    wanted = []
    for annotation, _ in selection.samples:
        record = selection.annotations.images[annotation["image_id"]]
        wanted.append({**record, "coco_url": f"{server.url}/{record['file_name']}"})
    images = own.CocoDownloader(progress=False).fetch_images(wanted, tmp_path / "fetched")
    preparer = own.CocoPreparer(selection, image_size=32)
    manifest = preparer.write(images, tmp_path / "out", progress=False)
    data = own.CocoSingleObjectDataset(settings(tmp_path, 32), None, "train", manifest.parent)
    assert len(data) == sum(preparer.kept.values()) >= 3
    assert data[0]["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_classes_keep_to_the_lengths(name):
    lines, _ = inspect.getsourcelines(getattr(Segmentation, name))
    assert len(lines) <= 200
    assert max(len(line.rstrip("\n")) for line in lines) <= 100
    assert f"SemanticSegmentation  ->  {name}\n" in "".join(lines)
