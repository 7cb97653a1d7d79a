"""Prepares COCO images with one large object each as small images and masks (see COCO.md).

    python Datasets/prepare_coco.py --synthetic --split both --out data/synthetic-coco
    python Datasets/prepare_coco.py --download --split both --out data/coco
    python Datasets/prepare_coco.py --annotations annotations/instances_train2017.json \\
        --images-dir train2017 --split train --out data/coco

The idea of the homework, twenty lines to copy, is at the top of coco_single_object.py. This
file is the command. It writes the prepared folder with its manifest.

The exit code is 0 if everything selected was written, 1 if something was left out (each
with a sentence on the error output; the rest is written), 2 if the command failed. A command that
failed leaves no new folder behind, except for what it has downloaded.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coco_annotations import CocoAnnotations, is_id, is_web_address
from coco_download import CocoDownloader, DownloadError
from coco_images import find_image, read_image
from coco_single_object import CocoSelection, resized_image_and_mask
from coco_synthetic import CATEGORIES, draw_synthetic_coco, rejected_images

from SegStudio import SegStudio
from SegStudio.backstage import progress_bar, refuse_unwritable_folder

CLASSES = ("cake", "dog", "motorcycle")
OFFICIAL = {"train": "instances_train2017.json", "test": "instances_val2017.json"}
IMAGE_SIZES = range(1, 4097)
MOST_WORKERS = 64
SYNTHETIC_IMAGES = {"train": 480, "test": 120}


class CocoPreparer:
    """Writes a CocoSelection as small images and masks, with a manifest of their sources.

    `write` makes `<out>/<split>/images|masks/<image id>_<category id>.png` and `manifest.json`.
    The same input and options give the same bytes, whatever `workers` is.

    Attributes, filled by `write`: `kept` counts the samples per class; `problems` has a sentence
    for each image file that could not be used; `dropped` one for each mask that was empty after
    resizing.

    Errors: ValueError for impossible options, or if nothing is left to write.
    """

    FORMAT = "SegStudio COCO, one object per image, 1"

    def __init__(self, selection, *, image_size=64, split="train"):
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}, not 'train' or 'test'.")
        if image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size is {image_size}; it must be from 1 to 4096.")
        self.selection = selection
        self.image_size = image_size
        self.split = split
        self.kept, self.problems, self.dropped = Counter(), [], []

    def write(self, images, out, *, workers=1, progress=True):
        """Writes `<out>/<split>` and returns the path of its manifest.

        `images` is the folder of the images, or a dict {image id: path}. Instead of a path, it
        may have an exception: the reason why that image is left out.

        The new folder is built under another name and renamed when it is complete. An
        interrupted or failed run leaves the old one as it was.
        """
        target = Path(out, self.split)
        part = target.with_name(f".{self.split}.part")
        refuse_foreign_folder(target)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        (part / "images").mkdir(parents=True)
        (part / "masks").mkdir()
        try:
            records = self._write_samples(images, part, workers, progress)
            if not records:
                raise ValueError(f"No image of {list(self.selection.classes)} is left to write.")
            text = json.dumps(self._manifest(records), indent=1) + "\n"
            SegStudio.write_atomically(
                part / "manifest.json", lambda file: file.write_text(text, encoding="utf-8")
            )
            replace_folder(target, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target / "manifest.json"

    def _write_samples(self, images, part, workers, progress):
        samples = self.selection.samples
        self.problems, self.dropped = [], []
        with ThreadPoolExecutor(workers) as pool:
            try:
                tasks = pool.map(lambda sample: self._write_sample(*sample, images, part), samples)
                bar = progress_bar(
                    tasks, disable=not progress, desc=f"preparing {self.split}", total=len(samples),
                    unit="image",
                )  # fmt: skip
                records = [record for record in bar if record]
            except BaseException:  # Ctrl-C or a full disk: do not write the rest first
                pool.shutdown(cancel_futures=True)
                raise
        self.problems.sort()  # the threads finish in any order
        self.dropped.sort()
        self.kept = Counter(record["category"] for record in records)
        return records

    def _write_sample(self, annotation, class_name, images, part):
        """Writes one image and its mask; returns the manifest's entry, or None if left out."""
        image_id = annotation["image_id"]
        record = self.selection.annotations.images[image_id]
        try:
            image = read_image(self._file_of(record, images), record)
        except ValueError as error:
            self.problems.append(f"image {image_id} is left out: {error}.")
            return None
        size = self.image_size
        image, mask = resized_image_and_mask(self.selection.coco, annotation, image, size)
        if mask.getextrema() == (0, 0):
            self.dropped.append(
                f"image {image_id} is dropped: its {class_name}'s mask is empty after resizing "
                f"to {size}x{size}."
            )
            return None
        entry = {}
        for kind, picture in (("image", image), ("mask", mask)):
            entry[kind] = f"{kind}s/{image_id}_{annotation['category_id']}.png"
            entry[f"{kind}_sha256"] = write_png(part / entry[kind], picture)
        entry |= {
            "category": class_name,
            "category_id": annotation["category_id"],
            "image_id": image_id,
            "annotation_id": annotation["id"],
            "bbox": annotation["bbox"],
        }
        entry |= {key: record[key] for key in ("width", "height")}
        entry["license"] = record.get("license") if is_id(record.get("license")) else None
        for key in ("coco_url", "flickr_url"):  # a page may link them: no javascript: or file:
            entry[key] = record.get(key) if is_web_address(record.get(key)) else None
        return entry

    @staticmethod
    def _file_of(record, images):
        if not isinstance(images, dict):
            return find_image(images, record["file_name"])
        found = images[record["id"]]
        if isinstance(found, Exception):
            raise ValueError(str(found))
        return found

    def _manifest(self, records):
        source, used = self.selection.annotations, {record["license"] for record in records}
        return {
            "format": self.FORMAT,
            "description": source.description,
            "source": {"file": source.file.name, "sha256": source.sha256},
            "options": {
                **self.selection.options,
                "image_size": self.image_size,
                "split": self.split,
            },
            "licenses": {
                number: plain_licence(record)
                for number, record in sorted(source.licenses.items())
                if number in used
            },
            "kept": {name: self.kept[name] for name in self.selection.classes},
            "left_out": [
                *source.problems,
                *self.selection.problems,
                *self.problems,
                *self.dropped,
            ],
            "samples": records,
        }


