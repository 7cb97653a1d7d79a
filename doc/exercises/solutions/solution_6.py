"""Exercise 6, a solution: squares in the denominator, as in squared Dice."""


def pixel_loss(output, mask):
    """The mean over pixels of 1 - (2pm + 1) / (p² + m² + 1).

    This is (p - m)² / (p² + m² + 1): the denominator is 1 or more, so there is no pole, and the
    numerator is 0 at p = m only. For 0 and 1 a square changes nothing.
    """
    p, m = output, mask
    return (1 - (2 * p * m + 1) / (p * p + m * m + 1)).mean()
