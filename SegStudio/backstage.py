"""Backstage of SegStudio: what the lecture needs but does not teach.

Settings and files, the cache of a dataset, the reader of archives, the drawing of shapes, prepared
COCO folders, the record of a training, and the flags of the examples. SegStudio.py calls these
functions as backstage.NAME; `python -m SegStudio show NAME` copies those that a class needs.
"""

import argparse
import colorsys
import contextlib
import difflib
import errno
import functools
import glob
import gzip
import hashlib
import importlib
import inspect
import io
import itertools
import json
import numbers
import operator
import os
import pickle
import random
import re
import shlex
import shutil
import sys
import time
import weakref
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path

import filelock
import matplotlib.colors
import numpy as np
import platformdirs
import skimage.draw
import torch
import torchvision
from matplotlib.patches import Patch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

if __package__:
    from . import processes
else:  # the folder of this file is on sys.path
    import processes

__version__ = "2.2.0"

STARTED = time.perf_counter()  # the time limit of --quick counts from here


# ---- DLStudio's star import ---------------------------------------------------------------------

# DLStudio.py's star import also gave scripts these modules. They are imported when asked for.
DLSTUDIO_MODULES = {
    "F": "torch.nn.functional",
    "Image": "PIL.Image",
    "ImageFilter": "PIL.ImageFilter",
    "nn": "torch.nn",
    "np": "numpy",
    "optim": "torch.optim",
    "plt": "matplotlib.pyplot",
    "tvt": "torchvision.transforms",
    **{
        name: name
        for name in (
            "copy", "glob", "gzip", "logging", "math", "numbers", "os", "pickle", "random", "re",
            "sys", "time", "torch", "torchvision",
        )
    },
}  # fmt: skip


def dlstudio_module(name):
    """The module that DLStudio.py had under this name; the `__getattr__` of SegStudio.py."""
    if name not in DLSTUDIO_MODULES:
        raise AttributeError(f"the module SegStudio has no {name}")
    return importlib.import_module(DLSTUDIO_MODULES[name])


def tool(name):
    """The module of this name beside this file; imported when asked for."""
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


# ---- settings -----------------------------------------------------------------------------------


def refuse_unknown_settings(cls, args, unknown):
    """ValueError for positional arguments and for keywords that SegStudio does not have."""
    valid = [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if args:
        raise ValueError(
            f"SegStudio takes keyword arguments only, but got {args[0]!r} without a keyword: "
            f"write for example dataroot={args[0]!r}. The keywords: {', '.join(valid)}"
        )
    for name in unknown:
        nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"SegStudio has no keyword argument {name!r}: did you mean {nearest!r}? "
            f"The keywords: {', '.join(valid)}"
        )


def check_settings(dls):
    """Check the values of a SegStudio; numpy's numbers become Python's."""
    for name in ("batch_size", "epochs"):
        value = getattr(dls, name)
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
        setattr(dls, name, int(value))
    sides = list(dls.image_size) if isinstance(dls.image_size, (list, tuple)) else []
    if len(sides) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in sides):
        raise ValueError(f"image_size is [height, width] in pixels, not {dls.image_size!r}")
    dls.image_size = [int(side) for side in sides]
    if not isinstance(dls.learning_rate, numbers.Real) or not dls.learning_rate > 0:
        raise ValueError(f"learning_rate is a number above 0, not {dls.learning_rate!r}")
    dls.learning_rate = float(dls.learning_rate)
    if isinstance(dls.momentum, numbers.Real):
        dls.momentum = float(dls.momentum)
    if not isinstance(dls.num_workers, numbers.Integral) or dls.num_workers < 0:
        raise ValueError(f"num_workers is 0 or more, not {dls.num_workers!r}")
    dls.num_workers = int(dls.num_workers)
    if dls.run_name == "":
        raise ValueError("run_name is a name, not '': leave it out to get one")


def make_run_dir(results, run_name):
    """Make the folder of a run: run_name, or the script's name with a number if it is taken."""
    if not processes.is_main():
        return processes.temporary_folder()
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    stem = script if re.fullmatch(r"[\w-]+", script) else "session"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    if RERUN in os.environ:
        run_name = rerun_folder(results / (run_name or Path(os.environ[RERUN]).name))
    folder = results
    try:
        results.mkdir(parents=True, exist_ok=True)
        for name in [run_name] if run_name is not None else itertools.chain([stem], numbered):
            folder = results / name
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True, exist_ok=run_name is not None)
                break
        refuse_unwritable_folder(folder)
    except OSError as error:
        raise OSError(
            f"the run cannot be written to {folder.absolute()} ({error.strerror}): give another "
            f"results_dir (--results-dir), or make that one writable"
        ) from None
    return folder


LOCKS = weakref.WeakValueDictionary()  # of the run folders that this process writes to
LOCK_SECONDS = 10


def lock_run_dir(folder, owner):
    """OSError if another process writes to this folder. The lock ends with its owner."""
    folder = folder.absolute()
    # Beside the folder, so that the folder itself can be renamed.
    lock = LOCKS.setdefault(folder, filelock.FileLock(folder.with_name(f".{folder.name}.lock")))
    try:
        # The workers of a killed process may hold it for some seconds.
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise OSError(
            f"another process writes to {folder}: give this run another name (--run-name), or "
            f"wait until that one has ended"
        ) from None
    except (NotImplementedError, OSError) as error:  # some network drives have no locks
        tqdm.write(f"warning: {folder} could not be locked ({error}): use it for one run at a time")
        return
    weakref.finalize(owner, lock.release)  # the file is closed with the last owner


def free_name(folder):
    """The first of NAME_before_1, NAME_before_2, ... that is not there yet."""
    names = (folder.with_name(f"{folder.name}_before_{k}") for k in itertools.count(1))
    return next(path for path in names if not path.exists())


def move_aside(folder):
    """Rename a run's folder to NAME_before_1, or the next free number; returns the new path."""
    aside = free_name(folder)
    change_file(folder, lambda: folder.rename(aside))
    return aside


def move_earlier_run_aside(dls):
    """Move what an earlier process left in the run's folder to NAME_before_1.

    A new training neither continues nor overwrites it. What this process has written stays: its
    lines of log.txt, its own files, the parts of the run that it has begun.
    """
    folder = dls.run_dir
    earlier, dls._earlier_files = dls._earlier_files, None
    earlier = {name: size for name, size in (earlier or {}).items() if name not in dls._parts}
    if not earlier:
        return
    aside = free_name(folder)
    aside.mkdir()
    length = earlier.pop("log.txt", 0)
    if length:
        content = (folder / "log.txt").read_bytes()
        (aside / "log.txt").write_bytes(content[:length])
        (folder / "log.txt").write_bytes(content[length:])
    for name in earlier:
        change_file(folder / name, functools.partial((folder / name).rename, aside / name))
    dls.log(f"The earlier run in {folder} is now in {aside}")


