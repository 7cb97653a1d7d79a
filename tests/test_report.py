"""The homework's page, the scripts that make and compare its runs, read from run folders."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, Segmentation, TinyShapes
from PIL import Image

from SegStudio import SegStudio

Report = SegStudio.HomeworkReport
SCORES = {"iou": 0.2, "dice": 0.3, "pixel_accuracy": 0.9, "boundary_f1": 0.4}
SETTINGS = {"epochs": 6, "learning_rate": 1e-4, "momentum": 0.9, "seed": 0, "image_size": [64, 64]}


def make_run(folder, *, loss="MSE", images=10000, epochs=6, iou=0.2, classes=("disk", "star")):
    """A run folder as training and testing leave it, with small pictures."""
    folder.mkdir(parents=True)
    settings = {
        "command": ["script.py"],
        "settings": SETTINGS | {"epochs": epochs},
        "network": {"class": "mUnet", "arguments": {"depth": 16, "upsampling": "strided"}},
        "training": {
            "loss": loss, "images": images, "batch_size": 4, "optimizer": "SGD",
            "precision": "fp32",
        },
        "data": {"class_names": list(classes), "mask_values": [150, 250]},
        "machine": {"device": "the CPU", "torch": "2.0"},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    last = images * epochs // 4
    (folder / "losses.csv").write_text(
        "iteration,seconds,epoch,loss,mean_iou,mean_dice,boundary_f1\n"
        f"{last // 2},30.0,1,411.5,,,\n{last},60.0,2,399.25,{iou},0.3,0.4\n"
    )
    mean = {f"mean_{k}" if k in ("iou", "dice") else k: v for k, v in SCORES.items()}
    metrics = mean | {"mean_iou": iou, "images": 8, "classes": dict.fromkeys(classes, SCORES)}
    metrics["before"] = metrics | {"mean_iou": 0.0123}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "model.pt").write_bytes(b"weights")
    for name in ("loss", "test-batch-001", "test-batch-051", "worst"):
        Image.new("RGB", (900, 120), "gray").save(folder / f"{name}.png")
    return folder


class Page(HTMLParser):
    """Checks that every tag is closed, and collects pictures, links and text."""

    VOID = {"meta", "img", "br"}
    LOOSE = {"li", "p", "td", "th", "tr"}  # HTML lets their end tags out

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.targets, self.ids, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not [tag for tag in self.open if tag not in self.LOOSE]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.targets += [attrs[k] for k in ("href", "src", "data", "action") if k in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        assert not any(name.startswith("on") for name in attrs)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in self.LOOSE:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def runs(tmp_path):
    """A results folder with three experiments on shapes, one of a short schedule, and one COCO."""
    make_run(tmp_path / "runs" / "mse")
    make_run(tmp_path / "runs" / "dice", loss="Dice", images=1200, epochs=2)
    make_run(tmp_path / "runs" / "combined_200", loss="MSE+200*Dice", iou=0.1)
    coco = make_run(tmp_path / "runs" / "coco_mae", loss="MAE", images=3285, classes=("dog",))
    shutil.copy(coco / "loss.png", coco / "samples.png")
    shutil.copy(coco / "loss.png", coco / "test-panel-dog.png")
    return tmp_path / "runs"


def test_page_shows_the_figures_by_number_with_embedded_pictures(runs):
    path = Report(runs).write()
    assert path == runs / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    for number in ("1", "2", "3", "4", "5", "6", "11", "12", "13-15"):
        assert f"Figure {number}. " in page.text
    assert len(page.images) == 3 * 4 + 4
    for image in page.images:
        assert image["alt"]
        kind, code = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(code).startswith(b"\x89PNG")


def test_page_needs_nothing_from_outside(runs):
    text = Report(runs).page()
    page = Page(text)
    links = [target for target in page.targets if not target.startswith("data:image/png;base64,")]
    assert links
    assert {link[1:] for link in links} <= set(page.ids)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in text
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "@media print" in text
    assert "prefers-color-scheme:dark" in text


def test_page_says_schedules_scores_losses_and_what_the_report_saw(runs):
    text = Page(Report(runs).page()).text
    assert "300-400, falling with fluctuations" in text
    assert "411.5 in epoch 1, 399.2 in epoch 2" in text
    assert "0.012 → 0.200" in text
    assert "10,000 images, 6 epochs, batches of 4: 15,000 of 15,000 iterations" in text
    captions = re.findall(r"Figure [34]\. [^.]*\([^.]*4.0% of the homework's\)", text)
    assert len(captions) == 2
    assert "Figure 1. MSE: training loss (the homework's schedule)." in text
    assert "torch 2.0" in text


def test_experiments_without_a_run_are_named_with_the_command_that_makes_them(runs):
    text = Page(Report(runs).page()).text
    assert "MSE + 300 Dice: not run yet" in text
    assert "reproduce_homework.py --only combined-300" in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("settings.json", "{"),
        ("settings.json", "[]"),
        ("settings.json", '{"training": 3}'),
        ("losses.csv", "iteration,loss\n1,abc\n"),
        ("losses.csv", ""),
        ("metrics.json", "7"),
        ("metrics.json", "nonsense"),
        ("loss.png", "not a picture"),
    ],
)
def test_a_damaged_run_is_a_sentence_and_the_others_stay(runs, file, content):
    (runs / "dice" / file).write_text(content)
    page = Page(Report(runs).page())
    assert "Figure 3. " not in page.text
    assert "Figure 1. " in page.text
    assert re.search(r"Dice: .+ python\s+Examples/reproduce_homework.py --only dice", page.text)


def test_no_run_at_all_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"reproduce_homework.py --quick"):
        Report(tmp_path).write()
    assert not list(tmp_path.iterdir())


def test_what_comes_from_files_is_escaped(runs):
    evil = "<script>alert('x')</script>"
    make_run(runs / "combined_300", loss=evil, classes=(evil,))
    settings = runs / "combined_300" / "settings.json"
    told = json.loads(settings.read_text())
    told["machine"]["device"] = told["settings"]["seed"] = evil
    settings.write_text(json.dumps(told))
    (runs / "combined_300" / "worst.png").rename(runs / "combined_300" / "test-batch-<b>.png")
    text = Report(runs).page()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_report_of_a_real_run(experiment, small_net, tmp_path):
    segmenter = experiment(
        train=16, test=10, batch_size=4, epochs=2, run_name="combined_200", learning_rate=1e-7
    )  # fmt: skip
    net = small_net()
    before = segmenter.score(net)
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net, "Combined", 200, report_every=2, evaluate_every=4, held_out=TinyShapes(5)
    )
    segmenter.run_code_for_testing_semantic_segmentation(net, before=before, show_every=1)
    text = Page(Report(tmp_path / "runs").page()).text
    assert "Figures 5, 6: MSE + 200 Dice" in text
    assert "16 images, 2 epochs, batches of 4: 8 of 8 iterations" in text
    run = Report.read_run(tmp_path / "runs" / "combined_200")
    assert run["per_epoch"] == 4
    assert [row["iteration"] for row in run["rows"] if "mean_iou" in row] == [4, 8]


def test_a_dataset_of_its_own_can_be_held_out(experiment, small_net):
    segmenter = experiment(train=8, batch_size=4)
    history = segmenter.custom_run_code_for_training_for_semantic_segmentation(
        small_net(), evaluate_every=1, held_out=TinyShapes(5), report_every=1
    )
    assert history.iterations == 2  # no image was taken from training
    assert len(history.column("mean_iou")) == 2


# ---- reproduce_homework.py ----------------------------------------------------------------------


def script(name):
    """A script of Examples as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "Examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_main(monkeypatch, tmp_path):
    """run_main(name, *flags): a script's main in tmp_path; returns the sentence it ends with."""
    monkeypatch.chdir(tmp_path)

    def run(name, *flags):
        monkeypatch.setattr("sys.argv", [f"{name}.py", *flags])
        try:
            SegStudio.run_example(script(name).main)
        except SystemExit as end:
            return str(end)
        return ""

    return run


