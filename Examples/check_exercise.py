"""Checks an answer to one of the exercises in doc/exercises.md.

    python Examples/check_exercise.py 3 my_3.py
    python Examples/check_exercise.py 7 my_7.py --train-seconds 60

It says what is right, then what is wrong, with the smallest example. Exit code 0: everything is
right; 1: something is wrong; 2: the file cannot be loaded.

The file runs in a process of its own with a limit on its time, memory and output. This is no
sandbox: the code can read and write files. Check strangers' files in a container.
"""

import argparse
import contextlib
import copy
import io
import json
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from SegStudio import SegStudio, backstage, students_code
from SegStudio.check_loss import Examination
from SegStudio.check_network import check_network

HERE = Path(__file__).resolve().parent
Segmentation = SegStudio.SemanticSegmentation
RIGHT, WRONG, NOT_LOADED = 0, 1, 2  # exit codes
CLASSES = tuple(Segmentation.PurdueShapes5MultiObjectDataset.class_names)
MASK_VALUES = tuple(Segmentation.PurdueShapes5MultiObjectDataset.mask_values)


class Wrong(Exception):
    """What is wrong with an answer, in one sentence, and the example that shows it."""

    def __init__(self, says, example=""):
        super().__init__(says)
        self.example = example


# ---- exercise 1: write Dice ---------------------------------------------------------------------


def check_1(answer, _):
    loss = answer("MyDice")
    report = Examination(loss, "MyDice").run()
    if not report.ok:
        first, *others = report.objections
        if "NotImplementedError" in first.seen:
            raise Wrong("MyDice is not written yet")
        more = f" and {len(others)} more" if others else ""
        raise Wrong(
            f"check-loss has {len(report.objections)} objection{'s' if others else ''}: "
            f"{first.id}{more}. {first.entry.says}",
            "\n".join(filter(None, [first.seen, first.example])),
        )
    yield "check-loss has no objection"
    wanted = "squared Dice (per image and channel)"
    if report.recognised != f"1 - {wanted}":
        equals = report.recognised or "no loss that check-loss knows"
        raise Wrong(f"the exercise asks for 1 - {wanted}; MyDice equals {equals}")
    yield f"it equals 1 - {wanted}"


# ---- exercise 3: why is the IoU stuck at 0.25? --------------------------------------------------


