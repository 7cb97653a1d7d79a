"""The examples as a user runs them: by their command line, in an empty folder."""

import errno
import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from run_folders import example
from side_by_side import first_items, iou_of_image, paint_masks, save_side_by_side

from SegStudio import SegStudio, backstage

EXAMPLES = ROOT / "Examples"
RUN_FILES = {"settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt"}
# Imported by the scripts, not run.
HELPERS = {"side_by_side.py", "small_recipe.py", "coco_folder.py", "export_graph.py"}
FLAGS = {
    "--quick",
    "--epochs",
    "--train-images",
    "--dataroot",
    "--results-dir",
    "--run-name",
    "--seed",
    "--show",
    "--resume",
    "--deterministic",
}
OWN_FLAGS = {  # scripts that do not train take only what they use
    "predict.py": {"--model", "--results-dir", "--run-name"},
    "homework_page.py": {"--results-dir"},
    "compare_losses.py": {"--results-dir", "--run-name", "--show"},
    "explore.py": {"--dataroot", "--out"},
    "check_exercise.py": set(),
}
SCRIPTS = sorted({path.name for path in EXAMPLES.glob("*.py")} - HELPERS)

# The scripts that train on shapes by epochs, with flags that make them as small as they can be.
QUICK = [
    ("semantic_segmentation.py", ["--quick", "--train-images", "20", "--epochs", "1"]),
    ("semantic_segmentation_dice.py", ["--quick", "--train-images", "16", "--epochs", "1"]),
    ("semantic_segmentation_combined.py", ["--quick", "--train-images", "16", "--epochs", "1"]),
    ("semantic_segmentation_dense.py", ["--quick", "--train-images", "16", "--epochs", "1"]),
    ("skip_connections_ablation.py", ["--quick", "--train-images", "16", "--epochs", "1"]),
]


def draw_archives(folder):
    """Small archives under the names of the sets that the examples draw."""
    data = folder / "data" / "PurdueShapes5MultiObject"
    data.mkdir(parents=True)
    draw = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset.generate
    sizes = {"2000-train": 24, "200-test": 24, "1000-test": 24, "500-validation": 100}
    for seed, (name, size) in enumerate(sizes.items()):
        draw(data / f"PurdueShapes5MultiObject-{name}.gz", size, seed=seed)


