"""Checks a segmentation network before hours of training are spent on it.

    python -m SegStudio check-network my_network.py:MyNet

Objections say what is wrong; remarks say what else you should know. The exit code
is 0 without objections, 1 with some, and 2 if the network cannot be loaded. In Python:
SegStudio.SemanticSegmentation.check_network(net). doc/check-network.md explains every finding.

The file runs in a process of its own with a limit of time and memory. That is no sandbox: it can do
whatever you can do. Check strangers' files in a container.
"""

import argparse
import contextlib
import copy
import inspect
import sys
import time
import traceback
from collections import namedtuple
from pathlib import Path

import torch
from torch import nn

from SegStudio import SegStudio, backstage, recording, students_code

Segmentation = SegStudio.SemanticSegmentation

# ---- what is found ------------------------------------------------------------------------------

# The name of each finding, and why it matters or what to do. The report adds the measured proof.
OBJECTIONS = {
    "forward fails": "Nothing can be trained. Print x.shape after each layer to find the place.",
    "not a tensor": "The loss needs one tensor: return the mask scores only.",
    "wrong type": (
        "The loss needs numbers with a gradient: return the output before the threshold or argmax."
    ),
    "wrong shape": "The masks are (N, C, H, W): one plane for each class, as large as the image.",
    "not finite": (
        "The first training step would spoil all weights: look for a division by 0, the "
        "logarithm of 0, or weights that are NaN."
    ),
    "fixed batch size": (
        "The last batch of an epoch is often smaller. Use x.shape[0], never a number."
    ),
    "layers in a plain list": (
        "They are not part of the network: not trained, not saved, not moved to a GPU. Use "
        "nn.ModuleList or nn.Sequential."
    ),
    "layers made in forward": (
        "They get new random weights in each call and are never trained. Make them in __init__."
    ),
    "random in eval mode": (
        "Two tests of one network would give different scores. Use nn.Dropout, which eval() "
        "switches off, or F.dropout(x, training=self.training)."
    ),
    "changes its input": (
        "The network overwrites images that the script still needs: x += 1 and relu_ change the "
        "tensor of the caller. Write x = x + 1."
    ),
    "images of a batch mix": (
        "The masks of an image must not depend on the other images. Look for an operation over "
        "dimension 0 (softmax(dim=0), a wrong view) and for a BatchNorm that uses the batch "
        "also in eval mode."
    ),
    "no gradient": (
        "Nothing can be learned: look for detach(), no_grad(), numpy, round(), argmax or a "
        "threshold between the layers and the output, or a softmax over one channel."
    ),
    "no gradient at present": (
        "Training cannot start: look for a sigmoid or softmax that is saturated, as with images "
        "of 0 to 255 that are not scaled, or for ReLUs that are all 0."
    ),
    "layers without a gradient": (
        "They change the output but are never trained: look for detach(), no_grad() or .data "
        "after them."
    ),
    "channels that stay alike": (
        "Channels with the same weights get the same gradient, so a layer of many channels learns "
        "no more than one channel. Initialise weights with random numbers, as torch's layers do."
    ),
    "pixels without a path": (
        "No loss and no training can correct these pixels. Look for a transposed convolution "
        "whose stride leaves gaps (stride 2 with dilation 2, or with kernel 1)."
    ),
    "pixels at the wrong place": (
        "An output pixel has to depend on the image around its own place. Look for view or "
        "reshape where permute is meant, and for exchanged H and W."
    ),
    "does not end": "Look for an endless loop.",
    "ends the process": (
        "The file or the network calls exit, needs more memory than the limit, or crashes."
    ),
}
REMARKS = {
    "unused layers": (
        "The network works without them, but they count as parameters. Was a layer forgotten in "
        "forward?"
    ),
    "frozen weights": "requires_grad is False: training does not change them.",
    "weights without a gradient at present": (
        "The first step does not change them. That is normal if the weights of a later layer "
        "start at 0. It is wrong if ReLUs are always 0 or an activation is saturated."
    ),
    "pixels that are constant at present": (
        "Look for weights of 0, or a dead or saturated activation."
    ),
    "BatchNorm": (
        "Call net.eval() before testing, and net.train() before training goes on. SegStudio's "
        "methods do it."
    ),
    "no batch of one image in train mode": (
        "The last batch of an epoch may have one image: use DataLoader(drop_last=True) or another "
        "batch size."
    ),
    "one image size only": (
        "A fully convolutional network takes any size: look for nn.Linear, or for a size that "
        "is written as a number."
    ),
    "small receptive field": (
        "If an output pixel depends on only a part of a shape, its class cannot be predicted: "
        "lower the resolution in the middle of the network, or use dilation."
    ),
    "outputs from 0 to 1": (
        "Train it with masks of 0 and 1 and a loss on probabilities. It cannot reach mask "
        "values of 50 to 250, and a loss on logits would apply the sigmoid twice."
    ),
    "outputs that add up to 1": (
        "A softmax at the end. At a background pixel all planes of the mask are 0, and a softmax "
        "cannot reach that. Without softmax each class has its own threshold."
    ),
    "outputs from -1 to 1": "A tanh at the end: it cannot reach mask values of 50 to 250.",
    "outputs never below 0": (
        "A ReLU at the end: read as logits, the probability is never below 0.5, and a pixel "
        "below 0 gets no gradient."
    ),
    "unusual number of channels": (
        "The shapes have 5 classes, the COCO task has one channel. If your number is intended, "
        "give --out-channels."
    ),
    "almost DLStudio's state dict": "Weights of DLStudio's mUnet do not load without a change.",
}


