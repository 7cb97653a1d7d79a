"""Scores the saved models of a class on shapes that no student has seen.

    python -m SegStudio grade-models models/ --seed 4711 --csv grades.csv

The shapes are drawn from the seed, so keep it secret until the models are handed in. models/ holds
a file for each student, such as models/ada.pt, or the folder of a run, such as models/ada/ with
model.pt and settings.json. settings.json names the network; for a file ada.pt, ada.json or
settings.json beside it does. Without such a file, --network and its options name it.

grades.csv gets a row for each student; for a model that cannot be scored, it has the reason.
Loading a file of weights runs no code from it. The exit code is 0 if all models were scored, 1 if
some were not, 2 if nothing could be graded.
"""

import argparse
import csv
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from SegStudio import SegStudio, backstage

Segmentation = SegStudio.SemanticSegmentation
Shapes = Segmentation.PurdueShapes5MultiObjectDataset

COLUMNS = (
    "student", "mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou", "per_image_mean_iou",
    *(f"iou_{name}" for name in Shapes.class_names),
    "network", "parameters", "read_as", "seconds", "same_weights_as", "reason",
)  # fmt: skip
ASSUMED = "assumed: the file does not say"
SUFFIXES = (".pt", ".pth", "")  # of files with weights; DLStudio's has none: saved_model
# Students train on images from find_or_generate, whose seeds are smaller.
FIRST_SEED = 10**12


def add_command(commands):
    parser = commands.add_parser(
        "grade-models",
        help="score the saved models of a class on new shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", metavar="DIR", help="a file or a run's folder for each student")
    add("--seed", type=int, required=True, metavar="N", help="of the test images; keep it secret")
    add("--csv", required=True, metavar="FILE", help="the table to write")
    add("--images", type=int, default=500, metavar="N", help="test images; default 500")
    add("--network", choices=("mUnet", "UNet"), help="of models without settings.json")
    add("--depth", type=int, default=16, metavar="N", help="of mUnet; default 16")
    add("--width", type=int, metavar="N", help="default: the network's own")
    add("--upsampling", choices=("strided", "dense"), default="strided", help="of mUnet")
    add("--input-scale", type=float, default=1.0, metavar="X", help="of mUnet; default 1")
    add("--no-skip-connections", action="store_true", help="mUnet(skip_connections=False)")
    add("--logits", action="store_true", help="the outputs of these models are logits")
    parser.set_defaults(run=run)


def run(options):
    """Grade the models of the command line; returns the exit code."""
    try:
        models = find_models(Path(options.models).expanduser())
        if options.images < 1 or options.seed < 0:
            raise ValueError("--images is 1 or more and --seed 0 or more")
        table = Path(options.csv).expanduser().absolute()
        if not table.parent.is_dir():  # before the models are scored
            raise FileNotFoundError(f"there is no folder {table.parent} for the table")
        loader = DataLoader(DrawnShapes(options.seed, options.images), batch_size=20)
        rows = grade(models, loader, options)
        backstage.write_atomically(table, lambda part: write_table(part, rows))
    except (OSError, ValueError) as error:
        print(f"python -m SegStudio grade-models: {error}", file=sys.stderr)
        return 2
    scored = [row["mean_iou"] for row in rows if "mean_iou" in row]
    mean = f", their mean IoU {sum(scored) / len(scored):.3f}" if scored else ""
    print(f"{len(scored)} of {len(rows)} models scored on {options.images} images{mean}: {table}")
    assumed = sum(ASSUMED in row.get("read_as", "") for row in rows)
    if assumed:
        print(
            f"Files that do not say how their output is read: {assumed}. They were read as mask "
            f"values, as DLStudio trains. --logits reads them as logits."
        )
    return 0 if len(scored) == len(rows) else 1


