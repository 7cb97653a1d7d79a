"""Why it fails: the wrong pixels of a test, grouped by cause, as one page.

Every test writes why-it-fails.html. A pixel is wrong if its predicted classes are not exactly its
true classes. Each wrong pixel gets one cause, by the first of these rules that applies:

1. confusion   It lies on an object of which more pixels are predicted as another class than as its
               own, and at least a quarter of them.
2. small       It lies on an object of less than 2 % of the image, of which less than half is found.
3. large       The same for larger objects.
4. holes       Its class is missed here, but is predicted around it: closing the prediction with a
               3x3 square, and filling what it encloses, sets the pixel.
5. occlusion   At most d pixels away, two objects touch. d is 2 % of the image's diagonal.
6. boundary    It is at most d pixels away from the edge of a true object, inside or outside.
7. confusion   It lies on an object, and another class is predicted.
8. large       It lies on an object: a part of it is missed.
9. false       It lies on the background, where a class is predicted.

An object is a connected part of the mask of one class. Whether an object is found (rules 1 to 3) is
read from the closed and filled prediction, so that a dotted mask counts as found and its gaps as
holes.
"""

import base64
import contextlib
import heapq
import io
from pathlib import Path

import jinja2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from SegStudio import backstage

SMALL = 0.02  # of the image's pixels: the size of a small object
FOUND = 0.5  # of an object's pixels: it is found
CONFUSED = 0.25  # of an object's pixels: the least that another class needs to confuse it
PICTURES = 4  # for each cause
LARGEST_SIDE = 128  # of a picture on the page

# {cause: (title, the sentence for the page's beginning, how to fix it)}
CAUSES = {
    "confusion": (
        "Class confusion",
        "lie on objects that are taken for another class",
        "The network finds the object but predicts another class. It needs a larger receptive "
        "field, more channels at low resolution, or longer training. confusion.png shows which "
        "classes are confused.",
    ),
    "small": (
        "Missed small objects",
        "lie on small objects that are not found",
        "A small object adds little to a loss that sums over pixels. Use a loss with a Dice term "
        "over the batch, skip connections at full resolution, and more small objects in training.",
    ),
    "large": (
        "Missed large objects and parts",
        "lie on larger objects, or on parts of them, that are not found",
        "The training was too short, or the outputs stay below the threshold: look at the loss, at "
        "the learning rate, and at how the output is read (mask values or logits).",
    ),
    "holes": (
        "Holes",
        "are holes in objects that are found",
        "If the holes form a regular pattern, these pixels cannot depend on the image: run "
        'python -m SegStudio check-network, and use mUnet(upsampling="dense") or UNet.',
    ),
    "occlusion": (
        "Occlusion",
        "lie where one object touches or covers another one",
        "Train with more objects that cover each other: paste objects of other images into the "
        "image, as Examples/best_segmentation.py does.",
    ),
    "boundary": (
        "Boundary",
        "lie at the edges of objects",
        "The object is found, but its outline is not exact. Skip connections at full resolution "
        "and longer training help.",
    ),
    "false": (
        "False alarms",
        "lie on the background, where there is no object",
        "The network predicts a class where there is no object. A loss without a gradient on empty "
        "channels, such as squared Dice alone, does not correct this: add BCE or MSE.",
    ),
}  # fmt: skip
NAMES = tuple(CAUSES)
NUMBER = {name: number for number, name in enumerate(NAMES, 1)}  # 0: the pixel is right


# ---- the rules ----------------------------------------------------------------------------------


