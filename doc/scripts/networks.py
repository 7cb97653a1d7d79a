"""Draws mUnet and UNet stage by stage, and writes the tables of doc/networks.md, from the code.

    python doc/scripts/networks.py      # 20 seconds; run it again after a change of a network

It runs each network once with hooks that note every stage: its output's shape, its parameters, how
often it is applied, and which earlier stage a concatenation copies from. The receptive field comes
from gradients. Nothing of a network is written down here, so drawing and code cannot disagree.
"""

import copy
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn
from torch.overrides import TorchFunctionMode

from SegStudio import SegStudio

DOC = Path(__file__).resolve().parents[1]
Segmentation = SegStudio.SemanticSegmentation
IMAGE_SIZE = (64, 64)
COLORS = ("#EAF2F8", "#CFE3F1", "#A9CDE6", "#7FB3D8")  # of the resolutions, from full to smallest
ORANGE = SegStudio.PALETTE[5]
GREEN = SegStudio.PALETTE[2]


@dataclass
class Stage:
    """One step of a forward pass: some blocks of one kind, or a concatenation."""

    group: str  # the attribute of the network
    numbers: list  # which blocks of a list of blocks; [] for a single module
    modules: list
    output: torch.Tensor
    copied_from: "Stage | None" = None  # of a concatenation: the stage whose output is copied
    copied: int = 0  # the number of channels that are copied
    again: bool = False
    receptive_field: int = 0

    @property
    def shape(self):
        return tuple(self.output.shape[1:])

    @property
    def resolution(self):
        return self.output.shape[2]

    @property
    def parameters(self):
        return sum(p.numel() for module in self.modules for p in module.parameters())

    @property
    def name(self):
        if not self.numbers:
            return self.group
        first, last = self.numbers[0], self.numbers[-1]
        return f"{self.group}[{first}]" if first == last else f"{self.group}[{first}..{last}]"

    @property
    def lost(self):
        """The share of output pixels that no input of the stage's upsampling layers can change."""
        shares = [0.0]
        for layer in (m for module in self.modules for m in module.modules()):
            if isinstance(layer, nn.ConvTranspose2d) and layer.stride != (1, 1):
                reach = Segmentation.probe_output_coverage(
                    layer, (8, 8), in_channels=layer.in_channels
                )
                shares.append(1 - reach.fraction)
        return max(shares)


class Recorder(TorchFunctionMode):
    """Notes the stages of a forward pass: hooks see the modules, this mode sees torch.cat."""

    def __init__(self, net):
        super().__init__()
        self.stages, self.depth, self.handles = [], 0, []
        for group, child in net.named_children():
            is_list = isinstance(child, nn.ModuleList)
            for number, module in enumerate(child) if is_list else [(None, child)]:
                self.watch(group, number, module)

    def watch(self, group, number, module):
        def enter(module, inputs):
            self.depth += 1

        def leave(module, inputs, output):
            self.depth -= 1
            if self.depth == 0:
                numbers = [] if number is None else [number]
                self.stages.append(Stage(group, numbers, [module], output))

        self.handles.append(module.register_forward_pre_hook(enter))
        self.handles.append(module.register_forward_hook(leave))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.cat and self.depth == 0:
            self.stages.append(self.concatenation(args[0], result))
        return result

    def concatenation(self, parts, result):
        """The stage of a torch.cat; of its parts, the copied one was made first."""

        def made_at(part):
            memory = part.untyped_storage().data_ptr()
            found = [
                k for k, s in enumerate(self.stages)
                if s.output.untyped_storage().data_ptr() == memory
            ]  # fmt: skip
            return found[-1]

        copied = min(parts, key=made_at)
        source = self.stages[made_at(copied)]
        return Stage("cat", [], [], result, copied_from=source, copied=copied.shape[1])

    def close(self):
        for handle in self.handles:
            handle.remove()


def record(net, image):
    """The stages of one forward pass, in order; outputs keep their gradients."""
    recorder = Recorder(net)
    with recorder:
        net(image)
    recorder.close()
    return recorder.stages


