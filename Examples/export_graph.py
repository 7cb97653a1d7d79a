"""A trained network as a list of simple steps, for explore.py, whose page runs them in JavaScript.

It records a forward pass of the network, so the page always computes what the code computes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What a step computes. x is its first input; an image has the shape (channels, H, W).
#   input    the image, 0..255
#   conv     a convolution: kernel, stride, padding, dilation; weight and bias are offsets
#   spread   puts x on every stride-th row and column, and zeros between
#   affine   x * scale + shift, one number for each channel
#   pool     the maximum of each square of size x size
#   enlarge  copies each pixel to a square of size x size
#   slice    the channels from start on
#   add, cat two or more inputs, added or concatenated
#   relu     nothing but the ReLU of x
# Each step can have a ReLU at its end: "relu" is True then.


@dataclass
class Graph:
    """A network as data.

    steps: dicts with "op", "from" (the numbers of its input steps), "shape" (C, H, W), "relu" and
        what the operation needs. Step 0 is the image, the last step is the output.
    weights: one float32 array; the steps hold offsets into it.
    stages: dicts with "name", "step" and, for concatenations, "copied_from" (the number of the
        stage that the skip connection copies) and "copied" (how many channels).
    """

    steps: list
    weights: np.ndarray
    stages: list


def export_graph(net, image_size):
    """The Graph of a network in eval mode, for images (3, H, W) with image_size (H, W).

    BatchNorm in eval mode is a scale and a shift; they become part of the convolution before it.
    A transposed convolution is a `spread` and a convolution with the flipped kernel.

    Errors: ValueError for an operation that the page does not know.
    """
    training = [module for module in net.modules() if module.training]
    net.eval()
    recorder = Recorder(net, torch.zeros(1, 3, *image_size))
    try:
        recorder.record()
    finally:
        recorder.remove_hooks()
        for module in training:
            module.training = True
    return recorder.graph()


class Recorder(TorchFunctionMode):
    """Records the torch functions of a forward pass as steps; hooks on modules note the stages."""

    def __init__(self, net, image):
        super().__init__()
        self.net = net
        self.image = image
        self.steps = []
        self.numbers = {}  # id of a tensor -> number of the step that made it
        self.tensors = []  # keeps them in memory, so that no id is used twice
        self.stages = []
        self.inside = 0  # how many watched modules the forward pass is in
        self.calls = {}
        self.handles = []
        for name, child in net.named_children():
            if isinstance(child, nn.ModuleList):
                for number, module in enumerate(child):
                    self.watch(f"{name}[{number}]", f"{name}.{number}", module)
            else:
                self.watch(name, name, child)

    def watch(self, title, path, module):
        """Make the output of a module a stage, unless it is called inside another one."""

        def enter(module, args):
            self.inside += 1

        def leave(module, args, output):
            self.inside -= 1
            if self.inside == 0 and id(output) in self.numbers:
                call = self.calls.get(path, 0)
                self.calls[path] = call + 1
                self.add_stage(title, self.number_of(output), module=path, call=call)

        self.handles.append(module.register_forward_pre_hook(enter))
        self.handles.append(module.register_forward_hook(leave))

    def add_stage(self, title, step, **more):
        names = {stage["name"] for stage in self.stages}
        name, count = title, 1
        while name in names:
            count += 1
            name = f"{title} ({count})"
        self.stages.append({"name": name, "step": step, **more})

    def remove_hooks(self):
        for handle in self.handles:
            handle.remove()

    def record(self):
        self.add("input", [], self.image)
        with torch.no_grad(), self:
            output = self.net(self.image)
        if self.numbers.get(id(output)) != len(self.steps) - 1:
            raise self.refusal("its output is not the result of its last operation")

    def refusal(self, reason):
        return ValueError(
            f"explore.py cannot show this {type(self.net).__name__}: {reason}. "
            f"It shows networks like mUnet and UNet"
        )

    # ---- what torch calls -----------------------------------------------------------------------

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        inputs = args[0] if args and isinstance(args[0], (list, tuple)) else args[:2]
        if isinstance(result, torch.Tensor) and any(id(x) in self.numbers for x in inputs):
            name = getattr(function, "__name__", str(function)).strip("_")
            step = getattr(self, f"on_{name}", None)
            if step is None:
                raise self.refusal(f"the page has no operation {name}")
            step(result, *args, **kwargs)
        return result

    def number_of(self, tensor):
        if id(tensor) not in self.numbers:
            raise self.refusal("it computes with a tensor that does not come from the image")
        return self.numbers[id(tensor)]

    def add(self, op, inputs, result, **options):
        numbers = [self.number_of(tensor) for tensor in inputs]
        self.steps.append(
            {"op": op, "from": numbers, "shape": list(result.shape[1:]), "relu": False, **options}
        )
        self.numbers[id(result)] = len(self.steps) - 1
        self.tensors.append(result)

    def side(self, value, what):
        """One number for both axes."""
        sides = set(value) if isinstance(value, (tuple, list)) else {value}
        if len(sides) != 1 or not isinstance(next(iter(sides)), int):
            raise self.refusal(f"{what} is {value}, not one number for both axes")
        return sides.pop()

    def on_conv2d(self, result, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        self.add_conv(result, x, weight, bias, stride, padding, dilation, groups)

    def on_conv_transpose2d(
        self, result, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
        dilation=1,
    ):  # fmt: skip
        stride = self.side(stride, "the stride of a transposed convolution")
        extra = self.side(output_padding, "the output padding of a transposed convolution")
        reach = self.side(dilation, "a dilation") * (self.side(weight.shape[2:], "a kernel") - 1)
        padding = reach - self.side(padding, "a padding")
        if padding < 0:
            raise self.refusal("a transposed convolution cuts off more than its kernel adds")
        if stride > 1 or extra > 0:
            height, width = ((n - 1) * stride + 1 + extra for n in x.shape[2:])
            between = x.new_zeros(1, x.shape[1], height, width)
            self.add("spread", [x], between, stride=stride)
            x = between
        turned = weight.transpose(0, 1).flip(2, 3)
        self.add_conv(result, x, turned, bias, 1, padding, dilation, groups)

    def add_conv(self, result, x, weight, bias, stride, padding, dilation, groups):
        if groups != 1:
            raise self.refusal(f"a convolution has {groups} groups")
        self.add(
            "conv", [x], result,
            weight=weight.double(),
            bias=torch.zeros(len(weight)).double() if bias is None else bias.double(),
            kernel=self.side(weight.shape[2:], "a kernel"),
            stride=self.side(stride, "a stride"),
            padding=self.side(padding, "a padding"),
            dilation=self.side(dilation, "a dilation"),
        )  # fmt: skip

    def on_batch_norm(
        self, result, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        if training or mean is None:
            raise self.refusal("a BatchNorm layer uses the statistics of the batch")
        scale = (var.double() + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.double()
        shift = -mean.double() * scale
        if bias is not None:
            shift = shift + bias.double()
        self.add("affine", [x], result, scale=scale, shift=shift)

    def on_relu(self, result, x, inplace=False):
        if inplace:
            raise self.refusal("a ReLU works in place")
        self.add("relu", [x], result)
        self.steps[-1]["relu"] = True

    def on_max_pool2d(
        self, result, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
        return_indices=False,
    ):  # fmt: skip
        size = self.side(kernel_size, "the size of a pooling")
        if self.side(stride or size, "a stride") != size or padding or dilation != 1 or ceil_mode:
            raise self.refusal("the windows of a pooling overlap or have gaps")
        self.add("pool", [x], result, size=size)

    def on_interpolate(self, result, x, size=None, scale_factor=None, mode="nearest", **options):
        factor = result.shape[2] // x.shape[2]
        enlarged = [factor * x.shape[2], factor * x.shape[3]]
        if mode != "nearest" or list(result.shape[2:]) != enlarged:
            raise self.refusal(f"it interpolates by {mode} to {tuple(result.shape[2:])}")
        self.add("enlarge", [x], result, size=factor)

    def on_getitem(self, result, x, index):
        whole = slice(None)
        channels = index[1] if isinstance(index, tuple) and len(index) == 2 else None
        if index[0] != whole or not isinstance(channels, slice) or channels.step not in (None, 1):
            raise self.refusal("it takes a part of a tensor that is not a range of channels")
        self.add("slice", [x], result, start=channels.indices(x.shape[1])[0])

    def on_cat(self, result, tensors, dim=0):
        if dim != 1:
            raise self.refusal(f"it concatenates along axis {dim}")
        self.add("cat", tensors, result)
        if self.inside == 0:
            self.add_stage("cat", len(self.steps) - 1, module=None, call=0)

    def on_add(self, result, x, y):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            if x.shape != y.shape:
                raise self.refusal("it adds tensors of different shapes")
            self.add("add", [x, y], result)
        else:
            tensor, number = (x, y) if isinstance(x, torch.Tensor) else (y, x)
            self.add_affine(result, tensor, 1, number)

    def on_sub(self, result, x, y):
        self.add_affine(result, x, 1, -y)

    def on_mul(self, result, x, y):
        self.add_affine(result, x, y, 0)

    def on_div(self, result, x, y):
        self.add_affine(result, x, 1 / y, 0)

    def add_affine(self, result, x, scale, shift):
        if isinstance(scale, torch.Tensor) or isinstance(shift, torch.Tensor):
            raise self.refusal("it multiplies, divides or subtracts two tensors")
        ones = torch.ones(x.shape[1]).double()
        self.add("affine", [x], result, scale=scale * ones, shift=shift * ones)

    # ---- fewer steps ----------------------------------------------------------------------------

    def graph(self):
        """The recorded steps without what is unused, and with scales and ReLUs folded."""
        self.mark_used()
        for number, step in enumerate(self.steps):
            if step["used"] and step["from"]:
                self.fold(number, step, self.steps[step["from"][0]])
        self.mark_used()
        kept = [k for k, step in enumerate(self.steps) if step["used"]]
        new = {old: number for number, old in enumerate(kept)}
        steps, weights = pack([self.steps[k] for k in kept])
        for step in steps:
            step["from"] = [new[k] for k in step["from"]]
        stages = [stage for stage in self.stages if stage["step"] in new]
        for stage in stages:
            stage["step"] = new[stage["step"]]
        find_skips(steps, stages)
        return Graph(steps, weights, stages)

    def mark_used(self):
        """Note which steps the output needs, and which steps read each of them."""
        for step in self.steps:
            step["used"], step["readers"] = False, 0
        self.steps[-1]["used"] = True
        self.steps[0]["used"] = True
        for step in reversed(self.steps):
            for k in step["from"] if step["used"] else ():
                self.steps[k]["used"] = True
                self.steps[k]["readers"] += 1

    def fold(self, number, step, before):
        """Put a scale or a ReLU into the step before it, if no other step reads that step."""
        shown = {stage["step"] for stage in self.stages}
        if before["readers"] != 1 or step["from"][0] in shown or before["relu"]:
            return
        if step["op"] == "affine" and before["op"] in ("conv", "affine"):
            scale, shift = step["scale"], step["shift"]
            if before["op"] == "conv":
                step["weight"] = before["weight"] * scale[:, None, None, None]
                step["bias"] = before["bias"] * scale + shift
                del step["scale"], step["shift"]
            else:
                step["scale"] = before["scale"] * scale
                step["shift"] = before["shift"] * scale + shift
        elif step["op"] != "relu" or before["op"] == "input":
            return
        # The step takes the place of the one before it, which nothing reads any more.
        self.steps[number] = {**before, **step, "op": before["op"], "from": before["from"]}


def pack(steps):
    """The steps with offsets in place of tensors, and all weights as one array, each once."""
    chunks, offsets, size = [], {}, 0
    packed = []
    for step in steps:
        step = {key: value for key, value in step.items() if key not in ("used", "readers")}
        for key in ("weight", "bias", "scale", "shift"):
            if key in step:
                chunk = step[key].float().contiguous().numpy().ravel()
                content = chunk.tobytes()
                if content not in offsets:
                    offsets[content] = size
                    chunks.append(chunk)
                    size += chunk.size
                step[key] = offsets[content]
        packed.append(step)
    return packed, np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def find_skips(steps, stages):
    """Note at each concatenation which stage its skip connection copies, and how many channels."""
    for number, stage in enumerate(stages):
        if steps[stage["step"]]["op"] != "cat" or stage["module"] is not None:
            continue
        earlier = stages[:number]
        sources = []
        for part in steps[stage["step"]]["from"]:
            source = part
            while steps[source]["op"] in ("slice", "relu"):  # the same pixels, or a part of them
                source = steps[source]["from"][0]
            made = [k for k, other in enumerate(earlier) if other["step"] == source]
            if made:
                sources.append((made[-1], steps[part]["shape"][0]))
        if len(sources) > 1:  # the older one comes over the skip connection
            stage["copied_from"], stage["copied"] = min(sources)
