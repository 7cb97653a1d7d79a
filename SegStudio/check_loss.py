"""check_loss examines a loss: what is wrong with it, the smallest example, and why it matters.

    report = SegStudio.SemanticSegmentation.check_loss(MyDice)
    python -m SegStudio check-loss my_losses.py:MyDice

First it finds out how the loss is meant to be used (its *reading*): which outputs, masks and shapes
it takes. It does so by trying: under the right reading a perfect output is cheapest and every
mistake costs something. Then it examines the loss under its own reading.

Around it: loss_findings.py (every finding by name), loss_readings.py (the readings, and how a loss
is called), known_losses.py (definitions to compare with), grade_losses.py (files of students).
"""

import contextlib
import copy
import inspect
import itertools
import json
import math
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from SegStudio import known_losses
from SegStudio.loss_findings import FINDINGS, OBJECTION
from SegStudio.loss_readings import (
    LEVELS,
    ONE_HOT,
    PLANES,
    READINGS,
    Loss,
    Reading,
    Refused,
    describe,
    difference,
    draw_bits,
    listed,
    make_cases,
    make_loss,
    matrix,
    round_off,
    short,
    short_gradient,
)

# ---- the report ---------------------------------------------------------------------------------


@dataclass
class Finding:
    """One finding about one loss: which it is, what was seen, and the example that proves it."""

    id: str
    seen: str = ""
    example: str = ""

    @property
    def entry(self):
        return FINDINGS[self.id]

    def __str__(self):
        lines = [f"{self.entry.severity.upper()}: {self.id}", f"  {self.entry.says}"]
        if self.seen:
            lines.append(f"  Here: {self.seen}")
        if self.example:
            lines += ["  Example:", *(f"    {line}" for line in self.example.splitlines())]
        lines += [f"  Why it matters: {self.entry.matters}", f"  Read on: {self.entry.read}"]
        return "\n".join(lines)


@dataclass
class Report:
    """What check_loss found. `print(report)` shows it; `report.ok`: nothing is wrong."""

    name: str
    findings: list = field(default_factory=list)
    reading: str = ""
    recognised: str = ""
    speed: str = ""

    @property
    def objections(self):
        return [f for f in self.findings if f.entry.severity == OBJECTION]

    @property
    def remarks(self):
        return [f for f in self.findings if f.entry.severity != OBJECTION]

    @property
    def ok(self):
        return not self.objections

    def __str__(self):
        lines = [f"check_loss: {self.name}"]
        if self.reading:
            lines.append(f"It takes {self.reading}.")
        if self.recognised:
            lines.append(f"It equals: {self.recognised}.")
        if self.speed:
            lines.append(self.speed)
        parts = ["\n".join(lines), *map(str, self.objections), *map(str, self.remarks)]
        return "\n\n".join([*parts, self.verdict])

    @property
    def verdict(self):
        def count(findings, word):
            return f"{len(findings) or 'no'} {word}{'' if len(findings) == 1 else 's'}"

        start = "Nothing wrong was found" if self.ok else "Something is wrong"
        return f"{start}: {count(self.objections, 'objection')}, {count(self.remarks, 'remark')}."

    def to_json(self):
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        values = json.loads(text)
        return cls(**{**values, "findings": [Finding(**f) for f in values["findings"]]})


# ---- the examination ----------------------------------------------------------------------------

SIZES = ((4, 4), (16, 16), (64, 64))
BATCHES = ((4, 5), (4, 1), (8, 5), (4, 3), (4, 2), (1, 5), (1, 1), (8, 1), (16, 5), (2, 2))


