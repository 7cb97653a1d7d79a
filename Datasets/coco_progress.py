"""The progress bar that the COCO scripts share."""

import sys

from tqdm import tqdm


def progress_bar(items=None, *, show=True, **options):
    """tqdm's bar: updated all the time in a terminal, every five seconds in a log file."""
    if not sys.stderr.isatty():
        options |= {"mininterval": 5, "maxinterval": 5, "delay": 5}
    return tqdm(items, disable=not show, **options)
