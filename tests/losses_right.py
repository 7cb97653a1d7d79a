"""Losses that are right, however written: check_loss must accuse none of them.

RIGHT: name -> a function without arguments that makes the loss. Add to it what was accused wrongly.
LIBRARIES: the same for the big libraries, by the name of the package that must be installed.
"""

import torch
import torch.nn.functional as F
from torch import nn

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


# ---- functions ----------------------------------------------------------------------------------


def mse_by_loops(output, mask):
    """A report's loop, over the right axes."""
    total = torch.zeros(1)
    for n in range(output.shape[0]):
        for c in range(output.shape[1]):
            total = total + torch.mean((output[n, c] - mask[n, c]) ** 2)
    return total / (output.shape[0] * output.shape[1])


def mae_by_pixels(output, mask):
    terms = [(p - m).abs() for p, m in zip(output.flatten(), mask.flatten(), strict=True)]
    return torch.stack(terms).mean()


def dice_einsum(output, mask):
    p = torch.sigmoid(output)
    overlap = torch.einsum("nchw,nchw->nc", p, mask)
    size = torch.einsum("nchw->nc", p) + torch.einsum("nchw->nc", mask)
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


def dice_per_image(output, mask):
    losses = []
    for p, m in zip(torch.sigmoid(output), mask, strict=True):
        losses.append(1 - (2 * (p * m).sum() + 1e-5) / (p.sum() + m.sum() + 1e-5))
    return torch.stack(losses).mean()


def dice_whole_batch(output, mask):
    p, m = torch.sigmoid(output).reshape(-1), (mask > 0).float().reshape(-1)
    return 1 - (2 * p.dot(m) + 1) / (p.sum() + m.sum() + 1)


def dice_squared_handout(output, mask):
    batch, channels = output.shape[:2]
    p, m = output.view(batch, channels, -1), mask.view(batch, channels, -1)
    numerator = 2 * (p * m).sum(-1)
    denominator = (p * p).sum(-1) + (m * m).sum(-1) + 1e-6
    return (1 - numerator / denominator).mean()


def minus_dice(output, mask):
    """From -1 to 0, as in V-Net."""
    p = torch.sigmoid(output)
    return -(2 * (p * mask).sum((2, 3)) + 1).div(p.sum((2, 3)) + mask.sum((2, 3)) + 1).mean()


def log_dice(output, mask):
    p = torch.sigmoid(output)
    score = (2 * (p * mask).sum((2, 3)) + 1) / (p.sum((2, 3)) + mask.sum((2, 3)) + 1)
    return -torch.log(score).mean()


def jaccard(output, mask):
    p = torch.sigmoid(output)
    overlap = (p * mask).sum(dim=(2, 3))
    union = (p + mask - p * mask).sum(dim=(2, 3))
    return torch.mean(1 - (overlap + 1) / (union + 1))


def bce_by_hand(output, mask):
    p = torch.sigmoid(output).clamp(1e-7, 1 - 1e-7)
    return -(mask * p.log() + (1 - mask) * (1 - p).log()).mean()


def bce_dice_sum(output, mask):
    """Summed over images and pixels."""
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="sum")
    p = torch.sigmoid(output)
    dice = 1 - (2 * (p * mask).sum((2, 3)) + 1) / (p.sum((2, 3)) + mask.sum((2, 3)) + 1)
    return bce + dice.sum()


def focal(output, mask, alpha=0.25, gamma=2.0):
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="none")
    pt = torch.exp(-bce)
    weight = alpha * mask + (1 - alpha) * (1 - mask)
    return (weight * (1 - pt) ** gamma * bce).mean()


def focal_detached_weight(output, mask):
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="none")
    weight = (1 - torch.exp(-bce)).detach() ** 2
    return (weight * bce).mean()


def tversky(output, mask, alpha=0.3, beta=0.7):
    q = output.sigmoid()
    tp = (q * mask).sum((0, 2, 3))
    fp = (q * (1 - mask)).sum((0, 2, 3))
    fn = ((1 - q) * mask).sum((0, 2, 3))
    return (1 - (tp + 1) / (tp + alpha * fp + beta * fn + 1)).mean()


