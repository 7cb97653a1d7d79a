"""Which known definition does a loss equal? For check_loss.

A loss is compared with sums of known terms, right and wrong ones: value = a * term + c, or
value = a * term + b * Dice + c, solved for a, b and c on nine random batches. The numbers a, b, c
and the term then tell the definition, or the mistake: a factor, a sign, an axis.
"""

import functools
from dataclasses import dataclass, field

import torch
from torch.nn import functional

SMOOTH = (1e-6, 1.0, 1e-5, 1e-4, 1e-7, 1e-8, 1e-3, 1e-2, 0.1, 0.5, 2.0, 5.0, 10.0, 100.0, 1e-12)
AXES = {  # the right ones first
    (2, 3): "per image and channel",
    (0, 2, 3): "per channel, over the batch",
    (1, 2, 3): "per image, over all channels",
    (0, 1, 2, 3): "over the whole batch",
    (): "per pixel",
    (1,): "over channels, per pixel",
    (0,): "over images, per pixel",
    (0, 1): "over images and channels, per pixel",
    (2,): "per column",
    (3,): "per row",
    (0, 2): "over images and rows",
    (0, 3): "over images and columns",
    (1, 2): "over channels and rows",
    (1, 3): "over channels and columns",
    (0, 1, 2): "over images, channels and rows",
    (0, 1, 3): "over images, channels and columns",
}
RIGHT_AXES = tuple(AXES)[:4]
IN_SUMS = (*RIGHT_AXES, (), (1,), (0, 1))
STEPS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
TVERSKY = tuple((a, b) for a in STEPS for b in STEPS if a != b)  # a = b: Dice or IoU
FEW = (1e-6, 1.0, 1e-5, 1e-7, 1e-3)  # smoothing of Tversky
GAMMAS = (0, 0.5, 1, 1.5, 2, 3, 4, 5)


@dataclass(frozen=True)
class Term:
    """What one term is: its formula and how it reads the output."""

    family: str  # "mse", "mae", "bce", "focal", "dice", ...
    name: str
    of: str = ""  # "sigmoid", "twice", ...: what is applied to the output first
    axes: tuple = (2, 3)
    factor: int = 2  # of the overlap, in Dice


@dataclass
class Match:
    """The definition in words, and the mistakes that it shows: (finding, what was seen)."""

    text: str
    findings: list = field(default_factory=list)


def transforms(output, reading):
    """What a loss may do with the output first."""
    if reading.layout != "planes":
        softmax = output.softmax(1) if reading.kind == "logits" else output
        return {"softmax": softmax, "twice": softmax.softmax(1),
                "softmax over images": output.softmax(0)}  # fmt: skip
    half = 0 if reading.kind == "logits" else reading.levels(output.shape[1]) / 2
    if reading.kind == "probabilities":
        half = 0.5
    found = {"": output, "sigmoid": output.sigmoid()}
    if reading.kind == "logits":
        found = {"sigmoid": output.sigmoid(), "": output, "twice": output.sigmoid().sigmoid()}
        found["softmax over images"] = output.softmax(0)
        found["softmax"] = output.softmax(1)
    found["threshold"] = (output > half).double()
    return found


def terms_of(output, mask, bits, reading):
    """(the Terms, their values in one tensor) on one batch."""
    terms, values = [], []
    bits = bits.double()
    for of, p in transforms(output, reading).items():
        targets = [mask] if of == "" and reading.kind == "values" else [bits]
        if of == "" and reading.masks != "1":
            targets = [mask, bits]
        for m in targets:
            for part in (pixel_terms(p, m, of), overlap_terms(p, m, of)):
                terms += part[0]
                values += part[1]
    if reading.kind == "logits" and reading.layout == "planes":
        part = lovasz_terms(output, bits)
        terms += part[0]
        values += part[1]
    return terms, torch.cat(values)