def causes_of_errors(pred, mask):
    """The cause of each wrong pixel of one image.

    Shape: pred and mask (C, H, W) of True and False, as numpy arrays -> (H, W) uint8: 0 where the
    pixel is right, else the number of the cause in CAUSES, from 1 on.
    """
    wrong = (pred != mask).any(axis=0)
    causes = np.zeros(wrong.shape, np.uint8)
    if not wrong.any():
        return causes

    def assign(where, name):
        causes[where & wrong & (causes == 0)] = NUMBER[name]

    filled = np.stack([fill(plane) for plane in pred])
    missed = np.zeros_like(wrong)  # on small objects that are not found
    missed_large = np.zeros_like(wrong)
    objects = list(find_objects(mask))
    for k, places in objects:
        area = places.sum()
        found = filled[:, places].sum(axis=1)  # (C,), pixels of the object by predicted class
        own, other = found[k], np.delete(found, k).max(initial=0)
        if other > own and other >= CONFUSED * area:
            assign(places, "confusion")
        elif own < FOUND * area:
            if area < SMALL * wrong.size:
                missed |= places
            else:
                missed_large |= places
    assign(missed, "small")
    assign(missed_large, "large")
    assign((mask & ~pred & filled).any(axis=0), "holes")
    distance = boundary_width(*wrong.shape)
    assign(widen(contacts(objects, wrong.shape), distance), "occlusion")
    assign(near_an_edge(mask, distance), "boundary")
    on_object = mask.any(axis=0)
    assign(on_object & (pred & ~mask).any(axis=0), "confusion")
    assign(on_object, "large")
    assign(np.ones_like(wrong), "false")
    return causes


def boundary_width(height, width):
    """The d of the rules: 2 % of the diagonal, as in the boundary IoU."""
    return max(1, round(0.02 * (height**2 + width**2) ** 0.5))


def fill(plane):
    """A plane (H, W) closed by a 3x3 square, with everything filled that it encloses."""
    if not plane.any():
        return plane
    padded = np.pad(plane, 1)
    closed = ndimage.binary_closing(padded, np.ones((3, 3)))[1:-1, 1:-1]
    return ndimage.binary_fill_holes(closed | plane)


def find_objects(mask):
    """(class, its pixels (H, W)) of each connected part of a mask (C, H, W)."""
    for k, plane in enumerate(mask):
        if plane.any():
            labels, number = ndimage.label(plane, np.ones((3, 3)))
            for label in range(1, number + 1):
                yield k, labels == label


def contacts(objects, shape):
    """The pixels (H, W) of objects that touch another object, also at a corner, or overlap it."""
    touching = np.zeros(shape, bool)
    if len(objects) > 1:
        near = [widen(places, 1) for _, places in objects]
        number = np.sum(near, axis=0)
        for _, places in objects:
            touching |= places & (number > 1)
    return touching


def near_an_edge(mask, distance):
    """The pixels (H, W) that are at most `distance` away from the edge of a mask (C, H, W)."""
    near = np.zeros(mask.shape[1:], bool)
    for plane in mask:
        if plane.any():
            # beyond the image there is no edge: nothing can be wrong there
            inner = ~widen(~plane, distance)
            near |= widen(plane, distance) & ~inner
    return near


def widen(plane, distance):
    """The pixels at most `distance` rows and columns away from a set pixel of (H, W)."""
    size = 2 * distance + 1
    return ndimage.maximum_filter(plane, size, mode="constant", cval=False)


# ---- the counts of a test -----------------------------------------------------------------------


