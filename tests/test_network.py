"""mUnet: its parameters by arithmetic, its forward pass by a readable one, DLStudio as oracle."""

import copy
import json

import pytest
import torch
from torch import nn

from SegStudio import SegStudio, backstage

Segmentation = SegStudio.SemanticSegmentation
mUnet = Segmentation.mUnet
UNet = Segmentation.UNet


def images(n=2, h=32, w=32, seed=1):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 255


# ---- parameters, counted from the homework's description and not from the code ------------------


def expected_state(depth, width=64, classes=5):
    """The names and shapes of DLStudio's state dict, in its order."""
    low, high, blocks = width, 2 * width, depth // 2
    shapes = {}

    def conv(name, shape, bias):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (bias,)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def block(name, into, out, arm, resized=False):
        for k in (1, 2):
            if arm == "DN":
                conv(f"{name}.convo{k}", (out, into, 3, 3), out)
            else:  # a transposed convolution has its input channels first
                conv(f"{name}.convoT{k}", (into, out, 3, 3), out)
        norm(f"{name}.bn1", out)
        norm(f"{name}.bn2", out)
        if resized and arm == "DN":
            conv(f"{name}.downsampler", (out, into, 1, 1), out)
        elif resized:
            conv(f"{name}.upsampler", (into, out, 1, 1), out)

    conv("conv_in", (low, 3, 3, 3), low)
    norm("bn1DN", low)
    norm("bn2DN", high)
    for i in range(blocks):
        block(f"skip64DN_arr.{i}", low, low, "DN")
    block("skip64dsDN", low, low, "DN", resized=True)
    block("skip64to128DN", low, high, "DN")
    for i in range(blocks):
        block(f"skip128DN_arr.{i}", high, high, "DN")
    block("skip128dsDN", high, high, "DN", resized=True)
    norm("bn1UP", high)
    norm("bn2UP", low)
    for i in range(blocks):
        block(f"skip64UP_arr.{i}", low, low, "UP")
    block("skip64usUP", low, low, "UP", resized=True)
    block("skip128to64UP", high, low, "UP")
    for i in range(blocks):
        block(f"skip128UP_arr.{i}", high, high, "UP")
    block("skip128usUP", high, high, "UP", resized=True)
    conv("conv_out", (low, classes, 3, 3), classes)
    return shapes


@pytest.mark.parametrize("upsampling", ["strided", "dense"])
@pytest.mark.parametrize(("depth", "width", "classes"), [(16, 64, 5), (4, 8, 1), (1, 6, 3)])
def test_state_dict_has_the_keys_and_shapes_of_dlstudio(depth, width, classes, upsampling):
    net = mUnet(True, depth, out_channels=classes, width=width, upsampling=upsampling)
    found = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    expected = expected_state(depth, width, classes)
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    "arguments", [{}, {"upsampling": "dense"}, {"skip_connections": False}]
)
def test_the_homework_network_has_6999109_parameters_in_324_tensors(arguments):
    parameters = list(mUnet(**arguments).parameters())
    assert sum(p.numel() for p in parameters) == 6_999_109
    assert len(parameters) == 324


def test_dlstudio_names_are_kept():
    assert Segmentation.mUNet is mUnet
    assert Segmentation.SkipBlockDN is mUnet.SkipBlockDN
    assert Segmentation.SkipBlockUP is mUnet.SkipBlockUP
    x = torch.rand(1, 16, 8, 8)
    assert Segmentation.SkipBlockDN(16, 16, True, True)(x).shape == (1, 16, 4, 4)
    assert Segmentation.SkipBlockDN(16, 32)(x).shape == (1, 32, 8, 8)
    assert Segmentation.SkipBlockUP(16, 16, True, True)(x).shape == (1, 16, 16, 16)
    assert Segmentation.SkipBlockUP(16, 8)(x).shape == (1, 8, 8, 8)


# ---- the forward pass, step by step as DLStudio takes it ----------------------------------------