def plain_licence(record):
    """A licence record without what is no text, and without an address that is no web address."""
    plain = {key: value for key, value in record.items() if isinstance(value, str) or is_id(value)}
    if not is_web_address(plain.get("url", "http://")):
        del plain["url"]
    return plain


def write_png(path, picture):
    """Writes a Pillow image; returns the SHA-256 of the file."""
    with io.BytesIO() as png:
        picture.save(png, "PNG")
        content = png.getvalue()
    SegStudio.write_atomically(path, lambda part: part.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def refuse_foreign_folder(target):
    """Raises ValueError if `target` exists and this script did not write it."""
    if target.is_symlink() or (target.exists() and not (target / "manifest.json").is_file()):
        raise ValueError(f"{target} is not a prepared folder; move it away first.")


def replace_folder(target, new):
    """Moves the folder `new` to `target`; the old one is deleted after that."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def no_new_folders(out, split):
    """If the block fails, deletes what it has drawn and the empty folders that it has made."""
    drawn = out / "synthetic" / split
    annotations = out / "synthetic" / "annotations"
    downloads = [out / "downloads" / name for name in ("annotations", "images")]
    folders = (drawn, annotations, drawn.parent, *downloads, out / "downloads", out, *out.parents)
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        if drawn in made:
            shutil.rmtree(drawn, ignore_errors=True)
            with contextlib.suppress(OSError):  # not written yet
                (annotations / f"instances_{split}.json").unlink()
        for folder in made:
            with contextlib.suppress(OSError):  # not made yet, or not empty
                folder.rmdir()
        raise


def make_writable(out):
    """Makes the folder; OSError if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_unwritable_folder(out)
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror})") from error


