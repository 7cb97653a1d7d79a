"""The examples on COCO-like data and the prediction, run as a user runs them."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import draw, prepare
from conftest import ROOT
from PIL import Image
from test_examples import count_pixels, draw_archives, run_here

from SegStudio import SegStudio

EXAMPLES = ROOT / "Examples"
Segmentation = SegStudio.SemanticSegmentation


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A small prepared folder: 12 synthetic training and 6 test images."""
    folder = tmp_path_factory.mktemp("coco")
    for split, number in (("train", 12), ("test", 6)):
        images, annotations = draw(folder / "raw", split=split, number=number)
        prepare(images, annotations, folder / "64", split=split)
    return folder / "64"


def run(run_script, folder, example, *flags):
    done = run_script(folder, EXAMPLES / example, *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", ".cache"}
    return done.stdout, folder / "runs" / Path(example).stem


@pytest.mark.slow
def test_coco_segmentation(run_script, coco, tmp_path):
    text, folder = run(
        run_script,
        tmp_path,
        "coco_segmentation.py",
        *("--coco", str(coco), "--epochs", "1", "--loss", "combined"),
    )
    assert "MAE+100*Dice" in text
    assert text.count("mean IoU of single images") == 3  # the network and two baselines
    panels = [folder / f"test-panel-{name}.png" for name in ("cake", "dog", "motorcycle")]
    for picture in (folder / "samples.png", *panels):
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        tinted = pixels[:, :, 2] - pixels[:, :, 0] > 60  # the blue tint of the masks
        assert tinted.sum() > 500, picture
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["classes"]) == ["cake", "dog", "motorcycle"]
    columns = (folder / "losses.csv").read_text().splitlines()[0].split(",")
    assert {"mae", "dice", "grad_norm_mae", "grad_norm_dice"} <= set(columns)
    facts = json.loads((folder / "settings.json").read_text())
    assert facts["training"]["optimizer"] == "SGD"
    assert facts["training"]["parameter_groups"][0]["lr"] == 1e-4
    assert facts["training"]["images"] == 12


@pytest.mark.slow
def test_coco_segmentation_for_a_time(run_script, coco, tmp_path):
    flags = ("--quick", "--seconds", "2", "--coco", str(coco), "--run-name", "coco_segmentation")
    _, folder = run(run_script, tmp_path, "coco_segmentation.py", *flags)
    training = json.loads((folder / "settings.json").read_text())["training"]
    assert training["max_seconds"] == 2
    assert training["loss"] == "MAE"


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--resume",), "--run-name"), (("--resume", "--run-name", "never"), "leave --resume out")],
)
def test_resuming_a_run_that_never_was_is_one_sentence(flags, said, coco, tmp_path, monkeypatch):
    sentence = run_here("coco_segmentation.py", tmp_path, monkeypatch, "--coco", str(coco), *flags)
    assert said in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("starts", ["0", "-1"])
def test_no_initialization_at_all_is_refused(starts, coco, tmp_path, monkeypatch):
    flags = ("--coco", str(coco), "--starts", starts)
    sentence = run_here("coco_exploding_mse.py", tmp_path, monkeypatch, *flags)
    assert "--starts is 1 or more" in sentence
    assert not list(tmp_path.iterdir())


COCO_SCRIPTS = ("coco_segmentation.py", "best_coco_segmentation.py", "coco_exploding_mse.py")