@functools.cache
def pixel_labels(of, probabilities):
    found = [
        Term("mse", "MSE", of),
        Term("mae", "MAE", of),
        Term("smooth l1", "smooth L1", of),
        Term("mean output", "the mean of the output", of),
        Term("mean mask", "the mean of the mask", of),
    ]
    for gamma in GAMMAS if probabilities else ():
        name = f"focal loss, gamma {gamma:g}" if gamma else "BCE"
        if of == "softmax":
            name = f"cross entropy, gamma {gamma:g}" if gamma else "cross entropy"
        family = "focal" if gamma else "bce"
        found.append(Term(f"{family} of objects", name, of))
        found.append(Term(f"{family} of background", name, of))
        found.append(Term(family, name, of))
    return found


def pixel_terms(p, m, of):
    smooth_l1 = functional.smooth_l1_loss(p, m)
    found = [((p - m) ** 2).mean(), (p - m).abs().mean(), smooth_l1, p.mean(), m.mean()]
    probabilities = bool(p.min() >= 0 and p.max() <= 1)
    if probabilities:
        pt = torch.where(m > 0.5, p, 1 - p)
        logarithm = -pt.clamp_min(1e-12).log()
        for gamma in GAMMAS:
            values = (1 - pt) ** gamma * logarithm
            found += [(values * m).mean(), (values * (1 - m)).mean(), values.mean()]
    return pixel_labels(of, probabilities), [torch.stack(found)]


@functools.cache
def dice_labels(of, axes, form, factor, where):
    found = []
    for smooth in SMOOTH:
        note = f", smoothing {smooth:g}{where}" if smooth >= 1e-3 else ""
        found.append(Term("dice", f"{form} Dice ({AXES[axes]}{note})", of, axes, factor))
    return found


@functools.cache
def iou_labels(of, axes, form):
    found = []
    for smooth in SMOOTH:
        note = f", smoothing {smooth:g}" if smooth >= 1e-3 else ""
        found.append(Term("iou", f"{form} IoU (Jaccard) ({AXES[axes]}{note})", of, axes))
    return found


@functools.cache
def tversky_labels(of, axes):
    return [
        Term("tversky", f"Tversky ({AXES[axes]}, weights {a:g} for false positives, {b:g} for "
             "misses)", of, axes)
        for a, b in TVERSKY for _ in FEW
    ]  # fmt: skip


def overlap_terms(p, m, of):
    """Dice, Jaccard and Tversky, over every choice of axes and with every usual smoothing."""
    terms, values = [], []
    s = torch.tensor(SMOOTH, dtype=torch.float64)
    products, squares, linear = p * m, p * p + m * m, p + m
    for axes in AXES:
        overlap = products.sum(axes).reshape(-1, 1) if axes else products.reshape(-1, 1)
        for form, sizes in (("linear", linear), ("squared", squares)):
            size = sizes.sum(axes).reshape(-1, 1) if axes else sizes.reshape(-1, 1)
            for factor in (2, 1, 4):
                for shift, where in ((s, ""), (0 * s, " in the denominator only")):
                    values.append(((factor * overlap + shift) / (size + s)).mean(0))
                    terms += dice_labels(of, axes, form, factor, where)
            if axes in RIGHT_AXES:
                values.append(((overlap + s) / (size - overlap + s)).mean(0))
                terms += iou_labels(of, axes, form)
        if axes in RIGHT_AXES and of in ("", "sigmoid", "softmax"):
            extra = p.sum(axes).reshape(-1, 1, 1) - overlap[..., None]
            missed = m.sum(axes).reshape(-1, 1, 1) - overlap[..., None]
            weights = torch.tensor(TVERSKY, dtype=torch.float64)[None, :, :, None]  # (1, T, 2, 1)
            few = torch.tensor(FEW, dtype=torch.float64)
            shared = overlap[..., None] + few
            size = shared + weights[:, :, 0] * extra + weights[:, :, 1] * missed
            values.append((shared / size).mean(0).flatten())
            terms += tversky_labels(of, axes)
    return terms, values


def lovasz_terms(logits, bits):
    """The Lovász hinge, per plane, per image and over the batch."""
    n, c = logits.shape[:2]
    terms, values = [], []
    for shape, words in (((n * c, -1), "per image and channel"), ((n, -1), "per image"),
                         ((1, -1), "over the whole batch")):  # fmt: skip
        x, m = logits.reshape(shape), bits.reshape(shape)
        errors, order = torch.sort(1 - x * (2 * m - 1), dim=1, descending=True)
        m = m.gather(1, order)
        total = m.sum(1, keepdim=True)
        steps = 1 - (total - m.cumsum(1)) / (total + (1 - m).cumsum(1))
        steps = torch.cat([steps[:, :1], steps[:, 1:] - steps[:, :-1]], dim=1)
        values.append((errors.relu() * steps).sum(1).mean()[None])
        terms.append(Term("lovasz", f"Lovász hinge ({words})"))
    return terms, values


