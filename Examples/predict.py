"""Segment images of your own with a network that an example has trained.

Shows what a saved run is good for: its folder says which network it holds, so any image (a
file, or a folder of them; any size and mode) gets a mask, an overlay and the boxes of the objects.

    python Examples/predict.py photo.jpg holiday/ --model runs/best_coco_segmentation

In the run folder it prints, each image gets NAME-mask.png (0: background; k: class k),
NAME-overlay.png, and its boxes in predictions.json. Well under a second for an image.
"""

from pathlib import Path

import numpy as np
import skimage.measure
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from SegStudio import SegStudio
from SegStudio.SegStudio import PALETTE

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
SMALLEST = 0.0005  # of the picture: smaller spots are no objects


def find_images(names):
    for path in map(Path, names):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise FileNotFoundError(f"no image in the folder {path.absolute()}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"no image or folder at {path.absolute()}")


def read_image(file):
    """The image in RGB, upright as its EXIF orientation asks, with 16 bits brought to 8."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray(np.uint8(np.asarray(image) >> 8))
        return image.convert("RGB")


def find_boxes(masks, names):
    """Each connected part of each mask as class, box [min_x, min_y, max_x, max_y] and area."""
    boxes = []
    for mask, name in zip(masks.numpy(), names, strict=True):
        for part in skimage.measure.regionprops(skimage.measure.label(mask)):
            if part.area >= SMALLEST * mask.size:
                top, left, bottom, right = part.bbox
                box = [left, top, right - 1, bottom - 1]
                boxes.append({"class": name, "box": box, "area": int(part.area)})
    return boxes


def main():
    flags = SegStudio.example_flags(
        __doc__,
        extra={
            "images": {"nargs": "+", "metavar": "IMAGE", "help": "image files or folders"},
            "--model": {"required": True, "metavar": "RUN", "help": "folder of a finished run"},
        },
    )
    files = list(find_images(flags.images))
    dls = SegStudio(use_gpu=True, **flags.settings)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    net = segmenter.load_run(flags.model)
    names = segmenter.loaded_facts[0]
    names = names if len(segmenter.loaded_facts[1]) > 1 else ("object",)  # found, not named
    palette, predictions = bytes.fromhex("000000" + "".join(PALETTE).replace("#", "")), {}
    for number, file in enumerate(files, start=1):
        try:
            image = read_image(file)
        except Exception as error:  # PIL's decoders raise nearly anything on a bad file
            dls.log(f"{file} is left out: {error}")
            continue
        masks = segmenter.predict_image(net, image)
        stem = f"{number:03d}-{file.stem}"
        classes = (masks * torch.arange(1, len(masks) + 1)[:, None, None]).amax(dim=0)
        labels = Image.fromarray(classes.numpy().astype(np.uint8))
        labels.putpalette(palette)
        labels.save(dls.run_dir / f"{stem}-mask.png")
        overlay = segmenter.overlay(pil_to_tensor(image).float(), masks)
        to_pil_image(overlay).save(dls.run_dir / f"{stem}-overlay.png")
        predictions[str(file)] = find_boxes(masks, names)
        found = ", ".join(f"{b['class']} {b['box']}" for b in predictions[str(file)])
        dls.log(f"{file}: {found or 'nothing found'}")
    dls.write_json("predictions.json", predictions)
    if bad := len(files) - len(predictions):
        raise ValueError(f"{bad} of {len(files)} files were no images")
    dls.log(f"\nMasks, overlays and predictions.json: {dls.run_dir}")


if __name__ == "__main__":
    SegStudio.run_example(main)
