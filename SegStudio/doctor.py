"""Says what this computer can do, which data is there, and how long each example takes here.

    python -m SegStudio doctor                 # half a minute: it measures training iterations
    python -m SegStudio doctor --data DIR      # is this data whole?

--data DIR examines the archives of shapes in a folder (or one archive), a folder that
Datasets/prepare_coco.py wrote, or the original files of COCO. It prints format, counts
and statistics, beside those of the homework and of the images that SegStudio draws. The exit code
is 0 if everything is whole, 1 if something is not, 2 if there is no such data.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections import Counter, namedtuple
from pathlib import Path

import matplotlib
import numpy as np
import torch

from SegStudio import SegStudio, backstage, recording
from SegStudio.check_network import measure_iteration

Segmentation = SegStudio.SemanticSegmentation


def add_command(commands):
    parser = commands.add_parser(
        "doctor",
        help="this computer, the data, and how long each example takes here",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", help="examine this data instead")
    add("--dataroot", default="data", metavar="DIR", help="the folder of the data; default data")
    add("--no-times", action="store_true", help="do not measure iterations: a few seconds")
    parser.set_defaults(run=run)


def run(options):
    """Print the report of the command line; returns the exit code."""
    if options.data is not None:
        return examine_data(Path(options.data).expanduser())
    print_section("This computer", describe_computer())
    print_section("Data", describe_dataroot(Path(options.dataroot).expanduser()))
    if not options.no_times:
        print_section("How long the examples take here", describe_times())
    return 0


def print_section(title, lines):
    """Print a title and its lines; a pair is a line of two columns."""
    print(f"{title}\n{'-' * len(title)}")
    for line in lines:
        print(line if isinstance(line, str) else f"{line[0]:22}{line[1]}", flush=True)
    print()


# ---- this computer ------------------------------------------------------------------------------


def describe_computer():
    """[(what, how it is here), ...]."""
    device = SegStudio(use_gpu=True).device
    bf16 = recording.use_bf16("auto", device)
    total = memory_in_bytes()
    packages = ("torch", "torchvision", "numpy", "scikit-image", "pycocotools", "matplotlib")
    versions = ", ".join(f"{name} {version_of(name)}" for name in packages)
    free = shutil.disk_usage(Path.cwd()).free
    workers = torch.multiprocessing.get_start_method()
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    yield "SegStudio", f"{backstage.__version__} in {Path(__file__).parent}"
    yield "versions", versions
    yield "processor", f"{processor_name()}, {os.cpu_count()} cores; torch uses {threads()}"
    yield "memory", f"{total / 2**30:.0f} GiB" if total else "unknown"
    yield "device", f"use_gpu=True trains on {recording.device_name(device)}"
    yield (
        "bf16",
        f'{"yes" if bf16 else "no"}: precision="auto" trains in {"bf16" if bf16 else "fp32"}',
    )
    yield "display", describe_display()
    yield (
        "loader workers",
        (
            f"start by {workers}: "
            + (
                'a script needs if __name__ == "__main__": for num_workers above 0'
                if workers != "fork"
                else "num_workers above 0 works in any script"
            )
        ),
    )
    yield "free disk space", f"{free / 2**30:.0f} GiB here; 10,000 shapes and their cache need 0.4"
    yield "this folder", "can be written" if os.access(".", os.W_OK) else "CANNOT be written"


def version_of(package):
    if package == "torch":
        return torch.__version__  # with the kind of its build, such as +cpu
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def threads():
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}"


def processor_name():
    with contextlib.suppress(OSError):  # Linux
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def memory_in_bytes():
    """The memory of this computer; None if the system does not tell."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def describe_display():
    headless = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if headless:
        return "none: figures are saved, --show opens no window"
    backend = matplotlib.get_backend()
    return f"yes: --show opens windows (matplotlib backend {backend})"


# ---- the data at hand ---------------------------------------------------------------------------