class ErrorCauses:
    """Collects the wrong pixels of a test, batch by batch, and writes the page."""

    def __init__(self, class_names):
        self.class_names = list(class_names)
        causes, classes = len(NAMES), len(self.class_names)
        self.images = 0  # of the test
        self.pixels = 0  # of all images
        self.channels = 0  # of an output; 1 with several classes if an image has a category
        self.wrong = np.zeros(causes, np.int64)  # pixels of each cause
        self.affected = np.zeros(causes, np.int64)  # images in which it occurs
        self.counts = np.zeros((classes, 3), np.int64)  # I, P, M as in SegmentationScores
        self.missed = np.zeros((causes, classes), np.int64)  # of each class, by cause
        self.false = np.zeros((causes, classes), np.int64)
        self.taken_for = np.zeros((classes, classes), np.int64)  # (true, predicted), if confused
        self.worst = [[] for _ in NAMES]  # of each cause: (pixels, -number of the image, ...)

    def add(self, batch, preds, first=None) -> None:
        """Count a batch; `first` is the number of its first image, by default the next number.

        Shape: preds (N, C, H, W) of True and False.
        """
        first = self.images if first is None else first
        masks = (batch["mask_tensor"] > 0).cpu().numpy()
        preds = preds.cpu().numpy()
        self.channels = preds.shape[1]
        categories = batch.get("category")
        if preds.shape[1] > 1 or categories is None:
            categories = [None] * len(preds)
        for row, (pred, mask, category) in enumerate(zip(preds, masks, categories, strict=True)):
            self.add_image(first + row, batch["image"][row], pred, mask, category)

    @classmethod
    def total(cls, parts):
        """The sum of the counts of several processes, each of which tested a part of the images."""
        total = cls(parts[0].class_names)
        for part in parts:
            total.channels = max(total.channels, part.channels)
            for name in ("images", "pixels", "wrong", "affected", "counts", "missed", "false"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.taken_for = total.taken_for + part.taken_for
            for worst, more in zip(total.worst, part.worst, strict=True):
                worst.extend(more)
        for worst in total.worst:
            worst.sort(key=lambda entry: entry[:2], reverse=True)
            del worst[PICTURES:]
        return total

    def add_image(self, number, image, pred, mask, category):
        self.images += 1
        self.pixels += mask[0].size
        classes = slice(None) if category is None else [int(category)]
        pixels = ((pred & mask), pred, mask)
        self.counts[classes] += np.stack([p.sum(axis=(1, 2)) for p in pixels], axis=1)
        causes = causes_of_errors(pred, mask)
        for k, name in enumerate(NAMES):
            here = causes == NUMBER[name]
            size = int(here.sum())
            if not size:
                continue
            self.wrong[k] += size
            self.affected[k] += 1
            self.missed[k, classes] += (mask & ~pred & here).sum(axis=(1, 2))
            self.false[k, classes] += (pred & ~mask & here).sum(axis=(1, 2))
            if name == "confusion" and category is None:
                self.taken_for += np.einsum("thw,phw->tp", mask & here, (pred & ~mask).astype(int))
            entry = (size, -number, image, pred, mask, causes)
            worst = self.worst[k]
            if len(worst) < PICTURES:
                heapq.heappush(worst, entry)
            elif entry[:2] > worst[0][:2]:
                heapq.heapreplace(worst, entry)

    def mean_iou(self, without=None):
        """The mean IoU over the classes; without the errors of one cause, if it is given."""
        i, p, m = self.counts.T.copy()
        if without is not None:
            k = NAMES.index(without)
            i = i + self.missed[k]
            p = p + self.missed[k] - self.false[k]
        union = p + m - i
        seen = union > 0
        return float((i[seen] / union[seen]).mean()) if seen.any() else None

    def shares(self) -> dict:
        """{cause: its share of all wrong pixels}, for each that occurs.

        In the order in which to fix them: first the cause without which the mean IoU is highest.
        """
        found = [name for name, number in zip(NAMES, self.wrong, strict=True) if number]
        share = {name: self.wrong[NAMES.index(name)] / self.wrong.sum() for name in found}
        found.sort(key=lambda name: (self.mean_iou(without=name) or 0, share[name]), reverse=True)
        return {name: float(share[name]) for name in found}

    # ---- the page ----

    def first_sentence(self) -> str:
        """What to fix first."""
        shares = self.shares()
        if not self.images:
            return "There are no test images."
        if not shares:
            return f"Nothing to fix: every pixel of the {self.images:,} test images is right."
        name, share = next(iter(shares.items()))
        title, sentence, _ = CAUSES[name]
        now, without = self.mean_iou(), self.mean_iou(without=name)
        gain = ""
        if now is not None:
            gain = f" Without them the mean IoU would be {without:.3f} instead of {now:.3f}."
        return (
            f"Fix first: {title[0].lower() + title[1:]}. {backstage.percent(share)} of all wrong "
            f"pixels {sentence}.{gain}"
        )

    def details(self, name) -> str:
        """The classes that a cause concerns most, in a sentence; "" if there is one class."""
        if len(self.class_names) < 2:
            return ""
        if name == "confusion" and self.taken_for.any():
            true, predicted = np.unravel_index(self.taken_for.argmax(), self.taken_for.shape)
            share = self.taken_for[true, predicted] / self.taken_for.sum()
            return (
                f"Most often {self.class_names[true]} is taken for {self.class_names[predicted]}: "
                f"{backstage.percent(share)} of these pixels."
            )
        per_class = (self.missed + self.false)[NAMES.index(name)]
        k = per_class.argmax()
        share = per_class[k] / per_class.sum()
        return f"The class {self.class_names[k]} has the most of them: {backstage.percent(share)}."

    def make_page(self, segmenter, worst=None) -> str:
        """The page as text; `worst` is the path of worst.png, or None."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        shares = self.shares()
        worst_picture = None
        if worst is not None:
            with contextlib.suppress(OSError):  # another program holds it
                worst_picture = base64.b64encode(Path(worst).read_bytes()).decode()
        one_channel = self.channels != len(self.class_names)
        names = ["object"] * self.channels if one_channel else self.class_names
        return environment.get_template("why_it_fails.html.j2").render(
            run=segmenter.dl_studio.run_dir.name,
            kind=backstage.kind_of_images(segmenter),
            first_sentence=self.first_sentence(),
            images=self.images,
            wrong=int(self.wrong.sum()),
            wrong_share=backstage.percent(self.wrong.sum() / max(self.pixels, 1)),
            mean_iou=self.mean_iou(),
            causes=[self.describe(segmenter, name, share) for name, share in shares.items()],
            absent=[CAUSES[name][0] for name in NAMES if name not in shares],
            legend=list(zip(names, backstage.class_colors(self.channels), strict=True)),
            rules=list(rules()),
            worst=worst_picture,
        )

    def describe(self, segmenter, name, share):
        """What the template shows of a cause."""
        k = NAMES.index(name)
        title, sentence, advice = CAUSES[name]
        entries = sorted(self.worst[k], key=lambda entry: entry[:2], reverse=True)
        return {
            "name": name,
            "title": title,
            "sentence": sentence,
            "advice": advice,
            "share": backstage.percent(share),
            "width": f"{100 * share:.1f}",
            "pixels": int(self.wrong[k]),
            "affected": int(self.affected[k]),
            "details": self.details(name),
            "mean_iou": self.mean_iou(without=name),
            "pictures": [
                {
                    "number": -entry[1],
                    "pixels": entry[0],
                    "data": picture_of_errors(segmenter, *entry[2:], NUMBER[name]),
                }
                for entry in entries
            ],
        }

    def write(self, segmenter, worst=None) -> Path:
        """Write why-it-fails.html to the run's folder and log its first sentence."""
        dls = segmenter.dl_studio
        path = dls.run_dir / "why-it-fails.html"
        text = self.make_page(segmenter, worst)
        backstage.write_or_warn(path, lambda part: part.write_text(text, encoding="utf-8"))
        dls.log(f"\nWhy it fails: {self.first_sentence()}\nPictures of it: {path}")
        return path


def rules():
    """The rules of this file's docstring: [(number, cause, text), ...]."""
    text = __doc__.partition("applies:\n\n")[2].partition("\n\n")[0]
    found = []
    for line in text.splitlines():
        if line[:1].isdigit():
            number, name, rest = line.split(maxsplit=2)
            found.append([number.rstrip("."), CAUSES[name][0], rest])
        else:
            found[-1][2] += " " + line.strip()
    return found


ERROR, OTHER = (255, 40, 160), (90, 90, 90)  # wrong by this cause; wrong by another one


def picture_of_errors(segmenter, image, pred, mask, causes, number):
    """Image, truth, prediction and the errors of a cause, side by side: a PNG as base64 text."""
    pred, mask = torch.from_numpy(pred), torch.from_numpy(mask)
    rgb = backstage.as_bytes(image)
    grey = (rgb.float().mean(dim=0) * 0.3).byte().numpy()
    errors = np.stack([grey] * 3, axis=-1)  # (H, W, 3)
    errors[causes > 0] = OTHER
    errors[causes == number] = ERROR
    panels = [rgb, segmenter.overlay(rgb, mask), segmenter.overlay(rgb, pred)]
    panels = [panel.permute(1, 2, 0).numpy() for panel in panels] + [errors]
    height, width = causes.shape
    scale = min(1, LARGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gap = 2
    strip = Image.new("RGB", (4 * size[0] + 3 * gap, size[1]), "white")
    for column, panel in enumerate(panels):
        small = Image.fromarray(panel).resize(size, Image.Resampling.NEAREST)
        strip.paste(small, (column * (size[0] + gap), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
