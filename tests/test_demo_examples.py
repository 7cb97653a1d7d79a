"""The examples for class, run as a user runs them: what they print, draw, and leave behind."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase, ResizeEvent
from matplotlib.text import Text
from PIL import Image
from run_folders import example
from test_examples import count_pixels, draw_archives

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
demo = example("classroom_demo")


def run(run_script, folder, example, *flags):
    """Runs Examples/<example>.py; returns its output and its run folder, which holds it too."""
    process = run_script(folder, ROOT / "Examples" / f"{example}.py", *flags)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", ".cache"}
    run_dir = folder / "runs" / example
    assert process.stdout.strip().splitlines()[-1] in (run_dir / "log.txt").read_text()
    return process.stdout, run_dir


@pytest.mark.slow
def test_pitfalls_measures_and_draws_all_five(run_script, tmp_path):
    draw_archives(tmp_path)
    text, run_dir = run(run_script, tmp_path, "pitfalls", "--quick", "--train-images", "24")
    assert "strided 25%, dense 100%" in text
    wrong, right = re.search(r"star: (\S+) with shape\[0\], (\S+) with shape\[1\]", text).groups()
    assert float(wrong) == 0 < float(right)
    assert 0 < int(re.search(r"(\d+)% of an untrained network", text)[1]) < 100
    quiet, loud = re.search(r"change (\d+) mask pixels in eval mode, (\d+) in", text).groups()
    assert int(quiet) == 0 < int(loud)
    norms = re.search(r"there: squared Dice (\S+), linear Dice (\S+), BCE (\S+)\n", text).groups()
    squared, linear, bce = map(float, norms)
    assert squared == 0 < linear < bce
    blue, orange = SegStudio.PALETTE[:2]
    for name in ("1-lattice", "2-channel_loop", "3-dice_pole", "5-empty_channels"):
        assert count_pixels(run_dir / f"{name}.png", blue) > 1000
        assert count_pixels(run_dir / f"{name}.png", orange) > 1000
    # A quarter of the strided square and all of the dense one are blue.
    lattice = [count_pixels(run_dir / "1-lattice.png", color) for color in (blue, orange)]
    assert 1.3 < lattice[0] / lattice[1] < 2
    with Image.open(run_dir / "4-missing_eval.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels.max(axis=2) < 20).mean() > 0.2, "five dark images"


@pytest.mark.slow
def test_classroom_demo_ends_in_time_with_a_film_that_loops_and_both_scores(run_script, tmp_path):
    text, run_dir = run(run_script, tmp_path, "classroom_demo", "--seconds", "30")
    settings = json.loads((run_dir / "settings.json").read_text())
    assert 2 * settings["training"]["max_seconds"] < 30
    table = text[text.index("strided -> dense") :]
    assert len(re.findall(r"^\w+ .*\d\.\d{3} -> \d\.\d{3}", table, re.MULTILINE)) == 6
    with Image.open(run_dir / "live.gif") as film:
        assert film.n_frames >= 3  # each network, and the end
        assert film.info["loop"] == 0, "for ever"
        width, height = film.size
        assert width / height == pytest.approx(16 / 9, abs=0.01)
        durations = []
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
        assert durations[-1] >= 10 * durations[0], "the last frame stays"
        film.convert("RGB").save(tmp_path / "last.png")
    for color in (*SegStudio.PALETTE[:5], "#D55E00", "#222222"):  # legend, curves of both networks
        assert count_pixels(tmp_path / "last.png", color, tolerance=40) > 20
    arguments = json.loads((run_dir / "settings.json").read_text())["network"]["arguments"]
    assert arguments["upsampling"] == "dense"
    loaded = torch.load(run_dir / "model.pt", weights_only=True)
    Segmentation.mUnet(**arguments).load_state_dict(loaded)


@pytest.mark.slow
def test_classroom_demo_trains_for_exactly_so_many_iterations(run_script, tmp_path):
    draw_archives(tmp_path)
    text, run_dir = run(
        run_script, tmp_path, "classroom_demo", "--iterations", "5", "--train-images", "24"
    )
    assert text.count("iter=   5 ") == 2
    assert (run_dir / "losses.csv").read_text().splitlines()[-1].startswith("5,")


# ---- the window of the classroom demo -----------------------------------------------------------


@pytest.fixture
def view(experiment):
    """A LiveView without a window, after one report of each network."""
    segmenter = experiment(test=20)
    with plt.rc_context():
        view = demo.LiveView()
        view.begin(segmenter, "iteration", 100)
        net = Segmentation.mUnet(depth=4, width=8)
        history = History([{"iteration": 10, "seconds": 1.0, "loss": 1.5}])
        for name in ("strided", "dense"):
            view.show_network(name, history, net)
        yield view
    plt.close(view.figure)


class History:
    """A TrainingHistory with these rows."""

    def __init__(self, rows):
        self.rows = rows
        self.iterations = rows[-1]["iteration"]


def test_the_window_is_a_slide_that_a_class_can_read(view):
    width, height = view.figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9)
    pixels = width * view.figure.dpi, height * view.figure.dpi
    assert pixels[0] <= 1366, "it fits on a small projector, with the bars of the desktop"
    assert pixels[1] <= 768 - 80
    texts = [text for text in view.figure.findobj(Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 18
    shown = {text.get_text() for text in texts}
    assert shown >= {"rectangle", "triangle", "disk", "oval", "star", "several classes"}
    (legend,) = view.figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 <= box.y0
    assert box.x1 <= pixels[0], "the legend is not cut"


def test_the_text_grows_with_the_window(view):
    def resize(width, height):
        """What a backend does: the figure gets another size at the same resolution."""
        dpi = view.figure.dpi
        view.figure.set_size_inches(width / dpi, height / dpi, forward=False)
        view.on_resize(ResizeEvent("resize_event", view.figure.canvas))

    resize(1800, 1260)
    assert view.figure.get_size_inches().tolist() == pytest.approx([16, 11.2])
    assert view.figure.dpi == pytest.approx(112.5)
    resize(1799, 1260)  # a backend may round
    assert view.figure.dpi == pytest.approx(112.5), "else it would be resized again and again"
    resize(1, 1)  # before a window is on the screen
    assert view.figure.dpi == pytest.approx(112.5)


def test_the_film_keeps_its_shape_if_the_window_has_another_one(view):
    view.figure.set_size_inches(12, 12, forward=False)
    view.draw_frame()
    wide = [np.asarray(frame.convert("L")) for frame in (view.frames[0], view.frames[-1])]
    assert wide[0].shape == wide[1].shape == (540, 960)
    dark = [np.ptp(np.flatnonzero((picture < 8).any(axis=0))) for picture in wide]
    assert dark[1] < 560 < dark[0], "white at both sides, instead of stretched"


def test_a_loss_of_one_interval_is_visible(view):
    for color in demo.COLORS.values():
        curve = [line for line in view.panels["loss"].lines if line.get_color() == color]
        assert len(curve) == 1
        assert curve[0].get_xydata().tolist() == [[10, 1.5]]
        assert curve[0].get_marker() == "o"


def test_the_demo_goes_on_when_the_window_is_closed(view):
    def close():
        """What matplotlib does when the user closes the window."""
        view.on_close(None)
        FigureCanvasBase(view.figure)

    view.has_window = True
    view.figure.canvas.flush_events = close
    frames = len(view.frames)
    view.draw_frame()
    view.draw_frame()
    assert len(view.frames) == frames + 2
    assert not view.has_window


@pytest.mark.slow
def test_the_window_opens_before_the_data_and_asks_to_be_closed(tmp_path, monkeypatch):
    draw_archives(tmp_path)
    monkeypatch.chdir(tmp_path)
    happened = []
    load_shapes = Segmentation.load_shapes

    def load(self, *arguments, **options):
        happened.append("data")
        load_shapes(self, *arguments, **options)

    def show(block=True):
        title = plt.gcf().get_suptitle()
        happened.append((f"window, blocking {block}", title, len(plt.get_fignums())))

    monkeypatch.setattr(Segmentation, "load_shapes", load)
    monkeypatch.setattr(demo, "opens_a_window", lambda figure: True)
    monkeypatch.setattr(plt, "show", show)
    flags = ["--iterations", "3", "--train-images", "24", "--show"]
    monkeypatch.setattr("sys.argv", ["classroom_demo.py", *flags])
    with plt.rc_context():
        SegStudio.run_example(demo.main)
    plt.close("all")
    assert happened == [
        ("window, blocking False", "Preparing the images ...", 1),
        "data",
        ("window, blocking True", "Finished. Close the window to end.", 1),
    ]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seconds", "0"], "--seconds is above 0, not 0"),
        (["--seconds", "nan"], "--seconds is above 0, not nan"),
        (["--seconds", "inf"], "--seconds is above 0, not inf"),
        (["--iterations", "0"], "--iterations is above 0, not 0"),
        (["--iterations", "9", "--seconds", "60"], "give --seconds or --iterations, not both"),
    ],
)
def test_no_training_at_all_is_refused(flags, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["classroom_demo.py", *flags])
    with pytest.raises(SystemExit, match=sentence):
        SegStudio.run_example(demo.main)
    assert not list(tmp_path.iterdir())
