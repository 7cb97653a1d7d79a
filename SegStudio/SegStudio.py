"""SegStudio: semantic segmentation, explained and runnable, in one module.

Semantic segmentation asks of every pixel which class it belongs to. This module holds all that
an experiment with it needs, in the order of a lecture; read it from top to bottom.

SegStudio                                     the settings of a run, its device and its folder
  SemanticSegmentation                        an experiment
    §1 PurdueShapes5MultiObjectDataset        data: pictures of shapes; .generate draws them
       CocoAnnotations, CocoSelection,        data: COCO, from annotations
       CocoPreparer, CocoDownloader,            to small images with one mask each
       CocoSyntheticSet                         (a stand-in where there is no COCO)
       CocoSingleObjectDataset                  and to a training loop
    §2 mUnet (SkipBlockDN, SkipBlockUP)       network
    §3 SegmentationLossMSE, ...MAE, ...Dice,  losses
       ...Comb, ...BCEDice, SegmentationLoss
    §4 SegmentationScores, ConstantMask       scores, and answers that never look
    §5 TrainingHistory, TrainingCheckpoint,   training:
       TrainingLoop                             the one loop
       run_code_for_training_for_semantic_segmentation, custom_run_code_...: the ways in
    §6 run_code_for_testing_semantic_segmentation, score, load_run, predict_image
    §7 make_test_grid, overlay, save_panel_figure, probe_output_coverage: figures
  HomeworkReport                              the homework as one page

Vocabulary: an *image* (3, H, W) holds values of 0 to 255. A *mask* (C, H, W) has one plane per
class, 0 but for the class's mask value on its pixels. The *output* (C, H, W) is what the network
says; a *pred* is the output made binary. A *loss* is better low, a *score* better high. Letters in
shapes: N images in a batch, C channels, H rows, W columns.

To copy a class into a file of your own: take this module's import lines, and the class's source
moved to the left margin (`print(textwrap.dedent(inspect.getsource(cls)))`). Every data, network,
loss and score class runs like that, and names nothing outside itself.
"""

import argparse
import base64
import contextlib
import csv
import difflib
import errno
import functools
import gzip
import hashlib
import html
import http.client
import inspect
import io
import itertools
import json
import math
import os
import pickle
import platform
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict, namedtuple
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask
import skimage.draw
import skimage.filters
import skimage.segmentation
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

__version__ = "1.0.0"

# Okabe and Ito's palette: eight colours that colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")

