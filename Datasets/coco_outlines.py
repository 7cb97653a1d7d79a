"""Checks the outline of an object before pycocotools sees it.

COCO stores the outline of an object ("segmentation") in one of three forms:

    polygons            [[x1, y1, x2, y2, ...], ...]: the corners of each visible part
    uncompressed RLE    {"size": [H, W], "counts": [run, run, ...]}: run-length encoding, that is
                        the lengths of the runs of 0 and 1 down the columns, zeros first
    compressed RLE      {"size": [H, W], "counts": "text"}: the same numbers packed into text

pycocotools decodes them in C and does not check the numbers: a wrong one makes it read and write
outside its memory. Every outline therefore passes `outline_fault` first.
"""

import numpy as np

MAX_POLYGON_LENGTH = 1_000_000  # pixels along a polygon; the memory of pycocotools grows with it
ROUNDING = 1.0  # pixels that an outline may lie outside its image, because annotators round


def outline_fault(segmentation, width, height):
    """The reason why pycocotools must not decode this segmentation, or None."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            fault = polygon_fault(polygon, width, height)
            if fault:
                return fault
        return None
    if isinstance(segmentation, dict):
        return rle_fault(segmentation, width, height)
    return "its segmentation is neither polygons nor RLE"


def polygon_fault(polygon, width, height):
    """What is wrong with one polygon [x1, y1, x2, y2, ...], or None."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return "a polygon of its segmentation has fewer than three points (x, y)"
    # NaN compares false with everything, so it fails here too.
    if not all(type(value) in (int, float) and abs(value) < 1e9 for value in polygon):
        return "a polygon of its segmentation has a coordinate that is not finite"
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    too_low = -points.min()
    too_high = (points.max(axis=0) - (width, height)).max()
    if max(too_low, too_high) > ROUNDING:
        return f"a polygon of its segmentation reaches outside the {width}x{height} image"
    steps = np.abs(np.diff(points, axis=0)).max(axis=1)
    if steps.sum() > MAX_POLYGON_LENGTH:
        return f"a polygon of its segmentation is longer than {MAX_POLYGON_LENGTH} pixels"
    return None


def rle_fault(rle, width, height):
    """What is wrong with a run-length encoding, compressed or not, or None."""
    if rle.get("size") != [height, width]:
        size = ascii(rle.get("size"))[:60]
        return f"its RLE is of the size {size}, its image of {[height, width]}"
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = unpack_rle(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return "its RLE has counts that cannot be read"
    if sum(counts) != width * height:
        return f"its RLE has counts that do not add up to {width}x{height} pixels"
    return None


def unpack_rle(text):
    """The run lengths of a compressed RLE as a list; None if the text is not one.

    Each run length is written in groups of five bits, lowest group first, one character per
    group: chr(48 + group). Bit 32 says that another group follows. Bit 16 of the last group is
    the sign. From the fourth run on, the number is the difference to the run two places earlier.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)  # the last group of each number
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6:  # six groups are 30 bits, enough for the pixels of any image
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    negative = codes[ends] & 16
    counts -= np.where(negative, 1 << (5 * lengths), 0)
    counts[1::2] = np.cumsum(counts[1::2])  # undo the differences
    counts[2::2] = np.cumsum(counts[2::2])
    return counts.tolist()