@pytest.mark.parametrize("script", COCO_SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--coco", "{coco}/train"), "give {coco}"),
        (("--coco", "nowhere"), "prepare_coco.py --download"),
        (("--dataroot", "file/data"), "--dataroot"),
        (("--results-dir", "file/runs"), "--results-dir"),
    ],
)
def test_a_bad_coco_folder_is_one_sentence(script, flags, said, coco, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    flags = [flag.format(coco=coco) for flag in flags]
    sentence = run_here(script, tmp_path, monkeypatch, "--quick", *flags)
    assert said.format(coco=coco) in sentence
    assert "\n" not in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_best_coco_prints_one_table_and_one_picture(run_script, coco, tmp_path):
    text, folder = run(
        run_script, tmp_path, "best_coco_segmentation.py", "--seconds", "1", "--coco", str(coco)
    )
    table = text[text.index("1 seconds of training each") :]
    names = ("MAE", "Dice", "MAE+100*Dice", "best", "all foreground", "mean training mask")
    for name in names:
        assert any(line.startswith(f"{name:20}") for line in table.splitlines()), name
    facts = json.loads((folder / "settings.json").read_text())
    assert facts["network"]["class"] == "UNet"
    assert facts["network"]["arguments"]["out_channels"] == 1
    assert facts["training"]["optimizer"] == "Muon and AdamW"
    assert count_pixels(folder / "side_by_side.png", SegStudio.PALETTE[0]) > 500
    for loss in ("mae", "dice", "mae+100-dice"):
        assert (folder / loss / "model.pt").exists()


def test_the_augmentation_moves_image_and_mask_together():
    import best_coco_segmentation

    torch.manual_seed(0)
    masks = torch.zeros(8, 1, 64, 64)
    masks[:, :, 20:40, 10:30] = 1
    images = 255 * masks.expand(-1, 3, -1, -1)
    changed_images, changed_masks = best_coco_segmentation.augment(images, masks)
    assert type(changed_images) is torch.Tensor
    assert set(changed_masks.unique().tolist()) == {0, 1}
    assert (changed_masks != masks).flatten(1).any(dim=1).all(), "all were moved"
    bright = changed_images.mean(dim=1, keepdim=True) > 100
    agree = (bright == (changed_masks > 0)).float().mean()
    assert agree > 0.98
    assert changed_images.max() <= 255


@pytest.mark.slow
def test_best_segmentation(run_script, tmp_path):
    draw_archives(tmp_path)
    text, folder = run(
        run_script, tmp_path, "best_segmentation.py", "--seconds", "1", "--train-images", "24"
    )
    assert "BCE+Dice loss" in text
    assert json.loads((folder / "metrics.json").read_text())["images"] == 24
    facts = json.loads((folder / "settings.json").read_text())
    assert facts["network"]["class"] == "UNet"
    assert facts["training"]["optimizer"] == "Muon and AdamW"


@pytest.mark.slow
def test_coco_exploding_mse_says_which_runs_end_in_inf_and_which_in_nan(run_script, coco, tmp_path):
    text, folder = run(
        run_script, tmp_path, "coco_exploding_mse.py", "--coco", str(coco), "--starts", "1"
    )
    runs = json.loads((folder / "norms.json").read_text())
    assert len(runs) == 10
    for found in runs:
        assert found["end"] in ("finite", "inf", "NaN")
        row = rf"^{re.escape(found['case'])} +{found['loss']} +1 {found['end']} "
        assert re.search(row, text, re.MULTILINE), "table and figure agree"

    def first_gradient(case, loss):
        (norms,) = (
            found["gradient_norms"]
            for found in runs
            if (found["case"], found["loss"]) == (case, loss)
        )
        return norms[0]

    for mask in ("0/255", "0/1"):
        assert first_gradient(f"masks {mask}", "MSE") > 10 * first_gradient(f"masks {mask}", "MAE")
    scaled = first_gradient("masks 0/255, images 0..1", "MSE")
    assert scaled < first_gradient("masks 0/255", "MSE") / 10
    for color in (SegStudio.PALETTE[5], SegStudio.PALETTE[0]):
        assert count_pixels(folder / "norms.png", color) > 100


class Diverging(torch.nn.Module):
    """A network whose output is a parameter times 1, or NaN after its first step."""

    def __init__(self, after):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.after = after
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        factor = self.after if self.steps > 1 else 1.0
        return self.weight * factor * torch.ones(len(x), 1, 4, 4)


@pytest.mark.parametrize(("after", "end"), [(1e30, "inf"), (float("nan"), "NaN"), (1.0, "finite")])
def test_the_end_of_a_run_is_the_first_loss_that_is_not_finite(after, end):
    import coco_exploding_mse as example

    batches = [(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))] * 3
    found = example.train(Diverging(after), "MSE", example.CASES[0], batches, None)
    assert found.end == end
    assert len(found.gradient_norms) == (3 if end == "finite" else 1)


