"""Finds the prepared COCO images that a COCO example trains on, or draws a synthetic set."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

PREPARE_COCO = Path(__file__).resolve().parents[1] / "Datasets" / "prepare_coco.py"
SPLITS = ("train", "test")


def find_or_draw_coco(folder, dls):
    """The Path of a folder that Datasets/prepare_coco.py wrote, with train/ and test/ in it.

    `folder` is the value of --coco. None means a synthetic set in the data folder,
    which is drawn once, by prepare_coco.py. Scores on it are not scores on COCO.

    Errors: FileNotFoundError and ValueError say how to prepare the folder; OSError if the
    synthetic set could not be drawn.
    """
    size = dls.image_size[0]
    if folder is not None:
        folder = Path(folder).expanduser()
        if not is_prepared(folder):
            raise explain(folder, size)
        return folder
    dls.log("No COCO folder was given: this is a SYNTHETIC set in COCO's format, not COCO.")
    folder = Path(dls.dataroot).expanduser() / f"synthetic-coco-{size}"
    if not (is_prepared(folder) and has_single_objects(folder)):
        dls.log(f"Drawing it, once, in {folder} (half a minute).")
        command = ["--synthetic", "--split", "both", "--image-size", str(size), "--out", folder]
        done = subprocess.run([sys.executable, PREPARE_COCO, *command], check=False)
        if done.returncode:
            raise OSError(f"the synthetic set could not be drawn in {folder} (reason above)")
    return folder


def is_prepared(folder):
    return all((folder / split / "manifest.json").is_file() for split in SPLITS)


def has_single_objects(folder):
    """Whether no photo is in the set twice. Earlier versions drew such sets."""
    try:
        manifests = [json.loads((folder / split / "manifest.json").read_text()) for split in SPLITS]
        return all(manifest["options"]["single_instance"] == "selected" for manifest in manifests)
    except (ValueError, KeyError, TypeError):  # damaged
        return False


def explain(folder, size):
    """The error for a folder that is not prepared, with the command that prepares it."""
    if not folder.is_dir():
        return FileNotFoundError(
            f"There is no folder {folder}; make one with: "
            + prepare_command("--download", "--split", "both", "--image-size", size)
        )
    if (folder / "manifest.json").is_file():
        return ValueError(f"{folder} is one split; give the folder above it: {folder.parent}")
    for inner in sorted(folder.iterdir()):
        if is_prepared(inner):
            return ValueError(f"{folder} is one level too high; give {inner}")
    for raw in (folder, folder.parent):  # COCO's own folder, or its train2017
        if (raw / "annotations").is_dir():
            commands = [
                prepare_command(
                    *("--annotations", raw / "annotations" / f"instances_{name}2017.json"),
                    *("--images-dir", raw / f"{name}2017"),
                    *("--split", split, "--image-size", size, "--out", f"data/coco-{size}"),
                )
                for split, name in zip(SPLITS, ("train", "val"), strict=True)
            ]
            return ValueError(
                f"{folder} holds unprepared COCO data; prepare it with: {' && '.join(commands)} "
                f"and give data/coco-{size}"
            )
    missing = [split for split in SPLITS if not (folder / split / "manifest.json").is_file()]
    return FileNotFoundError(
        f"{folder} is not a prepared COCO folder: it has no {' and no '.join(missing)} split; "
        f"make it with: "
        + prepare_command(
            "--download",
            "--split",
            missing[-1] if len(missing) == 1 else "both",
            "--image-size",
            size,
            "--out",
            folder,
        )  # fmt: skip
    )


def prepare_command(*arguments):
    return shlex.join(["python", "Datasets/prepare_coco.py", *map(str, arguments)])
