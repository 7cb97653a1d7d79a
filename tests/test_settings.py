"""The settings object: its keywords, its device, its folder, and what it writes there."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image

from SegStudio import SegStudio

ROOT = Path(__file__).resolve().parents[1]


def test_dlstudio_keywords_are_attributes():
    given = {
        "dataroot": "./elsewhere", "image_size": [64, 64], "path_saved_model": "./saved_model",
        "momentum": 0.5, "learning_rate": 1e-3, "epochs": 3, "batch_size": 7, "use_gpu": False,
        "debug_train": 1, "debug_test": 2,
    }  # fmt: skip
    dls = SegStudio(classes=("a", "b"), **given)
    assert {name: getattr(dls, name) for name in given} == given
    assert dls.class_labels == ("a", "b")
    assert dls.device == torch.device("cpu")


def test_defaults_are_the_homework():
    dls = SegStudio()
    assert (dls.epochs, dls.batch_size, dls.learning_rate, dls.momentum) == (6, 4, 1e-4, 0.9)
    assert dls.class_labels == ("rectangle", "triangle", "disk", "oval", "star")
    assert (dls.seed, dls.num_workers, dls.results_dir, dls.run_name, dls.show) == (
        None, 0, "runs", None, False,
    )  # fmt: skip


def test_positional_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="keyword arguments only.*'./data'"):
        SegStudio("./data")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("batchsize", "batch_size"), ("lerning_rate", "learning_rate"), ("useGPU", "use_gpu"),
     ("epoch", "epochs"), ("data_root", "dataroot"), ("workers", "num_workers")],
)  # fmt: skip
def test_an_unknown_keyword_is_named_with_the_nearest_valid_one(wrong, right):
    with pytest.raises(ValueError, match=f"'{wrong}'.*did you mean '{right}'"):
        SegStudio(**{wrong: 4})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.5), ("batch_size", None),
        ("epochs", 0), ("epochs", -6), ("epochs", "6"), ("learning_rate", 0),
        ("learning_rate", float("nan")), ("learning_rate", None), ("num_workers", -1),
        ("image_size", [64]), ("image_size", [64, 0]), ("image_size", [64.0, 64]),
        ("image_size", 64), ("run_name", ""),
    ],
)  # fmt: skip
def test_impossible_values_are_one_sentence(name, value):
    with pytest.raises(ValueError, match=f"^{name} is") as caught:
        SegStudio(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("use_gpu", "cuda", "mps", "device"),
    [
        (True, True, True, "cuda:0"), (True, True, False, "cuda:0"), (True, False, True, "mps"),
        (True, False, False, "cpu"), (False, True, True, "cpu"),
    ],
)  # fmt: skip
def test_device(monkeypatch, use_gpu, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(SegStudio(use_gpu=use_gpu).device) == device


def test_deterministic_algorithms_are_asked_for_on_demand(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    SegStudio()
    assert asked == []
    SegStudio(deterministic=True)
    assert asked == [True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_part_of_a_run_has_a_folder_inside_it(experiment):
    segmenter = experiment()
    part = segmenter.part_of_run("strided")
    assert part.dl_studio.run_dir == segmenter.dl_studio.run_dir / "strided"
    assert part.train_dataloader is segmenter.train_dataloader
    inner = part.part_of_run("a").dl_studio.run_dir
    assert inner == segmenter.dl_studio.run_dir / "strided" / "a"


def test_numpys_numbers_are_taken_and_become_pythons():
    dls = SegStudio(
        epochs=np.int64(2), batch_size=np.int32(3), learning_rate=np.float32(0.5),
        image_size=(np.int64(64), 64),
    )  # fmt: skip
    assert (dls.epochs, dls.batch_size, dls.learning_rate) == (2, 3, 0.5)
    numbers = (dls.epochs, dls.batch_size, dls.learning_rate, *dls.image_size)
    assert [type(number) for number in numbers] == [int, int, float, int, int]


def test_a_seed_repeats_the_weights():
    def weights(seed):
        SegStudio(seed=seed)
        return SegStudio.SemanticSegmentation.mUnet(depth=2, width=4).conv_in.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


# ---- the run's folder ---------------------------------------------------------------------------


def test_runs_are_named_after_the_script_and_numbered(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["somewhere/my_script.py", "--quick"])
    names = [SegStudio(results_dir=tmp_path).run_dir.name for _ in range(3)]
    assert names == ["my_script", "my_script-2", "my_script-3"]


def test_a_session_without_a_script_has_a_name_too(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert SegStudio(results_dir=tmp_path).run_dir.name in ("-c", "session")
    monkeypatch.setattr(sys, "argv", [""])
    assert SegStudio(results_dir=tmp_path).run_dir.name == "session"


def test_a_given_name_is_used_as_it_is_and_again(tmp_path):
    first = SegStudio(results_dir=tmp_path, run_name="mine").run_dir
    assert first == tmp_path / "mine"
    assert SegStudio(results_dir=tmp_path, run_name="mine").run_dir == first


def test_nothing_is_made_before_something_is_written(tmp_path):
    SegStudio(results_dir=tmp_path / "runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_name", [None, "mine"])
@pytest.mark.parametrize("way", ["file", "dangling link", "file in the way of the run"])
def test_an_unwritable_results_dir_is_one_sentence(tmp_path, way, run_name):
    results = tmp_path / "results"
    if way == "file":
        results.write_text("mine")
    elif way == "dangling link":
        results.symlink_to(tmp_path / "nowhere" / "at" / "all")
    else:
        if run_name is None:
            pytest.skip("a taken name gets a number")
        results.mkdir()
        (results / run_name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="cannot be written to .*results.*results_dir"):
        SegStudio(results_dir=results, run_name=run_name).log("hello")
    assert sorted(tmp_path.rglob("*")) == before


def test_log_prints_and_keeps(tmp_path, capsys):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.log("first")
    dls.log("sécond")
    assert capsys.readouterr().out == "first\nsécond\n"
    assert (tmp_path / "r" / "log.txt").read_text(encoding="utf-8") == "first\nsécond\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file"
        ),
    ],
)  # noqa: E501
def test_a_full_disk_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old and whole")

    def write(part):
        part.write_bytes(b"ne")
        raise error

    with pytest.raises(OSError, match="model.pt could not be written"):
        SegStudio.write_atomically(path, write)
    assert path.read_bytes() == b"old and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old and whole")

    def write(part):
        part.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SegStudio.write_atomically(path, write)
    assert path.read_bytes() == b"old and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json(tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.write_json("a.json", {"device": torch.device("cpu"), "numbers": [1, 2.5, None]})
    content = json.loads((tmp_path / "r" / "a.json").read_text())
    assert content == {"device": "cpu", "numbers": [1, 2.5, None]}


# ---- figures ------------------------------------------------------------------------------------


def corners(path):
    """The colours of the middle of the left and of the right half of a displayed picture."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    row = pixels[pixels.shape[0] * 2 // 3]
    return row[len(row) // 4].tolist(), row[3 * len(row) // 4].tolist()


def halves(left, right, channels):
    plane = torch.full((8, 8), float(left))
    plane[:, 4:] = right
    return plane if channels is None else plane.expand(channels, 8, 8)


@pytest.mark.parametrize("channels", [3, 1, None])
@pytest.mark.parametrize(("left", "right"), [(-1, 1), (0, 1), (0, 255)])
def test_display_shows_black_to_white(tmp_path, channels, left, right):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(left, right, channels), "black & white")
    (path,) = (tmp_path / "r").glob("*.png")
    assert path.name == "display-001-black-white.png"
    assert corners(path) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_display_takes_integers_from_0_to_255(tmp_path, kind):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(51, 204, 3).to(kind))
    assert corners(tmp_path / "r" / "display-001.png") == ([51] * 3, [204] * 3)