class Windowed(nn.Module):
    """A 1x1 convolution whose output is a constant outside a fixed map of pixels."""

    def __init__(self, window, channel=None, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        channels = torch.ones(5, 1, 1) if channel is None else torch.eye(5)[channel, :, None, None]
        self.register_buffer("window", window.float() * channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        constant = self.dropout(torch.ones(len(x), 5, 64, 64))
        return self.conv(x) * self.window + constant


def check_3(answer, _):
    follows, best_iou = answer("follows"), answer("best_iou")
    torch.manual_seed(0)
    rows, columns = torch.arange(64)[:, None], torch.arange(64)[None, :]
    every = torch.ones(64, 64, dtype=torch.bool)
    lattice = (rows % 2 == 0) & (columns % 2 == 0)
    stripes = (columns % 2 == 0) & every
    small = {"depth": 2, "width": 8}
    cases = [
        ("DLStudio's network", Segmentation.mUnet(**small), lattice, ""),
        ("its dense twin", Segmentation.mUnet(**small, upsampling="dense"), every, ""),
        (
            "a network that reaches even columns only", Windowed(stripes), stripes, "",
        ),
        (
            "a network of which only channel 3 follows the image", Windowed(every, 3), every,
            "a pixel follows the image if one of its channels does",
        ),
        (
            "a network with dropout", Windowed(lattice, dropout=0.5), lattice,
            "a new network is in train mode: call net.eval() first",
        ),
    ]  # fmt: skip
    for name, net, truth, advice in cases:
        found = tensor_of(follows(copy.deepcopy(net)), "follows", (64, 64)).bool()
        different = (found != truth).nonzero()
        if len(different):
            row, column = different[0].tolist()
            with torch.no_grad():
                images = torch.rand(2, 3, 64, 64) * 255
                first, second = net.eval()(images)[:, :, row, column]
            channel = int((first - second).abs().argmax())
            says = "follows the image" if found[row, column] else "does not follow the image"
            raise Wrong(
                f"{name}: follows is True for "
                f"{backstage.percent(found.float().mean().item())} of the pixels, but must "
                f"be for {backstage.percent(truth.float().mean().item())}"
                f"{'; ' if advice else ''}{advice}",
                f"pixel (row {row}, column {column}): your follows says that it {says};\n"
                f"its output in channel {channel} is {first[channel]:.4g} for one random image and "
                f"{second[channel]:.4g} for another",
            )
        yield f"{name}: {backstage.percent(truth.float().mean().item())} of the pixels follow"
    squares = [(0, 4), (1, 3), (0, 5), (10, 16)]  # first row and column, side
    for start, side in squares:
        mask = torch.zeros(64, 64, dtype=torch.bool)
        mask[start : start + side, start : start + side] = True
        reached = int((mask & lattice).sum())
        expected = reached / side**2
        found = number_of(best_iou(mask, lattice), "best_iou")
        if abs(found - expected) > 1e-4:
            raise Wrong(
                f"best_iou is {found:.4g} for a square of {side}x{side} pixels, but it must be "
                f"{expected:.4g}",
                f"the square begins at row {start}, column {start}; {reached} of its {side**2} "
                f"pixels follow the image and can be set;\nthe others stay unset: "
                f"intersection {reached}, union {side**2}",
            )
    yield "best_iou: a square of 4x4 pixels on the lattice can have 0.25, one of 3x3 only 0.11"


# ---- exercise 4: balance the two terms ----------------------------------------------------------


def gradient_at_output(term, output, mask):
    output = output.detach().requires_grad_()
    value = term(output, mask)
    (gradient,) = torch.autograd.grad(value, output)
    return value.item(), gradient


def balance(output, mask):
    """(MSE, its gradient, Dice, its gradient) at the output."""
    mse = gradient_at_output(Segmentation.SegmentationLossMSE(), output, mask)
    return *mse, *gradient_at_output(Segmentation.SegmentationLossDice(), output, mask)


def check_4(answer, _):
    balanced_scale = answer("balanced_scale")
    generator = torch.Generator().manual_seed(0)
    for name, noise in (("a random output", 1.0), ("an output near the mask", 0.1)):
        _, masks = drawn_shapes(4, seed=1)
        masks = masks.float()
        output = (1 - noise) * masks + 60 * noise * torch.randn(masks.shape, generator=generator)
        found = number_of(balanced_scale(output.clone(), masks.clone()), "balanced_scale")
        mse, mse_gradient, dice, dice_gradient = balance(output, masks)
        ours, theirs = mse_gradient.norm().item(), dice_gradient.norm().item()
        expected = ours / theirs
        if abs(found / expected - 1) > 0.01:
            known = {
                "the ratio of the two values, not of their gradients": mse / dice,
                "the norm of Dice's gradient divided by that of MSE: exchange them": theirs / ours,
                "the ratio of the squared norms": expected**2,
                "the ratio of the sums of absolute values, not of the norms": (
                    mse_gradient.abs().sum() / dice_gradient.abs().sum()
                ).item(),
            }
            if found in (200, 300, 400):
                known["one of the homework's constants, whatever the output is: measure it"] = found
            mistake = "".join(
                f": this is {text}"
                for text, value in known.items()
                if abs(found - value) < 0.01 * abs(value)
            )
            raise Wrong(
                f"for {name}, balanced_scale is {found:.4g}, but it must be "
                f"{expected:.4g}{mistake}",
                f"MSE  {mse:.4g}, norm of its gradient at the output {ours:.4g}\n"
                f"Dice {dice:.4g}, norm of its gradient at the output {theirs:.4g}\n"
                f"norm of {found:.4g} times Dice's gradient: {abs(found) * theirs:.4g}",
            )
        yield f"for {name} the gradients have the same norm at the scale {expected:.4g}"


# ---- exercise 5: which single-instance rule? ----------------------------------------------------

CATEGORIES = {1: "person", 4: "motorcycle", 18: "dog", 61: "cake"}
COUNTED = ("cake", "dog", "motorcycle")
READINGS = ("selected", "category", "image")
LARGE, SMALL = (250, 220), (90, 250)
# What one image shows: (category, (width, height) of the box, is it a crowd?)
PHOTOS = {
    "one cake of 250x220": [("cake", LARGE, 0)],
    "one cake of exactly 200x200": [("cake", (200, 200), 0)],
    "one cake of 90x250, too narrow": [("cake", SMALL, 0)],
    "a large cake and a large dog": [("cake", LARGE, 0), ("dog", LARGE, 0)],
    "a large cake and a small dog: small objects count, too": [
        ("cake", LARGE, 0), ("dog", SMALL, 0),
    ],
    "a large cake and a small cake": [("cake", LARGE, 0), ("cake", SMALL, 0)],
    "a large cake and a person": [("cake", LARGE, 0), ("person", SMALL, 0)],
    "a large cake and a crowd of cakes": [("cake", LARGE, 0), ("cake", LARGE, 1)],
    "a crowd of dogs alone: it is many objects": [("dog", LARGE, 1)],
}  # fmt: skip


def check_5(answer, _):
    count_images = answer("count_images")
    ids = {name: number for number, name in CATEGORIES.items()}
    for photo, objects in PHOTOS.items():
        annotations = [
            {
                "id": k, "image_id": 1, "category_id": ids[name], "iscrowd": crowd,
                "bbox": [0, 0, *size], "area": size[0] * size[1], "segmentation": [],
            }
            for k, (name, size, crowd) in enumerate(objects, 1)
        ]  # fmt: skip
        content = {
            "images": [{"id": 1, "width": 640, "height": 480, "file_name": "1.jpg"}],
            "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
            "annotations": annotations,
        }
        compare_counts(count_images, content, f"one image: {photo}")
    yield f"{len(PHOTOS)} sets of one image"
    from coco_synthetic import draw_synthetic_coco  # Datasets/, beside this folder

    file = draw_synthetic_coco(".", "train", 24, seed=5, progress=False)
    content = json.loads(file.read_text(encoding="utf-8"))
    counts = compare_counts(count_images, content, "the synthetic set")
    totals = ", ".join(f"{reading} {sum(counts[reading].values())}" for reading in READINGS)
    yield f"a synthetic set of {len(content['images'])} images: {totals}"


def compare_counts(count_images, content, title):
    from coco_single_object import single_large_objects

    coco = coco_of(content)
    ids = {name: coco.getCatIds(catNms=[name])[0] for name in COUNTED}
    counted = {"selected": list(ids.values()), "image": []}
    expected = {
        reading: {
            name: len(single_large_objects(coco, k, counted.get(reading, [k])))
            for name, k in ids.items()
        }
        for reading in READINGS
    }
    found = count_images(coco_of(content), list(COUNTED))
    for reading in READINGS:
        for name in COUNTED:
            try:
                number = int(found[reading][name])
            except (KeyError, TypeError):
                raise Wrong(
                    f"count_images returns no number at [{reading!r}][{name!r}]: it must return "
                    f'{{"selected": {{"cake": ..., "dog": ...}}, "category": ..., "image": ...}}',
                    f"returned: {str(found)[:200]}",
                ) from None
            if number != expected[reading][name]:
                raise Wrong(
                    f'reading "{reading}", {name}: you count {number}, but it must be '
                    f"{expected[reading][name]}",
                    title,
                )
    return expected


def coco_of(content):
    """A pycocotools.coco.COCO of annotations in memory."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


# ---- exercise 6: fix the pole -------------------------------------------------------------------


def check_6(answer, _):
    loss = answer("pixel_loss")

    def at(p, m):
        """(the loss of one pixel, its gradient)."""
        output = torch.full((1, 1, 1, 1), float(p), requires_grad=True)
        value = loss(output, torch.full((1, 1, 1, 1), float(m)))
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise Wrong("pixel_loss must return one number as a tensor with a gradient")
        (gradient,) = torch.autograd.grad(value.sum(), output)
        return value.item(), gradient.item()

    def pixel(p, m):
        return f"mask {m:g}, output {p:g}: loss {at(p, m)[0]:.6g}, gradient {at(p, m)[1]:.6g}"

    for m in (0, 1, *MASK_VALUES):
        for p in (-1 - m, -1, 0, 1, m, -m, 1000, -1000):
            value, gradient = at(p, m)
            if not (abs(value) < float("inf") and abs(gradient) < float("inf")):
                raise Wrong("the loss or its gradient is not finite", pixel(p, m))
    yield "loss and gradient are finite, also at p + m = -1"
    for p, m, expected in ((0, 0, 0), (1, 1, 0), (0, 1, 0.5), (1, 0, 0.5)):
        if abs(at(p, m)[0] - expected) > 1e-4:
            raise Wrong(
                f"for outputs and masks of 0 and 1 the report's formula is right, and yours "
                f"differs from it: the loss here must be {expected}",
                pixel(p, m),
            )
    yield "for outputs and masks of 0 and 1 it equals the report's formula"
    for m in (0, 1, *MASK_VALUES):
        if abs(at(m, m)[0]) > 1e-4:
            raise Wrong("the loss of a perfect output must be 0", pixel(m, m))
    for m in (0, 1, *MASK_VALUES):
        others = sorted({-1 - m, -1.0, -0.5, 0, 0.5, 1, m / 2, 0.9 * m, 2 * m, 1000, -1000} - {m})
        for p in sorted(others, key=lambda p: abs(p - m)):
            if at(p, m)[0] <= 1e-6:
                raise Wrong(
                    "the loss of a wrong output is not higher than that of a perfect output",
                    f"{pixel(p, m)}\n{pixel(m, m)}",
                )
    yield "the minimum is 0, at p = m and only there, for masks of 0 to 250"
    for m in (1, *MASK_VALUES):
        steps = [at(share * m, m)[0] for share in (0, 0.25, 0.5, 0.75, 1)]
        if steps != sorted(steps, reverse=True) or at(0, m)[1] >= 0:
            raise Wrong(
                "from p = 0 to p = m the loss must fall, or training does not reach the mask",
                "\n".join(pixel(share * m, m) for share in (0, 0.25, 0.5, 0.75, 1)),
            )
    yield "it falls from p = 0 to p = m"
    output, mask = torch.tensor([[[[1.0, 50.0]]]]), torch.tensor([[[[0.0, 50.0]]]])
    value = float(loss(output, mask))
    if abs(value - 0.25) > 1e-4:
        raise Wrong(
            "the loss of several pixels must be the mean of their losses",
            f"outputs 1 and 50, masks 0 and 50: loss {value:.6g}; each pixel alone: "
            f"{at(1, 0)[0]:.6g} and {at(50, 50)[0]:.6g}",
        )
    yield "several pixels: the mean"


# ---- exercise 7: your own loss against MSE ------------------------------------------------------

TRAIN_IMAGES, TEST_IMAGES = 1500, 200
MARGIN = 0.02  # of the mean IoU: less is no difference
LEAST_STEPS = 20  # even if they take longer than the time limit


def check_7(answer, seconds):
    loss = answer("MyLoss")()
    if not isinstance(loss, nn.Module):
        raise Wrong(f"MyLoss() is a {type(loss).__name__}: make it a subclass of nn.Module")
    images, masks = drawn_shapes(TRAIN_IMAGES, seed=3)
    test_images, test_masks = drawn_shapes(TEST_IMAGES, seed=4)
    torch.manual_seed(0)
    net = Segmentation.UNet(width=16, stem=8)
    runners = [Runner("MSE", Segmentation.SegmentationLossMSE(), net)]
    runners.append(Runner("MyLoss", loss, copy.deepcopy(net)))
    steps, deadline = 0, time.monotonic() + seconds
    while steps < LEAST_STEPS or time.monotonic() < deadline:  # the same number for both
        batch = torch.randint(len(images), (16,))
        for runner in runners:
            runner.step(images[batch], masks[batch], steps)
        steps += 1
    of_mse, yours = (runner.score(test_images, test_masks) for runner in runners)
    yield f"it trains: {steps} steps of 16 images with each loss, the same images and first weights"
    numbers = f"mean IoU on {len(test_images)} other images: MSE {of_mse:.3f}, yours {yours:.3f}"
    if yours < of_mse + MARGIN:
        raise Wrong(
            f"MyLoss must beat MSE by {MARGIN} or more: this "
            f"{'is a tie' if abs(yours - of_mse) < MARGIN else 'is worse'}",
            numbers,
        )
    yield numbers


class Runner:
    """One network in training with one loss."""

    def __init__(self, name, loss, net):
        self.name, self.loss, self.net = name, loss, net
        self.logits = backstage.expects_logits(loss)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

    def step(self, images, masks, number):
        masks = (masks > 0).float() if self.logits else masks.float()
        loss = self.loss(self.net.train()(images), masks)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise Wrong(f"{self.name} must return one number as a tensor with a gradient")
        if not torch.isfinite(loss):
            raise Wrong(f"{self.name} is {loss.item()} in step {number + 1}: training must stop")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def score(self, images, masks):
        scores = Segmentation.SegmentationScores(CLASSES)
        threshold = torch.tensor(MASK_VALUES)[:, None, None] / 2 * (not self.logits)
        with torch.no_grad():
            for start in range(0, len(images), 50):
                output = self.net.eval()(images[start : start + 50])
                scores.update(output > threshold, masks[start : start + 50] > 0)
        return scores.compute()["mean_iou"]


# ---- exercise 8: your own shape class -----------------------------------------------------------


class DrawnShapes(Dataset):
    """Drawn shapes in memory, as the items of PurdueShapes5MultiObjectDataset."""

    class_names, mask_values = CLASSES, MASK_VALUES

    def __init__(self, number, seed):
        self.images, self.masks = drawn_shapes(number, seed)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {
            "image": self.images[index].clone(),
            "mask_tensor": self.masks[index].clone(),
            "bbox_tensor": torch.zeros(5, 5, 4),
        }


def check_8(answer, _):
    make_dataset, make_network = answer("SixShapes"), answer("make_network")
    shapes = DrawnShapes(24, seed=8)
    found = make_dataset(shapes)
    names, values = (getattr(found, name, ()) for name in ("class_names", "mask_values"))
    if tuple(names[:5]) != CLASSES or len(set(names)) != 6:
        raise Wrong(f"class_names must be the five names and one of your own, not {names}")
    if len(values) != 6 or any(int(value) != value or not 1 <= value <= 255 for value in values):
        raise Wrong(
            f"mask_values must be six whole numbers from 1 to 255, not {tuple(values)}: the masks "
            f"are uint8, in which 300 becomes 44"
        )
    if len(found) != len(shapes):
        raise Wrong(f"SixShapes(shapes) has {len(found)} items, but shapes has {len(shapes)}")
    yield f"six classes: {', '.join(names)}"
    for index in range(len(shapes)):
        check_item(found, shapes, index, names, values)
    yield f"{len(shapes)} items: shapes and types, planes, hidden pixels, picture beside mask"
    planes = [found[index]["mask_tensor"][5] > 0 for index in range(len(shapes))]
    used = [plane for plane in planes if plane.any()]
    if len(used) < len(shapes) / 4:
        raise Wrong(f"only {len(used)} of {len(shapes)} images have the class {names[5]}")
    if len({tuple(plane.flatten().tolist()) for plane in used}) < len(used) / 2:
        raise Wrong(
            f"the {names[5]} is the same in most images: draw it at random places and in random "
            f"sizes, or the network learns only the place"
        )
    full = 0
    for plane in used:
        rows, columns = plane.any(1).nonzero(), plane.any(0).nonzero()
        box = plane[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        full += bool(box.all())
    if full > len(used) / 2:
        raise Wrong(f"most shapes of the class {names[5]} are filled boxes, as the rectangles are")
    yield f"the class {names[5]} is in {len(used)} images, at different places"
    report = check_network(make_network(), (64, 64), out_channels=6)
    if report.objections:
        finding = report.objections[0]
        raise Wrong(f"check-network objects to make_network(): {finding.name}", finding.proof)
    yield "the network has six output channels, and check-network has no objection"


def check_item(found, shapes, index, names, values):
    """One item: Wrong says what is wrong with it."""
    item, original = found[index], shapes[index]
    if not isinstance(item, dict) or not {"image", "mask_tensor"} <= item.keys():
        raise Wrong("an item must be a dict with image and mask_tensor")
    image, mask = item["image"], item["mask_tensor"]
    for name, value, shape, kind in (
        ("image", image, (3, 64, 64), torch.float32),
        ("mask_tensor", mask, (6, 64, 64), torch.uint8),
    ):
        if tuple(value.shape) != shape or value.dtype != kind:
            raise Wrong(
                f"{name} must be {shape} of {kind}, not {tuple(value.shape)} of {value.dtype}"
            )
    again = found[index]
    if not (torch.equal(again["image"], image) and torch.equal(again["mask_tensor"], mask)):
        raise Wrong(
            "the same item is different when it is read again: use a generator that is seeded with "
            "the index, such as np.random.default_rng(index)",
            f"item {index}",
        )
    for k, plane in enumerate(mask):
        strange = sorted(set(plane.unique().tolist()) - {0, int(values[k])})
        if strange:
            raise Wrong(
                f"the plane of the {names[k]} must hold 0 and {values[k]} only",
                f"item {index}: it also holds {strange[0]}",
            )

    def place(where):
        row, column = where.nonzero()[0].tolist()
        return f"item {index}, row {row}, column {column}"

    double = (mask > 0).sum(0) > 1
    if double.any():
        row, column = double.nonzero()[0].tolist()
        both = " and ".join(names[k] for k in (mask[:, row, column] > 0).nonzero().flatten())
        raise Wrong(
            f"a pixel is in two planes, {both}: clear the planes of the shapes behind yours",
            place(double),
        )
    new = mask[5] > 0
    changed = (image != original["image"]).any(0)
    if (changed & ~new).any():
        raise Wrong(f"the picture changed, but the {names[5]}'s plane is 0", place(changed & ~new))
    black = (image == 0).all(0) & new
    if black.any():
        raise Wrong(f"the {names[5]}'s plane is set where the picture is black", place(black))
    unlike = ((mask[:5] != original["mask_tensor"]).any(0)) & ~new
    if unlike.any():
        raise Wrong("a plane of the five shapes changed outside of your shape", place(unlike))


# ---- what the checks share ----------------------------------------------------------------------


def drawn_shapes(number, seed):
    """Images (N, 3, 64, 64) float and masks (N, 5, 64, 64) uint8."""
    drawn = [backstage.draw_shapes(seed, index)[:2] for index in range(number)]
    images, masks = zip(*drawn, strict=True)
    return (
        torch.stack([torch.from_numpy(image) for image in images]).float(),
        torch.stack([torch.from_numpy(mask) for mask in masks]),
    )


def number_of(value, name):
    """A float, from a number or a tensor with one element."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{name} must return one number, not a {type(value).__name__}") from None


def tensor_of(value, name, shape):
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        kind = type(value).__name__
        if isinstance(value, torch.Tensor):
            kind = f"one of shape {tuple(value.shape)}"
        raise Wrong(f"{name} must return a tensor of shape {shape}, not {kind}")
    return value


# ---- the answer's own process -------------------------------------------------------------------

EXERCISES = {
    1: ("write Dice", check_1, "doc/losses.md"),
    3: ("why is the IoU stuck at 0.25?", check_3, "doc/networks.md"),
    4: ("balance the two terms", check_4, "doc/losses.md"),
    5: ("which single-instance rule?", check_5, "Datasets/COCO.md"),
    6: ("fix the pole", check_6, "doc/losses.md"),
    7: ("your own loss against MSE", check_7, "doc/your-own.md"),
    8: ("your own shape class", check_8, "doc/masks.md"),
}


def run_apart(number, path, train_seconds, seconds, memory):
    """examine() in a process of its own, with limits; also returns what the file printed."""
    ending = students_code.run_limited(
        "check_exercise:examine",
        [str(path), number, train_seconds],
        seconds,
        memory,
        folders=[HERE, HERE.parent / "Datasets"],
    )
    found = {"right": []}
    if ending.how == "answer":
        found = ending.answer
    elif ending.how == "not loaded":
        found["problem"] = ending.text
    elif ending.how == "time":
        found["wrong"] = f"{ending.text}: look for an endless loop"
    else:
        found["wrong"] = "it prints without end" if ending.how == "flood" else ending.text
    return {**found, "printed": ending.printed}


def examine(path, number, train_seconds):
    """Load and check an answer: a dict of "right", a list; if it is wrong, "wrong" and "example".

    Errors: students_code.NotLoaded.
    """
    path = Path(path)
    module = students_code.load(path)

    def answer(name):
        return students_code.find(module, name, path)

    found = {"right": []}
    try:
        for text in EXERCISES[number][1](answer, train_seconds):
            found["right"].append(text)
    except students_code.NotLoaded:
        raise
    except Wrong as error:
        found |= {"wrong": str(error), "example": error.example}
    except SystemExit as error:
        found["wrong"] = f"it calls sys.exit({error.code!r})"
    except MemoryError:
        students_code.limit_memory(None)  # the next lines need some memory
        found["wrong"] = "it needs more memory than the limit"
    except Exception as error:
        found["wrong"] = in_words(error, path)
    return found


def in_words(error, path):
    """An error in the student's code as one sentence with its line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = f"line {frames[-1].lineno}" if frames else path.name
    if isinstance(error, NotImplementedError):
        return f"{frames[-1].name if frames else 'a part'} is not written yet ({line})"
    return f"{line}: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"


# ---- the command --------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("number", type=int, choices=sorted({2, *EXERCISES}), help="of the exercise")
    add("file", type=Path, help="your answer, a Python file")
    add("--train-seconds", type=float, default=60, metavar="S", help="exercise 7; default 60")
    add("--limit", type=float, default=120, metavar="S", help="time limit; default 120")
    add("--memory", type=float, default=4, metavar="GIB", help="limit on Linux; default 4")
    flags = parser.parse_args()
    if not 1 <= flags.train_seconds < float("inf"):
        parser.error(f"--train-seconds is 1 or more, not {flags.train_seconds:g}")
    if flags.number == 2:
        parser.error(f"exercise 2: python -m SegStudio check-loss {flags.file}:ChannelLoss")
    title, _, page = EXERCISES[flags.number]
    print(f"Exercise {flags.number}, {title.removesuffix('?')}: {flags.file.name}\n", flush=True)
    if not flags.file.is_file():
        print(f"It cannot be loaded: there is no file {flags.file}")
        sys.exit(NOT_LOADED)
    seconds = flags.limit
    if flags.number == 7:
        seconds += flags.train_seconds
        print(
            f"Two trainings at the same time, {flags.train_seconds:g} seconds in total ...\n",
            flush=True,
        )
    path = flags.file.resolve()
    found = run_apart(flags.number, path, flags.train_seconds, seconds, flags.memory)
    sys.exit(show(found, page))


def show(found, page):
    """Print what was found; returns the exit code."""
    if found["printed"].strip():
        lines = found["printed"].strip().splitlines()
        print("Your file printed:", *(f"  {line}" for line in lines[:10]), sep="\n")
        print("  ...\n" if len(lines) > 10 else "")
    if "problem" in found:
        print(f"It cannot be loaded: {found['problem']}")
        return NOT_LOADED
    for text in found["right"]:
        print(f"RIGHT  {text}")
    if "wrong" not in found:
        print("\nEverything is right.")
        return RIGHT
    print(f"WRONG  {found['wrong']}")
    for line in found.get("example", "").splitlines():
        print(f"         {line}")
    print(f"\nCorrect this first: the checks after it were not run. Read on: {page}")
    return WRONG


if __name__ == "__main__":
    SegStudio.run_example(main)