def plain_block(block, x, first, second, resize):
    """Two convolutions, maybe a change of resolution, and the shortcut around them."""
    identity = x
    out = nn.functional.relu(block.bn1(first(x)))
    if block.in_ch == block.out_ch:
        out = nn.functional.relu(block.bn2(second(out)))
    if resize is not None:
        out, identity = resize(out), resize(identity)
    if block.skip_connections:
        if block.in_ch < block.out_ch:
            identity = torch.cat((identity, identity), dim=1)
        elif block.in_ch > block.out_ch:
            identity = identity[:, block.out_ch :]
        out = out + identity
    return out


def down(block, x):
    return plain_block(block, x, block.convo1, block.convo2, getattr(block, "downsampler", None))


def up(block, x):
    return plain_block(block, x, block.convoT1, block.convoT2, getattr(block, "upsampler", None))


def plain_forward(net, x):
    """mUnet's forward pass with the halves saved as copies and overwritten in place."""
    early = net.depth // 4  # net.depth is half of the argument
    x = nn.MaxPool2d(2, 2)(nn.functional.relu(net.conv_in(x)))
    for block in net.skip64DN_arr[:early]:
        x = down(block, x)
    half1 = x.shape[1] // 2
    saved1 = x[:, :half1].clone()
    x = down(net.skip64dsDN, x)
    for block in net.skip64DN_arr[early:]:
        x = down(block, x)
    x = net.bn1DN(x)
    half2 = x.shape[1] // 2
    saved2 = x[:, :half2].clone()
    x = down(net.skip64to128DN, x)
    for block in net.skip128DN_arr[:early]:
        x = down(block, x)
    x = net.bn2DN(x)
    half3 = x.shape[1] // 2
    saved3 = x[:, :half3].clone()
    for block in net.skip128DN_arr[early:]:
        x = down(block, x)
    x = down(net.skip128dsDN, x)
    x = up(net.skip128usUP, x)
    for block in net.skip128UP_arr[:early]:
        x = up(block, x)
    x = x.clone()
    x[:, :half3] = saved3
    x = net.bn1UP(x)
    for block in net.skip128UP_arr[:early]:  # the same blocks again: DLStudio's slip, kept
        x = up(block, x)
    x = up(net.skip128to64UP, x)
    for block in net.skip64UP_arr[early:]:
        x = up(block, x)
    x = x.clone()
    x[:, :half2] = saved2
    x = net.bn2UP(x)
    x = up(net.skip64usUP, x)
    for block in net.skip64UP_arr[:early]:
        x = up(block, x)
    x = x.clone()
    x[:, :half1] = saved1
    return net.conv_out(x)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("depth", "width"), [(16, 64), (8, 8), (2, 8)])
def test_forward_is_bit_identical_to_the_readable_one(depth, width, skip):
    torch.manual_seed(0)
    net = mUnet(skip, depth, width=width)
    twin = copy.deepcopy(net)
    x = images(2, 16, 24)
    output, plain = net(x), plain_forward(twin, x)
    assert torch.equal(output, plain)
    for (name, ours), theirs in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # BatchNorm's running statistics too
    net.eval(), twin.eval()
    assert torch.equal(net(x), plain_forward(twin, x))
    assert not torch.equal(net(x), output)


def test_the_arguments_build_the_same_network_again():
    arguments = {
        "skip_connections": False, "depth": 4, "out_channels": 2, "upsampling": "dense",
        "width": 8, "input_scale": 0.5,
    }  # fmt: skip
    net = mUnet(**arguments)
    assert net.arguments == arguments
    assert mUnet().arguments.keys() == arguments.keys()
    twin = mUnet(**json.loads(json.dumps(net.arguments)))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(images()), net(images()))


