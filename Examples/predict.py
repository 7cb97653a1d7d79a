"""Segment images of your own with a network that an example has trained.

    python Examples/predict.py photo.jpg holiday/ --model runs/best_coco_segmentation

IMAGE is an image file, or a folder of image files. RUN is the folder of a finished run. Its files
tell which network it has and how to read the output. An image takes less than a second. It is
turned upright by its EXIF orientation. Of an animation the first picture is used; transparent
pixels become white.

For each image, numbered 001, 002, ... in the given order, the folder that is printed at the end
gets two files:
    001-photo-mask.png       as large as the image; each pixel holds 0 for background, or the
                             number of its class: 1 is the first class name, 2 the second
    001-photo-overlay.png    the image with masks and boxes in the classes' colours
(of a long name the first 40 characters)
and one file for all images:
    predictions.json         {image: [{"class", "box": [x1, y1, x2, y2], "area" in pixels}, ...]}
                             from the first to the last column and row of the object

Where classes overlap, a pixel gets the class with the highest confidence. A network
with one output channel has one class, which is called "object".
"""

import argparse
import contextlib
import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import skimage.measure
import skimage.morphology
import torch
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from SegStudio import SegStudio
from SegStudio.backstage import class_colors

IMAGE_FILES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# Pillow knows more formats. For one of them, EPS, it runs the file as a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
SMALLEST_OBJECT = 0.0005  # of the image; smaller spots are not counted as objects
LARGEST_OVERLAY = 1200  # pixels, the longer side
LISTED_OBJECTS = 6  # an image with more is summarised
NAME_LENGTH = 40  # characters of an image's name in the names of its files


def main():
    flags = read_flags()
    files = find_images(flags.images)
    dls = SegStudio(use_gpu=True, results_dir=flags.results_dir, run_name=flags.run_name)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    net = segmenter.load_run(flags.model)
    class_names = net.output_spec["class_names"]
    if len(net.output_spec["mask_values"]) == 1:
        class_names = ["object"]
    dotted = getattr(net, "arguments", {}).get("upsampling") == "strided"
    if dotted:
        dls.log("This network is strided: only one pixel in four can be predicted (see the README)")
    predictions = {}
    warned = False
    for number, file in enumerate(files, start=1):
        try:
            image = read_image(file)
        except Exception as error:  # PIL's decoders raise nearly anything on a bad file
            dls.log(f"{file} is left out, because it cannot be read as an image: {error}")
            continue
        if not warned:
            warned = warn_of_a_photo(segmenter, class_names, file, image)
        labels = predict_labels(segmenter, net, image)
        objects = find_objects(labels, class_names, image.size, dotted)
        name = f"{number:03d}-{file.stem[:NAME_LENGTH]}"
        save_mask(labels, image.size, class_names, dls.run_dir / f"{name}-mask.png")
        save_overlay(segmenter, image, labels, objects, class_names, f"{name}-overlay.png")
        predictions[str(file)] = objects
        dls.log(f"{file}: {describe(objects)}")
    dls.write_json("predictions.json", predictions)
    dls.log(f"\nMasks, overlays and predictions.json: {dls.run_dir}")
    if len(predictions) < len(files):
        raise ValueError(
            f"{len(files) - len(predictions)} of {len(files)} files could not be read as images; "
            f"the reasons are above"
        )


def read_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    parser.add_argument("--model", required=True, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--results-dir", default="runs", metavar="DIR", help="folder of all runs")
    parser.add_argument("--run-name", metavar="NAME", help="folder of this run in it")
    return parser.parse_args()


# ---- Reading images -----------------------------------------------------------------------------


def find_images(names):
    """The image files that were given, and those in the given folders; each file once."""
    files = {}
    for path in map(Path, names):
        if not path.exists():
            raise FileNotFoundError(f"no image or folder at {path.absolute()}")
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if is_image_name(p) and p.is_file())
            if not found:
                formats = " ".join(sorted(IMAGE_FILES))
                raise FileNotFoundError(f"no image ({formats}) in the folder {path.absolute()}")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def is_image_name(path):
    """Whether a name is that of an image. macOS keeps notes on photo.jpg in ._photo.jpg."""
    return path.suffix.lower() in IMAGE_FILES and not path.name.startswith(".")