@pytest.fixture
def tiny_homework(monkeypatch, tmp_path):
    """run(epochs): the experiment "mse" on tiny data; returns "done" or "kept"."""

    def load(self, train_images, test_images):
        self.load_PurdueShapes5MultiObject_dataset(TinyShapes(train_images), TinyShapes(200, 16))

    monkeypatch.setattr(Segmentation, "load_shapes", load)
    network = Segmentation.mUnet
    tiny = staticmethod(lambda skip_connections, depth: network(depth=2, width=4))
    monkeypatch.setattr(Segmentation, "mUnet", tiny)
    results = tmp_path / "runs"

    def run(epochs=2, seed=0):
        flags = SimpleNamespace(quick=True, train_images=8, epochs=epochs, seed=seed)
        flags.settings = {"epochs": epochs, "seed": seed, "results_dir": str(results)}
        reproduce = script("reproduce_homework")
        schedule = {"images": 8, "epochs": epochs, "seed": seed} | reproduce.RECIPE
        left = reproduce.what_is_left(results / "mse", schedule)
        if left == "nothing":
            return "kept"
        reproduce.run_shapes(Report.experiments[0], results / "mse", flags, left)
        return "done"

    return run


def test_a_complete_run_is_kept_and_a_longer_one_too(tiny_homework, tmp_path):
    folder = tmp_path / "runs" / "mse"
    assert tiny_homework() == "done"
    model = (folder / "model.pt").stat().st_mtime_ns
    assert "kept" in tiny_homework()
    assert "kept" in tiny_homework(epochs=1)
    assert (folder / "model.pt").stat().st_mtime_ns == model
    assert tiny_homework(epochs=3) == "done"
    assert Report.read_run(folder)["iterations"] == 6