@pytest.mark.parametrize(
    ("left", "right", "shown"),
    [
        (0.2, 0.8, (51, 204)),  # as they are: a dark picture stays dark
        (-0.5, 1.5, (0, 255)),  # clipped
        (-1.0, 1.0, (0, 255)),  # normalized, as in DLStudio
        (-1.0, 0.8, (0, 204)),  # clipped: only exactly -1 to 1 is normalized
    ],
)
def test_display_takes_floats_from_0_to_1(tmp_path, left, right, shown):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(left, right, 3))
    for found, value in zip(corners(tmp_path / "r" / "display-001.png"), shown, strict=True):
        assert found == pytest.approx([value] * 3, abs=1)


def test_display_shows_the_grid_of_dlstudios_test_loop(tmp_path):
    """Its frame of 10 is white, and its images are not divided by anything."""
    images = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    images[0, 0], images[1, 1] = 255, 102
    grid = torchvision.utils.make_grid(images, nrow=2, normalize=True, padding=2, pad_value=10)
    assert grid.max() == 10
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(grid)
    left, right = corners(tmp_path / "r" / "display-001.png")
    assert left == [255, 0, 0]
    assert right == pytest.approx([0, 102, 0], abs=1)


def test_display_brings_what_is_normalized_to_0_to_1(tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    picture = halves(0.2, -0.6, 3).clone()
    picture[:, 0, 0], picture[:, 0, 1] = -1, 1
    dls.display_tensor_as_image(picture)
    left, right = corners(tmp_path / "r" / "display-001.png")
    assert left == pytest.approx([153] * 3, abs=1)
    assert right == pytest.approx([51] * 3, abs=1)


def test_display_stretches_greyscale_from_black_to_white(tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(100, 120, 1).byte())
    assert corners(tmp_path / "r" / "display-001.png") == ([0] * 3, [255] * 3)


def test_display_numbers_its_pictures_and_takes_bytes_and_gradients(tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8))
    dls.display_tensor_as_image(torch.rand(20, 30, requires_grad=True))
    names = sorted(path.name for path in (tmp_path / "r").glob("*.png"))
    assert names == ["display-001.png", "display-002.png"]


