"""Draws a synthetic set in COCO's format, for machines without COCO. It is not COCO.

Cakes, dogs and motorcycles in front of textures. Colour alone does not separate them from the
background: objects, background, clutter and distractors (persons, plants) share one palette, and
size, tilt, side and light vary. The annotations use everything that COCO's do: polygons, both kinds
of run-length encoding, crowds, hidden parts. Most images pass the homework's selection; some fail.
"""

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask
import skimage.draw
import skimage.filters
from PIL import Image

from SegStudio import SegStudio
from SegStudio.backstage import progress_bar

DESCRIPTION = "SYNTHETIC: drawn by SegStudio, it is not COCO"
CATEGORIES = {1: "person", 4: "motorcycle", 18: "dog", 61: "cake", 64: "potted plant"}
PERSON, MOTORCYCLE, DOG, CAKE, PLANT = CATEGORIES  # the ids that COCO gives them
CLASSES = (CAKE, DOG, MOTORCYCLE)

# The images that the selection has to reject: one of each kind for every 16 good images.
REJECTED = ("two of a kind", "two classes", "too small", "crowd")


class Ellipse(NamedTuple):
    """A part of a figure. y points down; `tone` is the number of its colour in the figure."""

    x: float
    y: float
    half_width: float
    half_height: float
    tone: int


class Box(NamedTuple):
    """Like Ellipse, with corners."""

    x: float
    y: float
    half_width: float
    half_height: float
    tone: int


class Bar(NamedTuple):
    """A thin line from (x, y) to (to_x, to_y)."""

    x: float
    y: float
    to_x: float
    to_y: float
    tone: int


CIRCLE = np.exp(2j * np.pi * np.arange(28) / 28)[:, None].view(np.float64)  # 28 corners (x, y)
SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)

PALETTE = np.array(
    [
        (214, 190, 160), (150, 105, 70), (90, 62, 45), (235, 228, 215), (60, 60, 66),
        (130, 135, 140), (178, 62, 54), (70, 95, 140), (98, 125, 80), (222, 170, 90),
    ]
) / 255  # fmt: skip

# The parts of each figure from back to front.
FIGURES = {
    CAKE: [
        Ellipse(0, 0.8, 1, 0.2, 0),  # plate
        Box(0, 0.5, 0.85, 0.3, 1),  # lower layer
        Ellipse(0, 0.2, 0.85, 0.13, 2),  # icing
        Box(0, -0.1, 0.55, 0.28, 1),  # upper layer
        *(Ellipse(x, 0.31, 0.13, 0.21, 2) for x in (-0.6, -0.1, 0.45)),  # icing that drips
        Ellipse(0, -0.38, 0.55, 0.1, 2),
        *(Ellipse(x, -0.29, 0.11, 0.17, 2) for x in (-0.3, 0.2)),
        *(Bar(x, -0.4, x, -0.78, 3) for x in (-0.3, 0, 0.3)),  # candles
        *(Ellipse(x, -0.87, 0.05, 0.11, 4) for x in (-0.3, 0, 0.3)),  # flames
    ],
    DOG: [
        Bar(-0.7, -0.1, -1.05, -0.55, 0),  # tail
        Ellipse(-0.1, 0.05, 0.72, 0.36, 0),  # body
        *(Box(x, 0.55, 0.09, 0.46, 3) for x in (-0.58, 0.3)),  # far legs
        *(Box(x, 0.55, 0.1, 0.48, 0) for x in (-0.4, 0.46)),  # near legs
        Ellipse(0.5, -0.2, 0.25, 0.34, 0),  # neck
        Ellipse(0.72, -0.5, 0.29, 0.27, 0),  # head
        Ellipse(1, -0.42, 0.2, 0.12, 1),  # muzzle
        Ellipse(0.55, -0.5, 0.1, 0.27, 2),  # ear
        Ellipse(0.8, -0.58, 0.04, 0.04, 4),  # eye
        Ellipse(1.15, -0.48, 0.06, 0.05, 4),  # nose
    ],
    MOTORCYCLE: [
        *(
            Ellipse(x, 0.5, 0.42 - inset, 0.42 - inset, tone)  # two wheels: tyre, rim, hub
            for x in (-0.75, 0.8)
            for inset, tone in ((0, 0), (0.14, 1), (0.34, 3))
        ),
        Bar(-0.75, 0.5, 0, 0.1, 2),  # frame
        Bar(0.8, 0.5, 0.5, -0.4, 2),  # fork
        Bar(0, 0.45, 0.6, -0.1, 2),
        Ellipse(0, 0.4, 0.3, 0.22, 3),  # engine
        Bar(-0.1, 0.55, -0.95, 0.6, 4),  # exhaust
        Ellipse(0.15, -0.1, 0.42, 0.2, 5),  # tank
        Ellipse(-0.45, -0.05, 0.42, 0.12, 2),  # seat
        Bar(0.5, -0.4, 0.2, -0.62, 2),  # handlebar
        Ellipse(0.66, -0.3, 0.13, 0.14, 4),  # lamp
    ],
    PERSON: [
        Box(0, 0.7, 0.3, 0.5, 0),  # legs
        Ellipse(0, 0, 0.4, 0.5, 1),  # body
        Ellipse(0, -0.7, 0.2, 0.25, 2),  # head
        Bar(-0.3, -0.3, -0.6, 0.3, 1),  # arms
        Bar(0.3, -0.3, 0.6, 0.3, 1),
    ],
    PLANT: [
        Box(0, 0.7, 0.4, 0.3, 0),  # pot
        *(Ellipse(x, x * x - 0.4, 0.3, 0.3, 1) for x in (-0.5, 0.5, 0)),  # leaves
    ],
}


