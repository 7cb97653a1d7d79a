"""Exercise 4: balance the scales.

Check: python Examples/check_exercise.py 4 my_4.py
"""


def balanced_scale(output, mask):
    """The scale at which scale * Dice has a gradient as long as that of MSE.

    The gradients are those at the output; Dice is the squared form. The scale is one number.
    output, mask: (N, C, H, W).
    """
    raise NotImplementedError
