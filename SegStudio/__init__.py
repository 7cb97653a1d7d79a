"""SegStudio: semantic segmentation explained in one module (see SegStudio/SegStudio.py)."""

import sys

from SegStudio.SegStudio import SegStudio
from SegStudio.SegStudio import __version__ as __version__

__all__ = ["SegStudio", "sys"]  # as DLStudio's package: scripts use sys without importing it
