"""check_loss names the mistake of every wrong loss, accuses no right one, and shows numbers."""

import re
from pathlib import Path

import losses_right
import losses_wrong
import pytest
import torch
from losses_right import LIBRARIES, RIGHT
from losses_wrong import WRONG
from torch import nn

from SegStudio import SegStudio
from SegStudio.check_loss import Report
from SegStudio.loss_findings import FINDINGS, OBJECTION

ROOT = Path(__file__).resolve().parents[1]
Segmentation = SegStudio.SemanticSegmentation
check_loss = Segmentation.check_loss


def ids(findings):
    return [finding.id for finding in findings]


# ---- the wrong and the right --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "finding"), WRONG, ids=[f"{loss.__name__}-{finding}" for loss, finding in WRONG]
)
def test_a_wrong_loss_is_recognised_by_name(loss, finding):
    report = check_loss(loss)
    assert finding in ids(report.objections), str(report)
    assert not report.ok


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loss_is_not_accused(name):
    report = check_loss(RIGHT[name]())
    assert not report.objections, str(report)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_loss_of_a_library_is_not_accused(name):
    package, make = LIBRARIES[name]
    pytest.importorskip(package)
    report = check_loss(make())
    assert not report.objections, str(report)


def test_the_lists_are_long_enough_and_name_every_objection():
    assert len(WRONG) >= 25
    assert len(RIGHT) >= 15
    of_a_process = {"takes-too-long", "exits", "prints-a-flood", "needs-too-much-memory", "crashes"}
    objections = {name for name, entry in FINDINGS.items() if entry.severity == OBJECTION}
    assert objections - of_a_process == {finding for _, finding in WRONG}


# ---- what it finds out --------------------------------------------------------------------------

EQUALS = {
    "SegStudio MSE": "MSE",
    "SegStudio MAE": "MAE",
    "SegStudio Dice": "1 - squared Dice (per image and channel)",
    "SegStudio linear Dice": "1 - linear Dice (per image and channel, smoothing 1)",
    "SegStudio Comb": "MSE + 200 * (1 - squared Dice (per image and channel))",
    "SegStudio MAE + Dice": "MAE + 100 * (1 - squared Dice (per image and channel))",
    "SegStudio BCE + Dice": "BCE of the sigmoid + 1 * (1 - linear Dice (per channel, over the "
    "batch, smoothing 1) of the sigmoid)",
    "nn.MSELoss sum": "MSE, summed over all pixels and images",
    "nn.BCELoss": "BCE",
    "nn.BCEWithLogitsLoss": "BCE of the sigmoid",
    "mse_by_loops": "MSE",
    "mae_by_pixels": "MAE",
    "dice_einsum": "1 - linear Dice (per image and channel, smoothing 1) of the sigmoid",
    "dice_per_image": "1 - linear Dice (per image, over all channels) of the sigmoid",
    "dice_whole_batch": "1 - linear Dice (over the whole batch, smoothing 1) of the sigmoid",
    "dice_squared_handout": "1 - squared Dice (per image and channel)",
    "jaccard": "1 - linear IoU (Jaccard) (per image and channel, smoothing 1) of the sigmoid",
    "bce_by_hand": "BCE of the sigmoid",
    "tversky": "1 - Tversky (per channel, over the batch, weights 0.3 for false positives, 0.7 "
    "for misses) of the sigmoid",
    "focal": "focal loss, gamma 2 of the sigmoid, objects weighted 0.25, background 0.75",
    "lovasz_hinge": "Lovász hinge (per image and channel)",
    "weighted_bce": "BCE of the sigmoid, objects weighted 3, background 1",
}


@pytest.mark.parametrize("name", EQUALS)
def test_the_definition_that_a_loss_equals(name):
    assert check_loss(RIGHT[name]()).recognised == EQUALS[name]


