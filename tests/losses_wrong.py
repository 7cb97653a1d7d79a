"""Losses that are wrong, each with the finding by which check_loss must name its mistake.

WRONG: (the loss, the id of the finding). Add to it what check_loss missed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
WRONG = []


def wrong(finding):
    """Enter the loss below under the finding that names its mistake."""

    def enter(loss):
        WRONG.append((loss, finding))
        return loss

    return enter


def sums(output, mask, dims=(2, 3)):
    """Overlap and size."""
    return (output * mask).sum(dim=dims), output.sum(dim=dims) + mask.sum(dim=dims)


# ---- the formula --------------------------------------------------------------------------------


@wrong("missing-factor-two")
def dice_without_two(output, mask):
    overlap, size = sums(output.sigmoid(), mask)
    return (1 - (overlap + 1) / (size + 1)).mean()


@wrong("missing-factor-two")
def squared_dice_without_two(output, mask):
    overlap = (output * mask).sum(dim=(2, 3))
    size = (output**2).sum(dim=(2, 3)) + (mask**2).sum(dim=(2, 3))
    return (1 - overlap / (size + 1e-6)).mean()


@wrong("missing-factor-two")
def bce_and_dice_without_two(output, mask):
    overlap, size = sums(output.sigmoid(), mask)
    dice = (1 - overlap / (size + 1e-6)).mean()
    return F.binary_cross_entropy_with_logits(output, mask) + dice


@wrong("doubled-factor-two")
def dice_with_four(output, mask):
    overlap, size = sums(output.sigmoid(), mask)
    return (1 - 2 * (2 * overlap) / (size + 1e-6)).mean()


@wrong("higher-is-better")
def dice_score(output, mask):
    overlap, size = sums(output.sigmoid(), mask)
    return ((2 * overlap + 1) / (size + 1)).mean()


@wrong("higher-is-better")
def mse_with_a_minus(output, mask):
    return -((output - mask) ** 2).mean()


@wrong("term-higher-is-better")
def mse_plus_dice_score(output, mask):
    overlap = (output * mask).sum(dim=(2, 3))
    size = (output**2).sum(dim=(2, 3)) + (mask**2).sum(dim=(2, 3))
    return F.mse_loss(output, mask) + 200 * (2 * overlap / (size + 1e-6)).mean()


@wrong("pixelwise-dice")
def report_dice(output, mask):
    return torch.mean(1 - (2 * output * mask + 1) / (output + mask + 1))


@wrong("pixelwise-dice")
def report_dice_on_probabilities(output, mask):
    p = output.sigmoid()
    return 1 - torch.mean((2 * p * mask + 1e-6) / (p + mask + 1e-6))


@wrong("errors-cancel")
def mean_difference(output, mask):
    return (output - mask).mean()


@wrong("position-ignored")
def square_of_the_sum(output, mask):
    return ((output - mask).sum(dim=(2, 3)) ** 2).mean()


@wrong("false-positives-ignored")
def recall_only(output, mask):
    p = output.sigmoid()
    return (1 - ((p * mask).sum((2, 3)) + 1) / (mask.sum((2, 3)) + 1)).mean()


@wrong("false-positives-ignored")
def half_a_cross_entropy(output, mask):
    return -(mask * F.logsigmoid(output)).mean()


@wrong("misses-ignored")
def precision_only(output, mask):
    p = output.sigmoid()
    return (1 - ((p * mask).sum((2, 3)) + 1) / (p.sum((2, 3)) + 1)).mean()


@wrong("false-positives-rewarded")
def cross_entropy_with_a_wrong_sign(output, mask):
    p = output.sigmoid().clamp(1e-6, 1 - 1e-6)
    return -(mask * p.log() - (1 - mask) * (1 - p).log()).mean()


@wrong("confident-mistakes-cheap")
def focal_the_wrong_way_round(output, mask):
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="none")
    return (torch.exp(-bce) ** 2 * bce).mean()


@wrong("ignores-the-mask")
def mse_of_the_output_alone(output, mask):
    return ((output - output.mean()) ** 2).mean()


@wrong("ignores-the-output")
def variance_of_the_mask(output, mask):
    return ((mask - mask.mean()) ** 2).mean() + 0 * output.sum()


@wrong("misses-rewarded")
def cross_entropy_with_the_other_sign_wrong(output, mask):
    p = output.sigmoid().clamp(1e-6, 1 - 1e-6)
    return -(-mask * p.log() + (1 - mask) * (1 - p).log()).mean()


@wrong("perfect-not-minimum")
def four_fifths_of_the_mask(output, mask):
    return ((output - 0.8 * mask) ** 2).mean()


# ---- not finite ---------------------------------------------------------------------------------


@wrong("missing-smoothing")
def dice_without_smoothing(output, mask):
    overlap, size = sums(output, mask)
    return (1 - 2 * overlap / size).mean()


@wrong("log-of-zero")
def cross_entropy_without_clamp(output, mask):
    p = output.sigmoid()
    return -(mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).mean()


@wrong("overflow")
def sigmoid_by_hand(output, mask):
    p = torch.exp(output) / (1 + torch.exp(output))
    return F.mse_loss(p, mask)


@wrong("not-finite")
def root_of_differences(output, mask):
    return torch.sqrt(output - mask).mean()


@wrong("gradient-not-finite")
def overlap_of_roots(output, mask):
    """The root has an infinite slope at 0, where every mask has most of its pixels."""
    p = output.sigmoid()
    return 1 - (torch.sqrt(p * mask).sum((2, 3)) / (p + mask).sum((2, 3))).mean() * 2


# ---- no gradient --------------------------------------------------------------------------------


@wrong("returns-a-number")
def item_of_mse(output, mask):
    return ((output - mask) ** 2).mean().item()


@wrong("detached")
def mse_in_numpy(output, mask):
    error = output.detach().cpu().numpy() - mask.cpu().numpy()
    return torch.tensor(np.mean(error**2), requires_grad=True)


@wrong("detached")
def mse_detached(output, mask):
    return ((output.detach() - mask) ** 2).mean()


@wrong("hard-threshold")
def dice_of_thresholded(output, mask):
    overlap, size = sums((output > 0).float(), mask)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("hard-threshold")
def dice_of_rounded(output, mask):
    overlap, size = sums(torch.round(output.sigmoid()), mask)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("hard-threshold")
def mse_and_dice_of_thresholded(output, mask):
    overlap, size = sums((output > mask.amax((0, 2, 3), keepdim=True) / 2).float(), mask > 0)
    return F.mse_loss(output, mask) + 200 * (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("gradient-wrong")
def dice_term_by_item(output, mask):
    overlap = (output * mask).sum(dim=(2, 3))
    size = (output**2).sum(dim=(2, 3)) + (mask**2).sum(dim=(2, 3))
    dice = (1 - 2 * overlap / (size + 1e-6)).mean()
    return 0.01 * ((output - mask) ** 2).mean() + 200 * dice.item()


class HalfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, mask):
        ctx.save_for_backward(output, mask)
        return ((output - mask) ** 2).mean()

    @staticmethod
    def backward(ctx, grad):
        output, mask = ctx.saved_tensors
        return grad * (output - mask), None


wrong("gradient-wrong")(HalfTheGradient)


@wrong("calls-backward")
def calls_backward_itself(output, mask):
    loss = ((output - mask) ** 2).mean()
    loss.backward()
    return loss


@wrong("backward-fails")
def changes_what_backward_needs(output, mask):
    p = output.sigmoid()
    loss = ((p - mask) ** 2).mean() + (p * p).mean() * 0
    p += 1e-6
    return loss


# ---- axes, images, channels ---------------------------------------------------------------------


@wrong("channel-loop-over-batch")
class ReportMSE(nn.Module):
    """The report's loop: shape[0] is the batch size, not the number of channels."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def forward(self, output, mask):
        composite_loss = torch.zeros(1, self.batch_size)
        for idx in range(self.batch_size):
            loss = torch.zeros(1, mask.shape[0])
            for k in range(mask.shape[0]):
                loss[0, k] = torch.mean((output[idx, k] - mask[idx, k]) ** 2)
            composite_loss[0, idx] = torch.sum(loss)
        return torch.sum(composite_loss) / self.batch_size