def recognise(values, data, reading, tolerance):
    """The Match of a loss whose values on `data`, a list of (output, mask, bits), are known."""
    columns = [terms_of(*batch, reading) for batch in data]
    terms = columns[0][0]
    if any(len(names) != len(terms) for names, _ in columns):
        return None
    table = torch.stack([column for _, column in columns], dim=1)  # (terms, batches)
    usable = torch.isfinite(table).all(1)
    spread = table.std(1)
    usable &= spread > 1e-9 * table.abs().mean(1)
    keep = usable.nonzero().flatten().tolist()
    terms, table = [terms[k] for k in keep], table[keep]
    y = values - values.mean()
    if not y.norm() > 1e-9 * values.norm():
        return None
    x = table - table.mean(1, keepdim=True)
    slope = (x @ y) / (x * x).sum(1)
    errors = (y - slope[:, None] * x).norm(dim=1) / y.norm()
    best = choose(errors, tolerance)
    if best is not None:
        a = float(slope[best])
        c = float(values.mean() - a * table[best].mean())
        return describe_single(terms[best], a, c, data)
    return recognise_pair(values, y, x, table, terms, tolerance, data)


def choose(errors, tolerance):
    """The first of those that fit about as well as the best one."""
    best = float(errors.min())
    if best > tolerance:
        return None
    return int((errors <= max(100 * best, 1e-10)).nonzero()[0])


def recognise_pair(values, y, x, table, terms, tolerance, data):
    overlaps = [
        k for k, t in enumerate(terms)
        if t.family in ("dice", "iou") and t.of in ("", "sigmoid", "softmax", "threshold")
        and t.axes in IN_SUMS
    ]  # fmt: skip
    best = None
    for k, first in enumerate(terms):
        if first.family in ("mse", "mae", "smooth l1", "bce", "lovasz") or first.name.endswith(
            ("gamma 2", "gamma 1")
        ):
            others = overlaps
        else:
            others = []
        if first.family.endswith("of objects"):  # a weight for objects and one for background
            others = [k + 1]
        if first.family == "mean output":
            others = [k + 1]
        if not others:
            continue
        unit = x[k] / x[k].norm()
        rest = x[others] - (x[others] @ unit)[:, None] * unit
        left = y - (y @ unit) * unit
        b = (rest @ left) / (rest * rest).sum(1).clamp_min(1e-300)
        errors = (left - b[:, None] * rest).norm(dim=1) / y.norm()
        found = choose(errors, tolerance)
        if found is not None and (best is None or errors[found] < 0.1 * best[0]):
            second = others[found]
            slope = float(b[found])
            a = float((y - slope * x[second]) @ x[k] / (x[k] @ x[k]))
            c = float(values.mean() - a * table[k].mean() - slope * table[second].mean())
            best = (float(errors[found]), first, terms[second], a, slope, c)
    if best is None:
        return None
    return describe_pair(*best[1:], data)


# ---- in words -----------------------------------------------------------------------------------


def times(factor, name, data):
    numel, n = data[0][0].numel(), len(data[0][0])
    if near(factor, 1):
        return name
    if near(factor, numel):
        return f"{name}, summed over all pixels and images"
    if near(factor, numel / n):
        return f"{name}, summed over the pixels of an image"
    return f"{factor:.4g} * {name}"


def near(one, other):
    return abs(one - other) <= 0.004 * max(abs(one), abs(other))


def of_output(term):
    return {
        "": "",
        "sigmoid": " of the sigmoid",
        "twice": " of the sigmoid of the sigmoid",
        "softmax": " of the softmax",
        "softmax over images": " of a softmax over the images",
        "threshold": " of the thresholded output",
    }[term.of]


