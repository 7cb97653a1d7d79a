"""How a loss is meant to be used: readings, the predictions to try, and how it is called.

For check_loss. A prediction is written as q, the degree from 0 to 1 to which each pixel belongs to
each class. A reading turns q into an output: the mask's value, a probability, or a logit.
"""

import copy
import inspect
import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn

# ---- readings: how a loss is meant to be used ---------------------------------------------------

LEVELS = {"homework": (50.0, 100.0, 150.0, 200.0, 250.0), "255": (255.0,), "1": (1.0,)}


@dataclass(frozen=True)
class Reading:
    """How to make the two arguments of a loss from bits (the truth) and q (a prediction)."""

    kind: str  # "values": the mask's own values; "probabilities"; "logits"
    masks: str = "1"  # a key of LEVELS
    layout: str = "planes"  # or "one-hot", "numbers" (N, H, W), "numbers in a channel"
    swapped: bool = False

    def levels(self, channels):
        values = LEVELS[self.masks]
        return torch.tensor([values[k % len(values)] for k in range(channels)])[:, None, None]

    def mask(self, bits):
        if self.layout.startswith("numbers"):
            numbers = bits.long().argmax(dim=1)  # (N, H, W)
            return numbers if self.layout == "numbers" else numbers[:, None]
        return bits * self.levels(bits.shape[1])

    def output(self, q, sharpness=6.0):
        if self.kind == "values":
            return q * self.levels(q.shape[1])
        if self.kind == "probabilities":
            return q.clone()
        return sharpness * (2 * q - 1)  # at 6: probabilities of 0.998 and 0.002

    def __str__(self):
        outputs = {
            "values": "outputs on the scale of the masks",
            "probabilities": "outputs from 0 to 1 (probabilities)",
            "logits": "logits (it applies a sigmoid or softmax itself)",
        }[self.kind]
        if self.layout.startswith("numbers"):
            shape = "(N, H, W)" if self.layout == "numbers" else "(N, 1, H, W)"
            masks = f"masks of class numbers {shape}"
        else:
            values = {"homework": "any value", "255": "0 and 255", "1": "0 and 1"}[self.masks]
            one_hot = ", one class per pixel" if self.layout == "one-hot" else ""
            masks = f"masks of {values}{one_hot}"
        order = "the mask first, then " if self.swapped else ""
        return f"{order}{outputs}, and {masks}"


# In the order of preference: if a loss is right under several, it is described by the first.
PLANES = [
    Reading(kind, masks)
    for kind, order in (
        ("values", ("homework", "255", "1")),
        ("logits", ("1", "255", "homework")),
        ("probabilities", ("1", "255", "homework")),
    )
    for masks in order
]
ONE_HOT = [
    Reading("logits", "1", "numbers"),
    Reading("logits", "1", "numbers in a channel"),
    Reading("logits", "1", "one-hot"),
    Reading("probabilities", "1", "one-hot"),
]
READINGS = PLANES + ONE_HOT