def refuse_folder_without_images(folder, records):
    """ValueError if none of the images is in the folder, instead of a sentence for each."""
    names = [record["file_name"] for record in records]
    if not names or any(os.path.lexists(folder / name) for name in names):
        return
    near = (*sorted(folder.iterdir()), *sorted(folder.resolve().parent.iterdir()))
    found = next((path for path in near if os.path.lexists(path / names[0])), None)
    right = "the folder that holds them" if found is None else found
    raise ValueError(
        f"{folder} has none of the {len(names)} selected images (the first is "
        f"{ascii(names[0])[1:-1][:60]}): give {right} by --images-dir"
    )


# ---- the command -----------------------------------------------------------------------------


def user_path(text):
    return Path(text).expanduser()  # the shell leaves the ~ in --out=~/coco


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Selects COCO images with one large object and writes small images and masks "
        "to OUT/train and OUT/test.",
        epilog="Exit code 0: everything selected was written. 1: something was left out, each "
        "with a sentence on the error output. 2: the command failed.",
    )
    source = parser.add_argument_group("where the images come from (give one)")
    source.add_argument(
        "--images-dir", type=user_path, metavar="DIR",
        help="a folder of images on this disk; needs --annotations",
    )  # fmt: skip
    source.add_argument(
        "--download", action="store_true",
        help="fetch the selected images (and, without --annotations, COCO's annotation archive, "
        "241 MB) into OUT/downloads",
    )  # fmt: skip
    source.add_argument(
        "--synthetic", action="store_true",
        help="draw a synthetic set in COCO's format (not COCO) into OUT/synthetic",
    )  # fmt: skip
    add = parser.add_argument
    add("--annotations", type=user_path, metavar="FILE", help="COCO's instances_*.json")
    add("--out", type=user_path, metavar="DIR",
        help="default data/coco, with --synthetic data/synthetic-coco")  # fmt: skip
    add("--split", choices=("train", "test", "both"), default="train",
        help="default %(default)s; both needs --synthetic or --download")  # fmt: skip
    add("--classes", nargs="+", default=list(CLASSES), metavar="NAME",
        help=f"default {' '.join(CLASSES)}")  # fmt: skip
    add("--min-bbox", type=float, default=200, metavar="PIXELS",
        help="least width and height of the object's box in the original; default 200")  # fmt: skip
    add("--single-instance", choices=CocoSelection.READINGS, default="selected",
        help="the image has one annotation: of the object's category, of all selected classes "
        "(default), or at all")  # fmt: skip
    add("--image-size", type=int, default=64, metavar="N",
        help="width and height to write; default 64, the handout asks for 256")  # fmt: skip
    add("--limit", type=int, metavar="N", help="the first N of each class, by image id")
    add("--synthetic-images", type=int, metavar="N",
        help="how many to draw in each split; default 480 (train) and 120 (test)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the synthetic set; default 0")
    add("--workers", type=int, default=4, metavar="N", help="threads; default 4")
    options = parser.parse_args(argv)
    if options.out is None:
        options.out = Path("data/synthetic-coco" if options.synthetic else "data/coco")

    if bool(options.images_dir) + options.download + options.synthetic != 1:
        parser.error("give one of --images-dir DIR, --download and --synthetic")
    if options.images_dir and not options.annotations:
        parser.error("--images-dir needs --annotations FILE")
    if options.images_dir and not options.images_dir.is_dir():
        parser.error(f"there is no folder {options.images_dir}")
    if options.synthetic and options.annotations:
        parser.error("--synthetic draws its own annotations; leave --annotations out")
    if options.split == "both" and options.annotations:
        parser.error("--annotations is one split; run the command for train and for test")
    if options.synthetic and not set(options.classes) <= set(CATEGORIES.values()):
        parser.error(f"--synthetic draws {', '.join(CATEGORIES.values())} only")
    for name, least in {
        "workers": 1, "synthetic_images": 1, "limit": 1, "min_bbox": 0, "seed": 0
    }.items():  # fmt: skip
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:  # also refuses NaN
            parser.error(f"--{name.replace('_', '-')} must be {least} or more")
    if options.workers > MOST_WORKERS:
        parser.error(f"--workers must be {MOST_WORKERS} or less")
    if options.image_size not in IMAGE_SIZES:
        parser.error("--image-size must be from 1 to 4096")
    return options