def count_pixels(path, color, tolerance=12):
    """The number of pixels of a picture that have this colour, "#rrggbb"."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=2) <= tolerance).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags"), QUICK, ids=[script for script, _ in QUICK])
def test_an_example_leaves_data_and_runs_alone(script, flags, tmp_path, run_script):
    if script != "semantic_segmentation.py":  # that one draws its data itself
        draw_archives(tmp_path)
    done = run_script(tmp_path, EXAMPLES / script, *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {".cache"} == {"data", "runs"}
    (run,) = (tmp_path / "runs").glob("[!.]*")
    assert run.stem == script.removesuffix(".py")
    assert {path.name for path in run.rglob("*")} >= RUN_FILES  # the ablation has a folder each
    assert not list(tmp_path.rglob("*.part"))
    log = (run / "log.txt").read_text()
    assert "Next: " in log
    assert set(log.splitlines()) <= set(done.stdout.splitlines())


@pytest.mark.slow
def test_the_first_command_is_bounded_by_time_and_shows_the_flaw(tmp_path, run_script):
    """How good the dense network gets depends on the machine; that it is better does not."""
    text = (EXAMPLES / "semantic_segmentation.py").read_text(encoding="utf-8")
    assert text.count("QUICK_SECONDS = 120\n") == 1
    script = tmp_path / "semantic_segmentation.py"
    script.write_text(text.replace("QUICK_SECONDS = 120\n", "QUICK_SECONDS = 100\n"))
    paths = os.pathsep.join((str(EXAMPLES.parent), str(EXAMPLES)))
    done = run_script(tmp_path, script, "--quick", timeout=400, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "semantic_segmentation"
    metrics = json.loads((run / "metrics.json").read_text())
    strided, dense = metrics["before"]["mean_iou"], metrics["mean_iou"]
    assert strided < 0.25 + 0.05
    assert dense > strided + 0.05
    settings = json.loads((run / "settings.json").read_text())
    assert 2 * settings["training"]["max_seconds"] < 100
    assert done.stdout.count("mean IoU of single images") == 1, "one table"
    for name in ("rectangle", "triangle", "disk", "oval", "star"):
        assert re.search(rf"^{name} .*\d -> 0\.\d", done.stdout, re.MULTILINE)
    assert "three pixels in four" in done.stdout
    for color in SegStudio.PALETTE[:5]:
        assert count_pixels(run / "side_by_side.png", color) > 200
    assert "Next: python Examples/explore.py" in done.stdout
    segmenter = SegStudio.SemanticSegmentation(dl_studio=SegStudio(), max_num_objects=5)
    for folder, upsampling in ((run, "dense"), (run / "strided", "strided")):
        assert segmenter.load_run(folder).arguments["upsampling"] == upsampling


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "loss"),
    [
        ("semantic_segmentation.py", "MSE"),
        ("semantic_segmentation_dice.py", "Dice"),
        ("semantic_segmentation_combined.py", "MSE+200*Dice"),
    ],
)
def test_without_quick_the_settings_are_the_homeworks(script, loss, tmp_path, run_script):
    draw_archives(tmp_path)
    done = run_script(tmp_path, EXAMPLES / script, "--train-images", "8", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("[!.]*")
    facts = json.loads((run / "settings.json").read_text())
    assert facts["network"]["arguments"]["depth"] == 16
    assert facts["network"]["arguments"]["upsampling"] == "strided"
    assert facts["network"]["arguments"]["width"] == 64
    assert facts["network"]["arguments"]["input_scale"] == 1
    training = facts["training"]
    assert training["loss"] == loss
    assert training["optimizer"] == "SGD"
    assert training["parameter_groups"][0]["lr"] == 1e-4
    assert training["parameter_groups"][0]["momentum"] == 0.9
    assert training["batch_size"] == 4
    assert training["images"] == 8, "no image is held out of the training"
    assert training["max_seconds"] is None
    columns = (run / "losses.csv").read_text().splitlines()[0]
    assert "mean_iou" in columns, "scores during training, on validation images"


def test_the_homeworks_numbers_are_the_defaults_of_its_scripts():
    for name in ("", "_dice", "_combined", "_dense"):
        script = runpy.run_path(str(EXAMPLES / f"semantic_segmentation{name}.py"))
        assert script["LEARNING_RATE"] == 1e-4
        assert script["MOMENTUM"] == 0.9
        assert script["BATCH_SIZE"] == 4
        assert script["DEPTH"] == 16


@pytest.mark.slow
def test_dense_shows_both_networks_and_what_they_reach(tmp_path, run_script):
    draw_archives(tmp_path)
    flags = ["--quick", "--train-images", "24", "--epochs", "2"]
    done = run_script(tmp_path, EXAMPLES / "semantic_segmentation_dense.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "strided: 25% of the output pixels" in done.stdout
    assert "dense: 100% of the output pixels" in done.stdout
    run = tmp_path / "runs" / "semantic_segmentation_dense"
    for folder, upsampling in ((run, "dense"), (run / "strided", "strided")):
        facts = json.loads((folder / "settings.json").read_text())
        assert facts["network"]["arguments"]["upsampling"] == upsampling
        assert facts["training"]["loss"] == "MSE"
        assert facts["training"]["images"] == 24
    # 1 + 1/4 of the 2 squares of reach.png are blue, 3/4 orange.
    blue = count_pixels(run / "reach.png", SegStudio.PALETTE[0])
    orange = count_pixels(run / "reach.png", SegStudio.PALETTE[1])
    assert 1.3 < blue / orange < 2
    for color in SegStudio.PALETTE[:5]:  # at least in the row of the true masks
        assert count_pixels(run / "side_by_side.png", color) > 200


@pytest.mark.slow
def test_pixelwise_dice_ends_in_one_sentence(tmp_path, run_script):
    draw_archives(tmp_path)
    flags = ["--form", "pixelwise", "--train-images", "24", "--epochs", "1"]
    done = run_script(tmp_path, EXAMPLES / "semantic_segmentation_dice.py", *flags)
    if done.returncode:  # it is a matter of the first images whether it diverges at once
        assert "Traceback" not in done.stderr
        assert "loss became" in done.stderr
    else:
        assert "Dice loss: -" in done.stdout or "Dice loss: " in done.stdout


@pytest.mark.slow
def test_combined_says_which_term_trains(tmp_path, run_script):
    draw_archives(tmp_path)
    flags = ["--quick", "--train-images", "16", "--epochs", "1", "--dice-scale", "300"]
    done = run_script(tmp_path, EXAMPLES / "semantic_segmentation_combined.py", *flags)
    assert done.returncode == 0, done.stderr
    value, norm = map(float, re.search(r"^300 \* Dice +(\S+) +(\S+)$", done.stdout, re.M).groups())
    assert 0 < value < 600
    assert norm > 0
    assert re.search(r"At the output the gradient of .* times as large", done.stdout)


@pytest.mark.slow
def test_the_ablation_measures_gradients_that_explode_and_vanish(tmp_path, run_script):
    draw_archives(tmp_path)
    flags = ["--quick", "--train-images", "16", "--epochs", "1"]
    done = run_script(tmp_path, EXAMPLES / "skip_connections_ablation.py", *flags)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "skip_connections_ablation"
    results = json.loads((run / "results.json").read_text())
    blocks = {name: found["gradient_by_block"] for name, found in results.items()}
    assert {len(norms) for norms in blocks.values()} == {34}
    for name in ("residual, BatchNorm", "residual, no BatchNorm"):
        assert max(blocks[name]) / min(blocks[name]) < 100
    assert blocks["plain, BatchNorm"][0] > 100 * blocks["plain, BatchNorm"][-1]
    assert min(blocks["plain, no BatchNorm"]) < 1e-9
    for color in SegStudio.PALETTE[:4]:
        assert count_pixels(run / "ablation.png", color) > 100


@pytest.mark.slow
def test_the_ablation_trains_all_networks_for_equally_many_iterations(
    tmp_path, monkeypatch, tiny_shapes
):
    """In the same time a faster network would have more of them: not like with like."""

    def load(self, *_, **__):
        self.load_PurdueShapes5MultiObject_dataset(tiny_shapes(20), tiny_shapes(8))

    ablation = example("skip_connections_ablation")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SegStudio.SemanticSegmentation, "load_shapes", load)
    monkeypatch.setattr(ablation, "QUICK_SECONDS", 1)  # 5 seconds of training are the least
    monkeypatch.setattr("sys.argv", ["skip_connections_ablation.py", "--quick"])
    ablation.main()
    (results,) = tmp_path.glob("runs/*/results.json")
    counts = [found["iterations"] for found in json.loads(results.read_text()).values()]
    assert len(counts) == 4
    assert min(counts) == max(counts) > 0


# ---- Flags --------------------------------------------------------------------------------------


def run_here(script, folder, monkeypatch, *flags):
    """Run an example in this process, which saves the seconds of its imports; its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / script), *flags])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("script", [script for script, _ in QUICK])