def content_of(folder):
    """{name: size in bytes} of the files and folders in a folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


# ---- to continue or to repeat a run -------------------------------------------------------------

RERUN = "SEGSTUDIO_RERUN"  # the folder of the run that `python -m SegStudio rerun` repeats
FRACTIONS = "fractions.json"  # of a training bounded by time: what was over after each iteration


def rerun_folder(folder):
    """The folder of the repetition of a run: NAME-rerun; of a part of it: NAME-rerun/PART."""
    folder, first = folder.absolute(), Path(os.environ[RERUN])
    copy = first.with_name(f"{first.name}-rerun")
    if folder.is_relative_to(copy):
        return folder
    if folder.is_relative_to(first):
        return copy / folder.relative_to(first)
    return folder.with_name(f"{folder.name}-rerun")  # of another run of the same script


def replayed_fractions(dls):
    """The fractions of the time in the run that is repeated now; None if there is none.

    A training bounded by time depends on the clock: through its end and its learning rates. With
    the recorded fractions it becomes the same again.
    """
    if RERUN not in os.environ:
        return None
    first = Path(os.environ[RERUN])
    part = dls.run_dir.absolute().relative_to(first.with_name(f"{first.name}-rerun"))
    path = first / part / FRACTIONS
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: that run was not finished, or is of version 2.1 or older"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def how_to_go_on(dls):
    """The sentence that says how to continue the run of a script."""
    while dls._whole is not None:
        dls = dls._whole
    name = dls.run_name
    if processes.is_main():  # perhaps it found its name itself
        results = Path(dls.results_dir).expanduser()
        name = dls.run_dir.absolute().relative_to(results.absolute())
    if not EXAMPLE:
        return f'To go on, run the script again with run_name="{name}" and resume=True.'
    words, skip = ["python", sys.argv[0]], False
    if processes.world_size() > 1:
        words = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], sys.argv[0]]
    for word in sys.argv[1:]:
        if not skip and word != "--resume" and not word.startswith("--run-name"):
            words.append(word)
        skip = word == "--run-name"
    if not EXAMPLE[0].has_fixed_folders:
        words += ["--run-name", str(name)]
    words.append("--resume")
    return f"To go on: {shlex.join(words)}"


EXAMPLE = []  # the parser of the example that runs, if any


def refuse_unwritable_folder(folder):
    """OSError if no file can be made in it. On Windows, tempfile would try for a very long time."""
    probe = folder / f".{os.getpid()}.part"
    probe.touch()
    probe.unlink()


def prepare_results_dir(dls):
    """OSError if the run cannot be written. Checked before data is drawn; makes no folder."""
    folder = Path(dls.results_dir).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(
            f"the run cannot be written to {folder}: give another results_dir (--results-dir), "
            f"or make that one writable"
        )


WAITS = (0.1, 0.3, 0.6)  # seconds before a file that is held open is tried again
HELD = {}  # files that another program held open the last time: path -> text not yet written


def change_file(path, action):
    """action(), which changes the file at `path`; tried again if another program has it open.

    Windows does not replace or delete a file that a spreadsheet, a virus scanner or a memory map
    has open: PermissionError. Often that lasts for less than a second.
    """
    for wait in () if path in HELD else WAITS:
        try:
            return action()
        except PermissionError:
            time.sleep(wait)
    return action()


def try_to_change(path, action, unwritten="") -> bool:
    """action(), which changes the file at `path`; if that is held, warn once and return False."""
    try:
        action()
    except PermissionError:
        if path not in HELD:
            tqdm.write(
                f"warning: {path.absolute()} cannot be changed, perhaps because another program "
                f"has it open: close it there. The run goes on and tries again."
            )
        HELD[path] = unwritten
        return False
    HELD.pop(path, None)
    return True


def append_text(path, text):
    """Append to a text file. If another program has it open, the text is written with the next."""
    text = HELD.get(path, "") + text

    def append():
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    try_to_change(path, lambda: change_file(path, append), unwritten=text)


def write_atomically(path, write: Callable) -> Path:
    """Call write(temporary path), then rename that file to `path`: complete, or not at all.

    A full disk or an interruption leaves the old file as it was.
    """
    path = Path(path)
    delete_old_parts(path.parent, path.name)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        change_file(path, lambda: part.replace(path))
    except PermissionError as error:
        raise PermissionError(
            f"{path.absolute()} could not be written: another program has it open, or the folder "
            f"is read-only ({error.strerror})"
        ) from error
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise OSError(
            f"{path.absolute()} could not be written ({why_not_written(error, path.parent)})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def write_or_warn(path, write):
    """write_atomically; if another program has the file open, warn once and go on."""
    try_to_change(path, lambda: write_atomically(path, write))


def delete_old_parts(folder, name):
    """Delete what killed processes left of files whose names begin with `name`."""
    with contextlib.suppress(OSError):  # a folder that cannot be read
        for part in list(folder.glob(f"{glob.escape(name)}*.part")):
            with contextlib.suppress(OSError):
                # A living process writes to its part more often than every ten minutes.
                if time.time() - part.stat().st_mtime > 600:
                    part.unlink()


def why_not_written(error, folder):
    """The reason why a file could not be written into `folder`; for a full disk also the remedy."""
    if not folder.is_dir():
        return "there is no such folder"
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        full = shutil.disk_usage(folder).free < 2**16
    if full:
        return (
            "the disk is full: make room, or give a folder elsewhere, --results-dir for runs, "
            "--dataroot for data, --out for prepare_coco.py"
        )
    return getattr(error, "strerror", None) or error


def use_deterministic_algorithms():
    """Let torch use no algorithm whose result changes from run to run, for the whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seconds_for_training(limit, trainings_left=1, reserve=15):
    """The seconds that the next training may take, so that the script keeps its time limit.

    The clock started when this module was imported. `reserve` seconds per training are kept for
    scores and figures. None: no limit.
    """
    if limit is None:
        return None
    left = limit - (time.perf_counter() - STARTED) - reserve * trainings_left
    return max(5.0, left / trainings_left)


@contextlib.contextmanager
def eval_mode(net):
    """Inside, `net` is in eval mode; afterwards every layer has its own mode again.

    net.train() would not do: it would also switch layers that a script has frozen in eval mode.
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def on_device(device, *modules):
    """Inside, the modules are on `device`; afterwards each is again where it came from.

    So a script's own loop on the CPU works after a training or a test on the GPU.
    """
    modules = [module for module in modules if isinstance(module, nn.Module)]  # no functions
    places = [(module, device_of(module)) for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, place in places:
            if place is not None:
                module.to(place)


def device_of(module):
    """The device of a module's weights; None if it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), None)


def show_inline(path):
    """In a notebook, show a picture under the cell. IPython is asked, never imported."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if hasattr(shell, "kernel"):  # IPython in a terminal has none
        display = sys.modules["IPython.display"]
        display.display(display.Image(filename=path))


class BarLines:
    """Stands in for stderr where that is no terminal: each state of a bar is a line of its own."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def progress_bar(items=None, desc=None, **options):
    """tqdm's bar; in a file, a pipe or a notebook, a line every five seconds instead."""
    if not processes.is_main():
        return tqdm(items, disable=True)
    if sys.stderr.isatty():
        return tqdm(items, desc, leave=False, dynamic_ncols=True, **options)
    times = {"mininterval": 5, "maxinterval": 5, "delay": 4}
    return tqdm(items, desc, leave=False, ncols=90, file=BarLines(), **times, **options)


# ---- the cache of a dataset ---------------------------------------------------------------------


class ImageCache:
    """Images, masks, boxes and categories of a dataset in one memory-mapped file.

    The operating system loads the pages that are read and drops them again, so a dataset of any
    size needs constant memory. A pickled cache is only its path: every DataLoader worker maps the
    same file instead of copying it.
    """

    def __init__(self, path, num_images=None):
        records = np.load(path, mmap_mode="r")
        whole = records.offset + records.nbytes == Path(path).stat().st_size
        if not whole or records.dtype.names != ("image", "mask", "box", "category"):
            raise ValueError(f"{path} is not a complete cache file")
        self.path = path
        self.take(records.view(np.ndarray)[:num_images])  # numpy's memmap is slower to index

    def take(self, records):
        self.images = records["image"]  # (number, 3, H, W) uint8
        self.masks = records["mask"]  # (number, C, H, W) uint8
        self.boxes = records["box"]  # (number, boxes, C, 4) int16
        self.categories = records["category"]  # (number,) int16

    def __len__(self):
        return len(self.images)

    def __reduce__(self):
        return type(self), (self.path, len(self))

    @staticmethod
    def record_type(classes, height, width, boxes):
        return np.dtype([
            ("image", "u1", (3, height, width)),
            ("mask", "u1", (classes, height, width)),
            ("box", "i2", (boxes, classes, 4)),
            ("category", "i2"),
        ])  # fmt: skip