@wrong("image-loop-over-channels")
def images_by_the_number_of_channels(output, mask):
    total = 0
    for n in range(output.shape[1]):
        total = total + ((output[n] - mask[n]) ** 2).mean()
    return total / output.shape[1]


@wrong("channel-ignored")
def four_of_five_channels(output, mask):
    return sum(F.mse_loss(output[:, k], mask[:, k]) for k in range(4)) / 4


@wrong("channel-ignored")
def first_loss_of_dlstudio(output, mask):
    return Segmentation.SegmentationLoss()(output, mask)


@wrong("image-ignored")
def first_image_only(output, mask):
    return F.mse_loss(output[0], mask[0])


@wrong("partial-batch")
class FixedBatch(nn.Module):
    def __init__(self, batch_size=4):
        super().__init__()
        self.batch_size = batch_size

    def forward(self, output, mask):
        losses = [F.l1_loss(output[n], mask[n]) for n in range(self.batch_size)]
        return torch.stack(losses).mean()


@wrong("wrong-axes")
def dice_over_images_and_channels(output, mask):
    overlap, size = sums(output.sigmoid(), mask, dims=(0, 1))
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("wrong-axes")
def dice_over_channels(output, mask):
    overlap, size = sums(output.sigmoid(), mask, dims=1)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("wrong-axes")