# ---- predict.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders with small networks: two of the shapes, one with a single output channel."""
    folder = tmp_path_factory.mktemp("runs")

    def save(name, net, class_names, mask_values, size):
        dls = SegStudio(results_dir=folder, run_name=name, image_size=size)
        segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
        net.output_spec = {
            "class_names": class_names,
            "mask_values": mask_values,
            "logits": True,
            "image_size": size,
        }
        segmenter.save_model(net)
        network = {"class": type(net).__name__, "arguments": net.arguments}
        dls.write_json("settings.json", {"network": network})

    def constant(net, logits):
        """Make the output the same for all images and pixels: one logit for each class."""
        last = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        torch.nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(logits))
        return net

    torch.manual_seed(0)
    shapes = list(Segmentation.PurdueShapes5MultiObjectDataset.class_names)
    values = [50, 100, 150, 200, 250]
    # Star and disk are both predicted everywhere; the disk with more confidence.
    both = constant(Segmentation.UNet(5, 8, 8), [-1.0, -1.0, 3.0, -1.0, 1.0])
    save("both", both, shapes, values, [64, 64])
    save("one", constant(Segmentation.UNet(1, 8, 8), [2.0]), ["cake", "dog"], [255], [64, 64])
    # As the homework's network: only the pixels of even rows and columns can be predicted.
    strided = Segmentation.mUnet(depth=4, width=8, out_channels=1)
    with torch.no_grad():
        strided.conv_out.weight.fill_(1000)
        strided.conv_out.bias.fill_(-2)
    save("strided", strided, ["cake", "dog"], [255], [64, 64])
    save("nothing", constant(Segmentation.UNet(1, 8, 8), [-2.0]), ["cake", "dog"], [255], [64, 64])
    return folder


def predict(run_script, folder, *arguments):
    return run(run_script, folder, "predict.py", *arguments)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    for mode, name in (("RGB", "a.png"), ("L", "b.jpg"), ("P", "c.gif"), ("RGBA", "d.webp")):
        Image.fromarray(pixels).convert(mode).save(folder / name)
    return folder


@pytest.mark.slow
def test_predict_writes_what_its_docstring_says(run_script, runs, photos, tmp_path):
    text, folder = predict(run_script, tmp_path, str(photos), "--model", str(runs / "both"))
    objects = json.loads((folder / "predictions.json").read_text())
    assert len(objects) == 4
    for found in objects.values():
        # The classes overlap everywhere; each pixel goes to the more confident one.
        assert found == [{"class": "disk", "box": [0, 0, 89, 49], "area": 4500}]
    for number, stem in enumerate("abcd", start=1):
        with Image.open(folder / f"{number:03d}-{stem}-mask.png") as mask:
            assert mask.size == (90, 50)
            assert set(np.asarray(mask).ravel()) == {3}
            assert mask.convert("RGB").getpixel((0, 0)) == (0x00, 0x9E, 0x73)
        overlay = folder / f"{number:03d}-{stem}-overlay.png"
        assert count_pixels(overlay, SegStudio.PALETTE[2]) > 100  # the box and the legend
    assert "its masks of a photo mean nothing" in text


@pytest.mark.slow
def test_predict_says_object_where_the_network_names_no_class(run_script, runs, photos, tmp_path):
    photo = str(photos / "a.png")
    text, folder = predict(run_script, tmp_path, photo, photo, "--model", str(runs / "one"))
    (found,) = json.loads((folder / "predictions.json").read_text()).values()
    assert found == [{"class": "object", "box": [0, 0, 89, 49], "area": 4500}]
    assert "mean nothing" not in text


@pytest.mark.slow
def test_predict_finds_the_objects_in_the_dotted_masks_of_a_strided_network(
    run_script, runs, photos, tmp_path
):
    """Each predicted pixel stands alone, and was left out as too small to be an object."""
    text, folder = predict(
        run_script, tmp_path, str(photos / "a.png"), "--model", str(runs / "strided")
    )
    with Image.open(folder / "001-a-mask.png") as opened:
        predicted = (np.asarray(opened) > 0).sum()
    assert 100 < predicted < 90 * 50 / 3, "dotted"
    assert "only one pixel in four can be predicted" in text
    assert "nothing found" not in text
    (found,) = json.loads((folder / "predictions.json").read_text()).values()
    assert 0.5 * predicted < sum(thing["area"] for thing in found) < 1.5 * predicted


def test_predict_connects_the_dots_of_one_object_but_not_of_two():
    import predict as example

    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[8:24:2, 8:24:2] = 1
    labels[40:50:2, 8:24:2] = 1
    assert example.find_objects(labels, ["dog"], (64, 64)) == []
    assert example.find_objects(labels, ["dog"], (64, 64), dotted=True) == [
        {"class": "dog", "box": [8, 8, 22, 22], "area": 64},
        {"class": "dog", "box": [8, 40, 22, 48], "area": 40},
    ]


@pytest.mark.slow
def test_predict_says_that_nothing_was_found(run_script, runs, photos, tmp_path):
    text, _ = predict(run_script, tmp_path, str(photos / "a.png"), "--model", str(runs / "nothing"))
    assert "nothing found" in text


@pytest.mark.slow
def test_predict_leaves_out_what_is_no_image_and_says_so(run_script, runs, photos, tmp_path):
    (photos / "broken.png").write_text("no image")
    done = run_script(tmp_path, EXAMPLES / "predict.py", str(photos), "--model", str(runs / "one"))
    assert done.returncode == 1
    assert "1 of 5 files could not be read as images" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "runs" / "predict"
    assert len(json.loads((folder / "predictions.json").read_text())) == 4


