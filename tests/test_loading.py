"""Batches shared between processes: each image once, weighted by the sizes of the shares."""

import pytest
import torch
from conftest import Numbered
from torch.utils.data import DataLoader

from SegStudio import loading, processes


def shares_of(loader, rank, world_size, monkeypatch):
    """[(images, weight), ...] of the batches that the process `rank` gets."""
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "world_size", lambda: world_size)
    batches = loading.TrainingBatches(loader, 7, None, torch.device("cpu"))
    return [(batch["image"][:, 0, 0, 0].tolist(), batches.weight) for batch in batches]


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(monkeypatch, planned, world_size):
    loader = DataLoader(Numbered(9), 4)  # batches of 4, 4 and 1
    if not planned:
        loader = list(loader)  # a loader of one's own: each process reads all of it
    shares = [shares_of(loader, rank, world_size, monkeypatch) for rank in range(world_size)]
    for number, size in enumerate((4, 4, 1)):
        parts = [share[number] for share in shares]
        images = [image for part, weight in parts if weight for image in part]
        assert sorted(images) == [float(4 * number + k) for k in range(size)]
        assert all(part for part, _ in parts), "each process takes part in each step"
        # A mean over the images of a share, weighted and averaged, is the mean of the batch.
        mean = sum(weight * sum(part) / len(part) for part, weight in parts) / world_size
        assert mean == pytest.approx(sum(images) / size)


def test_testing_gives_each_batch_to_one_process(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        found += processes.share(enumerate("abcdefg"))
    assert sorted(found) == list(enumerate("abcdefg"))