def describe_dataroot(root):
    """[(file or folder, what it is), ...] of the data below a folder, to two levels."""
    folders = [root, *(p for p in sorted(root.glob("*")) if p.is_dir())] if root.is_dir() else []
    found = False
    for archive in (path for folder in folders for path in sorted(folder.glob("*.gz"))):
        found = True
        with archive.open("rb") as file:
            drawn = backstage.GENERATED.encode() in file.read(64)
        cached = any(archive.parent.glob(f"{archive.name}.v3-*.cache.npy"))
        yield (
            f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, "
            f"{'drawn by SegStudio' if drawn else 'not drawn by SegStudio'}, "
            f"{'with' if cached else 'without'} a cache"
        )
    for folder in folders:
        if any((folder / split / "manifest.json").is_file() for split in ("train", "test")):
            found = True
            yield f"{folder}: prepared COCO images"
    if found:
        yield "To examine one of them: python -m SegStudio doctor --data DIR"
    else:
        yield f"No data below {root}: the examples draw what they need there."


# ---- how long the examples take -----------------------------------------------------------------

# A kind of training iteration: the network, and the images in a batch.
Work = namedtuple("Work", "title net batch_size")
# An example: seconds of --quick; without it, seconds, or {kind of iteration: number}. Sizes of the
# COCO examples are those of the synthetic set, 480 images.
Example = namedtuple("Example", "name quick full")

WORK = {
    "strided": Work("mUnet, depth 16, batch 4 (the homework's)", lambda s: s.mUnet(), 4),
    "dense": Work("the same, dense", lambda s: s.mUnet(upsampling="dense"), 4),
    "plain": Work("the same, without residual connections",
                  lambda s: s.mUnet(skip_connections=False), 4),
    "small": Work("mUnet, depth 4, width 16, batch 16 (of --quick)",
                  lambda s: s.mUnet(depth=4, width=16, upsampling="dense"), 16),
    "coco4": Work("mUnet, depth 4, 1 channel, batch 4",
                  lambda s: s.mUnet(depth=4, out_channels=1), 4),
    "unet": Work("UNet, batch 16 (best_segmentation.py)", lambda s: s.UNet(), 16),
}  # fmt: skip
HOMEWORK = 6 * 2500  # iterations: 6 epochs of 10,000 images in batches of 4
COCO = 6 * 120  # the synthetic set: 480 images
EXAMPLES = (
    Example("semantic_segmentation.py", 120, {"strided": HOMEWORK}),
    Example("semantic_segmentation_dice.py", 100, {"strided": HOMEWORK}),
    Example("semantic_segmentation_combined.py", 100, {"strided": HOMEWORK}),
    Example("semantic_segmentation_dense.py", 150, {"strided": HOMEWORK, "dense": HOMEWORK}),
    Example("skip_connections_ablation.py", 155, {"strided": 2 * HOMEWORK, "plain": 2 * HOMEWORK}),
    Example("best_segmentation.py", 90, 600),
    Example("classroom_demo.py", 60, 150),
    Example("pitfalls.py", 25, 40),
    Example("reproduce_homework.py", 8 * 60, {"strided": 5 * HOMEWORK + 3 * COCO}),
    Example("coco_segmentation.py", 145, {"strided": COCO}),
    Example("coco_exploding_mse.py", 115, {"coco4": 10 * 3 * 40}),
    Example("best_coco_segmentation.py", 165, 4 * 300),
    Example("compare_losses.py, explore.py, homework_page.py, predict.py", None, 5),
)


def describe_times():
    """Measured iterations, then a row for each example."""
    yield f"A training iteration in fp32 on {recording.device_name(torch.device('cpu'))}:"
    seconds = {}
    for key, work in WORK.items():
        torch.manual_seed(0)
        seconds[key], _ = measure_iteration(work.net(Segmentation), work.batch_size, (64, 64), 2)
        yield f"    {work.title:48}{1000 * seconds[key]:6.0f} ms"
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        yield "The examples train on the GPU, where an iteration is faster."
    yield ""
    yield f"{'example':50}{'--quick':>10}{'without':>14}"
    for example in EXAMPLES:
        quick = "" if example.quick is None else f"{example.quick} s"
        yield f"{example.name:50}{quick:>10}{time_in_words(full_seconds(example, seconds)):>14}"
    yield ""
    yield "--quick: the time limit of the example, the same on any computer; slow ones train less."
    yield "without: the time limit, or the number of iterations times the measured time. Drawing"
    yield "data, scores and figures take additional time. COCO: the synthetic set. If other"
    yield "programs run during the measurement, the times are too long."