def open_cache(source, content, num_images, read_records):
    """The ImageCache of the data at the path `source`, beside it or in the user's cache folder.

    The file's name holds a hash of `content`, bytes that change with the data, so a cache never
    belongs to other data. If there is no complete cache, it is made from read_records(), which
    returns the number of records, their type and an iterator over them.
    """
    folder = source.parent
    name = f"{source.name}.v3-{short_hash(content)}.cache.npy"
    places = [folder / name]
    with contextlib.suppress(RuntimeError):  # the user has no home folder
        user_folder = Path(platformdirs.user_cache_dir("segstudio"))
        if user_folder.is_absolute():  # older platformdirs: "~/.cache" without a home folder
            # Data with the same name in two folders gets two caches.
            places.append(user_folder / short_hash(bytes(folder.resolve())) / name)
    for path in places:
        delete_old_parts(path.parent, source.name)
    for path in places:
        with contextlib.suppress(OSError, ValueError, EOFError):
            return ImageCache(path, num_images)
    print(f"First use of {source}: writing a cache file ...")
    for path in places:
        number, record_type, records = read_records()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, functools.partial(write_records, number, record_type, records))
        except OSError as error:
            # Another process may have made and mapped the same file meanwhile.
            with contextlib.suppress(OSError, ValueError, EOFError):
                return ImageCache(path, num_images)
            problem = getattr(error.__cause__, "strerror", None) or error
            continue
        with contextlib.suppress(OSError):  # a folder that cannot be read
            for old in list(path.parent.glob(f"{glob.escape(source.name)}.v*.cache.npy")):
                if old != path:
                    with contextlib.suppress(OSError):
                        old.unlink()
        return ImageCache(path, num_images)
    size = number * record_type.itemsize / 1e6
    raise OSError(
        f"the cache of {source} cannot be written ({problem}): make room for {size:.0f} MB "
        f"beside it, or set XDG_CACHE_HOME to a folder with room"
    )


def short_hash(content):
    return hashlib.sha256(content).hexdigest()[:16]