def draw_bits(shape, reading, seed=0):
    """Random masks (N, C, H, W): no pixel has two classes, no plane is empty if there is room."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    first = 0 if reading.layout == "planes" else 1  # planes: number 0 is background
    labels = torch.randint(0, c + 1 - first, (n, h * w), generator=generator)
    if h * w > c:
        places = torch.stack([torch.randperm(h * w, generator=generator) for _ in range(n)])
        numbers = torch.arange(1 - first, c + 1 - first).expand(n, c)
        labels.scatter_(1, places[:, :c], numbers)
        if not first:
            labels.scatter_(1, places[:, c : c + 1], torch.zeros(n, 1, dtype=torch.long))
    numbers = torch.arange(1 - first, c + 1 - first)[:, None, None]
    return labels.view(n, 1, h, w) == numbers


@dataclass
class Case:
    """A prediction and a worse one: the second must not cost less than the first."""

    name: str
    better: torch.Tensor
    worse: torch.Tensor
    bits: torch.Tensor
    plane: tuple = (0, 0)
    sharpness: tuple = (6.0, 6.0)
    strict: bool = True  # the worse one should cost more
    out_of_range: bool = False  # the worse one is below 0 or above the masks' values

    def compare(self, better, worse):
        """1 if the worse one costs more, 0 if as much, -1 if less."""
        if math.isnan(better) or math.isnan(worse):
            return 0  # check_finite examines this
        if self.strict:
            return difference(better, worse)
        if math.isinf(better) or math.isinf(worse):
            return 0
        return min(difference(better, worse, floor=1e-5), 0)


def make_cases(shape, reading, seed=0):
    """Predictions that get worse step by step, beside a perfect one, for one random mask."""
    bits = draw_bits(shape, reading, seed)
    perfect = bits.float()
    generator = torch.Generator().manual_seed(seed + 1)

    def pick(candidates):
        index = candidates.nonzero()
        return tuple(index[torch.randint(len(index), (1,), generator=generator)].squeeze(0))

    def with_pixel(place, value):
        q = perfect.clone()
        n, c, h, w = place
        q[place] = value
        if reading.layout != "planes":  # one class per pixel: another takes what this one loses
            other = bits[n, :, h, w].int().argmax()
            if bits[place]:
                other = (c + 1) % shape[1]
            q[n, other, h, w] = 1 - value
        return q

    busy = bits.flatten(2).any(-1)[:, :, None, None]  # planes with an object
    free = ~bits.any(dim=1, keepdim=True) & busy if reading.layout == "planes" else ~bits & busy
    if not free.any():
        free = ~bits & busy
    cases = [Case("inverted", perfect, 1 - perfect, bits)]
    cases.append(Case("unsure", perfect, torch.full_like(perfect, 0.5), bits))
    cases.append(Case("everything", perfect, torch.ones_like(perfect), bits))
    cases.append(Case("nothing", perfect, torch.zeros_like(perfect), bits))
    moved = perfect.roll(1, dims=-1)
    if not torch.equal(moved, perfect):
        cases.append(Case("moved", perfect, moved, bits))
    for _ in range(3):
        if bits.any():
            place = pick(bits)
            plane = (int(place[0]), int(place[1]))
            cases.append(Case("miss", perfect, with_pixel(place, 0.0), bits, plane))
            cases.append(
                Case("deeper miss", with_pixel(place, 0.33), with_pixel(place, 0.0), bits, plane)
            )
        if free.any():
            place = pick(free)
            plane = (int(place[0]), int(place[1]))
            cases.append(Case("false positive", perfect, with_pixel(place, 1.0), bits, plane))
            cases.append(
                Case("deeper false positive", with_pixel(place, 0.67), with_pixel(place, 1.0),
                     bits, plane)
            )  # fmt: skip
    if reading.kind == "values":
        for name, worse in (
            ("too large", torch.where(bits, 1.5, 0.0)),
            ("too small", torch.where(bits, 1.0, -0.5)),
            ("negated", -perfect),
        ):
            cases.append(Case(name, perfect, worse, bits, out_of_range=True))
    if reading.kind == "logits":
        cases.append(Case("saturated", perfect, perfect, bits, (0, 0), (20.0, 40.0), strict=False))
    return cases


# ---- the loss under examination -----------------------------------------------------------------


class Refused(Exception):
    """The loss stopped with an error; the message says which."""


class Loss:
    """Calls a loss as training does, each time with fresh tensors and a fresh copy of the loss."""

    def __init__(self, loss):
        self.original = loss
        self.copy = isinstance(loss, nn.Module) or hasattr(loss, "__dict__")
        self.copy = self.copy and not inspect.isroutine(loss)
        self.seen_forms = set()  # "tensor", "number", "vector", ...
        self.called_backward = False

    def fresh(self):
        if not self.copy:
            return self.original
        try:
            return copy.deepcopy(self.original)
        except Exception:  # some objects cannot be copied; then state is shared between the calls
            self.copy = False
            return self.original

    def result(self, output, mask, swapped=False, loss=None):
        """(the raw result, the leaf tensor whose gradient is asked for)."""
        leaf = output.detach().clone().requires_grad_(output.is_floating_point())
        arguments = (leaf * 1, mask.clone())  # in training the output is not a leaf
        if swapped:
            arguments = arguments[::-1]
        torch.default_generator.manual_seed(0)  # a random loss is told apart by not_deterministic
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = (loss or self.fresh())(*arguments)
        except (Exception, SystemExit) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        self.called_backward |= leaf.grad is not None
        return result, leaf

    def scalar(self, result):
        """The result as a tensor of one number; a vector counts by its mean."""
        if isinstance(result, (tuple, list)) and result:
            self.seen_forms.add(f"a {type(result).__name__}")
            result = result[0]
        if isinstance(result, dict) and result:
            self.seen_forms.add("a dict")
            result = next(iter(result.values()))
        if torch.is_tensor(result):
            if result.numel() != 1:
                self.seen_forms.add(f"a tensor of shape {tuple(result.shape)}")
                result = result.double().mean() if result.numel() else result.new_tensor(0.0)
            return result.reshape(())
        try:
            number = float(result)
        except (TypeError, ValueError):
            kind = type(result).__name__
            raise Refused(f"it returns {kind}, which is not a number or a tensor") from None
        self.seen_forms.add("number")
        return torch.tensor(number, dtype=torch.float64)

    def value(self, output, mask, swapped=False):
        return float(self.scalar(self.result(output, mask, swapped)[0]).detach())

    def gradient(self, output, mask, swapped=False):
        """The gradient at the output; None without one. Errors: Refused if backward() fails."""
        result, leaf = self.result(output, mask, swapped)
        result = self.scalar(result)
        if not result.requires_grad:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (gradient,) = torch.autograd.grad(result, leaf, allow_unused=True)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        return gradient


# ---- from a class or factory to a loss ----------------------------------------------------------

ARGUMENTS = {  # for constructors that need them
    "batch_size": 4, "batchsize": 4, "bs": 4, "n_classes": 5, "num_classes": 5, "classes": 5,
    "nclasses": 5, "num_class": 5, "n_class": 5, "channels": 5, "num_channels": 5,
    "n_channels": 5, "c": 5, "max_num_objects": 5, "num_objects": 5, "dice_scale": 200.0,
    "scale": 200.0, "smooth": 1.0, "smoothing": 1.0, "eps": 1e-6, "epsilon": 1e-6, "alpha": 0.5,
    "beta": 0.5, "gamma": 2.0, "lam": 1.0, "lambda_": 1.0, "weight": 1.0, "w": 1.0, "k": 1.0,
    "device": "cpu", "reduction": "mean", "image_size": (64, 64),
}  # fmt: skip


def needed(signature):
    return [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def construct(factory):
    """Call a class or factory with what its arguments' names ask for."""
    try:
        names = needed(inspect.signature(factory))
    except (TypeError, ValueError):
        names = []
    unknown = [name for name in names if name.lower() not in ARGUMENTS]
    if unknown:
        raise Refused(
            f"{factory.__name__} needs {', '.join(unknown)}: give values, as in "
            f"NAME({unknown[0]}=1), or defaults"
        )
    try:
        return factory(**{name: ARGUMENTS[name.lower()] for name in names})
    except Exception as error:
        raise Refused(f"{factory.__name__}(): {type(error).__name__}: {error}") from error


