"""Finds and decodes the image files of COCO; a hostile file raises an error, it does not crash."""

from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def find_image(folder, file_name):
    """The path of an image in a folder.

    Links are followed as long as they stay inside the folder.

    Errors: ValueError if the file is not there or lies outside the folder.
    """
    folder = Path(folder).resolve()
    try:
        file = (folder / file_name).resolve()
        there = file.is_file()  # False for a device or a pipe: reading one would block
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        raise ValueError("its file is not there") from None
    if not file.is_relative_to(folder):
        raise ValueError("its file is a link that leads out of the folder of images")
    if not there:
        raise ValueError("its file is not there")
    return file


def read_image(file, record):
    """Decodes a file (a path or a binary stream) to an RGB image.

    The header's size is checked before any pixel is decoded. An EXIF orientation is not applied:
    COCO's outlines refer to the pixels as stored.

    Errors: ValueError if the file cannot be decoded or is not of the size in `record`.
    """
    expected = record["width"], record["height"]
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.size == expected:
                return to_rgb(image)
            size = image.size
    except PermissionError:
        raise ValueError("you have no right to read its file") from None
    except Exception as error:  # decoders fail on hostile bytes in many ways
        raise ValueError("its file cannot be decoded as an image") from error
    raise ValueError("its file is {}x{}, the annotation file says {}x{}".format(*size, *expected))


def to_rgb(image):
    """An image of any Pillow mode as RGB: gray, CMYK, palette, transparent or 16-bit."""
    if image.mode.startswith("I"):  # 16-bit gray: convert() would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB would warn
    return image.convert("RGB")
