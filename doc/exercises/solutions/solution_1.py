"""Exercise 1, a solution: Dice by sums over explicit axes."""

from torch import nn


class MyDice(nn.Module):
    """1 - 2 sum(pm) / (sum(pp) + sum(mm) + eps), the mean over images and channels.

    Shape: output p and mask m (N, C, H, W) -> scalar.
    """

    def forward(self, output, mask):
        p, m = output, mask.to(output.dtype)  # uint8 would overflow in m * m
        overlap = (p * m).sum(dim=(2, 3))  # (N, C)
        size = (p * p).sum(dim=(2, 3)) + (m * m).sum(dim=(2, 3))  # (N, C)
        return (1 - 2 * overlap / (size + 1e-6)).mean()
