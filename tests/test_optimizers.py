"""Muon, several optimizers at once, learning rates that follow the training, and its time."""

import json
import math
import sys
import time

import pytest
import torch
from torch import nn

from SegStudio import SegStudio, backstage

Segmentation = SegStudio.SemanticSegmentation
Muon = Segmentation.Muon


def train(segmenter, net, loss="BCEDice", **options):
    return segmenter.custom_run_code_for_training_for_semantic_segmentation(net, loss, **options)


def weights(net):
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


def small_unet(seed=0):
    torch.manual_seed(seed)
    return Segmentation.UNet(width=4, stem=4)


def both(net, lr=0.03):
    hidden, rest = Muon.split(net)
    return [Muon(hidden, lr=lr), torch.optim.AdamW(rest, lr=6e-3)]


# ---- Muon ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (4, 36), (36, 4), (16, 27), (1, 9), (9, 1)])
def test_orthogonalize_moves_singular_values_close_to_1(shape):
    torch.manual_seed(0)
    matrix = 50 * torch.randn(shape)
    found = Muon.orthogonalize(matrix)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert ((values > 0.5) & (values < 1.3)).all(), "the five steps aim at 0.7 to 1.2"


@pytest.mark.parametrize("shape", [(4, 36), (36, 4), (16, 27)])
def test_orthogonalize_is_nearly_the_polar_factor(shape):
    """Oracle: U V' of the singular value decomposition, the nearest orthogonal matrix."""
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = Muon.orthogonalize(matrix)
    # the same directions: U' found V is diagonal, and only its diagonal is not exactly 1
    inner = u.T @ found @ v.T
    torch.testing.assert_close(inner, torch.diag(inner.diag()), atol=1e-4, rtol=0)
    assert (inner.diag() - 1).abs().max() < 0.5
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert cosine > 0.97


def test_orthogonalize_of_nothing_is_nothing():
    assert torch.equal(Muon.orthogonalize(torch.zeros(3, 9)), torch.zeros(3, 9))


def reference_step(weight, gradients, lr, momentum):
    """Nesterov's momentum, then the polar factor by SVD: what Muon computes approximately."""
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + gradient
        matrix = (gradient + momentum * velocity).reshape(len(weight), -1)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        rows, columns = matrix.shape
        step = lr * max(1, rows / columns) ** 0.5 * (u @ v)
        weight = weight - step.reshape(weight.shape)
    return weight


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (32, 2, 3, 3), (16, 5, 1, 1)])
def test_steps_are_those_of_the_reference(shape):
    torch.manual_seed(2)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    weight = nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.02, momentum=0.8)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    moved = weight.detach() - start
    expected = reference_step(start, gradients, lr=0.02, momentum=0.8) - start
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), 0) > 0.97
    assert 0.8 < (moved.norm() / expected.norm()).item() < 1.2


def test_the_size_of_a_step_does_not_depend_on_the_size_of_the_gradient():
    def step(scale):
        weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
        torch.manual_seed(3)
        weight.grad = scale * torch.randn(4, 2, 3, 3)
        Muon([weight], lr=1.0).step()
        return weight.detach()

    torch.testing.assert_close(step(1e-3), step(1e3), rtol=1e-3, atol=1e-3)


def test_a_layer_without_a_gradient_is_left_alone():
    weight = nn.Parameter(torch.ones(2, 2, 3, 3))
    Muon([weight]).step()
    assert torch.equal(weight, torch.ones(2, 2, 3, 3))


@pytest.mark.parametrize("make", [small_unet, lambda: Segmentation.mUnet(depth=2, width=4)])
def test_split_takes_the_kernels_between_the_first_and_the_last_layer(make):
    net = make()
    hidden, rest = Muon.split(net)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {id(p) for p in hidden} | {id(p) for p in rest} == set(names)
    assert len(hidden) + len(rest) == len(names), "each parameter is in one of both"
    assert all(p.ndim == 4 for p in hidden)
    kernels = {names[id(p)] for p in rest if p.ndim == 4}
    ends = {"stem.0.weight", "decoders.2.weight"}, {"conv_in.weight", "conv_out.weight"}
    assert kernels in ends


