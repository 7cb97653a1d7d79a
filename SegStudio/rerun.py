"""`python -m SegStudio rerun runs/NAME`: run a recorded command again and compare the results."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from SegStudio import backstage


def add_command(commands):
    """Add `rerun` to the commands of `python -m SegStudio`."""
    rerun = commands.add_parser("rerun", help="repeat a run and say whether the result is the same")
    rerun.add_argument("folder", type=Path, help="of a finished run, such as runs/mse")
    rerun.set_defaults(run=run)


def run(options):
    """The exit code of the command."""
    try:
        return repeat(options.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"python -m SegStudio rerun: {error}")


def repeat(run):
    """Repeat a run in the folder NAME-rerun; 0 if the results are the same, else 1.

    Errors: FileNotFoundError for a folder that is not a run, ValueError for a run that cannot be
    repeated.
    """
    run = run.expanduser().absolute()
    facts = read_facts(run)
    command, folder = facts["command"], Path(facts["folder"])
    if not (folder / command[0]).is_file() or "ipykernel" in command[0]:
        raise ValueError(f"{run} was not made by a script that can run again: {command[0]}")
    if facts["settings"]["seed"] is None:
        raise ValueError(
            f"{run} has no seed, so its random numbers are not known: give seed= a number"
        )
    copy = run.with_name(f"{run.name}-rerun")
    if copy.exists():
        print(f"{copy} has an earlier repetition. It is now {backstage.move_aside(copy)}.")
    print(f"Running again, in {folder}: {' '.join(command)}", flush=True)
    environment = os.environ | {backstage.RERUN: str(run)}
    code = subprocess.run([sys.executable, *command], cwd=folder, env=environment).returncode
    if code != 0:
        raise ValueError(f"the command ended with exit code {code}: see the lines above")
    return compare(run, copy)


def read_facts(run):
    """The settings.json of a run, or of one of its parts."""
    parts = sorted(path.parent for path in run.glob("*/settings.json"))
    folders = [folder for folder in (run, *parts) if (folder / "settings.json").exists()]
    folder = (folders or [run])[0]
    facts = backstage.read_settings(folder)
    if "folder" not in facts:
        raise ValueError(f"{folder} is from version 2.1 or older, which did not record the folder")
    return facts


def compare(run, copy):
    """Print for each result of `run` whether `copy` has the same; 0 if all are the same, else 1."""
    readers = {"model.pt": read_weights, "losses.csv": read_losses, "metrics.json": read_json}
    paths = [path for path in sorted(run.rglob("*")) if path.name in readers]
    different = 0
    for path in paths:
        name = path.relative_to(run)
        if not (copy / name).exists():
            text = "missing"
        else:
            first, second = readers[path.name](path), readers[path.name](copy / name)
            text = describe_difference(first, second)
        different += text != "the same"
        print(f"{name}: {text}")
    if different:
        print_differences_of_machines(run, copy)
    print(f"{copy}: {'other results' if different else 'the same results, bit for bit'}")
    return 1 if different else 0


def print_differences_of_machines(run, copy):
    """Name what else may be the cause: another number of threads, another version of torch."""
    first, second = (
        next((backstage.read_settings(f.parent) for f in sorted(folder.rglob("settings.json"))), {})
        for folder in (run, copy)
    )
    for name, value in first.get("machine", {}).items():
        other = second.get("machine", {}).get(name)
        if other != value:
            print(f"{name} was {value} and is {other} now: that alone can change the result")


def read_weights(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def read_json(path):
    return flatten(json.loads(path.read_text(encoding="utf-8")))


def flatten(value, name=""):
    """{path of names: number or text} of nested dicts and lists."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in flatten(part, f"{name}/{key}").items()}
    return {name: value}


def read_losses(path):
    """{row/column: number} without the column of seconds, which differs each time."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            f"row {number}, {column}": float(text)
            for number, row in enumerate(csv.DictReader(file), start=1)
            for column, text in row.items()
            if text and column != "seconds"
        }


def describe_difference(first, second):
    """ "the same", or the largest difference of two dicts of numbers or tensors."""
    if list(first) != list(second):
        return f"other entries ({len(first)} and {len(second)})"
    largest, where = 0.0, None
    for name, value in first.items():
        other = second[name]
        if isinstance(value, torch.Tensor):
            if not torch.equal(value, other):
                difference = (value.double() - other.double()).abs().max().item()
                largest, where = max((largest, where or name), (difference, name))
        elif value != other:
            numbers = all(isinstance(v, (int, float)) for v in (value, other))
            difference = abs(value - other) if numbers else float("inf")
            largest, where = max((largest, where or name), (difference, name))
    return "the same" if where is None else f"differs by up to {largest:.3g} ({where})"
