"""doctor: this computer, the data, and the times of the examples."""

import gzip
import json
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, Segmentation

from SegStudio import backstage, doctor
from SegStudio.__main__ import main


def run(*arguments):
    """The exit code of the command."""
    try:
        main(["doctor", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


# ---- this computer ------------------------------------------------------------------------------


def test_the_report_on_this_computer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.setenv("WAYLAND_DISPLAY", "")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert run("--no-times") == 0
    printed = capsys.readouterr().out
    first = {line[:22].strip() for line in printed.partition("Data\n")[0].splitlines()}
    assert {
        "system", "versions", "processor", "memory", "device", "bf16", "display",
        "loader workers", "free disk space", "this folder",
    } <= first  # fmt: skip
    assert "none: figures are saved, --show opens no window" in printed
    assert f"torch {doctor.torch.__version__}" in printed
    assert "No data below data: the examples draw what they need there." in printed
    assert list(tmp_path.iterdir()) == [], "it writes nothing"


def test_the_data_that_is_there(tmp_path, capsys):
    folder = tmp_path / "PurdueShapes5MultiObject"
    archive = folder / "PurdueShapes5MultiObject-20-train.gz"
    Segmentation.PurdueShapes5MultiObjectDataset.generate(archive, 20)
    (tmp_path / "coco" / "train").mkdir(parents=True)
    (tmp_path / "coco" / "train" / "manifest.json").touch()
    assert run("--no-times", "--dataroot", tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"{archive}: " in printed
    assert "drawn by SegStudio, without a cache" in printed
    assert f"{tmp_path / 'coco'}: prepared COCO images" in printed


# ---- the times of the examples ------------------------------------------------------------------


def test_every_example_has_a_time():
    named = set(re.findall(r"\w+\.py", " ".join(example.name for example in doctor.EXAMPLES)))
    helpers = {"coco_folder.py", "side_by_side.py", "small_recipe.py"}
    helpers.add("check_exercise.py")  # its time is that of the answer
    scripts = {path.name for path in (ROOT / "Examples").glob("*.py")}
    runnable = {
        name
        for name in scripts - helpers
        if "run_example" in (ROOT / "Examples" / name).read_text(encoding="utf-8")
    }
    assert runnable <= named
    assert named <= scripts


@pytest.mark.parametrize("example", doctor.EXAMPLES, ids=lambda example: example.name)
def test_the_limits_are_those_of_the_examples(example):
    if example.quick is None:
        return
    text = (ROOT / "Examples" / example.name).read_text(encoding="utf-8")
    found = re.search(r"^QUICK_SECONDS = (\d+)", text, re.MULTILINE)
    if example.name == "classroom_demo.py":
        found = re.search(r"default 150, with --quick (60)", text)
        assert example.full == 150
    elif example.name == "reproduce_homework.py":
        page = (ROOT / "Examples" / "homework_page.py").read_text(encoding="utf-8")
        assert example.quick == 8 * int(re.search(r"^QUICK_SECONDS = (\d+)", page, re.M).group(1))
        return
    assert int(found.group(1)) == example.quick


def test_times_are_iterations_times_seconds():
    example = doctor.Example("a.py", 1, {"strided": 1000, "dense": 10})
    assert doctor.full_seconds(example, {"strided": 0.2, "dense": 0.5, "unet": 9}) == 205
    assert doctor.full_seconds(doctor.Example("b.py", 1, 600), {}) == 600
    assert [doctor.time_in_words(s) for s in (40, 3000, 9000)] == [
        "40 s",
        "50 minutes",
        "2.5 hours",
    ]


def test_the_table_of_times_with_measured_iterations(monkeypatch):
    measured = []

    def measure(net, batch_size, image_size, repeats):
        measured.append((type(net).__name__, batch_size))
        return 0.1, 0

    monkeypatch.setattr(doctor, "measure_iteration", measure)
    small = SimpleNamespace(mUnet=lambda **options: Segmentation.mUnet(depth=2, width=2),
                            UNet=lambda: Segmentation.UNet(width=2, stem=2))  # fmt: skip
    monkeypatch.setattr(doctor, "Segmentation", small)
    lines = list(doctor.describe_times())
    assert measured.count(("mUnet", 4)) == 4
    assert ("UNet", 16) in measured
    (row,) = [line for line in lines if line.startswith("semantic_segmentation.py")]
    assert row.split() == ["semantic_segmentation.py", "120", "s", "25", "minutes"]


# ---- archives -----------------------------------------------------------------------------------


def archive(path, change=None, number=3, kind=dict):
    """An archive in the homework's list format."""
    items = {}
    for index in range(number):
        image, mask, box_map = backstage.draw_shapes(5, index)
        channels = [channel.flatten().tolist() for channel in image]
        items[index] = [*channels, mask, {50 * (k + 1): boxes for k, boxes in box_map.items()}]
    if change is not None:
        change(items)
    items = items if kind is dict else list(items.values())
    path.write_bytes(gzip.compress(pickle.dumps([items, backstage.LABEL_MAP])))
    return path


@pytest.mark.parametrize("kind", [dict, list])
def test_a_whole_archive(tmp_path, capsys, kind):
    archive(tmp_path / "PurdueShapes5MultiObject-3-train.gz", kind=kind)
    assert run("--data", tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"a {kind.__name__} of items; R, G and B as lists, masks as arrays" in printed
    assert "boxes keyed by 50, 100, 150, 200, 250" in printed
    assert "3; the name says 3" in printed
    assert "460 to 475" in printed
    squares = [(backstage.draw_shapes(5, index)[1].astype(float) ** 2).mean() for index in range(3)]
    (row,) = [line for line in printed.splitlines() if line.startswith("mean of mask squared")]
    assert float(row.split()[4]) == pytest.approx(np.mean(squares), abs=0.06)
    assert printed.rstrip().endswith("-3-train.gz is whole.")


def no_boxes(items):
    items[1][4] = {k: [] for k in range(5)}


def moved_box(items):
    boxes = next(boxes for boxes in items[0][4].values() if boxes)
    boxes[0] = [0, 0, 1, 1]


def bad_plane(items):
    items[2][3] = items[2][3].copy()
    items[2][3][0, 0, 0] = 7


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (no_boxes, "3", "item 1: class"),
        (moved_box, "3", "lie outside of its boxes"),
        (bad_plane, "3", "item 2: mask plane 0 has values other than 0 and 50"),
        (lambda items: items[0].pop(), "3", "item 0: it is not a list"),
        (None, "10000", "it has 3 images, and its name says 10000"),
    ],
)
def test_an_archive_that_is_not_whole(tmp_path, capsys, change, name, words):
    path = archive(tmp_path / f"PurdueShapes5MultiObject-{name}-train.gz", change)
    assert run("--data", path) == 1
    printed = capsys.readouterr().out
    assert words in printed
    assert "is NOT whole." in printed


@pytest.mark.parametrize("damage", ["cut", "text", "calls"])
def test_an_archive_that_cannot_be_read(tmp_path, capsys, damage):
    path = archive(tmp_path / "a-3-train.gz")
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "text": b"no archive",
            "calls": gzip.compress(b"cos\nsystem\n(S'true'\ntR."),
        }[damage]
    )
    assert run("--data", path) == 1
    assert "PROBLEM: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_data(tmp_path, capsys, name):
    assert run("--data", tmp_path / name) == 2
    assert "doctor: " in capsys.readouterr().err