def draw_synthetic_coco(folder, split, num_images, *, seed=0, workers=1, progress=True):
    """Draws `<folder>/<split>/*.jpg` and returns `<folder>/annotations/instances_<split>.json`.

    `num_images` images pass the homework's selection; rejected_images(num_images) more fail it.
    The same arguments give the same bytes, whatever `workers` is.
    """
    folder = Path(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    number = {"train": 1, "test": 2}[split]
    kinds = ["single"] * num_images + [*REJECTED] * (rejected_images(num_images) // len(REJECTED))

    def draw(place):
        """Draws and saves one image; returns its record and those of its objects."""
        drawing = SyntheticDrawing(np.random.default_rng((seed, number, place)))
        picture, objects = drawing.compose(kinds[place], CLASSES[place % 3])
        image_id = number * 1_000_000 + place
        record = {"id": image_id, "file_name": f"{image_id:012d}.jpg"}
        record |= {"width": picture.width, "height": picture.height}
        with io.BytesIO() as jpeg:
            picture.save(jpeg, "JPEG", quality=90)
            content = jpeg.getvalue()
        SegStudio.write_atomically(
            folder / split / record["file_name"], lambda part: part.write_bytes(content)
        )
        return record, objects

    images, annotations = [], []
    with ThreadPoolExecutor(workers) as pool:  # numpy and scikit-image release Python's lock
        try:
            tasks = pool.map(draw, range(len(kinds)))
            bar = progress_bar(
                tasks, disable=not progress, desc=f"drawing {split}", total=len(kinds), unit="image"
            )
            for record, objects in bar:
                images.append(record)
                annotations += ({"image_id": record["id"], **annotation} for annotation in objects)
        except BaseException:  # Ctrl-C or a full disk: do not draw the rest first
            pool.shutdown(cancel_futures=True)
            raise
    data = {
        "info": {"description": DESCRIPTION},
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "annotations": [{"id": k, **record} for k, record in enumerate(annotations, 1)],
        "images": images,
    }
    file = folder / "annotations" / f"instances_{split}.json"
    SegStudio.write_atomically(
        file, lambda part: part.write_text(json.dumps(data), encoding="utf-8")
    )
    return file


def rejected_images(num_images):
    """How many images are drawn, besides `num_images`, for the selection to reject."""
    return len(REJECTED) * (1 + num_images // 16)


class SyntheticDrawing:
    """Draws one image; everything random in it comes from `rng`."""

    def __init__(self, rng):
        self.rng = rng

    def compose(self, kind, category):
        """A Pillow image of one kind ("single" or one of REJECTED) and its annotation records."""
        rng = self.rng
        width, height = rng.integers((300, 270), (341, 301)).tolist()
        canvas = self.background(width, height)
        large, small = rng.uniform(206, 260, 2), rng.uniform(70, 150, 2)  # of a box

        plan = []  # (category, (box width, box height)), the last one in front
        if rng.random() < 0.5:
            plan.append((int(rng.choice([PERSON, PLANT])), rng.uniform((50, 110), (120, 240))))
        if kind == "two of a kind":
            plan.append((category, small))
        elif kind == "two classes":
            other = {CAKE: DOG, DOG: MOTORCYCLE, MOTORCYCLE: CAKE}[category]
            plan.append((other, small))
        plan.append((category, small if kind == "too small" else large))

        layers = []  # (category, [points of each part])
        for number, size in plan:
            parts = self.place(self.vary(FIGURES[number]), size, width, height)
            texture = (90, 90) if number == CAKE else (18, 70)
            self.paint(canvas, parts, texture)
            layers.append((number, [points for points, _ in parts]))
        picture = Image.fromarray((self.light(canvas) * 255).astype(np.uint8))
        if rng.random() < 0.05:  # COCO has some gray images
            picture = picture.convert("L")

        objects = self.annotate(layers, width, height)
        if kind.startswith("two") and sum(a["category_id"] in CLASSES for a in objects) < 2:
            return self.compose(kind, category)  # the front object hides the other one: draw again
        if kind == "crowd":
            corner = 30 + 25 * SQUARE
            crowd = self.annotate([(category, [corner])], width, height, forms=(1,))
            objects.append({**crowd[0], "iscrowd": 1})
        return picture, objects

    # ---- annotations -----------------------------------------------------------------------------

    def annotate(self, layers, width, height, forms=(0, 1, 2)):
        """COCO's records of the objects. A mask has only the visible part of its object.

        `forms` are the allowed forms of the outline: 0 polygons, 1 uncompressed and 2 compressed
        run-length encoding. A partly hidden object always has form 2.
        """
        records = []
        hidden = np.zeros((height, width), np.uint8)
        for number, polygons in reversed(layers):  # from front to back
            outline = [np.round(points, 2).ravel().tolist() for points in polygons]
            rles = pycocotools.mask.frPyObjects(outline, height, width)
            whole = pycocotools.mask.decode(pycocotools.mask.merge(rles))  # (H, W)
            mask = np.asfortranarray(whole & (1 - hidden))
            hidden |= whole
            rle = pycocotools.mask.encode(mask)
            segmentations = (
                outline,
                uncompressed_rle(mask),
                {**rle, "counts": rle["counts"].decode()},
            )
            form = int(self.rng.choice(forms)) if (mask == whole).all() else 2
            records.append(
                {
                    "category_id": number,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": pycocotools.mask.toBbox(rle).tolist(),
                    "segmentation": segmentations[form],
                }
            )
        return [record for record in records if record["area"]]

    # ---- background and light --------------------------------------------------------------------

    def background(self, width, height):
        """Two colours mixed by noise or wavy stripes, and clutter that is not annotated."""
        noise = self.noise(width, height, *self.rng.uniform(2, 9, 2), octaves=4)
        if self.rng.random() < 0.4:  # planks, cloth, grass: stripes bent by the noise
            angle, waves = self.rng.uniform(0, math.pi), self.rng.uniform(10, 40)
            y, x = np.mgrid[:height, :width] / height
            along = waves * (x * math.cos(angle) + y * math.sin(angle))
            noise = 0.5 + 0.5 * np.sin(along + 5 * noise)
        first, second = self.colours(2)
        canvas = first + noise[..., None] * (second - first)  # (H, W, 3)
        outlines = {"disk": CIRCLE, "box": SQUARE}
        for kind in self.rng.choice(["disk", "box"], self.rng.integers(3, 9)):
            size = self.rng.uniform(20, 110, 2)
            parts = self.place([(outlines[kind], 0)], size, width, height)
            self.paint(canvas, parts, (60, 60))
        return canvas

    def light(self, canvas):
        """Adds light from one side, exposure, blur and grain to the whole picture."""
        slope = self.noise(*canvas.shape[1::-1], 1, 1, octaves=1)[..., None] - 0.5
        exposure, contrast, blur = self.rng.uniform((0.75, 0, 0.4), (1.2, 0.6, 0.9))
        canvas = canvas * (exposure + contrast * slope)
        canvas = skimage.filters.gaussian(canvas, blur, channel_axis=2)
        return np.clip(canvas + self.rng.normal(0, 0.02, canvas.shape), 0, 1)

    def noise(self, width, height, cells_x, cells_y, octaves=3):
        """Value noise in 0..1: random grids, each twice as fine and half as strong."""
        total = np.zeros((height, width), np.float32)
        for scale in 2 ** np.arange(octaves):
            shape = 1 + math.ceil(cells_y * scale), 1 + math.ceil(cells_x * scale)
            grid = Image.fromarray(self.rng.random(shape, np.float32) / np.float32(scale))
            total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        return (total - total.min()) / max(np.ptp(total), 1e-6)

    def colours(self, number):
        """Different colours of the palette, each changed a little."""
        chosen = self.rng.choice(PALETTE, number, replace=False)
        return np.clip(chosen + self.rng.normal(0, 0.05, chosen.shape), 0.03, 0.97)

    # ---- figures ---------------------------------------------------------------------------------

    def vary(self, figure):
        """The parts of a figure as [(points, tone)], each shifted and stretched a little."""
        parts = []
        for part in figure:
            centre = (part.x, part.y) + self.rng.normal(0, 0.015, 2)
            if isinstance(part, Bar):
                ends = np.array([centre, (part.to_x, part.to_y)])
                x, y = centre
                across = np.array([y - part.to_y, part.to_x - x])
                across *= 0.05 / math.hypot(part.to_x - x, part.to_y - y)  # half the thickness
                points = np.concatenate([ends + across, ends[::-1] - across])
            else:
                outline = CIRCLE if isinstance(part, Ellipse) else SQUARE
                stretch = self.rng.uniform(0.88, 1.12, 2)
                points = centre + outline * ((part.half_width, part.half_height) * stretch)
            parts.append((points, part.tone))
        return parts

    def place(self, parts, size, width, height):
        """Mirrors, tilts and scales a figure to a box of `size` somewhere inside the image."""
        tilt, side = self.rng.uniform(-0.25, 0.25), self.rng.choice([-1, 1])
        turn = np.array([[side, side * tilt], [-tilt, 1]])  # nearly a rotation; scaled below
        parts = [(points @ turn, tone) for points, tone in parts]
        every = np.concatenate([points for points, _ in parts])
        low, scale = every.min(axis=0), np.asarray(size) / np.ptp(every, axis=0)
        corner = self.rng.uniform(1, np.array([width, height]) - 1 - size)
        return [((points - low) * scale + corner, tone) for points, tone in parts]

    def paint(self, canvas, parts, cells):
        """Fills the parts: one colour per tone, a texture, darker towards the lower side."""
        height, width = canvas.shape[:2]
        grain = 0.72 + 0.5 * self.noise(width, height, *cells, octaves=2)
        colours = self.colours(6)
        for points, tone in parts:
            rows, columns = skimage.draw.polygon(points[:, 1], points[:, 0], (height, width))
            if len(rows):
                shade = 1.12 - 0.35 * (rows - rows.min()) / max(np.ptp(rows), 1)
                tint = colours[tone] * (grain[rows, columns] * shade)[:, None]
                canvas[rows, columns] = np.clip(tint, 0, 1)


def uncompressed_rle(mask):
    """Run-length encoding: the lengths of the runs down the columns, zeros first."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}