def test_kernels_are_dlstudios():
    net = mUnet(depth=2)

    def numbers(layer):
        return (layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                getattr(layer, "output_padding", None))  # fmt: skip

    assert numbers(net.conv_in) == ((3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
    assert numbers(net.conv_out) == ((3, 3), (2, 2), (2, 2), (2, 2), (1, 1))
    assert numbers(net.skip64dsDN.downsampler) == ((1, 1), (2, 2), (0, 0), (1, 1), (0, 0))
    assert numbers(net.skip64usUP.upsampler) == ((1, 1), (2, 2), (0, 0), (2, 2), (1, 1))
    assert numbers(net.skip64usUP.convoT1) == ((3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
    assert isinstance(net.conv_out, nn.ConvTranspose2d)


def test_weights_of_strided_fit_dense_and_back():
    strided, dense = mUnet(depth=4, width=8), mUnet(depth=4, width=8, upsampling="dense")
    dense.load_state_dict(strided.state_dict())
    assert not torch.equal(dense.eval()(images()), strided.eval()(images()))
    strided.load_state_dict(dense.state_dict())


def test_dense_upsampling_is_nearest_neighbours_before_the_1x1():
    torch.manual_seed(0)
    block = Segmentation.SkipBlockUP(6, 6, upsample=True, upsampling="dense")
    x = torch.randn(2, 6, 5, 7)
    doubled = torch.zeros(2, 6, 10, 14)
    for row in range(10):
        for column in range(14):
            doubled[:, :, row, column] = x[:, :, row // 2, column // 2]
    weight, bias = block.upsampler.weight[:, :, 0, 0], block.upsampler.bias
    naive = torch.einsum("nihw,io->nohw", doubled, weight) + bias[:, None, None]
    torch.testing.assert_close(block.enlarge(x), naive)


def test_dense_conv_out_is_a_transposed_convolution_without_gaps():
    net = mUnet(depth=2, width=2, out_channels=1, upsampling="dense")
    x = torch.randn(1, 2, 3, 3)
    weight, bias = net.conv_out.weight, net.conv_out.bias
    naive = torch.zeros(1, 1, 8, 8)  # one pixel of rim on each side, cut off below
    for row in range(3):
        for column in range(3):
            for channel in range(2):
                stamp = x[0, channel, row, column] * weight[channel, 0]
                naive[0, 0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += stamp
    torch.testing.assert_close(net.conv_out(x), naive[:, :, 1:7, 1:7] + bias)


# ---- shapes and arguments -----------------------------------------------------------------------


@pytest.mark.parametrize("upsampling", ["strided", "dense"])
@pytest.mark.parametrize(("h", "w"), [(8, 8), (64, 64), (24, 40), (128, 16)])
def test_any_size_divisible_by_8(small_net, h, w, upsampling):
    net = small_net(out_channels=3, upsampling=upsampling).eval()
    assert net(images(1, h, w)).shape == (1, 3, h, w)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 63), (1, 1, 64, 64), (3, 64, 64)])
def test_other_sizes_are_refused_with_the_shape(small_net, shape):
    with pytest.raises(ValueError, match="divisible by 8") as caught:
        small_net()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 0), ("depth", -1), ("out_channels", 0), ("width", 0), ("width", 7)],
)
def test_impossible_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        mUnet(**{name: value})


def test_an_unknown_upsampling_is_named():
    with pytest.raises(ValueError, match="upsampling is .*'bilinear'"):
        mUnet(upsampling="bilinear")


# ---- UNet ---------------------------------------------------------------------------------------


def test_unet_reaches_every_pixel_and_trains_every_parameter():
    torch.manual_seed(0)
    net = UNet(width=4, stem=4)
    assert Segmentation.probe_output_coverage(net, (32, 48)).fraction == 1.0
    net(images()).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("h", "w"), [(8, 8), (64, 64), (24, 40)])
def test_unet_takes_any_size_divisible_by_8(h, w):
    assert UNet(out_channels=3, width=4, stem=2)(images(2, h, w)).shape == (2, 3, h, w)
    with pytest.raises(ValueError, match="divisible by 8"):
        UNet(width=4)(images(1, h + 4, w))


def test_unet_scales_its_input_itself():
    """Its first layer sees values near 0, whatever its user forgets."""
    net, seen = UNet(width=4).eval(), {}
    net.stem.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    net(torch.full((1, 3, 8, 8), 255.0))
    assert seen["x"].max() <= 1


def test_unet_arguments_build_it_again():
    net = UNet(2, 4, 6).eval()
    twin = UNet(**json.loads(json.dumps(net.arguments))).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(images()), net(images()))


