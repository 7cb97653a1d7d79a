"""How the images of a training are loaded: loaders, their order and their random numbers.

A training can stop after any batch and continue in another process with the next one. For this,
TrainingBatches controls the order of the images and all random numbers.
"""

import multiprocessing
import numbers
import os
import random
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

if __package__:
    from . import backstage, processes
else:  # the folder of this file is on sys.path
    import backstage
    import processes


# ---- loaders ------------------------------------------------------------------------------------


def evaluation_split(segmenter, evaluate_on):
    """(the training loader, the loader to evaluate on during training)."""
    loader = segmenter.train_dataloader
    dataset = segmenter.dataserver_validation if evaluate_on is None else evaluate_on
    if dataset is None:
        raise ValueError(
            "evaluate_every needs images to evaluate on: give evaluate_on=0.1 (a share of the "
            "training images, kept out of training) or a Dataset"
        )
    if isinstance(dataset, DataLoader):
        return loader, dataset
    if isinstance(dataset, numbers.Real):
        loader, dataset = hold_out(loader, dataset)
    return loader, DataLoader(
        dataset,
        loader.batch_size or segmenter.dl_studio.batch_size,
        generator=torch.Generator().manual_seed(0),  # else it would draw from the global one
        **loading_settings(loader),
    )


def loader_arguments(dls):
    """Batch size, workers and memory of the loaders that SegStudio makes."""
    return {
        "batch_size": dls.batch_size,
        "num_workers": dls.num_workers,
        "persistent_workers": dls.num_workers > 0,  # started once, not in every epoch
        "pin_memory": dls.device.type == "cuda",  # copied to the GPU faster
        "worker_init_fn": StartWorker(None) if dls.num_workers else None,
    }


def loading_settings(loader):
    """The settings of a loader that say how items are loaded, as keywords of DataLoader."""
    names = (
        "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
        "multiprocessing_context", "persistent_workers",
    )  # fmt: skip
    settings = {name: getattr(loader, name) for name in names}
    if loader.batch_sampler is None:  # its dataset makes the batches, another one makes items
        settings["collate_fn"] = None
    if loader.num_workers:  # without workers, DataLoader refuses it
        settings["prefetch_factor"] = loader.prefetch_factor
    return settings


def hold_out(loader, share):
    """(a loader like `loader` without a fixed part of its images, a Dataset of that part)."""
    sampler = loader.sampler
    shuffles = type(sampler) is torch.utils.data.RandomSampler
    if shuffles:  # as DataLoader(shuffle=True) makes one
        plain = (
            not sampler.replacement
            and sampler.num_samples == len(loader.dataset)
            and sampler.generator is loader.generator
        )
    else:
        plain = type(sampler) is torch.utils.data.SequentialSampler
    if not plain or loader.batch_size is None:
        raise ValueError(
            "a share of the images cannot be held out of a loader with a sampler of your own: "
            "give evaluate_on= a Dataset"
        )
    total = len(loader.dataset)
    number = round(total * share)
    if not 0 < number < total:
        raise ValueError(
            f"evaluate_on={share} of {total} training images leaves one part empty: give more "
            f"images or another share"
        )
    # The seed does not matter: all runs of a comparison hold out the same images.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
    kept, held_out = sorted(order[number:]), sorted(order[:number])
    training = DataLoader(
        Subset(loader.dataset, kept),
        loader.batch_size,
        shuffle=shuffles,
        drop_last=loader.drop_last,
        generator=loader.generator,
        **loading_settings(loader),
    )
    return training, Subset(loader.dataset, held_out)


def number_of_batches(loader):
    """len(loader), or None for a stream, whose length is not known."""
    try:
        return len(loader)
    except TypeError:
        return None


def number_of_images(loader):
    """The number of images of a loader, or None for a stream, whose length is not known."""
    try:
        return len(loader.dataset)
    except TypeError:
        return None


# ---- random numbers -----------------------------------------------------------------------------