class Finding(namedtuple("Finding", "kind name proof")):
    """An "objection" (a mistake) or a "remark" (no mistake, but good to know), with its proof."""

    __slots__ = ()

    @property
    def advice(self) -> str:
        """Why it matters and what to do."""
        return {"objection": OBJECTIONS, "remark": REMARKS}[self.kind][self.name]

    def __str__(self):
        return f"{self.kind.capitalize()}: {self.name}\n  {self.proof}\n  {self.advice}"


class NetworkReport:
    """What check_network found: findings in the order of the checks, and facts as text."""

    def __init__(self, findings=(), facts=()):
        self.findings = [Finding(*finding) for finding in findings]
        self.facts = list(facts)

    @property
    def objections(self) -> list:
        return [finding for finding in self.findings if finding.kind == "objection"]

    @property
    def remarks(self) -> list:
        return [finding for finding in self.findings if finding.kind == "remark"]

    def __str__(self):
        found = sorted(self.findings, key=lambda finding: finding.kind)  # objections first
        verdict = "Nothing is wrong with this network."
        if self.objections:
            names = ", ".join(finding.name for finding in self.objections)
            verdict = f"Wrong with this network: {names}."
        parts = [
            *map(str, found),
            "\n".join(self.facts),
            f"{verdict} Read on: doc/check-network.md",
        ]
        return "\n\n".join(part for part in parts if part)


# ---- the checks ---------------------------------------------------------------------------------