def dice_per_row(output, mask):
    overlap, size = sums(output.sigmoid(), mask, dims=-1)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("scrambled")
def dice_of_a_wrong_view(output, mask):
    p, m = output.sigmoid().reshape(-1, output.shape[1]), mask.reshape(-1, mask.shape[1])
    overlap, size = sums(p, m, dims=0)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("images-mixed")
def sizes_of_other_images(output, mask):
    """(N, 1) divided by (N,) gives (N, N)."""
    p = output.sigmoid()
    overlap = (p * mask).sum(dim=(1, 2, 3))[:, None]  # (N, 1)
    size = (p + mask).sum(dim=(1, 2, 3))  # (N,)
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


@wrong("channels-mixed")
def every_channel_with_every_mask(output, mask):
    return ((output[:, :, None] - mask[:, None]) ** 2).mean()


@wrong("batch-order")
def later_images_count_more(output, mask):
    weight = torch.arange(1, output.shape[0] + 1, dtype=output.dtype)
    return (weight * ((output - mask) ** 2).mean(dim=(1, 2, 3))).sum() / weight.sum()


@wrong("batch-scaling")
def divided_twice(output, mask):
    return ((output - mask) ** 2).mean() / output.shape[0]


# ---- what it returns and does -------------------------------------------------------------------


@wrong("not-a-scalar")
def one_number_per_image(output, mask):
    return ((output - mask) ** 2).mean(dim=(1, 2, 3))


@wrong("not-a-scalar")
def reduction_none(output, mask):
    return F.mse_loss(output, mask, reduction="none")


@wrong("inputs-changed")
def divides_the_mask_in_place(output, mask):
    mask /= 255
    return F.mse_loss(output.sigmoid(), mask)


@wrong("remembers")
class RunningTotal(nn.Module):
    def __init__(self):
        super().__init__()
        self.total = 0.0

    def forward(self, output, mask):
        loss = F.mse_loss(output, mask)
        self.total = self.total + loss.item()
        return loss + self.total


@wrong("not-deterministic")
def dropout_in_the_loss(output, mask):
    return F.mse_loss(F.dropout(output, 0.5), mask)


@wrong("raises")
def misspelled(output, mask):
    return F.mse_loss(outputs, mask)  # noqa: F821


@wrong("device-fixed")
def on_the_gpu_only(output, mask):
    return F.mse_loss(output.to("cuda:9"), mask.to("cuda:9"))


@wrong("argument-order")
def mask_first(target, prediction):
    return F.binary_cross_entropy_with_logits(prediction, target)


# ---- sigmoid and softmax ------------------------------------------------------------------------


@wrong("double-sigmoid")
def cross_entropy_of_a_sigmoid(output, mask):
    return F.binary_cross_entropy_with_logits(torch.sigmoid(output), mask)


@wrong("double-sigmoid")
def two_sigmoids(output, mask):
    return ((output.sigmoid().sigmoid() - mask) ** 2).mean()


class SigmoidBeforeBCEAndDice(nn.Module):
    """One term in float32, whatever the output is: small steps drown in rounding."""

    def __init__(self):
        super().__init__()
        self.bce = nn.BCEWithLogitsLoss()

    def forward(self, output, mask):
        p, m = torch.sigmoid(output), mask.float()
        overlap, size = sums(p, m)
        return self.bce(p, m) + 1 - ((2 * overlap + 1) / (size + 1)).mean()


wrong("double-sigmoid")(SigmoidBeforeBCEAndDice)


@wrong("softmax-wrong-axis")
def softmax_over_the_batch(output, mask):
    return F.mse_loss(torch.softmax(output, dim=0), mask)


