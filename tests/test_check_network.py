"""check_network: wrong networks are recognised by name, right ones are not accused."""


import pytest
import torch
import torchvision
from conftest import ROOT, Segmentation
from torch import nn
from torch.nn import functional as F

from SegStudio import check_network as checker
from SegStudio.__main__ import main

SIZE = (32, 32)


def check(net, **options):
    torch.manual_seed(0)
    return checker.check_network(net, **{"image_size": SIZE, **options})


def names(findings):
    return [finding.name for finding in findings]


def conv(n=3, m=5, kernel=3, **options):
    return nn.Conv2d(n, m, kernel, padding=kernel // 2, **options)


class Small(nn.Module):
    """A right network in four layers; the wrong ones change its end."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))
        self.b = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU())
        self.c = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        y = F.interpolate(self.b(self.a(x / 255)), scale_factor=4)
        skip = F.interpolate(self.a(x / 255), scale_factor=4)
        return self.end(self.c(torch.cat((y, skip), dim=1)))

    def end(self, y):
        return y


def ends_with(function):
    return type("Changed", (Small,), {"end": lambda self, y: function(y)})


# ---- wrong networks -----------------------------------------------------------------------------


class FixedBatch(Small):
    def end(self, y):
        return y.reshape(3, 5, 32, 32)


class PlainList(Small):
    def __init__(self):
        super().__init__()
        self.layers = [conv(5, 5), nn.ReLU(), conv(5, 5)]

    def end(self, y):
        for layer in self.layers:
            y = layer(y)
        return y


class MadeInForward(Small):
    def end(self, y):
        return nn.Conv2d(5, 5, 1)(y)


class InPlace(Small):
    def forward(self, x):
        x /= 255
        return super().forward(x * 255)


class NoEval(Small):
    def train(self, mode=True):
        return super().train(True)


class NoAverages(Small):
    def __init__(self):
        super().__init__()
        self.a[1] = nn.BatchNorm2d(8, track_running_stats=False)


class CutEncoder(Small):
    def __init__(self):
        super().__init__()
        self.first = conv(3, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return super().forward(x)


class Saturated(nn.Module):
    """Its sigmoid is 1 for images of 0 to 255; images of 0 to 1 would do."""

    def __init__(self):
        super().__init__()
        self.c = conv(3, 5, 17)
        nn.init.ones_(self.c.weight)

    def forward(self, x):
        return torch.sigmoid(self.c(x))


class Constant(Small):
    def __init__(self):
        super().__init__()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.constant_(layer.weight, 0.01)


class Scrambled(Small):
    def end(self, y):
        return y.permute(0, 2, 3, 1).reshape(y.shape)


class SelfMade(nn.Module):
    """It has no skip connection: its pixels see enough, but lie the other way round."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 5))

    def forward(self, x):
        return self.layers(x / 255)


class Transposed(SelfMade):
    def forward(self, x):
        return super().forward(x).transpose(2, 3)


class UpsideDown(Small):
    def end(self, y):
        return y.flip(2)


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = conv(3, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 5, 1, stride=2, output_padding=1)

    def forward(self, x):
        return self.up(torch.relu(self.down(x / 255)))


class Raises(Small):
    def end(self, y):
        return self.missing(y)


WRONG = {
    "forward fails": Raises,
    "not a tensor": ends_with(lambda y: {"out": y}),
    "wrong type": ends_with(lambda y: y.argmax(dim=1, keepdim=True)),
    "wrong shape": ends_with(lambda y: y[:, :, ::2, ::2]),
    "not finite": ends_with(lambda y: torch.log(y - y.amax(dim=1, keepdim=True))),
    "fixed batch size": FixedBatch,
    "layers in a plain list": PlainList,
    "layers made in forward": MadeInForward,
    "random in eval mode": ends_with(lambda y: F.dropout(y, 0.5)),
    "changes its input": InPlace,
    "images of a batch mix": ends_with(lambda y: y.softmax(dim=0)),
    "no gradient": ends_with(lambda y: (y > 0).float()),
    "no gradient at present": Saturated,
    "layers without a gradient": CutEncoder,
    "channels that stay alike": Constant,
    "pixels without a path": Strided,
    "pixels at the wrong place": Scrambled,
}
MORE_WRONG = [
    ("images of a batch mix", NoEval),
    ("images of a batch mix", NoAverages),
    ("no gradient", ends_with(lambda y: y.detach())),
    ("no gradient", ends_with(lambda y: torch.round(y))),
    ("no gradient", ends_with(lambda y: y[:, :1].softmax(dim=1))),
    ("pixels at the wrong place", UpsideDown),
    ("wrong shape", ends_with(lambda y: y.flatten(1))),
    ("pixels without a path", lambda: Segmentation.mUnet(depth=2, width=4)),
]


@pytest.mark.parametrize(("name", "make"), [*WRONG.items(), *MORE_WRONG])
def test_a_wrong_network_is_recognised_by_name(name, make):
    torch.manual_seed(0)
    found = check(make())
    assert names(found.objections) == [name]
    assert name in str(found)
    assert found.objections[0].proof and found.objections[0].advice in str(found)


def test_exchanged_rows_and_columns_show_in_the_shape_and_the_place():
    found = names(check(Transposed()).objections)
    assert found == ["wrong shape", "pixels at the wrong place"]


def test_every_objection_to_a_network_has_a_wrong_network():
    of_the_process = {"does not end", "ends the process"}
    assert set(WRONG) | of_the_process == set(checker.OBJECTIONS)


def test_an_error_in_forward_is_told_with_its_line():
    proof = check(Raises()).objections[0].proof
    assert "AttributeError" in proof
    assert "missing" in proof
    assert "test_check_network.py, line " in proof


def test_a_wrong_number_of_channels_is_an_objection_if_the_right_one_is_known():
    assert names(check(Small(), out_channels=1).objections) == ["wrong shape"]
    assert names(check(Small(), out_channels=5).objections) == []


def test_numbers_of_the_report_are_measured():
    net = Strided()
    report = check(net)
    assert "25%" in report.objections[0].proof
    parameters = sum(p.numel() for p in net.parameters())
    assert f"{parameters:,} parameters in 4 tensors; 5 output channels" in report.facts[0]
    assert "Receptive field of the middle pixel: 3x3 pixels." in report.facts


# ---- right networks -----------------------------------------------------------------------------


class ZeroHead(Small):
    """Starts at 0, as heads often do: in the first step only the last layer learns."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.c.weight)
        nn.init.zeros_(self.c.bias)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            conv(3, 4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 5120)
        )

    def forward(self, x):
        return self.layers(x / 255).view(-1, 5, 32, 32)


class ToOnePixel(nn.Module):
    """Its deepest feature map is one pixel, so BatchNorm refuses a batch of one in train mode."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(conv(3, 8), nn.AvgPool2d(32), nn.BatchNorm2d(8))
        self.up = nn.Conv2d(11, 5, 3, padding=1)

    def forward(self, x):
        deep = self.down(x).expand(-1, -1, *x.shape[2:]) if x.shape[3] == 32 else None
        return self.up(torch.cat((deep, x), dim=1))


class Unused(Small):
    def __init__(self):
        super().__init__()
        self.forgotten = conv(5, 5)


def frozen():
    net = Small()
    net.a.requires_grad_(False)
    return net


class WithAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.ConvTranspose2d(16, 5, 4, stride=4)

    def forward(self, x):
        y = self.embed(x / 255)  # (N, 16, H/4, W/4)
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + self.attend(tokens, tokens, tokens)[0]
        return self.out(tokens.transpose(1, 2).reshape(y.shape))


class GroupNormNet(Small):
    def __init__(self):
        super().__init__()
        self.a[1] = nn.GroupNorm(4, 8)
        self.b.append(nn.Dropout2d(0.5))


class OfTorchvision(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5
        )

    def forward(self, x):
        return self.net(x / 255)["out"]


RIGHT = {
    "small": (Small, {"BatchNorm"}),
    "dense mUnet": (lambda: Segmentation.mUnet(depth=16, width=4, upsampling="dense"),
                    {"BatchNorm", "unused layers"}),
    "UNet": (lambda: Segmentation.UNet(width=4, stem=4), {"BatchNorm"}),
    "one channel": (lambda: Segmentation.UNet(1, width=4, stem=4), {"BatchNorm"}),
    "zero head": (ZeroHead, {"BatchNorm", "pixels that are constant at present",
                             "weights without a gradient at present"}),
    "fixed size": (Fixed, {"one image size only"}),
    "to one pixel": (ToOnePixel, {"BatchNorm", "no batch of one image in train mode",
                                  "one image size only"}),
    "unused layer": (Unused, {"BatchNorm", "unused layers"}),
    "frozen": (frozen, {"BatchNorm", "frozen weights"}),
    "small view": (SelfMade, {"small receptive field"}),
    "sigmoid": (ends_with(torch.sigmoid), {"BatchNorm", "outputs from 0 to 1"}),
    "softmax": (ends_with(lambda y: y.softmax(1)), {"BatchNorm", "outputs that add up to 1"}),
    "tanh": (ends_with(torch.tanh), {"BatchNorm", "outputs from -1 to 1"}),
    "relu": (ends_with(torch.relu), {"BatchNorm", "outputs never below 0"}),
    "seven classes": (lambda: Segmentation.UNet(7, width=4, stem=4),
                      {"BatchNorm", "unusual number of channels"}),
    "attention": (WithAttention, set()),
    "group norm and dropout": (GroupNormNet, set()),
    "torchvision": (OfTorchvision, {"BatchNorm"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_network_is_not_accused(name):
    make, remarks = RIGHT[name]
    torch.manual_seed(0)
    report = check(make())
    assert names(report.objections) == []
    assert set(names(report.remarks)) == remarks
    assert "Nothing is wrong with this network." in str(report)


def test_every_remark_has_a_right_network():
    named = set().union(*(remarks for _, remarks in RIGHT.values()))
    assert named | {"almost DLStudio's state dict"} == set(checker.REMARKS)


def test_the_network_stays_as_it_was():
    net = Small().train()
    net.a[1].eval()  # frozen by the student
    net.c.weight.grad = torch.ones_like(net.c.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    number = torch.get_rng_state()
    checker.check_network(net, SIZE)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.c.weight.grad.eq(1).all()
    assert net.b[0].weight.grad is None
    assert net.training
    assert not net.a[1].training
    assert torch.equal(number, torch.get_rng_state())


def test_the_unused_layers_of_dlstudios_network_are_counted():
    """At depth 16 six of the eight blocks of skip128UP_arr never run."""
    net = Segmentation.mUnet(depth=16, width=4)
    (remark,) = [f for f in check(net).remarks if f.name == "unused layers"]
    unused = sum(p.numel() for block in net.skip128UP_arr[2:] for p in block.parameters())
    for block in (net.skip64to128DN, net.skip128to64UP):  # they change the number of channels
        names_of_second = ("convo2", "convoT2", "bn2")
        second = [getattr(block, name) for name in names_of_second if hasattr(block, name)]
        unused += sum(p.numel() for layer in second for p in layer.parameters())
    assert f"{unused:,} parameters" in remark.proof


def test_state_dicts_beside_dlstudios():
    facts = check(Segmentation.mUnet(depth=4, width=8, out_channels=1)).facts
    expected = "State dict: that of DLStudio's mUnet with depth 4, width 8 and 1 channels; weights"
    assert any(fact.startswith(expected) for fact in facts)
    changed = Segmentation.mUnet(depth=4, width=8, upsampling="dense")
    changed.bn2UP = nn.Identity()
    report = check(changed)
    (remark,) = [f for f in report.remarks if f.name == "almost DLStudio's state dict"]
    assert remark.proof.startswith("5 entries differ from")
    assert "bn2UP.weight (8,) there, missing here" in remark.proof
    assert "State dict: its own, not that of DLStudio's mUnet." in check(Small()).facts


def test_memory_counts_what_backward_needs():
    """One 1x1 convolution keeps its input: 4 images of 3x32x32 in float32."""
    net = nn.Conv2d(3, 5, 1)
    _, kept = checker.measure_iteration(net, 4, SIZE)
    # and the loss, a mean of squares, keeps the output: 5 channels
    assert kept == 4 * (3 + 5) * 32 * 32 * 4


def test_one_layer_of_random_weights_is_enough():
    net = Constant()
    nn.init.kaiming_normal_(net.b[0].weight)  # it gives each channel a gradient of its own
    assert names(check(net).objections) == []


def test_a_small_dependence_on_the_other_images_is_found():
    class Attends(Small):
        """Mixes a little of the batch's mean into each image."""

        def forward(self, x):
            output = super().forward(x)
            return output + 2e-3 * output.mean(0, keepdim=True)

    assert "images of a batch mix" in names(check(Attends()).objections)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="takes an nn.Module, not a function"):
        Segmentation.check_network(lambda x: x)


def test_the_method_of_the_module_is_the_same_check():
    assert names(Segmentation.check_network(Strided(), SIZE).objections) == [
        "pixels without a path"
    ]


# ---- the command --------------------------------------------------------------------------------

HEAD = "import torch\nfrom torch import nn\n\n"
GOOD = HEAD + (
    "class Net(nn.Module):\n"
    "    def __init__(self, channels=5):\n"
    "        super().__init__()\n"
    "        self.a = nn.Conv2d(3, 8, 17, padding=8)\n"
    "        self.b = nn.Conv2d(8, channels, 3, padding=1)\n"
    "    def forward(self, x):\n"
    "        return self.b(torch.relu(self.a(x / 255)))\n"
)


@pytest.fixture
def command(tmp_path, capfd):
    """Writes a file of this source and runs the command on it: (exit code, what is printed)."""

    def run(source, name="Net", *flags):
        (tmp_path / "net.py").write_text(source)
        target = str(tmp_path / "net.py") + (f":{name}" if name else "")
        code = 0
        try:
            main(["check-network", target, "--image-size", "32", "32", *flags])
        except SystemExit as ended:
            code = ended.code
        printed = "".join(capfd.readouterr())
        assert "Traceback" not in printed, printed
        return code, printed

    return run


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        (GOOD, "Net", "Nothing is wrong"),
        (GOOD, "", "Nothing is wrong"),
        (GOOD, "Net(channels=1)", "1 output channel."),
        (GOOD + "def make():\n    return Net(1)\n", "make", "1 output channel."),
        (GOOD + "net = Net()\n", "net", "Nothing is wrong"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_the_command_on_a_right_network(command, source, name, words):
    code, printed = command(source, name)
    assert (code, words in printed) == (0, True), printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "flags", "words"),
    [
        ("pass", [], "Nothing is wrong"),
        ("while True: pass", ["--seconds", "4"], "does not end\n  It was stopped after 4 seconds."),
        ("while True: print('x' * 1000)", [], "does not end\n  It printed more than 10 MB"),
        ("import os; os._exit(0)", [], "ends the process\n  The process ended with exit code 0."),
        ("torch.zeros(10**10)", ["--memory", "3"], "forward fails"),
    ],
)
def test_the_process_of_the_command(command, line, flags, words):
    source = GOOD.replace("        return self.b", f"        {line}\n        return self.b")
    code, printed = command(source, "Net", *flags)
    assert code == (0 if line == "pass" else 1), printed
    assert words in printed


@pytest.mark.parametrize(
    ("line", "words"),
    [("x.fill_(1)", "changes its input"), ("raise SystemExit", "forward fails")],
)
@pytest.mark.usefixtures("in_this_process")
def test_the_command_on_a_wrong_network(command, line, words):
    source = GOOD.replace("        return self.b", f"        {line}\n        return self.b")
    code, printed = command(source)
    assert code == 1, printed
    assert words in printed


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        (GOOD, "Nett", "net.py has no Nett: did you mean Net?"),
        (GOOD.replace("channels=5", "channels"), "Net", "Net needs channels: give values, as in"),
        (GOOD + "class Other(Net):\n    pass\n", "", "give the name of the network"),
        ("def broken(:\n", "Net", "line 1: invalid syntax"),
        (GOOD + "x = 3\n", "x", "x is a int and no nn.Module"),
        (GOOD.replace("8, 17", "-8, 17"), "Net", "Net() fails: "),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_the_command_on_what_cannot_be_loaded(command, source, name, words):
    code, printed = command(source, name)
    assert code == 2, printed
    assert "net.py" in printed
    assert words in printed


@pytest.mark.usefixtures("in_this_process")
def test_a_file_that_is_not_there(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["check-network", str(tmp_path / "none.py:Net")])
    assert ended.value.code == 2
    assert "there is no file" in capfd.readouterr().err


def test_the_page_explains_every_finding():
    page = (ROOT / "doc" / "check-network.md").read_text(encoding="utf-8")
    objections, _, remarks = page.partition("## Objections")[2].partition("## Remarks")
    for section, known in ((objections, checker.OBJECTIONS), (remarks, checker.REMARKS)):
        rows = [line.split("|")[1].strip() for line in section.splitlines() if line[:1] == "|"]
        assert rows[2:] == list(known)