def check_network(net, image_size=(64, 64), *, out_channels=None, batch_size=4):
    """Examine a segmentation network; its weights stay as they are.

    Args:
        net: the network, on the CPU.
        image_size: (H, W) of the images that it is meant for.
        out_channels: the number of classes that its output must have. None: any.
        batch_size: images in an iteration whose time and memory are measured.

    Shape: the network takes (N, 3, H, W) of 0..255 and returns (N, C, H, W).
    Returns: NetworkReport.
    Errors: TypeError if net is no nn.Module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"check_network takes an nn.Module, not a {type(net).__name__}")
    try:
        net = copy.deepcopy(net)  # the checks train it and change its weights
    except Exception as error:
        raise TypeError(
            f"{type(net).__name__} cannot be copied ({error}): does it keep a computed tensor as "
            f"an attribute?"
        ) from None
    for p in net.parameters():
        p.grad = None
    with backstage.random_numbers_kept():
        torch.manual_seed(0)
        examination = Examination(net, image_size, out_channels, batch_size)
        examination.run()
    return examination.report


class CannotGoOn(Exception):
    """Later checks make no sense after this finding."""


class Examination:
    """The checks, in their order; each adds findings and facts to the report."""

    def __init__(self, net, image_size, out_channels, batch_size):
        self.net = net
        self.size = tuple(image_size)
        self.out_channels = out_channels
        self.batch_size = batch_size
        self.report = NetworkReport()
        self.images = torch.rand(3, 3, *self.size) * 255

    def run(self):
        with contextlib.suppress(CannotGoOn):
            self.check_registration()
            self.check_output()
            self.check_batch_sizes()
            self.check_repetition()
            self.check_input_is_kept()
            self.check_mixing()
            self.check_other_size()
            self.check_symmetry()
            self.check_gradients()
            self.check_coverage()
            self.check_places()
            self.check_range()
            self.check_state_dict()
            self.measure_cost()

    def object(self, name, proof, stop=False):
        assert name in OBJECTIONS
        self.report.findings.append(Finding("objection", name, proof))
        if stop:
            raise CannotGoOn

    def remark(self, name, proof):
        assert name in REMARKS
        self.report.findings.append(Finding("remark", name, proof))

    def call(self, images, train=False):
        """The output of the network in eval mode (or train mode), without gradients."""
        self.net.train(train)
        with torch.no_grad():
            return self.net(images.clone())

    def call_or_stop(self, images, mode, train=False):
        """call(); an error in it is an objection that ends the examination."""
        try:
            return self.call(images, train)
        except (Exception, SystemExit) as error:
            shape = tuple(images.shape)
            self.object("forward fails", f"{mode}, images {shape}: {describe(error)}", stop=True)

    # ---- input and output ----

    def check_registration(self):
        found = [
            f"{path}self.{name} ({len(layers)} of them)"
            for path, module in self.net.named_modules()
            for name, value in vars(module).items()
            if not name.startswith("_") and (layers := modules_in(value))
            and not {id(m) for m in layers} <= {id(m) for m in self.net.modules()}
        ]  # fmt: skip
        if found:
            self.object("layers in a plain list", f"{listed(found)} is a list or dict of layers.")

    def check_output(self):
        output = self.call_or_stop(self.images, "In eval mode")
        if not isinstance(output, torch.Tensor):
            self.object("not a tensor", f"It returns a {type(output).__name__}.", stop=True)
        n, (h, w) = len(self.images), self.size
        shape = tuple(output.shape)
        channels = self.out_channels or (shape[1] if len(shape) == 4 else "C")
        if shape != (n, channels, h, w):
            rows_and_columns = output.dim() == 4 and shape[:2] == (n, channels)
            self.object(
                "wrong shape",
                f"For images {tuple(self.images.shape)} it returns {shape}; the masks are "
                f"{(n, channels, h, w)}.".replace("'", ""),
                stop=not rows_and_columns,
            )
        if not output.is_floating_point():
            self.object("wrong type", f"Its output has the type {output.dtype}.", stop=True)
        if not torch.isfinite(output).all():
            share = 1 - torch.isfinite(output).float().mean().item()
            proof = f"{backstage.percent(share)} of the output is NaN or infinite."
            self.object("not finite", proof, stop=True)
        if self.out_channels is None and channels not in (1, 5):
            self.remark("unusual number of channels", f"The output has {channels} channels.")
        self.output = output
        self.same_size = shape[2:] == self.size
        parameters = list(self.net.parameters())
        self.report.facts.append(
            f"{type(self.net).__name__}: {sum(p.numel() for p in parameters):,} parameters in "
            f"{len(parameters)} tensors; {channels} output channel{'s' if channels > 1 else ''}."
        )

    def check_batch_sizes(self):
        for number in (1, 2):
            images = self.images[:number]
            try:
                shape = tuple(self.call(images).shape)
            except (Exception, SystemExit) as error:
                proof = f"3 images work, a batch of {number} fails: {describe(error)}"
                self.object("fixed batch size", proof, stop=True)
            if shape[0] != number:
                proof = f"For a batch of {number} the output is {shape}."
                self.object("fixed batch size", proof, stop=True)
        self.call_or_stop(self.images, "In train mode", train=True)
        try:
            self.call(self.images[:1], train=True)
        except (Exception, SystemExit) as error:
            self.remark("no batch of one image in train mode", describe(error))

    def check_repetition(self):
        made = []
        original = nn.Module.__init__

        def noted(module, *args, **kwargs):
            original(module, *args, **kwargs)
            made.append(module)

        nn.Module.__init__ = noted
        try:
            again = self.call(self.images)
        finally:
            nn.Module.__init__ = original
        own = {id(p) for p in self.net.parameters()}  # a slice of a ModuleList is a new module, too
        made = [
            type(module).__name__
            for module in made
            if any(id(p) not in own for p in module.parameters())
        ]
        first = self.call(self.images)
        change = relative(again - first, first)
        if made:
            self.object("layers made in forward", f"Each call makes {listed(made)}.", stop=True)
        if change > 1e-4:
            self.object(
                "random in eval mode",
                f"Two outputs for the same images differ by {backstage.percent(change)} of their "
                f"range.",
                stop=True,
            )

    def check_input_is_kept(self):
        for train in (False, True):
            self.net.train(train)
            images = self.images.clone()
            with torch.no_grad():
                self.net(images)
            if not torch.equal(images, self.images):
                change = (images - self.images).abs().max().item()
                proof = f"After the call the images differ from those before by up to {change:.4g}."
                self.object("changes its input", proof)
                return

    def check_mixing(self):
        alone = self.call(self.images[:1])
        change = relative(self.call(self.images)[:1] - alone, alone)
        norms = [m for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if change > 1e-4:  # round-off is about 1e-6
            proof = (
                f"The output for one image changes by {backstage.percent(change)} of its range "
                f"when other images are in the batch, in eval mode."
            )
            self.net.eval()
            if any(norm.training or norm.running_mean is None for norm in norms):
                proof += " A BatchNorm has no running averages, or eval() does not reach it."
            self.object("images of a batch mix", proof)
        elif norms:
            with backstage.random_weights(self.net):
                pair = self.call(self.images[:2], train=True)[:1]
                other = self.call(self.images[::2], train=True)[:1]
            share = backstage.percent(relative(other - pair, pair))
            self.remark(
                "BatchNorm",
                f"In train mode the output for one image changes by {share} of its range with "
                f"another image beside it; in eval mode it stays the same.",
            )

    def check_other_size(self):
        h, w = self.size
        images = torch.rand(2, 3, h, w + 32) * 255
        try:
            shape = tuple(self.call(images).shape)
        except (Exception, SystemExit) as error:
            self.remark("one image size only", f"Images of {h}x{w + 32} fail: {describe(error)}")
            return
        if self.same_size and shape[2:] != (h, w + 32):
            proof = f"For images of {h}x{w + 32} the output is {shape[2]}x{shape[3]}."
            self.object("wrong shape", proof)

    # ---- gradients ----

    def check_symmetry(self):
        """Are all channels of every layer initialised alike, as by nn.init.constant_?"""
        weights = {}  # of each layer, output channels first
        for name, layer in self.net.named_modules():
            if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                continue
            weight = layer.weight
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)
            if getattr(layer, "groups", 1) == 1 and len(weight) > 1:
                weights[name] = weight
        alike = [bool(w.any()) and torch.equal(w, w[:1].expand_as(w)) for w in weights.values()]
        # The last layer's channels have different masks, so one layer alone does not stay alike.
        if len(alike) > 1 and all(alike):
            where = listed(weights)
            proof = f"In each of these layers all output channels have the same weights: {where}."
            self.object("channels that stay alike", proof)

    def check_gradients(self):
        named = list(self.net.named_parameters())
        frozen = [name for name, p in named if not p.requires_grad]
        if frozen:
            self.remark(
                "frozen weights", f"{len(frozen)} of {len(named)} tensors: {listed(frozen)}."
            )
        used = [(name, p) for name, p in named if p.requires_grad]
        connected, alive, alive_now = set(), set(), set()
        # Random weights and small images too: a saturated activation must not look like a dead one.
        for random, scale in ((False, 1), (False, 1 / 255), (True, 1), (True, 1 / 255)):
            context = backstage.random_weights if random else contextlib.nullcontext
            with context(self.net):
                output = self.forward_with_gradient(self.images * scale)
                if output is None:
                    continue
                factors = torch.randn(output.shape)
                weights = [p for _, p in used]
                grads = torch.autograd.grad((output * factors).sum(), weights, allow_unused=True)
            for (name, _), grad in zip(used, grads, strict=True):
                if grad is None:
                    continue
                connected.add(name)
                if grad.any():  # NaN counts: an overflow is no missing path
                    alive.add(name)
                    if not random and scale == 1:
                        alive_now.add(name)
        if used and not alive:
            proof = "The gradient of every weight is missing or 0, for several weights and images."
            self.object("no gradient", proof, stop=True)
        unused = self.without_effect([n for n, p in named if n not in connected])
        if unused:
            parameters = dict(named)
            count = sum(parameters[name].numel() for name in unused)
            share = count / max(sum(p.numel() for p in parameters.values()), 1)
            self.remark(
                "unused layers",
                f"{count:,} parameters, {backstage.percent(share)} of all, never change the "
                f"output: {listed(unused)}.",
            )
        # One-dimensional parameters are left out: BatchNorm removes the bias before it.
        kernels = [name for name, p in used if p.dim() > 1 and name not in unused]
        cut = [n for n, _ in used if n not in connected and n not in unused]
        cut += [name for name in kernels if name in connected and name not in alive]
        if cut:
            self.object("layers without a gradient", f"{listed(cut)}.")
        silent = [name for name in kernels if name in alive and name not in alive_now]
        if silent and not alive_now:
            proof = "With these weights and images of 0 to 255 the gradient of every weight is 0."
            self.object("no gradient at present", proof)
        elif silent:
            self.remark("weights without a gradient at present", f"{listed(silent)}.")

    def forward_with_gradient(self, images):
        """The output in train mode; None if it has no gradient at all."""
        self.net.train()
        output = self.net(images.clone())
        return output if output.requires_grad else None

    def without_effect(self, names):
        """Those of the parameters that do not change the output, whatever their values."""

        def changes(chosen):
            state = {name: value.clone() for name, value in self.net.state_dict().items()}
            parameters = dict(self.net.named_parameters())
            before = self.call(self.images[:1])
            with torch.no_grad():
                for name in chosen:
                    parameters[name].copy_(torch.randn_like(parameters[name]))
            after = self.call(self.images[:1])
            self.net.load_state_dict(state)
            return not torch.equal(before, after)

        if not names or not changes(names):
            return names
        return [name for name in names if not changes([name])]

    # ---- pixels ----

    def check_coverage(self):
        # A network that changes its input would spoil the probe's images.
        hook = self.net.register_forward_pre_hook(lambda net, images: (images[0].clone(),))
        try:
            self.coverage = Segmentation.probe_output_coverage(self.net, self.size)
        except ValueError as error:
            self.object("not finite", f"{error}", stop=True)
        finally:
            hook.remove()
        reached, now = self.coverage.map, self.coverage.now
        if not reached.all():
            self.object("pixels without a path", self.coverage.summary)
        elif not now.all():
            self.remark("pixels that are constant at present", self.coverage.summary)

    def check_places(self):
        """Which input pixels an output pixel depends on, by the gradient; four of them."""
        reached = self.coverage.map
        if not self.same_size or not reached.any():
            return
        h, w = self.size
        wanted = [(h // 2, w // 2), (h // 4, w // 2), (h // 4, 3 * w // 4), (3 * h // 4, w // 4)]
        found = []
        for row, column in wanted:
            rows, columns = reached.nonzero(as_tuple=True)
            nearest = ((rows - row) ** 2 + (columns - column) ** 2).argmin()
            row, column = rows[nearest].item(), columns[nearest].item()
            weights = [self.influence(channel, row, column) for channel in (0, -1)]  # (H, W) each
            if all(weight is not None for weight in weights):
                found.append((row, column, *weights))
        if not found:
            return
        _, _, first, last = found[0]
        field = [extent((first + last).any(dim=d)) for d in (1, 0)]
        rows, columns = (end - begin + 1 for begin, end in field)
        self.report.facts.append(f"Receptive field of the middle pixel: {rows}x{columns} pixels.")
        wrong = self.wrong_place(found)
        if wrong:
            self.object("pixels at the wrong place", wrong)
        elif max(rows, columns) < max(h, w) / 2:
            self.remark(
                "small receptive field",
                f"An output pixel sees {rows}x{columns} pixels of an image of {h}x{w}.",
            )

    def influence(self, channel, row, column):
        """The size of the gradient of an output at each input pixel (H, W); None if it is 0."""
        total = torch.zeros(self.size)
        self.net.eval()
        for random, scale in ((False, 1), (True, 1 / 255), (True, 1)):
            context = backstage.random_weights if random else contextlib.nullcontext
            with context(self.net):
                images = (self.images[:2] * scale).requires_grad_()
                output = self.net(images.clone())[:, channel, row, column]
                if not output.requires_grad:
                    continue
                (grad,) = torch.autograd.grad(output.sum(), images, allow_unused=True)
            if grad is not None:
                size = grad.abs().sum(dim=(0, 1)).nan_to_num(0, 0, 0)  # (H, W)
                total += size / size.max().clamp(min=1e-30)
        total[total < 1e-6] = 0  # rounding
        return total if total.any() else None

    def wrong_place(self, found):
        """What is wrong with the places on which the output pixels depend; "" if nothing is.

        found: (row, column, influence on the first channel, on the last channel) of output pixels.
        """
        h, w = self.size
        side = max(h, w)
        for row, column, *weights in found:
            for weight in weights:
                (top, bottom), (left, right) = (extent(weight.any(dim=d)) for d in (1, 0))
                if max(top - row, row - bottom, left - column, column - right) > side / 8:
                    return (
                        f"Output pixel (row {row}, column {column}) depends on rows {top} to "
                        f"{bottom}, columns {left} to {right} of the image, and not on its own "
                        f"place."
                    )
        firsts, lasts = (torch.stack([centre(f[k]) for f in found]) for k in (2, 3))
        apart = (firsts - lasts).norm(dim=1).mean().item()
        if apart > side / 8:
            return (
                f"The first and the last channel of an output pixel depend on places that are "
                f"{apart:.0f} pixels apart."
            )
        places = torch.tensor([(row, column) for row, column, *_ in found]).float()
        rows, columns = places.T
        mirrored = {
            "with rows and columns exchanged": (columns * h / w, rows * w / h),
            "upside down": (h - 1 - rows, columns),
            "with left and right exchanged": (rows, w - 1 - columns),
        }

        def distance(expected):
            return (firsts - expected).norm(dim=1).mean().item()

        own = distance(places)
        for text, expected in mirrored.items():
            if own > side / 16 and distance(torch.stack(expected, dim=1)) < own / 2:
                return f"The output lies over the image {text}."
        return ""

    # ---- the rest ----

    def check_range(self):
        with backstage.random_weights(self.net):
            outputs = torch.cat([self.call(self.images * s) for s in (1, 1 / 16, 1 / 255)])
        outputs = torch.cat([outputs, self.output])
        low, high = outputs.min().item(), outputs.max().item()
        proof = f"With any weights they are between {low:.3g} and {high:.3g}."
        sums = outputs.sum(dim=1)
        if outputs.shape[1] > 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            self.remark("outputs that add up to 1", "At each pixel the channels add up to 1.")
        elif low >= 0 and high <= 1:
            self.remark("outputs from 0 to 1", proof)
        elif low >= -1 and high <= 1:
            self.remark("outputs from -1 to 1", proof)
        elif low >= 0 and (outputs == 0).any():
            self.remark("outputs never below 0", proof)

    def check_state_dict(self):
        mine = shapes_of(self.net)
        blocks = {name.split(".")[1] for name in mine if name.startswith("skip64DN_arr.")}
        layers = ("conv_in.weight", "conv_out.weight")
        if not all(len(mine.get(name, ())) == 4 for name in layers):
            self.report.facts.append("State dict: its own, not that of DLStudio's mUnet.")
            return
        depth = max(2 * len(blocks), 1)
        width, channels = mine["conv_in.weight"][0], mine["conv_out.weight"][1]
        with torch.device("meta"):
            theirs = shapes_of(
                Segmentation.mUnet(depth=depth, width=width + width % 2, out_channels=channels)
            )
        different = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        kind = f"DLStudio's mUnet with depth {depth}, width {width} and {channels} channels"
        if different:
            examples = [
                f"{name} {theirs.get(name, 'missing')} there, {mine.get(name, 'missing')} here"
                for name in different
            ]
            proof = f"{len(different)} entries differ from {kind}: {listed(examples)}."
            self.remark("almost DLStudio's state dict", proof)
        else:
            self.report.facts.append(f"State dict: that of {kind}; weights can be exchanged.")

    def measure_cost(self):
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        if not parameters:
            return
        seconds, kept = measure_iteration(self.net, self.batch_size, self.size)
        weights = 3 * sum(p.numel() * p.element_size() for p in parameters)
        self.report.facts.append(
            f"An iteration with {self.batch_size} images of {self.size[0]}x{self.size[1]}: "
            f"{1000 * seconds:.0f} ms on {recording.device_name(torch.device('cpu'))}; memory "
            f"{kept / 1e6:.0f} MB for feature maps, {weights / 1e6:.0f} MB for weights, gradients "
            f"and momentum."
        )


def measure_iteration(net, batch_size, image_size, repeats=3):
    """(the shortest time of a training iteration in seconds, bytes that it keeps for backward)."""
    images = torch.rand(batch_size, 3, *image_size) * 255
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-9, 0.9)
    net.train()
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    times = []
    for number in range(repeats + 1):  # the first one is slower
        start = time.perf_counter()
        hooks = contextlib.nullcontext()
        if number == 0:
            hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks:
            loss = net(images).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return min(times[1:]), sum(kept.values())


def modules_in(value):
    """The layers and parameters in a plain list, tuple or dict, and in those inside it."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    layers = [item for item in value if isinstance(item, nn.Module)]
    layers = [layer for layer in layers if next(layer.parameters(), None) is not None]
    return layers + [layer for item in value for layer in modules_in(item)]