# ---- which output pixels can depend on the input ------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (16, 40)])
def test_strided_reaches_one_pixel_in_four(small_net, size):
    coverage = Segmentation.probe_output_coverage(small_net(), size)
    assert coverage.fraction == 0.25
    assert coverage.map.shape == size
    assert coverage.map[::2, ::2].all()
    assert coverage.map.sum() == size[0] * size[1] / 4
    assert coverage.picture.shape == (3, 8 * size[0], 8 * size[1])
    colors = coverage.picture[:, ::8, ::8].permute(1, 2, 0)
    assert len({tuple(color) for color in colors[coverage.map].tolist()}) == 1
    assert len({tuple(color) for color in colors.reshape(-1, 3).tolist()}) == 2


@pytest.mark.parametrize("size", [(64, 64), (16, 40)])
def test_dense_reaches_every_pixel(small_net, size):
    assert Segmentation.probe_output_coverage(small_net(upsampling="dense"), size).fraction == 1.0


def test_unreached_pixels_are_the_bias(small_net):
    net = small_net()
    coverage = Segmentation.probe_output_coverage(net, (32, 32))
    output = net(images())
    for channel in range(5):
        unreached = output[:, channel, ~coverage.map]
        torch.testing.assert_close(unreached, net.conv_out.bias[channel].expand_as(unreached))


def test_probe_takes_any_network_and_leaves_it_as_it_was():
    class Peer(nn.Module):  # as torchvision's segmentation networks answer
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            out = self.conv(self.norm(x))
            out[:, :, :4] = 7
            return {"aux": None, "out": out}

    net = Peer().train()
    state = copy.deepcopy(net.state_dict())
    coverage = Segmentation.probe_output_coverage(net, (16, 8), in_channels=1)
    assert coverage.fraction == 0.75
    assert not coverage.map[:4].any()
    assert net.training
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_probe_restores_the_mode_of_a_failing_network():
    net = mUnet(depth=2, width=4)
    with pytest.raises(ValueError, match="divisible by 8"):
        Segmentation.probe_output_coverage(net, (20, 20))
    assert net.training


# ---- the probe: what errs on either side --------------------------------------------------------


class GlobalBranch(nn.Module):
    """DLStudio's strided network, and a branch that tells every pixel one thing about the image."""

    def __init__(self, net, summary):
        super().__init__()
        self.net, self.summary = net, summary
        self.mix = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.net(x) + self.mix(self.summary(x).reshape(len(x), 3, 1, 1))


SUMMARIES = {
    "adaptive average": nn.AdaptiveAvgPool2d(1),
    "adaptive maximum": nn.AdaptiveMaxPool2d(1),
    "mean": lambda x: x.mean(dim=(2, 3), keepdim=True),
    "mean of rows": lambda x: x.flatten(2).mean(-1),
    "sum": lambda x: x.sum((2, 3)) / 1000,
    "maximum": lambda x: x.flatten(2).max(dim=2).values,
    "pool of the whole image": lambda x: nn.functional.avg_pool2d(x, x.shape[2:]),
    "standard deviation": lambda x: x.std(dim=(2, 3)),
}


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)
def test_a_summary_of_the_whole_image_does_not_fill_the_holes(small_net, summary):
    net = GlobalBranch(small_net(), summary)
    coverage = Segmentation.probe_output_coverage(net, (32, 32))
    assert coverage.fraction == 0.25
    assert coverage.map[::2, ::2].all()
    assert torch.equal(coverage.now, coverage.map)


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(5),
        nn.InstanceNorm2d(5, affine=True),
        nn.GroupNorm(1, 5),
        nn.GroupNorm(5, 5),
        nn.LayerNorm([5, 32, 32]),
        nn.BatchNorm2d(5, track_running_stats=False),
    ],
)
def test_a_norm_over_the_image_does_not_fill_the_holes(small_net, norm):
    strided = nn.Sequential(small_net(), norm)
    assert Segmentation.probe_output_coverage(strided, (32, 32)).fraction == 0.25
    dense = nn.Sequential(small_net(upsampling="dense"), norm)
    assert Segmentation.probe_output_coverage(dense, (32, 32)).fraction == 1