# ---- COCO ---------------------------------------------------------------------------------------


def coco(folder, *, images=3, change=None):
    """COCO as it is downloaded: images with one dog of 250x250 each, without content."""
    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    content = {
        "info": {"description": "by hand"},
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(images)],
        "categories": [{"id": k, "name": n} for k, n in ((1, "dog"), (2, "cake"), (3, "cat"))],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 250, 250],
             "segmentation": []}
            for k in range(images)
        ],
    }  # fmt: skip
    # image 1 also has a cake, image 2 a cat
    for image, category in ((1, 2), (2, 3)):
        more = {**content["annotations"][0], "id": 9 + image, "image_id": image}
        content["annotations"].append({**more, "category_id": category})
    for k in range(images):
        (folder / "train2017" / f"{k}.jpg").write_bytes(b"x")
    if change is not None:
        change(content, folder)
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def test_coco_as_it_is_downloaded(tmp_path, capsys):
    coco(tmp_path)
    assert run("--data", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "3 and 5; all of COCO 2017: 118,287 and 860,001" in printed
    assert re.search(r"dog +3 \(category\), 2 \(selected\), 1 \(image\); the homework", printed)
    assert re.search(r"cake +1 \(category\), 0 \(selected\), 0 \(image\); the homework", printed)
    assert "is whole." in printed


def one_file_less(content, folder):
    (folder / "train2017" / "2.jpg").unlink()


def foreign_image(content, folder):
    content["annotations"][0]["image_id"] = 77


def empty_file(content, folder):
    (folder / "train2017" / "0.jpg").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_file_less, "1 of the listed images are not there, first 2.jpg"),
        (foreign_image, "1 annotations name an image that is not listed, first 0"),
        (empty_file, "1 image files are empty, first 0.jpg"),
        (lambda content, folder: content.pop("images"), "it is not an annotation file of COCO"),
        (lambda content, folder: content["images"].append(content["images"][0]), "ids of images"),
        (lambda content, folder: (folder / "train2017").rename(folder / "x"), "there is no folder"),
    ],
)
def test_coco_that_is_not_whole(tmp_path, capsys, change, words):
    coco(tmp_path, change=change)
    assert run("--data", tmp_path) == 1
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_a_prepared_folder(tmp_path, capsys):
    import prepare_coco

    out = tmp_path / "set"
    command = ["--synthetic", "--synthetic-images", "4", "--split", "train", "--out", str(out)]
    prepare_coco.prepare(prepare_coco.parse(command), "train")
    assert run("--data", out) == 0
    printed = capsys.readouterr().out
    assert "synthetic, drawn by SegStudio" in printed
    assert "the homework's report: 1,201" in printed
    masks = [np.asarray(backstage.Image.open(path)) > 0 for path in out.glob("train/masks/*.png")]
    assert f"{np.mean(masks):.1%}, so with masks of 255" in printed
    next(out.glob("train/images/*.png")).write_bytes(b"damaged")
    assert run("--data", out) == 1
    assert "is not the file that was prepared" in capsys.readouterr().out