def test_predict_finds_each_file_once(photos):
    import predict as example

    found = example.find_images([photos / "a.png", photos, photos / "a.png"])
    assert [path.name for path in found] == ["a.png", "b.jpg", "c.gif", "d.webp"]


def test_predict_takes_image_files_from_a_folder_and_nothing_else(photos):
    import predict as example

    (photos / "._a.png").write_bytes(b"what macOS writes beside a.png on a stick")
    (photos / "folder.png").mkdir()
    (photos / "notes.txt").write_text("mine")
    found = example.find_images([photos])
    assert [path.name for path in found] == ["a.png", "b.jpg", "c.gif", "d.webp"]


def gray_picture(values):
    """A Pillow image of one row of 8-bit gray values."""
    return Image.fromarray(np.array([values], np.uint8))


def colour_picture():
    return Image.new("RGB", (4, 2), (200, 40, 90))


def save_palette(path):
    picture = colour_picture().quantize(4)
    picture.save(path, transparency=bytes([255, 128, 0, 0]))  # one colour is used, and opaque


def save_transparent(path):
    """The left half is opaque; the right half is transparent, with black below."""
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[:, :2] = (200, 40, 90, 255)
    Image.fromarray(pixels).save(path)


def save_turned(path, exif=None):
    """Stored lying on its side: 4x2 pixels with a white left column, which is the top."""
    picture = colour_picture()
    picture.paste((255, 255, 255), (0, 0, 1, 2))
    if exif is None:
        exif = Image.Exif()
        exif[0x0112] = 6
    picture.save(path, exif=exif)


COLOUR, WHITE = (200, 40, 90), (255, 255, 255)
ODD_PICTURES = {  # what is saved, and the rows of pixels that are read
    "gray16.png": (
        lambda path: Image.fromarray(np.array([[0, 60 * 256 + 9, 65535]], np.uint16)).save(path),
        [[(0, 0, 0), (60, 60, 60), WHITE]],
    ),
    "gray32.tif": (
        lambda path: Image.fromarray(np.array([[-5, 60 * 256, 10**6]], np.int32)).save(path),
        [[(0, 0, 0), (60, 60, 60), WHITE]],
    ),
    "float.tif": (
        lambda path: Image.fromarray(np.array([[0, 0.5, 3]], np.float32)).save(path),
        [[(0, 0, 0), (127, 127, 127), WHITE]],
    ),
    "gray.png": (lambda path: gray_picture([0, 60, 255]).save(path),
                 [[(0, 0, 0), (60, 60, 60), WHITE]]),
    "one-bit.png": (lambda path: gray_picture([0, 255]).convert("1").save(path),
                    [[(0, 0, 0), WHITE]]),
    "cmyk.tif": (lambda path: colour_picture().convert("CMYK").save(path), [[COLOUR] * 4] * 2),
    "palette.png": (save_palette, [[COLOUR] * 4] * 2),
    "transparent.png": (save_transparent, [[COLOUR] * 2 + [WHITE] * 2] * 2),
    "gray-alpha.png": (
        lambda path: Image.fromarray(np.array([[[60, 255], [60, 0]]], np.uint8), "LA").save(path),
        [[(60, 60, 60), WHITE]],
    ),
    "moving.gif": (
        lambda path: colour_picture().save(
            path, save_all=True, append_images=[Image.new("RGB", (4, 2), "white")]
        ),
        [[COLOUR] * 4] * 2,
    ),
    "of-a-phone.jpg": (  # MPO: a photo and a second picture, such as its depth
        lambda path: colour_picture().save(
            path, "MPO", save_all=True, append_images=[colour_picture()], quality=100
        ),
        [[COLOUR] * 4] * 2,
    ),
    "turned.png": (save_turned, [[WHITE] * 2] + [[COLOUR] * 2] * 3),
    "damaged-exif.png": (
        lambda path: save_turned(path, exif=b"Exif\0\0garbage"),
        [[WHITE] + [COLOUR] * 3] * 2,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD_PICTURES)
def test_predict_reads_odd_pictures_as_a_viewer_shows_them(name, tmp_path):
    import predict as example

    save, expected = ODD_PICTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Pillow's fromarray(mode)
        save(tmp_path / name)
    image = example.read_image(tmp_path / name)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == (len(expected), len(expected[0]), 3)
    assert np.abs(pixels - np.array(expected)).max() <= 2


def test_predict_runs_no_program_for_a_picture(tmp_path, monkeypatch):
    """Pillow goes by the content of a file, and hands PostScript to Ghostscript."""
    import predict as example
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    colour_picture().save(tmp_path / "photo.eps")
    (tmp_path / "photo.eps").rename(tmp_path / "photo.jpg")
    with pytest.raises(OSError, match="cannot identify image file"):
        example.read_image(tmp_path / "photo.jpg")
    assert started == []


def test_predict_works_at_the_size_of_the_network_whatever_the_size_of_the_photo(runs):
    """At the photo's own size, twelve megapixels took 12 seconds and 0.9 GB."""
    import predict as example

    segmenter = Segmentation(dl_studio=SegStudio(), max_num_objects=5)
    net = segmenter.load_run(runs / "both")
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    labels = example.predict_labels(segmenter, net, Image.new("RGB", (4000, 3000)))
    assert seen == [(1, 3, 64, 64)]
    assert labels.shape == (64, 64)
    assert labels.dtype == torch.uint8
    assert labels.unique().tolist() == [3], "disk, the more confident one, and not star"


@pytest.mark.slow
def test_predict_takes_names_that_are_long_or_not_of_this_terminal(runs, tmp_path):
    """The terminal has ASCII only; one name is not even text."""
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["\u5199" * 80 + ".png", "gr\u00f6\u00dfe $x$.png", os.fsdecode(b"latin-\xe9.png")]
    for name in names:
        try:
            Image.new("RGB", (9, 9)).save(folder / name, "PNG")
        except OSError:  # some file systems refuse what is no text
            names.remove(name)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "predict.py", folder, "--model", runs / "one"],
        cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/predict"
    found = json.loads((run / "predictions.json").read_text())
    assert sorted(found) == sorted(str(folder / name) for name in names)
    assert len(list(run.glob("*-overlay.png"))) == len(list(run.glob("*-mask.png"))) == len(names)
    assert (run / "log.txt").read_text(encoding="utf-8").count(": object [0, 0, 8, 8]") == len(
        names
    )