def test_the_held_norm_is_the_norm_itself():
    """For the image whose statistics are held, the norm gives what torch gives."""
    torch.manual_seed(0)
    for norm in (nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6), nn.LayerNorm([6, 8, 8])):
        for p in norm.parameters():
            nn.init.normal_(p)
        x = torch.randn(1, 6, 8, 8)
        held = backstage.SummariesHeld()
        with torch.no_grad():
            for _ in range(2):
                with held:
                    output = norm(x)
                torch.testing.assert_close(output, norm(x))


def test_squeeze_and_excitation_is_local():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

        def forward(self, x):
            x = self.conv(x)
            return x * self.gate(x)

    assert Segmentation.probe_output_coverage(Gated(), (16, 16)).fraction == 1


def zero_head(net):
    nn.init.zeros_(net.conv_out.weight)
    return net


def dead(net):
    nn.init.constant_(net.conv_out.bias, -1e9)
    return nn.Sequential(net, nn.ReLU())


def saturated(net):
    nn.init.constant_(net.conv_out.bias, 1e9)
    return nn.Sequential(net, nn.Sigmoid())


def one_channel_softmax(net):
    return nn.Sequential(net, nn.Conv2d(5, 1, 1), nn.Softmax(dim=1))


def dead_inside(net):
    narrow = nn.Conv2d(5, 2, 1)
    nn.init.constant_(narrow.bias, 1e9)
    return nn.Sequential(net, narrow, nn.Hardtanh(inplace=True), nn.Conv2d(2, 2, 1))


@pytest.mark.parametrize(("upsampling", "expected"), [("strided", 0.25), ("dense", 1.0)])
@pytest.mark.parametrize("make", [zero_head, dead, saturated, dead_inside, one_channel_softmax])
def test_what_the_weights_silence_is_kept_apart_from_what_no_training_can_reach(
    small_net, make, upsampling, expected
):
    coverage = Segmentation.probe_output_coverage(make(small_net(upsampling=upsampling)), (32, 32))
    assert coverage.fraction == expected
    assert not coverage.now.any()
    assert f"{expected:.0%} of the output pixels" in coverage.summary
    assert "with the present weights" in coverage.summary
    assert ("No training" in coverage.summary) == (expected < 1)
    blue, orange, grey = (list(bytes.fromhex(SegStudio.PALETTE[k][1:])) for k in (0, 1, 7))
    colors = coverage.picture[:, ::8, ::8].permute(1, 2, 0)  # (H, W, 3)
    assert all(color == grey for color in colors[coverage.map].tolist())
    assert all(color == orange for color in colors[~coverage.map].tolist())
    assert blue not in colors.reshape(-1, 3).tolist()


def test_a_sound_network_is_said_to_be_sound(small_net):
    coverage = Segmentation.probe_output_coverage(small_net(upsampling="dense"), (32, 32))
    assert coverage.now.all()
    assert coverage.summary == "The image reaches 100% of the output pixels."
    strided = Segmentation.probe_output_coverage(small_net(), (32, 32))
    assert strided.summary == (
        "The image reaches 25% of the output pixels. No training can make the other 75% depend "
        "on the image: no path leads to them, except through averages of the whole image."
    )


def test_one_pixel_of_many_is_not_rounded_away():
    class AllButOne(nn.Module):
        def forward(self, x):
            x = x.clone()
            x[:, :, 5, 7] = 3
            return x

    coverage = Segmentation.probe_output_coverage(AllButOne(), (64, 64))
    assert coverage.map.sum() == 64 * 64 - 1
    assert "99.98%" in coverage.summary
    assert "0.02%" in coverage.summary


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(small_net, value):
    net = small_net()
    with torch.no_grad():
        net.skip64usUP.convoT1.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"not finite: skip64usUP\.convoT1\.weight .*") as caught:
        Segmentation.probe_output_coverage(net, (32, 32))
    assert "\n" not in str(caught.value)


def test_outputs_that_are_not_finite_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
    net[1].forward = lambda x: x / 0
    with pytest.raises(ValueError, match="output of the network is not finite"):
        Segmentation.probe_output_coverage(net, (16, 16))