READINGS = {
    "SegStudio MSE": "outputs on the scale of the masks, and masks of any value",
    "SegStudio linear Dice": "outputs from 0 to 1 (probabilities), and masks of 0 and 1",
    "nn.BCEWithLogitsLoss": "logits (it applies a sigmoid or softmax itself), and masks of 0 and 1",
    "bce_of_any_mask": "logits (it applies a sigmoid or softmax itself), and masks of any value",
    "sigmoid_mse_of_255": "logits (it applies a sigmoid or softmax itself), and masks of 0 and 255",
    "nn.CrossEntropyLoss": "logits (it applies a sigmoid or softmax itself), and masks of class "
    "numbers (N, H, W)",
    "softmax_dice_of_classes": "logits (it applies a sigmoid or softmax itself), and masks of 0 "
    "and 1, one class per pixel",
}


@pytest.mark.parametrize("name", READINGS)
def test_how_a_loss_is_meant_to_be_used(name):
    assert check_loss(RIGHT[name]()).reading == READINGS[name]


REMARKS = {
    "empty-channels-unpunished": "SegStudio Dice",
    "zero-one-masks": "nn.BCELoss",
    "masks-of-255": "sigmoid_mse_of_255",
    "takes-logits": "nn.BCEWithLogitsLoss",
    "unbounded-outputs": "SegStudio linear Dice",
    "one-hot-masks": "softmax_dice_of_classes",
    "class-number-masks": "nn.CrossEntropyLoss",
    "sums-over-the-batch": "SumOverBatch",
    "fixed-size": "WeightedMSE",
    "minimum-not-zero": "minus_dice",
    "weight-detached": "focal_detached_weight",
    "gradient-at-perfect": "focal_tversky",
    "slow": "mae_by_pixels",
}


@pytest.mark.parametrize("remark", REMARKS)
def test_what_one_should_know_of_a_right_loss_is_a_remark(remark):
    report = check_loss(RIGHT[REMARKS[remark]]())
    assert remark in ids(report.remarks)
    assert report.ok


def test_a_loss_that_says_that_it_takes_logits_gets_no_remark_on_it():
    report = check_loss(Segmentation.SegmentationLossBCEDice)
    assert "takes-logits" not in ids(report.findings)


def test_a_loss_with_a_tensor_on_the_cpu_is_told_so():
    def loss(output, mask):
        return (torch.ones(5, 1, 1) * (output - mask) ** 2).mean()

    assert "cpu-tensors" in ids(check_loss(loss).remarks)


def test_a_loss_that_leaves_out_channel_0():
    def loss(output, mask):
        return ((output[:, 1:] - mask[:, 1:]) ** 2).mean()

    report = check_loss(loss)
    assert "background-left-out" in ids(report.remarks)
    assert report.ok


def test_a_term_in_float32_is_not_taken_for_a_wrong_gradient():
    assert "gradient-wrong" not in ids(check_loss(losses_wrong.SigmoidBeforeBCEAndDice).findings)


def test_a_loss_without_a_gradient_on_empty_masks_and_one_that_wants_outputs_of_one():
    def constant_if_empty(output, mask):
        return ((output - mask) ** 2).mean() if mask.any() else torch.tensor(0.0)

    def of_one(output, mask):
        return ((output - (mask > 0).float()) ** 2).mean()

    for loss, remark in ((constant_if_empty, "no-gradient-if-empty"), (of_one, "outputs-of-one")):
        report = check_loss(loss)
        assert ids(report.remarks) == [remark]
        assert report.ok


def test_a_loss_that_says_coco_may_lose_the_masks_of_the_shapes():
    def threshold(output, mask):
        return nn.functional.binary_cross_entropy_with_logits(output, (mask > 127).float())

    assert ids(check_loss(threshold).objections) == ["classes-lost"]
    threshold.__doc__ = "For the masks of COCO."
    assert "masks-of-255" in ids(check_loss(threshold).remarks)
    assert check_loss(threshold).ok


def test_a_loss_that_cannot_take_float64_and_one_that_overflows_uint8_are_told_so():
    class OneType(nn.Module):
        def forward(self, output, mask):
            if output.dtype != torch.float32:
                raise TypeError("float32 only")
            return (output * output - 2 * output * mask + mask * mask).mean()

    remarks = ids(check_loss(OneType()).remarks)
    assert "float32-only" in remarks
    assert "float-masks-only" in remarks