@pytest.mark.parametrize("flag", ["--results-dir", "--dataroot"])
def test_a_bad_folder_is_one_sentence(script, flag, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("mine")
    sentence = run_here(script, tmp_path, monkeypatch, "--quick", flag, "a-file/inside")
    assert isinstance(sentence, str), "an error ends with a sentence and not with a traceback"
    assert "\n" not in sentence
    assert "a-file" in sentence
    assert flag in sentence, "it names the flag that helps"
    assert {path.name for path in tmp_path.iterdir()} <= {"a-file", "data"}
    assert (tmp_path / "a-file").read_text() == "mine"


def refuse(number):
    """A function that fails as a file system does, with this number of the errno module."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "disk is full")]
)
@pytest.mark.parametrize("script", ["semantic_segmentation.py", "classroom_demo.py"])
def test_data_that_cannot_be_written_is_one_sentence(script, number, reason, tmp_path, monkeypatch):
    if number == errno.EROFS:
        monkeypatch.setattr(Path, "touch", refuse(number))
    else:
        monkeypatch.setattr(backstage, "draw_shapes", lambda seed, index: (np.zeros(3), 0, {}))
        monkeypatch.setattr(backstage.gzip, "GzipFile", refuse(number))
    sentence = run_here(script, tmp_path, monkeypatch, "--quick", "--dataroot", "new/data")
    assert reason in sentence
    assert "--dataroot" in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.iterdir()), "no folder is left behind"


def test_a_full_disk_while_a_run_is_saved_is_one_sentence(tmp_path, monkeypatch):
    draw_archives(tmp_path)
    monkeypatch.setattr(torch, "save", refuse(errno.ENOSPC))
    flags = ["--quick", "--train-images", "4", "--epochs", "1"]
    sentence = run_here("semantic_segmentation.py", tmp_path, monkeypatch, *flags)
    assert "checkpoint.pt could not be written (the disk is full: make room" in sentence
    assert "--results-dir" in sentence
    assert not list(tmp_path.rglob("*.part"))


def test_torch_reports_a_full_disk_in_its_own_way(tmp_path, monkeypatch):
    def fail(part):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 690240")

    usage = backstage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(backstage.shutil, "disk_usage", lambda folder: usage._replace(free=4096))
    with pytest.raises(OSError, match="the disk is full: make room, or give a folder elsewhere"):
        SegStudio.write_atomically(tmp_path / "model.pt", fail)
    monkeypatch.setattr(backstage.shutil, "disk_usage", lambda folder: usage._replace(free=2**30))
    with pytest.raises(OSError, match="enforce fail"):
        SegStudio.write_atomically(tmp_path / "model.pt", fail)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--train-images", "-5"),
        ("--train-images", "many"),
        ("--epoch-count", "3"),
    ],
    ids=" ".join,
)
def test_a_bad_flag_is_named_and_nothing_is_written(script, flags, tmp_path, monkeypatch, capsys):
    needed = {
        "predict.py": ["photo.jpg", "--model", "run"],
        "explore.py": ["run"],
        "check_exercise.py": ["1", "my_1.py"],
    }
    code = run_here(script, tmp_path, monkeypatch, *needed.get(script, []), *flags)
    said = code if isinstance(code, str) else capsys.readouterr().err.strip().splitlines()[-1]
    assert code != 0
    assert flags[0] in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script",
    [
        "best_coco_segmentation.py",
        "best_segmentation.py",
        "classroom_demo.py",
        "coco_segmentation.py",
    ],
)
@pytest.mark.parametrize("seconds", ["0", "inf", "nan"])
def test_no_time_and_endless_time_are_refused_and_nothing_is_written(
    script, seconds, tmp_path, monkeypatch
):
    sentence = run_here(script, tmp_path, monkeypatch, "--seconds", seconds)
    assert isinstance(sentence, str)
    assert "above 0" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_what_the_example_shows(script, tmp_path, monkeypatch, capsys):
    assert run_here(script, tmp_path, monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert f"python Examples/{script}" in shown
    for flag in OWN_FLAGS.get(script, FLAGS):
        assert flag in shown
    for flag in FLAGS - OWN_FLAGS.get(script, FLAGS):
        assert f"  {flag} " not in shown, "a flag that is ignored is refused"
    assert not list(tmp_path.iterdir())


def test_a_mistake_shows_no_traceback_on_the_command_line(tmp_path, run_script):
    done = run_script(tmp_path, EXAMPLES / "predict.py", "photo.jpg", "--model", "run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("predict.py: error: no image or folder at ")
    assert not {path.name for path in tmp_path.iterdir()} - {".cache"}


# ---- The figure that several examples share -----------------------------------------------------


def test_painted_masks_show_holes_classes_and_overlaps():
    image = torch.full((3, 4, 4), 200.0)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    masks[1, 1, 1] = True
    masks[:, 2, 2] = True
    picture = paint_masks(image, masks)
    assert picture[:, 0, 0].tolist() == [0x00, 0x72, 0xB2]
    assert picture[:, 1, 1].tolist() == [0xE6, 0x9F, 0x00]
    assert picture[:, 2, 2].tolist() == [255, 255, 255]
    assert picture[:, 3, 3].tolist() == [60, 60, 60]


def test_side_by_side_has_a_column_for_each_image_and_a_row_for_each_network(experiment):
    segmenter = experiment()
    batch = first_items(segmenter.dataserver_test, 5)  # one image of each class
    truth = batch["mask_tensor"] > 0
    nothing = torch.zeros_like(truth)
    path = save_side_by_side(
        segmenter, batch, {"right": truth, "empty": nothing}, "both.png", "heading"
    )
    without = save_side_by_side(segmenter, batch, {"empty": nothing}, "one.png", "heading")
    with Image.open(path) as both, Image.open(without) as one:
        assert both.size[1] > one.size[1] + 100
        assert abs(both.size[0] - one.size[0]) < 20
    for color in SegStudio.PALETTE[:5]:
        assert count_pixels(path, color) > count_pixels(without, color) > 100


def test_the_iou_of_an_image_is_said_in_words(experiment):
    segmenter = experiment()
    truth = first_items(segmenter.dataserver_test, 1)["mask_tensor"][0] > 0
    assert iou_of_image(segmenter, truth, truth) == "IoU 1.00"
    assert iou_of_image(segmenter, torch.zeros_like(truth), truth) == "no pixel set"
    half = truth.clone()
    half[:, :, ::2] = False
    assert iou_of_image(segmenter, half, truth) == "IoU 0.50"


BOUNDED = [
    s
    for s in SCRIPTS
    if s != "homework_page.py"  # its constant is that of another script
    and "\nQUICK_SECONDS = " in (EXAMPLES / s).read_text("utf-8")
]


@pytest.mark.parametrize("script", BOUNDED)
def test_the_docstring_states_the_seconds_that_quick_is_limited_to(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    limit = int(re.search(r"^QUICK_SECONDS = (\d+)", text, re.MULTILINE).group(1))
    stated = re.search(r"--quick +# (?:about )?(\d+) s", text)
    assert stated, "the line of --quick in the docstring says how long it takes"
    assert abs(int(stated.group(1)) - limit) <= 0.2 * limit


def test_most_examples_are_bounded_by_time():
    assert len(BOUNDED) >= 10


def test_more_classes_than_the_palette_keep_their_colours_apart(tmp_path):
    """Twenty classes: the saved mask holds their numbers, and no colour stands for two."""
    from predict import save_mask

    names = [f"class {k}" for k in range(20)]
    labels = torch.arange(21, dtype=torch.uint8).reshape(3, 7)
    save_mask(labels, (7, 3), names, tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(mask), labels.numpy())
    assert len(mask.convert("RGB").getcolors()) == 21
    masks = torch.eye(20, dtype=torch.bool).reshape(20, 4, 5)  # one pixel for each class
    colors = paint_masks(torch.zeros(3, 4, 5), masks).flatten(1).T
    assert len({tuple(color.tolist()) for color in colors}) == 20
