"""grade-models: the saved models of a class become a table; what cannot be scored has a reason."""

import csv
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import Segmentation
from torch.utils.data import DataLoader

from SegStudio import backstage, grade_models
from SegStudio.__main__ import main

ARGUMENTS = {"out_channels": 5, "width": 2, "stem": 2}
SPEC = {
    "class_names": ["rectangle", "triangle", "disk", "oval", "star"],
    "mask_values": [50, 100, 150, 200, 250],
    "logits": True,
    "image_size": [64, 64],
}


def save(path, seed=0, spec=SPEC, change=None, **arguments):
    """Save the weights of a small UNet as training does."""
    torch.manual_seed(seed)
    state = Segmentation.UNet(**ARGUMENTS | arguments).state_dict()
    if change is not None:
        change(state)
    if spec is not None:
        state._metadata[""]["output_spec"] = spec
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def settings(path, network="UNet", arguments=ARGUMENTS):
    path.write_text(json.dumps({"network": {"class": network, "arguments": arguments}}))


def grade(tmp_path, *flags, code=0):
    """The rows of the table, by student, of the command on tmp_path/models."""
    command = ["grade-models", tmp_path / "models", "--csv", tmp_path / "grades.csv"]
    command += ["--seed", "7", "--images", "4", *flags]
    try:
        main([str(part) for part in command])
        ended = 0
    except SystemExit as end:
        ended = end.code
    assert ended == code
    with (tmp_path / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


class Evil:
    def __reduce__(self):
        return open, ("evil.txt", "w")


def test_a_class_of_students(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    save(models / "ada" / "model.pt")
    settings(models / "ada" / "settings.json")
    save(models / "bob.pt", seed=1)
    settings(models / "bob.json")
    save(models / "copycat.pt")  # ada's weights
    settings(models / "copycat.json")
    (models / "empty").mkdir()
    (models / "broken.pt").write_bytes(b"no weights")
    settings(models / "broken.json")
    (models / "evil.pt").write_bytes(pickle.dumps(Evil()))
    settings(models / "evil.json")
    save(models / "unknown.pt")
    save(models / "other.pt")
    settings(models / "other.json", arguments=ARGUMENTS | {"width": 4})
    save(models / "foreign.pt")
    settings(models / "foreign.json", network="MyNet")
    save(models / "huge.pt")
    settings(models / "huge.json", network="mUnet", arguments={"depth": 10**9})
    save(models / "one.pt", spec=SPEC | {"mask_values": [255]}, out_channels=1)
    settings(models / "one.json", arguments=ARGUMENTS | {"out_channels": 1})
    save(models / "nan.pt", change=lambda state: state["stem.0.weight"].fill_(float("nan")))
    settings(models / "nan.json")
    swapped = ["triangle", "rectangle", "disk", "oval", "star"]
    save(models / "swapped.pt", spec=SPEC | {"class_names": swapped})
    settings(models / "swapped.json")
    (models / "notes.txt").write_text("no model")
    rows = grade(tmp_path, code=1)

    assert list(rows) == sorted(rows)
    assert "notes" not in rows
    reasons = {
        "empty": "there is no model.pt",
        "broken": "is not a saved model",
        "evil": "is not a saved model",
        "unknown": "no settings.json beside unknown.pt, and no --network",
        "other": "holds the weights of another network",
        "foreign": "MyNet is not a network of this package",
        "huge": "depth=1000000000, which is out of range",
        "one": "it has 1 output channels, but the shapes have 5 classes",
        "nan": "stem.0.weight has values that are not finite",
        "swapped": "its classes are in another order: triangle, rectangle",
    }
    for student, reason in reasons.items():
        assert reason in rows[student]["reason"], student
        assert rows[student]["mean_iou"] == ""
    assert not (tmp_path / "evil.txt").exists()
    for student in ("ada", "bob", "copycat"):
        assert rows[student]["reason"] == ""
        assert 0 <= float(rows[student]["mean_iou"]) < 0.5
        assert rows[student]["network"] == "UNet(out_channels=5, width=2, stem=2)"
    assert rows["ada"]["mean_iou"] == rows["copycat"]["mean_iou"] != rows["bob"]["mean_iou"]
    assert rows["copycat"]["same_weights_as"] == "ada"
    assert rows["bob"]["same_weights_as"] == ""
    assert "3 of 13 models scored on 4 images" in capsys.readouterr().out


def test_the_scores_are_those_of_the_package(tmp_path):
    save(tmp_path / "models" / "ada.pt")
    row = grade(tmp_path, "--network", "UNet", "--width", "2", code=1)["ada"]
    assert "another network" in row["reason"], "its stem is not 16"
    save(tmp_path / "models" / "ada.pt", stem=16)
    row = grade(tmp_path, "--network", "UNet", "--width", "2")["ada"]
    torch.manual_seed(0)
    net = Segmentation.UNet(width=2)
    net.output_spec = SPEC
    data = grade_models.DrawnShapes(7, 4)
    segmenter = Segmentation(SimpleNamespace(device=torch.device("cpu")), 5)
    expected = segmenter.score(net, DataLoader(data, 4)).compute()
    assert float(row["mean_iou"]) == round(expected["mean_iou"], 4)
    assert float(row["iou_star"]) == round(expected["classes"]["star"]["iou"], 4)
    assert int(row["parameters"]) == sum(p.numel() for p in net.parameters())


def test_dlstudios_files_are_read_by_the_options(tmp_path):
    """A state dict of DLStudio says nothing about its output; its name has no suffix."""
    torch.manual_seed(0)
    net = Segmentation.mUnet(depth=2, width=64)
    (tmp_path / "models").mkdir()
    torch.save(net.state_dict(), tmp_path / "models" / "saved_model")
    row = grade(tmp_path, "--network", "mUnet", "--depth", "2")["saved_model"]
    assert row["network"].startswith("mUnet(skip_connections=True, depth=2, upsampling='strided'")
    segmenter = Segmentation(SimpleNamespace(device=torch.device("cpu")), 5)
    net.output_spec = SPEC | {"logits": False}
    loader = DataLoader(grade_models.DrawnShapes(7, 4), 4)
    expected = segmenter.score(net, loader).compute()["mean_iou"]
    assert float(row["mean_iou"]) == round(expected, 4)


def test_a_file_that_does_not_say_how_it_is_read_is_told_from_one_that_does(tmp_path, capsys):
    save(tmp_path / "models" / "silent.pt", spec=None)
    save(tmp_path / "models" / "clear.pt", seed=1)
    for name in ("silent", "clear"):
        settings(tmp_path / "models" / f"{name}.json")
    read_as = {name: row["read_as"] for name, row in grade(tmp_path).items()}
    assert read_as == {
        "silent": "mask values (assumed: the file does not say)", "clear": "logits"
    }  # fmt: skip
    assert "Files that do not say how their output is read: 1." in capsys.readouterr().out
    read_as = {name: row["read_as"] for name, row in grade(tmp_path, "--logits").items()}
    assert read_as == {"silent": "logits", "clear": "logits"}


def test_the_seed_makes_the_images_and_no_training_has_them():
    one, again, other = (grade_models.DrawnShapes(seed, 2) for seed in (1, 1, 2))
    assert torch.equal(one[1]["image"], again[1]["image"])
    assert not torch.equal(one[1]["image"], other[1]["image"])
    for seed in (1, 2, 3, 1_000_001):  # those of find_or_generate for --seed 1
        image, _, _ = backstage.draw_shapes(seed, 1)
        assert not torch.equal(one[1]["image"], torch.from_numpy(image).float())
    assert one[0]["mask_tensor"].shape == (5, 64, 64)


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        (lambda models: None, [], "there is no folder"),
        (lambda models: models.mkdir(), [], "has no model"),
        (lambda models: save(models / "a.pt"), ["--images", "0"], "--images is 1 or more"),
        (lambda models: save(models / "a.pt"), ["--csv", "none/grades.csv"], "for the table"),
    ],
)
def test_what_cannot_be_graded(tmp_path, capsys, make, flags, words):
    make(tmp_path / "models")
    command = ["grade-models", str(tmp_path / "models"), "--seed", "1", "--images", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--csv", str(tmp_path / "g.csv"), *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