def find_models(folder):
    """{student: path of the weights}: the files in a folder, and model.pt of the folders in it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()}")
    models = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            models[path.name] = path / "model.pt"
        elif path.suffix in SUFFIXES and path.name[0] != ".":
            name = path.stem if path.stem not in models else path.name
            models[name] = path
    if not models:
        raise FileNotFoundError(
            f"{folder.absolute()} has no model: give a file NAME.pt or a run's folder for each "
            f"student"
        )
    return models


class DrawnShapes(Dataset):
    """New shapes in memory, with the items of PurdueShapes5MultiObjectDataset."""

    class_names, mask_values, generated = Shapes.class_names, Shapes.mask_values, True

    def __init__(self, seed, number):
        self.items = []
        for index in backstage.progress_bar(range(number), "drawing test images", unit="image"):
            image, mask, _ = backstage.draw_shapes(FIRST_SEED + seed, index)
            self.items.append((torch.from_numpy(image), torch.from_numpy(mask)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        image, mask = self.items[index]
        return {"image": image.float(), "mask_tensor": mask}


def grade(models, loader, options):
    """A row of the table for each model."""
    segmenter = Segmentation(SegStudio(use_gpu=True, batch_size=20), max_num_objects=5)
    rows, owners = [], {}
    for student, path in models.items():
        start = time.perf_counter()
        row = {"student": student}
        try:
            row |= score_model(segmenter, loader, path, options)
            first = owners.setdefault(row.pop("hash"), student)
            if first != student:
                row["same_weights_as"] = first
            result = f"mean IoU {row['mean_iou']:.3f}"
        except Exception as error:  # a handed-in file can be wrong in any way
            row["reason"] = " ".join((str(error) or type(error).__name__).split())
            result = row["reason"]
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows.append(row)
        print(f"{student}: {result}", flush=True)
    return rows


def score_model(segmenter, loader, path, options):
    """The scores of a file with weights and the facts about it.

    Errors: ValueError or OSError, with the reason why it cannot be scored.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name}")
    network, arguments = find_network(path, options)
    net = build(network, arguments)
    # The state dict is compared with the network before any memory is used for its weights.
    state = backstage.read_state_dict(path, net)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite")
    net.to_empty(device="cpu")
    net.load_state_dict(state)
    net.output_spec, known = output_spec_of(state, options)
    read_as = "logits" if net.output_spec["logits"] else "mask values"
    parameters = sum(p.numel() for p in net.parameters())
    found = segmenter.score(net, loader).compute()
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    scores = {name: found[name] for name in COLUMNS[1:6]}
    return {
        **{name: None if value is None else round(value, 4) for name, value in scores.items()},
        **{f"iou_{name}": round(of["iou"] or 0, 4) for name, of in found["classes"].items()},
        "network": f"{network}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})",
        "parameters": parameters,
        "read_as": read_as if known else f"{read_as} ({ASSUMED})",
        "hash": digest.digest(),
    }


def find_network(path, options):
    """(class, arguments) of the network of a file: from a settings file, or from the options."""
    for file in (path.with_suffix(".json"), path.parent / "settings.json"):
        if file.is_file() and file != path:
            return read_settings(file)
    if options.network is None:
        raise ValueError(
            f"there is no settings.json beside {path.name}, and no --network was given: the "
            f"network of these weights is not known"
        )
    width = {} if options.width is None else {"width": options.width}
    if options.network == "UNet":
        return "UNet", width
    return "mUnet", {
        "skip_connections": not options.no_skip_connections,
        "depth": options.depth,
        "upsampling": options.upsampling,
        "input_scale": options.input_scale,
        **width,
    }


def read_settings(file):
    """(class, arguments) that a settings file names; ValueError if it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        network, arguments = content["network"]["class"], content["network"]["arguments"]
        arguments = dict(arguments or {})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged ({error!r})") from None
    return network, arguments


def build(network, arguments):
    """The network without memory for its weights; ValueError if the arguments are impossible."""
    networks = {"mUnet": Segmentation.mUnet, "UNet": Segmentation.UNet}
    if network not in networks:
        raise ValueError(f"{network} is not a network of this package")
    # A hostile settings file must not make a network of a million layers.
    for name, value in arguments.items():
        if not isinstance(value, (bool, int, float, str)) or (
            isinstance(value, int) and value > 1024
        ):
            raise ValueError(f"settings.json has {name}={value!r}, which is out of range")
    try:
        with torch.device("meta"):
            return networks[network](**arguments)
    except TypeError as error:
        raise ValueError(f"settings.json is from another version: {error}") from None


def output_spec_of(state, options):
    """(how the output is read, whether that is known); a file of DLStudio does not say it."""
    standard = {
        "class_names": list(Shapes.class_names),
        "mask_values": list(Shapes.mask_values),
        "logits": options.logits,
        "image_size": [64, 64],
    }
    said = getattr(state, "_metadata", {}).get("", {}).get("output_spec")
    spec = said or standard
    try:
        values = [float(value) for value in spec["mask_values"]]
        names, logits = list(spec["class_names"]), bool(spec["logits"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("its metadata does not say how to read its output") from None
    if len(values) != 5:
        raise ValueError(f"it has {len(values)} output channels, but the shapes have 5 classes")
    if set(names) == set(Shapes.class_names) and names != list(Shapes.class_names):
        raise ValueError(f"its classes are in another order: {', '.join(names)}")
    spec = {**standard, "mask_values": values, "logits": logits or options.logits}
    return spec, bool(said) or options.logits


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
