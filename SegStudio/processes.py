"""Several processes that train one network together, started by torch's own `torchrun`.

Each process runs the whole script with the same settings. The main process (rank 0) writes the
run's folder; the others write to a temporary folder that is deleted. Each takes its share of every
batch, and the gradients are averaged, so the batch is as large as with one process. With one
process, everything here does nothing.
"""

import atexit
import contextlib
import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def started_by_torchrun():
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank_of_torchrun():
    """The rank, also before join()."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def join(use_gpu):
    """Join the process group, once; torchrun has set its address in the environment."""
    if not started_by_torchrun() or dist.is_initialized():
        return
    if use_gpu and torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    atexit.register(leave)


def leave():
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank():
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else 0


def is_main():
    return rank() == 0


def temporary_folder():
    """A folder for what the processes other than the main one write; deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="segstudio-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def one_after_another():
    """The first process of each machine runs the body first; the others then find its files."""
    first = local_rank() == 0
    if world_size() > 1 and not first:
        dist.barrier()
    yield
    if world_size() > 1 and first:
        dist.barrier()


def from_main(make):
    """What make() returns in the main process, in every process; its error too."""
    if world_size() == 1:
        return make()
    box = [None]
    if is_main():
        try:
            box = [(make(), None)]
        except (OSError, ValueError) as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0, device=device_of_messages())
    result, error = box[0]
    if error is not None:
        raise error
    return result


def gather(items):
    """The items of the lists of all processes, in the order of their ranks."""
    if world_size() == 1:
        return items
    lists = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]


def total(scores):
    """The sum of the SegmentationScores of all processes, in every process."""
    if world_size() == 1:
        return scores
    total, *others = [part for part in gather([scores]) if part.images] or [scores]
    for part in others:
        total.counts += part.counts
        total.confusion += part.confusion
        total.images += part.images
    return total


def device_of_messages():
    """The device of tensors that processes exchange: nccl needs the GPU, gloo the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def reduce(values, operation="sum"):
    """The sum or the maximum over all processes of each number, as a tensor or a list."""
    if world_size() == 1:
        return values
    tensor = torch.as_tensor(values, dtype=torch.float64).to(device_of_messages())
    dist.all_reduce(tensor, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    if isinstance(values, torch.Tensor):
        return tensor.to(values)
    return tensor.tolist()


def share(numbered):
    """This process's share of (number, thing): each one goes to exactly one process."""
    return (pair for pair in numbered if pair[0] % world_size() == rank())


@contextlib.contextmanager
def replicated(net, batches, image_size):
    """`net` for the training loop: with several processes, its backward averages the gradients.

    Each process computes the loss of its share of a batch. The average is weighted by the sizes of
    the shares, so for a loss that is a mean over images it is the gradient of the whole batch.

    On GPUs each BatchNorm uses the statistics of the whole batch meanwhile. On a CPU torch has no
    such layer: each process normalises its own share.
    """
    if world_size() == 1:
        yield net
        return
    device = next(net.parameters()).device
    on_gpu = device.type == "cuda"

    def weighted_average(_, bucket):
        gradient = bucket.buffer().mul_(batches.weight / world_size())
        return dist.all_reduce(gradient, async_op=True).get_future().then(lambda f: f.value()[0])

    with shared_batch_norm(net) if on_gpu else contextlib.nullcontext():
        replica = DistributedDataParallel(
            net,
            device_ids=[device.index] if on_gpu else None,
            find_unused_parameters=not all_parameters_used(net, device, image_size),
        )
        replica.register_comm_hook(None, weighted_average)
        yield replica


def all_parameters_used(net, device, image_size):
    """Whether the output depends on each parameter; in DLStudio's network six blocks are unused.

    DistributedDataParallel must know, because it waits for the gradient of each parameter.
    """
    twin = copy.deepcopy(net).eval()
    output = twin(torch.zeros(1, 3, *image_size, device=device))
    found, to_visit = set(), [output.grad_fn]
    visited = set(to_visit)
    while to_visit:
        function = to_visit.pop()
        if hasattr(function, "variable"):
            found.add(id(function.variable))
        following = {f for f, _ in function.next_functions if f is not None} - visited
        visited |= following
        to_visit += following
    return all(id(p) in found for p in twin.parameters() if p.requires_grad)


@contextlib.contextmanager
def shared_batch_norm(net):
    """Inside, every BatchNorm2d of `net` uses the statistics of all processes."""
    plain = {
        (parent, name): layer
        for parent in net.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.BatchNorm2d
    }
    for (parent, name), layer in plain.items():
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))  # the same tensors
    try:
        yield
    finally:
        for (parent, name), layer in plain.items():
            setattr(parent, name, layer)