def prepare(options, split):
    """Prepares one split; returns the sentences about what was left out."""
    refuse_foreign_folder(options.out / split)  # before a long wait
    with no_new_folders(options.out, split):
        make_writable(options.out)
        return prepare_writable(options, split)


def prepare_writable(options, split):
    downloader = CocoDownloader(workers=options.workers)
    file, images = options.annotations, options.images_dir
    if options.synthetic:
        number = options.synthetic_images or SYNTHETIC_IMAGES[split]
        say(
            f"Drawing {number} SYNTHETIC {split} images in COCO's format (not COCO), and "
            f"{rejected_images(number)} that the selection has to reject."
        )
        folder = options.out / "synthetic"
        file = draw_synthetic_coco(
            folder, split, number, seed=options.seed, workers=options.workers
        )
        images = folder / split
    elif file is None:
        say("Fetching COCO's annotations (an interrupted download is continued).")
        files = downloader.fetch_annotations(options.out / "downloads" / "annotations")
        file = next(found for found in files if found.name == OFFICIAL[split])
    if file.is_file():
        size = file.stat().st_size / 1e6
        patience = ", which takes up to a minute" if size > 100 else ""
        say(f"Reading {file} ({size:.1f} MB){patience}.")
    annotations = CocoAnnotations(file)
    selection = CocoSelection(
        annotations, options.classes, min_bbox=options.min_bbox,
        single_instance=options.single_instance, limit=options.limit,
    )  # fmt: skip
    preparer = CocoPreparer(selection, image_size=options.image_size, split=split)
    if options.download:
        say(selection.table())  # the selection, before a long wait
        records = {a["image_id"]: annotations.images[a["image_id"]] for a, _ in selection.samples}
        images = downloader.fetch_images(records.values(), options.out / "downloads" / "images")
    elif options.images_dir:
        refuse_folder_without_images(
            images, [annotations.images[a["image_id"]] for a, _ in selection.samples]
        )
    try:
        manifest = preparer.write(images, options.out, workers=options.workers)
    finally:
        say(selection.table(preparer.kept))
        left_out = annotations.problems + selection.problems + preparer.problems
        for sentence in left_out + preparer.dropped:
            print(sentence, file=sys.stderr)
    say(f"{sum(preparer.kept.values())} images and masks: {manifest.parent}")
    repeated = len(selection.repeated_images)
    if repeated:
        print(
            f"Warning: {repeated} {'photo is' if repeated == 1 else 'photos are'} in the {split} "
            "set more than once, with different masks. A network with one output channel cannot "
            "learn both; --single-instance selected avoids it.",
            file=sys.stderr,
        )
    if left_out:
        print(f"{len(left_out)} records or files were left out (listed above).", file=sys.stderr)
    return left_out


def say(text):
    print(text, flush=True)


def main(argv=None):
    """Runs the command; returns its exit code."""
    options = parse(argv)
    warnings.filterwarnings("ignore", module="PIL")  # of sizes, which read_image checks, and EXIF
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a class may have any characters
        sys.stdout.reconfigure(errors="backslashreplace")
    splits = ("train", "test") if options.split == "both" else (options.split,)
    try:
        left_out = [prepare(options, split) for split in splits]
    except (ValueError, DownloadError, FileNotFoundError, PermissionError) as error:
        print(f"prepare_coco: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of writing
        advice = "" if "--out" in str(error) else ": make room, or give another folder by --out"
        print(f"prepare_coco: {error}{advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "prepare_coco: interrupted; run it again. What was downloaded is kept.", file=sys.stderr
        )
        return 130
    return 1 if any(left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