def check_loss(loss: Any) -> Report:
    """Examine a loss: a module, a function, a class of losses, or a function that makes one.

    Takes a few seconds. The loss runs in this process; `python -m SegStudio check-loss` runs a
    file in a process of its own, with limits.

    Returns: a Report with .objections, .remarks, .recognised and .ok; print it to read it.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    kept = torch.get_rng_state()
    try:
        return Examination(loss, name).run()
    finally:
        torch.set_rng_state(kept)


class Examination:
    """One loss, examined. Each method named check_... adds to self.found."""

    def __init__(self, loss, name):
        self.report = Report(name)
        self.given = loss
        self.found = {}

    def run(self):
        try:
            self.loss = Loss(make_loss(self.given))
            if self.remembers_outside():
                return self.finish()
            self.choose()
        except Refused as error:
            self.add_refusal(str(error))
            return self.finish()
        self.report.reading = str(self.reading)
        for check in (
            self.check_form, self.check_repetition, self.check_inputs, self.check_dependence,
            self.check_finite, self.check_gradient, self.check_order_of_cost,
            self.check_out_of_range, self.check_scale, self.check_parts, self.check_pixels,
            self.check_classes, self.check_levels, self.check_batches, self.check_interactions,
            self.check_softmax, self.check_formula, self.check_perfect, self.check_empty_channels,
            self.check_sizes, self.check_precision, self.check_reading, self.check_speed,
        ):  # fmt: skip
            try:
                check()
            except Refused as error:
                self.add_refusal(str(error))
        return self.finish()

    def add(self, name, seen="", example=""):
        self.found.setdefault(name, Finding(name, seen, example))

    def add_refusal(self, message):
        for name, words in (
            ("device-fixed", ("CUDA", "NVIDIA", "device ordinal", "MPS")),
            ("needs-too-much-memory", ("MemoryError", "allocate memory")),
            ("exits", ("SystemExit",)),
            ("raises", ("",)),
        ):
            if any(word in message for word in words):
                return self.add(name, message)
        return None

    def finish(self):
        hidden = {name for finding in self.found for name in FINDINGS[finding].replaces}
        shown = [f for name, f in self.found.items() if name not in hidden]
        order = list(FINDINGS)
        self.report.findings = sorted(shown, key=lambda f: order.index(f.id))
        return self.report

    # ---- calls ----

    def value(self, q, bits, sharpness=6.0, reading=None):
        reading = reading or self.reading
        return self.loss.value(reading.output(q, sharpness), reading.mask(bits), reading.swapped)

    def gradient(self, q, bits, sharpness=6.0):
        reading = self.reading
        return self.loss.gradient(reading.output(q, sharpness), reading.mask(bits), reading.swapped)

    def batch(self, seed=0, shape=None, low=0.2, high=0.8):
        """A random prediction and mask."""
        shape = shape or self.shape
        bits = draw_bits(shape, self.reading, seed)
        generator = torch.Generator().manual_seed(seed + 100)
        return low + (high - low) * torch.rand(shape, generator=generator), bits

    def fits(self, shape):
        """True if the loss takes tensors of this shape."""
        q, bits = self.batch(shape=shape)
        try:
            self.value(q, bits)
        except Refused:
            return False
        return True

    # ---- which reading ----

    def choose(self):
        """Find a shape that the loss takes and the reading under which it does best."""
        refusals, scores = [], {}
        self.sign = 1
        for (h, w), (n, c) in itertools.product(SIZES, BATCHES):
            self.shape = (n, c, h, w)
            softmax = self.has_softmax()
            for reading in ONE_HOT[:3] if softmax else READINGS:
                try:
                    scores[reading] = self.rate(reading)
                except Refused as error:
                    refusals.append(str(error))
                if scores.get(reading, (0,))[0] == 1.0:
                    break
            if any(r.layout == "planes" or score[0] == 1.0 for r, score in scores.items()):
                break
            scores = {}  # only masks of class numbers, and badly: the shapes may fit by chance
        else:
            raise Refused(max(set(refusals), key=refusals.count) if refusals else "no reading fits")

        def rank(reading):
            """The score; planes come first, unless a loss is right without them."""
            score = scores[reading][0]
            if reading.layout == "planes":
                return score
            if score < 1:
                return score - 10
            return score if softmax or reading.layout != "one-hot" else score - 0.4

        self.reading = max(scores, key=rank)
        score = scores[self.reading][0]
        if self.reading.kind == "probabilities" or score < 1:
            score = self.choose_despite(scores, score)
        if score < 1 or self.reading == ONE_HOT[-1]:
            self.choose_swapped(score if score < 1 else 0.6)
        if score < 0.6 and not self.reading.swapped:
            plain = [r for r in scores if r.kind == "values" or r.masks == "1"] or [self.reading]
            backwards = max(plain, key=lambda reading: scores.get(reading, (0, 0))[1])
            if scores[backwards][1] > 0.9:
                self.reading, self.sign = backwards, -1
        if score < 0.5 and self.sign > 0 and not self.reading.swapped:
            self.choose_parts()
        lost = score < (0.3 if self.reading.kind == "logits" else 0.9)
        if lost and self.sign > 0 and self.says_logits() and not self.reading.swapped:
            self.reading = Reading("logits") if Reading("logits") in scores else self.reading
        self.widen()

    def choose_despite(self, scores, score):
        """Correct the reading where a mistake makes a wrong one look best. Returns the score."""
        for reading in PLANES[:2]:  # right up to the mask's value, constant outside
            if reading in scores and scores[reading][2] == 1.0:
                self.reading = reading
                return 1.0
        whole = self.shape
        n, c, h, w = whole
        if self.says_logits() and self.reading.kind == "probabilities":  # each plane alone is right
            self.shape = (1, 1, h, w)
            with contextlib.suppress(Refused):
                if self.rate(Reading("logits"))[0] == 1.0:
                    self.reading = Reading("logits")
            self.shape = whole
        return score

    def says_logits(self):
        return any(word in self.source() for word in ("sigmoid", "with_logits"))

    def has_softmax(self):
        """Does the same number, added to all channels of a pixel, change nothing?"""
        n, c, h, w = self.shape
        bits = draw_bits(self.shape, ONE_HOT[2])
        generator = torch.Generator().manual_seed(2)
        output = torch.randn(self.shape, generator=generator)
        shift = torch.rand(n, 1, h, w, generator=generator)
        try:
            values = [
                self.loss.value(x, bits.float()) for x in (output, output + shift, output.flip(0))
            ]
        except Refused:
            return False
        same = not difference(values[0], values[1], 1e-5)
        return c > 1 and same and bool(difference(values[0], values[2], 1e-5))

    def choose_parts(self):
        """Is the loss right for one channel, or one image, and wrong for several?"""
        whole = self.shape
        n, c, h, w = whole
        for shape, name, part in (
            ((n, 1, h, w), "channels-mixed", "channel"),
            ((1, c, h, w), "images-mixed", "image"),
        ):
            self.shape = shape
            for reading in PLANES:
                with contextlib.suppress(Refused):
                    if shape != whole and all(self.rate(reading, k)[0] == 1.0 for k in range(3)):
                        self.reading, self.shape = reading, whole
                        return self.add(name, f"with one {part} every mistake costs something; "
                                        f"for {describe(whole)} mistakes pay")  # fmt: skip
        self.shape = whole
        return None

    def choose_swapped(self, score):
        """Does the loss do much better with the mask as its first argument?"""
        q, bits = self.batch()
        if self.value(q, bits) == self.value(q + 1e-4, bits):
            return  # it takes steps: a threshold on the output, harmless on the mask
        swapped = {}
        for reading in PLANES:
            with contextlib.suppress(Refused):
                reading = replace(reading, swapped=True)
                swapped[reading] = self.rate(reading)[0]
        best = max(swapped, key=swapped.get, default=None)
        if best and swapped[best] > 0.9 and swapped[best] > score + 0.3:
            self.reading = best
            self.add("argument-order", "loss(output, mask) does not punish every mistake, "
                     "loss(mask, output) does")  # fmt: skip

    def widen(self):
        """Masks of 0 and 1 suit the loss. Does it take others as well, by mask > 0?"""
        wide = replace(self.reading, masks="homework")
        if self.reading.kind != "values" and self.reading.layout == "planes":
            q, bits = self.batch()
            with contextlib.suppress(Refused):
                if not difference(self.value(q, bits), self.value(q, bits, reading=wide)):
                    self.reading = wide

    def rate(self, reading, seed=0):
        """How well the loss behaves under a reading, and how well its negative does.

        1: everything worse costs more. 0: nothing costs anything. Below: mistakes pay.
        The third number is 1 if this holds for all outputs between 0 and the mask values, and
        outputs beyond them cost nothing.
        """
        cases = make_cases(self.shape, reading, seed)
        known, signs = {}, []
        for case in cases:
            values = []
            for q, sharpness in zip((case.better, case.worse), case.sharpness, strict=True):
                key = (q.numpy().tobytes(), sharpness)
                if key not in known:
                    known[key] = self.value(q, case.bits, sharpness, reading)
                values.append(known[key])
            signs.append(case.compare(*values))
        strict = sum(case.strict for case in cases)
        up, down = signs.count(1), signs.count(-1)
        perfect, inverted = (
            known[q.numpy().tobytes(), 6.0] for q in (cases[0].better, cases[0].worse)
        )
        penalty = 5 if math.isinf(perfect) else 0
        if reading.kind != "values" and reading.masks != "1":
            # A loss that does not scale the masks itself is far from 0 with masks of 255.
            penalty += 0.5 if abs(perfect) > 0.2 * abs(inverted - perfect) else 0
        inside = [sign for sign, case in zip(signs, cases, strict=True) if not case.out_of_range]
        outside = [sign for sign, case in zip(signs, cases, strict=True) if case.out_of_range]
        free = -penalty if all(s == 1 for s in inside) and min(outside, default=-1) == 0 else -9
        return (
            (up - 3 * down) / strict - penalty,
            (down - 3 * up) / strict - penalty,
            free + 1,  # 1 if all is well but outputs beyond the masks' values cost nothing
        )

    # ---- what it returns and does ----

    def check_form(self):
        q, bits = self.batch()
        result, _ = self.loss.result(
            self.reading.output(q), self.reading.mask(bits), self.reading.swapped
        )
        self.loss.seen_forms.clear()
        self.loss.scalar(result)
        for form in self.loss.seen_forms - {"number"}:
            self.add("not-a-scalar", f"for {describe(self.shape)} it returns {form}")
        if "number" in self.loss.seen_forms:
            self.add("returns-a-number", f"it returns {short(result)} of type "
                     f"{type(result).__name__}")  # fmt: skip

    def remembers_outside(self):
        """Batches A, A, B, A, each with a fresh copy of the loss: is there a global memory?"""
        self.sign = 1
        for reading, (h, w) in itertools.product((PLANES[0], Reading("logits")), SIZES):
            self.shape, self.reading = (4, 5, h, w), reading
            with contextlib.suppress(Refused):
                first, again, _, last = (self.value(*self.batch(seed)) for seed in (0, 0, 1, 0))
                if first == again and difference(first, last, 1e-5):
                    self.add("remembers", f"the same call gives {short(first)}, and {short(last)} "
                             "after a call with another batch. It is kept outside the object, so "
                             "nothing else was examined")  # fmt: skip
                return "remembers" in self.found
        return False

    def check_repetition(self):
        q, bits = self.batch()
        output, mask = self.reading.output(q), self.reading.mask(bits)

        def values(same_seed):
            loss, found = self.loss.fresh(), []
            for k in range(3):
                result, _ = self.loss.result(output, mask, self.reading.swapped, loss)
                found.append(float(self.loss.scalar(result).detach()))
                if not same_seed:
                    found.append(self.unseeded(loss, output, mask, k))
            return found

        steady = values(True)
        if len({round_off(v) for v in steady}) > 1:
            self.add("remembers", "the same call gives " + ", then ".join(map(short, steady)))
            return
        mixed = values(False)
        if len({round_off(v) for v in mixed}) > 1:
            self.add("not-deterministic", "the same call gives "
                     + ", then ".join(map(short, mixed[1:4])))  # fmt: skip
            return
        self.check_training_steps()

    def check_training_steps(self):
        """Different batches in turn with backward() after each, as in training."""
        loss = self.loss.fresh()
        for step in range(3):
            q, bits = self.batch(step)
            output, mask = self.reading.output(q), self.reading.mask(bits)
            result, _ = self.loss.result(output, mask, self.reading.swapped, loss)
            result = self.loss.scalar(result)
            value, alone = float(result.detach()), self.value(q, bits)
            if not result.requires_grad:
                return  # check_gradient says so
            try:
                result.backward()
            except Exception as error:
                if step:
                    self.add("remembers", f"backward() fails at call {step + 1}: "
                             + str(error).split(". ")[0].splitlines()[0])  # fmt: skip
                return  # at the first call: check_gradient says so
            if difference(value, alone, 1e-5):
                self.add("remembers", f"batch {step + 1} costs {short(alone)} alone, "
                         f"{short(value)} after the batches before it")  # fmt: skip
                return

    def unseeded(self, loss, output, mask, seed):
        torch.default_generator.manual_seed(seed + 1)
        arguments = (output.clone().requires_grad_() * 1, mask.clone())
        result = loss(*(arguments[::-1] if self.reading.swapped else arguments))
        return float(self.loss.scalar(result).detach())

    def check_inputs(self):
        q, bits = self.batch()
        before = (self.reading.output(q), self.reading.mask(bits))
        leaf = before[0].clone().requires_grad_()
        after = (leaf * 1, before[1].clone())
        loss = self.loss.fresh()
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss(*(after[::-1] if self.reading.swapped else after))
        for name, old, new in zip(("output", "mask"), before, after, strict=True):
            if old.shape != new.shape or not torch.equal(old, new.detach()):
                self.add("inputs-changed", f"the {name} is another one after the call",
                         f"{name} before: largest value {short(old.max())}\n"
                         f"{name} after:  largest value {short(new.max())}")  # fmt: skip

    def check_dependence(self):
        q, bits = self.batch()
        masks = [draw_bits(self.shape, self.reading, seed) for seed in range(3)]
        values = [self.value(q, mask) for mask in masks]
        others = [self.value(bits.float(), mask) for mask in masks]
        if not any(difference(row[0], v) for row in (values, others) for v in row[1:]):
            self.add("ignores-the-mask", f"three random masks cost {short(values[0])} each")
        values = [self.value(self.batch(seed)[0], bits) for seed in range(3)]
        values += [self.value(bits.float(), bits), self.value(1 - bits.float(), bits)]
        if not any(difference(values[0], v) for v in values[1:]):
            self.add("ignores-the-output", f"five different outputs cost {short(values[0])} each")

    # ---- finite ----

    def check_finite(self):
        reading, (q, bits) = self.reading, self.batch()
        sharp = 100.0
        ones, zeros = torch.ones(self.shape), torch.zeros(self.shape)
        empty, full = bits & False, bits | True
        if reading.layout != "planes":  # one class per pixel: all pixels of class 0
            empty[:, 0] = True
            full, ones, zeros = empty, empty.float(), empty.float()
        cases = [
            ("random output", q, bits, 6.0),
            ("random output, empty mask", q, empty, 6.0),
            ("random output, full mask", q, full, 6.0),
            ("random output, mostly below 0", 3 * q - 2, bits, 6.0),
            ("perfect output", bits.float(), bits, sharp),
            ("everything wrong", 1 - bits.float(), bits, sharp),
            ("empty output, empty mask", zeros, empty, sharp),
            ("full output, full mask", ones, full, sharp),
            ("full output, empty mask", ones, empty, sharp),
        ]
        if reading.kind == "probabilities":
            cases = [case for case in cases if "below 0" not in case[0]]
        bad, bad_gradient = {}, {}
        for name, prediction, truth, sharpness in cases:
            value = self.value(prediction, truth, sharpness)
            example = f"{name}: the loss is {short(value)}"
            if value != value or abs(value) == float("inf"):
                bad[name] = example
                continue
            try:
                gradient = self.gradient(prediction, truth, sharpness)
            except Refused:
                continue  # check_gradient says so
            if gradient is not None and not torch.isfinite(gradient).all():
                bad_gradient[name] = f"{example}, its gradient {short_gradient(gradient)}"
        if bad:
            example = "\n".join(bad.values())
            if set(bad) <= {"empty output, empty mask", "perfect output"} and (
                "empty output, empty mask" in bad
            ):
                seen = next(iter(bad.values()))
                self.add("missing-smoothing", seen, self.tiny_empty() or example)
            elif any(name.startswith("random") for name in bad):
                self.add("not-finite", next(iter(bad.values())), example)
            elif reading.kind == "logits" and math.isfinite(
                self.value(bits.float(), bits, 20.0) + self.value(1 - bits.float(), bits, 20.0)
            ):
                self.add("overflow", "outputs of 20 and -20 do no harm, but at 100 and -100:",
                         example)  # fmt: skip
            elif "everything wrong" in bad or "perfect output" in bad:
                self.add("log-of-zero", next(iter(bad.values())), self.tiny_confident() or example)
            else:
                self.add("not-finite", next(iter(bad.values())), example)
        if bad_gradient:
            usual = [name for name in bad_gradient if name.startswith("random")]
            which = "gradient-not-finite" if usual else "gradient-at-perfect"
            self.add(which, bad_gradient[usual[0] if usual else next(iter(bad_gradient))])
        if not bad:
            self.check_empty_plane()
            self.check_empty_batch(q, empty)

    def check_empty_batch(self, q, empty):
        """A loss that returns a constant for masks without an object has no gradient there."""
        bits = draw_bits(self.shape, self.reading)
        with contextlib.suppress(Refused):
            if self.gradient(q, empty) is None and self.gradient(q, bits) is not None:
                self.add("no-gradient-if-empty", f"a batch of {len(q)} images without an object: "
                         "the result is a constant")  # fmt: skip

    def check_empty_plane(self):
        """One plane is empty and its output as well: the gradient of the batch must be finite."""
        n, c, h, w = self.shape
        if self.reading.layout != "planes" or n * c == 1:
            return
        for plane, where in (((0, -1), "of one image"), ((slice(None), -1), "of all images")):
            q, bits = self.batch()
            bits = bits.clone()
            q[plane], bits[plane] = 0.0, False
            if c == 1 and plane[0] != 0:
                continue
            try:
                gradient = self.gradient(q, bits, 10.0)
            except Refused:
                continue
            if gradient is not None and not torch.isfinite(gradient).all():
                output = "0" if self.reading.kind != "logits" else "-10"
                self.add("gradient-not-finite", f"the last channel {where} is empty, and the "
                         f"output there is {output} everywhere: the gradient "
                         f"{short_gradient(gradient)}")  # fmt: skip
                return

    def tiny_empty(self):
        shape = self.tiny_shape()
        if shape is None or self.reading.layout != "planes":
            return ""
        bits = torch.zeros(shape, dtype=torch.bool)
        return self.show(bits, [("output", bits.float(), 100.0)])

    def tiny_confident(self):
        shape = self.tiny_shape()
        if shape is None or self.reading.layout != "planes":
            return ""
        bits = torch.zeros(shape, dtype=torch.bool)
        bits[0, 0, 0, 0] = True
        right, wrong = bits.float(), 1 - bits.float()
        return self.show(bits, [("output", right, 100.0), ("output", wrong, 100.0)])

    # ---- gradient ----

    def check_gradient(self):
        self.has_gradient = False
        if "returns-a-number" in self.found:
            self.check_steps()
            return
        q, bits = self.batch()
        try:
            gradient = self.gradient(q, bits)
        except Refused as error:
            if self.loss.called_backward:
                self.add("calls-backward", str(error))
            else:
                self.add("backward-fails", str(error))
            return
        if self.loss.called_backward:
            self.add("calls-backward", "after loss(output, mask) the output has a gradient already")
        if gradient is None or not gradient.abs().sum() > 0:
            self.check_steps()
            if "hard-threshold" not in self.found and gradient is None:
                self.add("detached", "loss.backward() leaves output.grad at None")
            elif "hard-threshold" not in self.found and torch.isfinite(gradient).all():
                self.add("detached", "the gradient is zero at every pixel of a random output")
            return
        self.has_gradient = True
        if torch.isfinite(gradient).all():
            self.compare_with_slope(q, bits, gradient)

    def check_steps(self):
        """Does the value change in steps only?"""
        q, bits = self.batch()
        generator = torch.Generator().manual_seed(5)
        near = q + 1e-4 * torch.rand(self.shape, generator=generator)
        one, two = self.value(q, bits), self.value(near, bits)
        others = (1 - q, bits.float(), 1 - bits.float(), q - 0.5)
        if one == two and any(difference(one, self.value(far, bits)) for far in others):
            example = ""
            shape = self.tiny_shape()
            if shape is not None and self.reading.layout == "planes":
                tiny = torch.zeros(shape, dtype=torch.bool)
                tiny[0, 0, 0, 0] = True
                example = self.show(
                    tiny, [("output", 0.1 + 0.6 * tiny, 6.0), ("output", 0.3 + 0.6 * tiny, 6.0)]
                )
            self.add("hard-threshold", "a small change of every pixel does not change the value",
                     example)  # fmt: skip

    def compare_with_slope(self, q, bits, gradient):
        reading = self.reading
        output, mask = reading.output(q).double(), reading.mask(bits)
        mask = mask.double() if mask.is_floating_point() else mask
        scale = float(output.abs().max())
        try:
            gradient = self.loss.gradient(output, mask, reading.swapped)
            exact = gradient.dtype == torch.float64
            one = self.loss.value(output, mask, reading.swapped)
            two = self.loss.value(output * (1 + 1e-9), mask, reading.swapped)
            exact = exact and one != two
        except Refused:
            exact = False
        if not exact:
            output, mask = reading.output(q), reading.mask(bits)
            gradient = self.loss.gradient(output, mask, reading.swapped)
        if gradient is None or not torch.isfinite(gradient).all():
            return
        step = scale * (1e-5 if exact else 2e-2)
        generator = torch.Generator().manual_seed(9)
        flat, places = gradient.flatten(), torch.randperm(q.numel(), generator=generator)[:8]

        def slope_at(place, step):
            sides = []
            for side in (1, -1):
                moved = output.clone()
                moved.view(-1)[place] += side * step
                sides.append(self.loss.value(moved, mask, reading.swapped))
            return (sides[0] - sides[1]) / (2 * step)

        rows = [(place, float(flat[place]), slope_at(place, step)) for place in places.tolist()]
        largest = max(abs(slope) for *_, slope in rows)
        noise = 0 if exact else 4e-7 * abs(self.value(q, bits)) / step
        allowed = 0.02 if exact else 0.1

        def differs(gradient, slope):
            return abs(gradient - slope) > allowed * max(abs(slope), 0.05 * largest) + 3 * noise

        wrong = [row for row in rows if differs(*row[1:])]
        if exact:  # a part in float32 makes small steps inexact
            wrong = [row for row in wrong if differs(row[1], slope_at(row[0], 100 * step))]
            allowed = 0.1
            wrong = [row for row in wrong if differs(row[1], slope_at(row[0], 1000 * step))]
        if len(wrong) < 3 or largest == 0:
            return
        place, is_now, slope = wrong[0]
        seen = f"at one pixel the value's slope is {short(slope)}, the gradient {short(is_now)}"
        same_sign = all(a * b >= 0 for _, a, b in rows)
        if same_sign and ".detach()" in self.source() and not self.reaches_further(output, mask):
            self.add("weight-detached", seen)
        else:
            self.add("gradient-wrong", seen)

    def reaches_further(self, output, mask):
        """Does a pixel change the slope at another pixel? Then a sum is detached, not a factor."""
        step = 0.05 * float(output.abs().max())

        def slope(at):
            sides = []
            for side in (1, -1):
                moved = at.clone()
                moved.view(-1)[0] += side * step
                sides.append(self.loss.value(moved, mask, self.reading.swapped))
            return sides[0] - sides[1]

        other = output.clone()
        other.view(-1)[1:] = other.view(-1)[1:].flip(0)
        first, second = slope(output), slope(other)
        return abs(first - second) > 1e-3 * max(abs(first), abs(second))

    def source(self):
        loss = self.loss.original
        for thing in (loss, getattr(loss, "forward", None), type(loss)):
            try:
                return inspect.getsource(thing)
            except (TypeError, OSError):
                continue
        return ""

    # ---- what costs more ----

    def check_order_of_cost(self):
        """Perfect is cheapest; what is worse never costs less; no kind of mistake is free."""
        planes = self.reading.layout == "planes"
        names = {
            "miss": ("misses-rewarded", "misses-ignored"),
            "false positive": ("false-positives-rewarded", "false-positives-ignored"),
            "deeper miss": ("confident-mistakes-cheap", None),
            "deeper false positive": ("confident-mistakes-cheap", None),
            "everything": ("false-positives-rewarded", "false-positives-ignored"),
            "nothing": ("misses-rewarded", "misses-ignored"),
            "moved": ("perfect-not-minimum", "position-ignored"),
            "negated": ("perfect-not-minimum", "sign-ignored"),
        }
        shapes = [self.shape, self.shape]
        if self.tiny_shape() is not None:
            shapes = [self.tiny_shape()] * 3 + shapes
        self.check_hump()
        seen = {}
        for seed, shape in enumerate(shapes):
            for case in make_cases(shape, self.reading, seed):
                values = [
                    self.value(q, case.bits, sharpness)
                    for q, sharpness in zip((case.better, case.worse), case.sharpness, strict=True)
                ]
                seen.setdefault(case.name, []).append((case.compare(*values), case))
        backwards = [sign for name, rows in seen.items() for sign, case in rows if case.strict]
        if self.sign < 0:
            if "confident-mistakes-cheap" in self.found:
                return
            case = next(case for sign, case in seen["inverted"])
            self.add("higher-is-better", f"{backwards.count(-1)} of {len(backwards)} mistakes "
                     "cost less than the better output", self.show_case(case))  # fmt: skip
            return
        for name, rows in seen.items():
            less, free = names.get(name, ("perfect-not-minimum", None))
            if not planes and name in ("miss", "false positive"):
                less, free = "perfect-not-minimum", None
            cheaper = [case for sign, case in rows if sign < 0]
            if name == "deeper miss" and "misses-rewarded" in self.found:
                continue
            if name == "deeper false positive" and "false-positives-rewarded" in self.found:
                continue
            if cheaper:
                self.add(less, f"{name}: cheaper in {len(cheaper)} of {len(rows)} trials",
                         self.show_case(cheaper[0]))  # fmt: skip
            elif free and all(self.is_free(case) for _, case in rows):
                self.add(free, f"{name}: costs nothing in {len(rows)} trials",
                         self.show_case(rows[0][1]))  # fmt: skip
        if self.reading.kind == "values":
            self.check_slope_at_perfect()

    def is_free(self, case):
        """Does the worse prediction cost as much as the better one, as far as numbers tell?"""
        perfect = case.bits.float()
        better, worse, inverted = (
            self.value(q, case.bits, 20.0) for q in (case.better, case.worse, 1 - perfect)
        )
        if not all(map(math.isfinite, (better, worse, inverted))):
            return False
        return abs(better - worse) <= 1e-5 * max(abs(inverted - better), abs(better))

    def check_hump(self):
        """Half-right costs more than entirely wrong: the more wrong, the cheaper."""
        bits = draw_bits(self.shape, self.reading)
        perfect = bits.float()
        right, unsure, wrong = (
            self.value(q, bits) for q in (perfect, torch.full_like(perfect, 0.5), 1 - perfect)
        )
        if difference(right, unsure) > 0 and difference(unsure, wrong) < 0:
            tiny = self.tiny_shape()
            example = ""
            if tiny is not None and self.reading.layout == "planes":
                bits = torch.zeros(tiny, dtype=torch.bool)
                bits[0, 0, 0, 0] = True
                levels = [(f"q = {short(v)}", torch.where(bits, v, 0.0), 6.0) for v in (1, 0.5, 0)]
                example = self.show(bits, [("output", q, s) for _, q, s in levels])
            self.add("confident-mistakes-cheap", f"all pixels right: {short(right)}, undecided: "
                     f"{short(unsure)}, all wrong: {short(wrong)}", example)  # fmt: skip

    def check_slope_at_perfect(self):
        """From the perfect output, does a small step along the gradient lower the loss?"""
        bits = draw_bits(self.shape, self.reading)
        perfect = bits.float()
        try:
            gradient = self.gradient(perfect, bits)
        except Refused:
            return
        if gradient is None or not torch.isfinite(gradient).all() or not gradient.abs().max() > 0:
            return
        output = self.reading.output(perfect)
        step = 0.02 * output.abs().max() * gradient / gradient.abs().max()
        before = self.value(perfect, bits)
        after = self.loss.value(output - step, self.reading.mask(bits), self.reading.swapped)
        if after < before - 1e-4 * abs(before) - 1e-6:
            self.add("perfect-not-minimum", f"the perfect output costs {short(before)}; a small "
                     f"step along the gradient lowers this to {short(after)}")  # fmt: skip

    def check_out_of_range(self):
        """A wrong pixel needs a gradient, also with an output below 0 or above the mask values."""
        planes = self.reading.layout == "planes"
        if not self.has_gradient or not planes or self.reading.kind == "probabilities":
            return
        levels = self.reading.levels(self.shape[1])
        lowest, highest = -0.5 * levels, 255.0 + levels
        if self.reading.kind == "logits":
            lowest, highest = torch.full_like(levels, -6.0), torch.full_like(levels, 6.0)
        elif self.reading.masks == "1":
            highest = torch.full_like(levels, 3.0)
        flat = []
        for object_pixel, far, name in (
            (True, lowest, "an object"),
            (False, highest, "background"),
        ):
            near = self.reading.output(torch.full(self.shape, 0.4 if object_pixel else 0.6))
            inside, outside = [], []
            for seed in range(2):
                _, bits = self.batch(seed)
                first = bits == object_pixel
                first &= first.flatten(2).cumsum(2).view(self.shape) == 1  # one pixel per plane
                first &= bits.flatten(2).any(2)[:, :, None, None]
                right = self.reading.output(0.2 + 0.6 * bits.float())
                for value, gradients in ((near, inside), (far.expand(self.shape), outside)):
                    output = torch.where(first, value, right)
                    gradient = self.loss.gradient(
                        output, self.reading.mask(bits), self.reading.swapped
                    )
                    if gradient is None or not torch.isfinite(gradient).all():
                        return
                    gradients.append(gradient[first])
            if torch.cat(inside).any() and not torch.cat(outside).any():
                flat.append(f"where a pixel of {name} has an output of {short(far[0])} the "
                            "gradient is 0")  # fmt: skip
        if flat:
            self.add("flat-out-of-range", "; ".join(flat))

    def check_scale(self):
        """Does an output of twice or half the size cost the same?"""
        planes = self.reading.layout == "planes"
        if not self.has_gradient or not planes or self.reading.kind == "probabilities":
            return
        values = []
        for seed in range(2):
            q, bits = self.batch(seed)
            output, mask = self.reading.output(q), self.reading.mask(bits)
            values.append([self.loss.value(output * f, mask, self.reading.swapped)
                           for f in (1, 2, 0.5)])  # fmt: skip
        if not any(difference(row[0], v, 1e-4) for row in values for v in row[1:]):
            self.add("scale-ignored", f"a random output costs {short(values[0][0])}, twice the "
                     f"output {short(values[0][1])}, half of it {short(values[0][2])}")  # fmt: skip

    # ---- channels and images ----

    def check_pixels(self):
        """Are there pixels of which no plane of any image has a gradient?"""
        if not self.has_gradient:
            return
        seen = torch.zeros(self.shape[2:], dtype=torch.bool)
        for seed in range(6):
            try:
                gradient = self.gradient(*self.batch(seed))
            except Refused:
                return
            seen |= (gradient != 0).flatten(0, 1).any(0)
            if seen.all():
                return
        _, bits = self.batch()
        perfect = bits.float()
        for y, x in (~seen).nonzero().tolist()[:8]:  # not only rarely among the hardest pixels?
            wrong = perfect.clone()
            wrong[:, :, y, x] = perfect[:, :, y, x].roll(1, dims=1)
            if self.shape[1] == 1 or self.reading.layout == "planes":
                wrong[:, :, y, x] = 1 - perfect[:, :, y, x]
            if difference(self.value(perfect, bits, 20.0), self.value(wrong, bits, 20.0)):
                return
        places = [f"({y}, {x})" for y, x in (~seen).nonzero().tolist()]
        self.add("pixels-ignored", f"{len(places)} of {seen.numel()} pixels have no gradient in "
                 f"any plane: {', '.join(places[:6])}{', ...' * (len(places) > 6)}")  # fmt: skip

    def check_classes(self):
        """The right objects in the wrong channels must cost something."""
        if self.reading.layout != "planes" or self.shape[1] == 1:
            return
        rows = []
        for seed in range(2):
            bits = draw_bits(self.shape, self.reading, seed)
            right, wrong = (self.reading.output(q) for q in (bits.float(), 1 - bits.float()))
            outputs = (right, right.roll(1, dims=1), wrong)
            rows.append([self.loss.value(x, self.reading.mask(bits), self.reading.swapped)
                         for x in outputs])  # fmt: skip
        if all(abs(row[1] - row[0]) <= 1e-5 * (row[2] - row[0]) for row in rows):
            self.add("classes-confused", f"a perfect output costs {short(rows[0][0])}; the same "
                     f"objects, each in the next channel, {short(rows[0][1])}; an entirely wrong "
                     f"output {short(rows[0][2])}")  # fmt: skip

    def check_levels(self):
        """With the masks of the shapes, 50 to 250: do the masks of some classes count as empty?"""
        n, c, h, w = shape = (self.shape[0], 5, *self.shape[2:])
        if self.reading.layout != "planes" or not self.fits(shape):
            return
        q, bits = self.batch(shape=shape)
        homework = LEVELS["homework"]

        def value(channel, level):
            alone = torch.zeros(shape)  # elsewhere mask and output are empty
            alone[:, channel] = (q * bits)[:, channel]
            mask = torch.zeros(shape)
            mask[:, channel] = level * bits[:, channel]
            return self.loss.value(self.reading.output(alone), mask, self.reading.swapped)

        try:
            lost, kept = [], []
            for k, level in enumerate(homework):
                empty = value(k, 0.0)
                if difference(empty, value(k, level), 1e-7):
                    kept.append(level)
                elif any(difference(empty, value(k, other), 1e-7) for other in (255.0, *homework)):
                    lost.append(level)
        except Refused:
            return
        if lost and kept and "coco" not in self.words():
            self.add("classes-lost", f"a mask of {listed(map(short, lost))} costs as much as an "
                     f"empty one, a mask of {listed(map(short, kept))} does not")  # fmt: skip

    def words(self):
        """The name, the documentation and the code of the loss, as one text."""
        loss = self.loss.original
        things = (self.given, loss, type(loss))
        found = [self.report.name, self.source()]
        for thing in things:
            found.append(str(getattr(thing, "__doc__", "") or ""))
            with contextlib.suppress(TypeError, OSError):
                found.append(inspect.getsource(thing))
        return "\n".join(found).lower()

    def unused(self, shape, axis):
        """The channels (axis 1) or images (axis 0) that do not change the value."""
        q, bits = self.batch(shape=shape)
        base = self.value(q, bits)
        found = []
        for k in range(shape[axis]):
            other = q.clone()
            part = other.select(axis, k)
            part.copy_(1 - part)
            perfect = q.clone()
            perfect.select(axis, k).copy_(bits.select(axis, k))
            values = (self.value(other, bits), self.value(perfect, bits))
            if all(abs(v - base) <= 1e-7 * abs(base) for v in values):
                found.append(k)
        return found

    def check_parts(self):
        n, c, h, w = self.shape
        unused = self.unused(self.shape, 1)
        if unused and len(unused) < c:
            self.name_unused_channels(unused)
        unused = self.unused(self.shape, 0)
        if unused and len(unused) < n:
            seen = f"images {listed(unused)} of 0 to {n - 1} do not change the value"
            if unused == list(range(c, n)) and (c < 2 or self.same_pattern(axis=0)):
                self.add("image-loop-over-channels", f"{seen}; there are {c} channels")
            else:
                self.add("image-ignored", seen)

    def same_pattern(self, axis):
        """Is it always the channels beyond N (the images beyond C) that are not used?"""
        n, c, h, w = self.shape
        for k in (2, 3, 5, 1):
            other = (k, c, h, w) if axis else (n, k, h, w)
            if k != (n if axis else c) and self.fits(other):
                unused = self.unused(other, axis)
                return unused == list(range(k, c if axis else n))
        return True  # it runs for one size only

    def name_unused_channels(self, unused):
        n, c, h, w = self.shape
        seen = f"channels {listed(unused)} of 0 to {c - 1} do not change the value"
        example = ""
        tiny = (n, c, 2, 2)
        if self.fits(tiny) and self.has_gradient:
            q, bits = self.batch(shape=tiny)
            with contextlib.suppress(Refused):
                gradient = self.gradient(q, bits)
                norms = ", ".join(short(g.norm()) for g in gradient.transpose(0, 1))
                example = (
                    f"random output, {describe(tiny)}\n"
                    f"norm of the gradient at each channel: {norms}"
                )
        if unused == list(range(n, c)) and self.same_pattern(axis=1):
            self.add("channel-loop-over-batch", f"{seen}; the batch has {n} images", example)
        elif unused == [0]:
            self.add("background-left-out", seen, example)
        else:
            self.add("channel-ignored", seen, example)

    def check_batches(self):
        n, c, h, w = self.shape
        for k in (1, 2, 3):
            if k >= n:
                continue
            q, bits = self.batch(shape=(k, c, h, w))
            try:
                self.value(q, bits)
            except Refused as error:
                self.add("partial-batch", f"a batch of {k} instead of {n}: {error}")
                break
        q, bits = self.batch()
        order = torch.roll(torch.arange(n), 1)
        one, two = self.value(q, bits), self.value(q[order], bits[order])
        if n > 1 and abs(one - two) > 1e-4 * max(abs(one), abs(two)):
            self.add("batch-order", f"{short(one)}, and {short(two)} after the last image is moved "
                     "to the front")  # fmt: skip
        if not (self.fits((1, c, h, w)) and self.fits((2, c, h, w))):
            return

        def range_of(q, bits):
            return self.value(1 - bits.float(), bits) - self.value(bits.float(), bits)

        image, truth = q[:1], bits[:1]
        single = range_of(image, truth)
        double = range_of(image.repeat(2, 1, 1, 1), truth.repeat(2, 1, 1, 1))
        ratio = double / single if single else 1.0
        self.sums = 1.95 < ratio < 2.05
        if self.sums:
            self.add("sums-over-the-batch", f"one image costs {short(single)}, the same image "
                     f"twice {short(double)}")  # fmt: skip
        elif ratio < 0.6:
            self.add("batch-scaling", f"one image costs {short(single)}, the same image twice "
                     f"{short(double)}")  # fmt: skip
        self.check_mixing()

    def check_mixing(self):
        """Perfect parts must be perfect together."""
        n, c, h, w = self.shape
        shape = (n, c, 16, 16) if self.fits((n, c, 16, 16)) else self.shape
        bits = draw_bits(shape, self.reading)
        if self.reading.layout == "planes":  # objects of different sizes, at least one pixel each
            generator = torch.Generator().manual_seed(3)
            share = 1 / (1 + 2 * torch.arange(n * c).view(n, c, 1, 1) % 11)
            first = (bits.flatten(2).cumsum(2) == 1).view(shape) & bits
            bits = first | bits & (torch.rand(shape, generator=generator) < share)
        perfect = bits.float()
        together = self.value(perfect, bits, 20.0)
        span = abs(self.value(1 - perfect, bits, 20.0) - together)
        parts = [self.value(perfect[k : k + 1], bits[k : k + 1], 20.0) for k in range(n)]
        alone = sum(parts) if self.sums else sum(parts) / n
        if abs(together - alone) > 0.02 * span:
            self.add("images-mixed", f"each image alone: {', '.join(map(short, parts))}; "
                     f"together: {short(together)}")  # fmt: skip
        if self.reading.layout == "planes" and self.fits((1, 1, h, w)):
            self.check_pairs(perfect, bits, span)
        if c == 1 or self.reading.layout != "planes" or not self.fits((n, 1, h, w)):
            return
        parts = [self.value(perfect[:, k : k + 1], bits[:, k : k + 1], 20.0) for k in range(c)]
        apart = min(abs(together - sum(parts) / c), abs(together - sum(parts)))
        if apart > 0.02 * span and max(parts) - min(parts) < min(0.02 * span, 0.2 * apart):
            self.add("channels-mixed", f"each channel alone: {', '.join(map(short, parts))}; "
                     f"together: {short(together)}")  # fmt: skip

    def check_pairs(self, perfect, bits, span):
        """Each plane alone is perfect. So must be the planes of one image, and of one channel."""
        n, c, h, w = perfect.shape
        planes = torch.tensor(
            [
                self.value(q[None, None], b[None, None], 20.0)
                for q, b in zip(perfect.flatten(0, 1), bits.flatten(0, 1), strict=True)
            ],
            dtype=torch.float64,
        ).view(n, c)
        if planes.max() - planes.min() > 0.02 * span:
            return
        for name, parts, part in (
            ("channels-mixed", (perfect[:1], bits[:1]), planes[0]),
            ("images-mixed", (perfect[:, :1], bits[:, :1]), planes[:, 0]),
        ):
            if len(part) > 1 and self.fits(parts[0].shape):
                together = self.value(*parts, 20.0)
                apart = min(abs(together - float(alone)) for alone in (part.mean(), part.sum()))
                if apart > max(0.02 * span, 5 * float(planes.max() - planes.min())):
                    alone = ", ".join(map(short, part))
                    self.add(name, f"perfect outputs, each plane alone: {alone}; together: "
                             f"{short(together)}")  # fmt: skip

    # ---- which pixels act together ----

    def check_interactions(self):
        """Change one pixel: at which others does the gradient change? They share a sum with it."""
        if not self.has_gradient:
            return
        n, c, h, w = self.shape
        n0, c0, h0, w0 = place = (0, 0, h // 2, w // 2)
        patterns = []
        for seed in range(3):
            q, bits = self.batch(seed)
            other = q.clone()
            other[place] = 0.02 if q[place] > 0.5 else 0.98
            try:
                first, second = self.gradient(q, bits), self.gradient(other, bits)
            except Refused:
                return
            if first is None or second is None:
                return
            changed = (first - second).abs() > 1e-5 * first.abs().max()
            changed[place] = False
            patterns.append(changed)
        any_time = torch.stack(patterns).any(0)
        every_time = torch.stack(patterns).all(0)
        plane = any_time[n0, c0]
        row = every_time[n0, c0, h0].sum() == w - 1
        column = every_time[n0, c0, :, w0].sum() == h - 1
        rest = plane.clone()
        rest[h0], rest[:, w0] = False, False
        images = n > 1 and every_time[1:, c0, h0, w0].all()
        if row != column and not rest.any():
            which = "rows" if row else "columns"
            self.add("wrong-axes", f"a pixel shares its sum with its own {which[:-1]} only: the "
                     f"sums run over single {which}")  # fmt: skip
        elif images and not plane.any():
            self.add("wrong-axes", "a pixel shares its sum with the same pixel of other images, "
                     "and with no other pixel of its own plane")  # fmt: skip
        near = plane[h0 - 1 : h0 + 2, w0].any() or plane[h0, w0 - 1 : w0 + 2].any()
        steady = torch.equal(any_time[n0, c0], every_time[n0, c0])
        if plane.any() and not near and steady and plane.float().mean() < 0.6:
            places = [f"({a}, {b})" for a, b in plane.nonzero().tolist()]
            self.add("scrambled", f"pixel ({h0}, {w0}) of a plane shares its sum with "
                     f"{', '.join(places[:6])}, but not with its neighbours")  # fmt: skip

    def check_softmax(self):
        if self.reading.kind != "logits":
            return
        kinds = ((0, "images"), (2, "rows"), (3, "columns"))
        q, bits = self.batch()
        output, mask = self.reading.output(q), self.reading.mask(bits)
        base = self.loss.value(output, mask, self.reading.swapped)
        generator = torch.Generator().manual_seed(4)
        for dim, name in kinds:
            shape = [size if k != dim else 1 for k, size in enumerate(self.shape)]
            shifted = output + torch.randn(shape, generator=generator)
            if self.shape[dim] > 1 and not difference(
                base, self.loss.value(shifted, mask, self.reading.swapped), 1e-5
            ):
                self.add("softmax-wrong-axis", f"the same number added to all {name} of a pixel "
                         f"changes nothing: a softmax over dim={dim}")  # fmt: skip

    # ---- the formula ----

    def check_formula(self):
        """Compare with known definitions, right and wrong, on random outputs and masks."""
        if self.sign < 0 and self.reading.kind == "logits" and "higher-is-better" not in self.found:
            return
        n, c, h, w = self.shape
        shape = self.shape
        if "channel-loop-over-batch" in self.found and self.fits((n, n, h, w)):
            shape = (n, n, h, w)  # where this mistake does not show, there may be others
        batches = []
        for seed in range(9):
            low, high = (-0.2, 1.2) if self.reading.kind != "probabilities" else (0.02, 0.98)
            q, bits = self.batch(seed, shape, low, high)
            if self.reading.layout == "planes":  # different densities tell the definitions apart
                generator = torch.Generator().manual_seed(seed)
                bits &= torch.rand(shape, generator=generator) < 0.4 + 0.07 * seed
                q = q ** (0.5 + 0.25 * seed) if low > 0 else q - 0.05 * seed
            output, mask = self.reading.output(q, 3.0).double(), self.reading.mask(bits)
            batches.append((output, mask.double() if mask.is_floating_point() else mask, bits))
        values, exact = [], True
        for output, mask, _ in batches:
            try:
                values.append(self.loss.value(output, mask, self.reading.swapped))
            except Refused:
                exact = False
                mask = mask.float() if mask.is_floating_point() else mask
                values.append(self.loss.value(output.float(), mask, self.reading.swapped))
        values = torch.tensor(values, dtype=torch.float64)
        if not torch.isfinite(values).all():
            return
        data = [(output, bits * self.reading.levels(shape[1]).double(), bits)
                for output, _, bits in batches]  # fmt: skip
        match = known_losses.recognise(values, data, self.reading, 1e-6 if exact else 3e-4)
        if match is None:
            return
        self.report.recognised = match.text
        for finding, seen in match.findings:
            self.add(finding, seen, self.example_of(finding))

    def example_of(self, finding):
        of_the_formula = (
            "missing-factor-two", "doubled-factor-two", "double-sigmoid", "pixelwise-dice",
            "higher-is-better",
        )  # fmt: skip
        if finding in of_the_formula:
            shape = self.tiny_shape()
            if shape is not None and self.reading.layout == "planes":
                bits = torch.zeros(shape, dtype=torch.bool)
                bits[0, 0, 0] = True
                wrong = 1.0 - bits.float()
                return self.show(bits, [("output", bits.float(), 20.0), ("output", wrong, 20.0)])
        return ""

    def check_perfect(self):
        """What a perfect output costs: 0, or a number that gives the mistake away."""
        n, c, h, w = self.shape
        shape = (n, c, 16, 16) if self.fits((n, c, 16, 16)) else self.shape
        bits = draw_bits(shape, self.reading)
        perfect, wrong = bits.float(), 1 - bits.float()
        best, worst = self.value(perfect, bits, 20.0), self.value(wrong, bits, 20.0)
        if "sums-over-the-batch" in self.found:
            best, worst = best / n, worst / n
        seen = f"a perfect output costs {short(best)}, an entirely wrong one {short(worst)}"
        # Smoothing moves these numbers a little.
        if abs(best - 0.5) < 0.04 and 0.9 < worst < 1.02:
            self.add("missing-factor-two", seen, self.example_of("missing-factor-two"))
        elif abs(best + 1) < 0.08 and 0.9 < worst < 1.02:
            self.add("doubled-factor-two", seen, self.example_of("doubled-factor-two"))
        elif abs(best) > 0.01 * abs(worst - best):
            self.add("minimum-not-zero", seen)

    def check_empty_channels(self):
        if not self.has_gradient or self.reading.layout != "planes" or self.shape[1] < 2:
            return
        q, bits = self.batch()
        bits = bits.clone()
        bits[:, -1] = False
        try:
            gradient = self.gradient(q, bits)
        except Refused:
            return
        if gradient is not None and not gradient[:, -1].any() and gradient[:, 0].any():
            example = ""
            tiny = self.tiny_shape()
            if tiny is not None:
                empty = torch.zeros(tiny, dtype=torch.bool)
                marked = empty.float()
                marked[0, 0] = 1.0
                example = self.show(empty, [("output", empty + 0.01, 6.0), ("output", marked, 6.0)])
            self.add("empty-channels-unpunished", "", example)

    # ---- sizes, precision, speed ----

    def check_sizes(self):
        n, c, h, w = self.shape
        if (h, w) != (4, 4):
            self.add("fixed-size", f"it does not take images of 4x4, but of {h}x{w}")
        elif not self.fits((n, c, 6, 4)):
            self.add("fixed-size", "it does not take images of 6x4")
        if (n, c) != (4, 5) and not self.fits((4, 5, h, w)):
            self.add("fixed-size", f"it does not take {describe((4, 5, h, w))}; examined with "
                     f"{describe(self.shape)}")  # fmt: skip
        elif c == 5 and not self.fits((n, 3, h, w)):
            self.add("fixed-size", f"it takes {c} channels, but not 3")

    def check_precision(self):
        q, bits = self.batch()
        output, mask = self.reading.output(q), self.reading.mask(bits)
        value = self.value(q, bits)
        failed = []
        for name, dtype in (("float64", torch.float64), ("bf16 under autocast", torch.bfloat16)):
            lower = dtype == torch.bfloat16
            m = mask if lower or not mask.is_floating_point() else mask.to(dtype)
            context = torch.autocast("cpu", dtype=dtype) if lower else contextlib.nullcontext()
            try:
                with context:
                    other = self.loss.value(output.to(dtype), m, self.reading.swapped)
            except Refused as error:
                failed.append(f"{name}: {error}")
                continue
            if not abs(other - value) <= 0.1 * abs(value) + 0.05:
                failed.append(f"{name}: {short(other)} instead of {short(value)}")
        if failed:
            self.add("float32-only", "; ".join(failed))
        if mask.is_floating_point():
            try:
                other = self.loss.value(output, mask.to(torch.uint8), self.reading.swapped)
                if abs(other - value) > 1e-3 * abs(value):
                    self.add("float-masks-only", f"{short(other)} instead of {short(value)}")
            except Refused as error:
                self.add("float-masks-only", str(error))
        self.check_device(output, mask)

    def check_device(self, output, mask):
        """On the device "meta" tensors have no values; but a mix of devices raises as on a GPU."""
        loss = self.loss.fresh()
        if isinstance(loss, nn.Module):
            try:
                loss = copy.deepcopy(loss).to("meta")
            except Exception:  # weights that do not move
                return
        arguments = (output.to("meta"), mask.to("meta"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss(*(arguments[::-1] if self.reading.swapped else arguments))
        except Exception as error:
            message = str(error)
            if "same device" in message or "expected device" in message:
                self.add("cpu-tensors", message.splitlines()[0][:200])

    def check_reading(self):
        """Remarks on the terms of the loss."""
        reading = self.reading
        if reading.layout == "one-hot":
            self.add("one-hot-masks", str(reading))
        elif reading.layout.startswith("numbers"):
            self.add("class-number-masks", str(reading))
        elif reading.masks == "1":
            self.add("outputs-of-one" if self.takes_any_mask() else "zero-one-masks")
        elif reading.masks == "255":
            self.add("masks-of-255")
        says_logits = getattr(self.loss.original, "logits", False)
        if reading.kind == "logits" and reading.layout == "planes" and not says_logits:
            self.add("takes-logits")
        if reading.kind == "probabilities":
            self.add("unbounded-outputs")

    def takes_any_mask(self):
        """Does a loss for outputs of 0 and 1 also take masks of 50 to 250?"""
        if self.reading.kind != "values":
            return False
        q, bits = self.batch()
        with contextlib.suppress(Refused):
            masks = (self.reading.mask(bits), replace(self.reading, masks="homework").mask(bits))
            output, swapped = self.reading.output(q), self.reading.swapped
            return not difference(*(self.loss.value(output, mask, swapped) for mask in masks))
        return False

    def check_speed(self):
        shape = (self.shape[0], self.shape[1], 64, 64)
        if not self.has_gradient:
            return

        def seconds(run, repeats):
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            return min(times)

        reference = Examination(plain_mse_and_dice, "")
        reference.loss, reference.reading = Loss(plain_mse_and_dice), Reading("values", "homework")
        q, bits = self.batch(shape=(*shape[:2], 16, 16))
        sixteenth = seconds(lambda: self.gradient(q, bits), 2) if self.fits(q.shape) else 0
        loops = sixteenth > 0.05  # over pixels: no need to wait for it
        if not loops and not self.fits(shape):
            return
        q, bits = self.batch(shape=shape)
        plain = seconds(lambda: reference.gradient(q, bits), 5)
        own = 16 * sixteenth if loops else seconds(lambda: self.gradient(q, bits), 3)
        text = (
            f"forward and backward take {'about ' * loops}{own * 1e3:.2g} ms for "
            f"{describe(shape)}; MSE + Dice by sums over axes {plain * 1e3:.2g} ms"
        )
        self.report.speed = f"Speed: {text}."
        if own > 8 * plain and own > 0.003 and not loops:  # perhaps another program was busy
            plain = seconds(lambda: reference.gradient(q, bits), 20)
            own = seconds(lambda: self.gradient(q, bits), 20)
        if own > 8 * plain and own > 0.003:
            self.add("slow", text)

    # ---- examples ----

    def tiny_shape(self):
        """The smallest batch of 2x2 planes that the loss takes, None if it takes none."""
        if not hasattr(self, "tiny"):
            n, c = self.shape[:2]
            one = 1 if self.reading.layout == "planes" else 2
            shapes = [(1, one, 2, 2), (1, c, 2, 2), (n, one, 2, 2), (n, c, 2, 2)]
            self.tiny = next((shape for shape in shapes if self.fits(shape)), None)
        return self.tiny

    def show_case(self, case):
        predictions = zip((case.better, case.worse), case.sharpness, strict=True)
        return self.show(case.bits, [("output", q, s) for q, s in predictions], case.plane)

    def show(self, bits, predictions, plane=(0, 0)):
        """A mask and outputs with their losses, as 2x2 numbers if they are small."""
        n, c, h, w = bits.shape
        lines = []
        if (n, c) != (1, 1):
            lines.append(f"{describe(bits.shape)}; shown: image {plane[0]}, channel {plane[1]}")
        small = h * w <= 4
        mask = self.reading.mask(bits)
        if small and self.reading.layout == "planes":
            lines.append(f"mask   {matrix(mask[plane])}")
        elif small:
            of_plane = mask[plane] if self.reading.layout == "one-hot" else mask[plane[0]]
            lines.append(f"mask   {matrix(of_plane.reshape(h, w))}")
        for name, q, sharpness in predictions:
            q = q.float()
            try:
                value = short(self.value(q, bits, sharpness))
            except Refused as error:
                value = str(error)
            output = self.reading.output(q, sharpness)
            wrong = int(((q > 0.5) != bits).sum())
            text = matrix(output[plane]) if small else f"with {wrong} wrong values"
            lines.append(f"{name} {text}   loss {value}")
        return "\n".join(lines)


def plain_mse_and_dice(output, mask):
    """What the speed of a loss is compared with."""
    overlap = (output * mask).sum(dim=(2, 3))  # (N, C)
    size = (output * output).sum(dim=(2, 3)) + (mask * mask).sum(dim=(2, 3))
    return ((output - mask) ** 2).mean() + (1 - 2 * overlap / (size + 1e-6)).mean()
