"""SegStudio: semantic segmentation, explained and runnable, in one module."""

import argparse
import contextlib
import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import skimage.draw
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

__version__ = "1.0.0"


class SegStudio:
    """The settings of a run."""

    class SemanticSegmentation(nn.Module):
        """The experiment."""

        # ==== §1 DATA: PurdueShapes5MultiObject ==================================================

        # ==== §1 DATA: COCO, one object per image ================================================

        # ==== §2 NETWORK: mUnet ==================================================================

        # ==== §3 LOSSES ==========================================================================

        # ==== §4 SCORES ==========================================================================

        # ==== §5 TRAINING ========================================================================

        # ==== §6 TESTING =========================================================================

        # ==== §7 FIGURES =========================================================================
