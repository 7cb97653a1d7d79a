"""SegStudio: semantic segmentation explained in one module (see SegStudio/SegStudio.py)."""

from SegStudio.SegStudio import SegStudio, __version__

__all__ = ["SegStudio"]