def full_seconds(example, seconds):
    """The seconds of an example without --quick."""
    if not isinstance(example.full, dict):
        return example.full
    return sum(number * seconds[key] for key, number in example.full.items())


def time_in_words(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


# ---- --data -------------------------------------------------------------------------------------


def examine_data(path):
    """Print what the data at a path is and whether it is whole; returns the exit code."""
    try:
        examinations = list(find_data(path))
        if not examinations:
            raise FileNotFoundError(
                f"{path} holds no archive (*.gz), no prepared COCO images (train/manifest.json) "
                f"and no COCO annotations (annotations/instances_*.json)"
            )
    except OSError as error:
        print(f"python -m SegStudio doctor: {error}", file=sys.stderr)
        return 2
    code = 0
    for title, examine in examinations:
        problems = []
        print_section(title, examine(problems))
        for problem in problems[:20]:
            print(f"PROBLEM: {problem}")
        if len(problems) > 20:
            print(f"PROBLEM: and {len(problems) - 20} more")
        print(f"{title} is {'NOT whole' if problems else 'whole'}.\n")
        code = max(code, int(bool(problems)))
    return code


def find_data(path):
    """(title, function that examines it and adds to a list of problems) of each piece of data."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.absolute()}")
    if path.is_file():
        yield str(path), lambda problems: examine_archive(path, problems)
        return
    for archive in sorted(path.glob("*.gz")):
        yield str(archive), lambda problems, file=archive: examine_archive(file, problems)
    for folder in (path, path / "train", path / "test"):
        if (folder / "manifest.json").is_file():
            yield str(folder), lambda problems, part=folder: examine_prepared(part, problems)
    annotations = path / "annotations" if (path / "annotations").is_dir() else path
    for file in sorted(annotations.glob("instances_*.json")):
        yield str(file), lambda problems, json_file=file: examine_coco(json_file, path, problems)


# ---- an archive of shapes -----------------------------------------------------------------------

# What the homework's archives have; None: not known.
HOMEWORK_SHAPES = {
    "mean of mask squared": "460 to 475",
    "shapes in an image": "1 to 5",
    "sides of a box": "about 6 to 32",
    "colours of a shape": "1",
    "background": "black",
}


def examine_archive(path, problems):
    """The lines about an archive of shapes."""
    data = path.read_bytes()
    drawn = backstage.GENERATED.encode() in data[:64]
    yield "size", f"{len(data) / 1e6:.1f} MB, {'drawn by SegStudio' if drawn else 'not drawn here'}"
    try:
        items = backstage.unpack_archive(path, data)
    except ValueError as error:
        problems.append(str(error))
        return
    yield "format", f"a {type(items).__name__} of items; {describe_item(items[0])}"
    counts = [int(part) for part in path.stem.split("-") if part.isdigit()]
    expected = counts[0] if len(counts) == 1 else None
    yield "images", f"{len(items):,}" + (f"; the name says {expected:,}" if expected else "")
    if expected and expected != len(items):
        problems.append(f"it has {len(items)} images, and its name says {expected}")

    def sound_items():
        for number in backstage.progress_bar(range(len(items)), "examining", unit="image"):
            try:
                yield number, backstage.pack_item(items[number])
            except Exception as error:  # a damaged item can fail in any way
                problems.append(f"item {number}: {error}")

    statistics = statistics_of_shapes(sound_items(), problems)
    own = statistics_of_shapes(drawn_items(300), [])
    yield ""
    yield f"{'':24}{'here':>22}{'the homework':>18}{'SegStudio draws':>22}"
    for name, value in statistics.items():
        homework = HOMEWORK_SHAPES.get(name, "-")
        yield f"{name:24}{value:>22}{homework:>18}{own[name]:>22}"
    yield ""


def describe_item(item):
    """How the archive keeps an item, in a few words."""
    try:
        red, _, _, mask, box_map = item
        keys = ", ".join(map(str, sorted(box_map))) or "nothing"
        channel, plane = ("arrays" if hasattr(part, "dtype") else "lists" for part in (red, mask))
        return f"R, G and B as {channel}, masks as {plane}, boxes keyed by {keys}"
    except Exception:  # examined with all the others
        return "the first one is damaged"


def drawn_items(number):
    """(number, record) of images as SegStudio draws them."""
    for index in range(number):
        image, mask, box_map = backstage.draw_shapes(0, index)
        yield index, backstage.pack_item([*image.reshape(3, -1), mask, box_map])


def statistics_of_shapes(items, problems):
    """{name: value as text} over (number, record); adds a problem for each contradiction."""
    squares, shapes, sides, colors = [], Counter(), [], Counter()
    classes, dark, loose, holes = Counter(), 0, 0, 0
    number_of_images = 0
    for number, record in items:
        number_of_images += 1
        mask, image = record["mask"], record["image"]
        squares.append((mask.astype(float) ** 2).mean())
        boxes = [(k, box) for k in range(5) for box in record["box"][:, k] if box.any()]
        shapes[len(boxes)] += 1
        for k in range(5):
            plane = mask[k] > 0
            classes[k] += bool(plane.any())
            of_class = [box for shape, box in boxes if shape == k]
            if plane.any() != bool(of_class):
                what = "a mask and no box" if plane.any() else "a box and no mask"
                problems.append(f"item {number}: class {list(backstage.LABEL_MAP)[k]} has {what}")
            rest = plane.copy()
            for x1, y1, x2, y2 in of_class:
                sides.append(max(x2 - x1, y2 - y1) + 1)
                inside = plane[y1 : y2 + 1, x1 : x2 + 1]
                rest[y1 : y2 + 1, x1 : x2 + 1] = False
                edges = inside.size and all(
                    edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])
                )
                loose += not edges
            if of_class and rest.any():
                problems.append(
                    f"item {number}: {rest.sum()} pixels of class "
                    f"{list(backstage.LABEL_MAP)[k]} lie outside of its boxes"
                )
            if len(of_class) == 1 and plane.any():
                colors[len(np.unique(image[:, plane], axis=1).T)] += 1
                holes += holes_in(plane)
        dark += not image[:, ~mask.any(axis=0)].any()
    if not number_of_images:
        return {}
    sides = np.array(sides or [0])
    return {
        "mean of mask squared": f"{np.mean(squares):.1f}",
        "shapes in an image": f"{min(shapes)} to {max(shapes)}",
        "sides of a box": f"{sides.min()} to {sides.max()}",
        "colours of a shape": ", ".join(map(str, sorted(colors)[:4])) or "-",
        "background": "black" if dark == number_of_images else f"black in {dark:,} images",
        "images of each class": " ".join(str(classes[k]) for k in range(5)),
        "boxes that are not tight": f"{loose}",
        "shapes with holes": f"{holes}",
    }


def holes_in(plane):
    """Whether unset pixels are enclosed by set ones."""
    from scipy import ndimage  # scikit-image brings it

    return bool((ndimage.binary_fill_holes(plane) != plane).any())


# ---- COCO ---------------------------------------------------------------------------------------

# The homework report's counts of images with one object of at least 200x200 pixels.
REPORT_COUNTS = {
    "train": {"cake": 891, "dog": 1201, "motorcycle": 1193},
    "test": {"cake": 30, "dog": 65, "motorcycle": 57},
}
COCO_2017 = {"instances_train2017": (118_287, 860_001), "instances_val2017": (5_000, 36_781)}


def examine_prepared(folder, problems):
    """The lines about a folder with manifest.json, images/ and masks/."""
    try:
        side = json.loads((folder / "manifest.json").read_bytes())["options"]["image_size"]
        split = json.loads((folder / "manifest.json").read_bytes())["options"]["split"]
        manifest = backstage.read_manifest(folder, split, [side, side])
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        problems.append(str(error) or f"{folder / 'manifest.json'} is damaged")
        return
    samples = manifest["samples"]
    drawn = manifest.get("description", "").startswith("SYNTHETIC")
    source = "synthetic, drawn by SegStudio" if drawn else manifest.get("description") or "unknown"
    yield "source", source
    yield "format", f"{len(samples):,} images of {side}x{side} and their masks, the {split} split"
    counts = Counter(sample["category"] for sample in samples)
    report = REPORT_COUNTS.get(split, {})
    for name in manifest["options"]["classes"]:
        beside = f"; the homework's report: {report[name]:,}" if name in report else ""
        yield f"  {name}", f"{counts[name]:,}{beside}"
    shares = []
    for sample in backstage.progress_bar(samples, "examining", unit="image"):
        try:
            backstage.read_prepared_png(folder, sample, "image", side)
            mask = backstage.read_prepared_png(folder, sample, "mask", side)
            shares.append((mask > 0).mean())
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if shares:
        share = float(np.mean(shares))
        yield (
            "pixels of objects",
            (
                f"{share:.1%}, so with masks of 255 an output of 0 has an MAE of "
                f"{255 * share:.1f}; the homework: 32% and 81.7"
            ),
        )


def examine_coco(file, root, problems):
    """The lines about an annotation file of COCO and the folder of its images."""
    try:
        content = json.loads(file.read_bytes())
        images = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
        names = {category["id"]: category["name"] for category in content["categories"]}
        boxes = [a["bbox"] for a in annotations]
        by_image = {}
        for a in annotations:
            by_image.setdefault(a["image_id"], []).append(a)
        [(a["category_id"], a["iscrowd"], a["segmentation"]) for a in annotations]
    except (ValueError, KeyError, TypeError) as error:
        problems.append(
            f"it is not an annotation file of COCO ({type(error).__name__}: {error}): download it "
            f"again"
        )
        return
    full = COCO_2017.get(file.stem)
    beside = f"; all of COCO 2017: {full[0]:,} and {full[1]:,}" if full else ""
    yield "source", (content.get("info") or {}).get("description") or "unknown"
    yield "images, annotations", f"{len(images):,} and {len(annotations):,}{beside}"
    yield "categories", f"{len(names)}; crowds: {sum(bool(a['iscrowd']) for a in annotations):,}"
    if len(images) != len(content["images"]):
        problems.append(f"{len(content['images']) - len(images)} ids of images occur twice")
    lost = [a["id"] for a in annotations if a["image_id"] not in images]
    if lost:
        problems.append(
            f"{len(lost)} annotations name an image that is not listed, first {lost[0]}"
        )
    nameless = [a["id"] for a in annotations if a["category_id"] not in names]
    if nameless:
        problems.append(f"{len(nameless)} annotations have an unknown category")
    if any(len(box) != 4 for box in boxes):
        problems.append("some boxes do not have 4 numbers")
    split = "train" if "train" in file.stem else "test"
    yield "large single objects", "boxes of 200x200 or more; one object counted by three readings"
    for name, report in REPORT_COUNTS[split].items():
        readings = single_objects(by_image, names, name)
        yield f"  {name}", f"{readings}; the homework's report: {report:,}"
    stem = file.stem.removeprefix("instances_")
    folder = next((p for p in (root / stem, root / "images" / stem) if p.is_dir()), None)
    if folder is None:
        problems.append(f"there is no folder {root / stem} with the images")
        return
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    missing = [image["file_name"] for image in images.values() if image["file_name"] not in sizes]
    empty = [name for name, size in sizes.items() if size == 0]
    yield "image files", f"{len(sizes):,} in {folder}, {sum(sizes.values()) / 1e6:,.0f} MB"
    if missing:
        problems.append(f"{len(missing):,} of the listed images are not there, first {missing[0]}")
    if empty:
        problems.append(f"{len(empty):,} image files are empty, first {empty[0]}")


def single_objects(by_image, names, wanted):
    """The numbers of images for the readings of "a single object": category, selected, image."""
    selected = {k for k, name in names.items() if name in REPORT_COUNTS["train"]}
    (own,) = [{k} for k, name in names.items() if name == wanted] or [set()]
    counts = Counter()
    for annotations in by_image.values():
        for reading, ids in (("category", own), ("selected", selected), ("image", set(names))):
            counted = [a for a in annotations if a["category_id"] in ids]
            if len(counted) == 1 and counted[0]["category_id"] in own:
                (found,) = counted
                if not found["iscrowd"] and min(found["bbox"][2:]) >= 200:
                    counts[reading] += 1
    return ", ".join(f"{counts[r]:,} ({r})" for r in ("category", "selected", "image"))
