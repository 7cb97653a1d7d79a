"""SegStudio: semantic segmentation, explained and runnable, in one module."""

import argparse
import contextlib
import csv
import difflib
import errno
import gzip
import hashlib
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
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import skimage.draw
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

__version__ = "1.0.0"


class SegStudio:
    """The settings of a run."""

    class SemanticSegmentation(nn.Module):
        """The experiment."""

        # ==== §1 DATA: PurdueShapes5MultiObject ==================================================

        class PurdueShapes5MultiObjectDataset(Dataset):
            """Pictures of one to five colored shapes, with one mask plane per kind of shape.

            Segmentation is learned from pictures whose answer is known at every pixel. Each kind
            has a mask plane of its own, 0 but for the kind's value (rectangle 50 ... star 250) on
            its pixels, so that two kinds may claim one pixel. The archive is a gzip of a pickle of
            [dataset, label_map]; its first load makes a cache file, which later ones map into
            memory instead of reading it. `dataset[idx]` is the item as the archive has it,
            `generated` tells an archive that `generate` drew, `num_images` keeps the first N.

            Shape: an item is a dict of `image` (3, 64, 64) float32, 0..255; `mask_tensor`
            (5, 64, 64) uint8; `bbox_tensor` (5, 5, 4) float32: [i, k] is box i of kind k as [min_x,
            min_y, max_x, max_y], its first and last column and row, zeros where there is none.

            Errors: FileNotFoundError without an archive, ValueError (file, item) for a bad one,
            OSError for a cache that cannot be written. Source: DLStudio 2.3.6 (Avinash Kak).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  PurdueShapes5MultiObjectDataset
            """

            label_map = {"rectangle": 50, "triangle": 100, "disk": 150, "oval": 200, "star": 250}
            class_labels = {50: "rectangle", 100: "triangle", 150: "disk", 200: "oval", 250: "star"}
            class_names, mask_values, num_shapes = tuple(label_map), tuple(class_labels), 5

            class Records:
                """The cache file as a sequence of [R, G, B, mask_array, bbox_map].

                It is pickled as its path: a DataLoader worker maps the file again, copying nothing.
                """

                FIELDS = [("image", "u1", (3, 64, 64)), ("mask", "u1", (5, 64, 64))]
                DTYPE = np.dtype([*FIELDS, ("box", "i2", (5, 5, 4))])

                def __init__(self, path, num_images=None):
                    records = np.load(path, mmap_mode="r")
                    size = records.offset + records.nbytes
                    if records.dtype != self.DTYPE or size != path.stat().st_size:
                        raise ValueError(f"{path} is not a complete cache file")
                    self.path, records = path, records.view(np.ndarray)[:num_images]
                    self.image, self.mask, self.box = map(records.__getitem__, self.DTYPE.names)

                def __reduce__(self):
                    return type(self), (self.path, len(self))

                def __len__(self):
                    return len(self.image)

                def __getitem__(self, idx):
                    boxes = {kind: self.box[idx, :, kind] for kind in range(5)}
                    boxes = {kind: box[box.any(1)].tolist() for kind, box in boxes.items()}
                    red, green, blue = self.image[idx].reshape(3, -1).tolist()
                    return [red, green, blue, self.mask[idx].copy(), boxes]

                @classmethod
                def pack(cls, item):
                    """Returns an item, which may hold anything until it is checked, as a record."""
                    if not isinstance(item, (list, tuple)) or len(item) != 5:
                        raise ValueError("it is not a list [R, G, B, mask_array, bbox_map]")
                    record, keys = np.zeros((), cls.DTYPE), (50, 100, 150, 200, 250)
                    for k in range(3):
                        record["image"][k] = cls._plane(item[k], f"channel {'RGB'[k]}")
                    mask, box_map = item[3:]
                    mask = mask if isinstance(mask, (list, tuple)) else np.asarray(mask)
                    if len(mask) != 5:
                        raise ValueError(f"its mask has {len(mask)} planes instead of 5")
                    for k, value in enumerate(keys):
                        plane = record["mask"][k] = cls._plane(mask[k], f"mask plane {k}")
                        if not ((plane == 0) | (plane == value)).all():
                            raise ValueError(f"mask plane {k} has values other than 0 and {value}")
                    for key, boxes in box_map.items():
                        if key not in (*range(5), *keys):
                            raise ValueError(f"bbox_map has keys other than 0..4 and {keys}")
                        k = key if key in range(5) else keys.index(key)
                        boxes = [cls._listed(box) for box in cls._listed(boxes)]
                        if len(boxes) > 5 or any(len(box) != 4 for box in boxes):
                            raise ValueError(f"bbox_map[{key}] is not up to 5 boxes of 4 numbers")
                        for i, box in enumerate(boxes):
                            record["box"][i, k] = [int(corner) for corner in box]
                            if any(float(corner) != int(corner) for corner in box):
                                raise ValueError(f"bbox_map[{key}] has a fraction in a box")
                    return record

                @staticmethod
                def _listed(values):
                    is_list = isinstance(values, (list, tuple))
                    return values if is_list else np.asarray(values).tolist()

                @staticmethod
                def _plane(values, name):
                    """Returns 64x64 numbers 0..255, be they a list, a list of rows or an array."""
                    try:
                        if not isinstance(values, (list, tuple)):
                            values = np.asarray(values)
                            with np.errstate(invalid="ignore"):  # NaN is caught below
                                plane = values.astype("u1")
                            if not np.array_equal(plane, values):
                                raise ValueError("numbers out of range")
                            return plane.reshape(64, 64)
                        rows = values if isinstance(values[0], (list, tuple)) else [values]
                        if sum(len(row) for row in rows) != 64 * 64:
                            raise ValueError("wrong length")
                        # bytes() is quick, and refuses all but whole numbers 0..255.
                        return np.frombuffer(b"".join(map(bytes, rows)), "u1").reshape(64, 64)
                    except Exception as error:
                        what = f"{name} is not 64x64 whole numbers 0..255"
                        raise ValueError(f"{what} ({error})") from error

            class Note:
                """What a pickle says of an array, unchecked until the array is asked for."""

                CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")

                def __init__(self, name, args):
                    self.name, self.args = name, args

                def __setstate__(self, state):
                    self.state = state

                def __index__(self):
                    return int(np.asarray(self))

                def __array__(self, dtype=None, copy=None):
                    if self.name == "numpy.core.multiarray._reconstruct":
                        _, shape, number, fortran, data = self.state
                        order = "F" if fortran else "C"
                    elif self.name == "numpy.core.numeric._frombuffer":  # protocol 5
                        data, number, shape, order = self.args
                    elif self.name == "numpy.core.multiarray.scalar":
                        (number, data), shape, order = self.args, (), "C"
                    else:
                        raise ValueError(f"{self.name} where numbers should be")
                    if number.args[0] not in self.CODES:  # objects, above all
                        raise ValueError("an array of something other than numbers")
                    # Python 3 writes bytes to protocol 2 as text, Python 2 wrote them as strings.
                    data = data.args[0] if isinstance(data, type(self)) else data
                    data = data.encode("latin1") if isinstance(data, str) else data
                    numbers = np.frombuffer(data, number.state[1] + number.args[0])
                    return numbers.reshape(shape, order=order)

            class SafeUnpickler(pickle.Unpickler):
                """Reads a pickle as data and runs none of it.

                A pickle is a program: to load it is to run it, and one line of it can delete your
                files. Here nothing that it names is called: the names that arrays are made of each
                leave a note, any other name ends the reading.
                """

                NAMES = {
                    "builtins": ("bytes", "bytearray", "set", "frozenset", "list", "dict", "tuple"),
                    "_codecs": ("encode",),
                    "numpy": ("ndarray", "dtype"),
                    "numpy.core.multiarray": ("_reconstruct", "scalar"),
                    "numpy.core.numeric": ("_frombuffer",),
                }
                note = None  # the class of the notes

                def find_class(self, module, name):
                    # Python 2's and numpy 2's names for the same modules.
                    known = module.replace("__builtin__", "builtins").replace("._core.", ".core.")
                    if name not in self.NAMES.get(known, ()):
                        raise ValueError(f"it calls {module}.{name}, which no data needs")
                    return lambda *args: self.note(f"{known}.{name}", args)

            def __init__(
                self, dl_studio, segmenter, train_or_test, dataset_file, *, num_images=None
            ):
                super().__init__()
                if train_or_test not in ("train", "test"):
                    raise ValueError(f"train_or_test is {train_or_test!r}: say 'train' or 'test'")
                if list(dl_studio.image_size) != [64, 64]:
                    raise ValueError(f"image_size is {dl_studio.image_size}: these are [64, 64]")
                archive = Path(dl_studio.dataroot).expanduser() / dataset_file
                if not archive.is_file():
                    raise FileNotFoundError(
                        f"{archive} is not there: take it from datasets_for_DLStudio.tar.gz of "
                        "Avinash Kak's page (https://engineering.purdue.edu/kak/distDLS), or draw "
                        "such images by python Datasets/make_purdue_shapes.py --out "
                        f"'{archive}' (in a script: PurdueShapes5MultiObjectDataset.generate)"
                    )
                self.image_size = dl_studio.image_size
                data = archive.read_bytes()
                self.generated = b"generated by SegStudio" in data[:64]  # the name inside the gzip
                self.dataset = self._open(archive, data)
                if num_images is not None and not 1 <= num_images <= len(self):
                    raise ValueError(f"num_images is {num_images}, {archive} has {len(self)}")
                self.dataset = self.Records(self.dataset.path, num_images)

            def __len__(self):
                return len(self.dataset)

            def __getitem__(self, idx):
                return {
                    "image": torch.from_numpy(self.dataset.image[idx].astype("f4")),
                    "mask_tensor": torch.from_numpy(self.dataset.mask[idx].copy()),
                    "bbox_tensor": torch.from_numpy(self.dataset.box[idx].astype("f4")),
                }

            def _open(self, archive, data):
                """Maps the cache of exactly this content; the first load has to write it."""
                content, place = data, bytes(archive.resolve())
                content, place = (hashlib.sha256(x).hexdigest()[:16] for x in (content, place))
                home = os.path.expanduser("~/.cache")  # noqa: PTH111 (Path's fails without a home)
                user_cache = Path(os.environ.get("XDG_CACHE_HOME") or home)
                folders = archive.parent, user_cache / "segstudio" / place
                caches = [folder / f"{archive.name}.v1-{content}.cache.npy" for folder in folders]
                for cache in caches:
                    with contextlib.suppress(Exception):  # a cache that fails is made again
                        return self.Records(cache)
                print(f"First load of {archive}: unpacking it, once, into a cache file ...")
                items = self._read(archive, data)
                try:
                    try:
                        self._write(caches[0], archive, items)
                        return self.Records(caches[0])
                    except OSError as error:
                        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                            raise
                    self._write(caches[1], archive, items)
                    return self.Records(caches[1])
                except OSError as error:
                    size = len(items) * self.Records.DTYPE.itemsize / 1e6
                    raise OSError(
                        f"the cache of {archive} cannot be written ({error}): make room for "
                        f"{size:.0f} MB beside it, or set XDG_CACHE_HOME to where there is room"
                    ) from error

            def _read(self, archive, data):
                """Returns the list of the archive's items, not yet checked."""
                limit = (1 << 26) + 500 * len(data)  # more than this is no image, but a gzip bomb
                try:
                    with gzip.open(io.BytesIO(data)) as packed, io.BytesIO() as unpacked:
                        while chunk := packed.read(1 << 20):
                            if unpacked.tell() > limit:
                                raise ValueError(f"it unpacks to more than {limit} bytes")
                            unpacked.write(chunk)
                        unpacked.seek(0)
                        file = io.BufferedReader(unpacked)
                        unpickler = self.SafeUnpickler(file, encoding="latin1")  # for Python 2's
                        unpickler.note = self.Note
                        items, label_map = unpickler.load()
                    if label_map != self.label_map:
                        raise ValueError(f"its label_map is not {self.label_map}")
                    if len(items) == 0:
                        raise ValueError("it has no images")
                    if isinstance(items, dict) and items.keys() != set(range(len(items))):
                        raise ValueError("its images are not numbered 0, 1, 2, ...")
                    return [items[idx] for idx in range(len(items))]  # of a dict or a list
                except ValueError as error:
                    raise ValueError(f"{archive} is refused: {error}") from error
                except Exception as error:
                    raise ValueError(
                        f"{archive} is not a whole gzip of a pickle of [dataset, label_map] "
                        f"({type(error).__name__}: {error}): get it again"
                    ) from error

            def _write(self, cache, archive, items):
                """Checks and packs the items into a file that appears complete or not at all."""
                cache.parent.mkdir(parents=True, exist_ok=True)
                part = cache.with_name(f"{cache.name}.{os.getpid()}-{time.monotonic_ns()}.part")
                header = {"descr": self.Records.DTYPE.descr, "fortran_order": False}
                header["shape"] = (len(items),)
                try:
                    with part.open("xb") as file:
                        np.lib.format.write_array_header_1_0(file, header)
                        for idx, item in enumerate(items):
                            try:
                                record = self.Records.pack(item)
                            except Exception as error:
                                raise ValueError(f"{archive}, item {idx}: {error}") from error
                            file.write(record.tobytes())
                        file.flush()
                        os.fsync(file.fileno())
                    part.replace(cache)
                finally:
                    part.unlink(missing_ok=True)
                for old in cache.parent.glob("*.cache.npy"):  # of what the archive was before
                    if old != cache and old.name.startswith(f"{archive.name}.v"):
                        with contextlib.suppress(OSError):
                            old.unlink()

            class Painter:
                """Draws pictures like those of the original, of which it shares no pixel.

                Shapes are drawn one over the other, all of each inside the picture; one that hides
                more than half of another, or leaves less than 6 pixels of its width or height to be
                seen, is drawn elsewhere. Masks and boxes are those of the pixels that can be seen.
                """

                KINDS = "rectangle", "triangle", "disk", "oval", "star"

                @classmethod
                def write(cls, path, num_images, seed=0):
                    """Writes an archive of num_images pictures, the same ones for the same seed.

                    It appears complete or not at all. Boxes are [min_x, min_y, max_x, max_y], the
                    first and last column and row that the shape is seen in, keyed by kind 0..4.
                    """
                    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
                        if int(value) != value or value < least:
                            raise ValueError(f"{name} is {value}: it must be {least} or more")
                    path = Path(path).expanduser()
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.part")
                    pool = ThreadPoolExecutor(os.cpu_count())
                    try:
                        with part.open("xb") as file:
                            name = "generated by SegStudio"  # a label for who wonders: gzip -lN
                            with gzip.GzipFile(name, "wb", 1, file, mtime=0) as head:
                                head.write(b"\x80\x03](}")  # protocol 3: a list, first in it a dict
                            chunks = [
                                range(num_images)[start : start + 50]
                                for start in range(0, num_images, 50)
                            ]
                            packed = pool.map(cls._items, [seed] * len(chunks), chunks)
                            with tqdm(total=num_images, unit="image", desc=path.name) as bar:
                                for chunk, text in zip(chunks, packed, strict=True):
                                    file.write(text)
                                    bar.update(len(chunk))
                            labels = dict(zip(cls.KINDS, range(50, 251, 50), strict=True))
                            tail = pickle.dumps(labels, 3)[2:-1] + b"e."
                            file.write(gzip.compress(tail, 1, mtime=0))
                            file.flush()
                            os.fsync(file.fileno())
                        part.replace(path)
                    finally:
                        pool.shutdown(cancel_futures=True)
                        part.unlink(missing_ok=True)
                    return path

                @classmethod
                def _items(cls, seed, indices):
                    """Returns the zipped pickle of some items; such pieces follow each other."""
                    text = [b"("]
                    for index in indices:
                        image, mask, box_map = cls.draw(seed, index)
                        # DLStudio's channels are lists of 4096 ints. Pickle writes an int as K and
                        # its byte, which numpy can do for all of them, 20 times as fast.
                        ints = np.full((3, 4096, 2), ord("K"), "u1")
                        ints[:, :, 1] = image.reshape(3, 4096)
                        lists = b"".join(b"](" + channel.tobytes() + b"e" for channel in ints)
                        rest = [pickle.dumps(part, 3)[2:-1] for part in (index, mask, box_map)]
                        text += [rest[0], b"](", lists, rest[1], rest[2], b"e"]
                    return gzip.compress(b"".join([*text, b"u"]), 1, mtime=0)

                @classmethod
                def draw(cls, seed, index):
                    """Returns an image (3, 64, 64), its mask (5, 64, 64) and its boxes.

                    Shapes are dealt like cards: five images in a row have 1 to 5 of them, three of
                    each kind, of which one is small, one middling, one large. So every set of some
                    hundred images has the same mean of mask**2, and losses compare between sets.
                    """
                    deal = np.random.default_rng([seed, 0, index // 5])
                    ends, cards = np.cumsum(deal.permutation(5) + 1), deal.permutation(15)
                    cards = np.split(cards, ends)[index % 5].tolist()
                    rng = np.random.default_rng([seed, 1, index])
                    owner = np.zeros((64, 64), "u1")  # which shape is seen at a pixel, 0 for none
                    areas = []
                    while len(areas) < len(cards):
                        third, kind = divmod(cards[len(areas)], 5)
                        rows, cols = cls._pixels(kind, third, rng)
                        sides = [np.ptp(rows) + 1, np.ptp(cols) + 1] if len(rows) else [0]
                        if min(sides) < 6 or max(sides) > 32:
                            continue
                        if min(rows.min(), cols.min()) < 0 or max(rows.max(), cols.max()) > 63:
                            continue
                        trial = owner.copy()
                        trial[rows, cols] = len(areas) + 1
                        seen = [trial == number + 1 for number in range(len(areas))]
                        if any(
                            2 * one.sum() < area or min(one.any(0).sum(), one.any(1).sum()) < 6
                            for one, area in zip(seen, areas, strict=True)
                        ):
                            continue
                        owner, areas = trial, [*areas, len(rows)]
                    colors = rng.integers(0, 256, (len(cards), 3))
                    bright = rng.integers(3, size=len(cards))  # so that no color is near black
                    colors[range(len(cards)), bright] = rng.integers(128, 256, len(cards))
                    palette = np.vstack([np.zeros(3, "u1"), colors]).astype("u1")
                    image = palette[owner].transpose(2, 0, 1)  # (3, 64, 64)
                    mask, box_map = np.zeros((5, 64, 64), "u1"), {kind: [] for kind in range(5)}
                    for number, card in enumerate(cards, 1):
                        kind, seen = card % 5, owner == number
                        mask[kind][seen] = 50 * (kind + 1)
                        (x1, x2), (y1, y2) = (
                            np.flatnonzero(seen.any(axis))[[0, -1]].tolist() for axis in (0, 1)
                        )
                        box_map[kind].append([x1, y1, x2, y2])
                    return image, mask, box_map

                @staticmethod
                def _pixels(kind, third, rng):
                    """Returns the rows and columns of a shape of random size, place and angle."""
                    radius = 4 + 12 * ((third + rng.random()) / 3) ** 2.3  # mean of mask**2: 467
                    turn = rng.uniform(-np.pi, np.pi)
                    row, col = rng.uniform(radius / 2, 63 - radius / 2, 2)
                    if kind == 2:
                        return skimage.draw.disk((row, col), radius)
                    if kind == 3:
                        short = radius * rng.uniform(0.45, 0.7)
                        return skimage.draw.ellipse(row, col, radius, short, rotation=turn)
                    if kind == 0:
                        half = rng.uniform(0.4, 0.9)  # the angle of a diagonal: how slim it is
                        angles, reach = np.array([half, np.pi - half, np.pi + half, -half]), 1
                    elif kind == 1:
                        angles, reach = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.3, 0.3, 3), 1
                    else:  # a star's corners lie far out and near in turns
                        angles, reach = np.arange(10) * np.pi / 5, np.tile([1, 0.45], 5)
                    rows = row + radius * reach * np.sin(angles + turn)
                    cols = col + radius * reach * np.cos(angles + turn)
                    return skimage.draw.polygon(rows, cols)

            generate = Painter.write

            @classmethod
            def find_or_generate(cls, dataroot, dataset_file, seed=0):
                """Returns the path of the archive; where there is none, draws as many images as its
                name says (PurdueShapes5MultiObject-10000-train.gz), the test set from another seed.
                """
                archive = Path(dataroot).expanduser() / dataset_file
                if not archive.is_file():
                    counts = [int(part) for part in archive.stem.split("-") if part.isdigit()]
                    if len(counts) != 1:
                        raise ValueError(
                            f"{archive} is not there, and its name does not say how many images to "
                            "draw, as PurdueShapes5MultiObject-10000-train.gz does"
                        )
                    print(
                        f"{archive} is not there: drawing {counts[0]} images like Purdue's, "
                        "which is a generated set and not the original."
                    )
                    cls.generate(archive, counts[0], 2 * seed + archive.stem.endswith("-test"))
                return archive

        # ==== §1 DATA: COCO, one object per image ================================================

        # ==== §2 NETWORK: mUnet ==================================================================

        # ==== §3 LOSSES ==========================================================================

        # ==== §4 SCORES ==========================================================================

        # ==== §5 TRAINING ========================================================================

        # ==== §6 TESTING =========================================================================

        # ==== §7 FIGURES =========================================================================
