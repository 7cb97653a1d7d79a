"""Exercise 6: fix the pole.

Check: python Examples/check_exercise.py 6 my_6.py
"""


def pixel_loss(output, mask):
    """The report's Dice: the mean over pixels of 1 - (2pm + 1) / (p + m + 1).

    Shape: output p and mask m (N, C, H, W) -> scalar.
    """
    p, m = output, mask
    return (1 - (2 * p * m + 1) / (p + m + 1)).mean()
