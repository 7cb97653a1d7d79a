"""Evaluation does not touch training: how often one looks changes nothing that one sees."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import TinyShapes
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


def train(segmenter, net, **options):
    return segmenter.custom_run_code_for_training_for_semantic_segmentation(net, **options)


def weights(net):
    return torch.cat([value.double().flatten() for value in net.state_dict().values()])


class Jittered(TinyShapes):
    """Students draw their augmentation in __getitem__, from any of the three generators."""

    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        shift = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
        return {**item, "image": item["image"] + 20 * shift.float()}


class Plain(Dataset):
    """The items of another dataset, and nothing that says what they are."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, idx):
        return self.inner[idx]


def flip(images, masks):
    return (images.flip(3), masks.flip(3)) if torch.rand(()) < 0.5 else (images, masks)


# ---- the same weights ---------------------------------------------------------------------------


def run(experiment, small_net, seed=None, num_workers=0, test=8, **options):
    """(weights, losses, three random numbers afterwards) of a training on jittered images."""
    segmenter = experiment(
        train=Jittered(10), test=test, epochs=2, seed=seed, num_workers=num_workers
    )
    net = small_net()
    net.dropout = nn.Dropout(0.3)
    net.register_forward_hook(lambda net, args, output: net.dropout(output))
    for draw in (torch.manual_seed, random.seed, np.random.seed):  # noqa: NPY002
        draw(77)
    history = train(segmenter, net, log_every=1, augment=flip, **options)
    after = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    return weights(net), history.losses, after


@pytest.mark.parametrize("evaluate_on", ["validation", "held out"])
@pytest.mark.parametrize("seed", [3, None])
def test_any_evaluate_every_gives_the_same_weights(experiment, small_net, seed, evaluate_on):
    evaluate_on = Jittered(6) if evaluate_on == "validation" else 0.2
    never = {} if evaluate_on != 0.2 else {"evaluate_every": 1000, "evaluate_on": 0.2}
    expected, losses, after = run(experiment, small_net, seed, **never)
    for every in (1, 3):
        found, its_losses, its_after = run(
            experiment, small_net, seed, evaluate_every=every, evaluate_on=evaluate_on
        )
        assert its_losses == losses
        assert torch.equal(found, expected)
        assert its_after == after


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, None])
def test_any_evaluate_every_gives_the_same_weights_with_workers(experiment, small_net, seed):
    (expected, losses, after), (found, its_losses, its_after) = (
        run(experiment, small_net, seed, 2, evaluate_every=every, evaluate_on=Jittered(6))
        for every in (1000, 2)
    )
    assert its_losses == losses
    assert torch.equal(found, expected)
    assert its_after == after


def test_scoring_draws_no_random_number(experiment, small_net):
    segmenter = experiment(test=Plain(Jittered(5)), train=Plain(Jittered(7)), seed=None)
    net = small_net()

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    before = states()
    segmenter.score(net)
    assert states() == before
    segmenter.score_baselines()
    assert states() == before


# ---- the student's own loader -------------------------------------------------------------------