def test_split_leaves_out_frozen_parameters():
    net = small_unet()
    net.encoders.requires_grad_(False)
    hidden, rest = Muon.split(net)
    assert all(p.requires_grad for p in [*hidden, *rest])
    frozen = sum(1 for _ in net.encoders.parameters())
    assert len(hidden) + len(rest) == sum(1 for _ in net.parameters()) - frozen


# ---- several optimizers -------------------------------------------------------------------------


def test_a_list_of_optimizers_trains_all_parameters(experiment):
    segmenter = experiment(train=8)
    net, twin = small_unet(), small_unet()
    history = train(segmenter, net, optimizer=both(net))
    assert history.iterations == 2
    for now, then in zip(net.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(now, then)
    settings = json.loads((segmenter.dl_studio.run_dir / "settings.json").read_text())
    assert settings["training"]["optimizer"] == "Muon and AdamW"
    assert settings["training"]["parameter_groups"][0]["lr"] == 0.03


def test_a_list_of_optimizers_is_a_loop_that_steps_each(experiment):
    """Oracle: the loop written out, on one batch of all images."""
    segmenter = experiment(train=4)
    net, twin = small_unet(), small_unet()
    train(segmenter, net, optimizer=both(net))
    (batch,) = torch.utils.data.DataLoader(segmenter.dataserver_train, 4)
    optimizers = both(twin)
    loss = Segmentation.SegmentationLossBCEDice()
    loss(twin(batch["image"]), (batch["mask_tensor"] > 0).float()).backward()
    for optimizer in optimizers:
        optimizer.step()
    difference = (weights(net) - weights(twin)).abs()
    assert (difference < 1e-3).float().mean() > 0.98  # another order of the images in the batch


def test_a_list_of_optimizers_learns(experiment):
    segmenter = experiment(epochs=15)
    net = small_unet()
    history = train(segmenter, net, optimizer=both(net), scheduler=lambda f: 1 - f)
    assert history.losses[-1] < 0.7 * history.losses[0]


def test_a_scheduler_function_moves_every_learning_rate_of_a_list(experiment):
    net, rates = small_unet(), []
    optimizers = both(net)

    def look(images, masks):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        return images, masks

    train(
        experiment(train=8), net, optimizer=optimizers, scheduler=lambda f: 1 - f / 2, augment=look
    )
    assert rates == [pytest.approx([0.03, 6e-3]), pytest.approx([0.0225, 4.5e-3])]


class Interrupted(Exception):
    """What ends a run in the tests of resume."""


@pytest.mark.parametrize("scheduler", [None, lambda f: 1 - 0.9 * f])
@pytest.mark.parametrize("seed", [0, None])
def test_resume_with_a_list_of_optimizers_gives_the_weights_of_an_uninterrupted_run(
    experiment, seed, scheduler
):
    def run(name, first=0, **more):
        segmenter = experiment(train=12, epochs=3, run_name=name, seed=seed)
        net = small_unet(first)
        torch.manual_seed(50 + first)
        train(segmenter, net, optimizer=both(net), scheduler=scheduler, log_every=2, **more)
        return net

    def stop(history, net):
        if history.iterations >= 5:
            raise Interrupted

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("cut", on_log=stop)
    # The new process starts with other weights: all comes from the checkpoint.
    assert torch.equal(weights(whole), weights(run("cut", first=9, resume=True)))


def test_a_checkpoint_of_another_optimizer_is_one_sentence(experiment):
    def stop(history, net):
        if history.iterations >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        net = small_unet()
        train(experiment(train=12, epochs=3), net, optimizer=both(net), on_log=stop, log_every=1)
    with pytest.raises(ValueError, match="optimizer is SGD here and was Muon and AdamW") as caught:
        train(experiment(train=12, epochs=3), small_unet(), resume=True)
    assert "\n" not in str(caught.value)


# ---- time ---------------------------------------------------------------------------------------


class Slow(nn.Module):
    """The mean squared error, and a known time for each step."""

    name = "slow"

    def forward(self, output, mask):
        time.sleep(0.02)
        return ((output - mask) ** 2).mean()


def test_a_scheduler_function_follows_the_clock_of_a_training_bounded_by_time(
    experiment, monkeypatch
):
    """Time is simulated: each iteration takes 0.05 seconds."""
    fractions, ends, now = [], [], [0.0]
    monkeypatch.setattr(backstage.time, "perf_counter", lambda: now[0])

    class Ticking(Segmentation.SegmentationLossMSE):
        def forward(self, output, mask):
            now[0] += 0.05
            return super().forward(output, mask)

    def warm_up_and_cosine(fraction):
        fractions.append(fraction)
        return min(1, fraction / 0.05) * (1 + math.cos(math.pi * fraction)) / 2

    segmenter = experiment()
    net = Segmentation.mUnet(depth=2, width=2)
    history = train(
        segmenter, net, criterion=Ticking(), max_seconds=0.8, scheduler=warm_up_and_cosine,
        log_every=1, on_log=lambda history, net: ends.append(history.seconds),
    )  # fmt: skip
    assert history.iterations in (16, 17)  # 17 if the sum of the times is rounded down
    assert history.iterations > 3 * len(segmenter.train_dataloader), "beyond the one epoch"
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.7 < fractions[-1] <= 1
    # Each iteration's rate is that of the time that had passed.
    rates = [rate for _, rate in history.column("learning_rate")]
    assert rates[-1] < 0.3 * max(rates)
    assert len(ends) == history.iterations


def test_evaluations_do_not_count_as_time_of_training(experiment, tiny_shapes):
    class Sleepy(tiny_shapes):
        def __getitem__(self, idx):
            time.sleep(0.1)
            return super().__getitem__(idx)

    begun = time.perf_counter()
    history = train(
        experiment(), Segmentation.mUnet(depth=2, width=2), criterion=Slow(), max_seconds=0.4,
        evaluate_every=2, evaluate_on=Sleepy(1),
    )  # fmt: skip
    evaluations = len(history.column("pixel_accuracy"))
    assert evaluations >= 1
    passed = time.perf_counter() - begun
    assert 0.4 <= history.seconds < passed - 0.08 * evaluations


def flags_of(monkeypatch, *arguments, **options):
    monkeypatch.setattr(sys, "argv", ["example.py", *arguments])
    return SegStudio.example_flags("An example.", **options)


def test_training_seconds_keep_a_script_within_its_time(monkeypatch):
    """The clock runs since the import: what was drawn, loaded and trained before counts."""
    flags = flags_of(monkeypatch, "--quick", quick_seconds=100)
    for passed, left, expected in ((0, 1, 85), (20, 1, 65), (20, 2, 25), (60, 2, 5), (300, 1, 5)):
        monkeypatch.setattr(backstage, "STARTED", time.perf_counter() - passed)
        assert flags.training_seconds(left) == pytest.approx(expected, abs=0.5)
    monkeypatch.setattr(backstage, "STARTED", time.perf_counter())
    assert flags.training_seconds(reserve=40) == pytest.approx(60, abs=0.5)


@pytest.mark.parametrize(
    "arguments", [(), ("--quick", "--epochs", "2"), ("--quick", "--train-images", "30")]
)
def test_images_and_epochs_that_are_given_lift_the_limit(monkeypatch, arguments):
    flags = flags_of(monkeypatch, *arguments, quick_seconds=100)
    assert flags.training_seconds() is None
    assert flags_of(monkeypatch, "--quick").training_seconds() is None, "no limit was asked for"