def make_loss(thing):
    """The loss itself, from a loss, a class, or a function that makes one."""
    if inspect.isclass(thing) and issubclass(thing, torch.autograd.Function):
        return thing.apply
    if inspect.isclass(thing):
        loss = construct(thing)
        if not callable(loss):
            method = next((getattr(loss, m) for m in ("forward", "loss") if hasattr(loss, m)), None)
            if method is None:
                raise Refused(f"{thing.__name__} has no forward(self, output, mask)")
            return method
        return loss
    if not callable(thing):
        raise Refused(f"{type(thing).__name__} is not a loss: it cannot be called")
    if isinstance(thing, nn.Module) or not inspect.isroutine(thing):
        return thing
    try:
        signature = inspect.signature(thing)
        signature.bind(None, None)
    except TypeError:
        return make_loss(construct(thing)) if len(needed(signature)) < 2 else thing
    except ValueError:  # a builtin without a signature
        return thing
    if any(name.lower() not in ARGUMENTS for name in needed(signature)) or not needed(signature):
        return thing
    made = construct(thing)  # such as make_loss(batch_size, dice_scale)
    return make_loss(made) if callable(made) else thing


# ---- numbers and words --------------------------------------------------------------------------


def difference(first, second, tolerance=1e-6, floor=1e-9):
    """1 if the second is larger, -1 if it is smaller or not a number, 0 if they are the same."""
    if math.isnan(first) or math.isnan(second):
        return -1
    if math.isinf(first) or math.isinf(second):
        return (second > first) - (second < first)
    if abs(first - second) <= tolerance * max(abs(first), abs(second)) + floor:
        return 0
    return 1 if second > first else -1


def round_off(value):
    return f"{value:.5g}"


def short(value):
    return f"{float(value):.3g}"


def short_gradient(gradient):
    bad = gradient[~torch.isfinite(gradient)]
    return f"has {bad.numel()} values of inf or NaN, such as {short(bad[0])}"


def listed(numbers):
    return ", ".join(map(str, numbers))


def matrix(plane):
    rows = ("[" + ", ".join(f"{v:.3g}" for v in row) + "]" for row in plane.tolist())
    return "[" + ", ".join(rows) + "]"


def describe(shape):
    n, c, h, w = shape
    images = "1 image" if n == 1 else f"{n} images"
    channels = "1 channel" if c == 1 else f"{c} channels"
    return f"{images}, {channels}, {h}x{w} pixels"