# The look of the homework's report page: narrow and wide windows, light and dark, paper.
REPORT_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d5dae0;
--page:#fff;--link:#0072b2;--warn:#a34700}*{box-sizing:border-box}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb8;
--line:#3a424c;--page:#15191e;--link:#56b4e9;--warn:#f0a050}}
body{margin:auto;max-width:74rem;padding:1rem 1rem 4rem;color:var(--ink);
background:var(--page);font:1rem/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif;
overflow-wrap:break-word}h1{line-height:1.2}h2{margin-top:3rem;padding-top:.8rem;
border-top:1px solid var(--line)}p,li{max-width:46rem}a{color:var(--link)}
nav ul{columns:17rem}.short{color:var(--warn)}figcaption,caption,small{color:var(--soft)}
figure{margin:0;break-inside:avoid}.row{display:flex;flex-wrap:wrap;gap:1rem}
.row>*{flex:1 1 28rem;min-width:0;max-width:36rem}.row>.many{flex:1 1 100%;max-width:none}
.row>img{flex:0 0 auto;max-width:100%;height:auto;background:#fff;border:1px solid var(--line);
border-radius:4px}.many img{width:17.2rem}.one img{width:100%}caption{text-align:left}
table{border-collapse:collapse;width:100%;max-width:60rem;font-size:.9rem}th,td{
padding:.35rem .5rem;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}@media(max-width:34rem){table{font-size:.75rem}th,td{
padding:.3rem .2rem}.row>*{flex-basis:100%}.many img{width:100%}}@media print{body{
font-size:10pt;max-width:none}h2{break-after:avoid}tr{break-inside:avoid}.row>*{
flex-basis:55%}.row>.one{max-width:65%}table{font-size:.8rem}.many img{width:23%}}"""

# What the report page says of the ways in which its numbers need not be the report's.
REPORT_DIFFERENCES = """
<li><b>The masks are dotted</b>, there as here: the last layer reaches one output pixel in four, so
with any loss IoU can hardly pass 0.25. semantic_segmentation_dense.py shows the cure.</li>
<li><b>Every class is trained.</b> The report's loss loops counted channels up to the batch size, 4:
the fifth, the star, whose mask value is the largest, had no part in the loss.</li>
<li><b>Dice is the handout's</b>, of sums over each mask: 0 to 2, and near the report's 0.8-1. The
form in the report's text compares single pixels and has a pole at p + m = -1: with it, MSE + 200
Dice is not a number within 5 iterations here, and Dice alone falls below zero.</li>
<li><b>The pictures may differ.</b> Where the course's archive is not at hand, SegStudio draws
pictures of the same statistics.</li>
<li><b>Testing uses eval()</b>, so BatchNorm does not look at the other images of a batch, and
scores every test image. The report has no score.</li>
<li><b>Chance differs:</b> other first weights, another order of images, another torch.</li>"""


class SegStudio:
    """The settings of a run, the device it runs on, and the folder it writes to.

    Every experiment starts by making one of these. All that a run writes goes to one folder,
    `results_dir`/`run_name`; the working directory stays clean. DLStudio's keyword arguments have
    DLStudio's meaning, the last six are SegStudio's.

    Args:
        dataroot: folder of the data archives.
        image_size: [H, W] of the images.
        path_saved_model: a file that training writes the trained network to, and testing loads it
            from, as in DLStudio. None: only model.pt in the run's folder.
        momentum, learning_rate, epochs, batch_size: of the training by SGD.
        classes: names of the classes, in the order of the output channels.
        use_gpu: True picks CUDA, else Apple's MPS, else the CPU; False is the CPU.
        debug_train, debug_test: kept for DLStudio's scripts, which may read them.
        seed: makes a run repeatable: network weights, order of the images, augmentation.
        num_workers: processes that load data besides the main one.
        results_dir: folder of all runs.
        run_name: folder of this run in results_dir; its files are overwritten by a second run of
            that name. None: named after the script, with a number where that name is taken.
        show: open a window for each figure, besides saving it.

    Errors: ValueError for positional, unknown or impossible arguments; the first write to a
    results_dir that cannot be written is an OSError.

    Class Path:   SegStudio
    """

    def __init__(
        self, *args, dataroot="./data/PurdueShapes5MultiObject/", image_size=(64, 64),
        path_saved_model=None, momentum=0.9, learning_rate=1e-4, epochs=6, batch_size=4,
        classes=("rectangle", "triangle", "disk", "oval", "star"), use_gpu=False, debug_train=0,
        debug_test=0, seed=None, num_workers=0, results_dir="runs", run_name=None, show=False,
        **unknown,
    ):  # fmt: skip
        self._refuse_unknown(args, unknown)
        self.dataroot = dataroot
        self.image_size = image_size
        self.path_saved_model = path_saved_model
        self.momentum = momentum
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.class_labels = classes
        self.use_gpu = use_gpu
        self.debug_train = debug_train
        self.debug_test = debug_test
        self.seed = seed
        self.num_workers = num_workers
        self.results_dir = results_dir
        self.run_name = run_name
        self.show = show
        self._check_values()
        self.device = self._pick_device()
        self._run_dir = None
        self._displayed = 0
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - students' own code may draw from it
            torch.manual_seed(seed)

    @staticmethod
    def _refuse_unknown(args, unknown):
        valid = [
            name
            for name, parameter in inspect.signature(SegStudio.__init__).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        if args:
            raise ValueError(
                f"SegStudio takes keyword arguments only, but got {args[0]!r} without a keyword: "
                f"write for example dataroot={args[0]!r}. The keywords: {', '.join(valid)}"
            )
        for name in unknown:
            near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"SegStudio has no keyword argument {name!r}: did you mean {near!r}? "
                f"The keywords: {', '.join(valid)}"
            )

    def _check_values(self):
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
        sides = list(self.image_size) if isinstance(self.image_size, (list, tuple)) else []
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"image_size is [height, width] in pixels, not {self.image_size!r}")
        self.image_size = sides
        if not isinstance(self.learning_rate, (int, float)) or not self.learning_rate > 0:
            raise ValueError(f"learning_rate is a number above 0, not {self.learning_rate!r}")
        if not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise ValueError(f"num_workers is 0 or more, not {self.num_workers!r}")
        if self.run_name == "":
            raise ValueError("run_name is a name, not '': leave it out to get one")

    def _pick_device(self):
        if self.use_gpu and torch.cuda.is_available():
            return torch.device("cuda:0")
        if self.use_gpu and torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")

    # ---- the run's folder ----------------------------------------------------------------------

    @property
    def run_dir(self):
        """The folder of this run (a Path), made when it is first asked for."""
        if self._run_dir is None:
            results = Path(self.results_dir).expanduser()
            script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
            stem = script if re.fullmatch(r"[\w-]+", script) else "session"
            names = [self.run_name] if self.run_name is not None else itertools.chain(
                [stem], (f"{stem}-{number}" for number in itertools.count(2))
            )  # fmt: skip
            folder = results
            try:
                results.mkdir(parents=True, exist_ok=True)
                for name in names:
                    folder = results / name
                    with contextlib.suppress(FileExistsError):
                        folder.mkdir(parents=True, exist_ok=self.run_name is not None)
                        self._run_dir = folder
                        break
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise OSError(
                    f"the run cannot be written to {folder.absolute()} ({error.strerror}): give "
                    f"another results_dir (--results-dir), or free that one"
                ) from None
        return self._run_dir

    def check_results_dir(self):
        """Raise an OSError where the run could not be written; nothing is made yet."""
        folder = Path(self.results_dir).expanduser().absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(
                f"the run cannot be written to {folder}: give another results_dir (--results-dir), "
                f"or free that one"
            )

    def log(self, text=""):
        """Print a line, and keep it in log.txt of the run's folder."""
        tqdm.write(text)  # print would tear the progress bar
        with (self.run_dir / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @staticmethod
    def write_atomically(path, write):
        """Call write(temporary path), then put the result at `path`: whole, or not at all.

        A full disk or an interruption in the middle leaves the old file as it was.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            write(part)
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            raise OSError(f"{path.absolute()} could not be written ({error})") from error
        finally:
            part.unlink(missing_ok=True)

    def write_json(self, name, content):
        """Write `content` as file `name` in the run's folder."""
        text = json.dumps(content, indent=2, default=str) + "\n"
        self.write_atomically(self.run_dir / name, lambda part: part.write_text(text, encoding="utf-8"))

    # ---- figures -------------------------------------------------------------------------------

    def new_figure(self, **options):
        """A matplotlib figure: one with a window where show=True, else one for files only."""
        if self.show:
            import matplotlib.pyplot as plt  # only here: it may start a window system

            return plt.figure(**options)
        return Figure(**options)

    def save_figure(self, figure, name):
        """Save a figure as run_dir/name and, where show=True, open its window; returns the path."""
        path = self.run_dir / name
        with io.BytesIO() as png:
            figure.savefig(png, format="png", bbox_inches="tight")
            self.write_atomically(path, lambda part: part.write_bytes(png.getvalue()))
        if self.show:
            import matplotlib.pyplot as plt

            plt.show()
            plt.close(figure)
        return path

    def display_tensor_as_image(self, tensor, title=""):
        """Save a tensor as a picture in the run's folder; with show=True, open it in a window.

        As in DLStudio, values that span exactly -1 to 1 are taken for a normalized image and
        brought to 0..1; values above 1 are taken for 0..255. Greyscale spans black to white.

        Shape: (3, H, W) colour, (1, H, W) or (H, W) greyscale, on any device.
        Errors: ValueError for another shape.

        Class Path:   SegStudio  ->  display_tensor_as_image
        """
        if tensor.dim() == 2:
            tensor = tensor[None]
        if tensor.dim() != 3 or tensor.shape[0] not in (1, 3):
            raise ValueError(
                f"display_tensor_as_image shows tensors of shape (3, H, W), (1, H, W) or (H, W), "
                f"not {tuple(tensor.shape)}"
            )
        tensor = tensor.detach().cpu().float()
        if (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0):
            tensor = tensor / 2.0 + 0.5
        elif tensor.shape[0] == 3 and tensor.max() > 1:
            tensor = (tensor / 255).clamp(0, 1)
        height, width = tensor.shape[1:]
        self._displayed += 1
        figure = self.new_figure(figsize=(6, 6 * min(max(height / width, 0.3), 3) + 0.4), dpi=150)
        axes = figure.add_subplot()
        axes.imshow(tensor.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
        axes.set_title(title)
        axes.set_axis_off()
        slug = re.sub(r"\W+", "-", title).strip("-")[:60]
        self.save_figure(figure, f"display-{self._displayed:03d}{'-' + slug if slug else ''}.png")

    # ---- the command line of the examples ------------------------------------------------------

    @staticmethod
    def example_flags(description, *, quick=(1200, 1), full=(10000, 6), extra=None):
        """Read the flags that all examples share from the command line.

        Args:
            description: the text of --help, an example's docstring.
            quick, full: (training images, epochs) with and without --quick; epochs is None where
                an example trains for a time instead.
            extra: flags of this example alone, {"--name": keyword arguments of add_argument}.

        Returns: a namespace; epochs and train_images are filled in where the user gave none, and
        `settings` holds those of the flags that are keyword arguments of SegStudio.
        """

        def number(text):  # argparse names a bad value by this function's name
            if int(text) < 1:
                raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
            return int(text)

        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        shared = {
            "--quick": {"action": "store_true", "help": "a small run, to see all of it work"},
            "--epochs": {
                "type": number, "metavar": "N",
                "help": f"default {full[1]}, with --quick {quick[1]}"
                if full[1] else "not for this example, which trains for a time",
            },
            "--train-images": {
                "type": number, "metavar": "N",
                "help": f"train on the first N; default {full[0]}, with --quick {quick[0]}",
            },
            "--dataroot": {"metavar": "DIR", "help": "folder of the data"},
            "--results-dir": {"default": "runs", "metavar": "DIR", "help": "folder of all runs"},
            "--run-name": {"metavar": "NAME", "help": "folder of this run in it; default: new"},
            "--seed": {"type": int, "default": 0, "metavar": "N", "help": "default 0"},
            "--show": {"action": "store_true", "help": "open a window for each figure"},
        }  # fmt: skip
        for name, options in (shared | (extra or {})).items():
            parser.add_argument(name, **options)
        flags = parser.parse_args()
        if full[1] is None and flags.epochs is not None:
            parser.error("--epochs: this example trains for a time and not for epochs")
        images, epochs = quick if flags.quick else full
        flags.train_images = images if flags.train_images is None else flags.train_images
        flags.epochs = (epochs or 1) if flags.epochs is None else flags.epochs
        names = ("epochs", "seed", "results_dir", "run_name", "show")
        flags.settings = {name: getattr(flags, name) for name in names}
        if flags.dataroot is not None:
            flags.settings["dataroot"] = flags.dataroot
        return flags

    @staticmethod
    def run_example(main):
        """Call main(); a user's mistake ends in one sentence, not in a traceback."""
        try:
            main()
        except (OSError, ValueError, FloatingPointError) as error:
            if os.environ.get("SEGSTUDIO_TRACEBACK"):
                raise
            sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
        except KeyboardInterrupt:
            sys.exit(f"\n{Path(sys.argv[0]).name}: interrupted")

    class SemanticSegmentation(nn.Module):
        """An experiment in semantic segmentation: data, network, losses, scores, loops, figures.

        Semantic segmentation asks of every pixel which class it belongs to. This class holds all
        that such an experiment needs, in the order of a lecture: §1 data, §2 network, §3 losses,
        §4 scores, §5 training, §6 testing, §7 figures. Scripts make one, give it a pair of
        datasets and call its training and testing methods; students subclass it and override them.

        Args:
            dl_studio: the settings, a SegStudio.
            max_num_objects: the most objects that an image holds, 5 in the homework.
            dataserver_train, dataserver_test: the datasets, also to be set later.
            dataset_file_train, dataset_file_test: DLStudio's arguments, kept, unused there too.

        Class Path:   SegStudio  ->  SemanticSegmentation
        """

        # Set here because a student's class may pass over this __init__: DLStudio's
        # code, copied, says super(SegStudio.SemanticSegmentation, self).__init__().
        binary_targets = False  # True once a net has been trained on logits
        loaded_facts = None  # what load_run knows about the data of a saved network
        order_seed = None  # one number from which the order of the images of every epoch follows
        generator = None

        def __init__(
            self, dl_studio, max_num_objects, dataserver_train=None, dataserver_test=None,
            dataset_file_train=None, dataset_file_test=None,
        ):  # fmt: skip
            super().__init__()
            self.dl_studio = dl_studio
            self.max_num_objects = max_num_objects
            self.dataserver_train = dataserver_train
            self.dataserver_test = dataserver_test
            self._seed_order()

        def _seed_order(self):
            seed = self.dl_studio.seed
            self.order_seed = int(torch.randint(2**31, ())) if seed is None else seed
            self.generator = torch.Generator().manual_seed(self.order_seed)

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
                            if any(corner not in range(64) for corner in box):
                                raise ValueError(f"bbox_map[{key}] has a corner that is no pixel")
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
                            with tqdm(
                                total=num_images, unit="image", desc=path.name, disable=None
                            ) as bar:
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

        def load_PurdueShapes5MultiObject_dataset(self, dataserver_train, dataserver_test):
            """Make self.train_dataloader (shuffled) and self.test_dataloader, as DLStudio does."""
            settings = {
                "batch_size": self.dl_studio.batch_size,
                "num_workers": self.dl_studio.num_workers,
            }
            self.dataserver_train = dataserver_train
            self.dataserver_test = dataserver_test
            if self.generator is None:
                self._seed_order()
            self.train_dataloader = DataLoader(
                dataserver_train, shuffle=True, generator=self.generator, **settings
            )
            self.test_dataloader = DataLoader(dataserver_test, shuffle=False, **settings)

        def load_shapes(self, train_images=10000, test_images=1000):
            """Load the first `train_images` and the test images, drawing archives that are missing.

            The way of the examples: archives in dataroot are used, those that it lacks are
            generated, which is said. Small sets come from small archives, so that a first run
            starts at once.
            """
            dls = self.dl_studio
            dls.check_results_dir()
            servers = []
            wanted = {"train": (train_images, (2000, 10000)), "test": (test_images, (200, 1000))}
            for part, (number, sizes) in wanted.items():
                names = {
                    f"PurdueShapes5MultiObject-{size}-{part}.gz": size
                    for size in [size for size in sizes if size >= number] or [number]
                }
                at_hand = [n for n in names if Path(dls.dataroot, n).expanduser().exists()]
                archive = [*at_hand, *names][0]  # the smallest that is there, else a small new one
                self.PurdueShapes5MultiObjectDataset.find_or_generate(dls.dataroot, archive)
                servers.append(
                    self.PurdueShapes5MultiObjectDataset(
                        train_or_test=part, dl_studio=dls, segmenter=self, dataset_file=archive,
                        num_images=number if part == "train" or names[archive] > number else None,
                    )
                )  # fmt: skip
            self.load_PurdueShapes5MultiObject_dataset(*servers)

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
                        hide = None if progress else True  # None: where there is no terminal
                        bar = tqdm(tasks, self.split, len(samples), unit="image", disable=hide)
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
                hide = None if self.progress else True  # None: hide where there is no terminal
                return tqdm(desc=title, unit="B", unit_scale=True, disable=hide)

        class CocoSyntheticSet:
            """Draws a set in COCO's format for machines without COCO; it is not COCO and says so.

            Cakes, dogs and motorcycles stand in front of textures. Form has to be learned: objects,
            backgrounds, clutter and distractors (persons, plants) share one palette, and size,
            tilt, side and light change. Polygons, both kinds of RLE and crowds mark them. Beside
            `num_images` that pass the homework's selection, some fail it. Repeatable by its seed.

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
                kinds = tqdm(kinds, split, disable=None if self.progress else True)
                for place, kind in enumerate(kinds):
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
                self.folder = Path(dl_studio.dataroot, dataset_dir).expanduser()
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
                home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
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

        load_Coco_dataset = load_PurdueShapes5MultiObject_dataset  # the report's name for COCO

        def load_coco(self, folder=None, train_images=None, test_images=None, mask_value=255):
            """Load a folder that Datasets/prepare_coco.py wrote, or a synthetic stand-in for it.

            The way of the COCO examples. folder holds train/ and test/, prepared for the settings'
            image_size. None: a synthetic set in COCO's format is drawn and prepared in dataroot,
            once, which is said: scores on it are not scores on COCO.
            """
            dls = self.dl_studio
            dls.check_results_dir()
            side = dls.image_size[0]
            if folder is None:
                dls.log("No COCO folder was given: this is a SYNTHETIC set in COCO's format")
                folder = Path(dls.dataroot).expanduser() / f"synthetic-coco-{side}"
                for split, number in (("train", 480), ("test", 120)):
                    if not (folder / split / "manifest.json").is_file():
                        dls.log(f"Drawing {number} synthetic {split} images in {folder}")
                        source = Path(dls.dataroot).expanduser() / "synthetic-coco"
                        annotations = self.CocoSyntheticSet().write(source, split, number)
                        selection = self.CocoSelection(
                            self.CocoAnnotations(annotations), dls.class_labels
                        )
                        preparer = self.CocoPreparer(selection, image_size=side, split=split)
                        preparer.write(source / split, folder, workers=2)
            servers = [
                self.CocoSingleObjectDataset(
                    dl_studio=dls, segmenter=self, train_or_test=split,
                    dataset_dir=Path(folder).absolute() / split, mask_value=mask_value,
                    num_images=number,
                )
                for split, number in (("train", train_images), ("test", test_images))
            ]  # fmt: skip
            dls.class_labels = servers[0].class_names  # those that the folder was prepared with
            self.load_Coco_dataset(*servers)

        # ==== §2 NETWORK: mUnet ==================================================================

        class mUnet(nn.Module):
            """A U-Net with skip connections along its arms and one output channel per class.

            To name a shape a network has to look at it from afar: the left arm of the "U" halves
            the resolution until one pixel has seen the whole shape, the right arm doubles it again.
            The place of every edge, lost on the way, is handed across: half of the channels of each
            level of the left arm overwrite half of those of the right arm.

            Args:
                skip_connections: add the input of each block to its output (along the arms).
                depth: depth // 2 blocks of each kind are made; 16 in the homework.
                out_channels: C, the number of classes.
                upsampling: "strided" is DLStudio's: its kernels reach one output pixel in four,
                    the others equal the bias. "dense": all of them, with the same parameters.
                width: channels of the upper levels; the lower ones have twice as many.
                input_scale: factor on the pixel values, 1/255 for inputs of 0 to 1.
                wiring: "dlstudio" hands across after a level's blocks and applies some blocks
                    twice, others never. "unet": before them, and each block once.
                full_resolution: add a last step that puts the names on the image's own edges.

            Shape: (N, 3, H, W) -> (N, C, H, W), H and W divisible by 8.
            Errors: ValueError for arguments out of range and for an input of another shape.
            Source: DLStudio 2.3.6 (A. Kak); U-Net: Ronneberger, Fischer and Brox, MICCAI 2015.
            Class Path:   SegStudio  ->  SemanticSegmentation  ->  mUnet
            """

            class SkipBlockDN(nn.Module):
                """Two 3x3 convolutions and a shortcut around them, for the left arm of the "U".

                The shortcut lets gradients reach the early layers of a deep arm undiminished. The
                second convolution rests where the number of channels changes, as in DLStudio.

                Shape: (N, in_ch, H, W) -> (N, out_ch, H, W), or (N, out_ch, H/2, W/2) with
                downsample; out_ch is in_ch or 2 * in_ch.
                Source: DLStudio 2.3.6; He et al., "Deep residual learning", CVPR 2016.
                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SkipBlockDN
                """

                def __init__(self, in_ch, out_ch, downsample=False, skip_connections=True):
                    super().__init__()
                    self.downsample = downsample
                    self.skip_connections = skip_connections
                    self.in_ch, self.out_ch = in_ch, out_ch
                    self.convo1 = nn.Conv2d(in_ch, out_ch, 3, stride=1, padding=1)
                    self.convo2 = nn.Conv2d(in_ch, out_ch, 3, stride=1, padding=1)
                    self.bn1 = nn.BatchNorm2d(out_ch)
                    self.bn2 = nn.BatchNorm2d(out_ch)
                    if downsample:
                        self.downsampler = nn.Conv2d(in_ch, out_ch, 1, stride=2)

                def forward(self, x):
                    identity = x
                    out = torch.relu(self.bn1(self.convo1(x)))  # (N, out_ch, H, W)
                    if self.in_ch == self.out_ch:
                        out = torch.relu(self.bn2(self.convo2(out)))
                    if self.downsample:
                        # The same 1x1 weights shrink both paths: they stay comparable.
                        out = self.downsampler(out)  # (N, out_ch, H/2, W/2)
                        identity = self.downsampler(identity)
                    if self.skip_connections:
                        if self.in_ch != self.out_ch:
                            identity = torch.cat((identity, identity), dim=1)  # (N, 2*in_ch, H, W)
                        out = out + identity
                    return out

            class SkipBlockUP(nn.Module):
                """The mirror image of SkipBlockDN, for the right arm of the "U".

                Shape: (N, in_ch, H, W) -> (N, out_ch, H, W), or (N, out_ch, 2H, 2W) with
                upsample; out_ch is in_ch or in_ch / 2.
                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SkipBlockUP
                """

                def __init__(
                    self, in_ch, out_ch, upsample=False, skip_connections=True, *,
                    upsampling="strided",
                ):  # fmt: skip
                    super().__init__()
                    self.upsample = upsample
                    self.skip_connections = skip_connections
                    self.in_ch, self.out_ch = in_ch, out_ch
                    self.dense = upsampling == "dense"
                    self.convoT1 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
                    self.convoT2 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
                    self.bn1 = nn.BatchNorm2d(out_ch)
                    self.bn2 = nn.BatchNorm2d(out_ch)
                    if upsample:
                        gaps = {"stride": 2, "dilation": 2, "output_padding": 1}
                        gaps = {} if self.dense else gaps
                        self.upsampler = nn.ConvTranspose2d(in_ch, out_ch, 1, **gaps)

                def convolve(self, layer, x):
                    if not self.dense:
                        return layer(x)
                    weight = layer.weight.flip(2, 3).transpose(0, 1)  # the same at stride 1, faster
                    return nn.functional.conv2d(x, weight, layer.bias, padding=1)

                def resize(self, x):
                    x = self.upsampler(x)  # strided: (N, out_ch, 2H, 2W), 3 pixels in 4 the bias
                    # Copying pixels after a 1x1 convolution, not before, costs a quarter.
                    return nn.functional.interpolate(x, scale_factor=2.0) if self.dense else x

                def forward(self, x):
                    identity = x
                    out = torch.relu(self.bn1(self.convolve(self.convoT1, x)))  # (N, out_ch, H, W)
                    if self.in_ch == self.out_ch:
                        out = torch.relu(self.bn2(self.convolve(self.convoT2, out)))
                    if self.upsample:
                        out = self.resize(out)  # (N, out_ch, 2H, 2W)
                        identity = self.resize(identity)
                    if self.skip_connections:
                        if self.in_ch != self.out_ch:
                            identity = identity[:, self.out_ch :]  # (N, in_ch/2, H, W)
                        out = out + identity
                    return out

            def __init__(
                self, skip_connections=True, depth=16, *, out_channels=5, upsampling="strided",
                width=64, input_scale=1.0, wiring="dlstudio", full_resolution=False,
            ):  # fmt: skip
                super().__init__()
                # All that was passed: what predict.py needs to build the same network again.
                self.arguments = {k: v for k, v in locals().items() if k[0] != "_" and k != "self"}
                if min(depth, out_channels, width) < 1 or width % 2:
                    raise ValueError(
                        f"mUnet needs a depth and out_channels of 1 or more and an even width, "
                        f"not depth={depth}, out_channels={out_channels}, width={width}"
                    )
                if upsampling not in ("strided", "dense"):
                    raise ValueError(f'upsampling is "strided" or "dense", not {upsampling!r}')
                if wiring not in ("dlstudio", "unet"):
                    raise ValueError(f'wiring is "dlstudio" or "unet", not {wiring!r}')
                self.depth, self.input_scale, self.unet = depth // 2, input_scale, wiring == "unet"
                low, high = width, 2 * width
                down = functools.partial(self.SkipBlockDN, skip_connections=skip_connections)
                up = functools.partial(self.SkipBlockUP, **down.keywords, upsampling=upsampling)
                # The names carry DLStudio's widths, 64 and 128, whatever `width` is.
                self.conv_in = nn.Conv2d(3, low, 3, padding=1)
                self.bn1DN = nn.BatchNorm2d(low)
                self.bn2DN = nn.BatchNorm2d(high)
                self.skip64DN_arr = nn.ModuleList(down(low, low) for _ in range(self.depth))
                self.skip64dsDN = down(low, low, downsample=True)
                self.skip64to128DN = down(low, high)
                self.skip128DN_arr = nn.ModuleList(down(high, high) for _ in range(self.depth))
                self.skip128dsDN = down(high, high, downsample=True)
                self.bn1UP = nn.BatchNorm2d(high)
                self.bn2UP = nn.BatchNorm2d(low)
                self.skip64UP_arr = nn.ModuleList(up(low, low) for _ in range(self.depth))
                self.skip64usUP = up(low, low, upsample=True)
                self.skip128to64UP = up(high, low)
                self.skip128UP_arr = nn.ModuleList(up(high, high) for _ in range(self.depth))
                self.skip128usUP = up(high, high, upsample=True)
                # Stride 2 with dilation 2 lands every tap on even rows and columns: 1 pixel in 4.
                gap = 1 if upsampling == "dense" else 2
                self.conv_out = nn.ConvTranspose2d(
                    low, out_channels, 3, stride=2, dilation=gap, output_padding=1, padding=gap
                )
                if full_resolution:
                    edges = nn.Conv2d(3, low // 2, 3, padding=1), nn.ReLU()
                    self.edges = nn.Sequential(*edges, nn.Conv2d(low // 2, low // 2, 3, padding=1))
                    self.names = nn.Conv2d(low, low // 2, 1)
                    self.bn_full = nn.BatchNorm2d(low // 2)
                    self.conv_full = nn.Conv2d(low // 2, out_channels, 3, padding=1)

            def forward(self, x):  # the tags show the homework's H = W = 64, width = 64
                if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % 8 or x.shape[3] % 8:
                    raise ValueError(
                        f"mUnet takes (N, 3, H, W), H and W divisible by 8, not {tuple(x.shape)}"
                    )
                early = max(self.depth // 4, int(self.unet))
                def through(blocks, x):
                    return nn.Sequential(*blocks)(x)

                def join(saved, x, blocks):  # half of the channels carry edges, half carry names
                    x = x if self.unet else through(blocks, x)
                    x = torch.cat((saved, x[:, saved.shape[1] :]), dim=1)
                    return through(blocks, x) if self.unet else x

                rgb = x * self.input_scale  # (N, 3, 64, 64)
                x = torch.relu(nn.functional.max_pool2d(self.conv_in(rgb), 2))  # (N, 64, 32, 32)
                x = through(self.skip64DN_arr[:early], x)
                saved1 = x[:, : x.shape[1] // 2]  # (N, 32, 32, 32)
                x = self.skip64dsDN(x)  # (N, 64, 16, 16)
                x = self.bn1DN(through(self.skip64DN_arr[early:], x))
                saved2 = x[:, : x.shape[1] // 2]  # (N, 32, 16, 16)
                x = self.skip64to128DN(x)  # (N, 128, 16, 16)
                x = self.bn2DN(through(self.skip128DN_arr[:early], x))
                saved3 = x[:, : x.shape[1] // 2]  # (N, 64, 16, 16)
                x = self.skip128dsDN(through(self.skip128DN_arr[early:], x))  # (N, 128, 8, 8)
                x = join(saved3, self.skip128usUP(x), self.skip128UP_arr[:early])
                # DLStudio applies the same first blocks again here; the others never learn.
                rest = self.skip128UP_arr[early:] if self.unet else self.skip128UP_arr[:early]
                x = through(rest, self.bn1UP(x))
                x = join(saved2, self.skip128to64UP(x), self.skip64UP_arr[early:])
                x = join(saved1, self.skip64usUP(self.bn2UP(x)), self.skip64UP_arr[:early])
                if self.arguments["full_resolution"]:
                    names = nn.functional.interpolate(self.names(x), scale_factor=2.0)
                    fine = torch.relu(self.bn_full(self.edges(rgb) + names))  # (N, 32, 64, 64)
                    return self.conv_out(x) + self.conv_full(fine)
                return self.conv_out(x)  # (N, C, 64, 64)

        SkipBlockDN = mUnet.SkipBlockDN
        SkipBlockUP = mUnet.SkipBlockUP
        mUNet = mUnet  # the spelling of DLStudio 2.5.8

        # ==== §3 LOSSES ==========================================================================

        class SegmentationLoss(nn.Module):
            """DLStudio's first loss, kept for scripts that name it: channel 0 against every mask.

            The squared error of the first output channel against each mask plane, summed over the
            planes and averaged over the images. It never looks at the other output channels, so it
            cannot teach a network to tell shapes apart: a good example of a loss that goes down
            without the task being learned. DLStudio looped over the batch size where the number
            of planes was meant; here every plane counts.

            Shape: output (N, C, H, W) float, mask (N, C, H, W) -> scalar.
            Errors: ValueError, printing both shapes, where they differ.
            Source: DLStudio 2.3.6.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLoss
            """

            def __init__(self, batch_size=None):
                super().__init__()
                self.batch_size = batch_size  # DLStudio's argument; any batch size works

            def forward(self, output, mask_tensor):
                if output.shape != mask_tensor.shape or not output.is_floating_point():
                    raise ValueError(
                        f"SegmentationLoss takes a float output and a mask of the same shape, not "
                        f"{tuple(output.shape)} {output.dtype} and "
                        f"{tuple(mask_tensor.shape)} {mask_tensor.dtype}"
                    )
                with torch.autocast(output.device.type, enabled=False):
                    output = output.to(torch.promote_types(output.dtype, torch.float32))
                    error = (output[:, :1] - mask_tensor) ** 2  # (N, C, H, W)
                    return error.mean(dim=(2, 3)).sum(dim=1).mean()

        class SegmentationLossComb(nn.Module):
            """base + dice_scale * Dice: every pixel's value, and the overlap of the whole mask.

            MSE and MAE weigh each pixel alike, so a picture that is mostly background teaches
            mostly background. Dice looks at the overlap, whatever the object's size, but says
            little about the value of a pixel. A sum can have both, if the scale lets both speak:
            the homework tries 200, 300 and 400, because its MSE is in the hundreds where Dice is
            near 1. Watch the gradient norms that training writes to losses.csv: equal losses need
            not pull equally.

            Args:
                batch_size: accepted because the homework's code passes it; not used.
                dice_scale: the weight of the Dice term.
                base: "mse" (the shapes) or "mae" (the COCO task).
                form: of the Dice term, see SegmentationLossDice.

            Shape: output (N, C, H, W) float, mask (N, C, H, W) -> scalar.
            Errors: ValueError for an unknown base or form, and where the shapes differ.
            Source: Purdue ECE60146, homework 7 (Spring 2024).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossComb
            """

            class SegmentationLossMSE(nn.Module):
                """Mean squared error between output and mask values: the homework's first loss.

                Its gradient grows with the error, which makes large masks values (0..250) learn
                fast, and 0/255 masks blow up (see Examples/coco_exploding_mse.py).

                Formula: mean over all pixels of (p - m)**2. Bounds: 0 to infinity.
                Shape: output (N, C, H, W) float, mask (N, C, H, W) -> scalar.
                Errors: ValueError, printing both shapes, where they differ.

                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossMSE
                """

                def __init__(self, batch_size=None):
                    super().__init__()
                    self.batch_size = batch_size

                def forward(self, output, mask):
                    if output.shape != mask.shape or not output.is_floating_point():
                        raise ValueError(
                            f"SegmentationLossMSE takes a float output and a mask of the same "
                            f"shape, not {tuple(output.shape)} {output.dtype} and "
                            f"{tuple(mask.shape)} {mask.dtype}"
                        )
                    with torch.autocast(output.device.type, enabled=False):
                        output = output.to(torch.promote_types(output.dtype, torch.float32))
                        return nn.functional.mse_loss(output, mask.to(output.dtype))

            class SegmentationLossMAE(nn.Module):
                """Mean absolute error: every wrong pixel pulls with the same force.

                The gradient is the sign of the error, so it cannot explode on 0/255 masks, where
                MSE does. The price: it points to the median, and the median pixel is background.

                Formula: mean over all pixels of |p - m|. Bounds: 0 to infinity.
                Shape: output (N, C, H, W) float, mask (N, C, H, W) -> scalar.
                Errors: ValueError, printing both shapes, where they differ.

                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossMAE
                """

                def __init__(self, batch_size=None):
                    super().__init__()
                    self.batch_size = batch_size

                def forward(self, output, mask):
                    if output.shape != mask.shape or not output.is_floating_point():
                        raise ValueError(
                            f"SegmentationLossMAE takes a float output and a mask of the same "
                            f"shape, not {tuple(output.shape)} {output.dtype} and "
                            f"{tuple(mask.shape)} {mask.dtype}"
                        )
                    with torch.autocast(output.device.type, enabled=False):
                        output = output.to(torch.promote_types(output.dtype, torch.float32))
                        return nn.functional.l1_loss(output, mask.to(output.dtype))

            class SegmentationLossDice(nn.Module):
                """One minus the Dice overlap of output p and mask m, in three forms in use.

                Dice = 2 |P and M| / (|P| + |M|) is a score of two sets. To train with it, sums of
                products stand in for the set sizes, and the three usual ways differ a lot:

                "pixelwise" (the homework report): mean over pixels of 1 - (2pm + 1)/(p + m + 1).
                    No sum inside the fraction, so no overlap is measured. It has a pole at
                    p + m = -1, where its sign flips, and no lower bound: p = m = 50 gives -48.5.
                    A pixel with m = 0 costs p/(p + 1): false positives do count.
                "squared" (the handout): per image and channel 1 - 2 sum(pm)/(sum(pp) + sum(mm) +
                    eps), then the mean. From 0 (p = m) to 2 (p = -m); no pole. On a channel
                    without the class it is 1 whatever p is: zero gradient, unpunished.
                "linear" (most libraries): per image and channel 1 - (2 sum(pm) + s)/(sum(p) +
                    sum(m) + s), s = smooth. For p, m in [0, 1] only: there it is 0 to 1, and on an
                    empty channel sum(p)/(sum(p) + s), which does punish. On 250-valued masks a
                    perfect match gives -249, and negative outputs bring a pole.

                Shape: output (N, C, H, W) float, mask (N, C, H, W) -> scalar.
                Errors: ValueError for an unknown form, and where the shapes differ.
                Source: Milletari et al., "V-Net", 3DV 2016 ("squared"); homework 7 and its report.

                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossDice
                """

                def __init__(self, batch_size=None, form="pixelwise", *, smooth=1.0, eps=1e-6):
                    super().__init__()
                    if form not in ("pixelwise", "squared", "linear"):
                        raise ValueError(
                            f'form is "pixelwise", "squared" or "linear", not {form!r}'
                        )
                    self.batch_size = batch_size
                    self.form = form
                    self.smooth = smooth
                    self.eps = eps

                def forward(self, output, mask):
                    if output.shape != mask.shape or not output.is_floating_point():
                        raise ValueError(
                            f"SegmentationLossDice takes a float output and a mask of the same "
                            f"shape, not {tuple(output.shape)} {output.dtype} and "
                            f"{tuple(mask.shape)} {mask.dtype}"
                        )
                    with torch.autocast(output.device.type, enabled=False):
                        p = output.to(torch.promote_types(output.dtype, torch.float32))
                        m = mask.to(p.dtype)
                        if self.form == "pixelwise":
                            # 2pm + 1 = 2m(p + m + 1) - c: p in one place, half the backward pass.
                            c = torch.addcmul(-p.new_ones(()), m, m + 1, value=2)  # 2m(m + 1) - 1
                            return 1 + torch.sub(c / (p + (m + 1)), m, alpha=2).mean()
                        overlap = 2 * (p * m).sum(dim=(2, 3))  # (N, C)
                        if self.form == "squared":
                            size = (p * p).sum(dim=(2, 3)) + (m * m).sum(dim=(2, 3))  # (N, C)
                            return (1 - overlap / (size + self.eps)).mean()
                        size = p.sum(dim=(2, 3)) + m.sum(dim=(2, 3))  # (N, C)
                        return (1 - (overlap + self.smooth) / (size + self.smooth)).mean()

            def __init__(self, batch_size=None, dice_scale=200, base="mse", form="pixelwise"):
                super().__init__()
                bases = {"mse": self.SegmentationLossMSE, "mae": self.SegmentationLossMAE}
                if base not in bases:
                    raise ValueError(f'base is "mse" or "mae", not {base!r}')
                self.batch_size = batch_size
                self.dice_scale = dice_scale
                self.base_name = base
                self.base = bases[base]()
                self.dice = self.SegmentationLossDice(form=form)

            def terms(self, output, mask):
                """The summands of the loss by name, so that training can watch each of them."""
                return {
                    self.base_name: self.base(output, mask),
                    "dice": self.dice_scale * self.dice(output, mask),
                }

            def weigh_terms(self, output, mask, weights):
                """The norm of each term's gradient: how hard it pulls at the weights here."""
                norms = {}
                for name, term in self.terms(output, mask).items():
                    gradients = torch.autograd.grad(
                        term, weights, retain_graph=True, allow_unused=True
                    )
                    pulls = [g.norm() for g in gradients if g is not None]
                    norms[name] = torch.stack(pulls).norm()
                return norms

            def forward(self, output, mask):
                terms = self.terms(output, mask)
                self.latest = {name: term.detach() for name, term in terms.items()}
                return terms[self.base_name] + terms["dice"]

        SegmentationLossMSE = SegmentationLossComb.SegmentationLossMSE
        SegmentationLossMAE = SegmentationLossComb.SegmentationLossMAE
        SegmentationLossDice = SegmentationLossComb.SegmentationLossDice

        class SegmentationLossBCEDice(nn.Module):
            """Binary cross entropy plus linear Dice on probabilities: what the field trains with.

            The network's output is read as a logit, "how sure am I that this pixel is in the
            mask", and sigmoid makes it a probability. Cross entropy then judges each pixel with a
            gradient that is never flat where the answer is wrong; Dice judges the overlap, so a
            small star counts as much as a large rectangle. Both are of size 1: no scale to tune.

            Formula: mean BCE(sigmoid(p), m) + dice_scale * mean over channels of
            1 - (2 sum(qm) + 1)/(sum(q) + sum(m) + 1), q = sigmoid(p), sums over the pixels of the
            whole batch. From 0 to infinity; a channel that is empty in all images is pushed to 0.
            batch_dice=False sums over each image instead and takes the mean over images too. Where
            most channels of most images are empty, as in the shapes, all of these pull every
            output to 0, and training stalls there for a long time.

            Shape: output (N, C, H, W) float logits, mask (N, C, H, W) of 0 and 1 -> scalar.
            Errors: ValueError for masks with other values (divide by the mask value, or compare
            with 0, first), and where the shapes differ.
            Source: Isensee et al., "nnU-Net", Nature Methods 2021.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossBCEDice
            """

            binary_targets = True  # training hands over masks of 0 and 1; a pixel is set at p > 0

            def __init__(self, batch_size=None, dice_scale=1.0, smooth=1.0, *, batch_dice=True):
                super().__init__()
                self.batch_size = batch_size
                self.dice_scale = dice_scale
                self.dims = (0, 2, 3) if batch_dice else (2, 3)
                self.smooth = smooth

            def terms(self, output, mask):
                """The summands of the loss by name, so that training can watch each of them."""
                if output.shape != mask.shape or not output.is_floating_point():
                    raise ValueError(
                        f"SegmentationLossBCEDice takes float logits and a mask of the same shape, "
                        f"not {tuple(output.shape)} {output.dtype} and "
                        f"{tuple(mask.shape)} {mask.dtype}"
                    )
                with torch.autocast(output.device.type, enabled=False):
                    p = output.to(torch.promote_types(output.dtype, torch.float32))
                    m = mask.to(p.dtype)
                    bce = nn.functional.binary_cross_entropy_with_logits(p, m)
                    q = torch.sigmoid(p)
                    overlap = 2 * (q * m).sum(dim=self.dims)  # (C,), or (N, C) for each image
                    size = q.sum(dim=self.dims) + m.sum(dim=self.dims)
                    dice = (1 - (overlap + self.smooth) / (size + self.smooth)).mean()
                    return {"bce": bce, "dice": self.dice_scale * dice}

            def forward(self, output, mask):
                # Reading the values would stall a GPU at every iteration, so the CPU checks alone.
                if mask.is_cpu and mask.numel() and not 0 <= mask.min() <= mask.max() <= 1:
                    raise ValueError(
                        f"SegmentationLossBCEDice takes masks of 0 and 1, not values up to "
                        f"{mask.max():g}: compare the mask with 0 first"
                    )
                terms = self.terms(output, mask)
                self.latest = {name: term.detach() for name, term in terms.items()}
                return terms["bce"] + terms["dice"]

        # ==== §4 SCORES ==========================================================================

        class SegmentationScores:
            """IoU, Dice, pixel accuracy and boundary F1, counted exactly over a whole test set.

            A loss says what training minimizes; a score says whether the masks are right, on a
            scale that any two networks share. All scores here come from counts that add up over
            batches (and processes), and are divided once, at the end: a mean of batch means would
            weigh a nearly empty batch like a full one.

            For each class, over all pixels of all images: with I the pixels set in both prediction
            and truth, P those set in the prediction, M those set in the truth,
            IoU = I/(P + M - I), Dice = 2I/(P + M), pixel accuracy = share of pixels where both
            agree. Background is most of a picture, so pixel accuracy is near 1 for a network
            that predicts nothing: IoU is the usual score. Boundary F1 is the harmonic mean of the
            shares of predicted boundary pixels within 1 pixel of a true one, and the reverse; a
            boundary pixel is a set pixel with an unset one above, below, left or right of it.

            The mean is the mean over classes; a class that neither prediction nor truth has in any
            image has no score and is left out. The per-image mean IoU is over all pairs of image
            and class; a pair that both lack is left out, one that only the prediction has is 0.

            Shape: update takes pred and mask (N, C, H, W) bool. Class k is channel k; with one
            channel and `category` (N,), an image's counts go to the class category[n].
            Errors: ValueError where the shapes differ.
            Source: Csurka et al., "What is a good evaluation measure for semantic
            segmentation?", BMVC 2013 (boundary F1).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationScores
            """

            metrics = ("iou", "dice", "pixel_accuracy", "boundary_f1")
            titles = ("IoU", "Dice", "pixel accuracy", "boundary F1")

            def __init__(self, class_names):
                self.class_names = tuple(class_names)
                # Columns of one class: I, P, M, agreeing pixels, all pixels; boundary pixels of the
                # prediction: matched, all; of the truth: matched, all; IoUs of images: sum, number.
                self.counts = torch.zeros(len(self.class_names), 11, dtype=torch.float64)
                self.images = 0

            @staticmethod
            def boundary(mask):
                """Set pixels with an unset 4-neighbour inside the picture, (N, C, H, W) bool."""
                unset = (~mask).float()
                above_below = nn.functional.max_pool2d(unset, (3, 1), 1, (1, 0))
                left_right = nn.functional.max_pool2d(unset, (1, 3), 1, (0, 1))
                return mask & (torch.maximum(above_below, left_right) > 0)

            def update(self, pred, mask, category=None):
                """Count one batch; returns each image's mean IoU (N,), nan where it has none."""
                if pred.shape != mask.shape or pred.dim() != 4:
                    raise ValueError(
                        f"scores need pred and mask of one shape (N, C, H, W), not "
                        f"{tuple(pred.shape)} and {tuple(mask.shape)}"
                    )
                if category is None and pred.shape[1] != len(self.class_names):
                    raise ValueError(
                        f"{pred.shape[1]} channels cannot be scored as the "
                        f"{len(self.class_names)} classes {', '.join(self.class_names)}"
                    )
                pred, mask = pred.bool(), mask.bool()
                pred_edge, mask_edge = self.boundary(pred), self.boundary(mask)
                near_pred = nn.functional.max_pool2d(pred_edge.float(), 3, 1, 1) > 0
                near_mask = nn.functional.max_pool2d(mask_edge.float(), 3, 1, 1) > 0
                planes = (
                    pred & mask, pred, mask, pred == mask, torch.ones_like(mask),
                    pred_edge & near_mask, pred_edge, mask_edge & near_pred, mask_edge,
                )  # fmt: skip
                counts = torch.stack([p.sum(dim=(2, 3)) for p in planes], dim=-1)  # (N, C, 9)
                counts = counts.cpu().double()  # Apple's MPS has no float64
                union = counts[..., 1] + counts[..., 2] - counts[..., 0]  # (N, C)
                seen = (union > 0).double()
                iou = counts[..., 0] / union.clamp(min=1)
                counts = torch.cat((counts, (iou * seen)[..., None], seen[..., None]), dim=-1)
                if category is None:
                    self.counts += counts.sum(dim=0)
                else:
                    self.counts.index_add_(0, category.cpu(), counts.sum(dim=1))
                self.images += len(pred)
                return (iou * seen).sum(dim=1) / seen.sum(dim=1)

            def __add__(self, other):
                """The scores over two disjoint sets of images, for example of two processes."""
                total = type(self)(self.class_names)
                total.counts = self.counts + other.counts
                total.images = self.images + other.images
                return total

            def compute(self):
                """All scores as a dict of floats, per class and their mean; None: no such pixel."""
                i, p, m, agree, pixels, hit, edge, found, true_edge, iou_sum, pairs = self.counts.T
                precision, recall = hit / edge.clamp(min=1), found / true_edge.clamp(min=1)
                f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
                f1[edge + true_edge == 0] = torch.nan
                scores = torch.stack((i / (p + m - i), 2 * i / (p + m), agree / pixels, f1), dim=1)

                def number(value):
                    return None if math.isnan(value) else float(value)

                mean = {
                    f"mean_{name}" if name in ("iou", "dice") else name: number(column.nanmean())
                    for name, column in zip(self.metrics, scores.T, strict=True)
                }
                return {
                    **mean,
                    "per_image_mean_iou": number(iou_sum.sum() / pairs.sum()),
                    "images": self.images,
                    "classes": {
                        name: dict(zip(self.metrics, map(number, row), strict=True))
                        for name, row in zip(self.class_names, scores, strict=True)
                    },
                }

            def table(self, before=None):
                """The scores as text; with `before` (other scores), each cell is before -> now."""

                def rows(scores):
                    found = scores.compute()
                    mean = [found["mean_iou"], found["mean_dice"], found["pixel_accuracy"]]
                    lines = [[*row.values()] for row in found["classes"].values()]
                    return [*lines, [*mean, found["boundary_f1"]]]

                def cell(value):
                    return "  -  " if value is None else f"{value:.3f}"

                width = 16  # as wide as the longest title and two spaces
                now = rows(self)
                then = rows(before) if before is not None else now
                names = [*self.class_names, "mean"]
                lines = [f"{'':14}" + "".join(f"{title:>{width}}" for title in self.titles)]
                for name, old, new in zip(names, then, now, strict=True):
                    cells = [
                        cell(n) if before is None else f"{cell(o)} -> {cell(n)}"
                        for o, n in zip(old, new, strict=True)
                    ]
                    lines.append(f"{name:14}" + "".join(f"{c:>{width}}" for c in cells))
                per_image = self.compute()["per_image_mean_iou"]
                lines.append(
                    f"per-image mean IoU {cell(per_image)}, over {self.images} images "
                    f"(pairs of image and class that both lack the class are left out)"
                )
                return "\n".join(lines)

            __str__ = table

        class ConstantMask(nn.Module):
            """A "network" that answers every image with one and the same output.

            A score means something beside that of an answer which never looks at the image.

            Shape: mask (C, H, W); input (N, 3, H, W) -> output (N, C, H, W).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  ConstantMask
            """

            def __init__(self, mask):
                super().__init__()
                self.register_buffer("mask", mask.float())

            def forward(self, x):
                return self.mask.expand(len(x), -1, -1, -1)

        def score_trivial_baselines(self):
            """Scores of two answers that never look at the image, by name: the bar to clear.

            "all foreground" sets every pixel; "mean training mask" sets those that are set in more
            than half of the training masks.
            """
            total, count = 0.0, 0
            for batch in self.train_dataloader:
                total = total + (batch["mask_tensor"] > 0).double().sum(dim=0)  # (C, H, W)
                count += len(batch["mask_tensor"])
            share = total / count
            values = torch.tensor(self._data_facts()[1])[:, None, None]
            answers = {"all foreground": torch.ones_like(share), "mean training mask": share}
            trained_on_logits, self.binary_targets = self.binary_targets, False
            try:
                return {n: self.score(self.ConstantMask(m * values)) for n, m in answers.items()}
            finally:
                self.binary_targets = trained_on_logits

        # ==== §5 TRAINING ========================================================================

        class TrainingHistory:
            """What training reports, one row for each interval: losses, seconds, scores.

            A row is a dict with epoch, iteration (counted over all epochs), seconds (of training
            alone), loss (mean over the interval) and learning_rate; a loss of several terms adds
            each term's mean and the norm of its gradient (grad_norm_...), an evaluation its scores.
            losses.csv in the run's folder is this table.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  TrainingHistory
            """

            def __init__(self, loss_name):
                self.loss_name = loss_name
                self.rows = []
                self.iterations = 0
                self.seconds = 0.0

            @property
            def losses(self):
                """The mean loss of each reporting interval, as DLStudio printed it."""
                return [loss for _, loss in self.column("loss")]

            def column(self, name):
                """[(iteration, value), ...] of the rows that have a value of that name."""
                return [(row["iteration"], row[name]) for row in self.rows if name in row]

            def add(self, **values):
                """Add to the row of this iteration, or begin it."""
                if self.rows and self.rows[-1]["iteration"] == self.iterations:
                    self.rows[-1].update(values)
                else:
                    row = {"iteration": self.iterations, "seconds": round(self.seconds, 3)}
                    self.rows.append(row | values)

            def save(self, dl_studio):
                """Write losses.csv in the run's folder."""
                dl_studio.write_atomically(dl_studio.run_dir / "losses.csv", self.write_csv)

            def write_csv(self, path):
                """Write the rows as a table; a cell without a value stays empty."""
                names = list(dict.fromkeys(name for row in self.rows for name in row))
                with Path(path).open("w", newline="", encoding="utf-8") as file:
                    table = csv.DictWriter(file, names)
                    table.writeheader()
                    table.writerows(self.rows)

        class TrainingCheckpoint:
            """A file from which a training goes on after an interruption, as if there was none.

            Weights alone are not enough for that: the optimizer's momentum, the learning rate's
            schedule, the order of the images and the state of the random numbers belong to it.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  TrainingCheckpoint
            """

            def __init__(self, dl_studio):
                self.dl_studio = dl_studio

            @property
            def path(self):
                return self.dl_studio.run_dir / "checkpoint.pt"

            def save(self, parts, facts):
                """Write the state_dict of each of `parts` that has one, and the dict `facts`."""
                parts = {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"facts": facts, "random": torch.get_rng_state()}
                self.dl_studio.write_atomically(self.path, lambda part: torch.save(state, part))

            def load(self, parts, device):
                """Bring `parts` to the state of the file; returns the facts, or None: no file."""
                if not self.path.exists():
                    return None
                try:
                    state = torch.load(self.path, map_location=device, weights_only=True)
                    for name in state.keys() & parts.keys():
                        parts[name].load_state_dict(state[name])
                    torch.set_rng_state(state["random"].cpu())
                    return state["facts"]
                except Exception as error:  # torch.load raises nearly anything on a bad file
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    raise ValueError(
                        f"{self.path.absolute()} is not a checkpoint of this network and optimizer "
                        f"({reason}): remove it to start again"
                    ) from None

        @dataclass
        class TrainingLoop:
            """The one loop that trains: batches in, reports and checkpoints out.

            A network learns by repeating five steps: predict, measure the loss, compute how each
            weight changed it (backward), and move every weight a little against that. The rest
            is bookkeeping. custom_run_code_for_training... makes the arguments.
            Class Path:   SegStudio  ->  SemanticSegmentation  ->  TrainingLoop
            """

            dl_studio: object
            net: nn.Module
            criterion: nn.Module
            loader: DataLoader
            history: object
            checkpoint: object
            optimizer: object = None
            scheduler: object = None
            bf16: bool = False
            report_every: int = 500
            evaluate_every: int | None = None
            evaluate: object = None
            augment: object = None
            max_seconds: float | None = None
            clip_grad_norm: float | None = None
            channels_last: bool = False
            on_report: object = None
            generator: torch.Generator | None = None
            order_seed: int = 0

            def __post_init__(self):
                for name in ("report_every", "evaluate_every", "max_seconds", "clip_grad_norm"):
                    value = getattr(self, name)
                    if value is not None and not value > 0:
                        raise ValueError(f"{name} is above 0, not {value!r}")
                dls = self.dl_studio
                self.order = torch.channels_last if self.channels_last else torch.contiguous_format
                self.net.to(dls.device, memory_format=self.order)
                if self.optimizer is None:
                    settings = {"lr": dls.learning_rate, "momentum": dls.momentum}
                    self.optimizer = torch.optim.SGD(self.net.parameters(), **settings)
                elif not isinstance(self.optimizer, torch.optim.Optimizer):
                    self.optimizer = self.optimizer(self.net.parameters())
                self.parts = {k: vars(self).get(k) for k in ("net", "optimizer", "scheduler")}
                self.binary = getattr(self.criterion, "binary_targets", False)
                self.epochs_done = 0
                self.total = None if self.max_seconds else dls.epochs * len(self.loader)
                self.losses = torch.zeros(self.report_every, device=dls.device)
                self.terms, self.weighed = defaultdict(float), {}
                self.count = self.first = 0  # iterations since the last report; before this run

            def run(self):
                """Train to the end of the last epoch, or of the time; returns the history."""
                self.clock = time.perf_counter() - self.history.seconds
                self.first = self.history.iterations  # not 0 after a resume
                self.net.train()
                self._set_learning_rate()
                with tqdm(
                    total=self.total, initial=self.history.iterations, disable=None,
                    dynamic_ncols=True, unit="iteration", leave=False,
                ) as bar:  # fmt: skip
                    while self._fraction_done() < 1:
                        if self.generator is not None:  # a resumed run has the same order
                            seed = 1_000_003 * self.order_seed + self.epochs_done
                            self.generator.manual_seed(seed)
                        for batch in self.loader:
                            self._iterate(batch)
                            bar.update()
                            self._after_iteration(bar)
                            if self._fraction_done() >= 1:
                                break
                        self._report()
                        self.epochs_done += 1
                        with self._off_the_clock():
                            facts = {"epochs_done": self.epochs_done, "order_seed": self.order_seed}
                            facts["history"] = vars(self.history)
                            self.checkpoint.save(self.parts, facts)
                return self.history

            def resume(self):
                """Go on where an interrupted run of this name stopped; without one, do nothing."""
                facts = self.checkpoint.load(self.parts, self.dl_studio.device)
                if facts is not None:
                    vars(self.history).update(facts.pop("history"))
                    vars(self).update(facts)
                    self.dl_studio.log(f"Resuming after epoch {self.epochs_done}")

            def _iterate(self, batch):
                device = self.dl_studio.device
                images = batch["image"].to(device, non_blocking=True)  # (N, 3, H, W)
                masks = batch["mask_tensor"].to(device, non_blocking=True).float()
                if self.binary:
                    masks = (masks > 0).float()
                if self.augment is not None:
                    images, masks = self.augment(images, masks)
                images = images.contiguous(memory_format=self.order)
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    output = self.net(images)  # (N, C, H, W)
                    loss = self.criterion(output, masks)
                self.losses[self.count] = loss.detach()
                self.output = output.detach()
                # A GPU is asked once in 50 iterations: every question makes it wait for the answer.
                if self.losses.is_cpu or self.count % 50 == 0:
                    self._stop_unless_finite(self.count + 1)
                done = self.history.iterations + 1
                reported = self.count + 1 == self.report_every or done % len(self.loader) == 0
                if reported and hasattr(self.criterion, "weigh_terms"):
                    weights = [p for p in self.net.parameters() if p.requires_grad]
                    self.weighed = self.criterion.weigh_terms(output, masks, weights)
                self.optimizer.zero_grad()
                loss.backward()
                if self.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_grad_norm)
                self.optimizer.step()
                for name, value in getattr(self.criterion, "latest", {}).items():
                    self.terms[name] += value
                self.count += 1
                self.history.iterations += 1
                self.history.seconds = time.perf_counter() - self.clock

            def _after_iteration(self, bar):
                if hasattr(self.scheduler, "step"):
                    self.scheduler.step()
                self._set_learning_rate()
                if (done_here := self.history.iterations - self.first) == 3:
                    self.third = self.history.seconds  # the first ones also pay for caches
                if done_here == 13 and self.total is not None:
                    self._estimate_time()
                if self.losses.is_cpu or self.count % 50 == 1:  # a GPU waits to be read
                    bar.set_postfix(loss=f"{self.losses[self.count - 1]:.4g}", refresh=False)
                if self.count == self.report_every:
                    self._report()
                if self.evaluate_every and self.history.iterations % self.evaluate_every == 0:
                    with self._off_the_clock():
                        scores = self.evaluate(self.net).compute()
                        names = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_f1")
                        self.history.add(**{name: scores[name] for name in names})
                        self.history.save(self.dl_studio)

            def _fraction_done(self):
                if self.max_seconds:
                    return self.history.seconds / self.max_seconds
                return self.history.iterations / self.total

            @contextlib.contextmanager
            def _off_the_clock(self):
                paused = time.perf_counter()
                yield
                self.clock += time.perf_counter() - paused

            def _set_learning_rate(self):
                if self.scheduler is None or hasattr(self.scheduler, "step"):
                    return
                factor = self.scheduler(min(self._fraction_done(), 1.0))
                for group in self.optimizer.param_groups:
                    group.setdefault("initial_lr", group["lr"])
                    group["lr"] = group["initial_lr"] * factor

            def _stop_unless_finite(self, number):
                bad = (~torch.isfinite(self.losses[:number])).nonzero()
                if len(bad):
                    iteration = self.history.iterations - self.count + int(bad[0]) + 1
                    low, high = self.output.float().aminmax()
                    rate = self.optimizer.param_groups[0]["lr"]
                    raise FloatingPointError(
                        f"the {self.history.loss_name} loss became {self.losses[bad[0]].item():g} "
                        f"at iteration {iteration} (outputs from {low:.4g} to {high:.4g}), so no "
                        f"model was saved: try a learning rate ten times smaller than {rate:g}, "
                        f'clip_grad_norm=1.0, masks of 0/1, or another loss (dice_form="squared")'
                    )

            def _estimate_time(self):
                each = (self.history.seconds - self.third) / 10
                left = (self.total - self.history.iterations) * each
                self.dl_studio.log(
                    f"Training takes about {left / 60:.1f} more minutes: {self.total} iterations "
                    f"of {1000 * each:.0f} ms (measured on ten of them)"
                )

            def _report(self):
                if self.count == 0:
                    return
                self._stop_unless_finite(self.count)  # before anything is saved
                epochs = self.dl_studio.epochs if self.total else "?"
                loss = self.losses[: self.count].mean().item()
                iteration = self.history.iterations - self.epochs_done * len(self.loader)
                rate = self.optimizer.param_groups[0]["lr"]
                row = {"epoch": self.epochs_done + 1, "loss": loss, "learning_rate": rate}
                row |= {name: float(value) / self.count for name, value in self.terms.items()}
                row |= {f"grad_norm_{name}": float(norm) for name, norm in self.weighed.items()}
                self.history.add(**row)
                self.dl_studio.log(
                    f"[epoch={row['epoch']}/{epochs}, iter={iteration:4d}  elapsed_time="
                    f"{self.history.seconds:3.0f} secs]   {self.history.loss_name} loss: {loss:.3f}"
                )
                self.count, self.weighed = 0, {}
                self.terms.clear()
                with self._off_the_clock():
                    self.history.save(self.dl_studio)
                    if self.on_report is not None:
                        self.on_report(self.history, self.net)

        def run_code_for_training_for_semantic_segmentation(self, net, **options):
            """Train with the mean squared error, as DLStudio does; returns the TrainingHistory.

            The options are those of custom_run_code_for_training_for_semantic_segmentation.
            """
            return self.custom_run_code_for_training_for_semantic_segmentation(
                net, loss_type="MSE", **options
            )

        def custom_run_code_for_training_for_semantic_segmentation(
            self, net, loss_type="MSE", dice_scale=1.0, *, dice_form="pixelwise", precision="fp32",
            evaluate_every=None, held_out=0.1, resume=False, **options,
        ):  # fmt: skip
            """Train `net` itself on self.train_dataloader, with a loss of your choice, and save it.

            Args:
                loss_type: "MSE", "MAE", "Dice", "Combined" (MSE + dice_scale * Dice), "MAE+Dice",
                    "BCEDice" (the outputs become logits), or any nn.Module of (output, mask).
                dice_scale: weight of the Dice term in the combined losses.
                dice_form: "pixelwise", "squared" or "linear", see SegmentationLossDice.
                precision: "fp32", "bf16", or "auto": bf16 where the device has it in hardware.
                evaluate_every: score a held-out part after every so many iterations.
                held_out: share of the training images that evaluate_every keeps out of training,
                    or a Dataset of its own to score on.
                resume: go on from checkpoint.pt of this run's folder, where there is one.
                optimizer: a torch optimizer, or a callable that makes one of the parameters, such
                    as functools.partial(torch.optim.AdamW, lr=1e-3). Default: SGD, as set.
                scheduler: a torch scheduler, stepped after each iteration, or a function of the
                    fraction of training done, 0 to 1, that returns a factor on the learning rate.
                report_every: iterations between two reports, by default 500 as in DLStudio.
                augment: a function of a batch (images, masks) that returns a changed batch.
                max_seconds: train for this time (evaluations not counted) instead of epochs.
                clip_grad_norm: scale gradients of a larger norm down to it.
                channels_last: the memory order that modern CPUs and GPUs convolve faster.
                on_report: called with (history, net) after each report.

            Returns: TrainingHistory. The weights are in model.pt, and in path_saved_model if set.

            Errors: ValueError for an impossible argument; FloatingPointError when the loss is not
            finite, naming the iteration, with nothing overwritten.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            self._refuse_unknown_options(options)
            criterion, loss_name = self._make_loss(loss_type, dice_scale, dice_form)
            loader, held_out_loader = self.train_dataloader, None
            if evaluate_every is not None:
                loader, held_out_loader = self._hold_out(held_out)
            loop = self.TrainingLoop(
                dls, net, criterion.to(dls.device), loader, self.TrainingHistory(loss_name),
                self.TrainingCheckpoint(dls), bf16=self._use_bf16(precision),
                evaluate_every=evaluate_every,
                evaluate=functools.partial(self.score, dataloader=held_out_loader),
                generator=self.generator if loader.generator is self.generator else None,
                order_seed=self.order_seed, **options,
            )  # fmt: skip
            return self._train(loop, resume)

        def _refuse_unknown_options(self, options):
            valid = (
                "optimizer", "scheduler", "report_every", "augment", "max_seconds",
                "clip_grad_norm", "channels_last", "on_report",
            )  # fmt: skip
            for name in options:
                if name not in valid:
                    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
                    raise TypeError(f"training has no option {name!r}: did you mean {near!r}?")

        def _train(self, loop, resume):
            dls = self.dl_studio
            self.binary_targets = loop.binary
            if resume:
                loop.resume()
            if not (dls.run_dir / "model.pt").exists():  # else they describe that older model
                self._write_settings(loop)
            dls.log(f"Training on {self._name_device()} with the {loop.history.loss_name} loss")
            loop.run()
            dls.log("\nFinished Training\n")
            self.save_model(loop.net)
            self._write_settings(loop)
            self._save_loss_figure(loop.history)
            loop.checkpoint.path.unlink(missing_ok=True)
            return loop.history

        def _make_loss(self, loss_type, dice_scale, dice_form):
            """The loss module and its name in the printed lines."""
            if isinstance(loss_type, nn.Module):
                return loss_type, type(loss_type).__name__
            combined = functools.partial(
                self.SegmentationLossComb, dice_scale=dice_scale, form=dice_form
            )
            makers = {
                "mse": (self.SegmentationLossMSE, "MSE"),
                "mae": (self.SegmentationLossMAE, "MAE"),
                "dice": (functools.partial(self.SegmentationLossDice, form=dice_form), "Dice"),
                "combined": (combined, f"MSE+{dice_scale:g}*Dice"),
                "mae+dice": (functools.partial(combined, base="mae"), f"MAE+{dice_scale:g}*Dice"),
                "bcedice": (self.SegmentationLossBCEDice, "BCE+Dice"),
            }
            if str(loss_type).lower() not in makers:
                raise ValueError(
                    f'loss_type is "MSE", "MAE", "Dice", "Combined", "MAE+Dice", "BCEDice" or an '
                    f"nn.Module, not {loss_type!r}"
                )
            maker, name = makers[str(loss_type).lower()]
            return maker(), name

        def _use_bf16(self, precision):
            if precision not in ("fp32", "bf16", "auto"):
                raise ValueError(f'precision is "fp32", "bf16" or "auto", not {precision!r}')
            if precision != "auto":
                return precision == "bf16"
            if self.dl_studio.device.type == "cuda":
                return torch.cuda.is_bf16_supported(including_emulation=False)
            return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))

        def _hold_out(self, share):
            """The training loader without, and a loader of, a fixed part of the training images."""
            loader = self.train_dataloader
            if isinstance(share, Dataset):
                return loader, DataLoader(share, loader.batch_size, num_workers=loader.num_workers)
            number = round(len(loader.dataset) * share)
            if not 0 < number < len(loader.dataset):
                raise ValueError(
                    f"held_out={share} of {len(loader.dataset)} training images leaves none on "
                    f"one side: give more images or another share"
                )
            order = torch.randperm(
                len(loader.dataset), generator=torch.Generator().manual_seed(0)
            ).tolist()
            # Not drawn from self.generator: every run of a comparison holds out the same images.
            kept = torch.utils.data.Subset(loader.dataset, sorted(order[number:]))
            out = torch.utils.data.Subset(loader.dataset, sorted(order[:number]))
            workers = loader.num_workers
            return (
                DataLoader(
                    kept, loader.batch_size, shuffle=True, num_workers=workers,
                    generator=loader.generator,
                ),
                DataLoader(out, loader.batch_size, num_workers=workers),
            )  # fmt: skip

        def _name_device(self):
            device = self.dl_studio.device
            if device.type == "cuda":
                return f"the GPU ({torch.cuda.get_device_name(device)})"
            if device.type == "mps":
                return "the GPU (Apple MPS)"
            return f"the CPU ({torch.get_num_threads()} threads)"

        def _write_settings(self, loop):
            """settings.json: all that is needed to know, or repeat, what this run did."""
            dls = self.dl_studio
            settings = {
                name: value for name, value in vars(dls).items() if not name.startswith("_")
            }
            net, optimizer = loop.net, loop.optimizer
            dls.write_json(
                "settings.json",
                {
                    "command": sys.argv,
                    "settings": settings,
                    "network": {
                        "class": type(net).__name__,
                        "arguments": getattr(net, "arguments", None),
                        "parameters": sum(p.numel() for p in net.parameters()),
                        "binary_targets": self.binary_targets,
                    },
                    "training": {
                        "loss": loop.history.loss_name,
                        "loss_options": {
                            name: value
                            for module in loop.criterion.modules()
                            for name, value in vars(module).items()
                            if isinstance(value, (str, int, float, tuple)) and name[0] != "_"
                        },
                        "options": {
                            name: repr(getattr(loop, name))
                            for name in (
                                "scheduler", "augment", "clip_grad_norm", "channels_last",
                                "evaluate_every", "report_every",
                            )
                        },
                        "optimizer": type(optimizer).__name__,
                        "optimizer_settings": {
                            k: v for k, v in optimizer.param_groups[0].items() if k != "params"
                        },
                        "precision": "bf16" if loop.bf16 else "fp32",
                        "images": len(loop.loader.dataset),
                        "batch_size": loop.loader.batch_size,
                        "max_seconds": loop.max_seconds,
                        "order_seed": loop.order_seed,
                    },
                    "data": {
                        "class_names": self._data_facts()[0],
                        "mask_values": self._data_facts()[1],
                        "source": self._data_source(),
                    },
                    "machine": {
                        "platform": platform.platform(),
                        "processor": platform.processor() or platform.machine(),
                        "device": self._name_device(),
                        "python": platform.python_version(),
                        "torch": torch.__version__,
                        "torchvision": torchvision.__version__,
                        "segstudio": __version__,
                    },
                },
            )

        def save_model(self, model):
            """Write the weights to model.pt of the run and, where it is set, path_saved_model."""
            paths = [self.dl_studio.run_dir / "model.pt"]
            if self.dl_studio.path_saved_model is not None:
                paths.append(Path(self.dl_studio.path_saved_model).expanduser())
            for path in paths:
                self.dl_studio.write_atomically(path, lambda part: torch.save(model.state_dict(), part))

        # ==== §6 TESTING =========================================================================

        def _data_source(self):
            """Where the training images come from, in words: drawn ones are called so."""
            dataset = self.train_dataloader.dataset
            while isinstance(dataset, torch.utils.data.Subset):
                dataset = dataset.dataset
            if getattr(dataset, "generated", False):
                return "generated by SegStudio, not the original"
            return getattr(dataset, "manifest", {}).get("description", type(dataset).__name__)

        def _data_facts(self):
            """(class names, value of a set mask pixel per channel) of the data at hand."""
            if self.loaded_facts is not None:
                return self.loaded_facts
            dataset = getattr(getattr(self, "test_dataloader", None), "dataset", None)
            dataset = dataset or getattr(getattr(self, "train_dataloader", None), "dataset", None)
            while isinstance(dataset, torch.utils.data.Subset):
                dataset = dataset.dataset
            names = getattr(dataset, "class_names", tuple(self.dl_studio.class_labels))
            # A dataset of a student's own has DLStudio's mask values.
            values = getattr(dataset, "mask_values", tuple(50 * (k + 1) for k in range(len(names))))
            return tuple(names), tuple(values)

        def as_mask_values(self, output):
            """Outputs on the scale of the masks: logits become probability times mask value."""
            values = torch.tensor(self._data_facts()[1], device=output.device)
            values = values.float()[:, None, None]
            return torch.sigmoid(output.float()) * values if self.binary_targets else output

        def predict(self, output):
            """Outputs (N, C, H, W) as binary masks: pixels nearer to the mask value than to 0."""
            values = torch.tensor(self._data_facts()[1], device=output.device)
            threshold = torch.zeros_like(values) if self.binary_targets else values / 2
            return output > threshold[:, None, None]

        def output_of(self, net, images):
            """The output (N, C, H, W) of `net` for images (N, 3, H, W), in eval mode.

            Else BatchNorm would use the statistics of the images that happen to share a batch.
            """
            was_training = net.training
            net.to(self.dl_studio.device).eval()
            try:
                with torch.no_grad():
                    return net(images.to(self.dl_studio.device))
            finally:
                net.train(was_training)

        def score(self, net, dataloader=None, on_batch=None):
            """Score `net` on every image of a loader; the one testing routine.

            on_batch(number, batch, output, ious), where given, sees each batch of the loader, the
            network's output for it (N, C, H, W) and the mean IoU of each image (N,).
            Returns SegmentationScores.
            """
            dataloader = self.test_dataloader if dataloader is None else dataloader
            scores = self.SegmentationScores(self._data_facts()[0])
            for number, batch in enumerate(
                tqdm(dataloader, desc="testing", disable=None, leave=False)
            ):
                output = self.output_of(net, batch["image"])
                truth = batch["mask_tensor"].to(output.device) > 0
                ious = scores.update(self.predict(output), truth, batch.get("category"))
                if on_batch is not None:
                    on_batch(number, batch, output.cpu(), ious)
            return scores

        def load_model(self, net, path=None):
            """Load saved weights into `net`: path, else path_saved_model, else the run's model.pt.

            Errors: FileNotFoundError; ValueError for the weights of another network.
            """
            path = path or self.dl_studio.path_saved_model or self.dl_studio.run_dir / "model.pt"
            path = Path(path).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"no saved model at {path.absolute()}: train first")
            try:
                state = torch.load(path, map_location=self.dl_studio.device, weights_only=True)
                mine = {name: tuple(value.shape) for name, value in net.state_dict().items()}
                saved = {name: tuple(value.shape) for name, value in state.items()}
            except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
                reason = (str(error) or "the file is cut off").splitlines()[0]
                raise ValueError(f"{path.absolute()} is not a saved model: {reason}") from None
            different = [
                name for name in dict.fromkeys([*mine, *saved]) if mine.get(name) != saved.get(name)
            ]
            if different:
                name = different[0]
                raise ValueError(
                    f"{path.absolute()} holds the weights of another network ({len(saved)} "
                    f"tensors, this one has {len(mine)}; {name} is {saved.get(name, 'missing')} "
                    f"there and {mine.get(name, 'missing')} here): build the network with the "
                    f"depth, width and channels it was trained with"
                )
            net.load_state_dict(state)
            return net

        def load_run(self, run):
            """The trained network of a run's folder, ready to predict; settings.json says which.

            Errors: FileNotFoundError and ValueError for a folder that is not a finished run, or of
            a network that is not the package's mUnet.
            """
            run = Path(run).expanduser()
            try:
                settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
                network, data = settings["network"], settings["data"]
                arguments = network["arguments"]
                self.dl_studio.image_size = settings["settings"]["image_size"]
                self.loaded_facts = (tuple(data["class_names"]), tuple(data["mask_values"]))
                self.binary_targets = network["binary_targets"]
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"{run.absolute()} is not the folder of a run: it has no settings.json"
                ) from None
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{run / 'settings.json'} is damaged: {error!r}") from None
            if network["class"] not in ("mUnet", "mUNet") or arguments is None:
                raise ValueError(
                    f"{run.absolute()} holds a {network['class']}, which is not a network of this "
                    f"package: build it in a script of your own and use load_model"
                )
            return self.load_model(self.mUnet(**arguments), run / "model.pt")

        def predict_image(self, net, image):
            """Predicted masks of one PIL image of any size and mode, in its own size.

            The image is shown to the network at the size that it was trained with; the masks
            come back by nearest neighbour. Shape: returns (C, H, W) bool.
            """
            pixels = v2.functional.pil_to_tensor(image.convert("RGB"))  # (3, H, W)
            small = v2.functional.resize(pixels, self.dl_studio.image_size, antialias=True)
            output = self.output_of(net, small[None].float()).cpu()
            masks = self.predict(output)[0]  # (C, h, w)
            nearest = v2.InterpolationMode.NEAREST
            return v2.functional.resize(masks, list(pixels.shape[1:]), interpolation=nearest)

        def run_code_for_testing_semantic_segmentation(
            self, net, *, before=None, baselines=None, show_every=50
        ):
            """Load the saved network, score every test image, and draw what it does.

            Prints the score table, and writes metrics.json, a picture of every `show_every`-th test
            batch as DLStudio shows it, and one of the worst test images.

            Args:
                before: SegmentationScores of another network on the same images (the untrained
                    one, say) for the table.
                baselines: {name: SegmentationScores}, printed and kept beside the network's.

            Returns: SegmentationScores.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            self.load_model(net)
            worst, seen = [], 0

            def draw(number, batch, output, ious):
                nonlocal seen
                if number % show_every == 0:
                    dls.log(f"Showing output for test batch {number + 1}")
                    self._save_test_figure(batch, output, number + 1)
                for row, iou in enumerate(ious.tolist()):
                    if not math.isnan(iou):
                        item = {key: value[row] for key, value in batch.items()}
                        worst.append((iou, seen + row, item, output[row]))
                seen += len(ious)
                worst.sort(key=lambda entry: entry[:2])
                del worst[4:]

            scores = self.score(net, on_batch=draw)
            dls.log(f"\nScores on {scores.images} test images:\n{scores.table(before)}")
            metrics = scores.compute()
            if before is not None:
                metrics["before"] = before.compute()
            for name, baseline in (baselines or {}).items():
                dls.log(f"\nFor comparison, {name}:\n{baseline}")
                metrics.setdefault("baselines", {})[name] = baseline.compute()
            dls.write_json("metrics.json", metrics)
            if worst:
                self._save_worst_figure(worst)
            return scores

        # ==== §7 FIGURES =========================================================================

        @staticmethod
        def make_test_grid(images, boxes, output):
            """DLStudio's test picture as one tensor: 7 rows of N images each, for 5 channels.

            Row 1: the largest output over the channels, with the true boxes in white; row 2: the
            input images with the boxes in red; then one row per channel, 255 where the output lies
            in DLStudio's window around the mask value and 50 elsewhere.

            Shape: images (N, 3, H, W) 0..255, boxes (N, n, C, 4), output (N, C, H, W) on the scale
            of the masks -> (3, rows of H + 2, N columns of W + 2), 0..1.
            """
            windows = ((25, 85), (65, 135), (115, 185), (165, 230), (210, math.inf))
            n, channels, height, width = output.shape
            output = output.detach().double()
            brightest = output.amax(dim=1, keepdim=True)  # (N, 1, H, W)
            images = images.double().clone()
            for row, box_row in enumerate(boxes.reshape(n, -1, 4).long().tolist()):
                for x1, y1, x2, y2 in box_row:
                    if x1 == x2 and y1 == y2:
                        continue  # bbox_tensor is filled up with zeros
                    for plane in (brightest[row, 0], images[row, 0]):
                        plane[y1:y2, x1] = 255
                        plane[y1:y2, x2] = 255
                        plane[y1, x1:x2] = 255
                        plane[y2, x1:x2] = 255
            rows = [brightest.expand(-1, 3, -1, -1), images]
            for channel in range(channels):
                low, high = windows[channel % len(windows)]
                plane = output[:, channel : channel + 1]
                inside = (plane > low) & (plane < high)  # (N, 1, H, W)
                rows.append(torch.where(inside, 255.0, 50.0).expand(-1, 3, -1, -1))
            return torchvision.utils.make_grid(
                torch.cat(rows), nrow=n, normalize=True, padding=2, pad_value=10
            )

        def _save_test_figure(self, batch, output, number):
            names, values = self._data_facts()
            batch = {key: value[:8] for key, value in batch.items()}  # more are too small to see
            output = output[:8]
            if len(values) != len(names):  # one channel for all classes: no picture of DLStudio's
                return self.save_panel_figure(batch, output, f"test-batch-{number:03d}.png")
            grid = self.make_test_grid(
                batch["image"], batch["bbox_tensor"], self.as_mask_values(output)
            )
            height = batch["image"].shape[2] + 2
            rows = ["largest output", "input, true boxes", *(f"{name} channel" for name in names)]
            figure = self.dl_studio.new_figure(
                figsize=(2 + 1.1 * len(output), 1.1 * len(rows) + 0.8), dpi=100
            )
            axes = figure.add_subplot()
            axes.imshow(grid.permute(1, 2, 0).clamp(0, 1).numpy())
            axes.set_xticks([])
            axes.set_yticks([height * (k + 0.5) for k in range(len(rows))], rows)
            axes.tick_params(length=0)
            axes.set_title(f"Test batch {number}", loc="left")
            axes.set_xlabel(
                "A channel is white where its output lies in DLStudio's\n"
                "window around the class's mask value, dark elsewhere.",
                fontsize=9,
            )
            return self.dl_studio.save_figure(figure, f"test-batch-{number:03d}.png")

        @staticmethod
        def overlay(image, masks, colors=None):
            """The image in grey, each mask as a tint and an outline in the colour of its class.

            Shape: image (3, H, W) 0..255, masks (C, H, W) bool -> (3, H, W) uint8.
            """
            colors = colors or [PALETTE[k % len(PALETTE)] for k in range(len(masks))]
            grey = image.clamp(0, 255).mean(dim=0, keepdim=True).expand(3, -1, -1)
            picture = torchvision.utils.draw_segmentation_masks(
                grey.byte(), masks, alpha=0.5, colors=colors
            )
            for mask, color in zip(masks.numpy(), colors, strict=True):
                edge = skimage.segmentation.find_boundaries(mask, mode="inner")
                picture[:, torch.from_numpy(edge)] = torch.tensor(
                    [int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8
                )[:, None]
            return picture

        def save_panel_figure(self, batch, output, name, titles=None, heading=None):
            """One row per image: input, true masks, predicted masks; classes in colours."""
            names, values = self._data_facts()
            preds = self.predict(output)
            truths = batch["mask_tensor"] > 0
            columns = ("input", "truth", "prediction")
            count = len(preds)
            figure = self.dl_studio.new_figure(
                figsize=(6.6, 2.1 * count + 0.9), dpi=120, layout="constrained"
            )
            grid = figure.subplots(count, 3, squeeze=False)
            for row in range(count):
                image = batch["image"][row]
                pictures = (
                    image.byte(), self.overlay(image, truths[row]), self.overlay(image, preds[row])
                )  # fmt: skip
                for axes, picture, column in zip(grid[row], pictures, columns, strict=True):
                    axes.imshow(picture.permute(1, 2, 0).numpy())
                    axes.set_xticks([])
                    axes.set_yticks([])
                    if row == 0:
                        axes.set_title(column)
                if titles is not None:
                    grid[row][0].set_ylabel(titles[row])
                elif "category" in batch:
                    grid[row][0].set_ylabel(names[int(batch["category"][row])])
            if len(values) == len(names):
                patches = [
                    Patch(color=PALETTE[k % len(PALETTE)], label=label)
                    for k, label in enumerate(names)
                ]
                figure.legend(handles=patches, loc="outside lower center", ncols=len(names))
            if heading:
                figure.suptitle(heading)
            return self.dl_studio.save_figure(figure, name)

        def _save_worst_figure(self, worst):
            """The test images with the lowest mean IoU: what the network does not know yet."""
            ious, numbers, items, outputs = zip(*worst, strict=True)
            batch = {key: [item[key] for item in items] for key in items[0]}
            for key in ("image", "mask_tensor"):
                batch[key] = torch.stack(batch[key])
            titles = [f"image {n}\nIoU {iou:.2f}" for n, iou in zip(numbers, ious, strict=True)]
            self.save_panel_figure(
                batch, torch.stack(outputs), "worst.png", titles, "The worst test images"
            )

        def _save_loss_figure(self, history):
            figure = self.dl_studio.new_figure(figsize=(7, 4.2), dpi=120, layout="constrained")
            axes = figure.add_subplot()
            iterations, losses = zip(*history.column("loss"), strict=True)
            axes.plot(iterations, losses, marker=".", color=PALETTE[0], label=history.loss_name)
            terms = ("mse", "mae", "bce", "dice")
            for color, term in enumerate([t for t in terms if history.column(t)], start=1):
                axes.plot(
                    *zip(*history.column(term), strict=True), color=PALETTE[color],
                    linestyle="--", label=f"{term} term",
                )  # fmt: skip
            axes.set_xlabel("iteration")
            axes.set_ylabel(f"{history.loss_name} loss, mean of each interval")
            axes.set_title(f"Training loss: {history.loss_name}")
            axes.grid(alpha=0.3)
            figure.legend(loc="outside lower center", ncols=3)  # inside, it hides a curve
            self.dl_studio.save_figure(figure, "loss.png")

        @staticmethod
        def probe_output_coverage(net, image_size, *, in_channels=3, probes=8):
            """Which output pixels can depend on the input at all?

            Feeds random images to `net` (any segmentation network) in eval mode and marks the
            output pixels that ever change. A pixel that never does is a constant of the network:
            no loss and no amount of training can make it right. DLStudio's mUnet has three in four.

            Shape: image_size (H, W); the map is (H', W') of the network's output.
            Returns: a named tuple: fraction (float), map (bool tensor), picture (uint8 tensor
            (3, 8H', 8W'): reached pixels blue, the others orange).
            """
            was_training = net.training
            device = next((p.device for p in net.parameters()), torch.device("cpu"))
            generator = torch.Generator().manual_seed(0)
            net.eval()
            try:
                with torch.no_grad():
                    outputs = []
                    for _ in range(probes):
                        image = torch.rand(1, in_channels, *image_size, generator=generator) * 255
                        output = net(image.to(device))
                        output = output["out"] if isinstance(output, Mapping) else output
                        outputs.append(output[0].cpu())
            finally:
                net.train(was_training)
            outputs = torch.stack(outputs)  # (probes, C, H', W')
            reached = (outputs != outputs[0]).any(dim=0).any(dim=0)  # (H', W')
            colors = torch.tensor(
                [[int(PALETTE[k][i : i + 2], 16) for i in (1, 3, 5)] for k in (1, 0)],
                dtype=torch.uint8,
            )
            picture = colors[reached.long()].permute(2, 0, 1)  # (3, H', W')
            picture = picture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
            coverage = namedtuple("Coverage", "fraction map picture")
            return coverage(reached.float().mean().item(), reached, picture)

    # ==== REPORT: the homework as one page =======================================================

    class HomeworkReport:
        """The homework's figures, by number, beside what its report saw: one page to hand around.

        A result counts once somebody else can check it. So the page says for each experiment what
        was expected, what came out, on which schedule and machine, and what differs and why. It
        is made from run folders alone and holds its pictures itself: readable offline, printable.
        `experiments` is the one table of what the homework ran. The folder of an experiment is
        its name with _ for -; one that is missing or damaged becomes a sentence on the page.

        Errors: FileNotFoundError where results_dir holds none of the homework's runs; ValueError
        for a damaged one (read_run). Class Path:   SegStudio  ->  HomeworkReport
        """

        Experiment = namedtuple("Experiment", "name first_figure title loss_type dice_scale saw")
        experiments = tuple(itertools.starmap(Experiment, (
            ("mse", 1, "MSE", "MSE", 1, "300-400, falling with fluctuations"),
            ("dice", 3, "Dice", "Dice", 1, "0.8-1, smoother than MSE and faster to settle"),
            ("combined-200", 5, "MSE + 200 Dice", "Combined", 200,
             "568 → 504 in epoch 1, 496 → 492 in epoch 2"),
            ("combined-300", 7, "MSE + 300 Dice", "Combined", 300,
             "654 → 590 in epoch 1, then no clear convergence"),
            ("combined-400", 9, "MSE + 400 Dice", "Combined", 400, "steady fall; both near 300"),
            ("coco-mae", 12, "COCO, MAE", "MAE", 1, "81.7 → 76.8 in epoch 1, 72-75 in 5 and 6"),
            ("coco-dice", 16, "COCO, Dice", "Dice", 1, "smooth decrease, masks slightly better"),
            ("coco-combined", 20, "COCO, MAE + 100 Dice", "MAE+Dice", 100, "about 170 → 140"),
        )))  # fmt: skip

        def __init__(self, results_dir="runs"):
            self.results_dir = Path(results_dir).expanduser()

        def folder(self, experiment):
            return self.results_dir / experiment.name.replace("-", "_")

        def figures(self, experiment):
            """(numbers, caption, files) of an experiment's figures; files may be a pattern."""
            first, title = experiment.first_figure, experiment.title
            figures = [(f"{first}", f"{title}: training loss", "loss.png")]
            if not experiment.name.startswith("coco"):
                return [*figures, (f"{first + 1}", f"{title}: test batches", "test-batch-*.png")]
            if experiment.name == "coco-mae":
                figures.insert(0, ("11", "COCO: training images and masks", "samples.png"))
            panels = (f"{first + 1}-{first + 3}", f"{title}: one test image of each class")
            return [*figures, (*panels, "test-panel-*.png")]

        @staticmethod
        def read_run(folder):
            """A run folder as a dict: settings.json, with `rows`, `losses`, `metrics` (or None)."""
            folder = Path(folder)
            if not (folder / "settings.json").exists() or not (folder / "losses.csv").exists():
                raise FileNotFoundError(f"{folder} holds no run that has reported a loss")
            try:
                run = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
                table = csv.DictReader((folder / "losses.csv").read_text("utf-8").splitlines())
                run["rows"] = [{k: float(v) for k, v in row.items() if v} for row in table]
                run["losses"] = [r for r in run["rows"] if {"loss", "epoch"} <= r.keys()]
                run["iterations"] = int(run["losses"][-1]["iteration"])
                tested = folder / "metrics.json"
                run["metrics"] = json.loads(tested.read_text("utf-8")) if tested.exists() else None
                settings, training = run["settings"], run["training"]
                run["name"], run["loss"] = folder.name, str(training["loss"])
                run["per_epoch"] = math.ceil(training["images"] / training["batch_size"])
                run["total"] = run["per_epoch"] * int(settings["epochs"])  # iterations planned
            except (ArithmeticError, LookupError, ValueError, TypeError, csv.Error) as error:
                raise ValueError(
                    f"{folder} cannot be read ({type(error).__name__}: {error}): remove that "
                    f"folder and run its experiment again"
                ) from None
            return run

        def page(self):
            """The whole page as text."""
            found, missing = [], []
            for experiment in self.experiments:
                try:
                    found.append(self._parts(experiment))
                except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
                    why = "not run yet" if isinstance(error, FileNotFoundError) else error
                    missing.append(
                        f"<li>{experiment.title}: {html.escape(str(why))}. <code>python "
                        f"Examples/reproduce_homework.py --only {experiment.name}</code></li>"
                    )
            if not found:
                raise FileNotFoundError(
                    f"{self.results_dir} holds none of the homework's runs that can be read: make "
                    f"them with python Examples/reproduce_homework.py --quick"
                )
            links, sections, *rows = zip(*found, strict=True)
            columns = ("experiment", "mean IoU", "mean Dice", "pixel accuracy", "boundary F1")
            compared = self._table(("experiment", "the report saw", "here"), rows[0])
            facts = self._table(("experiment", "schedule and settings", "machine"), rows[2])
            tables = {
                "Losses beside the report's": compared,
                "Scores": self._table(columns, rows[1], "Untrained → trained; 1 is perfect"),
                "What differs, and why": f"<ul>{REPORT_DIFFERENCES}</ul>",
                "Settings, machine, versions": facts,
                "Not in this page": f"<ul>{''.join(missing) or '<li>Nothing.</li>'}</ul>",
            }
            links = [f'<a href="#t{k}">{t}</a>' for k, t in enumerate(tables)] + list(links)
            body = [f'<h2 id="t{k}">{t}</h2>{tables[t]}' for k, t in enumerate(tables)]
            title = "The semantic-segmentation homework, reproduced"
            return (
                '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
                f'content="width=device-width,initial-scale=1"><title>{title}</title><style>'
                f"{REPORT_STYLE}</style></head><body><h1>{title}</h1><p>Homework 7 of Purdue's "
                "ECE60146, with SegStudio; figures are numbered as in the report that this page "
                f"is held against.</p><nav><ul><li>{'<li>'.join(links)}</ul></nav>"
                f"{''.join(body[:3])}{''.join(sections)}{''.join(body[3:])}"
                "</body></html>\n"
            )

        def write(self, path=None):
            """Write the page, whole or not at all, to results_dir/report; returns its path."""
            path, text = Path(path or self.results_dir / "report" / "index.html"), self.page()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(text, encoding="utf-8")
            return path.with_suffix(".part").replace(path)

        def _parts(self, experiment):
            """An experiment's link, its section, and its rows of the page's three tables."""
            folder = self.folder(experiment)
            run = self.read_run(folder)
            settings, training, metrics = run["settings"], run["training"], run["metrics"]
            full = 6 * (3285 if experiment.name.startswith("coco") else 10000)  # epochs * images
            share = training["images"] * settings["epochs"] / full
            short = f'<b class="short">short schedule: {share:.1%} of the homework\'s</b>'
            label = "the homework's schedule" if share > 0.95 else short
            if "SYNTHETIC" in str(run.get("data", {}).get("source")):
                label += '; <b class="short">synthetic set, not COCO</b>'
            epochs = []
            for epoch, rows in itertools.groupby(run["losses"], lambda row: row["epoch"]):
                values = [f"{row['loss']:.4g}" for row in rows]
                epochs.append(" → ".join(dict.fromkeys(values[::len(values) - 1 or 1])))
                epochs[-1] += f" in epoch {epoch:.0f}"
            here = f"{', '.join(epochs)} ({label})"
            cells, table = ["-"] * 4, "<p>Training or testing has not finished.</p>"
            if metrics is not None:
                before = metrics.get("before") or {"classes": {}}
                names = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_f1")
                cells = self._cells({k: metrics[k] for k in names}, before)
                rows = [
                    [html.escape(name), *self._cells(scores, before["classes"].get(name, {}))]
                    for name, scores in metrics["classes"].items()
                ]
                table = self._table(("class", "IoU", "Dice", "pixel accuracy", "boundary F1"), rows)
            figures = self.figures(experiment)
            title = f"Figures {', '.join(f[0] for f in figures)}: {experiment.title}"
            link = f'<a href="#{experiment.name}">{title}</a>'
            figures.append(("", f"{experiment.title}: the worst test images", "worst.png"))
            parts = [self._figure(folder, *figure, label) for figure in figures]
            parts.insert(len(parts) - 2, f"<div>{table}</div>")  # beside the loss curve
            section = (
                f'<h2 id="{experiment.name}">{title}</h2><p>The report saw: {experiment.saw}. '
                f'Here: {here}.</p><div class="row">{"".join(parts)}</div>'
            )
            schedule = (
                f"{label}: {training['images']:,} images, {settings['epochs']} epochs, batches of "
                f"{training['batch_size']}: {run['iterations']:,} of {run['total']:,} iterations "
                f"in {run['rows'][-1]['seconds'] / 60:.1f} minutes. "
            )
            shown = {k: settings[k] for k in ("learning_rate", "momentum", "seed", "image_size")}
            shown |= {k: training[k] for k in ("loss", "optimizer", "precision")}
            listed = [
                html.escape(", ".join(f"{k} {v}" for k, v in facts.items()))
                for facts in (shown | (run["network"]["arguments"] or {}), run["machine"])
            ]
            name, listed[0] = experiment.title, schedule + listed[0]
            return link, section, [name, experiment.saw, here], [name, *cells], [name, *listed]

        @staticmethod
        def _cells(scores, before):
            known = {k: before[k] for k in scores if before.get(k) is not None}
            was = {k: f"<small>{v:.3f} →</small> " for k, v in known.items()}
            return [was.get(k, "") + ("-" if v is None else f"{v:.3f}") for k, v in scores.items()]

        @staticmethod
        def _table(columns, rows, caption=""):
            head = "".join(f"<th>{cell}</th>" for cell in columns)
            body = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
            lines = "".join(f"<tr>{cells}</tr>" for cells in (head, *body))
            return f"<table><caption>{caption}</caption>{lines}</table>"

        @staticmethod
        def _figure(folder, number, caption, files, label):
            """A figure of one or more pictures, embedded in the page."""
            pictures = []
            for path in sorted(folder.glob(files)):
                data = path.read_bytes()
                if not data.startswith(b"\x89PNG"):
                    raise ValueError(f"{path} is not a PNG picture: run its experiment again")
                pictures.append(
                    f'<img alt="{html.escape(f"{caption} ({path.stem})")}" '
                    f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
                )
            if not pictures:
                return number and f"<p>Figure {number} is not there yet.</p>"
            return (
                f'<figure class="{"many" if len(pictures) > 1 else "one"}"><div class="row">'
                f"{''.join(pictures)}</div><figcaption>{number and f'<b>Figure {number}.</b> '}"
                f"{caption} ({label}).</figcaption></figure>"
            )
