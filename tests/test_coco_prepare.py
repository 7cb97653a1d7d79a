"""prepare_coco: what it writes, image files of every kind, and the command."""

import errno
import hashlib
import io
import json
import math
import re
import shlex
import struct
import warnings
import zlib

import numpy as np
import prepare_coco
import pytest
from coco_sets import (
    CLASSES,
    ROOT,
    draw,
    prepare,
    run,
    run_small,
    run_with_a_good_image,
    small_set,
    tree,
)
from coco_synthetic import SyntheticDrawing
from PIL import Image

from SegStudio import SegStudio


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set: (folder of images, annotation file)."""
    return draw(tmp_path_factory.mktemp("synthetic"))


# ---- the prepared folder ------------------------------------------------------------------------


def test_bytes_do_not_depend_on_workers(synthetic, tmp_path):
    _, one = prepare(*synthetic, tmp_path / "one")
    _, three = prepare(*synthetic, tmp_path / "three", workers=3)
    assert tree(one.parent) == tree(three.parent)


def test_manifest(tmp_path):
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
        "single_instance": "selected",
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


@pytest.mark.parametrize("license_id", [[1], {"a": 1}, math.inf, "CC BY", True])
def test_an_odd_licence_is_left_out_of_the_manifest(tmp_path, license_id):
    data = small_set(tmp_path)
    data["images"][0]["license"] = license_id
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    text = (tmp_path / "out/train/manifest.json").read_text()
    assert "Infinity" not in text  # is no JSON
    assert json.loads(text)["samples"][0]["license"] is None


def test_an_odd_licence_record_is_cleaned_for_the_manifest(tmp_path):
    data = small_set(tmp_path)
    data["licenses"] = [{"id": 3, "name": math.nan, "url": "javascript:1", "note": "mine", "x": []}]
    data["images"][0]["license"] = 3
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert manifest["licenses"] == {"3": {"id": 3, "note": "mine"}}


def test_prepared_anew_replaces_the_old_folder(synthetic, tmp_path):
    prepare(*synthetic, tmp_path)
    _, manifest = prepare(*synthetic, tmp_path, limit=1)
    assert len(list((manifest.parent / "images").iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train"]


def test_failed_run_keeps_the_old_folder(synthetic, tmp_path, monkeypatch):
    prepare(*synthetic, tmp_path, limit=1)
    before = tree(tmp_path)

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegStudio, "write_atomically", full)
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
    code, problems, _ = run_with_a_good_image(tmp_path, data)
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
    assert run_with_a_good_image(tmp_path, data)[0] == 0
    result = np.asarray(Image.open(tmp_path / "out/train/images/1_18.png"))
    assert result[2].min() > 200 > 50 > result[13].max()


def test_damaged_exif_data_is_not_worth_a_word(tmp_path):
    data = small_set(tmp_path)
    picture = Image.open(tmp_path / "images/1.jpg")
    picture.save(tmp_path / "images/1.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    assert not [w for w in caught if "EXIF" in str(w.message)]


def test_image_is_antialiased(tmp_path):
    data = small_set(tmp_path, name="1.png", size=(160, 160))
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "images/1.png")
    assert run_with_a_good_image(tmp_path, data)[0] == 0
    result = np.asarray(Image.open(tmp_path / "out/train/images/1_18.png")).astype(int)
    assert np.abs(result - 127).max() < 12  # nearest neighbor would give 0 or 255


def test_empty_mask_is_reported_and_dropped(tmp_path):
    data = small_set(tmp_path, size=(400, 300))
    data["annotations"][0]["segmentation"] = [[5, 5, 6, 5, 6, 6, 5, 6]]
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 0
    assert problems == ["image 1 is dropped: its dog's mask is empty after resizing to 16x16."]
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert [s["image_id"] for s in manifest["samples"]] == [100]
    assert manifest["left_out"] == problems


# ---- files on this disk --------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["coco_url", "flickr_url"])
@pytest.mark.parametrize("address", ["file:///etc/hostname", "javascript:1", 5, "", None])
def test_an_odd_address_leaves_no_image_at_hand_out(tmp_path, field, address):
    """Nothing is downloaded here. The manifest keeps no address that a page must not link."""
    data = small_set(tmp_path)
    data["images"][0][field] = address
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    manifest = json.loads((tmp_path / "out/train/manifest.json").read_text())
    assert manifest["samples"][0]["image_id"] == 1
    assert manifest["samples"][0][field] is None


@pytest.mark.parametrize("kind", ["relative", "absolute", "chain", "folder"])
def test_links_that_stay_inside_the_folder_are_followed(tmp_path, kind):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    store = tmp_path / "images/store"
    store.mkdir()
    file.rename(store / "a.jpg")
    if kind == "relative":
        file.symlink_to("store/a.jpg")
    elif kind == "absolute":
        file.symlink_to(store / "a.jpg")
    elif kind == "chain":
        (store / "b.jpg").symlink_to("a.jpg")
        file.symlink_to("store/b.jpg")
    else:
        (tmp_path / "images/link").symlink_to("store")
        data["images"][0]["file_name"] = "link/a.jpg"
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])
    assert (tmp_path / "out/train/images/1_18.png").is_file()


def test_the_folder_of_images_may_be_a_link(tmp_path):
    data = small_set(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    assert run_with_a_good_image(tmp_path, data)[:2] == (0, [])


def test_links_that_lead_out(tmp_path):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    file.rename(tmp_path / "secret.jpg")
    file.symlink_to(tmp_path / "secret.jpg")
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    assert re.match("image 1 is left out: its file is a link that leads out", problems[0])
    (tmp_path / "out/test").symlink_to(tmp_path / "images")
    before = tree(tmp_path / "images")
    code, problems, _ = run_small(tmp_path, "--images-dir", tmp_path / "images", "--split", "test")
    assert code == 2
    assert "not a prepared folder" in problems[-1]
    assert tree(tmp_path / "images") == before


def test_links_in_a_circle(tmp_path):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    file.unlink()
    file.symlink_to("1.jpg")
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    assert re.match("image 1 is left out: its file is not there", problems[0])


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
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    assert len(problems) == 2
    assert re.match("image 1 is left out: (its file cannot be decoded|it.* is 12000x)", problems[0])
    assert (tmp_path / "out/train/images/100_18.png").is_file()


def test_truncated_jpeg(tmp_path):
    data = small_set(tmp_path)
    file = tmp_path / "images/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    code, problems, _ = run_with_a_good_image(tmp_path, data)
    assert code == 1
    assert "image 1 is left out: its file cannot be decoded" in problems[0]


# ---- the command --------------------------------------------------------------------------------


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
        ["--workers", "100000"],
        ["--images-dir", "nowhere"],
        ["--download"],
        ["--annotations", "nowhere.json"],
        ["--split", "both"],
        ["--synthetic"],
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image-size", "0"],
        ["--classes", "zebra"],
        ["--synthetic-images", "0"],
        ["--seed", "-1"],
        ["--min-bbox", "nan"],
        ["--min-bbox", "inf"],
        ["--annotations", "x.json"],
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(tmp_path, arguments):
    code, problems, _ = run("--synthetic", "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert problems[-1].startswith("prepare_coco") or ": error: " in problems[-1]
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_found_before_anything_is_drawn(tmp_path):
    (tmp_path / "train").mkdir()
    code, problems, _ = run("--synthetic", "--out", tmp_path)
    assert code == 2
    assert "not a prepared folder" in problems[0]
    assert [p.name for p in tmp_path.iterdir()] == ["train"]


def full_disk_after(number, monkeypatch):
    """As if the disk had room for so many files; returns the list of those that were written."""
    written, write = [], SegStudio.write_atomically

    def limited(path, content):
        if len(written) >= number:
            raise OSError(f"{path} could not be written") from OSError(errno.ENOSPC, "full")
        written.append(write(path, content))

    monkeypatch.setattr(SegStudio, "write_atomically", limited)
    return written


@pytest.mark.parametrize("files", [2, 7, 12], ids=["drawing", "preparing", "test split"])
def test_a_full_disk_while_drawing_leaves_no_folder_behind(tmp_path, monkeypatch, files):
    written = full_disk_after(files, monkeypatch)
    out = tmp_path / "data" / "synthetic"
    few = ("--synthetic-images", 1, "--workers", 1, "--image-size", 8)
    code, problems, _ = run("--synthetic", "--split", "both", "--out", out, *few)
    assert len(written) == files
    assert code == 2
    assert len(problems) == 1
    assert re.search(
        "could not be written: make room, or give another folder by --out", problems[0]
    )
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    if files < 9:
        assert left == []
    else:  # the training split was complete
        assert {"data/synthetic/train/manifest.json", "data/synthetic/synthetic/train"} <= {*left}
        assert not [name for name in left if "test" in name]


def test_ctrl_c_while_drawing_leaves_no_folder_behind(tmp_path, monkeypatch):
    drawn, compose = [], SyntheticDrawing.compose

    def interrupted(drawing, kind, category):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(kind)
        return compose(drawing, kind, category)

    monkeypatch.setattr(SyntheticDrawing, "compose", interrupted)
    code, problems, _ = run("--synthetic", "--workers", 1, "--out", tmp_path / "data/synthetic")
    assert code == 130
    assert re.match("prepare_coco: interrupted; run it again", problems[-1])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_set_that_was_there(tmp_path, monkeypatch):
    few = ("--synthetic", "--synthetic-images", 1, "--image-size", 8, "--out", tmp_path)
    assert run(*few)[0] == 0
    before = tree(tmp_path)
    full_disk_after(3, monkeypatch)
    assert run(*few)[0] == 2
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(synthetic, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, problems, _ = run(
        *("--annotations", synthetic[1], "--images-dir", synthetic[0]),
        *("--out", tmp_path / "file/inside"),
    )
    assert code == 2
    assert len(problems) == 1
    assert re.search(r"file/inside cannot be written \(.*another folder by --out$", problems[0])
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_tilde_is_the_home_folder(monkeypatch):
    """A shell leaves it as it is in --out=~/coco, and a folder of that name would be made."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    options = prepare_coco.parse(["--download", "--out=~/coco", "--annotations=~/instances.json"])
    assert options.out.as_posix() == "/home/me/coco"
    assert options.annotations.as_posix() == "/home/me/instances.json"


