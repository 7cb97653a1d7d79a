"""Exercise 3: why is the IoU stuck at 0.25?

Check: python Examples/check_exercise.py 3 my_3.py
"""

import torch


def follows(net):
    """Which output pixels follow the image: a tensor (64, 64) of True and False.

    A pixel follows the image if one of its channels changes for some other image.

    net: takes images (N, 3, 64, 64) of 0 to 255 and returns (N, C, 64, 64).
    """
    raise NotImplementedError


def best_iou(mask, follows):
    """The highest IoU with this mask, if only the pixels that follow the image can be set.

    mask, follows: tensors (64, 64) of True and False.
    """
    raise NotImplementedError


if __name__ == "__main__":
    from SegStudio import SegStudio

    torch.manual_seed(0)
    net = SegStudio.SemanticSegmentation.mUnet()
    found = follows(net)
    print("share of the pixels that follow the image:", found.float().mean().item())
    print(found[:4, :8].int())
