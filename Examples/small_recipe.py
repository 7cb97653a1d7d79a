"""The recipe by which several examples train a small network in a minute: Muon and AdamW."""

import math

import torch
from torch.utils.data import DataLoader, RandomSampler

MUON_RATE = 0.03
WARM_UP = 0.05  # the fraction of the training in which the learning rates rise


def train_small(segmenter, net, criterion, adamw_rate, max_seconds, **options):
    """Muon trains the hidden kernels, AdamW the other parameters; returns the TrainingHistory.

    options: of custom_run_code_for_training_for_semantic_segmentation, such as resume.
    """
    hidden, rest = segmenter.Muon.split(net)
    return segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net,
        criterion=criterion,
        optimizer=[
            segmenter.Muon(hidden, lr=MUON_RATE),
            torch.optim.AdamW(rest, lr=adamw_rate),
        ],
        scheduler=warm_up_then_cosine,
        channels_last=True,
        max_seconds=max_seconds,
        **{"log_every": 100} | options,
    )


def warm_up_then_cosine(done):
    """The factor on the learning rates, as a function of the fraction of training done."""
    if done < WARM_UP:
        return 0.02 + 0.98 * done / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def make_one_epoch(segmenter, iterations, seed):
    """Make one epoch of the training loader `iterations` batches long.

    The order of the images depends on the seed alone, so several networks see the same batches.
    """
    dataset = segmenter.dataserver_train
    batch_size = segmenter.dl_studio.batch_size
    order = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(dataset, num_samples=iterations * batch_size, generator=order)
    segmenter.train_dataloader = DataLoader(dataset, batch_size, sampler=sampler)
