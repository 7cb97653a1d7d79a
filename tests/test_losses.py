"""Every loss against masks computed by hand, readable loops, gradcheck, and the big libraries."""

import math

import pytest
import torch
from torch import nn

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
MSE, MAE = Segmentation.SegmentationLossMSE, Segmentation.SegmentationLossMAE
Dice, Comb = Segmentation.SegmentationLossDice, Segmentation.SegmentationLossComb
BCEDice = Segmentation.SegmentationLossBCEDice


def Pixelwise():
    return Dice(form="pixelwise")


FORMS = ("pixelwise", "squared", "linear")


def masks(n=3, c=5, h=6, w=7, seed=0, binary=False):
    generator = torch.Generator().manual_seed(seed)
    values = torch.ones(c) if binary else 50.0 * torch.arange(1, c + 1)
    return (torch.rand(n, c, h, w, generator=generator) < 0.3) * values[:, None, None]


def outputs(n=3, c=5, h=6, w=7, seed=1, scale=100.0):
    return scale * torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


# ---- readable loops: what each loss means, one pixel at a time ----------------------------------


def loop_pixels(output, mask, of_pixel):
    total, count = 0.0, 0
    for n in range(output.shape[0]):
        for c in range(output.shape[1]):
            for p, m in zip(output[n, c].flatten().tolist(), mask[n, c].flatten().tolist(),
                            strict=True):  # fmt: skip
                total += of_pixel(p, m)
                count += 1
    return total / count


def loop_planes(output, mask, of_plane):
    total = 0.0
    for n in range(output.shape[0]):
        for c in range(output.shape[1]):
            p, m = output[n, c].flatten().tolist(), mask[n, c].flatten().tolist()
            total += of_plane(list(zip(p, m, strict=True)))
    return total / (output.shape[0] * output.shape[1])


def squared_dice(pairs, eps=1e-6):
    overlap = sum(p * m for p, m in pairs)
    return 1 - 2 * overlap / (sum(p * p for p, _ in pairs) + sum(m * m for _, m in pairs) + eps)


def linear_dice(pairs, s=1.0):
    overlap = sum(p * m for p, m in pairs)
    return 1 - (2 * overlap + s) / (sum(p for p, _ in pairs) + sum(m for _, m in pairs) + s)


def loop_dice(output, mask, form):
    if form == "pixelwise":
        return loop_pixels(output, mask, lambda p, m: 1 - (2 * p * m + 1) / (p + m + 1))
    return loop_planes(output, mask, {"squared": squared_dice, "linear": linear_dice}[form])


def loop_bce_dice(output, mask):
    def sigmoid(p):
        return 1 / (1 + math.exp(-p))

    def cross_entropy(p, m):
        return -m * math.log(sigmoid(p)) - (1 - m) * math.log(1 - sigmoid(p))

    bce = loop_pixels(output, mask, cross_entropy)
    return bce + loop_planes(torch.sigmoid(output), mask, linear_dice)


def loop_bce_batch_dice(output, mask):
    """As loop_bce_dice, with the images of a batch laid side by side as one wide image."""
    wide_output, wide_mask = (torch.cat(list(x), dim=2)[None] for x in (output, mask))
    return loop_bce_dice(wide_output, wide_mask)


def loop_first_channel(output, mask):
    """DLStudio's SegmentationLoss with the number of channels where it had the batch size."""
    total = 0.0
    for n in range(output.shape[0]):
        for c in range(mask.shape[1]):
            total += ((output[n, 0] - mask[n, c]) ** 2).mean().item()
    return total / output.shape[0]


CASES = {
    "mse": (MSE(), lambda o, m: loop_pixels(o, m, lambda p, q: (p - q) ** 2)),
    "mae": (MAE(), lambda o, m: loop_pixels(o, m, lambda p, q: abs(p - q))),
    **{f"dice {form}": (Dice(form=form), lambda o, m, f=form: loop_dice(o, m, f))
       for form in FORMS},
    "mse+200*dice": (
        Comb(), lambda o, m: loop_pixels(o, m, lambda p, q: (p - q) ** 2)
        + 200 * loop_dice(o, m, "squared"),
    ),
    "mae+100*squared": (
        Comb(dice_scale=100, base="mae"),
        lambda o, m: loop_pixels(o, m, lambda p, q: abs(p - q)) + 100 * loop_dice(o, m, "squared"),
    ),
    "bce+dice": (BCEDice(batch_dice=False), loop_bce_dice),
    "bce+batch dice": (BCEDice(), loop_bce_batch_dice),
    "dlstudio": (Segmentation.SegmentationLoss(), loop_first_channel),
}  # fmt: skip