@wrong("mixed-terms")
def mse_of_values_and_dice_of_logits(output, mask):
    overlap, size = sums(output.sigmoid(), (mask > 0).float())
    return F.mse_loss(output, mask) + 200 * (1 - (2 * overlap + 1) / (size + 1)).mean()


# ---- written without a look at the checks -------------------------------------------------------


@wrong("misses-rewarded")
def tversky_with_copied_line(y_pred, y_true, alpha=0.7, beta=0.3, smooth=1.0):
    y_pred = torch.sigmoid(y_pred)
    tp = (y_pred * y_true).sum()
    fn = (y_pred * (1 - y_true)).sum()
    fp = (y_pred * y_true).sum()
    return 1 - (tp + smooth) / (tp + alpha * fn + beta * fp + smooth)


@wrong("image-ignored")
def returns_inside_the_loop(output, mask):
    p = torch.sigmoid(output)
    for n in range(p.shape[0]):
        overlap = torch.sum(p[n] * mask[n])
        return 1 - (2 * overlap + 1) / (p[n].sum() + mask[n].sum() + 1)
    return None


@wrong("wrong-axes")
def mean_over_the_batch_first(output, mask):
    return ((output.mean(dim=0) - mask.mean(dim=0)) ** 2).mean()


@wrong("hard-threshold")
def iou_of_integers(preds, labels):
    preds, labels = (torch.sigmoid(preds) > 0.5).int(), labels.int()
    overlap = (preds & labels).float().sum((2, 3))
    union = (preds | labels).float().sum((2, 3))
    loss = 1 - ((overlap + 1e-6) / (union + 1e-6)).mean()
    loss.requires_grad = True
    return loss


# ---- the kinds that a blind trial found missing, each in several forms --------------------------


@wrong("channels-mixed")
class OverlapOfOtherChannels(nn.Module):
    """(N, C) divided by (N, C, 1, 1) gives (N, C, N, C)."""

    def forward(self, output, mask):
        p = output.sigmoid()
        overlap = (p * mask).sum((2, 3))
        size = p.sum((2, 3), keepdim=True) + mask.sum((2, 3), keepdim=True)
        return 1 - ((2 * overlap + 1) / (size + 1)).mean()


@wrong("images-mixed")
def every_image_with_every_mask(output, mask):
    p, m = torch.sigmoid(output).flatten(1), mask.flatten(1)
    overlap = torch.einsum("ik,jk->ij", p, m)
    return (1 - (overlap + 1) / (p.sum(1) + m.sum(1) - overlap + 1)).mean()


@wrong("images-mixed")
def areas_of_the_whole_batch(output, mask):
    overlap = (output * mask).sum(dim=(2, 3))  # (N, C)
    size = (output**2).sum(dim=(0, 2, 3)) + (mask**2).sum(dim=(0, 2, 3))  # (C,)
    return (1 - 2 * overlap / (size + 1e-6)).mean()


@wrong("channels-mixed")
def masks_of_all_classes_added_up(output, mask):
    return ((output - mask.sum(dim=1, keepdim=True)) ** 2).mean()


@wrong("classes-lost")
def rounds_masks_over_255(output, mask):
    """50 / 255 and 100 / 255 are rounded to 0."""
    return F.binary_cross_entropy_with_logits(output, (mask.float() / 255).round())


@wrong("classes-lost")
def masks_above_127(output, mask):
    overlap, size = sums(output.sigmoid(), (mask > 127).float())
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


@wrong("classes-lost")
class IntegerMasks(nn.Module):
    def forward(self, output, mask):
        return F.binary_cross_entropy_with_logits(output, (mask / 128).long().clamp(max=1).float())


@wrong("classes-lost")
def only_the_star(output, mask):
    return F.binary_cross_entropy_with_logits(output, (mask == 250).float())


@wrong("gradient-not-finite")
def root_mean_square_of_each_plane(output, mask):
    return torch.sqrt(((output - mask) ** 2).mean(dim=(2, 3))).mean()


@wrong("gradient-not-finite")
def fourth_root_of_each_channel(output, mask):
    total = 0
    for k in range(output.shape[1]):
        total = total + (output[:, k] - mask[:, k]).pow(2).sum() ** 0.25
    return total / output.shape[1]


