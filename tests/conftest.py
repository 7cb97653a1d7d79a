"""What the tests share: a tiny data set, tiny networks, and a place to run them in."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads would only fight
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

from SegStudio import SegStudio, students_code  # noqa: E402 - after the backend is chosen

ROOT = Path(__file__).resolve().parents[1]
for folder in ("Datasets", "Examples"):  # their scripts import each other as siblings
    sys.path.insert(0, str(ROOT / folder))
Segmentation = SegStudio.SemanticSegmentation


class TinyShapes(Dataset):
    """One bright square per image, of the class and at the place that its number says."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star")
    mask_values = (50, 100, 150, 200, 250)

    def __init__(self, number, size=32):
        self.number = number
        self.size = size

    def __len__(self):
        return self.number

    def __getitem__(self, idx):
        if not 0 <= idx < self.number:
            raise IndexError(idx)
        k, side = idx % 5, 6 + idx % 4
        x, y = 2 + (7 * idx) % (self.size - side - 4), 3 + (5 * idx) % (self.size - side - 4)
        image = torch.zeros(3, self.size, self.size)
        image[:, y : y + side, x : x + side] = torch.tensor(
            [200.0 - 20 * k, 55.0 + 40 * k, (37.0 * idx) % 255]
        )[:, None, None]
        mask = torch.zeros(5, self.size, self.size, dtype=torch.uint8)
        mask[k, y : y + side, x : x + side] = self.mask_values[k]
        boxes = torch.zeros(5, 5, 4)
        boxes[0, k] = torch.tensor([x, y, x + side - 1.0, y + side - 1.0])
        return {"image": image, "mask_tensor": mask, "bbox_tensor": boxes}


class Numbered(TinyShapes):
    """Each image holds its own number, so a batch tells which images it has."""

    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        item["image"] = torch.full_like(item["image"], float(idx))
        return item


@pytest.fixture(scope="session")
def tiny_shapes():
    """The class of the tiny data set."""
    return TinyShapes


@pytest.fixture
def experiment(tmp_path):
    """Makes experiments in tmp_path: experiment(train=12, test=8, **settings)."""

    def make(train=12, test=8, **settings):
        settings = {
            "results_dir": tmp_path / "runs", "run_name": "run", "epochs": 1, "seed": 0, **settings
        }  # fmt: skip
        segmenter = Segmentation(dl_studio=SegStudio(**settings), max_num_objects=5)
        train = TinyShapes(train) if isinstance(train, int) else train
        test = TinyShapes(test) if isinstance(test, int) else test
        segmenter.load_PurdueShapes5MultiObject_dataset(train, test)
        return segmenter

    return make


@pytest.fixture
def small_net():
    """Makes networks that a CPU trains in a blink, the same one for the same seed."""

    def make(seed=0, **arguments):
        torch.manual_seed(seed)
        return Segmentation.mUnet(**{"depth": 4, "width": 8, **arguments})

    return make


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """A folder of 20-image archives under the names that DLStudio's scripts ask for."""
    folder = tmp_path_factory.mktemp("archives")
    for seed, name in enumerate(("10000-train", "1000-test", "20-train", "20-test")):
        path = folder / f"PurdueShapes5MultiObject-{name}.gz"
        Segmentation.PurdueShapes5MultiObjectDataset.generate(path, 20, seed=seed)
    return folder


@pytest.fixture(scope="session")
def run_script():
    """Runs a script as a user does, in a folder: run_script(folder, path, *flags) -> process."""

    def run(folder, *command, timeout=170, **variables):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
            "XDG_CACHE_HOME": str(Path(folder) / ".cache"), **variables,
        }  # fmt: skip
        environment.pop("DISPLAY", None)
        return subprocess.run(
            [sys.executable, *map(str, command)], cwd=folder, env=environment, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Students' files are examined by the process of the tests: another takes seconds to start."""

    def run_here(function, arguments, seconds, memory):
        module, _, name = function.partition(":")
        examine = getattr(importlib.import_module(module), name)
        before = set(sys.modules)
        try:
            return students_code.Ending("answer", json.loads(json.dumps(examine(*arguments))))
        except students_code.NotLoaded as error:
            return students_code.Ending("not loaded", text=str(error))
        finally:
            for name in set(sys.modules) - before:  # the student's file
                if Path(arguments[0]).stem == name:
                    del sys.modules[name]

    monkeypatch.setattr(students_code, "run_limited", run_here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])


def train(segmenter, net, loss="MSE", **options):
    return segmenter.custom_run_code_for_training_for_semantic_segmentation(net, loss, **options)


def weights(net):
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


def rows(segmenter):
    with (segmenter.dl_studio.run_dir / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))