def shapes_of(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def relative(difference, reference):
    """The largest difference as a share of the range of the reference."""
    span = (reference.max() - reference.min()).clamp(min=1e-12)
    return (difference.abs().max() / span).item()


def extent(flags):
    """(first, last) place that is set."""
    places = flags.nonzero()
    return places[0].item(), places[-1].item()


def centre(weight):
    """The mean (row, column) of a weight (H, W)."""
    total = weight.sum()
    rows, columns = (torch.arange(side).float() for side in weight.shape)
    return torch.stack((weight.sum(1) @ rows, weight.sum(0) @ columns)) / total


def listed(texts):
    """The first three texts, and how many more there are."""
    texts = list(texts)
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more


def describe(error):
    """An error in one line, with the last place of it outside of the libraries."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and frame.filename != __file__
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = (str(error) or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text}{place}"


# ---- the command --------------------------------------------------------------------------------


def add_command(commands):
    parser = commands.add_parser(
        "check-network",
        help="say what is wrong with your own network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network",
        metavar="FILE.py:NAME",
        help="a class, an object, or a function that makes it; arguments are possible: "
        "'FILE.py:MyNet(depth=8)'",
    )
    add = parser.add_argument
    size = {"nargs": 2, "default": (64, 64), "metavar": ("H", "W")}
    add("--image-size", type=int, help="default 64 64", **size)
    add("--out-channels", type=int, metavar="C", help="the number of classes; default: any")
    add("--batch-size", type=int, default=4, metavar="N", help="default 4")
    add("--seconds", type=float, default=300, metavar="S", help="limit of time; default 300")
    add("--memory", type=float, default=8, metavar="GIB", help="limit on Linux; default 8")
    parser.set_defaults(run=run)


def run(options):
    """Check the network of the command line in another process; returns the exit code."""
    file, name = students_code.split_target(options.network)
    sizes = [options.image_size, options.out_channels, options.batch_size]
    ending = students_code.run_limited(
        "SegStudio.check_network:examine",
        [str(Path(file).absolute()), name, *sizes],
        options.seconds,
        options.memory,
    )
    if ending.how == "not loaded":
        print(f"{options.network} cannot be loaded: {ending.text}", file=sys.stderr)
        return 2
    if ending.how == "answer":
        report = NetworkReport(**ending.answer)
    else:
        finding = "does not end" if ending.how in ("time", "flood") else "ends the process"
        report = NetworkReport(
            [("objection", finding, f"{ending.text[0].upper()}{ending.text[1:]}.")]
        )
    print(report)
    return 1 if report.objections else 0


def examine(path, name, image_size, out_channels, batch_size):
    """In the other process: the report on the network `name` of a file, for JSON."""
    net = load_network(Path(path), name)
    try:
        report = check_network(net, image_size, out_channels=out_channels, batch_size=batch_size)
    except TypeError as error:
        raise students_code.NotLoaded(str(error)) from None
    return {"findings": report.findings, "facts": report.facts}


def load_network(path, name):
    """The network that a name names: an object, or what a class or function makes.

    Errors: students_code.NotLoaded, with what to write instead.
    """
    if name:
        found = students_code.load_thing(path, name)
    else:
        name, found = only_network(path)
    if not isinstance(found, nn.Module) and callable(found):
        found = make(found, name)
    if not isinstance(found, nn.Module):
        raise students_code.NotLoaded(f"{name} is a {type(found).__name__} and no nn.Module")
    return found


def only_network(path):
    """(name, class) of the network in a file that has one only."""
    module = students_code.load(path)
    networks = [
        (name, value)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
    ]
    if len(networks) != 1:
        listed_names = ", ".join(name for name, _ in networks) or "none"
        raise students_code.NotLoaded(
            f"give the name of the network, FILE.py:NAME; classes: {listed_names}"
        )
    return networks[0]


def make(function, name):
    """What a class or a function without arguments makes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        raise students_code.NotLoaded(
            f"{name} needs {', '.join(needed)}: give values, as in '{name}({needed[0]}=1)'"
        )
    try:
        return function()
    except Exception as error:
        raise students_code.NotLoaded(f"{name}() fails: {describe(error)}") from None