def test_arguments_of_a_constructor_are_filled_in_by_name():
    class Needs(nn.Module):
        def __init__(self, batch_size, dice_scale, wisdom):
            super().__init__()

    report = check_loss(Needs)
    assert ids(report.objections) == ["raises"]
    assert "needs wisdom: give values, as in NAME(wisdom=1)" in str(report)


# ---- what it shows ------------------------------------------------------------------------------


def test_the_example_has_the_2x2_masks_and_numbers_that_a_student_can_check():
    report = check_loss(losses_wrong.squared_dice_without_two)
    (finding,) = [f for f in report.objections if f.id == "missing-factor-two"]
    mask, right, wrong = finding.example.splitlines()
    assert mask == "mask   [[50, 50], [0, 0]]"
    assert right == "output [[50, 50], [0, 0]]   loss 0.5"
    assert wrong == "output [[0, 0], [50, 50]]   loss 1"
    m = torch.tensor([[50.0, 50.0], [0.0, 0.0]])[None, None]
    assert losses_wrong.squared_dice_without_two(m, m).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "loss",
    [
        losses_wrong.recall_only, losses_wrong.precision_only, losses_wrong.dice_score,
        losses_wrong.dice_without_smoothing, losses_wrong.dice_of_thresholded,
        losses_wrong.cross_entropy_without_clamp, losses_wrong.focal_the_wrong_way_round,
    ],
    ids=lambda loss: loss.__name__,
)  # fmt: skip
def test_the_numbers_of_an_example_are_those_of_the_loss(loss):
    report = check_loss(loss)
    examples = [f.example for f in report.objections if "mask   [[" in f.example]
    assert examples, str(report)
    for example in examples:
        mask = torch.tensor(eval(re.search(r"^mask +(.*)$", example, re.M).group(1)))
        shown = re.findall(r"^output (\[.*\])   loss (\S+)$", example, re.M)
        assert len(shown) >= 1
        for output, value in shown:
            own = loss(torch.tensor(eval(output)).float()[None, None], mask.float()[None, None])
            assert float(own) == pytest.approx(float(value), rel=0.02, abs=0.01, nan_ok=True)


def test_the_report_says_what_why_and_where():
    text = str(check_loss(losses_wrong.ReportMSE))
    assert "OBJECTION: channel-loop-over-batch" in text
    assert "Here: channels 4 of 0 to 4 do not change the value; the batch has 4 images" in text
    assert "Why it matters: With 4 images and 5 classes the fifth class" in text
    assert "Read on: doc/pitfalls.md#mistake-2-the-loop-over-the-wrong-axis" in text
    assert text.endswith("remarks.") or text.endswith("remark.")
    assert "Something is wrong: 2 objections" in text  # it also fails on a smaller batch


def test_the_gradient_of_each_channel_is_shown_when_one_is_ignored():
    report = check_loss(losses_wrong.four_of_five_channels)
    (finding,) = report.objections
    norms = finding.example.splitlines()[-1].partition(": ")[2].split(", ")
    assert len(norms) == 5
    assert float(norms[4]) == 0
    assert all(float(norm) > 0 for norm in norms[:4])


def test_a_report_survives_json():
    report = check_loss(losses_wrong.dice_score)
    again = Report.from_json(report.to_json())
    assert again == report
    assert str(again) == str(report)


def test_check_loss_leaves_the_loss_and_the_random_numbers_alone():
    loss = losses_right.KeepsHistory()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_loss(loss)
    assert loss.history == []
    assert torch.equal(torch.rand(1), expected)


# ---- the findings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_sends_to_a_page_that_exists_and_is_explained_on_its_own_page(name):
    entry = FINDINGS[name]
    path, _, anchor = entry.read.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8")
    if anchor:
        words = [re.sub(r"[^\w\- ]", "", h.lower()) for h in re.findall(r"^#+ (.+)$", text, re.M)]
        assert anchor in {heading.replace(" ", "-") for heading in words}, entry.read
    for other in entry.replaces:
        assert other in FINDINGS
        assert name not in FINDINGS[other].replaces, "both would be hidden"
    page = " ".join((ROOT / "doc" / "check-loss.md").read_text(encoding="utf-8").split())
    assert f"| `{name}` | {entry.says.replace('|', chr(92) + '|')} |" in page