def data(name, **sizes):
    binary = name.startswith("bce")
    return outputs(**sizes, scale=2.0 if binary else 100.0), masks(**sizes, binary=binary)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_equals_the_loop_at_any_batch_size(name, n):
    loss, loop = CASES[name]
    output, mask = data(name, n=n)
    value = loss(output, mask)
    assert value.shape == ()
    assert value.item() == pytest.approx(loop(output.double(), mask.double()), rel=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_masks_may_be_bytes_as_the_data_has_them(name):
    loss, _ = CASES[name]
    output, mask = data(name)
    assert torch.equal(loss(output, mask.byte()), loss(output, mask))


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    loss, _ = CASES[name]
    output, mask = data(name, n=2, c=3, h=2, w=3)
    output = (output.double() + 0.5).requires_grad_()  # away from the kink of |p - m| and the pole
    assert torch.autograd.gradcheck(lambda o: loss(o, mask.double()), output)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dlstudio"])
def test_every_channel_of_every_image_gets_a_gradient(name):
    """The report's loops ran over the batch size: with 4 images the star never learned."""
    loss, _ = CASES[name]
    output, mask = data(name, n=4)
    output.requires_grad_()
    loss(output, mask).backward()
    assert (output.grad.abs().sum(dim=(2, 3)) > 0).all()


def test_dlstudios_first_loss_looks_at_channel_0_alone():
    output, mask = data("dlstudio")
    output.requires_grad_()
    Segmentation.SegmentationLoss(4)(output, mask).backward()
    assert (output.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (5, 8, 8), (2, 5, 8, 4)])
def test_wrong_shapes_print_both(name, shape):
    with pytest.raises(ValueError, match="but mask") as caught:
        CASES[name][0](torch.zeros(2, 5, 8, 8), torch.zeros(shape))
    assert "(2, 5, 8, 8)" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("loss", [MSE, MAE, Dice, Comb, BCEDice, Segmentation.SegmentationLoss])
def test_the_batch_size_of_students_code_is_accepted_and_not_needed(loss):
    output, mask = outputs(n=3, scale=1.0), masks(n=3, binary=True)
    assert torch.equal(loss(4)(output, mask), loss()(output, mask))
    assert loss(4).batch_size == 4


# ---- by hand ------------------------------------------------------------------------------------


def plane(*values):
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_by_hand():
    p, m = plane(0.0, 50.0, 20.0, 10.0), plane(0.0, 50.0, 50.0, 0.0)
    assert MSE()(p, m).item() == (0 + 0 + 900 + 100) / 4
    assert MAE()(p, m).item() == (0 + 0 + 30 + 10) / 4
    pixelwise = (0 + (1 - 5001 / 101) + (1 - 2001 / 71) + (1 - 1 / 11)) / 4
    assert Pixelwise()(p, m).item() == pytest.approx(pixelwise, rel=1e-6)
    squared = 1 - 2 * (2500 + 1000) / (2500 + 400 + 100 + 5000)
    assert Dice(form="squared")(p, m).item() == pytest.approx(squared, rel=1e-6)
    p, m = plane(0.0, 1.0, 0.5, 0.25), plane(0.0, 1.0, 1.0, 0.0)
    assert Dice(form="linear")(p, m).item() == pytest.approx(1 - (3 + 1) / (1.75 + 2 + 1))
    assert Dice(form="linear", smooth=0.5)(p, m).item() == pytest.approx(1 - 3.5 / (1.75 + 2.5))
    assert Dice(form="squared", eps=0.25)(p, m).item() == pytest.approx(1 - 3 / (3.3125 + 0.25))


def test_bce_dice_by_hand():
    p, m = plane(0.0, math.log(3.0)), plane(1.0, 1.0)  # probabilities 1/2 and 3/4
    bce = (math.log(2) + math.log(4 / 3)) / 2
    dice = 1 - (2 * 1.25 + 1) / (1.25 + 2 + 1)
    assert BCEDice()(p, m).item() == pytest.approx(bce + dice)
    assert BCEDice(dice_scale=3)(p, m).item() == pytest.approx(bce + 3 * dice)
    assert BCEDice(smooth=0.5)(p, m).item() == pytest.approx(bce + 1 - 3 / 3.75)


# ---- what the docstring of Dice says of its forms -----------------------------------------------


def test_pixelwise_is_not_bounded_below():
    assert Pixelwise()(plane(50.0), plane(50.0)).item() == pytest.approx(1 - 5001 / 101)
    assert round(Pixelwise()(plane(50.0), plane(50.0)).item(), 1) == -48.5
    assert Pixelwise()(plane(5000.0), plane(50.0)).item() < -90


def test_pixelwise_has_a_pole_where_its_sign_flips():
    below, above = Pixelwise()(plane(-1.01), plane(0.0)), Pixelwise()(plane(-0.99), plane(0.0))
    assert below.item() == pytest.approx(101, rel=1e-3)
    assert above.item() == pytest.approx(-99, rel=1e-3)


def test_pixelwise_counts_false_positives():
    for p in (0.0, 1.0, 9.0):
        assert Pixelwise()(plane(p), plane(0.0)).item() == pytest.approx(p / (p + 1))