def random_states(device, generators=()):
    """The states of all random number generators that a training uses, as plain data."""
    version, numbers_, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - students' own code may draw from it
    states = {
        "torch": torch.get_rng_state(),
        "random": [version, list(numbers_), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "generators": [generator.get_state() for generator in generators],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states, device, generators=()):
    """Continue with the random numbers that followed when random_states() was called."""
    version, numbers_, gauss = states["random"]
    name, keys, *rest = states["numpy"]
    torch.set_rng_state(states["torch"].cpu())
    random.setstate((version, tuple(numbers_), gauss))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    for generator, state in zip(generators, states["generators"], strict=True):
        generator.set_state(state.cpu())
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"].cpu())


def seed_generators(*seed):
    """Seed torch on the CPU, numpy and random with a mix of whole numbers."""
    entropy = [number % 2**64 for number in seed]
    first, second, third = np.random.SeedSequence(entropy).generate_state(3).tolist()
    torch.default_generator.manual_seed(first)  # torch.manual_seed would also seed the GPU
    np.random.seed(second)  # noqa: NPY002
    random.seed(third)


# ---- the batches of a training ------------------------------------------------------------------


class TrainingBatches:
    """The batches of a loader, which can begin at any batch and be shared between processes.

    With a seed, the order of the images in an epoch depends only on the seed and the number of the
    epoch. The random numbers for the items of a batch also depend on the number of the batch. So
    neither the number of workers nor an interruption changes them. Without a seed, order and
    random numbers are those that the loader itself would give.

    A loader that is no DataLoader, or whose dataset is a stream or makes the batches itself, is
    used without changes: to begin later, its first batches are read and dropped.

    Args:
        loader: any loader of dicts with image and mask_tensor.
        seed: of the run, or None.
        order: the generator of the image order, if SegStudio made it; else None.
        device: of the training, for its random state.
    """

    def __init__(self, loader, seed, order, device):
        if seed is None and processes.world_size() > 1:  # all must draw the same order
            seed = processes.from_main(torch.initial_seed)
        self.loader, self.seed, self.order, self.device = loader, seed, order, device
        self.number = number_of_batches(loader)  # None: a stream
        self.weight = 1.0  # of this process's share of the current batch
        samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
        found = (getattr(holder, "generator", None) for holder in (loader, *samplers))
        self.generators = list({id(g): g for g in found if g is not None}.values())
        self.planned = None
        if can_be_planned(loader):
            self.plan = BatchPlan(self)
            settings = loading_settings(loader)
            if loader.num_workers:
                start = loader.worker_init_fn
                settings["worker_init_fn"] = (
                    start if isinstance(start, StartWorker) else StartWorker(start)
                )
            # DataLoader draws a number for its workers in each epoch. With a seed it must not
            # come from the generators of the training.
            generator = loader.generator if seed is None else torch.Generator().manual_seed(0)
            self.planned = DataLoader(
                BatchesOfItems(loader.dataset),
                batch_sampler=self.plan,
                generator=generator,
                **settings,
            )
        self.begin(0)

    def begin(self, epoch, skip=0, start=None, now=None):
        """Set what the next iteration reads: this epoch, without its first `skip` batches.

        start, now: the random states at the start of the epoch and after `skip` batches, of a
        training that is continued.
        """
        self.epoch, self.skip, self.now = epoch, skip, now
        if start is not None:
            set_random_states(start, self.device, self.generators)
        elif getattr(self.planned, "_iterator", None) is not None and self.seed is None:
            # Workers that start draw a number before the order of the images is drawn. Workers
            # that stayed from the last epoch do not; the order must be the same.
            number = torch.empty((), dtype=torch.int64)
            number.random_(generator=self.loader.generator)
        self.start = random_states(self.device, self.generators)

    def skipped(self):
        """The first batches are left out now: go on with the random numbers of that moment."""
        if self.now is not None:
            set_random_states(self.now, self.device, self.generators)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        share, shares = processes.rank(), processes.world_size()
        if self.planned is not None:
            for number, batch in enumerate(self.planned):
                size = self.plan.sizes[number]
                self.weight = len(range(share, size, shares)) * shares / size
                yield batch
            return
        batches = iter(self.loader)
        for _ in range(self.skip):
            next(batches, None)
        self.skipped()
        for batch in batches:
            if shares > 1:
                size = len(batch["image"])
                self.weight = len(range(share, size, shares)) * shares / size
                batch = {k: v[share::shares] if size > share else v[:1] for k, v in batch.items()}
            yield batch


def can_be_planned(loader):
    """Whether a loader is torch's own DataLoader with a sampler of batches."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


class BatchPlan:
    """The batch sampler of TrainingBatches: (a seed or None, the indices of the items).

    With several processes, the indices are this one's share of the batch. A batch that is
    smaller than the number of processes gives some of them an image of weight 0, because each
    process must take part in each step.
    """

    def __init__(self, batches):
        self.batches = batches
        self.sizes = []  # of the batches that were handed out in this epoch

    def __len__(self):
        return len(self.batches.loader)

    def __iter__(self):
        batches, share, shares = self.batches, processes.rank(), processes.world_size()
        order = iter(self.order_of_epoch())
        for _ in range(batches.skip):
            next(order, None)
        batches.skipped()
        for number, indices in enumerate(order, start=batches.skip):
            self.sizes.append(len(indices))
            seed = None
            if batches.seed is not None:
                seed = (batches.seed, batches.epoch, number, share)
            yield seed, indices[share::shares] or indices[:1]

    def order_of_epoch(self):
        """The indices of each batch."""
        batches = self.batches
        self.sizes.clear()
        if batches.number is None or batches.seed is None:
            return batches.loader.batch_sampler
        with backstage.random_numbers_kept():
            seed_generators(batches.seed, batches.epoch)
            if batches.order is not None:
                batches.order.manual_seed(1_000_003 * batches.seed + batches.epoch)
                # A DataLoader draws one number from it before its sampler does.
                torch.empty((), dtype=torch.int64).random_(generator=batches.order)
            return list(batches.loader.batch_sampler)


class BatchesOfItems(Dataset):
    """The items of a dataset, loaded a batch at a time by what a BatchPlan gives."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, seed_and_indices):
        seed, indices = seed_and_indices
        if seed is None:
            return self.load(indices)
        with backstage.random_numbers_kept():
            seed_generators(*seed)
            return self.load(indices)

    def load(self, indices):
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]


class StartWorker:
    """What a worker does first: ignore Ctrl-C, because the main process must finish its step.

    The worker also ends when the main process has ended. torch does not do that for workers that a
    forkserver starts, as Python does on Linux from 3.14 on.
    """

    def __init__(self, then):
        self.then = then

    def __call__(self, number):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self.end_with_parent, daemon=True).start()
        if self.then is not None:
            self.then(number)

    @staticmethod
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
