"""Finds the prepared COCO images that a COCO example trains on, or draws a synthetic set."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from SegStudio import backstage

DATASETS = Path(__file__).resolve().parents[1] / "Datasets"
SPLITS = ("train", "test")


def find_or_draw_coco(folder, dls):
    """The Path of a folder that Datasets/prepare_coco.py wrote, with train/ and test/ in it.

    `folder` is the value of --coco. None means a synthetic set in the data folder,
    which is drawn once, by prepare_coco.py. Scores on it are not scores on COCO.

    Errors: FileNotFoundError and ValueError say how to prepare the folder; OSError if the
    synthetic set could not be drawn. None of them leaves a new folder behind.
    """
    size = dls.image_size[0]
    if size % 8:
        raise ValueError(f"--image-size is {size}; the networks need a multiple of 8")
    if folder is not None:
        folder = Path(folder).expanduser()
        if not is_prepared(folder):
            raise explain(folder, size)
        refuse_different_classes(folder)
        return folder
    backstage.prepare_results_dir(dls)  # before half a minute of drawing
    folder = Path(dls.dataroot).expanduser() / folder_name("synthetic-coco", size)
    if not (is_prepared(folder) and has_single_objects(folder)):
        draw(folder, size)
    dls.log(f"No --coco folder was given: {folder} is a SYNTHETIC set in COCO's format, not COCO.")
    return folder


def folder_name(name, size):
    """The name that the documentation uses; sets of other sizes stand beside it."""
    return name if size == 64 else f"{name}-{size}"


def draw(folder, size):
    sys.path.append(str(DATASETS))
    import prepare_coco  # only here: who has COCO's images does not need pycocotools

    print(f"Drawing a synthetic set, once, in {folder} (about a minute).", flush=True)
    options = prepare_coco.parse(
        ["--synthetic", "--split", "both", "--image-size", str(size), "--out", str(folder)]
    )
    try:
        for split in SPLITS:
            prepare_coco.prepare(options, split)
    except OSError as error:
        advice = ": make room there, or give another folder by --dataroot"
        if "--dataroot" in str(error):  # of a full disk
            advice = ""
        raise OSError(f"the synthetic set could not be drawn: {error}{advice}") from error


def is_prepared(folder):
    return all((folder / split / "manifest.json").is_file() for split in SPLITS)


def has_single_objects(folder):
    """Whether no photo is in the set twice. Earlier versions drew such sets."""
    return options_of(folder, "single_instance") == ["selected"] * len(SPLITS)


def refuse_different_classes(folder):
    """ValueError if the splits have other classes: class 0 would have two meanings."""
    train, test = options_of(folder, "classes") or (None, None)
    if train != test:
        raise ValueError(
            f"{folder} holds the classes {train} in train and {test} in test: prepare both with "
            f"the same --classes"
        )


def options_of(folder, name):
    """The values of an option of prepare_coco.py for train and test; None if damaged."""
    try:
        manifests = [
            json.loads((folder / split / "manifest.json").read_bytes()) for split in SPLITS
        ]
        return [manifest["options"][name] for manifest in manifests]
    except (ValueError, KeyError, TypeError):
        return None


def explain(folder, size):
    """The error for a folder that is not prepared, with the folder to give or the command."""
    parents = folder.absolute().parents[:3]
    inner = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    for near in parents:
        if is_prepared(near):
            return ValueError(f"{folder} is only a part of a prepared COCO folder: give {near}")
    for near in inner:
        if is_prepared(near):
            return ValueError(f"{folder} is one level too high: give {near}")
    if not folder.is_dir():
        return FileNotFoundError(
            f"There is no folder {folder}; make it with: "
            + prepare_command("--download", "--split", "both", size=size, out=folder)
        )
    for raw in (folder, *parents, *inner):  # COCO's own folder, or its train2017
        if (raw / "annotations").is_dir():
            return explain_raw(folder, raw, size)
    if (folder / "manifest.json").is_file():
        folder = folder.absolute().parent  # one split without the other one
    missing = [split for split in SPLITS if not (folder / split / "manifest.json").is_file()]
    split = missing[0] if len(missing) == 1 else "both"
    return FileNotFoundError(
        f"{folder} is not a prepared COCO folder: it has no {' and no '.join(missing)} split; "
        f"make it with: " + prepare_command("--download", "--split", split, size=size, out=folder)
    )


def explain_raw(folder, raw, size):
    """The error for COCO as it is downloaded, with the two commands that prepare it."""
    out = f"data/{folder_name('coco', size)}"
    commands = []
    for split, name in zip(SPLITS, ("train", "val"), strict=True):
        images = raw / f"{name}2017"
        if not images.is_dir() and (raw / "images" / images.name).is_dir():
            images = raw / "images" / images.name  # some tools keep COCO in this layout
        arguments = ["--annotations", raw / "annotations" / f"instances_{name}2017.json"]
        arguments += ["--images-dir", images, "--split", split]
        commands.append(prepare_command(*arguments, size=size, out=out))
    return ValueError(
        f"{folder} holds unprepared COCO data; prepare it with: {' && '.join(commands)} "
        f"and give {out}"
    )


def prepare_command(*arguments, size, out):
    sizes = [] if size == 64 else ["--image-size", size]
    command = ["python", "Datasets/prepare_coco.py", *arguments, *sizes, "--out", out]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join  # Windows quotes otherwise
    return join(list(map(str, command)))