def test_a_run_that_was_not_tested_is_only_tested(tiny_homework, tmp_path):
    folder = tmp_path / "runs" / "mse"
    tiny_homework()
    (folder / "metrics.json").unlink()
    model = (folder / "model.pt").stat().st_mtime_ns
    assert tiny_homework() == "done"
    assert (folder / "metrics.json").exists()
    assert (folder / "model.pt").stat().st_mtime_ns == model


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_homework, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "mse"
    tiny_homework()
    weights = torch.load(folder / "model.pt", weights_only=True)
    shutil.rmtree(folder)
    iterate = Segmentation.TrainingLoop._iterate

    def stop_in_the_second_epoch(loop, batch):
        if loop.epochs_done == 1:
            raise KeyboardInterrupt
        iterate(loop, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Segmentation.TrainingLoop, "_iterate", stop_in_the_second_epoch)
        tiny_homework()
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "metrics.json").exists()
    assert tiny_homework() == "done"
    assert "Resuming after epoch 1" in (folder / "log.txt").read_text()
    again = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_damaged_run_is_not_deleted(tiny_homework, tmp_path):
    folder = make_run(tmp_path / "runs" / "mse")
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="remove that folder"):
        tiny_homework()
    assert (folder / "model.pt").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--only", "mse,nose"], "no experiment 'nose'; it has mse, dice, combined-200"),
        (["--run-name", "x"], "use --results-dir"),
    ],
)
def test_wrong_flags_get_a_sentence(run_main, tmp_path, flags, sentence):
    assert sentence in run_main("reproduce_homework", *flags)
    assert not list(tmp_path.iterdir())


# ---- compare_losses.py --------------------------------------------------------------------------


def test_compare_losses_draws_all_runs_of_the_same_classes(run_main, runs, capsys):
    make_run(runs / "combined_300", loss="MSE+300*Dice", iou=0.3)
    rows = (runs / "mse" / "losses.csv").read_text().splitlines()
    plain = "\n".join(",".join(row.split(",")[:4]) for row in rows)
    (runs / "mse" / "losses.csv").write_text(plain + "\n")
    assert run_main("compare_losses") == ""
    printed = capsys.readouterr().out
    assert "coco_mae has other classes" in printed
    assert printed.index("combined_300 ") < printed.index("combined_200 ")  # the better one first
    assert "test's score alone: mse" in printed
    assert (runs / "compare_losses" / "losses.png").exists()


def test_compare_losses_names_best_and_worst_case(runs, monkeypatch):
    make_run(runs / "combined_300", loss="MSE+300*Dice", iou=0.3)
    compare = script("compare_losses")
    flags = SimpleNamespace(results_dir=runs, runs=["mse", "combined_200", "combined_300"])
    dls = SegStudio(results_dir=runs, run_name="plots")
    figures = []
    monkeypatch.setattr(dls, "save_figure", lambda figure, name: figures.append(figure))
    compare.draw(dls, compare.read_runs(flags))
    curves = {
        line.get_label(): line.get_linestyle()
        for axes in figures[0].subfigs[0].axes
        for line in axes.lines
    }
    assert curves == {
        "mse": "-", "combined_200 (worst case)": "--", "combined_300 (best case)": "-"
    }  # fmt: skip
    iou = figures[0].subfigs[1].axes[0]
    assert iou.get_ylim()[0] == 0
    assert iou.get_ylim()[1] > max(np.max(line.get_ydata()) for line in iou.lines) == 0.3


def test_compare_losses_without_runs_says_how_to_make_them(run_main, tmp_path):
    assert "reproduce_homework.py --quick" in run_main("compare_losses")
    assert "mse holds no run" in run_main("compare_losses", "mse")
    assert not list(tmp_path.iterdir())


# ---- in a browser -------------------------------------------------------------------------------

BROWSERS = filter(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(BROWSERS, None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_its_window(runs, tmp_path, width):
    page = Report(runs).write()
    probe = tmp_path / "probe.html"  # a frame is as narrow as one likes, a window is not
    probe.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" style="border:0" width="{width}" '
        'height="900" onload="let d = this.contentDocument.documentElement;'
        "document.title = d.scrollWidth + ' of ' + d.clientWidth\"></iframe></body>"
    )
    flags = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--hide-scrollbars", "--allow-file-access-from-files", f"--window-size={width},900",
        f"--user-data-dir={tmp_path}/profile",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    command = [*flags, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert Image.open(picture).width == width
    command = [*flags, "--dump-dom", probe.as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout
    needed, there = map(int, re.search(r"(\d+) of (\d+)", dom).groups())
    assert there == width
    assert needed <= there
