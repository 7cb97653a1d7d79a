"""A training that uses every source of random numbers, to be killed and continued."""

import random
import time

import numpy as np
import torch
from conftest import Segmentation, TinyShapes

from SegStudio import SegStudio


class RandomShapes(TinyShapes):
    """Items with noise from numpy, torch and random, as an augmentation in a dataset draws it."""

    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        noise = torch.randn(()) + np.random.rand() + random.random()  # noqa: NPY002
        item["image"] = item["image"] + noise
        return item


def augment(images, masks):
    if torch.rand(()) < 0.5:
        images, masks = images.flip(3), masks.flip(3)
    return images * (0.9 + 0.2 * np.random.rand()), masks  # noqa: NPY002


def experiment(results, name, workers=0, *, data=RandomShapes, images=22, **settings):
    settings = {"epochs": 3, "seed": 3, **settings}
    dls = SegStudio(results_dir=results, run_name=name, num_workers=workers, **settings)
    segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_PurdueShapes5MultiObject_dataset(data(images), TinyShapes(6))
    return segmenter


def run(results, name, workers=0, *, resume=True, rate=2e-3, net=None, pause=0.0, **changes):
    """Train and test; returns the network and the history."""
    settings = {k: changes.pop(k) for k in ("data", "images", "epochs", "seed", "batch_size")
                if k in changes}  # fmt: skip
    segmenter = experiment(results, name, workers, **settings)
    if net is None:
        net = torch.nn.Sequential(
            segmenter.mUnet(depth=4, width=4, input_scale=1 / 255), torch.nn.Dropout(0.1)
        )
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)

    def wait(history, net):
        time.sleep(pause)  # so that a kill has a chance to hit this place

    options = {
        "criterion": segmenter.SegmentationLossComb(dice_scale=30),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7),
        "augment": augment,
        "log_every": 2,
        "on_log": wait,
        "evaluate_every": 3,
        "evaluate_on": TinyShapes(5),
        "resume": resume,
        **changes,
    }
    history = segmenter.custom_run_code_for_training_for_semantic_segmentation(net, **options)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    return net, history
