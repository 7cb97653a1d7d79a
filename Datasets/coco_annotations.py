"""Reads a COCO annotation file and checks every record before anything uses it."""

import contextlib
import difflib
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

from coco_outlines import outline_fault
from pycocotools.coco import COCO

from SegStudio.backstage import progress_bar

MAX_PIXELS = 50_000_000  # of one image: a larger one could fill the memory
ROUNDING = 1.0  # pixels that a box may lie outside its image, because annotators round


class CocoAnnotations:
    """A COCO annotation file, with every record checked.

    The file is a JSON object with three lists that refer to each other by id: `images`,
    `categories`, and `annotations`. An annotation is one object: its image, its category, its box
    `[x, y, width, height]` and its outline ("segmentation").

    A record that fails a check is left out, and one sentence in `problems` names it and says why.
    A broken annotation whose image is known is replaced by a placeholder: its object is in the
    image, so it counts as an object, but it is never selected.

    Attributes: `images` and `categories` map ids to records; `annotations` is the list of sound
    annotations and placeholders; `licenses` maps ids to records; `description`, `sha256` and
    `file` describe the file.

    Errors: FileNotFoundError; ValueError for a file that is not in COCO's format.
    Source: https://cocodataset.org/#format-data
    """

    def __init__(self, file, *, progress=True):
        self.file = Path(file)
        self.progress = progress
        data = self._read()
        self.problems = []
        info, licenses = data.get("info"), data.get("licenses")
        self.description = str(info.get("description", "")) if isinstance(info, dict) else ""
        self.licenses = self._by_id("license", licenses if isinstance(licenses, list) else [])
        self.categories = self._by_id("category", data["categories"], category_fault)
        self.images = self._by_id("image", data["images"], image_fault)
        self.annotations = []
        # If an image is left out, its annotations are not reported again.
        reported = {str(r.get("id")) for r in data["images"] if isinstance(r, dict)}
        self._add_annotations(data["annotations"], reported)

    def _read(self):
        if self.file.is_dir():
            raise FileNotFoundError(
                f"{self.file} is a folder: give the annotation file, such as {self.file}/"
                f"instances_train2017.json."
            )
        if not self.file.is_file():
            raise FileNotFoundError(f"There is no annotation file {self.file}.")
        try:
            content = self.file.read_bytes()
        except PermissionError:
            raise PermissionError(f"You have no right to read {self.file}.") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            with self._bar(desc="reading", unit=" records") as bar:

                def count(record):
                    bar.update()
                    return record

                data = json.loads(content, object_hook=count)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.file} is not JSON ({error}).") from None
        lists = ("images", "annotations", "categories")
        if not isinstance(data, dict) or not all(isinstance(data.get(k), list) for k in lists):
            raise ValueError(
                f"{self.file} is not in COCO's format: it needs the lists images, annotations "
                f"and categories."
            )
        return data

    def _bar(self, items=None, **options):
        return progress_bar(items, disable=not self.progress, **options)

    def _report(self, kind, number, reason):
        # ascii(): a hostile name may contain codes that control a terminal.
        self.problems.append(f"{kind} {ascii(number)[:60]} is left out: {reason}.")

    def _records(self, kind, records):
        """The records that are JSON objects, each with its id."""
        for place, record in enumerate(records):
            if isinstance(record, dict):
                yield record.get("id"), record
            else:
                self._report(kind, f"at position {place}", "it is not a record")

    def _by_id(self, kind, records, find_fault=lambda record: None):
        """{id: record} of the sound records; if an id is used twice, the first record counts."""
        known = {}
        for number, record in self._records(kind, records):
            if not is_id(number):
                fault = "its id is not a whole number from 0 to 2^63-1"
            elif number in known:
                fault = "this id was used before, and the first one counts"
            else:
                fault = find_fault(record)
            if fault:
                self._report(kind, number, fault)
            else:
                known[number] = record
        return known

    def _add_annotations(self, records, reported):
        seen = {}  # {id: record}
        bar = self._bar(records, desc="checking", unit=" annotations")
        for number, record in self._records("annotation", bar):
            image = record.get("image_id")
            if not is_id(image) or image not in self.images:
                if str(image) not in reported:
                    self._report("annotation", number, f"there is no image {ascii(image)[:60]}")
                continue
            if is_id(number) and seen.get(number) == record:  # one object, written twice
                self._report(
                    "annotation", number, "this id was used before, and the first one counts"
                )
                continue
            fault = self._annotation_fault(number, record, seen)
            if fault:
                self._report("annotation", number, fault)
                self.annotations.append(self._placeholder(record))
            else:
                seen[number] = record
                self.annotations.append(record if "iscrowd" in record else {**record, "iscrowd": 0})

    def _annotation_fault(self, number, record, seen):
        if not is_id(number):
            return "its id is not a whole number from 0 to 2^63-1"
        if number in seen:
            return "this id was used before, and the first one counts"
        category = record.get("category_id")
        if not is_id(category) or category not in self.categories:
            return f"there is no category {ascii(category)[:60]}"
        if record.get("iscrowd", 0) not in (0, 1):
            return "its iscrowd is neither 0 nor 1"
        return box_fault(record.get("bbox"), self.images[record["image_id"]])

    def _placeholder(self, record):
        """Replaces a broken annotation; as a crowd it counts but is never selected."""
        category = record.get("category_id")
        known = is_id(category) and category in self.categories
        return {
            "id": -1 - len(self.annotations),  # below 0: no sound annotation has it
            "image_id": record["image_id"],
            "category_id": category if known else None,
            "iscrowd": 1,
        }

    def find_categories(self, names):
        """{name: category id} of the categories with these names.

        Errors: ValueError, with similar names, for one that is not in the file exactly once.
        """
        if not names:
            raise ValueError("Ask for at least one class.")
        in_file = Counter(record["name"] for record in self.categories.values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"The class {name!r} was asked for {names.count(name)} times.")
            if in_file[name] != 1:
                similar = difflib.get_close_matches(name, in_file, 3, 0.5) or "nothing similar"
                raise ValueError(
                    f"The class {name!r} is {in_file[name]} times in {self.file.name}, not once "
                    f"(similar: {similar})."
                )
        ids = {record["name"]: number for number, record in self.categories.items()}
        return {name: ids[name] for name in names}

    def to_pycocotools(self, category_ids):
        """A pycocotools.coco.COCO of the checked records, and a sentence per broken outline.

        Only the outlines of `category_ids` are checked (COCO's training set has 860,000 objects),
        so call annToMask with annotations of these categories only.
        """
        category_ids = set(category_ids)
        annotations, problems = [], []
        for annotation in self._bar(self.annotations, desc="outlines", unit=" annotations"):
            if annotation["category_id"] in category_ids and not annotation["iscrowd"]:
                image = self.images[annotation["image_id"]]
                outline = annotation.get("segmentation")
                fault = outline_fault(outline, image["width"], image["height"])
                if fault:
                    problems.append(f"annotation {annotation['id']} is left out: {fault}.")
                    annotation = {**annotation, "iscrowd": 1}  # counts, but is never selected
            annotations.append(annotation)
        coco = COCO()
        coco.dataset = {
            "images": list(self.images.values()),
            "categories": list(self.categories.values()),
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it prints "creating index..."
            coco.createIndex()
        return coco, problems


def is_id(number):
    """A whole number from 0 to 2^63-1. (True is an int and 1.0 equals 1: both are refused.)"""
    return type(number) is int and 0 <= number < 2**63


def category_fault(record):
    """What is wrong with a category record, or None."""
    name = record.get("name")
    return None if isinstance(name, str) and name else "it has no name"


def image_fault(record):
    """What is wrong with an image record, or None.

    The addresses are not checked here, because an image on this disk is usable without them. The
    downloader checks the one that it uses.
    """
    width, height, name = (record.get(key) for key in ("width", "height", "file_name"))
    if not (is_id(width) and is_id(height) and width * height > 0):
        return "its width and height are not whole numbers above 0"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} pixels are more than the {MAX_PIXELS} allowed"
    if not isinstance(name, str) or not name or not name.isprintable():
        return "it has no usable file_name"
    if "\\" in name or ":" in name or name.startswith("/") or ".." in name.split("/"):
        return f"its file_name {ascii(name)[:60]} leads out of the folder of images"
    return None


def box_fault(box, image):
    """What is wrong with a box [x, y, width, height], or None."""
    if not isinstance(box, list) or len(box) != 4:
        return "its bbox is not four numbers"
    # NaN compares false with everything, so it fails here too.
    if not all(type(value) in (int, float) and abs(value) < 1e9 for value in box):
        return "its bbox is not four finite numbers"
    x, y, width, height = box
    right, bottom = image["width"] + ROUNDING, image["height"] + ROUNDING
    if min(x, y) < -ROUNDING or x + width > right or y + height > bottom:
        return "its bbox reaches outside the image"
    if min(width, height) < 0:
        return "its bbox has a negative size"
    return None


def is_web_address(url):
    """Whether `url` is text that begins with http:// or https://."""
    return isinstance(url, str) and url.lower().startswith(("http://", "https://"))