def write_records(number, record_type, records, path):
    """Write a .npy file record by record: a memory-mapped file would crash on a full disk."""
    header = {"descr": record_type.descr, "fortran_order": False, "shape": (number,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in progress_bar(records, "writing the cache", total=number, unit="image"):
            file.write(record.tobytes())
        file.flush()
        os.fsync(file.fileno())


# ---- archives of shapes -------------------------------------------------------------------------

LABEL_MAP = {"rectangle": 50, "triangle": 100, "disk": 150, "oval": 200, "star": 250}
SHAPES = ImageCache.record_type(classes=5, height=64, width=64, boxes=5)


class NumberType:
    """Stands in for numpy.dtype while an archive is read: the type of an array of numbers.

    numpy.dtype also has the type "Python object", whose bytes are pointers. A hostile archive could
    choose these pointers.
    """

    def __init__(self, name, *_):
        if not isinstance(name, str) or np.dtype(name).kind not in "biuf":
            raise ValueError(f"it has an array of {name!r}, which is not a type of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class NumberArray(np.ndarray):
    """An array of numbers: it takes its state from a pickle with a NumberType."""

    def __setstate__(self, state):
        version, shape, number_type, is_fortran, data = state
        super().__setstate__((version, shape, number_type.dtype, is_fortran, data))


def array_from_buffer(data, number_type, *layout):
    # numpy moved this function between its versions, so it is taken from an array.
    numpy_function = np.zeros(1).__reduce_ex__(5)[0]
    return numpy_function(data, number_type.dtype, *layout)


def make_scalar(number_type, data):
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's
    return np.frombuffer(data, number_type.dtype)[0]


class ArchiveUnpickler(pickle.Unpickler):
    """Reads a pickle of containers, numbers, strings and arrays of numbers, and nothing else.

    A pickle is a program, and loading it runs it: one line of it could delete your files. This
    reader refuses every function that such data does not need. A hostile archive can still
    use up memory or time; it cannot run code.
    """

    ALLOWED = {
        "_reconstruct": lambda *_: NumberArray(0),  # its __setstate__ follows
        "_frombuffer": array_from_buffer,
        "scalar": make_scalar,
        "ndarray": None,  # only named, as an argument of _reconstruct
        "dtype": lambda *args: NumberType(*args),  # not the class: a pickle could change it
        "encode": lambda text, encoding: text.encode("latin1"),  # bytes in protocol 2
        **{kind.__name__: kind for kind in (bytes, bytearray, set, frozenset, list, dict, tuple)},
    }
    MODULES = ("numpy", "numpy.core", "numpy._core", "builtins", "__builtin__", "_codecs")

    def find_class(self, module, name):
        package = module.removesuffix(".multiarray").removesuffix(".numeric")
        if package not in self.MODULES or name not in self.ALLOWED:
            raise ValueError(f"it calls {module}.{name}, which no data needs")
        return self.ALLOWED[name]


class UnpackedArchive(io.RawIOBase):
    """The content of a gzip file, unpacked while it is read, with a progress bar.

    Errors: ValueError if it is a gzip bomb: images compress less than 500 times.
    """

    def __init__(self, data):
        self.packed = io.BytesIO(data)
        self.file = gzip.GzipFile(fileobj=self.packed)
        self.limit = 2**26 + 500 * len(data)
        self.bar = progress_bar(
            desc="reading the archive", total=len(data), unit="B", unit_scale=True
        )

    def readable(self):
        return True

    def readinto(self, buffer):
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        if self.file.tell() > self.limit:
            raise ValueError(f"it unpacks to more than {self.limit} bytes")
        self.bar.update(self.packed.tell() - self.bar.n)
        return len(content)

    def close(self):
        self.bar.close()
        super().close()


def find_archive(dl_studio, dataset_file):
    """The path of an archive of shapes, dataroot/dataset_file, of images of 64x64."""
    # DLStudio joins both as text, so dataroot may end with the beginning of the file name.
    root = Path(dl_studio.dataroot).expanduser()
    archive = root / dataset_file
    joined = Path(f"{root}{dataset_file}")
    if not archive.is_file() and joined.is_file():
        archive = joined
    if not archive.is_file():
        raise FileNotFoundError(
            f"{archive} is not there: take it from datasets_for_DLStudio.tar.gz of Avinash Kak's "
            f"page (https://engineering.purdue.edu/kak/distDLS), or draw such images with "
            f'python Datasets/make_purdue_shapes.py --out "{archive}" (in a script: '
            f"PurdueShapes5MultiObjectDataset.generate)"
        )
    if list(dl_studio.image_size) != [64, 64]:
        raise ValueError(f"image_size is {dl_studio.image_size}, but these images are [64, 64]")
    return archive


def open_archive(archive, num_images=None):
    """(the ImageCache of an archive of shapes, whether SegStudio drew it)."""
    data = archive.read_bytes()
    generated = GENERATED.encode() in data[:64]  # the file name in the header of the gzip
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images}; it must be 1 or more")
    cache = open_cache(archive, data, num_images, lambda: read_archive(archive, data))
    if num_images is not None and len(cache) < num_images:
        raise ValueError(f"num_images is {num_images}, but {archive} has {len(cache)}")
    return cache, generated


def read_archive(archive, data):
    """The items of an archive as records: their number, their type, and the records one by one."""
    items = unpack_archive(archive, data)

    def records():
        for index in range(len(items)):
            try:
                yield pack_item(items[index])
            except Exception as error:
                raise ValueError(f"{archive}, item {index}: {error}") from error

    return len(items), SHAPES, records()


def unpack_archive(archive, data):
    """The items of an archive as they are in it: a dict or a list; ValueError if it is damaged."""
    try:
        with io.BufferedReader(UnpackedArchive(data), 2**20) as file:
            # encoding: archives of Python 2 hold bytes as text
            items, label_map = ArchiveUnpickler(file, encoding="latin1").load()
            while file.read(2**20):  # the checksum is at the end
                pass
        if label_map != LABEL_MAP:
            raise ValueError(f"its label_map is not {LABEL_MAP}")
        if len(items) == 0:
            raise ValueError("it has no images")
        if isinstance(items, dict) and items.keys() != set(range(len(items))):
            raise ValueError("its images are not numbered 0, 1, 2, ...")
    except ValueError as error:
        raise ValueError(f"{archive} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{archive} is not a complete gzip of a pickle of [dataset, label_map] "
            f"({type(error).__name__}: {error}): download it again"
        ) from error
    return items


def pack_item(item):
    """An item [R, G, B, mask_array, bbox_map] as a record; ValueError if it is not valid."""
    if not isinstance(item, (list, tuple)) or len(item) != 5:
        raise ValueError("it is not a list [R, G, B, mask_array, bbox_map]")
    *channels, mask, box_map = item
    record = np.zeros((), SHAPES)
    for k, channel in enumerate(channels):
        record["image"][k] = read_bytes(channel, f"channel {'RGB'[k]}")
    if len(mask) != 5:
        raise ValueError(f"its mask has {len(mask)} planes instead of 5")
    values = tuple(LABEL_MAP.values())
    for k, value in enumerate(values):
        plane = record["mask"][k] = read_bytes(mask[k], f"mask plane {k}")
        if not np.isin(plane, (0, value)).all():
            raise ValueError(f"mask plane {k} has values other than 0 and {value}")
    for key, boxes in box_map.items():
        if key not in (*range(5), *values):
            raise ValueError(f"bbox_map has keys other than 0..4 and {values}")
        boxes = np.asarray(boxes)
        if boxes.size == 0:
            continue
        if boxes.ndim != 2 or len(boxes) > 5 or boxes.shape[1] != 4:
            raise ValueError(f"bbox_map[{key}] is not up to 5 boxes of 4 numbers")
        if not np.isin(boxes, range(64)).all():
            raise ValueError(f"bbox_map[{key}] has a corner that is not a pixel")
        k = key if key in range(5) else values.index(key)
        record["box"][: len(boxes), k] = boxes
    return record


def read_bytes(values, name):
    """64x64 whole numbers 0..255 as an array; they come as a list, a list of rows or an array."""
    try:
        if isinstance(values, (list, tuple)):
            rows = values if isinstance(values[0], (list, tuple)) else [values]
            # bytes() is fast, and it refuses all but whole numbers 0..255.
            return np.frombuffer(b"".join(map(bytes, rows)), np.uint8).reshape(64, 64)
        with np.errstate(invalid="ignore"):
            plane = np.asarray(values).astype(np.uint8)
        if not np.array_equal(plane, values):
            raise ValueError("numbers out of range")
        return plane.reshape(64, 64)
    except Exception as error:
        raise ValueError(f"{name} is not 64x64 whole numbers 0..255 ({error})") from error


class ArchiveItems(Mapping):
    """The images of a cache in the archive's own form: {index: [R, G, B, mask_array, bbox_map]}."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __iter__(self):
        return iter(range(len(self)))

    def __getitem__(self, index):
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise KeyError(index)
        red, green, blue = self.cache.images[index].reshape(3, -1).tolist()
        boxes = self.cache.boxes[index]  # (5, 5, 4)
        box_map = {k: boxes[boxes[:, k].any(axis=1), k].tolist() for k in range(5)}
        return ArchiveItem([red, green, blue, self.cache.masks[index].copy(), box_map])

    def __setitem__(self, index, value):
        raise TypeError(
            "the items of an archive are read from its cache, so this change would be lost: change "
            "copies, and assign them all (dataset.dataset = {0: list(item), ...})"
        )


class ArchiveItem(list):
    """A copy of an item: as a list, but its parts cannot be replaced."""

    __setitem__ = ArchiveItems.__setitem__


class AssignedItems:
    """In place of an ImageCache: items in the archive's form that a script assigned.

    An item is packed when it is read. So it may be changed at any time, as in DLStudio; and a
    subclass may assign items of another form, if it has a __getitem__ of its own.
    """

    def __init__(self, items):
        self.items = items
        self.images = PackedPart(items, "image")
        self.masks = PackedPart(items, "mask")
        self.boxes = PackedPart(items, "box")

    def __len__(self):
        return len(self.items)


class PackedPart:
    """One field of the records of assigned items."""

    def __init__(self, items, field):
        self.items, self.field = items, field

    def __getitem__(self, index):
        try:
            item = self.items[index]
        except KeyError:
            raise IndexError(index) from None  # it ends a loop over the dataset
        try:
            return pack_item(item)[self.field]
        except ValueError as error:
            raise ValueError(f"item {index} of the assigned dataset: {error}") from error


# ---- drawing shapes -----------------------------------------------------------------------------

GENERATED = "generated by SegStudio"


def load_shapes_archive(segmenter, part, number, sizes):
    """The first `number` images of one part of the shapes; its archive is drawn if it is missing.

    Small sets come from small archives, so that a first run starts at once.
    """
    dls = segmenter.dl_studio
    names = {
        f"PurdueShapes5MultiObject-{size}-{part}.gz": size
        for size in [size for size in sizes if size >= number] or [number]
    }
    make = segmenter.PurdueShapes5MultiObjectDataset
    with processes.one_after_another():  # the first one draws the images and makes the cache
        at_hand = [name for name in names if Path(dls.dataroot, name).expanduser().is_file()]
        archive = [*at_hand, *names][0]  # the smallest at hand, else a new small one
        make.find_or_generate(dls.dataroot, archive)
        # An archive of the wanted size may have fewer test images than its name says.
        exact = part == "train" or names[archive] > number
        return make(
            dl_studio=dls,
            segmenter=segmenter,
            train_or_test=part,
            dataset_file=archive,
            num_images=number if exact else None,
        )


def find_or_generate_archive(archive, seed):
    """The path of the archive; if it is missing, draw the number of images that its name says."""
    if archive.is_file():
        return archive
    counts = [int(part) for part in archive.stem.split("-") if part.isdigit()]
    if len(counts) != 1:
        raise ValueError(
            f"{archive} is not there, and its name does not say how many images to draw, as "
            f"PurdueShapes5MultiObject-10000-train.gz does"
        )
    print(
        f"{archive} is not there: drawing {counts[0]} images like Purdue's. This is a generated "
        f"set, not the original."
    )
    part = archive.stem.rpartition("-")[2]
    own_seed = {"test": 2 * seed + 1, "validation": 1_000_000 + seed}.get(part, 2 * seed)
    return generate_archive(archive, counts[0], own_seed)


def generate_archive(path, num_images, seed=0):
    """Draw an archive of `num_images` pictures; the same seed draws the same ones."""
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
        if int(value) != value or value < least:
            raise ValueError(f"{name} is {value}: it must be {least} or more")
    path = Path(path).expanduser()
    new_folders = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_unwritable_folder(path.parent)  # before the images are drawn
        return draw_archive(path, num_images, seed)
    except OSError as error:
        for folder in new_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if error.errno is None:  # it says what to do
            raise
        raise OSError(
            f"images cannot be drawn into {path.parent.absolute()} ({error.strerror}): give "
            f"another folder (--dataroot DIR), or make that one writable"
        ) from None


def draw_archive(path, num_images, seed):
    """Draw the images and write them to the archive `path`, complete or not at all."""

    def opcodes(value):  # of a pickle, without its first two bytes, the protocol, and its end
        return pickle.dumps(value, protocol=3)[2:-1]

    def write(part):
        with (
            part.open("wb") as file,
            # The header has a name, which marks the archive as generated (gzip -lN). It has no
            # time: the same seed gives the same bytes.
            gzip.GzipFile(GENERATED, "wb", 1, file, mtime=0) as packed,
        ):
            # A pickle of [{0: item, 1: item, ...}, LABEL_MAP], written item by item: a set of any
            # size needs constant memory.
            packed.write(pickle.PROTO + b"\3" + pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_DICT)
            for index in progress_bar(range(num_images), f"drawing {path.name}", unit="image"):
                image, mask, box_map = draw_shapes(seed, index)
                item = [*image.reshape(3, -1), mask, box_map]
                packed.write(opcodes(index) + opcodes(item) + pickle.SETITEM)
            packed.write(opcodes(LABEL_MAP) + pickle.APPENDS + pickle.STOP)

    return write_atomically(path, write)


def draw_shapes(seed, index):
    """An image (3, 64, 64), its mask (5, 64, 64) and its boxes {class: [[x1, y1, x2, y2], ...]}.

    Shapes are drawn one over the other, each completely inside the image. A shape that hides more
    than half of another one, or leaves less than 6 pixels of its width or height visible, is drawn
    again elsewhere. Mask and boxes are of the visible pixels.

    Five images share one set of 15 shapes: they have 1, 2, 3, 4 and 5 shapes, and each class occurs
    three times, small, medium and large. So sets of a few hundred images have nearly the same mean
    of mask**2, and their losses can be compared.
    """
    deal = np.random.default_rng([seed, 0, index // 5])
    ends = np.cumsum(deal.permutation(5) + 1)
    cards = np.split(deal.permutation(15), ends)[index % 5].tolist()
    rng = np.random.default_rng([seed, 1, index])
    owner = np.zeros((64, 64), np.uint8)  # the number of the shape that is visible, 0 for none
    areas = []
    while len(areas) < len(cards):
        size_class, shape = divmod(cards[len(areas)], 5)
        rows, columns = shape_pixels(shape, size_class, rng)
        sides = [np.ptp(rows) + 1, np.ptp(columns) + 1] if len(rows) else [0]
        if min(sides) < 6 or max(sides) > 32:
            continue
        if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) > 63:
            continue
        trial = owner.copy()
        trial[rows, columns] = len(areas) + 1
        visible = [trial == number + 1 for number in range(len(areas))]
        if any(
            2 * seen.sum() < area or min(seen.any(0).sum(), seen.any(1).sum()) < 6
            for seen, area in zip(visible, areas, strict=True)
        ):
            continue
        owner = trial
        areas.append(len(rows))

    colors = rng.integers(0, 256, (len(cards), 3))
    bright = rng.integers(3, size=len(cards))  # one bright channel: no colour is near black
    colors[range(len(cards)), bright] = rng.integers(128, 256, len(cards))
    palette = np.vstack([np.zeros(3, np.uint8), colors]).astype(np.uint8)
    image = palette[owner].transpose(2, 0, 1)  # (3, 64, 64)
    mask = np.zeros((5, 64, 64), np.uint8)
    box_map = {shape: [] for shape in range(5)}
    for number, card in enumerate(cards, 1):
        shape, seen = card % 5, owner == number
        mask[shape][seen] = 50 * (shape + 1)
        x1, x2 = np.flatnonzero(seen.any(axis=0))[[0, -1]].tolist()
        y1, y2 = np.flatnonzero(seen.any(axis=1))[[0, -1]].tolist()
        box_map[shape].append([x1, y1, x2, y2])
    return image, mask, box_map


def shape_pixels(shape, size_class, rng):
    """The rows and columns of the pixels of a shape of random size, place and angle."""
    radius = 4 + 12 * ((size_class + rng.random()) / 3) ** 2.3  # gives a mean of mask**2 of 467
    turn = rng.uniform(-np.pi, np.pi)
    row, column = rng.uniform(radius / 2, 63 - radius / 2, 2)
    if shape == 2:
        return skimage.draw.disk((row, column), radius)
    if shape == 3:
        short = radius * rng.uniform(0.45, 0.7)
        return skimage.draw.ellipse(row, column, radius, short, rotation=turn)
    reach = 1
    if shape == 0:
        diagonal = rng.uniform(0.4, 0.9)  # half the angle between the diagonals: how slim it is
        angles = np.array([diagonal, np.pi - diagonal, np.pi + diagonal, -diagonal])
    elif shape == 1:
        angles = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.3, 0.3, 3)
    else:  # every second corner of a star is near its centre
        angles = np.arange(10) * np.pi / 5
        reach = np.tile([1, 0.45], 5)
    rows = row + radius * reach * np.sin(angles + turn)
    columns = column + radius * reach * np.cos(angles + turn)
    return skimage.draw.polygon(rows, columns)


# ---- folders that Datasets/prepare_coco.py wrote ------------------------------------------------

PREPARED = "SegStudio COCO, one object per image, 1"


def read_manifest(folder, split, image_size):
    """The checked manifest.json of a prepared folder: a list of its images and their classes."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}; make the folder with Datasets/prepare_coco.py --split {split}."
        )
    try:
        manifest = json.loads(file.read_bytes())
        options = manifest["options"]
        side, classes, samples = options["image_size"], options["classes"], manifest["samples"]
        if manifest["format"] != PREPARED or not samples or not classes:
            raise ValueError
        types = type(side), type(classes), type(manifest.get("description", ""))
        if types != (int, list, str):
            raise ValueError
        for sample in samples:
            classes.index(sample["category"])  # ValueError if it is not in the list
            for kind in ("image", "mask"):
                Path(sample[kind]), sample[f"{kind}_sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} is not a manifest of prepared COCO images; prepare again."
        ) from None
    if split not in ("train", "test"):
        raise ValueError(f"train_or_test is {split!r}, not 'train' or 'test'.")
    if options.get("split") != split:
        raise ValueError(
            f"{folder} holds the {options.get('split')} images, not {split}; give the folder made "
            f"with that --split."
        )
    if list(image_size) != [side, side]:
        raise ValueError(
            f"{folder} holds images of [{side}, {side}], but image_size is {list(image_size)}; "
            f"prepare with that --image-size."
        )
    return manifest


def check_mask_value(value):
    if value not in range(1, 256):
        raise ValueError(f"mask_value is {value!r}, not a whole number from 1 to 255.")
    return value


def open_prepared_folder(folder, manifest, num_images):
    """The ImageCache of a prepared folder. The manifest holds a checksum of every picture."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images!r}; it must be 1 or more, or None.")
    options, samples = manifest["options"], manifest["samples"]
    side = options["image_size"]
    record_type = ImageCache.record_type(classes=1, height=side, width=side, boxes=1)

    def read_records():
        for sample, kind in itertools.product(samples, ("image", "mask")):
            if not (folder / sample[kind]).is_file():
                raise FileNotFoundError(f"{folder / sample[kind]} is missing; prepare again.")
        return len(samples), record_type, records()

    def records():
        for sample in samples:
            image = read_prepared_png(folder, sample, "image", side)  # (H, W, 3)
            mask = read_prepared_png(folder, sample, "mask", side) > 0  # (H, W)
            record = np.zeros((), record_type)
            record["image"] = image.transpose(2, 0, 1)
            record["mask"] = mask
            box = torchvision.ops.masks_to_boxes(torch.from_numpy(mask)[None])
            record["box"] = box.numpy()
            record["category"] = options["classes"].index(sample["category"])
            yield record

    content = (folder / "manifest.json").read_bytes()
    return open_cache(folder / options["split"], content, num_images, read_records)


def read_prepared_png(folder, sample, kind, side):
    """One picture of a prepared folder; ValueError if it is not the one that was written."""
    file = folder / sample[kind]
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sample[f"{kind}_sha256"]:
        raise ValueError(f"{file} is not the file that was prepared; prepare again.")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        mode = {"image": "RGB", "mask": "L"}[kind]
        if picture.size != (side, side) or picture.mode != mode:
            raise ValueError(f"{file} is not an 8-bit {kind} of {side}x{side}; prepare again.")
        return np.array(picture)


# ---- how an output is read ----------------------------------------------------------------------


def innermost(dataset):
    """The dataset inside any number of torch's Subsets."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def loader_at_hand(segmenter):
    """A loader of the training images or, if there are none, of the test images."""
    given = (
        segmenter.train_dataloader,
        segmenter.dataserver_train,
        segmenter.test_dataloader,
        segmenter.dataserver_test,
    )
    data = next((data for data in given if data is not None), None)
    return data if data is None or isinstance(data, DataLoader) else DataLoader(data)


def find_mask_values(loader, classes):
    """The value of a set pixel in each mask plane: the largest one in the first images.

    The dataset's own `mask_values` only count for planes that are empty there: a student's
    subclass may return other masks than its parent.
    """
    dlstudios = [50 * (k + 1) for k in range(classes)]
    if loader is None:
        return dlstudios
    declared = getattr(innermost(loader.dataset), "mask_values", None)
    found = None
    with random_numbers_kept():
        first = itertools.islice(plain_reader(loader), 50)
        for batch in progress_bar(first, "looking for the mask values", unit="batch"):
            check_batch(batch)
            largest = batch["mask_tensor"].amax(dim=(0, 2, 3))  # (C,)
            found = largest if found is None else torch.maximum(found, largest)
            if (found > 0).all():
                break
    if found is None:  # there are no images
        return list(declared or dlstudios)
    found = found.tolist()
    if declared is None or len(declared) != len(found):
        declared = [max(found) or 1] * len(found)
    return [value or other for value, other in zip(found, declared, strict=True)]


def find_class_names(loader, planes, class_labels):
    """The names of the classes: the dataset's or, if they do not fit the masks, the settings'.

    With one mask plane and items that have a category, the names are those of the categories.
    """
    if loader is None:
        return list(class_labels)
    declared = getattr(innermost(loader.dataset), "class_names", class_labels)
    for names in (declared, class_labels):
        if len(names) == planes:
            return list(names)
    if planes == 1 and has_categories(loader):
        return list(declared)
    return ["object"] if planes == 1 else [f"class {k + 1}" for k in range(planes)]


def has_categories(loader):
    """Whether the items have a category: the class of an image with one mask plane."""
    with random_numbers_kept():
        return "category" in next(iter(plain_reader(loader)), {})


def scored_classes(spec, loader):
    """The names of the classes to score; with one channel, the data has them."""
    if len(spec["mask_values"]) == 1 and has_categories(loader):
        return getattr(innermost(loader.dataset), "class_names", spec["class_names"])
    return spec["class_names"]


def plain_reader(loader):
    """A loader of the same batches, without workers and without shuffling."""
    if loader.batch_sampler is None:  # its dataset makes the batches
        return loader
    return DataLoader(loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn)


def check_batch(batch):
    """ValueError if a batch does not have the form that training and scoring read."""
    names = ("image", "mask_tensor")
    if not isinstance(batch, Mapping):
        found = f"is a {type(batch).__name__}"
    elif not all(name in batch for name in names):
        found = f"has the keys {', '.join(map(str, batch))}"
    elif not all(batch[name].ndim == 4 for name in names):
        shapes = (f"{name} {tuple(batch[name].shape)}" for name in names)
        found = f"has {' and '.join(shapes)}"
    else:
        return
    raise ValueError(
        f"a batch of the loader {found}: it must be a dict with image (N, 3, H, W) and mask_tensor "
        f"(N, C, H, W), so an item of the dataset has them without N"
    )


def expects_logits(criterion):
    """Whether a loss reads outputs as logits, so that its masks are 0 and 1."""
    return getattr(criterion, "logits", isinstance(criterion, nn.BCEWithLogitsLoss))


@contextlib.contextmanager
def random_numbers_kept():
    """Restore the random states of torch, numpy and random after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def read_state_dict(path, net):
    """The state dict in a file; ValueError if it is not one of this network."""
    if not path.exists():
        raise FileNotFoundError(f"no saved model at {path.absolute()}: train first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        saved = {name: tuple(value.shape) for name, value in state.items()}
    except OSError:
        raise
    except Exception as error:  # torch reads bytes of any other file as instructions
        reason = "it is damaged, or it is another kind of file"
        if any(word in str(error) for word in ("global", "class", "function")):
            reason = (
                "it holds Python objects, which could run code, and not only weights. Save the "
                "weights where it was made: torch.save(net.state_dict(), path)"
            )
        raise ValueError(f"{path.absolute()} is not a saved model: {reason}") from None
    different = [name for name in [*mine, *saved] if mine.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path.absolute()} holds the weights of another network ({len(saved)} tensors, this "
            f"one has {len(mine)}; {name} is {saved.get(name, 'missing')} there and "
            f"{mine.get(name, 'missing')} here): build the network with the depth, width and "
            f"channels it was trained with"
        )
    return state


def read_settings(run):
    """The content of settings.json in a run's folder.

    Errors: FileNotFoundError if it has none, ValueError for a damaged file.
    """
    path = run / "settings.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{run.absolute()} is not the folder of a run: it has no settings.json. Give the "
            f"folder that an example wrote, such as runs/semantic_segmentation"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def read_network_settings(run):
    """(class name, arguments) of the network of a run's folder."""
    settings = read_settings(run)
    try:
        return settings["network"]["class"], settings["network"]["arguments"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run / 'settings.json'} is damaged: {error!r}") from None


# ---- figures ------------------------------------------------------------------------------------

# Okabe and Ito's palette: eight colours that colour-blind readers can tell apart.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999",
)  # fmt: skip