def read_image(file):
    """The image as 8-bit RGB, turned upright by its EXIF orientation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged EXIF data and large images
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data: the image may be sound
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)


def to_rgb(image):
    """An image of any Pillow mode as RGB, the transparent pixels in white."""
    if image.mode == "F":  # numbers from 0 to 1
        image = Image.fromarray(np.uint8(255 * np.asarray(image).clip(0, 1)))
    if image.mode.startswith("I"):  # 16 bits; convert() would clip them at 255
        image = Image.fromarray(np.uint8(np.asarray(image).clip(0, 65535) >> 8))
    if "transparency" in image.info or image.mode.lower() in ("rgba", "la", "pa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def warn_of_a_photo(segmenter, class_names, file, image):
    """Warn about an image unlike all training images; returns whether a warning was given."""
    shapes = segmenter.PurdueShapes5MultiObjectDataset.class_names
    unknown = tuple(class_names) == shapes and image.size != (64, 64)
    if unknown:
        segmenter.dl_studio.log(
            f"{file} is not a 64x64 image of shapes, but this network was trained on nothing "
            f"else: its masks of a photo mean nothing"
        )
    return unknown


# ---- Predicting ---------------------------------------------------------------------------------


def predict_labels(segmenter, net, image):
    """The class of each pixel, at the network's image size: 0 is background, k is class k.

    Shape: returns (h, w) uint8.
    """
    pixels = functional.pil_to_tensor(image)  # (3, H, W)
    small = functional.resize(pixels, net.output_spec["image_size"], antialias=True)
    output = segmenter.infer(net, small[None].float())  # (1, C, h, w)
    pred = segmenter.binarize(net, output)[0].cpu()  # (C, h, w)
    values = torch.tensor(net.output_spec["mask_values"])[:, None, None]
    confidence = segmenter.to_mask_values(net, output)[0].cpu() / values  # near 1: the class
    confidence[~pred] = -torch.inf
    labels = confidence.argmax(dim=0) + 1
    labels[~pred.any(dim=0)] = 0
    return labels.to(torch.uint8)


def find_objects(labels, class_names, size, dotted=False):
    """The connected parts of each class: class, box and area, in pixels of the image.

    `size` is (width, height) of the image, as in PIL. `dotted` is for the masks of a strided
    network: their pixels touch no other ones, so pixels two places apart count as connected.
    """
    height, width = labels.shape
    across = size[0] / width  # image pixels for each pixel of the labels
    down = size[1] / height
    objects = []
    for number, name in enumerate(class_names, start=1):
        mask = labels.numpy() == number
        if dotted:
            grown = skimage.morphology.dilation(mask, np.ones((3, 3)))
            parts = skimage.measure.label(grown) * mask
        else:
            parts = skimage.measure.label(mask)
        for part in skimage.measure.regionprops(parts):
            if part.area < SMALLEST_OBJECT * labels.numel():
                continue
            top, left, bottom, right = part.bbox
            x1, x2 = math.floor(left * across), math.ceil(right * across) - 1
            y1, y2 = math.floor(top * down), math.ceil(bottom * down) - 1
            area = max(round(float(part.area) * across * down), 1)
            objects.append({"class": name, "box": [x1, y1, x2, y2], "area": area})
    return objects


def describe(objects):
    """The objects of an image in one line."""
    if not objects:
        return "nothing found"
    if len(objects) <= LISTED_OBJECTS:
        return ", ".join(f"{found['class']} {found['box']}" for found in objects)
    counts = Counter(found["class"] for found in objects)
    summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{len(objects)} objects: {summary} (boxes in predictions.json)"


# ---- Pictures -----------------------------------------------------------------------------------


def save_mask(labels, size, class_names, path):
    """The labels in the image's size, as an indexed PNG in the classes' colours."""
    mask = Image.fromarray(labels.numpy()).resize(size, Image.Resampling.NEAREST)
    colors = "000000" + "".join(class_colors(len(class_names))).replace("#", "")
    mask.putpalette(bytes.fromhex(colors).ljust(3 * 256, b"\0"))  # fewer colours: fewer bits
    SegStudio.write_atomically(path, lambda part: mask.save(part, format="PNG"))


def save_overlay(segmenter, image, labels, objects, class_names, name):
    """The image with masks and boxes, and a legend of the classes that were found."""
    picture = image.copy()
    picture.thumbnail((LARGEST_OVERLAY, LARGEST_OVERLAY))
    pixels = functional.pil_to_tensor(picture)  # (3, H, W)
    numbers = torch.arange(1, len(class_names) + 1)[:, None, None]
    masks = functional.resize(
        labels[None] == numbers, pixels.shape[1:], functional.InterpolationMode.NEAREST
    )
    overlay = segmenter.overlay(pixels.float(), masks, alpha=0.5)
    height = min(max(8 * picture.height / picture.width, 2), 12)
    figure = segmenter.dl_studio.new_figure(
        figsize=(8, height + 0.8), dpi=120, layout="constrained"
    )
    axes = figure.add_subplot()
    axes.imshow(overlay.permute(1, 2, 0).numpy(), extent=(0, image.width, image.height, 0))
    axes.set_axis_off()
    colors = dict(zip(class_names, class_colors(len(class_names)), strict=True))
    for found in objects:
        x1, y1, x2, y2 = found["box"]
        color = colors.get(found["class"], "white")
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1 + 1, y2 - y1 + 1, fill=False, color=color, linewidth=2)
        )
    counts = Counter(found["class"] for found in objects)
    patches = [
        Patch(color=colors.get(label, "white"), label=f"{label}: {count}")
        for label, count in counts.items()
    ]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=12)
    else:
        axes.set_title("nothing found")
    segmenter.dl_studio.save_figure(figure, name)


if __name__ == "__main__":
    SegStudio.run_example(main)