class ActiveDropout(nn.Module):
    """A student's slip: F.dropout is active unless it is told otherwise."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return nn.functional.dropout(self.net(x), 0.5)


def test_a_network_that_draws_random_numbers_is_refused(small_net):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="two outputs for one image.*dropout") as caught:
        Segmentation.probe_output_coverage(ActiveDropout(small_net()), (32, 32))
    assert "\n" not in str(caught.value)
    net = small_net()
    torch.manual_seed(5)
    Segmentation.probe_output_coverage(net, (32, 32))
    assert torch.equal(torch.rand(3), expected), "the probe leaves torch's random numbers alone"


class Answers(nn.Module):
    """Returns its network's output in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


FORMS = {
    "tuple": lambda y: (y, y.mean()),
    "list of scales": lambda y: [y, y[:, :, ::2, ::2]],
    "dict of logits": lambda y: {"loss": None, "logits": y},
    "torchvision": lambda y: {"aux": y[:, :, ::2], "out": y},
    "dict of another name": lambda y: {"loss": y.sum(), "masks": y},
    "nested": lambda y: ({"logits": y}, y.sum()),
    "without channels": lambda y: y[:, 0],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_outputs_of_any_form(small_net, form):
    coverage = Segmentation.probe_output_coverage(Answers(small_net(), form), (32, 48))
    assert coverage.fraction == 0.25
    assert coverage.map.shape == (32, 48)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda y: None, "NoneType"),
        (lambda y: {"loss": y.sum()}, "dict"),
        (lambda y: y.argmax(dim=1), "torch.int64"),
        (lambda y: y > 0, "torch.bool"),
    ],
)
def test_what_is_no_output_of_segmentation_is_refused(small_net, form, name):
    with pytest.raises(ValueError, match=f"returns .*{name}.*") as caught:
        Segmentation.probe_output_coverage(Answers(small_net(), form), (32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("upsampling", "expected"), [("strided", 0.25), ("dense", 1.0)])
def test_networks_in_bf16(small_net, upsampling, expected):
    net = small_net(upsampling=upsampling).bfloat16()
    coverage = Segmentation.probe_output_coverage(net, (32, 32))
    assert coverage.fraction == expected
    assert torch.equal(coverage.now, coverage.map)


def test_the_probe_gives_the_weights_back_untouched(small_net):
    net = small_net()
    net.features = net(images())  # a tensor with a gradient: the network cannot be copied
    state = {name: value.clone() for name, value in net.state_dict().items()}
    places = [p.data_ptr() for p in net.parameters()]
    Segmentation.probe_output_coverage(net, (32, 32))
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    net.features.sum().backward()  # a graph of the caller's stays valid


def test_the_probe_gives_the_weights_back_when_it_is_interrupted(small_net):
    net, calls = small_net(), []
    state = copy.deepcopy(net.state_dict())

    def interrupt(module, args):
        calls.append(1)
        if not torch.equal(module.conv_in.weight, state["conv_in.weight"]):
            raise KeyboardInterrupt

    net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Segmentation.probe_output_coverage(net, (32, 32))
    assert calls
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


# ---- DLStudio itself, where it is installed -----------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("depth", [16, 2])
def test_dlstudio_exchanges_weights_outputs_and_gradients(skip, depth):
    theirs_class = pytest.importorskip("DLStudio").DLStudio.SemanticSegmentation.mUnet
    torch.manual_seed(0)
    theirs = theirs_class(skip, depth)
    torch.manual_seed(0)
    ours = mUnet(skip, depth)
    for (name, mine), (other, value) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, value), f"{name}: the same seed gives other weights"
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 64, 64)
    a, b = ours(x), theirs(x)
    assert torch.equal(a, b)
    a.square().mean().backward()
    if skip:
        b.square().mean().backward()
        for (name, mine), value in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (mine.grad is None) == (value.grad is None), name
            assert mine.grad is None or torch.equal(mine.grad, value.grad), name
    else:  # DLStudio overwrites in place what its backward pass still needs: it cannot train this
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            b.square().mean().backward()
    ours.eval(), theirs.eval()
    assert torch.equal(ours(x), theirs(x))
