"""Prepares COCO images with one object each as small images and masks (see COCO.md).

    python Datasets/prepare_coco.py --synthetic --split train --out data/coco
    python Datasets/prepare_coco.py --annotations instances_train2017.json --images-dir train2017 \\
        --classes cake dog motorcycle --out data/coco
    python Datasets/prepare_coco.py --download --split test --out data/coco

The exit code is 0 when all that was selected was written, 1 when something was left out (each
with a sentence on the error output; the rest is written), 2 when nothing could be done.
"""

import argparse
import sys
import warnings
from pathlib import Path

from PIL import Image

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
OFFICIAL = {"train": "instances_train2017.json", "test": "instances_val2017.json"}
SYNTHETIC = {"train": 300, "test": 90}


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Selects COCO images with one object of a class and writes small images and "
        "masks to OUT/SPLIT. Exit code 1: written, but with something left out; 2: not written."
    )
    add = parser.add_argument
    add("--annotations", type=Path, metavar="FILE", help="COCO's instances_*.json")
    add("--images-dir", type=Path, metavar="DIR", help="the folder of its images")
    add("--download", action="store_true", help="fetch the selected images (and, without "
        "--annotations, COCO's annotation archive, 241 MB) into OUT/downloads")
    add("--synthetic", action="store_true", help="draw a synthetic set (not COCO) and use that")
    add("--synthetic-images", type=int, metavar="N", help="how many to draw (300 and 90)")
    add("--seed", type=int, default=0, help="of the synthetic set")
    add("--classes", nargs="+", default=["cake", "dog", "motorcycle"], metavar="NAME")
    add("--min-bbox", type=float, default=200, metavar="PIXELS", help="box width and height")
    add("--single-instance", choices=("category", "selected", "image"), default="category",
        help="one annotation of the category, of all the classes, or at all in the image")
    add("--image-size", type=int, default=64, metavar="N", help="64 or 256 in the homework")
    add("--limit", type=int, metavar="N", help="at most so many of each class")
    add("--split", choices=("train", "test"), default="train")
    add("--out", type=Path, default=Path("data/coco"), metavar="DIR")
    add("--workers", type=int, default=4, help="threads")
    options = parser.parse_args(argv)
    given = [bool(options.images_dir), options.download, options.synthetic]
    if sum(given) != 1:
        parser.error("give one of --images-dir DIR, --download and --synthetic")
    if options.images_dir and not options.annotations:
        parser.error("--images-dir needs --annotations FILE")
    if options.images_dir and not options.images_dir.is_dir():
        parser.error(f"there is no folder {options.images_dir}")
    if options.synthetic and options.annotations:
        parser.error("--synthetic draws its own annotations; leave --annotations out")
    if options.workers < 1 or (options.synthetic_images or 1) < 1:
        parser.error("--workers and --synthetic-images must be 1 or more")
    return options


def prepare(options):
    downloader = Segmentation.CocoDownloader(workers=options.workers)
    file, images = options.annotations, options.images_dir
    if options.synthetic:
        print("This set is SYNTHETIC: drawn in COCO's format, it is not COCO.", flush=True)
        number = options.synthetic_images or SYNTHETIC[options.split]
        folder = options.out / "synthetic"
        drawer = Segmentation.CocoSyntheticSet(seed=options.seed)
        file, images = drawer.write(folder, options.split, number), folder / options.split
    elif file is None:
        files = downloader.fetch_annotations(options.out / "downloads" / "annotations")
        file = {f.name: f for f in files}[OFFICIAL[options.split]]
    annotations = Segmentation.CocoAnnotations(file)
    selection = Segmentation.CocoSelection(
        annotations, options.classes, min_bbox=options.min_bbox,
        single_instance=options.single_instance, limit=options.limit,
    )
    preparer = Segmentation.CocoPreparer(
        selection, image_size=options.image_size, split=options.split
    )
    if options.download:  # what is about to be fetched, before a long wait
        print(selection.table(), flush=True)
        records = {a["image_id"]: annotations.images[a["image_id"]] for a, _ in selection.samples}
        images = downloader.fetch_images(
            records.values(), options.out / "downloads" / "images"
        )
    try:
        manifest = preparer.write(images, options.out, workers=options.workers)
    finally:
        print(selection.table(preparer.kept), flush=True)
        left_out = annotations.problems + selection.problems + preparer.problems
        for sentence in left_out + preparer.dropped:
            print(sentence, file=sys.stderr)
    print(f"{sum(preparer.kept.values())} images and masks: {manifest.parent}")
    if left_out:
        print(f"{len(left_out)} records or files were left out (listed above).", file=sys.stderr)
    return 1 if left_out else 0


def main(argv=None):
    options = parse(argv)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size check says more
    try:
        return prepare(options)
    except (ValueError, OSError) as error:
        print(f"prepare_coco: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_coco: interrupted; run again, what is whole is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
