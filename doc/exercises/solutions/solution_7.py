"""Exercise 7, a solution: binary cross entropy plus Dice on probabilities."""

import torch
from torch import nn


class MyLoss(nn.Module):
    """BCE gives each wrong pixel a gradient, Dice gives each class the same weight.

    On logits no class has a larger error than another, and the output starts at the threshold; MSE
    must first move it to values of up to 250.

    Shape: output (N, C, H, W) logits, mask (N, C, H, W) of 0 and 1 -> scalar.
    """

    logits = True

    def forward(self, output, mask):
        bce = nn.functional.binary_cross_entropy_with_logits(output, mask)
        q = torch.sigmoid(output)
        overlap = (q * mask).sum(dim=(0, 2, 3))  # (C,)
        size = q.sum(dim=(0, 2, 3)) + mask.sum(dim=(0, 2, 3))
        return bce + (1 - (2 * overlap + 1) / (size + 1)).mean()