def class_colors(number):
    """A colour "#rrggbb" for each class: the palette, and further hues from the ninth class on."""
    further = [
        colorsys.hsv_to_rgb((0.5 + 0.29 * k) % 1, (1, 0.5, 0.75)[k % 3], (0.6, 1, 0.85)[k % 3])
        for k in range(number - len(PALETTE))
    ]
    return [*PALETTE[:number], *map(matplotlib.colors.to_hex, further)]


def rgb(color):
    """A colour "#rrggbb" as a tensor of three bytes."""
    return torch.tensor(list(bytes.fromhex(color[1:])), dtype=torch.uint8)


def as_bytes(images):
    """Images (..., channels, H, W) as colours (..., 3, H, W) of 0..255, to look at.

    The package's images are 0..255. A float batch without any value above 2 would be black: it
    counts as 0..1. Values below 0 and none above 128 are normalized images: they are stretched.
    """
    if images.is_floating_point():
        low, high = images.min(), images.max()
        if low < 0 and high < 128:
            images = (images - low) / (high - low).clamp(min=1e-6) * 255
        elif high <= 2:
            images = images * 255
    images = images.clamp(0, 255).byte()
    if images.shape[-3] < 3:
        return images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1)
    return images[..., :3, :, :]


def draw_tensor(dls, tensor, title):
    """(name of a file, figure) of a tensor, for display_tensor_as_image."""
    if tensor.dim() == 2:
        tensor = tensor[None]
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(
            f"display_tensor_as_image shows tensors of shape (3, H, W), (1, H, W) or (H, W), "
            f"not {tuple(tensor.shape)}"
        )
    picture = tensor.detach().cpu().float()
    if (picture.min().item(), picture.max().item()) == (-1.0, 1.0):
        picture = picture / 2.0 + 0.5
    elif not tensor.is_floating_point() and tensor.dtype != torch.bool:
        picture = picture / 255
    if picture.shape[0] == 3:
        picture = picture.clamp(0, 1)
    height, width = picture.shape[1:]
    figure = dls.new_figure(figsize=(6, 6 * min(max(height / width, 0.3), 3) + 0.4), dpi=150)
    axes = figure.add_subplot()
    axes.imshow(picture.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
    axes.set_title(title)
    axes.set_axis_off()
    slug = re.sub(r"\W+", "-", title).strip("-")[:60]
    return f"display-{dls._displayed:03d}{'-' + slug if slug else ''}.png", figure


def kind_of_images(segmenter, images="test images"):
    """`images`, with the word "generated" or "synthetic" before it if SegStudio drew them."""
    loader = segmenter.test_dataloader
    loader = loader_at_hand(segmenter) if loader is None else loader
    dataset = None if loader is None else innermost(loader.dataset)
    if not getattr(dataset, "generated", False):
        return images
    return f"{'synthetic' if hasattr(dataset, 'manifest') else 'generated'} {images}"


def fits_dlstudios_windows(spec, batch):
    """Whether DLStudio's test picture can show this data: boxes, and mask values 50, 100, ..."""
    return "bbox_tensor" in batch and spec["mask_values"] == [50, 100, 150, 200, 250]


def describe_prediction(iou, pred):
    """The title of a predicted mask."""
    if np.isnan(iou):
        return "nothing there,\nnothing predicted"
    return f"IoU {iou:.2f}" if pred.any() else f"IoU {iou:.2f}\nnothing predicted"


def picture_grid(dls, rows, images):
    """A figure with `rows` rows of pictures, one column for each image (N, channels, H, W)."""
    count = len(images)
    aspect = min(max(images.shape[2] / images.shape[3], 0.6), 2.5)
    size = (max(1.75 * count + 0.6, 5), 1.75 * aspect * rows + 1.8)
    figure = dls.new_figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(rows, count, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure, grid


def add_class_legend(figure, class_names, shown, *masks):
    """The colours of the classes; of many classes only those in the masks `shown` (N, C, H, W)."""
    channels = shown.shape[1]
    names = class_names if channels == len(class_names) else ["object"] * channels
    patches = [
        Patch(color=color, label=name)
        for color, name, there in zip(
            class_colors(channels), names, shown.any(dim=0).flatten(1).any(dim=1), strict=True
        )
        if there or channels <= 8
    ]
    if any((planes.sum(dim=1) > 1).any() for planes in masks):
        patches.append(Patch(facecolor="white", edgecolor="black", label="several classes"))
    widths = [0.09 * len(patch.get_label()) + 0.45 for patch in patches]  # inches
    columns = len(patches)
    if sum(widths) > figure.get_figwidth():
        columns = max(1, int(figure.get_figwidth() / max(widths)))
    note = "IoU of an image: the mean over its true and predicted classes"
    figure.legend(
        handles=patches, loc="outside lower center", ncols=columns, fontsize=11,
        handlelength=1, columnspacing=1.2, title=note if channels > 1 else None,
    )  # fmt: skip


def draw_confusion(dls, scores, kind):
    """A figure of the confusion matrix of SegmentationScores, each row in percent."""
    rows = (scores.nothing, *scores.class_names)
    columns = (scores.nothing, *scores.predicted_names)
    pixels = scores.confusion[:, : len(columns)]  # (true, predicted)
    of_all = pixels.sum(dim=1) / pixels.sum()
    shares = (pixels / pixels.sum(dim=1, keepdim=True)).numpy()
    cell, digits, smallest = (0.8, 1, 0.001) if len(rows) <= 11 else (0.5, 0, 0.01)
    cell = 1.2 if len(columns) <= 3 else min(cell, 24 / len(rows))
    longest = max(map(len, rows))
    figure = dls.new_figure(
        figsize=(max(cell * len(columns) + 0.1 * longest + 1.5, 5.5), cell * len(rows) + 2),
        dpi=120, layout="constrained",
    )  # fmt: skip
    axes = figure.add_subplot()
    norm = matplotlib.colors.PowerNorm(0.5, 0, 1)  # a few percent are visible, too
    axes.imshow(np.nan_to_num(shares), cmap="Blues", norm=norm)
    for row, column in np.ndindex(shares.shape) if cell > 0.35 else ():
        share = shares[row, column]
        if np.isnan(share):
            text = "-"
        elif share == 0:
            text = "0"
        elif share < smallest:
            text = f"<{100 * smallest:g}"
        else:
            text = f"{100 * share:.{digits}f}"
        color = "#AAAAAA" if text in ("-", "0") else "white" if share > 0.4 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=11)
    labels = [f"{name} ({100 * share:.1f} %)" for name, share in zip(rows, of_all, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=11)
    upright = len(columns) * cell < 0.11 * sum(map(len, columns))
    axes.set_xticks(range(len(columns)), columns, fontsize=11, rotation=90 if upright else 0)
    axes.tick_params(length=0)
    axes.set_ylabel("true class (share of all pixels)", fontsize=11)
    axes.set_xlabel("predicted as, percent of the true class's pixels", fontsize=11)
    axes.set_title(f"Confusion matrix, {scores.images} {kind}", fontsize=13)
    return figure


# ---- the coverage probe -------------------------------------------------------------------------

# A saturated or dead activation hides a path. Without activations only the layers decide.
ACTIVATIONS = {
    "relu", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "elu", "gelu", "silu", "mish",
    "softplus", "threshold", "hardtanh", "hardsigmoid", "hardswish", "clamp", "clamp_min",
    "clamp_max", "sigmoid", "tanh", "_softmax", "_log_softmax", "exp", "log", "sqrt",
}  # fmt: skip
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "median", "std", "var", "std_mean", "var_mean",
    "logsumexp", "linalg_vector_norm", "adaptive_max_pool2d", "_adaptive_avg_pool2d",
}  # fmt: skip
POOLINGS = {"avg_pool2d", "max_pool2d_with_indices"}  # with a kernel of any size
NORMS = {"native_group_norm", "native_layer_norm", "native_batch_norm", "cudnn_batch_norm"}


class SummariesHeld(TorchDispatchMode):
    """Computes with the first image's summaries: every later pass uses the numbers of the first.

    A summary is a number per channel about the whole image: global pooling, the mean of a
    GroupNorm. Through it every pixel follows every other one a little, which does not tell
    the pixel what is at its own place. Each `with` block around a call of the network is a pass.

    without_activations: each activation returns its input.
    """

    def __init__(self, without_activations=False):
        super().__init__()
        self.without_activations = without_activations
        self.held = []  # of the first pass, in the order of the calls
        self.calls = 0

    def __enter__(self):
        self.calls = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if self.without_activations and name.removesuffix("_") in ACTIVATIONS:
            return args[0]
        if self.without_activations and name == "log_sigmoid_forward":
            return args[0], args[0]
        result = func(*args, **(kwargs or {}))
        if name in NORMS:
            return self.norm(name, args, result)
        if name in REDUCTIONS or name in POOLINGS:
            first = result[0] if isinstance(result, tuple) else result
            if is_summary(args[0], first, least=16 if name in POOLINGS else 2):
                return self.hold(result)
        return result

    def hold(self, result):
        """The result of the same call in the first pass; there, the result itself."""
        if self.calls == len(self.held):
            self.held.append(tree_map(torch.clone, result))
        self.calls += 1
        return tree_map(torch.clone, self.held[self.calls - 1])  # the network may change it

    def norm(self, name, args, result):
        """The result of a norm, with the mean and the deviation of the first pass."""
        x, shape = args[0], args[0].shape
        if name == "native_layer_norm":
            local = len(args[1]) == 1  # over the channels of a pixel
            weight, bias, grouped = *args[2:4], shape
        elif name == "native_group_norm":
            local = False
            weight, bias, grouped = *args[1:3], (shape[0], args[6], -1)
        else:
            local = not args[5]  # BatchNorm in eval mode
            weight, bias, grouped = *args[1:3], (1, shape[1], -1)
        if local:
            return result
        mean, inverse = self.hold(result[1:3])
        if name != "native_layer_norm":
            mean, inverse = mean.reshape(*grouped[:2], 1), inverse.reshape(*grouped[:2], 1)
            channels = (1, -1, *[1] * (len(shape) - 2))
            weight, bias = (v if v is None else v.reshape(channels) for v in (weight, bias))
        normal = ((x.reshape(grouped) - mean) * inverse).reshape(shape)
        normal = normal if weight is None else normal * weight
        normal = normal if bias is None else normal + bias
        return normal.to(x.dtype), *result[1:]


def is_summary(before, after, least):
    """Whether `after` has one dimension left of a `before` at least `least` times its size.

    A mean over the channels leaves two, height and width. Images come alone, so the batch is 1.
    """
    sides = [sum(side > 1 for side in tensor.shape) for tensor in (before, after)]
    return sides[1] <= 1 and sides[0] > sides[1] and before.numel() >= least * after.numel()


class Coverage(namedtuple("Coverage", "fraction map picture now")):
    """What the coverage probe found; see probe_output_coverage."""

    __slots__ = ()

    @property
    def summary(self) -> str:
        """What was found, in one to three sentences."""
        silent = (self.map & ~self.now).float().mean().item()
        text = f"The image {'can reach' if silent else 'reaches'} {percent(self.fraction)} of the "
        text += "output pixels."
        if silent:
            text += (
                f" {percent(silent)} do not depend on it with the present weights: look for "
                f"weights of 0, a dead or saturated activation, or a softmax over one channel."
            )
        if self.fraction < 1:
            text += (
                f" No training can make the other {percent(1 - self.fraction)} depend on the "
                f"image: no path leads to them, except through averages of the whole image."
            )
        return text


def percent(share):
    """A share as text, with enough digits that it does not read 0 % or 100 %."""
    texts = [f"{share:.{digits}%}" for digits in range(5)]
    return next((text for text in texts if share in (0, 1) or 0 < float(text[:-1]) < 100), texts[4])


def changing_pixels(net, images, without_activations=False):
    """The output pixels (H', W') that change between images, with the summaries of the first."""
    held = SummariesHeld(without_activations)
    outputs = []
    for image in images:  # the first pass records, the others compute with it
        with held:
            outputs.append(find_output(net(image)))
    first, *others = outputs
    changes = torch.stack([(other - first).abs() for other in others])  # (probes, C, H', W')
    # On a GPU a constant pixel may differ in its last digits.
    noise = 0 if first.device.type == "cpu" else 1e-6 * changes.nan_to_num(0, 0).max()
    return (~(changes <= noise)).any(dim=0).any(dim=0).cpu()  # what is NaN counts as a change


def find_output(result):
    """The output (C, H', W') as float32 in what a segmentation network returns for one image."""
    output = first_map(result)
    if output is None:
        raise ValueError(
            f"the network returns a {type(result).__name__} without a tensor of shape (N, C, H, W) "
            f"or (N, H, W): the probe needs one, alone or in a tuple or dict"
        )
    if not output.is_floating_point():
        raise ValueError(
            f"the network returns numbers of type {output.dtype}: the probe needs the output "
            f"before the threshold or argmax"
        )
    return output.float().reshape(-1, *output.shape[-2:])


def first_map(result):
    """The first tensor with height and width in nested tuples and dicts; "out", "logits" first."""
    if isinstance(result, torch.Tensor):
        return result if result.ndim in (3, 4) else None
    if isinstance(result, Mapping):
        result = [*(result[k] for k in ("out", "logits") if k in result), *result.values()]
    if isinstance(result, (list, tuple)):
        return next((found for found in map(first_map, result) if found is not None), None)
    return None


def refuse_unsteady_network(net, image):
    """ValueError if the weights or the output are not finite, or the output is random."""
    outputs = [find_output(net(image)) for _ in range(4)]
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        if not torch.isfinite(value).all():
            raise ValueError(
                f"the network's weights are not finite: {name} has NaN or infinite values, so "
                f"nothing can be said about its output; load or train it again"
            )
    size = outputs[0].abs().max()
    if not torch.isfinite(size):
        raise ValueError(
            "the output of the network is not finite for an image of 0 to 255, though its weights "
            "are: look for a division by 0 or the logarithm of 0"
        )
    noise = 0 if size.device.type == "cpu" else 1e-3 * size
    if any((other - outputs[0]).abs().max() > noise for other in outputs):
        raise ValueError(
            "the network gives two outputs for one image in eval mode, so its pixels cannot be "
            "compared: look for dropout that stays active (F.dropout without "
            "training=self.training) or random noise"
        )


@contextlib.contextmanager
def random_weights(net):
    """Inside, all weights are random numbers of the usual size; afterwards the old ones."""
    generator = torch.Generator().manual_seed(0)
    parameters = [p for p in net.parameters() if p.is_floating_point()]
    saved = [p.data for p in parameters]
    try:
        for p in parameters:
            if p.ndim < 2:  # a bias, or the factor of a norm: above 0
                values = torch.rand(p.shape, generator=generator) + 0.5
            else:
                values = torch.randn(p.shape, generator=generator) / max(p[0].numel(), 1) ** 0.5
            p.data = values.to(p)  # another tensor: the old one stays as it is
        yield
    finally:
        for p, values in zip(parameters, saved, strict=True):
            p.data = values


# ---- the examples --------------------------------------------------------------------------------


def example_flags(
    description: str,
    *,
    quick: tuple = (1200, 1),
    full: tuple = (10000, 6),
    quick_seconds: float | None = None,
    last_file: str | None = "metrics.json",
    extra: Mapping | None = None,
) -> argparse.Namespace:
    """Read the flags that all examples share from the command line.

    Args:
        description: the text of --help: the example's docstring.
        quick, full: (training images, epochs) with and without --quick. epochs is None if the
            example trains for a time.
        quick_seconds: --quick ends after this time, unless --epochs or --train-images is given.
        last_file: the file of a run that the example writes last: a run with it is finished.
            None: the example has fixed folders for its runs and finds out itself what is left to
            do, with --resume or without.
        extra: further flags of this example: {"--name": keyword arguments of add_argument}.

    Returns: a namespace. epochs and train_images are filled in; `settings` holds the flags that
    are keyword arguments of SegStudio; training_seconds(trainings_left, reserve) is the time
    that the next training may take, or None if there is no limit.
    """

    def positive(text):
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
        return int(text)

    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    epochs_help = f"default {full[1]}, with --quick {quick[1]}"
    if full[1] is None:
        epochs_help = "not for this example: it trains for a time"
    add("--quick", action="store_true", help="a short run that shows every step")
    add("--epochs", type=positive, metavar="N", help=epochs_help)
    images_help = f"train on the first N; default {full[0]}, with --quick {quick[0]}"
    add("--train-images", type=positive, metavar="N", help=images_help)
    add("--dataroot", metavar="DIR", help="folder of the data")
    add("--results-dir", default="runs", metavar="DIR", help="folder of all runs")
    add("--run-name", metavar="NAME", help="folder of this run in it; default: a new one")
    add("--resume", action="store_true", help="continue the run of --run-name")
    add("--seed", type=int, default=0, metavar="N", help="default 0")
    add("--deterministic", action="store_true", help="the same result also on a GPU; slower")
    add("--show", action="store_true", help="open a window for each figure")
    for name, options in (extra or {}).items():
        add(name, **options)
    flags = parser.parse_args()
    if full[1] is None and flags.epochs is not None:
        parser.error("--epochs: this example trains for a time and not for epochs")
    parser.has_fixed_folders = last_file is None
    if parser.has_fixed_folders and flags.run_name is not None:
        parser.error("each experiment has a fixed folder: use --results-dir, not --run-name")

    EXAMPLE[:] = [parser]
    if flags.resume and last_file is not None:
        check_run_to_continue(flags, last_file)
    elif flags.run_name is not None and processes.rank_of_torchrun() == 0:
        run = Path(flags.results_dir, flags.run_name).expanduser()
        if run.is_dir() and any(run.iterdir()) and RERUN not in os.environ:
            lock_run_dir(run, parser)
            print(f"{run} has an earlier run. It is now {move_aside(run)}.")
    limited = flags.quick and flags.epochs is None and flags.train_images is None
    flags.training_seconds = functools.partial(
        seconds_for_training, quick_seconds if limited else None
    )
    images, epochs = quick if flags.quick else full
    flags.train_images = flags.train_images or images
    flags.epochs = flags.epochs or epochs or 1
    names = ("epochs", "seed", "deterministic", "results_dir", "run_name", "show")
    flags.settings = {name: getattr(flags, name) for name in names}
    if flags.dataroot is not None:
        flags.settings["dataroot"] = flags.dataroot
    return flags


def check_run_to_continue(flags, last_file):
    """End the script if there is nothing to continue."""
    if flags.run_name is None:
        raise ValueError("--resume needs the --run-name of the run to continue")
    run = Path(flags.results_dir, flags.run_name).expanduser()
    if not run.is_dir():
        if processes.rank_of_torchrun() > 0:  # another machine: the main process has the folder
            return
        raise FileNotFoundError(
            f"there is no run {run} to resume: leave --resume out to start it, or correct "
            f"--run-name and --results-dir"
        )
    if (run / last_file).exists():
        print(f"{run} is finished: there is nothing to resume.")
        sys.exit(0)


def run_example(main: Callable) -> None:
    """Call main(); a user's mistake ends in one sentence, not in a traceback."""
    script = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file may have any characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        if os.environ.get("SEGSTUDIO_TRACEBACK"):
            raise
        sys.exit(f"{script}: error: {error}")
    except KeyboardInterrupt as stop:
        print(f"\n{script}: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)  # what a shell expects after Ctrl-C