def test_the_folder_of_annotations_is_not_the_file(synthetic, tmp_path):
    code, problems, _ = run(
        *("--annotations", synthetic[1].parent, "--images-dir", synthetic[0]),
        *("--out", tmp_path / "out"),
    )
    assert code == 2
    assert len(problems) == 1
    assert "is a folder: give the annotation file" in problems[0]
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_leaves_no_new_folder(synthetic, tmp_path):
    code, problems, _ = run(
        *("--annotations", synthetic[1], "--images-dir", synthetic[0], "--min-bbox", 5000),
        *("--out", tmp_path / "data/coco"),
    )
    assert code == 2
    assert "No image" in problems[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["", "other"], ids=["above", "beside"])
def test_a_folder_without_the_images_is_one_sentence(tmp_path, given):
    tmp_path = tmp_path / "alone"  # the folders beside it are searched too
    tmp_path.mkdir()
    data = small_set(tmp_path)
    data["images"].append({**data["images"][0], "id": 2})
    data["annotations"].append({**data["annotations"][0], "id": 8, "image_id": 2})
    (tmp_path / "instances.json").write_text(json.dumps(data))
    (tmp_path / "other").mkdir()
    code, problems, _ = run_small(tmp_path, "--images-dir", tmp_path / given)
    assert code == 2
    assert len(problems) == 1, "not a sentence for each of a hundred thousand images"
    assert re.search(r"none of the 2 selected images \(the first is 1.jpg\)", problems[0])
    assert problems[0].endswith(f"give {tmp_path / 'images'} by --images-dir")
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "away/1.jpg").unlink()
    _, problems, _ = run_small(tmp_path, "--images-dir", tmp_path / given)
    assert "give the folder that holds them" in problems[0]
    assert not (tmp_path / "out").exists()


