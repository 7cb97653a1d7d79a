"""The homework page: what it shows of run folders, complete, missing or damaged."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from run_folders import GENERATED, example, make_run, metrics_of

from SegStudio.recording import TrainingHistory

homework_page = example("homework_page")

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Checks that every tag is closed, and collects pictures, links and text."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.inputs = [], [], []
        self.targets, self.ids, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        if tag == "input":
            self.inputs.append(attrs)
        self.targets += [attrs[name] for name in ("href", "src", "data", "action") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        assert not any(name.startswith("on") for name in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def read_page(runs):
    return Page(homework_page.make_page(runs))


@pytest.fixture
def runs(tmp_path):
    """A results folder with three experiments on shapes, one of a short schedule, and one COCO."""
    folder = tmp_path / "runs"
    make_run(folder / "mse")
    make_run(folder / "dice", loss="Dice", images=1200, epochs=2)
    make_run(folder / "combined_200", loss="MSE+200*Dice", iou=0.1)
    make_run(
        folder / "coco_mae",
        loss="MAE",
        images=3285,
        classes=("cake", "dog", "motorcycle"),
        source="COCO 2017",
        pictures=("loss", "samples", "test-panel-dog", "worst"),
    )
    return folder


def test_the_experiments_are_the_homeworks():
    numbers = []
    for experiment in homework_page.EXPERIMENTS:
        for number, _, _ in homework_page.figure_files(experiment):
            first, _, last = number.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    assert numbers == list(range(1, 24))  # figures 1 to 23 of the student's report, each once


# ---- what it shows ------------------------------------------------------------------------------


def test_page_shows_the_figures_by_number_with_embedded_pictures(runs):
    path = homework_page.write_page(runs)
    assert path == runs / "homework-page" / "index.html"
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    page = Page(path.read_text(encoding="utf-8"))
    for number in ("1", "2", "3", "4", "5", "6", "11", "12", "13-15"):
        assert f"Figure {number}. " in page.text
    assert len(page.images) == 4 * 4
    for image in page.images:
        assert image["alt"]
        kind, code = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(code).startswith(b"\x89PNG")


def test_every_picture_can_be_enlarged_with_mouse_and_keyboard(runs):
    page = read_page(runs)
    assert len(page.inputs) == len(page.images)
    for box, image in zip(page.inputs, page.images, strict=True):
        assert box == {"type": "checkbox", "aria-label": f"enlarge {image['alt']}"}


def test_page_needs_nothing_from_outside(runs):
    text = homework_page.make_page(runs)
    page = Page(text)
    links = [target for target in page.targets if not target.startswith("data:image/png;base64,")]
    assert links
    assert {link[1:] for link in links} <= set(page.ids)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in text
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text


def test_page_says_schedules_scores_losses_and_what_the_report_saw(runs):
    text = read_page(runs).text
    assert "300-400, falling with fluctuations" in text
    assert "411.5 in epoch 1, 399.2 in epoch 2" in text
    assert "0.012 → 0.200" in text
    assert "10,000 images, 6 epochs, batches of 4: 15,000 of 15,000 iterations" in text
    assert "Figure 1. MSE: training loss (the homework's schedule)." in text
    assert "Figure 3. Dice: training loss (short schedule: 4.0% of the homework's)." in text
    assert "Figure 4. Dice: test batches (short schedule: 4.0% of the homework's)." in text
    assert "torch 2.15" in text


def test_page_explains_itself_in_plain_words(runs):
    text = read_page(runs).text
    assert "Semantic segmentation assigns a class to every pixel." in text
    for score in ("IoU: ", "Dice: ", "Pixel accuracy: ", "Boundary IoU: "):
        assert score in text


def test_generated_shapes_are_called_so(runs):
    assert "generated by SegStudio" not in read_page(runs).text
    make_run(runs / "combined_300", loss="MSE+300*Dice", source=GENERATED)
    text = read_page(runs).text
    assert "The shapes on this page were generated by SegStudio." in text
    assert "Figure 7. MSE + 300 Dice: training loss (shapes generated by SegStudio)." in text
    assert "Figure 1. MSE: training loss (the homework's schedule)." in text


def test_synthetic_sets_are_called_so(runs):
    assert "synthetic" not in read_page(runs).text
    make_run(runs / "coco_dice", loss="Dice", images=3285, source="a SYNTHETIC set")
    text = read_page(runs).text
    assert "images on this page are synthetic." in text
    assert "(synthetic images, not COCO)" in text


def test_a_training_bounded_by_time_says_how_far_it_came(runs):
    make_run(runs / "combined_300", loss="MSE+300*Dice", images=2000, max_seconds=40)
    text = read_page(runs).text
    assert "200 iterations in 0.7 minutes, a training bounded by time" in text
    assert "short schedule: 1.3% of the homework's" in text  # 800 of 60,000 images


def test_other_settings_than_the_homeworks_are_called_so(runs):
    make_run(runs / "combined_300", loss="MSE+300*Dice", depth=8)
    assert "not the homework's recipe: depth 8" in read_page(runs).text


def test_baselines_stand_below_the_scores(runs):
    metrics = metrics_of(0.3, ("cake", "dog", "motorcycle"))
    metrics["baselines"] = {"all foreground": metrics_of(0.288, ("dog",))}
    (runs / "coco_mae" / "metrics.json").write_text(json.dumps(metrics))
    text = read_page(runs).text
    assert re.search(r"all foreground\s*0.288", text)
    assert "baselines that ignore the image" in text


def test_scores_of_an_older_run_that_has_no_boundary_iou(runs):
    metrics = metrics_of(0.3)
    del metrics["boundary_iou"]
    (runs / "mse" / "metrics.json").write_text(json.dumps(metrics))
    assert "Figure 1. " in read_page(runs).text


def test_a_loss_of_one_interval_is_visible_with_all_its_terms(experiment, monkeypatch):
    segmenter = experiment()
    history = TrainingHistory("MSE+200*Dice")
    history.iterations = 25
    history.add(loss=600.0, mse=400.0, dice=200.0)
    figures = []
    monkeypatch.setattr(
        segmenter.dl_studio, "save_figure", lambda figure, _: figures.append(figure)
    )
    segmenter.save_loss_figure(history)
    lines = figures[0].axes[0].lines
    assert len(lines) == 3
    assert all(line.get_marker() not in ("None", "", None) for line in lines)


def test_what_the_test_drew_besides_the_homeworks_figures_is_shown(runs):
    pictures = {
        "predictions-001.png": "truth beside prediction, as scored",
        "confusion.png": "which class is taken for which",
    }
    for name, caption in pictures.items():
        assert caption not in read_page(runs).text
        shutil.copy(runs / "mse" / "worst.png", runs / "mse" / name)
        assert f"MSE: {caption} (the homework's schedule)" in read_page(runs).text


# ---- what is missing or damaged -----------------------------------------------------------------


def test_experiments_without_a_run_are_named_with_the_quick_command_and_its_time(runs):
    text = read_page(runs).text
    assert "takes about 60 seconds" in text
    assert (
        "MSE + 300 Dice: not run yet. "
        "python Examples/reproduce_homework.py --quick --only combined-300"
    ) in text


def test_an_unfinished_run_is_called_so(runs):
    make_run(runs / "combined_300", loss="MSE+300*Dice", iou=None, evaluated=False, pictures=())
    lines = (runs / "combined_300" / "losses.csv").read_text().splitlines()
    (runs / "combined_300" / "losses.csv").write_text("\n".join(lines[:2]))
    text = read_page(runs).text
    assert "training has not finished" in text
    assert "Training or testing has not finished." in text
    assert "Figure 7 is not there yet." in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("settings.json", "{"),
        ("settings.json", "[]"),
        ("settings.json", '{"training": 3}'),
        ("losses.csv", "iteration,loss\n1,abc\n"),
        ("losses.csv", "iteration,loss\n1,2,3,4\n"),
        ("losses.csv", ""),
        ("metrics.json", "7"),
        ("metrics.json", "nonsense"),
        ("metrics.json", '{"mean_iou": 0.1, "classes": {"disk": 3}}'),
        ("loss.png", "not a picture"),
    ],
)
def test_a_damaged_run_is_a_sentence_and_the_others_stay(runs, file, content):
    (runs / "dice" / file).write_text(content)
    text = read_page(runs).text
    assert "Figure 3. " not in text
    assert "Figure 1. " in text
    command = "python Examples/reproduce_homework.py --quick --only dice"
    assert re.search(rf"Dice: .+\. {command}", text)


def test_no_run_at_all_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"reproduce_homework.py --quick"):
        homework_page.write_page(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_comes_from_files_is_escaped(runs):
    folder = make_run(runs / "combined_300", loss=EVIL, classes=(EVIL,), source=EVIL)
    settings = json.loads((folder / "settings.json").read_text())
    settings["machine"]["device"] = settings["settings"]["seed"] = EVIL
    settings["network"]["arguments"]["depth"] = EVIL
    (folder / "settings.json").write_text(json.dumps(settings))
    metrics = metrics_of(0.1, (EVIL,)) | {"images": EVIL, "baselines": {EVIL: metrics_of(0.1)}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "worst.png").rename(folder / 'test-batch-"<b>.png')
    (runs / "dice" / "losses.csv").write_text(f"iteration,loss,epoch\n1,{EVIL},1\n")
    text = homework_page.make_page(runs)
    assert "<script" not in text
    assert "<b>." not in text
    assert text.count("&lt;script&gt;") >= 8
    Page(text)


@pytest.mark.slow
def test_the_script_writes_the_page(run_script, runs, tmp_path):
    script = homework_page.__file__
    process = run_script(tmp_path, script)
    assert process.returncode == 0, process.stderr
    assert "runs/homework-page/index.html" in process.stdout
    process = run_script(tmp_path, script, "--results-dir", "nowhere")
    assert process.returncode == 1
    assert "homework_page.py: error: nowhere holds none" in process.stderr


# ---- in a browser -------------------------------------------------------------------------------

BROWSERS = filter(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(BROWSERS, None)


@pytest.fixture
def browse(tmp_path):
    """browse(*flags): headless Chromium; returns what it prints."""

    def run(*flags):
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path}/profile", *flags,
        ]  # fmt: skip
        return subprocess.run(
            command, check=True, capture_output=True, timeout=120, text=True
        ).stdout

    return run


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 800, 420])
def test_the_page_fits_its_window(runs, browse, tmp_path, width):
    page = homework_page.write_page(runs)
    picture = tmp_path / "page.png"
    browse(f"--window-size={width},900", f"--screenshot={picture}", page.as_uri())
    assert Image.open(picture).width == width
    probe = tmp_path / "probe.html"  # a frame is as narrow as one likes, a window is not
    probe.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" style="border:0" width="{width}" '
        'height="900" onload="let d = this.contentDocument.documentElement;'
        "document.title = d.scrollWidth + ' of ' + d.clientWidth\"></iframe></body>"
    )
    dom = browse("--dump-dom", f"--window-size={width},900", probe.as_uri())
    needed, there = map(int, re.search(r"(\d+) of (\d+)", dom).groups())
    assert there == width
    assert needed <= there


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("window", "enlarged"), [(900, 900), (400, 800)])
def test_a_click_enlarges_a_picture_and_another_click_closes_it(
    runs, browse, tmp_path, window, enlarged
):
    page = homework_page.write_page(runs)
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<body><iframe src="{page.as_uri()}" width="{window}" height="700" onload="'
        "let image = this.contentDocument.querySelector('figure img');"
        "let widths = [image.clientWidth];"
        "for (let k = 0; k < 2; k++) { image.click(); widths.push(image.clientWidth); }"
        "document.title = 'widths ' + widths.join(' ')\"></iframe></body>"
    )
    dom = browse("--dump-dom", "--window-size=1000,800", probe.as_uri())
    before, between, after = map(int, re.search(r"widths (\d+) (\d+) (\d+)", dom).groups())
    assert before == after < 0.6 * enlarged
    assert between == enlarged
