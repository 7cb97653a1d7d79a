"""SegStudio: semantic segmentation, explained and runnable, in one module."""

import argparse
import contextlib
import csv
import difflib
import errno
import gzip
import hashlib
import http.client
import io
import json
import math
import multiprocessing
import os
import pickle
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pycocotools.mask
import skimage.draw
import skimage.filters
import torch
import torchvision
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

__version__ = "1.0.0"


class SegStudio:
    """The settings of a run."""

    class SemanticSegmentation(nn.Module):
        """The experiment."""

        # ==== §1 DATA: PurdueShapes5MultiObject ==================================================

        # ==== §1 DATA: COCO, one object per image ================================================

        class CocoAnnotations:
            """A COCO annotation file, read once and checked before anything believes it.

            The file is a JSON object with three lists that point at each other by number: `images`,
            `categories` and `annotations` (one per object: its image, its category, its box `[x, y,
            width, height]` and its outline). Each record is checked; one that fails is left out,
            and one sentence in `problems` names it and says why. A broken annotation still counts
            where its image is known: an object that cannot be read is not an object less. The
            outlines are left to CocoSelection: full COCO has 900,000, a selection needs a few
            thousand.

            `images` and `categories` map numbers to records, `objects` maps (image, category) to
            the annotations that are no crowds; `counts` per (image, category) and `totals` per
            image count every annotation, crowds too.

            Errors: ValueError for a file that is not COCO; FileNotFoundError.
            Source: https://cocodataset.org/#format-data

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoAnnotations
            """

            MAX_PIXELS = 50_000_000
            SLACK = 1.0  # pixels that a box may lie outside its image: annotators' rounding

            def __init__(self, file):
                self.file = Path(file)
                if not self.file.is_file():
                    raise FileNotFoundError(f"There is no annotation file {self.file}.")
                content = self.file.read_bytes()
                self.sha256 = hashlib.sha256(content).hexdigest()
                try:
                    data = json.loads(content)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{self.file} is not JSON ({error}).") from None
                keys = ("images", "annotations", "categories")
                if not isinstance(data, dict) or not all(
                    isinstance(data.get(k), list) for k in keys
                ):
                    raise ValueError(
                        f"{self.file} is not COCO: it needs images, annotations and categories."
                    )
                info, licenses = data.get("info"), data.get("licenses")
                self.description = (
                    str(info.get("description", "")) if isinstance(info, dict) else ""
                )
                self.problems = []
                licenses = licenses if isinstance(licenses, list) else []
                self.licenses = self._index("license", licenses, lambda record: None)
                self.categories = self._index("category", data["categories"], self._category_fault)
                self.images = self._index("image", data["images"], self._image_fault)
                self.counts, self.totals, self.objects = Counter(), Counter(), defaultdict(list)
                self._index_annotations(data)

            def _report(self, kind, number, reason):
                """Adds one sentence; ascii() because a hostile name may hold terminal codes."""
                self.problems.append(f"{kind} {ascii(number)[:60]} is left out: {reason}.")

            def _numbered(self, kind, records):
                for place, record in enumerate(records):
                    if isinstance(record, dict):
                        yield record.get("id"), record
                    else:
                        self._report(kind, f"at position {place}", "it is not a record")

            def _index(self, kind, records, fault):
                known = {}
                for number, record in self._numbered(kind, records):
                    if not self._is_id(number):
                        self._report(kind, number, "its id is not a whole number from 0 to 2^63-1")
                    elif number in known:
                        self._report(
                            kind, number, "this id was used before, and the first one counts"
                        )
                    elif reason := fault(record):
                        self._report(kind, number, reason)
                    else:
                        known[number] = record
                return known

            def _index_annotations(self, data):
                """Fills the counts; crowds and broken annotations count but are no objects."""
                reported = {str(r.get("id")) for r in data["images"] if isinstance(r, dict)}
                seen = {}
                for number, record in self._numbered("annotation", data["annotations"]):
                    image, category = record.get("image_id"), record.get("category_id")
                    if not (self._is_id(image) and image in self.images):
                        if str(image) not in reported:  # else the image's own sentence has said it
                            self._report(
                                "annotation", number, f"there is no image {ascii(image)[:60]}"
                            )
                        continue
                    reason = None
                    if not self._is_id(number):
                        reason = "its id is not a whole number from 0 to 2^63-1"
                    elif number in seen:
                        reason = "this id was used before, and the first one counts"
                        if seen[number] == record:  # the same object written twice is one object
                            self._report("annotation", number, reason)
                            continue
                    self.totals[image] += 1
                    if not (self._is_id(category) and category in self.categories):
                        reason = reason or f"there is no category {ascii(category)[:60]}"
                    else:
                        self.counts[image, category] += 1
                    reason = reason or self._annotation_fault(record)
                    if reason:
                        self._report("annotation", number, reason)
                        continue
                    seen[number] = record
                    if not record.get("iscrowd", 0):
                        self.objects[image, category].append(record)

            @staticmethod
            def _is_id(number):
                return type(number) is int and 0 <= number < 2**63  # bool is an int, 1.0 equals 1

            @staticmethod
            def _category_fault(record):
                name = record.get("name")
                return None if isinstance(name, str) and name else "it has no name"

            def _image_fault(self, record):
                width, height, name = (record.get(k) for k in ("width", "height", "file_name"))
                if not (self._is_id(width) and self._is_id(height) and width * height > 0):
                    return "its width and height are not whole numbers above 0"
                if width * height > self.MAX_PIXELS:
                    return f"{width}x{height} pixels are more than the {self.MAX_PIXELS} allowed"
                if not isinstance(name, str) or not name or not name.isprintable():
                    return "it has no usable file_name"
                if "\\" in name or ":" in name or name.startswith("/") or ".." in name.split("/"):
                    return f"its file_name {ascii(name)[:60]} leads out of the folder of images"
                for key in ("coco_url", "flickr_url"):
                    url = record.get(key) or "http://"  # other tools write "" or 0 for "none"
                    if not isinstance(url, str) or not url.lower().startswith(
                        ("http://", "https://")
                    ):
                        return f"its {key} {ascii(url)[:60]} is not an http(s) address"
                return None

            def _annotation_fault(self, record):
                box, image = record.get("bbox"), self.images[record["image_id"]]
                if record.get("iscrowd", 0) not in (0, 1):
                    return "its iscrowd is neither 0 nor 1"
                if not isinstance(box, list) or len(box) != 4:
                    return "its bbox is not four numbers"
                if not all(
                    type(v) in (int, float) and abs(v) < 1e9 for v in box
                ):  # NaN is not < 1e9
                    return "its bbox is not four finite numbers"
                x, y, width, height = box
                right, bottom = image["width"] + self.SLACK, image["height"] + self.SLACK
                if min(x, y) < -self.SLACK or x + width > right or y + height > bottom:
                    return "its bbox reaches outside the image"
                return "its bbox has a negative size" if min(width, height) < 0 else None

        class CocoSelection:
            """The images of a COCO file that hold one object of a class, and that object's mask.

            COCO shows things as they occur: many to an image, cut off, in front of each other. The
            homework wants the easy end of it, one large object, one mask. "Only a single object
            instance" can be counted in three ways, on which the size of the set hangs:
            `single_instance="category"` one annotation of that category in the image, `"selected"`
            one of any of the chosen classes, `"image"` one annotation at all. A crowd ("more than
            can be outlined one by one") counts, but is never the object. The object's box must be
            at least `min_bbox` pixels wide and high in the original image. The classes are selected
            one by one and the set is their union: under "category" one image can give a cake and a
            dog. `limit` keeps the first so many of each class, by image number.

            pycocotools' C code reads and writes wherever an outline's numbers say, so every outline
            of the classes is checked first; `problems` has one sentence for each that failed.
            `samples` is a list of (annotation, class name), sorted by image and category number.

            Errors: ValueError for a class that is not in the file or options that make no sense.
            Source: https://cocodataset.org/#format-data

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoSelection
            """

            READINGS = ("category", "selected", "image")
            MAX_OUTLINE = 1_000_000  # pixels along a polygon; pycocotools' memory grows with it
            SLACK = 1.0  # pixels that an outline may lie outside its image: annotators' rounding

            def __init__(
                self, annotations, classes, *, min_bbox=200, single_instance="category", limit=None
            ):
                self.annotations, self.classes = annotations, tuple(classes)
                self.options = {
                    "classes": list(classes),
                    "min_bbox": min_bbox,
                    "single_instance": single_instance,
                    "limit": limit,
                }
                if single_instance not in self.READINGS:
                    raise ValueError(
                        f"single_instance {single_instance!r} is none of {self.READINGS}."
                    )
                if min_bbox < 0 or (limit is not None and limit < 1) or not self.classes:
                    raise ValueError("There must be a class; min_bbox must be >= 0 and limit >= 1.")
                self.category_ids = self._find_classes()
                self.counts, self.problems = defaultdict(Counter), []
                self.samples = self._select()
                chosen = [annotation for annotation, _ in self.samples]
                self._coco = COCO()
                self._coco.dataset = {
                    "images": list(annotations.images.values()),
                    "annotations": chosen,
                }
                with contextlib.redirect_stdout(io.StringIO()):  # it prints "creating index..."
                    self._coco.createIndex()

            def _find_classes(self):
                categories = self.annotations.categories
                names = Counter(record["name"] for record in categories.values())
                for name in self.classes:
                    if names[name] != 1 or self.classes.count(name) != 1:
                        near = difflib.get_close_matches(name, names, 3, 0.5) or "nothing like it"
                        raise ValueError(
                            f"The class {name!r} must be asked for once and be in the file once "
                            f"(it is there {names[name]} times; near it: {near})."
                        )
                return {r["name"]: n for n, r in categories.items() if r["name"] in self.classes}

            def _select(self):
                source, samples = self.annotations, []
                ids = [self.category_ids[name] for name in self.classes]
                for name, category in zip(self.classes, ids, strict=True):
                    counts, passed = self.counts[name], []
                    counts["images"] = sum(c == category for _, c in source.counts)
                    for image in sorted(i for i, c in source.objects if c == category):
                        usable = [a for a in source.objects[image, category] if self._is_usable(a)]
                        numbers = {
                            "category": source.counts[image, category],
                            "selected": sum(source.counts[image, c] for c in ids),
                            "image": source.totals[image],
                        }
                        single = [r for r in self.READINGS if numbers[r] == 1 and len(usable) == 1]
                        counts.update(single)
                        large = usable and min(usable[0]["bbox"][2:]) >= self.options["min_bbox"]
                        if large and self.options["single_instance"] in single:
                            passed.append((usable[0], name))
                    counts["size"] = len(passed)
                    samples += passed[: self.options["limit"]]
                return sorted(samples, key=lambda s: (s[0]["image_id"], s[0]["category_id"]))

            def table(self, kept=None):
                """What was found, one line per class, to hold against a report's counts.

                Columns: images with the class; those with a single one under each of the three
                readings; those of the chosen one that are large enough; `kept`, {class: number}.
                """
                size, keys = self.options["min_bbox"], ("images", *self.READINGS, "size")
                heads = [f"single in {reading}" for reading in self.READINGS]
                large = f"{self.options['single_instance']}, {size:g}x{size:g}"
                rows = [("class", "images", *heads, large, "kept")]
                for name in self.classes:
                    last = "-" if kept is None else kept[name]
                    rows.append((name, *(self.counts[name][k] for k in keys), last))
                widths = [max(len(row[0]) for row in rows), *(len(head) for head in rows[0][1:])]
                cells = [[f"{v!s:>{w}}" for v, w in zip(r, widths, strict=True)] for r in rows]
                return "\n".join("  ".join(row) for row in cells)

            def mask(self, annotation):
                """The mask of a sample in the original size, (H, W) uint8 of 0 and 1."""
                return self._coco.annToMask(annotation)

            def _is_usable(self, annotation):
                fault = self.outline_fault(annotation)
                if fault:
                    self.problems.append(f"annotation {annotation['id']} is left out: {fault}.")
                return fault is None

            def outline_fault(self, annotation):
                """Why pycocotools must not see this annotation's outline, or None."""
                image = self.annotations.images[annotation["image_id"]]
                size, outline = (image["width"], image["height"]), annotation.get("segmentation")
                if isinstance(outline, list) and outline:
                    return next(
                        (f for f in (self._polygon_fault(p, *size) for p in outline) if f), None
                    )
                if isinstance(outline, dict):
                    return self._rle_fault(outline, *size)
                return "its segmentation is neither polygons nor RLE"

            def _polygon_fault(self, polygon, width, height):
                if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                    return "a polygon of its segmentation has fewer than three points (x, y)"
                if not all(type(v) in (int, float) and abs(v) < 1e9 for v in polygon):  # NaN too
                    return "a polygon of its segmentation has a coordinate that is not finite"
                points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
                beyond = max(-points.min(), (points.max(axis=0) - (width, height)).max())
                if beyond > self.SLACK:
                    return (
                        f"a polygon of its segmentation reaches outside the {width}x{height} image"
                    )
                if np.abs(np.diff(points, axis=0)).max(axis=1).sum() > self.MAX_OUTLINE:
                    return f"a polygon of its segmentation is longer than {self.MAX_OUTLINE} pixels"
                return None

            def _rle_fault(self, rle, width, height):
                counts = rle.get("counts")
                if rle.get("size") != [height, width]:
                    size = ascii(rle.get("size"))[:60]
                    return f"its RLE is of the size {size}, its image of {[height, width]}"
                if isinstance(counts, str):
                    counts = self._unpack_rle(counts)
                if not isinstance(counts, list) or not all(
                    type(c) is int and c >= 0 for c in counts
                ):
                    return "its RLE has counts that cannot be read"
                if sum(counts) != width * height:
                    return f"its RLE has counts that do not add up to {width}x{height} pixels"
                return None

            @staticmethod
            def _unpack_rle(text):
                """The run lengths of a compressed RLE, or None: pycocotools' reader never checks.

                A count is groups of five bits, lowest first, one character (48 + group) each; bit
                32 says that more follow, bit 16 of the last is the sign. The fourth count and later
                are the difference to the count before the last.
                """
                codes = (
                    np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
                )
                if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
                    return None
                ends = np.flatnonzero(codes & 32 == 0)
                starts = np.concatenate([[0], ends[:-1] + 1])
                lengths = ends - starts + 1
                if lengths.max() > 6:  # 30 bits hold the pixels of any image
                    return None
                shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
                counts = np.add.reduceat((codes & 31) << shifts, starts)
                counts -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
                counts[1::2] = np.cumsum(counts[1::2])
                counts[2::2] = np.cumsum(counts[2::2])
                return counts.tolist()

        class CocoPreparer:
            """Writes a CocoSelection as small images and masks, with a manifest that says it all.

            Masks come from pycocotools' `annToMask`. Images are squeezed to `image_size` squared
            with antialiasing, masks with nearest neighbor, which keeps them binary. Any color mode
            becomes RGB. An EXIF orientation is not applied: COCO's outlines count in the pixels as
            stored, and a file whose stored size is not the one in the JSON is refused.

            `write` makes `<out>/<split>/images|masks/<image id>_<category id>.png` and
            `manifest.json`; the same input and options give the same bytes, whatever `workers` is.
            After it, `kept` counts per class, `dropped` has a sentence for each mask that was empty
            after resizing, and `problems` one for each image file that could not be used.

            Errors: ValueError for options that make no sense, or when nothing is left to write.
            Source: https://cocodataset.org/#format-data

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoPreparer
            """

            FORMAT = "SegStudio COCO, one object per image, 1"
            ADDRESSES = ("coco_url", "flickr_url")
            READABLE = ("JPEG", "PNG", "BMP", "WEBP")

            def __init__(self, selection, *, image_size=64, split="train"):
                if split not in ("train", "test"):
                    raise ValueError(f"split is {split!r}, not 'train' or 'test'.")
                if not 1 <= image_size <= 4096:
                    raise ValueError(f"image_size is {image_size}; it must lie in 1 to 4096.")
                self.selection, self.image_size, self.split = selection, image_size, split
                self.kept, self.problems, self.dropped = Counter(), [], []

            def write(self, images, out, *, workers=1, progress=True):
                """Writes <out>/<split>; returns its manifest. `images`: a folder, or {id: file}.

                In the dict an exception may stand for a file: it says why that image is left out.
                The folder is built beside its place and moved there when it is whole, so an
                interrupted run leaves the old one.
                """
                out = Path(out)
                names = (self.split, f".{self.split}.part", f".{self.split}.old")
                target, part, old = (out / name for name in names)
                foreign = target.exists() and not (target / "manifest.json").is_file()
                if foreign or target.is_symlink():
                    raise ValueError(f"{target} is not a prepared folder; move it away first.")
                shutil.rmtree(part, ignore_errors=True)
                (part / "images").mkdir(parents=True)
                (part / "masks").mkdir()
                self.problems, self.dropped, samples = [], [], self.selection.samples
                try:
                    with ThreadPoolExecutor(workers) as pool:
                        tasks = pool.map(lambda s: self._write_sample(*s, images, part), samples)
                        bar = tqdm(
                            tasks, self.split, len(samples), unit="image", disable=not progress
                        )
                        records = [record for record in bar if record]
                    self.problems.sort()  # the threads add in any order
                    self.dropped.sort()
                    self.kept = Counter(record["category"] for record in records)
                    if not records:
                        raise ValueError(
                            f"No image of {list(self.selection.classes)} is left to write."
                        )
                    manifest = json.dumps(self._manifest(records), indent=1)
                    (part / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
                    shutil.rmtree(old, ignore_errors=True)
                    if target.exists():
                        target.replace(old)
                    part.replace(target)
                    shutil.rmtree(old, ignore_errors=True)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                return target / "manifest.json"

            def _write_sample(self, annotation, name, images, part):
                number, size = annotation["image_id"], (self.image_size, self.image_size)
                record = self.selection.annotations.images[number]
                try:
                    image = self.read_image(self._find_file(images, record), record)
                except Exception as error:  # whatever a decoder says of hostile bytes
                    known = type(error) is ValueError
                    reason = error if known else "its file cannot be decoded as an image"
                    self.problems.append(f"image {number} is left out: {reason}.")
                    return None
                image = image.resize(size, Image.Resampling.BILINEAR)  # PIL's always antialiases
                mask = Image.fromarray(self.selection.mask(annotation) * np.uint8(255))
                mask = mask.resize(size, Image.Resampling.NEAREST)
                if mask.getextrema() == (0, 0):
                    self.dropped.append(
                        f"image {number} is dropped: its {name}'s mask is empty after "
                        f"resizing to {self.image_size}x{self.image_size}."
                    )
                    return None
                entry = {}
                for kind, picture in (("image", image), ("mask", mask)):
                    entry[kind] = f"{kind}s/{number}_{annotation['category_id']}.png"
                    picture.save(part / entry[kind])
                    content = (part / entry[kind]).read_bytes()
                    entry[f"{kind}_sha256"] = hashlib.sha256(content).hexdigest()
                return {
                    **entry,
                    "category": name,
                    "category_id": annotation["category_id"],
                    "image_id": number,
                    "annotation_id": annotation["id"],
                    "bbox": annotation["bbox"],
                    **{k: record.get(k) for k in ("width", "height", "license", *self.ADDRESSES)},
                }

            @staticmethod
            def _find_file(images, record):
                if isinstance(images, dict):
                    found = images[record["id"]]
                    if isinstance(found, Exception):
                        raise ValueError(str(found))
                    return Path(found)
                folder, file = Path(images).resolve(), Path(images, record["file_name"]).resolve()
                if not file.is_relative_to(folder):
                    raise ValueError("its file is a link that leads out of the folder of images")
                return file

            def read_image(self, path, record):
                """Decodes one image to RGB; the header's size is checked before any pixel."""
                if not path.is_file():  # a device or a pipe would block
                    raise ValueError("its file is not there")
                with Image.open(path, formats=self.READABLE) as image:
                    size = record["width"], record["height"]
                    if image.size != size:
                        raise ValueError(
                            "its file is {}x{}, the JSON says {}x{}".format(*image.size, *size)
                        )
                    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
                        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                    mode = "RGBA" if "transparency" in image.info else "RGB"
                    return image.convert(mode).convert("RGB")

            def _manifest(self, records):
                source, used = self.selection.annotations, [r["license"] for r in records]
                own = {"image_size": self.image_size, "split": self.split}
                return {
                    "format": self.FORMAT,
                    "description": source.description,
                    "source": {"file": source.file.name, "sha256": source.sha256},
                    "options": {**self.selection.options, **own},
                    "licenses": {n: r for n, r in sorted(source.licenses.items()) if n in used},
                    "kept": {name: self.kept[name] for name in self.selection.classes},
                    "left_out": [
                        *source.problems,
                        *self.selection.problems,
                        *self.problems,
                        *self.dropped,
                    ],
                    "samples": records,
                }

        class CocoDownloader:
            """Fetches COCO's annotation archive and the images of a selection, and nothing half.

            The full image archives are 19 GB; a selection of three classes needs some hundred MB of
            it, image by image. Networks drop, stall, cut short and answer errors, so each file is
            streamed to `<name>.part`, counted against the length the server named, checked (a JPEG
            is decoded and its size held against the JSON) and only then renamed. What has the final
            name is whole: an interrupted download, run again, fetches what is missing. Errors that
            may pass (a broken connection, 408, 429, 5xx, a file that fails its check) are tried
            again after `backoff`, then twice, four times that; 404 and its kind are not.
            torchvision's `download_url` has neither time limit nor second try, hence this class.

            Errors: OSError or ValueError for an archive that cannot be fetched or is not COCO's.
            Those of images are not raised: each stands in the result in the place of its file.
            Source: https://cocodataset.org/#download

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoDownloader
            """

            ANNOTATIONS_URL = (
                "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
            )
            MAX_IMAGE_BYTES, MAX_ARCHIVE_BYTES = 2**26, 2**32
            # Faults of this machine (disk full, no right to write) end the run.
            LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

            def __init__(self, *, workers=8, retries=4, backoff=1.0, timeout=30.0, progress=True):
                self.workers, self.retries, self.backoff = workers, retries, backoff
                self.timeout, self.progress = timeout, progress
                self._stopped, self._lock = threading.Event(), threading.Lock()
                # The default opener would also read file:, ftp: and data: addresses.
                self._opener = urllib.request.OpenerDirector()
                for handler in (
                    urllib.request.ProxyHandler,
                    urllib.request.HTTPHandler,
                    urllib.request.HTTPSHandler,
                    urllib.request.HTTPRedirectHandler,
                    urllib.request.HTTPDefaultErrorHandler,
                    urllib.request.HTTPErrorProcessor,
                    urllib.request.UnknownHandler,
                ):
                    self._opener.add_handler(handler())

            def fetch_images(self, records, folder):
                """Fetches COCO's image records into folder; returns {image id: file, or its error}.

                The file names are made from the ids as COCO's own are, never taken from the JSON.
                """
                folder, results = Path(folder), {}
                folder.mkdir(parents=True, exist_ok=True)
                with self._bar("download") as bar, ThreadPoolExecutor(self.workers) as pool:
                    tasks = {
                        pool.submit(self._fetch_image, r, folder, bar): r["id"] for r in records
                    }
                    try:
                        for done, task in enumerate(as_completed(tasks), 1):
                            results[tasks[task]] = task.result()
                            bar.set_postfix_str(f"{done}/{len(tasks)} files")
                    except BaseException:  # Ctrl-C or a full disk: let no thread go on trying
                        self._stopped.set()
                        pool.shutdown(cancel_futures=True)
                        raise
                return dict(sorted(results.items()))

            def _fetch_image(self, record, folder, bar):
                path = folder / f"{record['id']:012d}.jpg"
                try:
                    self.check_image(path, record)
                    return path
                except (OSError, ValueError):
                    pass  # missing or broken: fetch it
                try:
                    url = record.get("coco_url") or ""
                    self.fetch(
                        url, path, self.MAX_IMAGE_BYTES, bar, lambda p: self.check_image(p, record)
                    )
                    return path
                except (OSError, ValueError) as error:
                    if getattr(error, "errno", None) in self.LOCAL_ERRORS:
                        raise
                    return error

            @staticmethod
            def check_image(path, record):
                """Decodes an image file; ValueError when broken or of another size."""
                try:
                    with Image.open(path, formats=("JPEG", "PNG")) as image:
                        size, expected = image.size, (record["width"], record["height"])
                        if size == expected:
                            image.load()
                except FileNotFoundError:
                    raise
                except Exception as error:  # decoders fail on hostile bytes in many ways
                    raise ValueError("what came cannot be decoded as an image") from error
                if size != expected:
                    raise ValueError(
                        "what came is {}x{}, the JSON says {}x{}".format(*size, *expected)
                    )

            def fetch_annotations(self, folder, *, url=None, names=None):
                """Fetches the archive, unpacks the wanted members and returns their files."""
                names = names or ("instances_train2017.json", "instances_val2017.json")
                folder = Path(folder)
                folder.mkdir(parents=True, exist_ok=True)
                files = [folder / name for name in names]
                if all(file.is_file() for file in files):
                    return files
                archive = folder / "annotations.zip"
                if not zipfile.is_zipfile(archive):
                    url = self.ANNOTATIONS_URL if url is None else url
                    with self._bar("annotations") as bar:
                        self.fetch(url, archive, self.MAX_ARCHIVE_BYTES, bar, self._check_archive)
                try:
                    with zipfile.ZipFile(archive) as opened:
                        for file in files:
                            self._unpack(opened, f"annotations/{file.name}", file)
                except (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                    raise ValueError(f"{url or archive} is not COCO's archive: {error}.") from None
                finally:
                    archive.unlink()
                return files

            @staticmethod
            def _check_archive(path):
                if not zipfile.is_zipfile(path):
                    raise ValueError("what came is not a zip archive")

            def _unpack(self, archive, member, file):
                """Writes one member to a path of ours; the archive's own paths are never used."""
                part = file.with_name(file.name + ".part")
                try:
                    if archive.getinfo(member).file_size > self.MAX_ARCHIVE_BYTES:
                        raise zipfile.BadZipFile(f"{member} is larger than COCO's")
                    with archive.open(member) as source, part.open("wb") as target:
                        shutil.copyfileobj(source, target, 2**20)
                    part.replace(file)
                finally:
                    part.unlink(missing_ok=True)

            def fetch(self, url, path, max_bytes, bar, check):
                """Fetches one address into path; OSError or ValueError says why it could not."""
                if not url.lower().startswith(("http://", "https://")):
                    raise ValueError(f"its address {ascii(url)[:80]} is not an http(s) address")
                part = path.with_name(path.name + ".part")
                try:
                    for attempt in range(self.retries + 1):
                        if attempt and self._stopped.wait(self.backoff * 2 ** (attempt - 1)):
                            break
                        try:
                            self._stream(url, part, max_bytes, bar)
                            check(part)
                            part.replace(path)
                            return
                        except urllib.error.HTTPError as error:
                            error.close()
                            reason = f"the server answered {error.code} {error.reason}"
                            if error.code < 500 and error.code not in (408, 429):
                                break
                        except (OSError, http.client.HTTPException, ValueError) as error:
                            if getattr(error, "errno", None) in self.LOCAL_ERRORS:
                                raise
                            reason = str(getattr(error, "reason", error)) or type(error).__name__
                            if isinstance(error, (http.client.InvalidURL, UnicodeError)):
                                break
                    raise OSError(f"it could not be fetched from {ascii(url)[1:-1]}: {reason}")
                finally:
                    part.unlink(missing_ok=True)

            def _stream(self, url, part, max_bytes, bar):
                request = urllib.request.Request(url, headers={"User-Agent": "SegStudio"})
                received = 0
                with (
                    self._opener.open(request, timeout=self.timeout) as source,
                    part.open("wb") as target,
                ):
                    length = source.length
                    with self._lock:
                        bar.total = (bar.total or 0) + (length or 0)
                    while block := source.read1(2**16):
                        received += len(block)
                        if received > max_bytes:
                            raise ValueError(f"more than {max_bytes} bytes came")
                        target.write(block)
                        with self._lock:
                            bar.update(len(block))
                if length is not None and received != length:
                    raise ValueError(f"{received} of {length} bytes came")

            def _bar(self, title):
                return tqdm(desc=title, unit="B", unit_scale=True, disable=not self.progress)

        class CocoSyntheticSet:
            """Draws a set in COCO's format for machines without COCO; it is not COCO and says so.

            Cakes, dogs and motorcycles stand in front of textures. Form has to be learned: objects,
            backgrounds, clutter and distractors (persons, plants) share one palette, and size,
            tilt, side and light change. The annotations are polygons, both kinds of RLE, and
            crowds. Beside `num_images` images that pass the homework's selection some do not: two
            of a kind, two classes, too small, a crowd. The same arguments give the same files.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoSyntheticSet
            """

            CATEGORIES = {1: "person", 4: "motorcycle", 18: "dog", 61: "cake", 64: "potted plant"}
            CLASSES = (61, 18, 4)
            PALETTE = np.array([
                [214, 190, 160], [150, 105, 70], [90, 62, 45], [235, 228, 215], [60, 60, 66],
                [130, 135, 140], [178, 62, 54], [70, 95, 140], [98, 125, 80], [222, 170, 90]]) / 255
            OUTLINES = {"disk": np.exp(2j * np.pi * np.arange(28) / 28)[:, None].view(np.float64),
                        "box": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)}
            FIGURES = {  # (kind, x, y, half width, half height, tone), back to front; y points down
                61: [("disk", 0, .8, 1, .2, 0), ("box", 0, .5, .85, .3, 1),
                     ("disk", 0, .2, .85, .13, 2), ("box", 0, -.1, .55, .28, 1),
                     *(("disk", x, .31, .13, .21, 2) for x in (-.6, -.1, .45)),
                     ("disk", 0, -.38, .55, .1, 2),
                     *(("disk", x, -.29, .11, .17, 2) for x in (-.3, .2)),
                     *(("bar", x, -.4, x, -.78, 3) for x in (-.3, 0, .3)),
                     *(("disk", x, -.87, .05, .11, 4) for x in (-.3, 0, .3))],
                18: [("bar", -.7, -.1, -1.05, -.55, 0), ("disk", -.1, .05, .72, .36, 0),
                     *(("box", x, .55, .09, .46, 3) for x in (-.58, .3)),
                     *(("box", x, .55, .1, .48, 0) for x in (-.4, .46)),
                     ("disk", .5, -.2, .25, .34, 0), ("disk", .72, -.5, .29, .27, 0),
                     ("disk", 1, -.42, .2, .12, 1), ("disk", .55, -.5, .1, .27, 2),
                     ("disk", .8, -.58, .04, .04, 4), ("disk", 1.15, -.48, .06, .05, 4)],
                4: [*(("disk", x, .5, .42 - k, .42 - k, int(9 * k)) for x in (-.75, .8)
                      for k in (0, .14, .34)), ("bar", -.75, .5, 0, .1, 2),
                    ("bar", .8, .5, .5, -.4, 2), ("bar", 0, .45, .6, -.1, 2),
                    ("disk", 0, .4, .3, .22, 3), ("bar", -.1, .55, -.95, .6, 4),
                    ("disk", .15, -.1, .42, .2, 5), ("disk", -.45, -.05, .42, .12, 2),
                    ("bar", .5, -.4, .2, -.62, 2), ("disk", .66, -.3, .13, .14, 4)],
                1: [("box", 0, .7, .3, .5, 0), ("disk", 0, 0, .4, .5, 1),
                    ("disk", 0, -.7, .2, .25, 2), ("bar", -.3, -.3, -.6, .3, 1),
                    ("bar", .3, -.3, .6, .3, 1)],
                64: [("box", 0, .7, .4, .3, 0),
                     *(("disk", x, x * x - .4, .3, .3, 1) for x in (-.5, .5, 0))],
            }

            def __init__(self, *, seed=0, progress=True):
                self.seed, self.progress = seed, progress

            def write(self, folder, split, num_images):
                """Writes <folder>/<split>/*.jpg and the annotation file, which it returns."""
                folder, images, annotations = Path(folder), [], []
                number = {"train": 1, "test": 2}[split]
                (folder / split).mkdir(parents=True, exist_ok=True)
                (folder / "annotations").mkdir(exist_ok=True)
                extra = ("two of a kind", "two classes", "too small", "crowd")
                kinds = ["single"] * num_images + [*extra] * (1 + num_images // 16)
                for place, kind in enumerate(tqdm(kinds, split, disable=not self.progress)):
                    self._rng = np.random.default_rng((self.seed, number, place))
                    picture, objects = self._compose(kind, self.CLASSES[place % 3])
                    image_id, (width, height) = number * 1_000_000 + place, picture.size
                    name = f"{image_id:012d}.jpg"
                    picture.save(folder / split / name, quality=90)
                    images.append({"id": image_id, "file_name": name,
                                   "width": width, "height": height})
                    annotations += ({"image_id": image_id, **record} for record in objects)
                data = {
                    "info": {"description": "SYNTHETIC: drawn by SegStudio, it is not COCO"},
                    "categories": [{"id": n, "name": k} for n, k in self.CATEGORIES.items()],
                    "annotations": [{"id": k, **a} for k, a in enumerate(annotations, 1)],
                    "images": images,
                }
                file = folder / "annotations" / f"instances_{split}.json"
                file.write_text(json.dumps(data), encoding="utf-8")
                return file

            def _compose(self, kind, category):
                """One picture and its annotation records, painted from back to front."""
                rng = self._rng
                width, height = rng.integers((300, 270), (341, 301)).tolist()
                canvas = self._background(width, height)
                large, small = rng.uniform(206, 260, 2), rng.uniform(70, 150, 2)
                plan = []  # (category, (box width, box height)), the last one in front
                if rng.random() < 0.5:
                    plan.append((int(rng.choice([1, 64])), rng.uniform((50, 110), (120, 240))))
                if kind.startswith("two"):
                    other = {61: 18, 18: 4, 4: 61}[category]
                    plan.append((category if kind == "two of a kind" else other, small))
                plan.append((category, small if kind == "too small" else large))
                layers = []
                for number, size in plan:
                    parts = self._place(self._draw(number), size, width, height)
                    self._paint(canvas, parts, (90, 90) if number == 61 else (18, 70))
                    layers.append((number, [points for points, _ in parts]))
                picture = Image.fromarray((self._light(canvas) * 255).astype(np.uint8))
                picture = picture.convert("L") if rng.random() < 0.05 else picture  # as in COCO
                objects = self._annotate(layers, width, height)
                if kind == "crowd":
                    corner = 30 + 25 * self.OUTLINES["box"]
                    crowd = self._annotate([(category, [corner])], width, height, kinds=(1,))
                    objects.append({**crowd[0], "iscrowd": 1})
                return picture, objects

            def _annotate(self, layers, width, height, kinds=(0, 1, 2)):
                """COCO's records; what a nearer object hides is no part of a mask, so RLE there."""
                records, hidden = [], np.zeros((height, width), np.uint8)
                for number, polygons in reversed(layers):
                    outline = [np.round(points, 2).ravel().tolist() for points in polygons]
                    rles = pycocotools.mask.frPyObjects(outline, height, width)
                    whole = pycocotools.mask.decode(pycocotools.mask.merge(rles))
                    mask = np.asfortranarray(whole & (1 - hidden))
                    hidden |= whole
                    rle = pycocotools.mask.encode(mask)
                    forms = outline, self._runs(mask), {**rle, "counts": rle["counts"].decode()}
                    kind = int(self._rng.choice(kinds)) if (mask == whole).all() else 2
                    records.append({"category_id": number, "iscrowd": 0, "area": int(mask.sum()),
                                    "bbox": pycocotools.mask.toBbox(rle).tolist(),
                                    "segmentation": forms[kind]})
                return [record for record in records if record["area"]]

            @staticmethod
            def _runs(mask):
                """Uncompressed RLE: lengths of the runs down the columns, zeros first."""
                flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
                edges = np.flatnonzero(np.diff(flat))
                return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}

            def _noise(self, width, height, cells_x, cells_y, octaves=3):
                """Value noise in 0..1: random grids, each twice as fine and half as strong."""
                total = np.zeros((height, width), np.float32)
                for scale in 2 ** np.arange(octaves):
                    shape = 1 + math.ceil(cells_y * scale), 1 + math.ceil(cells_x * scale)
                    grid = Image.fromarray(self._rng.random(shape, np.float32) / np.float32(scale))
                    total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
                return (total - total.min()) / max(np.ptp(total), 1e-6)

            def _colors(self, number):
                chosen = self._rng.choice(self.PALETTE, number, replace=False)
                return np.clip(chosen + self._rng.normal(0, 0.05, chosen.shape), 0.03, 0.97)

            def _background(self, width, height):
                """Two colors mixed by noise or wavy stripes, and clutter without a name on it."""
                noise = self._noise(width, height, *self._rng.uniform(2, 9, 2), octaves=4)
                if self._rng.random() < 0.4:  # planks, cloth, grass: stripes bent by the noise
                    angle, waves = self._rng.uniform(0, math.pi), self._rng.uniform(10, 40)
                    y, x = np.mgrid[:height, :width] / height
                    along = waves * (x * math.cos(angle) + y * math.sin(angle))
                    noise = 0.5 + 0.5 * np.sin(along + 5 * noise)
                first, second = self._colors(2)
                canvas = first + noise[..., None] * (second - first)  # (H, W, 3)
                for kind in self._rng.choice(["disk", "box"], self._rng.integers(3, 9)):
                    size = self._rng.uniform(20, 110, 2)
                    parts = self._place([(self.OUTLINES[kind], 0)], size, width, height)
                    self._paint(canvas, parts, (60, 60))
                return canvas

            def _draw(self, number):
                """A figure's parts [(points, tone)], each shifted and stretched a little."""
                parts = []
                for kind, x, y, a, b, tone in self.FIGURES[number]:
                    x, y = (x, y) + self._rng.normal(0, 0.015, 2)
                    if kind == "bar":  # thin, from (x, y) to (a, b)
                        side = np.array([y - b, a - x]) / math.hypot(a - x, b - y) * 0.05
                        ends = np.array([(x, y), (a, b)])
                        points = np.concatenate([ends + side, ends[::-1] - side])
                    else:
                        size = (a, b) * self._rng.uniform(0.88, 1.12, 2)
                        points = (x, y) + self.OUTLINES[kind] * size
                    parts.append((points, tone))
                return parts

            def _place(self, parts, size, width, height):
                """Mirrors, tilts and scales a figure to a box of that size somewhere inside."""
                tilt, side = self._rng.uniform(-0.25, 0.25), self._rng.choice([-1, 1])
                turn = np.array([[side, side * tilt], [-tilt, 1]])  # nearly a rotation, then scaled
                parts = [(points @ turn, tone) for points, tone in parts]
                every = np.concatenate([points for points, _ in parts])
                low, scale = every.min(axis=0), np.asarray(size) / np.ptp(every, axis=0)
                corner = self._rng.uniform(1, np.array([width, height]) - 1 - size)
                return [((points - low) * scale + corner, tone) for points, tone in parts]

            def _paint(self, canvas, parts, cells):
                """Fills the parts: a color per tone, a texture, and shade toward the lower side."""
                shape = canvas.shape[:2]
                grain = 0.72 + 0.5 * self._noise(*shape[::-1], *cells, octaves=2)
                colors = self._colors(6)
                for points, tone in parts:
                    rows, columns = skimage.draw.polygon(points[:, 1], points[:, 0], shape)
                    if len(rows):
                        shade = 1.12 - 0.35 * (rows - rows.min()) / max(np.ptp(rows), 1)
                        tint = colors[tone] * (grain[rows, columns] * shade)[:, None]
                        canvas[rows, columns] = np.clip(tint, 0, 1)

            def _light(self, canvas):
                """Light from one side, exposure and grain over the whole picture."""
                slope = self._noise(*canvas.shape[1::-1], 1, 1, octaves=1)[..., None] - 0.5
                exposure, contrast, blur = self._rng.uniform((0.75, 0, 0.4), (1.2, 0.6, 0.9))
                canvas = canvas * (exposure + contrast * slope)
                canvas = skimage.filters.gaussian(canvas, blur, channel_axis=2)
                return np.clip(canvas + self._rng.normal(0, 0.02, canvas.shape), 0, 1)

        class CocoSingleObjectDataset(Dataset):
            """Images with one object each, from a folder that CocoPreparer wrote.

            An item has the keys of the shapes dataset, with one channel where that one has five, so
            one training loop serves both. `mask_value` is what a pixel of the object holds, 255 as
            in the homework or 1: it decides the scale of the loss. The squared error of 255-valued
            masks starts 65,025 times higher than that of 1-valued ones, with gradients to match.

            The PNGs are decoded once into a `.npy` file of uint8 that is mapped into memory: the
            operating system loads the pages that are read and drops them again, so a set of any
            size needs constant memory and all DataLoader workers share it. The file is named after
            the content of manifest.json, which holds the checksum of every PNG: a set prepared anew
            is never read from an old cache. It lies beside the manifest or, where that folder
            cannot be written, in the user's cache folder.

            Shape: image (3, H, W) float32 in 0..255; mask_tensor (1, H, W) uint8, 0 or mask_value;
            bbox_tensor (1, 1, 4) float32, [min_x, min_y, max_x, max_y] of the resized mask's
            pixels; category, the index into class_names.

            Errors: FileNotFoundError and ValueError, each with what to do.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoSingleObjectDataset
            """

            FORMAT = "SegStudio COCO, one object per image, 1"

            def __init__(self, dl_studio, segmenter, train_or_test, dataset_dir, *,
                         mask_value=255, num_images=None):
                super().__init__()
                if train_or_test not in ("train", "test"):
                    raise ValueError(f"train_or_test is {train_or_test!r}, not 'train' or 'test'.")
                if mask_value not in range(1, 256):
                    raise ValueError(
                        f"mask_value is {mask_value!r}, not a whole number from 1 to 255."
                    )
                if num_images is not None and num_images < 1:
                    raise ValueError(
                        f"num_images is {num_images!r}; it must be 1 or more, or None."
                    )
                self.train_or_test, self.mask_value = train_or_test, mask_value
                self.folder = Path(dl_studio.dataroot, dataset_dir)
                content = self._read_manifest()
                options, self.samples = self.manifest["options"], self.manifest["samples"]
                if options["split"] != train_or_test:
                    raise ValueError(
                        f"{self.folder} holds the {options['split']} images, not "
                        f"{train_or_test}; give the folder prepared with that --split."
                    )
                side = options["image_size"]
                if list(dl_studio.image_size) != [side, side]:
                    raise ValueError(
                        f"{self.folder} holds images of [{side}, {side}] but image_size is "
                        f"{list(dl_studio.image_size)}; prepare with that --image-size."
                    )
                self.class_names = tuple(options["classes"])
                self.class_labels = dict(enumerate(self.class_names))
                self.mask_values = (mask_value,)
                fields = {"crc32": "<u4", "category": "<u4", "bbox": "4<f4"}
                fields |= {"image": f"(3,{side},{side})u1", "mask": f"(1,{side},{side})u1"}
                self.record_type = np.dtype(list(fields.items()))
                name = f"{train_or_test}-{hashlib.sha256(content).hexdigest()[:16]}.cache.npy"
                self.cache_file = self._find_cache(name)
                self._records = self._open_cache()
                self.length = len(self.samples[:num_images])

            def _read_manifest(self):
                file = self.folder / "manifest.json"
                if not file.is_file():
                    raise FileNotFoundError(
                        f"There is no {file}; make the folder with "
                        f"Datasets/prepare_coco.py --split {self.train_or_test}."
                    )
                content = file.read_bytes()
                try:
                    self.manifest = json.loads(content)
                    sound = self.manifest["format"] == self.FORMAT and self.manifest["samples"]
                    sound = sound and {"classes", "image_size"} <= self.manifest["options"].keys()
                except (ValueError, KeyError, TypeError, AttributeError):
                    sound = False
                if not sound:
                    raise ValueError(
                        f"{file} is not a manifest of prepared COCO images; prepare again."
                    )
                return content

            def _find_cache(self, name):
                """A cache file that is there and whole, else a new one."""
                home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
                files = (self.folder / name, home / "SegStudio" / name)
                for file in files:
                    if file.is_file() and self._is_whole(file):
                        return file
                for file in files:
                    try:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        handle, part = tempfile.mkstemp(".part", name, file.parent)
                    except OSError:
                        continue
                    try:
                        with os.fdopen(handle, "wb") as stream:
                            self._write_cache(stream)
                        Path(part).chmod(0o644)  # mkstemp's 0600 would lock a class out
                        Path(part).replace(file)
                    finally:
                        Path(part).unlink(missing_ok=True)
                    self._remove_stale(file)
                    return file
                raise OSError(
                    f"Neither {files[0].parent} nor {files[1].parent} can be written for the "
                    "cache; set XDG_CACHE_HOME to a folder of yours."
                )

            def _write_cache(self, stream):
                """Appends record by record: a mapped file would crash, not fail, on a full disk."""
                header = {
                    "descr": np.lib.format.dtype_to_descr(self.record_type),
                    "fortran_order": False,
                    "shape": (len(self.samples),),
                }
                np.lib.format.write_array_header_1_0(stream, header)
                for sample in self.samples:
                    record = np.zeros((), self.record_type)
                    image, mask = self._read_png(sample, "image"), self._read_png(sample, "mask")
                    record["image"] = image.permute(2, 0, 1).numpy()  # (3, H, W)
                    record["mask"] = (mask > 0).numpy()[None]  # (1, H, W)
                    record["bbox"] = torchvision.ops.masks_to_boxes(mask[None] > 0)[0].numpy()
                    record["category"] = self.class_names.index(sample["category"])
                    record["crc32"] = zlib.crc32(record.tobytes()[4:])
                    stream.write(record.tobytes())

            def _read_png(self, sample, kind):
                side = self.manifest["options"]["image_size"]
                file = self.folder / sample[kind]
                if not file.is_file():
                    raise FileNotFoundError(f"{file} is missing; prepare again.")
                content = file.read_bytes()
                if hashlib.sha256(content).hexdigest() != sample[f"{kind}_sha256"]:
                    raise ValueError(f"{file} is not the file that was prepared; prepare again.")
                with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                    if (
                        picture.size != (side, side)
                        or picture.mode != {"image": "RGB", "mask": "L"}[kind]
                    ):
                        raise ValueError(
                            f"{file} is not an 8-bit {kind} of {side}x{side}; prepare again."
                        )
                    return torch.from_numpy(np.array(picture))

            def _remove_stale(self, file):
                for other in file.parent.glob(f"{self.train_or_test}-*.cache.npy"):
                    if other != file and other.parent == self.folder:
                        other.unlink()

            def _open_cache(self, file=None):
                return np.load(file or self.cache_file, mmap_mode="r", allow_pickle=False)

            def _is_whole(self, file):
                try:
                    records = self._open_cache(file)
                except (OSError, ValueError, EOFError):
                    return False
                if records.dtype != self.record_type or records.shape != (len(self.samples),):
                    return False
                return all(zlib.crc32(r.tobytes()[4:]) == r["crc32"] for r in records)

            def __len__(self):
                return self.length

            def __getitem__(self, index):
                record = self._records[: self.length][index]
                return {
                    "image": torch.from_numpy(record["image"].astype(np.float32)),
                    "mask_tensor": torch.from_numpy(record["mask"] * np.uint8(self.mask_value)),
                    "bbox_tensor": torch.from_numpy(record["bbox"].reshape(1, 1, 4).copy()),
                    "category": int(record["category"]),
                }

            def __getstate__(self):
                """A mapped array would pickle as a copy of the set; workers map the file."""
                return {**self.__dict__, "_records": None}

            def __setstate__(self, state):
                self.__dict__.update(state)
                self._records = self._open_cache()

        # ==== §2 NETWORK: mUnet ==================================================================

        # ==== §3 LOSSES ==========================================================================

        # ==== §4 SCORES ==========================================================================

        # ==== §5 TRAINING ========================================================================

        # ==== §6 TESTING =========================================================================

        # ==== §7 FIGURES =========================================================================