def shared_findings(term):
    """Mistakes that a term shows by itself."""
    found = []
    if term.of == "twice":
        found.append(("double-sigmoid", f"the loss equals {term.name}{of_output(term)}"))
    if term.of == "threshold":
        found.append(("hard-threshold", f"the loss has the term {term.name}{of_output(term)}"))
    if term.of == "softmax over images":
        found.append(("softmax-wrong-axis", f"the loss equals {term.name}{of_output(term)}"))
    if term.family == "dice" and term.axes == ():
        found.append(("pixelwise-dice", "the loss equals the mean over the pixels of "
                      "1 - (2pm + s) / (p + m + s)"))  # fmt: skip
    elif term.axes not in RIGHT_AXES:
        found.append(("wrong-axes", f"the loss equals {term.name}{of_output(term)}"))
    return found


def factor_findings(term, slope, constant):
    """From value = slope * ratio + constant: is the factor 2 there?"""
    if term.family != "dice" or term.axes == ():
        return []
    if slope > 0:
        return []
    at_perfect = constant / -slope / (2 / term.factor)  # 1 if right, at a small smoothing
    seen = f"the loss equals 1 - {{}} overlap / size, with {term.name}"
    if near(at_perfect, 2) or (term.factor == 1 and near(constant, -slope)):
        return [("missing-factor-two", seen.format("1 *"))]
    if near(at_perfect, 0.5) or (term.factor == 4 and near(constant, -slope)):
        return [("doubled-factor-two", seen.format("4 *"))]
    return []


def describe_single(term, slope, constant, data):
    found = shared_findings(term)
    name = f"{term.name}{of_output(term)}"
    if term.family in ("dice", "iou", "tversky"):
        found += factor_findings(term, slope, constant)
        if slope > 0:
            found.append(("higher-is-better", f"the loss equals {name}: the score itself"))
            return Match(f"the score {name}, not a loss", found)
        if abs(constant) < 1e-6:
            return Match(times(-slope, f"minus {name}", data), found)
        if near(constant, -slope):
            return Match(times(-slope, f"1 - {name}", data), found)
        return Match(f"{constant:.3g} - {-slope:.3g} * {name}", found)
    if term.family.startswith("mean "):
        return Match(f"{slope:.3g} * {name}", [("errors-cancel", f"the loss follows {name}")])
    if slope < 0:
        found.append(("higher-is-better", f"the loss equals {slope:.3g} * {name}"))
    if term.family.endswith("of objects"):
        found.append(("false-positives-ignored", f"the loss equals {name} on the objects only"))
        return None if term.of == "softmax" else Match(f"{name}, on the objects only", found)
    if term.family.endswith("of background"):
        found.append(("misses-ignored", f"the loss equals {name} on the background only"))
        return Match(f"{name}, on the background only", found)
    return Match(times(slope, name, data), found)


def describe_pair(first, second, a, b, constant, data):
    one, two = (f"{term.name}{of_output(term)}" for term in (first, second))
    if first.family == "mean output":
        return Match(
            f"{a:.3g} * {one} + {b:.3g} * {two}",
            [("errors-cancel", "the loss equals a sum of output - mask, without a square or abs")],
        )
    if first.family.endswith("of objects"):
        found = shared_findings(first)
        if b < 0 < a:
            seen = "the term of the background has a wrong sign"
            found.append(("false-positives-rewarded", seen))
        if a < 0 < b:
            found.append(("misses-rewarded", "the term of the objects has a wrong sign"))
        return Match(f"{one}, objects weighted {a:.3g}, background {b:.3g}", found)
    found = shared_findings(first) + shared_findings(second)
    if first.of != second.of and second.of != "threshold":
        found.append(("mixed-terms", f"the loss equals {a:.3g} * {one} + {-b:.3g} * (1 - {two})"))
    if b > 0:
        text = f"{a:.3g} * {one} + {b:.3g} * {two}"
        return Match(text, [*found, ("term-higher-is-better", f"the loss equals {text}")])
    if a < 0:
        found.append(("term-higher-is-better", f"the loss equals {a:.3g} * {one} + ..."))
    found += factor_findings(second, b, constant)
    return Match(f"{times(a, one, data)} + {-b:.3g} * (1 - {two})", found)