def test_a_loader_of_the_students_own_stays_as_it_is(experiment, small_net):
    """Items that are tuples, a collate_fn that makes the batch, drop_last and a sampler."""

    class Tuples(Plain):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            return item["image"], item["mask_tensor"] > 0

    collated, sizes = [], []

    def collate(items):
        collated.append(len(items))
        images, masks = zip(*items, strict=True)
        return {"image": torch.stack(images), "mask_tensor": torch.stack(masks)}

    def look(images, masks):
        sizes.append(len(images))
        assert set(masks.unique().tolist()) == {0, 1}
        return images, masks

    data = Tuples(TinyShapes(11))  # its mask values have to be looked for, by that collate_fn
    segmenter = experiment()
    sampler = WeightedRandomSampler(torch.ones(11), 10, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(data, 4, sampler=sampler, collate_fn=collate, drop_last=True)
    segmenter.train_dataloader = loader
    history = train(
        segmenter, small_net(), augment=look, evaluate_every=1, evaluate_on=data, log_every=1
    )
    assert sizes == [4, 4], "ten are drawn, and an incomplete batch is left out"
    assert history.iterations == 2
    assert len(history.column("mean_iou")) == 2
    assert segmenter.train_dataloader is loader
    assert collated


def test_a_held_out_share_keeps_the_students_loader(experiment, small_net):
    collated, sizes, order = [], [], []

    def collate(items):
        collated.extend(item["image"].sum().item() for item in items)
        return torch.utils.data.default_collate(items)

    def look(images, masks):
        sizes.append(len(images))
        order.extend(images.flatten(1).sum(1).tolist())
        return images, masks

    segmenter = experiment()
    segmenter.train_dataloader = DataLoader(
        TinyShapes(20), 5, shuffle=False, collate_fn=collate, drop_last=True
    )
    train(segmenter, small_net(), augment=look, evaluate_every=1000, evaluate_on=0.1)
    assert sizes == [5, 5, 5], "18 images, without the incomplete batch"
    sums = [TinyShapes(20)[k]["image"].sum().item() for k in range(20)]
    seen = [sums.index(value) for value in order]
    assert set(order) <= set(collated)
    assert seen == sorted(seen), "their order is kept"


@pytest.mark.parametrize(
    "drawn_by",
    [
        lambda data: {"sampler": WeightedRandomSampler(torch.ones(20), 20)},
        lambda data: {"sampler": RandomSampler(data, replacement=True)},
        lambda data: {"sampler": RandomSampler(data, num_samples=8)},
        lambda data: {"sampler": RandomSampler(data, generator=torch.Generator())},
        lambda data: {"batch_sampler": BatchSampler(RandomSampler(data), 4, True)},
    ],
)
def test_a_share_cannot_be_held_out_of_a_sampler_of_the_students_own(
    experiment, small_net, drawn_by
):
    data = TinyShapes(20)
    segmenter = experiment()
    options = drawn_by(data)
    if "sampler" in options:
        options["batch_size"] = 4
    segmenter.train_dataloader = DataLoader(data, **options)
    with pytest.raises(ValueError, match="sampler of your own.*evaluate_on= a Dataset"):
        train(segmenter, small_net(), evaluate_every=1, evaluate_on=0.1)
    history = train(segmenter, small_net(), evaluate_every=1, evaluate_on=TinyShapes(4))
    assert history.column("mean_iou")


# ---- frozen layers ------------------------------------------------------------------------------


def freeze(net):
    """The statistics and the weights of every BatchNorm, as one does for small batches."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
            layer.requires_grad_(False)


def test_frozen_batchnorm_stays_frozen(experiment, small_net):
    segmenter = experiment(train=20)
    net = small_net()
    freeze(net)
    frozen = {
        name: value.clone()
        for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)
        for name, value in layer.state_dict(prefix=f"{id(layer)}.").items()
    }  # fmt: skip
    modes = {module: module.training for module in net.modules()}
    before = weights(net)
    segmenter.score(net)
    train(segmenter, net, evaluate_every=1, evaluate_on=0.2)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    assert {module: module.training for module in net.modules()} == modes
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for name, value in layer.state_dict(prefix=f"{id(layer)}.").items():
                assert torch.equal(value, frozen[name])
    assert not torch.equal(weights(net), before)


def test_a_net_in_eval_mode_is_trained_in_train_mode(experiment, small_net):
    net = small_net().eval()
    train(experiment(), net)
    assert all(module.training for module in net.modules())


# ---- which images -------------------------------------------------------------------------------


class Secret(Plain):
    """Test images that nobody may look at."""

    def __getitem__(self, idx):
        raise AssertionError("a test image was read")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": "BCEDice"},
        {"evaluate_every": 1},
        {"evaluate_every": 1, "evaluate_on": 0.5},
    ],
)
def test_nothing_reads_the_test_images_during_training(experiment, small_net, options):
    segmenter = experiment(train=Plain(TinyShapes(12)), test=Secret(TinyShapes(8)))
    segmenter.dataserver_validation = TinyShapes(5)
    history = train(segmenter, small_net(), **options)
    assert bool(history.column("mean_iou")) == ("evaluate_every" in options)
    with pytest.raises(AssertionError, match="was read"):
        segmenter.score(small_net())


def test_scores_during_training_are_of_the_validation_images(experiment, small_net):
    segmenter, net = experiment(train=4), small_net()
    segmenter.dataserver_validation = TinyShapes(5)
    history = train(segmenter, net, evaluate_every=1)
    expected = segmenter.score(net, DataLoader(TinyShapes(5), 4)).compute()["mean_iou"]
    assert history.column("mean_iou") == [(1, pytest.approx(expected))]


def test_without_validation_images_one_is_told_how_to_get_some(experiment, small_net):
    with pytest.raises(ValueError, match="evaluate_on=0.1 .*or a Dataset"):
        train(experiment(), small_net(), evaluate_every=1)


def test_every_run_holds_out_the_same_images(experiment, small_net):
    def kept(seed):
        seen = set()

        def look(images, masks):
            seen.update(images.flatten(1).sum(1).tolist())
            return images, masks

        segmenter = experiment(train=20, seed=seed)
        train(segmenter, small_net(), augment=look, evaluate_every=100, evaluate_on=0.2)
        return seen

    assert kept(1) == kept(2) == kept(None)
    assert len(kept(1)) == 16


def test_the_whole_training_set_trains_where_nothing_is_held_out(experiment, small_net):
    seen = []

    def look(images, masks):
        seen.extend(images.flatten(1).sum(1).tolist())
        return images, masks

    segmenter = experiment(train=Subset(TinyShapes(20), range(12)))
    train(segmenter, small_net(), augment=look, evaluate_every=2, evaluate_on=TinyShapes(4))
    assert len(seen) == len(set(seen)) == 12


def test_settings_say_on_which_images_the_scores_during_training_were_taken(experiment, small_net):
    def evaluated_on(**options):
        segmenter = experiment(train=10)
        segmenter.run_code_for_training_for_semantic_segmentation(small_net(), **options)
        settings = json.loads((segmenter.dl_studio.run_dir / "settings.json").read_text())
        return settings["training"]["evaluated_on"]

    assert evaluated_on() is None
    assert evaluated_on(evaluate_every=1, evaluate_on=0.2).startswith("2 images, ")