def test_display_says_where_the_picture_went(tmp_path, capsys):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(torch.rand(3, 8, 8), "batch 1")
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "r" / "display-001-batch-1.png") in line


@pytest.mark.parametrize("channels", [3, 1, None])
def test_display_shows_true_as_white(tmp_path, channels):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(0, 1, channels).bool())
    assert corners(tmp_path / "r" / "display-001.png") == ([0] * 3, [255] * 3)


def test_display_takes_a_number_as_title(tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(torch.rand(3, 8, 8), 7)
    assert (tmp_path / "r" / "display-001-7.png").exists()


def fake_ipython(monkeypatch, shell):
    """IPython as a notebook has it loaded; returns the list of what it was asked to show."""
    shown = []
    display = types.ModuleType("IPython.display")
    display.display = shown.append
    display.Image = lambda filename: ("image", Path(filename))
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.version_info = (9, 0)  # matplotlib asks for it
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_in_a_notebook_a_displayed_tensor_appears_inline(tmp_path, monkeypatch):
    shown = fake_ipython(monkeypatch, types.SimpleNamespace(kernel=object()))
    dls = SegStudio(results_dir=tmp_path, run_name="r")
    dls.display_tensor_as_image(halves(0.2, 0.8, 3))
    path = tmp_path / "r" / "display-001.png"
    assert shown == [("image", path)]
    assert corners(path) == ([51] * 3, [204] * 3)


def test_in_a_notebook_with_show_a_picture_appears_once(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    shown = fake_ipython(monkeypatch, types.SimpleNamespace(kernel=object()))
    monkeypatch.setattr(plt, "show", lambda: shown.append("by pyplot"))
    monkeypatch.setattr(plt, "figure", Figure)  # pyplot would ask the shell for more
    dls = SegStudio(results_dir=tmp_path, run_name="r", show=True)
    dls.display_tensor_as_image(torch.rand(3, 8, 8))
    assert shown == ["by pyplot"]


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace()], ids=["no shell", "a terminal"])
def test_outside_a_notebook_nothing_is_shown_inline(tmp_path, monkeypatch, shell):
    shown = fake_ipython(monkeypatch, shell)
    SegStudio(results_dir=tmp_path, run_name="r").display_tensor_as_image(torch.rand(3, 8, 8))
    assert shown == []


def test_display_does_not_import_ipython(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            assert not name.startswith("IPython"), "it imports IPython"

    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    SegStudio(results_dir=tmp_path, run_name="r").display_tensor_as_image(torch.rand(3, 8, 8))
    assert (tmp_path / "r" / "display-001.png").exists()


@pytest.mark.parametrize("shape", [(4,), (2, 8, 8), (1, 3, 8, 8), (8, 8, 3)])
def test_display_refuses_other_shapes(tmp_path, shape):
    with pytest.raises(ValueError, match=str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")):
        SegStudio(results_dir=tmp_path).display_tensor_as_image(torch.zeros(shape))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("show", [True, False])
def test_a_window_opens_only_with_show(tmp_path, monkeypatch, show):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    open_before = plt.get_fignums()
    dls = SegStudio(results_dir=tmp_path, run_name="r", show=show)
    dls.display_tensor_as_image(torch.rand(3, 8, 8))
    assert len(shown) == show
    assert plt.get_fignums() == open_before
    assert (tmp_path / "r" / "display-001.png").exists()


@pytest.mark.slow
def test_importing_has_no_side_effects(tmp_path):
    code = (
        "import sys; before = set(sys.modules); from SegStudio import *\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
        "assert isinstance(SegStudio, type)\n"
        "import torch; print(torch.initial_seed(), torch.get_default_dtype())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path),
             "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(tmp_path / "mpl")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "torch.float32"
    assert [path for path in tmp_path.rglob("*") if "mpl" not in str(path)] == []


def test_ctrl_c_outside_of_the_training_says_that_it_interrupted(capsys, monkeypatch):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        SegStudio.run_example(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nscript.py: interrupted\n"
