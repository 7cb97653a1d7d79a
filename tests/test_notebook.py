"""The notebook for the lab hour: clean as committed, and executed from first to last cell."""

import base64
import io
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image
from test_docs import SCRIPT, anchors, without_code
from test_examples import draw_archives

from SegStudio import SegStudio, recording

NOTEBOOK = ROOT / "Examples" / "semantic_segmentation.ipynb"
Segmentation = SegStudio.SemanticSegmentation


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def cells(kind):
    return [cell for cell in read_notebook().cells if cell.cell_type == kind]


def source(name):
    """The code or text of the cell with this id."""
    (found,) = [cell.source for cell in read_notebook().cells if cell.id == name]
    return found


# ---- as committed -------------------------------------------------------------------------------


def test_it_is_committed_without_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in cells("code"):
        assert cell.outputs == [], cell.id
        assert cell.execution_count is None, cell.id
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert notebook.metadata.keys() <= {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}, "not the version of one computer"


@pytest.mark.parametrize("cell", cells("code"), ids=lambda cell: cell.id)
def test_a_cell_is_short_and_plain_python(cell):
    compile(cell.source, cell.id, "exec")  # a line of IPython's own syntax would fail
    assert len(cell.source.splitlines()) <= 35


def test_relative_links_exist():
    links = []
    for cell in cells("markdown"):
        links += re.findall(r"\]\(([^)\s]+)\)", without_code(cell.source))
    assert len(links) > 5
    for link in links:
        path, _, anchor = link.partition("#")
        target = NOTEBOOK.parent / path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_commands_name_files_that_exist():
    text = "\n".join(cell.source for cell in cells("markdown"))
    scripts = [script for script, _ in re.findall(SCRIPT, text)]
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_the_dices_by_hand_are_those_of_the_losses():
    text = source("dice-text")
    p = torch.tensor([[[[0.8, 0.2], [0.4, 0.6]]]])
    m = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    for form in ("squared", "linear", "pixelwise"):
        (stated,) = re.findall(rf"^- {form}: .*\*\*(.+)\*\*$", text, re.MULTILINE)
        assert Segmentation.SegmentationLossDice(form=form)(p, m).item() == pytest.approx(
            float(stated), abs=1e-4
        )