def focal_tversky(output, mask):
    q = output.sigmoid()
    tp = (q * mask).sum((2, 3))
    fp = (q * (1 - mask)).sum((2, 3))
    fn = ((1 - q) * mask).sum((2, 3))
    return ((1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)) ** 0.75).mean()


def lovasz_hinge(output, mask):
    """Berman et al., per image and class, on logits."""
    losses = []
    for logits, labels in zip(output.flatten(0, 1), mask.flatten(0, 1), strict=True):
        logits, labels = logits.flatten(), labels.flatten()
        errors, order = torch.sort(1 - logits * (2 * labels - 1), descending=True)
        sorted_labels = labels[order]
        total = sorted_labels.sum()
        intersection = total - sorted_labels.cumsum(0)
        union = total + (1 - sorted_labels).cumsum(0)
        steps = 1 - intersection / union
        steps = torch.cat([steps[:1], steps[1:] - steps[:-1]])
        losses.append(torch.dot(F.relu(errors), steps))
    return torch.stack(losses).mean()


def hardest_pixels(output, mask):
    """Cross entropy of the hardest quarter of the pixels."""
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="none").flatten()
    return bce.topk(max(1, bce.numel() // 4)).values.mean()


def smoothed_labels(output, mask):
    return F.binary_cross_entropy_with_logits(output, mask * 0.9 + 0.05)


def weighted_bce(output, mask):
    positive, negative = mask * F.logsigmoid(output), (1 - mask) * F.logsigmoid(-output)
    return -(3 * positive + negative).mean()


def sigmoid_mse_of_255(output, mask):
    return ((torch.sigmoid(output) - mask / 255.0) ** 2).mean()


def bce_of_any_mask(output, mask):
    return F.binary_cross_entropy_with_logits(output, (mask > 0).to(output.dtype))


def softmax_dice_of_classes(output, mask):
    """One channel per class and one for the background, which Dice leaves out."""
    p = output.softmax(dim=1)[:, 1:]
    m = mask[:, 1:]
    overlap, size = (p * m).sum((2, 3)), p.sum((2, 3)) + m.sum((2, 3))
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


def cross_entropy_of_planes(output, mask):
    """Class 0 is background where no plane is set."""
    background = torch.zeros_like(output[:, :1])
    logits = torch.cat([background, output], dim=1)
    target = torch.cat([torch.full_like(mask[:, :1], 0.5), mask], dim=1).argmax(dim=1)
    return F.cross_entropy(logits, target)


def squeezed_binary(output, mask):
    """For one channel only, as on COCO."""
    p, m = torch.sigmoid(output.squeeze(1)), mask.squeeze(1)
    if p.dim() != 3:
        raise ValueError("one channel only")
    return 1 - (2 * (p * m).sum((1, 2)) + 1).div(p.sum((1, 2)) + m.sum((1, 2)) + 1).mean()


def only_where_there_is_a_class(output, mask):
    """Dice over the planes that are not empty."""
    p = torch.sigmoid(output)
    present = mask.sum((2, 3)) > 0
    if not present.any():
        return output.sum() * 0
    overlap, size = (p * mask).sum((2, 3)), p.sum((2, 3)) + mask.sum((2, 3))
    return (1 - 2 * overlap / (size + 1e-7))[present].mean()


# ---- near to a mistake, but right ---------------------------------------------------------------


def norm_of_each_plane(output, mask):
    """The gradient of torch's norm is 0 at 0, not NaN."""
    return torch.linalg.vector_norm(output - mask, dim=(2, 3)).mean()


def root_mean_square_with_eps(output, mask):
    return (((output - mask) ** 2).mean(dim=(2, 3)) + 1e-8).sqrt().mean()


def bce_of_probabilities_by_hand(p, mask):
    """The clamp keeps the logarithm finite; probabilities are in this range anyway."""
    p, m = p.clamp(1e-7, 1 - 1e-7), (mask > 0).float()
    return -(m * p.log() + (1 - m) * (1 - p).log()).mean()


def dice_with_clamped_exponent(output, mask):
    """The clamp is so far out that the sigmoid is 0 or 1 there."""
    p = 1 / (1 + torch.exp(-output.clamp(-30, 30)))
    return -((2 * (p * mask).sum((2, 3)) + 1) / (p.sum((2, 3)) + mask.sum((2, 3)) + 1)).mean()


def bce_of_coco_masks(output, mask):
    """Masks of 0 and 255, as COCO has them here."""
    return F.binary_cross_entropy_with_logits(output, (mask > 127).float())


def bce_of_one_channel(output, mask):
    if output.shape[1] != 1:
        raise ValueError("one channel only")
    return F.binary_cross_entropy_with_logits(output, (mask > 127).float())


def hardest_pixels_of_the_batch(output, mask):
    """So few that most pixels have no gradient."""
    bce = F.binary_cross_entropy_with_logits(output, mask, reduction="none").flatten()
    return bce.topk(max(1, bce.numel() // 40)).values.mean()


def hinge(output, mask):
    return F.relu(1 - (2 * mask - 1) * output).mean()


def mse_of_a_scaled_sigmoid(output, mask):
    return F.mse_loss(250 * torch.sigmoid(output), mask)


def generalized_cross_entropy(output, mask):
    """Zhang and Sabuncu: the gradient is small, but not 0, at confident mistakes."""
    p = torch.sigmoid(output)
    pt = torch.where(mask > 0, p, 1 - p)
    return ((1 - pt**0.7) / 0.7).mean()


def dice_and_mse_of_levels(output, mask):
    level = torch.arange(50.0, 251.0, 50.0)[:, None, None]
    p, m = output / level, mask / level
    size = (p * p).sum((2, 3)) + (m * m).sum((2, 3))
    return F.mse_loss(p, m) + (1 - (2 * (p * m).sum((2, 3)) + 1) / (size + 1)).mean()


def each_mask_by_its_own_value(output, mask):
    level = torch.arange(50.0, 251.0, 50.0)[:, None, None]
    return F.binary_cross_entropy_with_logits(output, (mask == level).float())


# ---- modules ------------------------------------------------------------------------------------


class HuberOfLevels(nn.Module):
    """Each channel is divided by its mask value; summed over pixels, divided by the images."""

    def __init__(self, delta=0.3):
        super().__init__()
        self.delta = delta
        self.register_buffer("level", torch.arange(50.0, 251.0, 50.0)[None, :, None, None])

    def forward(self, output, mask):
        p, m = output / self.level, mask / self.level
        return F.huber_loss(p, m, delta=self.delta, reduction="sum") / len(output)


class GeneralizedDice(nn.Module):
    """Sudre et al., over the batch: the object and its complement, weighted by 1 / area^2."""

    def forward(self, output, mask):
        c = output.shape[1]
        p = output.transpose(0, 1).reshape(c, -1).sigmoid()
        m = mask.transpose(0, 1).reshape(c, -1).to(p.dtype)
        p, m = torch.stack([p, 1 - p]), torch.stack([m, 1 - m])
        weight = 1 / m.sum(-1).clamp(min=1.0).square()
        weight = weight / weight.sum(0, keepdim=True)
        overlap = (weight * (p * m).sum(-1)).sum(0)
        size = (weight * (p + m).sum(-1)).sum(0)
        return (1 - 2 * overlap / size.clamp(min=1e-8)).mean()


class FocalTverskyOfTheBatch(nn.Module):
    def forward(self, output, mask):
        p, q = F.logsigmoid(output).exp(), F.logsigmoid(-output).exp()
        tp, fn = (p * mask).sum((0, 2, 3)), (q * mask).sum((0, 2, 3))
        fp = (p * (1 - mask)).sum((0, 2, 3))
        score = (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)
        return torch.pow((1 - score).clamp(min=0), 4 / 3).sum()


class LogCoshDice(nn.Module):
    """Per image, with a little cross entropy; takes masks of any value."""

    def forward(self, output, mask):
        p, m = output.sigmoid(), (mask > 0).type_as(output)
        size = p.square().sum((1, 2, 3)) + m.sum((1, 2, 3))
        dice = 1 - (2 * (p * m).sum((1, 2, 3)) + 1) / (size + 1)
        logcosh = torch.logaddexp(dice, -dice) - torch.log(torch.tensor(2.0))
        return logcosh.mean() + 0.2 * (F.softplus(output) - output * m).mean()


class EdgesCountMore(nn.Module):
    """Cross entropy; pixels near an edge of the mask count up to six times."""

    def forward(self, output, mask):
        mask = mask.float()
        with torch.no_grad():
            grown = F.max_pool2d(mask, 5, stride=1, padding=2)
            shrunk = -F.max_pool2d(-mask, 5, stride=1, padding=2)
            weight = 1 + 5 * (grown - shrunk)
        bce = F.binary_cross_entropy_with_logits(output, mask, weight=weight, reduction="sum")
        return bce / weight.sum()


class HardestQuarter:
    """No nn.Module: an object that can be called."""

    def __call__(self, output, mask):
        bce = F.binary_cross_entropy_with_logits(output, mask.float(), reduction="none").flatten(1)
        count = max(1, bce.shape[1] // 4)
        return bce.topk(count, dim=1, sorted=False).values.mean()


class SmoothedLabelsByHand(nn.Module):
    def forward(self, output, mask):
        target = mask * 0.9 + 0.05
        bce = torch.relu(output) - output * target + torch.log1p(torch.exp(-output.abs()))
        return bce.mean(dim=(2, 3)).sum(dim=1).mean()


class LoopsWithNorms(nn.Module):
    def forward(self, output, mask):
        total = output.new_zeros(())
        for n in range(len(output)):
            for k in range(output.shape[1]):
                p, m = output[n, k], mask[n, k]
                size = p.norm().pow(2) + m.norm().pow(2)
                dice = 1 - (2 * (p * m).sum() + 1e-3) / (size + 1e-3)
                total = total + ((p - m) ** 2).sum() / p.numel() + 1000 * dice
        return total / (output.shape[0] * output.shape[1])



class CombinedLoss(nn.Module):
    """The homework's, with a loop over images and channels and constructor arguments."""

    def __init__(self, batch_size, dice_scale):
        super().__init__()
        self.batch_size = batch_size
        self.dice_scale = dice_scale

    def forward(self, output, mask):
        mse, dice = 0.0, 0.0
        for n in range(output.size(0)):
            for c in range(output.size(1)):
                p, m = output[n][c], mask[n][c]
                mse = mse + torch.sum((p - m) ** 2) / p.numel()
                dice = dice + 1 - 2 * torch.sum(p * m) / (
                    torch.sum(p * p) + torch.sum(m * m) + 1e-6
                )
        count = output.size(0) * output.size(1)
        return (mse + self.dice_scale * dice) / count


class DiceCE(nn.Module):
    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = weight
        self.ce = nn.CrossEntropyLoss()

    def forward(self, output, mask):
        p = torch.softmax(output, dim=1)
        one_hot = F.one_hot(mask.long(), output.shape[1]).movedim(-1, 1).to(p.dtype)
        overlap = (p * one_hot).sum((0, 2, 3))
        size = p.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
        dice = 1 - ((2 * overlap + 1) / (size + 1)).mean()
        return self.weight * self.ce(output, mask.long()) + (1 - self.weight) * dice


class WeightedMSE(nn.Module):
    """A weight per class, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 1.0, 2.0, 1.0, 3.0]))

    def forward(self, output, mask):
        return (self.weight[:, None, None] * (output - mask) ** 2).mean()


class SumOverBatch(nn.Module):
    """Divides by the batch size that it was made with, as the homework's code does."""

    def __init__(self, batch_size=4):
        super().__init__()
        self.batch_size = batch_size

    def forward(self, output, mask):
        loss = torch.zeros(1, requires_grad=True)
        for p, m in zip(output, mask, strict=True):
            dice = 1 - (2 * torch.sum(p * m) + 1e-6) / (
                torch.sum(p**2) + torch.sum(m**2) + 1e-6
            )
            loss = loss + dice
        return loss.sum() / self.batch_size


class KeepsHistory(nn.Module):
    """Keeps its values for a plot; the result does not depend on them."""

    def __init__(self):
        super().__init__()
        self.history = []

    def forward(self, output, mask):
        loss = F.smooth_l1_loss(output, mask)
        self.history.append(loss.item())
        return loss


class OwnBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, mask):
        ctx.save_for_backward(output, mask)
        return ((output - mask) ** 2).mean()

    @staticmethod
    def backward(ctx, grad):
        output, mask = ctx.saved_tensors
        return grad * 2 * (output - mask) / output.numel(), None


class UncertaintyWeighted(nn.Module):
    """Two terms with learned weights."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2))

    def forward(self, output, mask):
        m = (mask > 0).float()
        p = output.sigmoid()
        size = (p**2).sum((1, 2, 3)) + (m**2).sum((1, 2, 3)) + 1e-6
        dice = 1 - (2 * (p * m).sum((1, 2, 3)) / size).mean()
        bce = F.binary_cross_entropy_with_logits(output, m)
        return torch.exp(-self.s[0]) * bce + torch.exp(-self.s[1]) * dice + self.s.sum()


def make_loss():
    """A factory."""
    return nn.BCEWithLogitsLoss()


RIGHT = {
    "SegStudio MSE": Segmentation.SegmentationLossMSE,
    "SegStudio MAE": Segmentation.SegmentationLossMAE,
    "SegStudio Dice": Segmentation.SegmentationLossDice,
    "SegStudio linear Dice": lambda: Segmentation.SegmentationLossDice(form="linear"),
    "SegStudio Comb": Segmentation.SegmentationLossComb,
    "SegStudio MAE + Dice": lambda: Segmentation.SegmentationLossComb(dice_scale=100, base="mae"),
    "SegStudio BCE + Dice": Segmentation.SegmentationLossBCEDice,
    "SegStudio BCE + Dice per image": lambda: Segmentation.SegmentationLossBCEDice(
        batch_dice=False
    ),
    "nn.MSELoss": nn.MSELoss,
    "nn.MSELoss sum": lambda: nn.MSELoss(reduction="sum"),
    "nn.L1Loss": nn.L1Loss,
    "nn.SmoothL1Loss": nn.SmoothL1Loss,
    "nn.HuberLoss": lambda: nn.HuberLoss(delta=10.0),
    "nn.BCELoss": nn.BCELoss,
    "nn.BCEWithLogitsLoss": nn.BCEWithLogitsLoss,
    "nn.BCEWithLogitsLoss pos_weight": lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(4.0)),
    "nn.CrossEntropyLoss": nn.CrossEntropyLoss,
    "OwnBackward.apply": lambda: OwnBackward.apply,
    **{
        function.__name__: lambda function=function: function
        for function in (
            mse_by_loops, mae_by_pixels, dice_einsum, dice_per_image, dice_whole_batch,
            dice_squared_handout, minus_dice, log_dice, jaccard, bce_by_hand, bce_dice_sum, focal,
            focal_detached_weight, tversky, focal_tversky, lovasz_hinge, hardest_pixels,
            smoothed_labels, weighted_bce, sigmoid_mse_of_255, bce_of_any_mask,
            softmax_dice_of_classes, cross_entropy_of_planes, squeezed_binary,
            only_where_there_is_a_class, norm_of_each_plane, root_mean_square_with_eps,
            bce_of_probabilities_by_hand, dice_with_clamped_exponent, bce_of_coco_masks,
            bce_of_one_channel, hardest_pixels_of_the_batch, hinge, mse_of_a_scaled_sigmoid,
            generalized_cross_entropy, dice_and_mse_of_levels, each_mask_by_its_own_value,
        )
    },
    "CombinedLoss": lambda: CombinedLoss,  # a class whose arguments check_loss fills in
    "DiceCE": DiceCE,
    "WeightedMSE": WeightedMSE,
    "SumOverBatch": SumOverBatch,
    "KeepsHistory": KeepsHistory,
    "UncertaintyWeighted": UncertaintyWeighted,
    **{
        made.__name__: made
        for made in (
            HuberOfLevels, GeneralizedDice, FocalTverskyOfTheBatch, LogCoshDice, EdgesCountMore,
            HardestQuarter, SmoothedLabelsByHand, LoopsWithNorms,
        )
    },
    "make_loss": lambda: make_loss,
}  # fmt: skip


def monai(name, **options):
    def make():
        from monai import losses

        return getattr(losses, name)(**options)

    return make


def smp(name, *arguments, **options):
    def make():
        from segmentation_models_pytorch import losses

        return getattr(losses, name)(*arguments, **options)

    return make


LIBRARIES = {
    "monai DiceLoss sigmoid": ("monai", monai("DiceLoss", sigmoid=True)),
    "monai DiceLoss probabilities": ("monai", monai("DiceLoss")),
    "monai DiceLoss squared": ("monai", monai("DiceLoss", sigmoid=True, squared_pred=True)),
    "monai DiceLoss batch": ("monai", monai("DiceLoss", sigmoid=True, batch=True)),
    "monai DiceLoss jaccard": ("monai", monai("DiceLoss", sigmoid=True, jaccard=True)),
    "monai DiceLoss softmax": ("monai", monai("DiceLoss", softmax=True)),
    "monai DiceLoss without background": (
        "monai", monai("DiceLoss", softmax=True, include_background=False)),
    "monai DiceLoss of class numbers": ("monai", monai("DiceLoss", softmax=True, to_onehot_y=True)),
    "monai DiceCELoss": ("monai", monai("DiceCELoss", softmax=True, to_onehot_y=True)),
    "monai DiceCELoss of planes": ("monai", monai("DiceCELoss", sigmoid=True)),
    "monai DiceFocalLoss": ("monai", monai("DiceFocalLoss", sigmoid=True)),
    "monai FocalLoss": ("monai", monai("FocalLoss")),
    "monai TverskyLoss": ("monai", monai("TverskyLoss", sigmoid=True)),
    "monai GeneralizedDiceLoss": ("monai", monai("GeneralizedDiceLoss", sigmoid=True)),
    "smp DiceLoss multilabel": ("segmentation_models_pytorch", smp("DiceLoss", "multilabel")),
    "smp DiceLoss binary": ("segmentation_models_pytorch", smp("DiceLoss", "binary")),
    "smp DiceLoss multiclass": ("segmentation_models_pytorch", smp("DiceLoss", "multiclass")),
    "smp DiceLoss log": (
        "segmentation_models_pytorch", smp("DiceLoss", "multilabel", log_loss=True)),
    "smp DiceLoss probabilities": (
        "segmentation_models_pytorch", smp("DiceLoss", "multilabel", from_logits=False)),
    "smp JaccardLoss": ("segmentation_models_pytorch", smp("JaccardLoss", "multilabel")),
    "smp TverskyLoss": (
        "segmentation_models_pytorch", smp("TverskyLoss", "multilabel", alpha=0.3, beta=0.7)),
    "smp FocalLoss": ("segmentation_models_pytorch", smp("FocalLoss", "multilabel")),
    "smp FocalLoss multiclass": ("segmentation_models_pytorch", smp("FocalLoss", "multiclass")),
    "smp LovaszLoss": ("segmentation_models_pytorch", smp("LovaszLoss", "multilabel")),
    "smp LovaszLoss multiclass": ("segmentation_models_pytorch", smp("LovaszLoss", "multiclass")),
    "smp SoftBCEWithLogitsLoss": ("segmentation_models_pytorch", smp("SoftBCEWithLogitsLoss")),
    "smp MCCLoss": ("segmentation_models_pytorch", smp("MCCLoss")),
}  # fmt: skip