def test_a_class_name_that_the_terminal_does_not_have(tmp_path, monkeypatch):
    data = small_set(tmp_path)
    data["categories"][0]["name"] = "\u0441\u043e\u0431\u0430\u043a\u0430"
    (tmp_path / "instances.json").write_text(json.dumps(data))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stdout)
    code = prepare_coco.main([
        *("--annotations", str(tmp_path / "instances.json"), "--min-bbox", "10"),
        *("--images-dir", str(tmp_path / "images"), "--out", str(tmp_path / "out")),
        *("--classes", data["categories"][0]["name"]),
    ])  # fmt: skip
    stdout.flush()
    assert code == 0
    assert rb"\u0441\u043e" in stdout.buffer.getvalue()


def test_an_annotation_file_that_may_not_be_read_is_one_sentence(synthetic, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    code, problems, _ = run(
        *("--annotations", synthetic[1], "--images-dir", synthetic[0], "--out", tmp_path / "out"),
    )
    assert (code, problems) == (2, [f"prepare_coco: You have no right to read {synthetic[1]}."])


def test_synthetic_set_of_both_splits_in_one_command(tmp_path):
    code, problems, out = run(
        *("--synthetic", "--synthetic-images", 3, "--split", "both"),
        *("--image-size", 32, "--out", tmp_path),
    )
    assert (code, problems) == (0, [])
    said = re.findall(r"Drawing (\d+) SYNTHETIC (\w+) images .*, and (\d+) that", out)
    for number, split, rejected in said:
        drawn = len(list((tmp_path / "synthetic" / split).iterdir()))
        assert drawn == int(number) + int(rejected) == 7
        assert f"{number} images and masks: {tmp_path / split}" in out
    assert [split for _, split, _ in said] == ["train", "test"]
    manifests = [
        json.loads((tmp_path / split / "manifest.json").read_text()) for split in ("train", "test")
    ]
    for manifest in manifests:
        assert "SYNTHETIC" in manifest["description"]
        assert manifest["kept"] == dict.fromkeys(CLASSES, 1)
    pictures = [{sample["image_sha256"] for sample in m["samples"]} for m in manifests]
    assert pictures[0].isdisjoint(pictures[1])


def test_a_photo_that_is_written_twice_is_a_warning(tmp_path):
    data = small_set(tmp_path)
    data["annotations"].append({**data["annotations"][0], "id": 8, "category_id": 61})
    (tmp_path / "instances.json").write_text(json.dumps(data))
    both = ("--images-dir", tmp_path / "images", "--classes", "dog", "cake")
    code, problems, _ = run_small(tmp_path, *both, "--single-instance", "category")
    assert code == 0
    assert len(problems) == 1
    assert re.search("1 photo is .*more than once.*--single-instance selected", problems[0])
    assert len(list((tmp_path / "out/train/masks").iterdir())) == 2
    code, problems, _ = run_small(tmp_path, *both)
    assert code == 2
    assert "No image" in problems[0]
    assert len(list((tmp_path / "out/train/masks").iterdir())) == 2  # the old folder stays


# ---- the page -----------------------------------------------------------------------------------

PAGE = (ROOT / "Datasets" / "COCO.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_valid(tmp_path, monkeypatch):
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"python Datasets/prepare_coco.py ([^`\n]+)", PAGE)
    assert len(commands) == 4
    for command in commands:
        prepare_coco.parse(shlex.split(command))


def test_the_coco_folder_has_one_name_everywhere():
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    files += [
        path for folder in ("Datasets", "Examples", "doc") for path in (ROOT / folder).rglob("*")
    ]
    names = set()
    for path in files:
        if path.suffix in (".md", ".py", ".j2"):
            text = path.read_text(encoding="utf-8")
            names |= set(re.findall(r"(?:--coco|--out)[ =](?:\S*data/\S*coco[\w-]*)", text))
    names = {re.split("[ =]", name)[1] for name in names}
    assert names == {"data/coco", "data/synthetic-coco"}
    assert str(prepare_coco.parse(["--synthetic"]).out) == "data/synthetic-coco"
    assert str(prepare_coco.parse(["--download"]).out) == "data/coco"


def test_the_page_names_every_option_and_its_default():
    options = prepare_coco.parse(["--synthetic"])
    table = PAGE[PAGE.index("| option |") : PAGE.index("| exit code |")]
    rows = dict(re.findall(r"^\| `--([a-z-]+).*\| ([^|]+) \|$", table, re.MULTILINE))
    described = {name.replace("-", "_"): default.strip("`") for name, default in rows.items()}
    for name in ("split", "single_instance"):
        assert described[name] == getattr(options, name)
    for name in ("min_bbox", "image_size", "workers"):
        assert described[name] == str(getattr(options, name))
    assert described["classes"].split() == options.classes
    assert described["synthetic_images"] == "480 (train), 120 (test)"
    assert prepare_coco.SYNTHETIC_IMAGES == {"train": 480, "test": 120}
    for name in vars(options):
        assert f"--{name.replace('_', '-')}" in PAGE, name