def test_on_a_t4_auto_means_fp32(monkeypatch):
    """It has no bf16 in hardware, but torch can emulate it, which is slow."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    t4 = SimpleNamespace(major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: t4)
    assert torch.cuda.is_bf16_supported(), "torch counts emulation"
    assert not recording.use_bf16("auto", torch.device("cuda"))


# ---- the cell that installs ---------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Runs the cell in a folder; returns the commands that it started."""

    def run(folder, repository="", installed=False):
        commands = []
        monkeypatch.chdir(folder)
        monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
        if not installed:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        code = source("install")
        assert code.count('REPOSITORY = ""') == 1
        exec(code.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"'), {})
        return commands

    return run


def test_nothing_is_installed_if_it_is_there(install, tmp_path):
    assert install(tmp_path, installed=True) == []


@pytest.mark.parametrize("folder", [ROOT, ROOT / "Examples"], ids=["root", "Examples"])
def test_it_installs_the_checkout(folder, install):
    assert install(folder) == [[sys.executable, "-m", "pip", "install", "-q", str(ROOT)]]


def test_without_a_checkout_it_clones(install, tmp_path):
    clone, pip = install(tmp_path, repository="https://example.com/segstudio")
    assert clone[:2] == ["git", "clone"]
    assert clone[-2:] == ["https://example.com/segstudio", "segstudio-clone"]
    assert pip[-1] == str(tmp_path / "segstudio-clone")


def test_without_an_address_it_says_what_to_do(install, tmp_path):
    with pytest.raises(SystemExit, match="set REPOSITORY in this cell"):
        install(tmp_path)


# ---- executed -----------------------------------------------------------------------------------

SMALLER = {
    "TRAINING_SECONDS = 90": "TRAINING_SECONDS = 0.5",
    "TRAIN_IMAGES = 2000": "TRAIN_IMAGES = 24",
    "TEST_IMAGES = 200": "TEST_IMAGES = 24",
}
PICTURES = {  # cells with pictures, and how many
    "masks": 1,
    "planes": 1,
    "show-maps": 1,
    "train-strided": 2,
    "test": 1,
    "lattice": 1,
    "train-dense": 2,
    "side-by-side": 1,
    "trained-maps": 1,
    "dice-pictures": 1,
}
ANSWERS = {  # (answer, what the check says), added after the last cell
    "1": [
        (
            "def my_iou(pred, mask):\n"
            "    both = (pred & mask).sum(dim=(0, 2, 3))\n"
            "    return both / (pred | mask).sum(dim=(0, 2, 3))",
            "Exercise 1: right.",
        ),
        (
            "def my_iou(pred, mask):\n    return (pred & mask).sum() / (pred | mask).sum()",
            "Exercise 1: not right yet. The shape is ()",
        ),
        (
            "def my_iou(pred, mask):\n    return (pred == mask).float().mean(dim=(0, 2, 3))",
            "Exercise 1: not right yet.\nyours",
        ),
    ],
    "2": [
        (
            "my_layer = nn.ConvTranspose2d(16, 5, 3, stride=2, padding=1, output_padding=1)",
            "Exercise 2: right. The layer reaches 100%",
        ),
        (
            "my_layer = nn.ConvTranspose2d(16, 5, 3, stride=2, dilation=2, padding=2, "
            "output_padding=1)",
            "Exercise 2: not right yet. The layer reaches 25%",
        ),
        ("my_layer = nn.ConvTranspose2d(16, 5, 3)", "Exercise 2: not right yet. The output is"),
        ("my_layer = nn.ConvTranspose2d(16, 5, 2, stride=2)", "not right yet. It has 325 para"),
    ],
    "3": [
        (
            "def my_iou_loss(output, mask):\n"
            "    q = torch.sigmoid(output)\n"
            "    both = (q * mask).sum(dim=(2, 3))\n"
            "    either = q.sum(dim=(2, 3)) + mask.sum(dim=(2, 3)) - both\n"
            "    return (1 - (both + 1) / (either + 1)).mean()",
            "Exercise 3: right.",
        ),
        (
            "def my_iou_loss(output, mask):\n    return (torch.sigmoid(output) * mask).mean()",
            "Exercise 3: not right yet.",
        ),
        (
            "def my_iou_loss(output, mask):\n    return (output * mask).sum(dim=(2, 3))",
            "Exercise 3: not right yet. The loss is (1, 1), it should be one number.",
        ),
    ],
}


class Client(NotebookClient):
    """A client that counts, for each cell, how often a picture under it was replaced."""

    def process_message(self, message, cell, cell_index):
        if message["msg_type"] == "update_display_data":
            self.replaced[cell.id] = self.replaced.get(cell.id, 0) + 1
        return super().process_message(message, cell, cell_index)


def printed(cell):
    """What a cell printed. A cell that was not executed printed nothing."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell):
    """The pictures under a cell, as arrays (H, W, 3)."""
    data = [output.get("data", {}).get("image/png") for output in cell.outputs]
    opened = [Image.open(io.BytesIO(base64.b64decode(png))) for png in data if png]
    return [np.asarray(picture.convert("RGB")) for picture in opened]


@pytest.mark.slow
def test_it_runs_from_the_first_to_the_last_cell(tmp_path, monkeypatch):
    draw_archives(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        (tmp_path / ".cache" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / ".cache" / name))
    notebook = read_notebook()
    named = {cell.id: cell for cell in notebook.cells}
    for old, new in SMALLER.items():
        assert named["settings"].source.count(old) == 1
        named["settings"].source = named["settings"].source.replace(old, new)
    asked = []  # (number of the exercise, answer, verdict, the cell that checks it)
    for number, answers in ANSWERS.items():
        for answer, verdict in answers:
            code = f"{answer}\n{named[f'check-{number}'].source}"
            notebook.cells.append(nbformat.v4.new_code_cell(code))
            asked.append((verdict, notebook.cells[-1]))
    client = Client(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.replaced = {}
    client.execute()  # an error in a cell is an error here

    for name, number in PICTURES.items():
        shown = pictures(named[name])
        assert len(shown) == number, name
        for picture in shown:
            assert picture.shape[1] > 300, name
            colors = Image.fromarray(picture).getcolors(picture.size)
            assert len(colors) > 20, f"{name} is blank"
            assert (picture < 250).any(axis=2).mean() > 0.05, f"{name} is blank"
    with_pictures = {cell.id for cell in named.values() if "outputs" in cell and pictures(cell)}
    assert with_pictures == PICTURES.keys()
    for name in ("train-strided", "train-dense"):
        assert client.replaced[name] >= 2, "the plot changes while the network trains"
    assert client.replaced.keys() == {"train-strided", "train-dense"}

    assert "image        (3, 64, 64)" in printed(named["item"])
    for name, row in (("scores", r"0\.\d{3}"), ("dense-scores", r"0\.\d{3} -> 0\.\d{3}")):
        table = printed(named[name])
        for label in ("rectangle", "triangle", "disk", "oval", "star", "mean"):
            assert re.search(rf"^{label} +(?:{row} *){{4}}$", table, re.MULTILINE), label
    assert "IoU: the pixels in both" in printed(named["scores"])
    assert "strided: The image reaches 25% " in printed(named["lattice"])
    assert "dense: The image reaches 100% " in printed(named["lattice"])
    # A quarter of the strided square and all of the dense one are blue.
    blue, orange = (
        (np.abs(pictures(named["lattice"])[0] - np.array(color)).max(axis=2) < 12).sum()
        for color in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00))
    )
    assert 1.3 < blue / orange < 2
    assert re.search(r"^squared +0\.\d+ +\S+ +0\.0e\+00 ", printed(named["dice-real"]), re.M)
    for number in "123":
        assert printed(named[f"check-{number}"]) == f"Exercise {number}: not done yet.\n"
    for verdict, cell in asked:
        assert verdict in printed(cell)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"data", "runs", ".cache"}