def test_predict_summarises_many_objects():
    import predict as example

    few = [{"class": "disk", "box": [0, 0, 3, 3]}] * 2
    assert example.describe(few) == "disk [0, 0, 3, 3], disk [0, 0, 3, 3]"
    many = few * 4 + [{"class": "star", "box": [0, 0, 3, 3]}]
    assert example.describe(many) == "9 objects: 8 disk, 1 star (boxes in predictions.json)"
    assert example.describe([]) == "nothing found"


def test_predict_scales_boxes_to_the_image():
    import predict as example

    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[0:8, 16:32] = 2
    (found,) = example.find_objects(labels, ["disk", "star"], size=(640, 320))
    assert found == {"class": "star", "box": [160, 0, 319, 39], "area": 160 * 40}


@pytest.mark.parametrize("size", [(640, 320), (10, 7), (1, 1), (3000, 2), (2, 3000)])
def test_predict_gives_boxes_inside_an_image_of_any_size(size):
    import predict as example

    rng = np.random.default_rng(0)
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    for _ in range(12):
        y, x, height, width = rng.integers((0, 0, 2, 2), (62, 62, 9, 9))
        labels[y : y + height, x : x + width] = 1
    found = example.find_objects(labels, ["disk"], size)
    assert found
    for thing in found:
        x1, y1, x2, y2 = thing["box"]
        assert 0 <= x1 <= x2 < size[0]
        assert 0 <= y1 <= y2 < size[1]
        assert 1 <= thing["area"] <= size[0] * size[1]


def load_run(tmp_path, folder):
    """An in-process call of load_run, where predict.py's mistakes come from."""
    dls = SegStudio(results_dir=tmp_path / "runs", run_name="p")
    return Segmentation(dl_studio=dls, max_num_objects=5).load_run(folder)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="settings.json"):
        load_run(tmp_path, tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"network": 3}'])
def test_a_damaged_run(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        load_run(tmp_path, tmp_path)


def test_a_network_of_ones_own_is_named(tmp_path):
    facts = {"network": {"class": "MyNet", "arguments": None}}
    (tmp_path / "settings.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="MyNet"):
        load_run(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.png"], "missing.png"),
        (["empty"], "no image (.bmp .gif .jpeg"),
        (["a.png"], "Give the folder that an example wrote"),
    ],
)
def test_predict_without_an_image_or_a_run(arguments, reason, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    sentence = run_here("predict.py", tmp_path, monkeypatch, *arguments, "--model", "a.png")
    assert reason in sentence
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "a.png"}