def test_squared_spans_0_to_2():
    m = plane(50.0, 0.0, 50.0)
    assert Dice(form="squared")(m, m).item() == pytest.approx(0, abs=1e-6)
    assert Dice(form="squared")(-m, m).item() == pytest.approx(2)


@pytest.mark.parametrize("value", [0.001, 30.0, -7.0])
def test_squared_on_an_empty_channel_is_1_with_zero_gradient(value):
    p = torch.full((1, 1, 4, 4), value, requires_grad=True)
    loss = Dice(form="squared")(p, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == 1
    assert (p.grad == 0).all()


def test_linear_on_an_empty_channel_punishes():
    p = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    loss = Dice(form="linear")(p, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(2 / (2 + 1))
    assert (p.grad > 0).all()


def test_linear_spans_0_to_1_on_probabilities_only():
    m = masks(binary=True)
    assert Dice(form="linear")(m, m).item() == pytest.approx(0, abs=1e-6)
    assert 0.9 < Dice(form="linear")(1 - m, m).item() <= 1
    m = torch.full((1, 1, 16, 16), 250.0)
    assert Dice(form="linear", smooth=0)(m, m).item() == -249
    assert Dice(form="linear")(m, m).item() == pytest.approx(-249, rel=1e-4)


def test_bce_dice_pushes_an_empty_channel_to_0():
    p = torch.zeros(1, 1, 4, 4, requires_grad=True)
    terms = BCEDice().terms(p, torch.zeros(1, 1, 4, 4))
    for term in terms.values():
        (gradient,) = torch.autograd.grad(term, p, retain_graph=True)
        assert (gradient > 0).all()


@pytest.mark.parametrize("mask", [torch.full((1, 1, 2, 2), 50.0), torch.full((1, 1, 2, 2), -1.0)])
def test_bce_dice_refuses_masks_of_other_values(mask):
    with pytest.raises(ValueError, match="masks of 0 and 1"):
        BCEDice()(torch.zeros(1, 1, 2, 2), mask)


# ---- sums and choices ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["mse", "mae"])
@pytest.mark.parametrize("scale", [0, 1, 200, 400])
def test_comb_is_base_plus_scale_times_squared_dice(base, scale):
    output, mask = outputs(), masks()
    loss = Comb(4, scale, base)
    terms = loss.terms(output, mask)
    value = loss(output, mask)
    assert list(terms) == [base, "dice"]
    torch.testing.assert_close(terms[base], {"mse": MSE, "mae": MAE}[base]()(output, mask))
    torch.testing.assert_close(terms["dice"], scale * Dice()(output, mask))
    assert torch.equal(value, terms[base] + terms["dice"])
    assert {name: v.item() for name, v in loss.latest_terms.items()} == {
        name: v.item() for name, v in terms.items()
    }


def test_defaults_are_the_squared_form_and_the_reports_arguments_positional():
    assert Dice().form == "squared"
    loss = Comb(4, 300)
    assert (loss.batch_size, loss.dice_scale, loss.base) == (4, 300, "mse")
    assert loss.name == "MSE+300*Dice"


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="'cubic'"):
        Dice(form="cubic")
    with pytest.raises(ValueError, match="'bce'"):
        Comb(base="bce")


def test_losses_have_no_parameters():
    for loss in (MSE(), MAE(), Dice(), Comb(), BCEDice()):
        assert isinstance(loss, nn.Module)
        assert not list(loss.parameters())
        assert not loss.state_dict()


# ---- the big libraries, where they are installed ------------------------------------------------


def test_dice_equals_monai():
    monai = pytest.importorskip("monai.losses")
    output, mask = outputs(scale=1.0), masks(binary=True)
    linear = monai.DiceLoss(smooth_nr=0.7, smooth_dr=0.7)
    squared = monai.DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    ours = Dice(form="linear", smooth=0.7)(output, mask)
    torch.testing.assert_close(ours, linear(output, mask))
    torch.testing.assert_close(Dice(form="squared")(output, mask), squared(output, mask))


def test_bce_dice_equals_monai():
    monai = pytest.importorskip("monai.losses")
    logits, mask = outputs(scale=4.0) - 2, masks(binary=True)
    for batch_dice in (True, False):
        dice = monai.DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, batch=batch_dice)
        expected = nn.BCEWithLogitsLoss()(logits, mask) + 2 * dice(logits, mask)
        ours = BCEDice(dice_scale=2, batch_dice=batch_dice)
        torch.testing.assert_close(ours(logits, mask), expected)


def test_dice_equals_segmentation_models_pytorch():
    """They agree on one image at a time, as its sums run over the batch, with half the smooth."""
    smp = pytest.importorskip("segmentation_models_pytorch").losses
    output, mask = outputs(scale=1.0), masks(binary=True)
    theirs = smp.DiceLoss("multilabel", from_logits=False, smooth=0.5)
    each = [theirs(output[n : n + 1], mask[n : n + 1]) for n in range(len(output))]
    torch.testing.assert_close(Dice(form="linear")(output, mask), torch.stack(each).mean())