@wrong("gradient-not-finite")
def mse_and_cosine_distance(output, mask):
    p, m = output.flatten(2), mask.flatten(2)
    lengths = (p**2).sum(2).sqrt() * (m**2).sum(2).sqrt()
    return F.mse_loss(output, mask) + (1 - (p * m).sum(2) / (lengths + 1e-6)).mean()


@wrong("remembers")
class MeanOfTheEpoch(nn.Module):
    """Each call alone is right; the second backward() fails."""

    def __init__(self):
        super().__init__()
        self.total, self.steps = 0, 0

    def forward(self, output, mask):
        self.total += F.mse_loss(output, mask)
        self.steps += 1
        return self.total / self.steps


@wrong("remembers")
class DividedByItsAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.average = None

    def forward(self, output, mask):
        loss = F.mse_loss(output, mask)
        now = loss.detach() + 1e-6
        self.average = now if self.average is None else 0.9 * self.average + 0.1 * now
        return loss / self.average


@wrong("remembers")
class KeepsTheGraph(nn.Module):
    """The value is right, but backward() goes through the batch before."""

    def __init__(self):
        super().__init__()
        self.last = 0

    def forward(self, output, mask):
        self.last = F.mse_loss(output, mask) + 0 * self.last
        return self.last


HISTORY = []


@wrong("remembers")
def mean_of_a_global_list(output, mask):
    HISTORY.append(F.l1_loss(output, mask))
    del HISTORY[:-10]
    return sum(HISTORY) / len(HISTORY)


@wrong("flat-out-of-range")
def clamped_like_a_picture(output, mask):
    output = torch.clamp(output, 0, 255)
    losses = [((p - m) ** 2).mean() for p, m in zip(output, mask, strict=True)]
    return torch.stack(losses).mean()


@wrong("flat-out-of-range")
def relu_before_mse_and_dice(output, mask):
    p = F.relu(output)
    overlap = (p * mask).sum((2, 3))
    size = (p**2).sum((2, 3)) + (mask**2).sum((2, 3))
    return F.mse_loss(p, mask) + 200 * (1 - 2 * overlap / (size + 1e-6)).mean()


@wrong("flat-out-of-range")
class ScaledAndClipped(nn.Module):
    def forward(self, output, mask):
        return F.smooth_l1_loss((output / 255).clip(0, 1), mask / 255)


@wrong("flat-out-of-range")
def logits_clamped_to_3(output, mask):
    return F.binary_cross_entropy_with_logits(output.clamp(-3, 3), mask)


@wrong("flat-out-of-range")
def dice_of_a_hard_sigmoid(output, mask):
    overlap, size = sums(F.hardsigmoid(output), mask)
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


# ---- further kinds that were missed for the same reasons ----------------------------------------


@wrong("sign-ignored")
def mse_of_squares(output, mask):
    return ((output**2 - mask**2) ** 2).mean()


@wrong("sign-ignored")
def mae_of_absolute_values(output, mask):
    return (output.abs() - mask).abs().mean()


@wrong("scale-ignored")
def cosine_distance(output, mask):
    return 1 - F.cosine_similarity(output.flatten(2), mask.flatten(2), dim=2).mean()


@wrong("scale-ignored")
def dice_of_stretched_outputs(output, mask):
    p = (output - output.min()) / (output.max() - output.min() + 1e-6)
    overlap, size = sums(p, (mask > 0).float())
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


@wrong("classes-confused")
def sum_of_the_channels(output, mask):
    return torch.sqrt(((output.sum(1) - mask.sum(1)) ** 2).mean() + 1e-6)


@wrong("classes-confused")
def largest_channel(output, mask):
    return F.mse_loss(output.amax(dim=1), mask.amax(dim=1))


@wrong("pixels-ignored")
def every_second_pixel(output, mask):
    return F.mse_loss(output[:, :, ::2, ::2], mask[:, :, ::2, ::2])


@wrong("pixels-ignored")
def without_the_last_row(output, mask):
    rows = range(output.shape[2] - 1)
    return sum(F.mse_loss(output[:, :, y], mask[:, :, y]) for y in rows) / len(rows)


@wrong("not-finite")
def mask_divided_by_its_maximum(output, mask):
    """On an empty plane this is 0 / 0."""
    m = mask / mask.amax((2, 3), keepdim=True)
    return F.binary_cross_entropy_with_logits(output, m)


@wrong("not-finite")
def logarithm_of_the_output(output, mask):
    """NaN at an output below -1."""
    return F.mse_loss(torch.log1p(output), torch.log1p(mask))