def merge(stages):
    """Join neighbouring blocks of one list that leave the shape alone, and mark repetitions."""
    merged, seen, joined = [], set(), {}
    for stage in stages:
        last = merged[-1] if merged else None
        stage.again = any(id(m) in seen for m in stage.modules) and stage.parameters > 0
        seen.update(id(module) for module in stage.modules)
        if (
            last and stage.numbers and last.group == stage.group and last.shape == stage.shape
            and last.again == stage.again
        ):  # fmt: skip
            last.numbers += stage.numbers
            last.modules += stage.modules
            last.output, last.receptive_field = stage.output, stage.receptive_field
            joined[id(stage)] = last
        else:
            merged.append(stage)
    for stage in merged:
        stage.copied_from = joined.get(id(stage.copied_from), stage.copied_from)
    return merged


def without_cancellation(net):
    """A copy of a network in which every input that can matter does: its gradient is above zero.

    All weights are positive, so no two paths cancel and no ReLU stops one. Average pooling stands
    for max-pooling, whose gradient reaches only the largest pixel of each window.
    """
    net = copy.deepcopy(net).double().eval()
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1 / max(1, parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    return net


def receptive_fields(net, width=1024, places=8):
    """The side of each stage's receptive field in pixels of the input, exactly.

    The gradient of one column of the output is above zero on the input columns that it depends on.
    The images are strips, because a square kernel sees as far down as across. Pixels of one stage
    can see differently far, so the largest of `places` neighbours counts.
    """
    net = without_cancellation(net)
    image = torch.full((places, 3, 16, width), 255.0, dtype=torch.float64, requires_grad=True)
    fields = []
    for stage in record(net, image):
        columns = torch.arange(places) + stage.output.shape[3] // 2
        chosen = stage.output.sum(dim=(1, 2))[torch.arange(places), columns]  # (places,)
        gradient = torch.autograd.grad(chosen.sum(), image, retain_graph=True)[0]
        seen = gradient.sum(dim=(1, 2)) > 0  # (places, width)
        if seen[:, 0].any() or seen[:, -1].any():
            return receptive_fields(net, 2 * width, places)
        numbers = torch.arange(width)
        sides = [int(numbers[row][-1] - numbers[row][0]) + 1 for row in seen if row.any()]
        fields.append(max(sides))
    return fields


def stages_of(net, narrow=None):
    """The merged stages of a network. `narrow` is the same network with few channels, if any."""
    torch.manual_seed(0)
    stages = record(net.eval(), torch.rand(1, 3, *IMAGE_SIZE) * 255)
    fields = receptive_fields(narrow or net)
    for stage, field in zip(stages, fields, strict=True):
        stage.receptive_field = field
    return merge(stages)


# ---- words --------------------------------------------------------------------------------------


def layers_of(module):
    """The layers of a module in words, such as ["max-pool 2x2", "conv 3x3 to 32"]."""
    if isinstance(module, nn.Sequential):
        return [words for child in module for words in layers_of(child)]
    if isinstance(module, nn.Conv2d):
        return [f"conv {module.kernel_size[0]}×{module.kernel_size[1]} to {module.out_channels}"]
    if isinstance(module, nn.ConvTranspose2d):
        words = f"transposed conv {module.kernel_size[0]}×{module.kernel_size[1]}"
        words += f", stride {module.stride[0]}" if module.stride != (1, 1) else ""
        words += f", dilation {module.dilation[0]}" if module.dilation != (1, 1) else ""
        return [words]
    if isinstance(module, nn.MaxPool2d):
        return [f"max-pool {module.kernel_size}×{module.kernel_size}"]
    if isinstance(module, nn.Upsample):
        return [f"each pixel copied to {module.scale_factor:g}×{module.scale_factor:g}"]
    if isinstance(module, nn.BatchNorm2d):
        return ["BatchNorm"]
    if isinstance(module, (nn.ReLU, nn.Identity)):
        return []
    return [type(module).__name__]


def description(stage):
    """What a stage does, in a few words."""
    if stage.group == "cat":
        others = stage.shape[0] - stage.copied
        return f"{stage.copied} channels of {stage.copied_from.name}, {others} of the stage before"
    counts = Counter(
        words
        for module in stage.modules
        for words in layers_of(module)
        if words != "BatchNorm" or isinstance(module, nn.BatchNorm2d)  # a part of every conv
    )
    return ", ".join(f"{n} × {words}" if n > 1 else words for words, n in counts.items())


def percent(share):
    return f"{100 * share:.0f} %"


def size(stage):
    return "×".join(map(str, stage.shape))


def unused_blocks(net, stages):
    """{attribute: numbers} of the blocks that are made and never applied."""
    used = {id(module) for stage in stages for module in stage.modules}
    unused = {}
    for group, child in net.named_children():
        if isinstance(child, nn.ModuleList):
            numbers = [k for k, module in enumerate(child) if id(module) not in used]
            if numbers:
                unused[group] = numbers
    return unused


def table(stages):
    """The stages as a table of Markdown."""
    lines = [
        "| stage | what it does | output C×H×W | parameters | receptive field |",
        "|---|---|---|---:|---:|",
    ]
    for stage in stages:
        name = f"`{stage.name}`" + (" again" if stage.again else "")
        notes = description(stage)
        if stage.lost:
            notes += f"; **{percent(1 - stage.lost)} of its output pixels follow its input**"
        parameters = f"{stage.parameters:,}"
        if stage.again or not stage.modules:
            parameters = "as above" if stage.again else ""
        elif not stage.parameters:
            parameters = "0"
        lines.append(
            f"| {name} | {notes} | {size(stage)} | {parameters} | {stage.receptive_field} |"
        )
    return "\n".join(lines)


def facts(net, stages):
    """Sentences on the whole network, measured."""
    total = sum(p.numel() for p in net.parameters())
    unused = unused_blocks(net, stages)
    lines = [f"- {total:,} parameters."]
    for group, numbers in unused.items():
        modules = [getattr(net, group)[k] for k in numbers]
        idle = sum(p.numel() for module in modules for p in module.parameters())
        lines.append(
            f"- Never applied: `{group}[{numbers[0]}..{numbers[-1]}]`, {len(numbers)} blocks with "
            f"{idle:,} parameters, {percent(idle / total)} of all."
        )
    for stage in stages:
        if stage.again:
            lines.append(f"- Applied twice: `{stage.name}`.")
    reach = Segmentation.probe_output_coverage(net, IMAGE_SIZE)
    lines.append(f"- {percent(reach.fraction)} of the output pixels follow the image.")
    return "\n".join(lines)


def coverage_table():
    """How much of the output can follow the image, for each way of upsampling."""
    lines = ["| network | output pixels that follow the image | parameters |", "|---|---:|---:|"]
    for name, net in {
        'mUnet(upsampling="strided")': Segmentation.mUnet(),
        'mUnet(upsampling="dense")': Segmentation.mUnet(upsampling="dense"),
        "UNet()": Segmentation.UNet(),
    }.items():
        reach = Segmentation.probe_output_coverage(net, IMAGE_SIZE)
        total = sum(p.numel() for p in net.parameters())
        lines.append(f"| `{name}` | {percent(reach.fraction)} | {total:,} |")
    return "\n".join(lines)


# ---- the drawing --------------------------------------------------------------------------------


def rows_of(stages):
    """(stage, side, row) of every stage: the encoder goes down the left side, the decoder up the
    right. Stages of one resolution share a band of rows; the concatenations are on the right.
    """
    smallest = min(stage.resolution for stage in stages)
    turn = max(k for k, stage in enumerate(stages) if stage.resolution == smallest) + 1
    left, right = stages[:turn], stages[turn:][::-1]
    placed, row = [], 0.0
    for resolution in sorted({stage.resolution for stage in stages}, reverse=True):
        sides = [[s for s in side if s.resolution == resolution] for side in (left, right)]
        height = max(map(len, sides))
        for side, members in enumerate(sides):
            step = height / max(1, len(members))
            for k, stage in enumerate(members):
                place = row + step * (k + 0.5) - 0.5
                if len(members) == 1:  # where the resolution changes, not in the middle
                    place = row + (height - 1) / 2
                placed.append((stage, side, place))
        row += height
    return placed, row


def draw(net, stages, title, path):
    """The U of a network: 7 inches wide, shown at 700 pixels."""
    placed, rows = rows_of(stages)
    unit = 0.56  # inches for each row
    width, height = 7.0, unit * rows + 0.95
    figure = Figure(figsize=(width, height), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    axes.text(0.1, height - 0.22, title, fontsize=11, weight="bold", va="center")
    resolutions = sorted({stage.resolution for stage in stages}, reverse=True)
    box_width, box_height, lefts = 3.08, 0.44, (0.1, 3.82)
    places = {}
    for stage, side, row in placed:
        x, y = lefts[side], height - 0.45 - unit * (row + 0.5)
        places[id(stage)] = (side, x, y)
        level = min(resolutions.index(stage.resolution), len(COLORS) - 1)
        edge, line = "#4A6274", 0.8
        if stage.lost:
            edge, line = ORANGE, 2
        elif stage.group == "cat":
            edge = GREEN
        axes.add_patch(
            FancyBboxPatch(
                (x, y - box_height / 2), box_width, box_height,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor="white" if stage.group == "cat" else COLORS[level],
                edgecolor=edge, linewidth=line, zorder=2,
            )
        )  # fmt: skip
        name = "concatenate" if stage.group == "cat" else stage.name
        name += "  (again)" if stage.again else ""
        axes.text(x + 0.08, y + 0.1, name, fontsize=8.5, weight="bold", va="center", zorder=3)
        axes.text(
            x + box_width - 0.08, y + 0.1, size(stage), fontsize=8.5, ha="right", va="center",
            zorder=3,
        )  # fmt: skip
        words = description(stage)
        if stage.lost:
            words = f"{percent(stage.lost)} of its output pixels are constant"
        elif stage.group == "cat":
            words = words.split(",")[0]
        axes.text(
            x + 0.08, y - 0.1, words, fontsize=7.5, va="center", zorder=3,
            color=ORANGE if stage.lost else "#333333",
        )  # fmt: skip
        axes.text(
            x + box_width - 0.08, y - 0.1, f"sees {stage.receptive_field}", fontsize=7.5,
            ha="right", va="center", color="#333333", zorder=3,
        )  # fmt: skip
    arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    for before, after in zip(stages, stages[1:], strict=False):
        (side1, x1, y1), (side2, x2, y2) = places[id(before)], places[id(after)]
        if side1 == side2:
            sign = -1 if side1 == 0 else 1
            start = (x1 + box_width / 2, y1 + sign * box_height / 2)
            end = (x2 + box_width / 2, y2 - sign * box_height / 2)
        else:  # the turn at the bottom
            start, end = (x1 + box_width, y1), (x2, y2)
        axes.add_patch(FancyArrowPatch(start, end, color="#4A6274", linewidth=1, **arrow))
    for stage in stages:
        if stage.copied_from is not None:
            _, x1, y1 = places[id(stage.copied_from)]
            _, x2, y2 = places[id(stage)]
            axes.add_patch(
                FancyArrowPatch(
                    (x1 + box_width, y1), (x2, y2), color=GREEN, linewidth=1.6, zorder=4, **arrow
                )
            )
    legend = (
        "Numbers: channels × height × width.   sees n: receptive field, n×n pixels of the image."
        "   Green: skip connections."
    )
    if any(stage.lost for stage in stages):
        legend += "\nOrange: three pixels in four are lost here."
    legend += "".join(
        f"   Never applied, so not drawn: {group}[{n[0]}..{n[-1]}]."
        for group, n in unused_blocks(net, stages).items()
    )
    axes.text(0.1, 0.24, legend, fontsize=7.5, va="center", color="#333333", linespacing=1.5)
    SegStudio.write_atomically(path, lambda part: figure.savefig(part, format="png"))


# ---- the page -----------------------------------------------------------------------------------


def fill_in(page, name, text):
    """Put `text` between the two markers `name` of a page."""
    start, end = f"<!-- {name}: made by doc/scripts/networks.py -->", "<!-- end -->"
    filled = f"{start}\n\n{text}\n\n{end}"
    page, found = re.subn(f"{start}.*?{end}", lambda match: filled, page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the page has {found} places for {name}")
    return page


def networks():
    """{name: (network, the same with few channels, title)} of all that is drawn."""
    return {
        "mUnet": (
            Segmentation.mUnet(),
            Segmentation.mUnet(width=2),
            "mUnet, as in the homework: depth 16, images of 64×64",
        ),
        "UNet": (Segmentation.UNet(), None, "UNet, images of 64×64"),
    }


def write_page(path=DOC / "networks.md"):
    page = path.read_text(encoding="utf-8")
    drawn = {}
    for name, (net, narrow, title) in networks().items():
        stages = stages_of(net, narrow)
        drawn[name] = (net, stages, title)
        page = fill_in(page, f"table of {name}", table(stages))
        page = fill_in(page, f"facts of {name}", facts(net, stages))
    page = fill_in(page, "coverage of mUnet", coverage_table())
    SegStudio.write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))
    return drawn


if __name__ == "__main__":
    for name, (net, stages, title) in write_page().items():
        draw(net, stages, title, DOC / "figures" / f"networks-{name}.png")
