"""What goes wrong around a training: files that are held open, odd loaders, losses and weights."""

import copy
import functools
import math
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import rows, train, weights
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from SegStudio import SegStudio, backstage, loading, recording

Segmentation = SegStudio.SemanticSegmentation


# ---- files that another program holds open (Windows refuses to change them) ------------------


class Held:
    """Makes files of some names refuse to be opened for writing, replaced or deleted."""

    def __init__(self, monkeypatch):
        self.names = {}  # name -> how many more times it is refused
        self.refused = []
        monkeypatch.setattr(backstage, "WAITS", (0, 0, 0))
        monkeypatch.setattr(backstage, "HELD", {})
        replace, unlink, open_file = Path.replace, Path.unlink, Path.open

        def guarded_replace(path, target):
            self.check(target)
            return replace(path, target)

        def guarded_unlink(path, *args, **options):
            self.check(path)
            return unlink(path, *args, **options)

        def guarded_open(path, mode="r", *args, **options):
            if "r" not in mode:
                self.check(path)
            return open_file(path, mode, *args, **options)

        monkeypatch.setattr(Path, "replace", guarded_replace)
        monkeypatch.setattr(Path, "unlink", guarded_unlink)
        monkeypatch.setattr(Path, "open", guarded_open)

    def check(self, path):
        name = Path(path).name
        if self.names.get(name, 0) > 0:
            self.names[name] -= 1
            self.refused.append(name)
            raise PermissionError(13, "The process cannot access the file", str(path))


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


RUN_FILES = ("losses.csv", "log.txt", "settings.json", "loss.png", "checkpoint.pt")


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_that_is_held_for_a_moment_is_written_after_it(
    experiment, small_net, held, capsys, name
):
    held.names[name] = 2
    segmenter = experiment(train=12, epochs=2)
    train(segmenter, small_net(), log_every=1)
    assert held.refused == [name] * 2
    assert "warning" not in capsys.readouterr().out
    folder = segmenter.dl_studio.run_dir
    assert len(rows(segmenter)) == 6
    assert (folder / "log.txt").read_text().count("[epoch=") == 6
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_that_stays_held_does_not_end_the_training(
    experiment, small_net, held, capsys, name
):
    held.names[name] = math.inf
    segmenter = experiment(train=12, epochs=2)
    net, twin = small_net(), small_net()
    history = train(segmenter, net, log_every=1)
    assert history.iterations == 6
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1, "once, not at every report"
    assert name in warnings[0]
    assert "another program" in warnings[0]
    folder = segmenter.dl_studio.run_dir
    twin.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    assert torch.equal(weights(net), weights(twin))
    assert not list(folder.glob("*.part"))


def test_lines_of_a_log_that_was_held_are_written_later(experiment, held, capsys):
    dls = experiment().dl_studio
    dls.log("one")
    held.names["log.txt"] = 8  # two lines: with and without waiting
    dls.log("two")
    dls.log("three")
    held.names.clear()
    dls.log("four")
    assert (dls.run_dir / "log.txt").read_text() == "one\ntwo\nthree\nfour\n"
    assert capsys.readouterr().out.count("another program") == 1


def test_a_file_that_stays_held_is_waited_for_once(experiment, small_net, held, monkeypatch):
    naps = []
    monkeypatch.setattr(backstage, "WAITS", (0.25, 0.5))
    monkeypatch.setattr(time, "sleep", naps.append)
    held.names["losses.csv"] = math.inf
    train(experiment(train=20), small_net(), log_every=1)
    assert naps == [0.25, 0.5]


@pytest.mark.parametrize("name", ["model.pt", "saved"])
def test_weights_that_cannot_be_written_are_an_error(experiment, small_net, held, tmp_path, name):
    held.names[name] = math.inf
    segmenter = experiment(train=4, path_saved_model=tmp_path / "saved")
    with pytest.raises(OSError, match=f"{name} could not be written.*another program") as caught:
        train(segmenter, small_net())
    assert "\n" not in str(caught.value)
    assert len(held.refused) == 4, "it was tried again"


def test_scores_that_cannot_be_written_are_an_error(experiment, small_net, held):
    segmenter, net = experiment(train=4, test=4), small_net()
    train(segmenter, net)
    held.names["metrics.json"] = math.inf
    with pytest.raises(OSError, match="metrics.json could not be written"):
        segmenter.run_code_for_testing_semantic_segmentation(net)


def make_archive(folder):
    return Segmentation.PurdueShapes5MultiObjectDataset.generate(folder / "shapes-4-train.gz", 4)


def test_a_cache_that_another_process_has_mapped_meanwhile_is_used(tmp_path, monkeypatch):
    """Two scripts start at once: the second cannot replace the file that the first has mapped."""
    monkeypatch.setattr(backstage, "WAITS", ())
    monkeypatch.setattr(backstage.platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "user"))
    archive = make_archive(tmp_path)
    replace = Path.replace

    def mapped(path, target):
        replace(path, target)  # the other process was faster by a moment
        raise PermissionError(13, "the file is mapped", str(target))

    monkeypatch.setattr(Path, "replace", mapped)
    cache, _ = backstage.open_archive(archive)
    assert len(cache) == 4
    assert cache.path.parent == tmp_path
    assert not (tmp_path / "user").exists(), "no second copy"


def test_an_old_cache_that_is_mapped_does_not_hinder_the_new_one(tmp_path, monkeypatch):
    """The archive has changed, and another program still reads the cache of the old one."""
    archive = make_archive(tmp_path)
    backstage.open_archive(archive)
    Segmentation.PurdueShapes5MultiObjectDataset.generate(archive, 5, seed=1)

    def mapped(path, **options):
        raise PermissionError(13, "the file is mapped", str(path))

    monkeypatch.setattr(Path, "unlink", mapped)
    cache, _ = backstage.open_archive(archive)
    assert len(cache) == 5


def test_a_part_that_cannot_be_deleted_does_not_hide_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(backstage, "WAITS", ())

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    def refuse(path, **options):
        raise PermissionError(13, "the file is mapped", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="the disk is full"):
        backstage.write_atomically(tmp_path / "file", fail)


# ---- what a killed process leaves ---------------------------------------------------------------


def leave_part(path, hours):
    path.write_bytes(b"half of a file")
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))
    return path


def test_old_parts_of_a_file_are_deleted_when_it_is_written(tmp_path):
    path = tmp_path / "model.pt"
    old = leave_part(tmp_path / "model.pt.999999.part", 2)
    recent = leave_part(tmp_path / "model.pt.999998.part", 0)
    other = leave_part(tmp_path / "other.pt.999999.part", 2)
    backstage.write_atomically(path, lambda part: part.write_text("new"))
    assert not old.exists()
    assert recent.exists(), "another process may be writing it"
    assert other.exists()
    assert path.read_text() == "new"


@pytest.mark.parametrize("place", ["beside", "user"])
def test_old_parts_of_a_cache_are_deleted_when_a_cache_is_opened(tmp_path, monkeypatch, place):
    """The next start may find a complete cache and write none."""
    monkeypatch.setattr(backstage.platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "user"))
    archive = make_archive(tmp_path)
    cache, _ = backstage.open_archive(archive)
    folder = cache.path.parent
    if place == "user":
        folder = tmp_path / "user" / backstage.short_hash(bytes(tmp_path.resolve()))
        folder.mkdir(parents=True)
    old = leave_part(folder / f"{archive.name}.v3-0123456789abcdef.cache.npy.77.part", 2)
    drawn = leave_part(tmp_path / f"{archive.name}.77.part", 2)
    backstage.open_archive(archive)
    assert not old.exists()
    assert not drawn.exists()


# ---- weights that are not finite ----------------------------------------------------------------


class Poisoned(torch.optim.SGD):
    """SGD whose step number `last` makes one weight or statistic infinite."""

    def __init__(self, params, last, victim, value=math.inf):
        super().__init__(params, lr=1e-4)
        self.left, self.victim, self.value = last, victim, value

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        self.left -= 1
        if self.left == 0:
            self.victim.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("what", ["conv_out.bias", "bn1DN.running_var"])
@pytest.mark.parametrize("options", [{}, {"max_seconds": 1e-9}])
def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(
    experiment, small_net, tmp_path, value, what, options
):
    """The loss is computed before the step, so it does not show what the last step did."""
    saved = tmp_path / "saved_model"
    segmenter = experiment(train=8, path_saved_model=saved)
    folder = segmenter.dl_studio.run_dir
    for path in (saved, folder / "model.pt"):
        path.write_bytes(b"an older model")
    net = small_net()
    last = 1 if options else 2
    optimizer = Poisoned(net.parameters(), last, net.state_dict()[what], value)
    with pytest.raises(FloatingPointError, match=f"{what} .*no model was saved") as caught:
        train(segmenter, net, optimizer=optimizer, **options)
    assert f"iteration {last}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert saved.read_bytes() == (folder / "model.pt").read_bytes() == b"an older model"
    assert not (folder / "checkpoint.pt").exists(), "a resumed run would start from it"


# ---- loaders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_seconds": 0.5}])
def test_a_loader_without_batches_is_named(experiment, small_net, tiny_shapes, options):
    segmenter = experiment(train=3)
    segmenter.train_dataloader = DataLoader(tiny_shapes(3), 4, drop_last=True)
    with pytest.raises(ValueError, match="no batch.*3 images.*batch.* of 4.*drop_last") as caught:
        train(segmenter, small_net(), **options)
    assert "\n" not in str(caught.value)


def test_scoring_without_images_is_named(experiment, small_net, tiny_shapes):
    segmenter, net = experiment(train=4), small_net()
    empty = DataLoader(tiny_shapes(0), 4)
    with pytest.raises(ValueError, match="no images to score"):
        segmenter.score(net, empty)
    with pytest.raises(ValueError, match="no images to score"):
        train(segmenter, net, evaluate_every=1, evaluate_on=tiny_shapes(0))


class Stream(IterableDataset):
    """Images that come one after the other; their number is not known before."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star")

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter([self.items[k] for k in range(len(self.items))])


def test_a_stream_of_unknown_length_trains_like_the_same_images(experiment, small_net, tiny_shapes):
    def run(name, loader, **options):
        segmenter, net = experiment(train=10, epochs=2, run_name=name), small_net()
        segmenter.train_dataloader = loader
        history = train(segmenter, net, log_every=2, **options)
        return net, history, rows(segmenter)

    items = tiny_shapes(10)
    net, history, table = run("list", DataLoader(items, 4))
    stream, stream_history, stream_table = run("stream", DataLoader(Stream(items), 4))
    assert torch.equal(weights(net), weights(stream))
    assert history.losses == stream_history.losses
    assert [row["epoch"] for row in table] == [row["epoch"] for row in stream_table]
    fractions = []
    run("rates", DataLoader(Stream(items), 4), scheduler=lambda f: fractions.append(f) or 1)
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1


def test_a_stream_without_images_is_named(experiment, small_net, tiny_shapes):
    segmenter = experiment(train=4)
    segmenter.train_dataloader = DataLoader(Stream(tiny_shapes(0)), 4)
    with pytest.raises(ValueError, match="no batch"):
        train(segmenter, small_net(), max_seconds=0.3)


class Batches(Dataset):
    """An item is a whole batch: the dataset is asked for a list of numbers."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, numbers):
        return torch.utils.data.default_collate([self.items[k] for k in numbers])


def test_a_loader_whose_dataset_makes_the_batches(experiment, small_net, tiny_shapes):
    def run(name, loader):
        segmenter, net = experiment(train=10, run_name=name), small_net()
        segmenter.train_dataloader = segmenter.test_dataloader = loader
        train(segmenter, net)
        return net, segmenter.score(net).compute()

    items = tiny_shapes(10)
    net, scores = run("items", DataLoader(items, 4))
    sampler = BatchSampler(SequentialSampler(items), 4, drop_last=False)
    twin, twin_scores = run("batches", DataLoader(Batches(items), batch_size=None, sampler=sampler))
    assert torch.equal(weights(net), weights(twin))
    assert scores == twin_scores


# ---- worker processes ---------------------------------------------------------------------------


class Signed(Dataset):
    """Adds the number of the process that loads an item."""

    class_names = ("rectangle", "triangle", "disk", "oval", "star")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        return {**self.items[k], "process": os.getpid()}


def processes_of(segmenter, net, monkeypatch, **options):
    """The processes that loaded training images, and those that loaded images to evaluate on."""
    training, evaluation = set(), set()
    score = Segmentation.score
    loop = Segmentation.training_loop

    def watched_score(self, net, dataloader=None, on_batch=None):
        look = lambda number, batch, *rest: evaluation.update(batch["process"].tolist())  # noqa: E731
        return score(self, net, dataloader, on_batch=look)

    class Watched:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            for batch in self.loader:
                training.update(batch["process"].tolist())
                yield batch

    monkeypatch.setattr(Segmentation, "score", watched_score)
    monkeypatch.setattr(
        Segmentation,
        "training_loop",
        lambda self, net, loader, *rest, **more: loop(self, net, Watched(loader), *rest, **more),
    )
    train(segmenter, net, **options)
    return training, evaluation


@pytest.mark.slow
def test_workers_are_started_once_and_not_for_every_epoch(
    experiment, small_net, tiny_shapes, monkeypatch
):
    segmenter = experiment(train=Signed(tiny_shapes(12)), epochs=3, num_workers=1)
    training, evaluation = processes_of(
        segmenter, small_net(), monkeypatch, evaluate_every=1, evaluate_on=0.5
    )
    assert len(training) == 1
    assert len(evaluation) == 1
    assert os.getpid() not in training | evaluation


def test_loaders_keep_their_workers_and_pin_memory_for_a_gpu(experiment, tiny_shapes):
    alone = experiment(num_workers=0)
    segmenter = experiment(num_workers=2)
    loaders = [segmenter.train_dataloader, segmenter.test_dataloader]
    loaders += loading.evaluation_split(segmenter, 0.5)
    assert all(loader.persistent_workers and loader.num_workers == 2 for loader in loaders)
    assert not any(loader.pin_memory for loader in loaders)
    assert not alone.train_dataloader.persistent_workers
    segmenter.dl_studio.device = torch.device("cuda:0")
    segmenter.load_PurdueShapes5MultiObject_dataset(tiny_shapes(4), tiny_shapes(4))
    loaders = [segmenter.train_dataloader, segmenter.test_dataloader]
    loaders += loading.evaluation_split(segmenter, 0.5)
    assert all(loader.pin_memory for loader in loaders)


def test_a_held_out_part_keeps_the_settings_of_the_students_loader(experiment, tiny_shapes):
    segmenter = experiment(train=8)
    segmenter.train_dataloader = DataLoader(
        tiny_shapes(8), 2, num_workers=1, prefetch_factor=5, timeout=60, persistent_workers=False,
        multiprocessing_context="spawn",
    )  # fmt: skip
    for loader in loading.evaluation_split(segmenter, 0.5):
        assert loader.prefetch_factor == 5
        assert loader.timeout == 60
        assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert not loader.persistent_workers


@pytest.mark.slow
def test_the_order_of_the_images_does_not_depend_on_workers_that_stay(experiment, tiny_shapes):
    def orders(num_workers, early_look=False):
        segmenter = experiment(train=9, epochs=3, num_workers=num_workers, batch_size=3)
        seen = []
        if early_look:
            list(segmenter.train_dataloader)  # starts the workers

        def look(images, masks):
            seen.extend(images.flatten(1).sum(1).tolist())
            return images, masks

        train(segmenter, segmenter.mUnet(depth=2, width=2), augment=look)
        return seen

    expected = orders(0)
    assert expected == orders(1) == orders(1, early_look=True)
    assert expected == orders(0, early_look=True)


# ---- schedulers, optimizers and losses ----------------------------------------------------------


class Plateau(nn.Module):
    """A loss whose value is known: it falls for some steps, then stays."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def forward(self, output, mask):
        return output.mean() * 0 + next(self.values)


def test_reduce_lr_on_plateau_follows_the_mean_loss_of_each_epoch(experiment, small_net):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    # Two steps an epoch, means 4, 3, 3, 2, 2: epochs 3 and 5 bring nothing.
    criterion = Plateau([5, 3, 2, 4, 4, 2, 2, 2, 1, 3])
    segmenter = experiment(train=8, epochs=5)
    history = train(
        segmenter, net, criterion=criterion, optimizer=optimizer, scheduler=scheduler, log_every=1
    )
    rates = [rate for _, rate in history.column("learning_rate")]
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


class Interrupted(Exception):
    """What ends a run in the test of resume."""


def test_reduce_lr_on_plateau_resumes(experiment, small_net):
    def run(name, seed=0, **options):
        segmenter, net = experiment(train=8, epochs=4, run_name=name, seed=0), small_net(seed)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=0.9
        )
        train(segmenter, net, optimizer=optimizer, scheduler=scheduler, log_every=1, **options)
        return net, optimizer.param_groups[0]["lr"]

    def stop(history, net):
        if history.iterations == 5:
            raise Interrupted

    whole, rate = run("whole")
    with pytest.raises(Interrupted):
        run("cut", on_log=stop)
    resumed, resumed_rate = run("cut", seed=7, resume=True)
    assert rate < 1e-5
    assert rate == resumed_rate
    assert torch.equal(weights(whole), weights(resumed))


def test_reduce_lr_on_plateau_of_a_score_is_refused(experiment, small_net):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
    with pytest.raises(ValueError, match="ReduceLROnPlateau.*loss.*mode"):
        train(experiment(), net, optimizer=optimizer, scheduler=scheduler)


def test_a_loss_may_be_a_function(experiment, small_net):
    def my_loss(output, mask):
        return ((output - mask) ** 2).mean()

    plain, net = small_net(), small_net()
    expected = train(experiment(), plain).losses
    history = train(experiment(), net, criterion=my_loss)
    assert history.losses == pytest.approx(expected)
    assert history.loss_name == "my_loss"
    partial = functools.partial(nn.functional.smooth_l1_loss, beta=2.0)
    assert train(experiment(), small_net(), criterion=partial).loss_name == "smooth_l1_loss"


def test_log_every_reserves_no_memory(experiment, small_net):
    segmenter = experiment(train=12, epochs=2)
    history = train(segmenter, small_net(), log_every=10**13)
    assert [iteration for iteration, _ in history.column("loss")] == [3, 6]


@pytest.mark.parametrize("name", ["log_every", "evaluate_every"])
@pytest.mark.parametrize("value", [2.5, "10", True])
def test_numbers_of_iterations_are_whole(experiment, small_net, name, value):
    with pytest.raises(ValueError, match=f"{name} is a whole number .*{value}"):
        train(experiment(), small_net(), **{"evaluate_on": 0.5, "evaluate_every": 1, name: value})


def test_an_optimizer_that_needs_a_closure_is_named(experiment, small_net):
    optimizer = functools.partial(torch.optim.LBFGS, lr=1.0)
    with pytest.raises(ValueError, match="LBFGS.*closure"):
        train(experiment(), small_net(), optimizer=optimizer)


def test_a_frozen_network_is_named(experiment, small_net):
    net = small_net()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter.*requires_grad"):
        train(experiment(), net)


def test_masks_that_are_not_finite_are_named(experiment, small_net, tiny_shapes):
    class Damaged(tiny_shapes):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            item["mask_tensor"] = item["mask_tensor"].float()
            item["mask_tensor"][0, 0, 0] = math.nan
            return item

    with pytest.raises(FloatingPointError, match="mask.*not finite"):
        train(experiment(train=Damaged(8)), small_net())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.int64, torch.float64])
def test_masks_of_any_type_train_alike(experiment, small_net, tiny_shapes, dtype):
    class Typed(tiny_shapes):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            mask = item["mask_tensor"] > 0
            return {**item, "mask_tensor": mask.to(dtype)}

    net = small_net()
    segmenter = experiment(train=Typed(8), test=Typed(4))
    train(segmenter, net, "BCEDice")
    assert net.output_spec["mask_values"] == [1] * 5
    segmenter.run_code_for_testing_semantic_segmentation(net)


# ---- what scripts pass by mistake ---------------------------------------------------------------


def test_an_optimizer_of_another_network_is_named(experiment, small_net):
    """A script that compares two networks and forgets to make the second optimizer."""
    first, second = small_net(), small_net(seed=1)
    optimizer = torch.optim.SGD(first.parameters(), lr=1e-4)
    with pytest.raises(ValueError, match="optimizer has no parameter of this mUnet"):
        train(experiment(), second, optimizer=optimizer)
    with pytest.raises(ValueError, match="optimizer has no parameter of this mUnet"):
        train(experiment(), second, optimizer=[optimizer])
    with pytest.raises(ValueError, match="optimizer has no parameter of this mUnet"):
        train(experiment(), second, optimizer=[])


def test_a_function_may_make_a_list_of_optimizers(experiment, small_net):
    def both(parameters):
        parameters = list(parameters)
        return [
            torch.optim.SGD(parameters[:9], lr=1e-4), torch.optim.AdamW(parameters[9:], lr=1e-3)
        ]  # fmt: skip

    net, start = small_net(), small_net()
    train(experiment(train=4), net, optimizer=both)
    assert not torch.equal(net.conv_in.weight, start.conv_in.weight)
    assert not torch.equal(net.conv_out.weight, start.conv_out.weight)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda item: (item["image"], item["mask_tensor"]), "list"),
        (lambda item: {"image": item["image"], "mask": item["mask_tensor"]}, "image, mask"),
        (lambda item: {**item, "mask_tensor": item["mask_tensor"].amax(0)}, r"\(4, 32, 32\)"),
        (lambda item: {**item, "image": item["image"][0]}, r"\(4, 32, 32\)"),
    ],
)
def test_batches_of_another_form_are_named(experiment, small_net, tiny_shapes, change, found):
    class Changed(tiny_shapes):
        def __getitem__(self, idx):
            return change(super().__getitem__(idx))

    with pytest.raises(ValueError, match=f"{found}.*mask_tensor.*N, C, H, W") as caught:
        train(experiment(train=Changed(4)), small_net())
    assert "\n" not in str(caught.value)


def test_evaluation_on_a_loader_of_ones_own(experiment, small_net, tiny_shapes):
    segmenter = experiment(train=8)
    loader = DataLoader(tiny_shapes(6), 2)
    history = train(segmenter, small_net(), evaluate_every=1, evaluate_on=loader)
    assert len(history.column("pixel_accuracy")) == 2


def test_evaluation_beside_a_loader_whose_dataset_makes_the_batches(
    experiment, small_net, tiny_shapes
):
    segmenter = experiment(train=8)
    items = tiny_shapes(8)
    sampler = BatchSampler(SequentialSampler(items), 4, drop_last=False)
    segmenter.train_dataloader = DataLoader(Batches(items), batch_size=None, sampler=sampler)
    history = train(segmenter, small_net(), evaluate_every=1, evaluate_on=tiny_shapes(6))
    assert len(history.column("pixel_accuracy")) == 2


def test_baselines_without_training_images_are_named(experiment, tiny_shapes):
    segmenter = experiment()
    segmenter.train_dataloader = DataLoader(tiny_shapes(3), 4, drop_last=True)
    with pytest.raises(ValueError, match="training loader has no batch"):
        segmenter.score_baselines()


class WithPenalty(nn.Module):
    """A loss with a term that does not depend on the output, and one that is a plain number."""

    def terms(self, output, mask):
        return {
            "mse": ((output - mask) ** 2).mean(),
            "penalty": torch.tensor(3.0),
            "unused": torch.ones(1, requires_grad=True).sum(),
        }

    def forward(self, output, mask):
        terms = self.terms(output, mask)
        self.latest_terms = {**terms, "number": 2.5}
        return sum(terms.values())


def test_a_term_that_does_not_depend_on_the_output_has_no_gradient(experiment, small_net):
    segmenter = experiment(train=4)
    train(segmenter, small_net(), criterion=WithPenalty())
    (row,) = rows(segmenter)
    assert float(row["penalty"]) == 3
    assert float(row["number"]) == 2.5
    assert float(row["grad_norm_penalty"]) == float(row["grad_norm_unused"]) == 0
    assert float(row["grad_norm_mse"]) > 0


def test_the_oldest_versions_are_those_of_setup_py():
    import oldest_versions

    found = oldest_versions.oldest_versions()
    assert {"torch==2.4", "torchvision==0.19", "numpy==1.26"} <= set(found)
    setup = (Path(__file__).resolve().parents[1] / "setup.py").read_text(encoding="utf-8")
    assert len(found) == setup.count(">=") - setup.count('python_requires=">=')


def test_a_place_to_evaluate_without_a_time_to_evaluate_is_named(experiment, small_net):
    with pytest.raises(ValueError, match="evaluate_on needs evaluate_every"):
        train(experiment(), small_net(), evaluate_on=0.5)


def test_a_loss_can_be_copied_after_a_training(experiment, small_net):
    criterion = Segmentation.SegmentationLossComb(dice_scale=2)
    train(experiment(), small_net(), criterion=criterion)
    assert copy.deepcopy(criterion).latest_terms.keys() == {"mse", "dice"}


def test_a_buffer_may_hold_infinities_on_purpose(experiment, small_net):
    net = small_net()
    net.register_buffer("attention_mask", torch.tensor([0.0, -torch.inf]))
    assert train(experiment(), net).iterations > 0


def test_without_bf16_no_autocast_is_asked_for(monkeypatch):
    """torch 2.4 raises an error for torch.autocast("mps"), even if it is not enabled."""

    def refuse(*_, **__):
        raise RuntimeError("autocast is not there")

    monkeypatch.setattr(torch, "autocast", refuse)
    with recording.bf16_autocast(torch.device("mps"), False):
        pass


def test_a_cache_folder_that_cannot_be_read_does_not_matter(tmp_path, monkeypatch):
    """As in a container whose home folder belongs to another user."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(Path, "glob", refuse)
    assert len(backstage.open_archive(make_archive(tmp_path))[0]) == 4


def test_a_test_set_of_unknown_length_is_tested_and_drawn(experiment, small_net):
    segmenter = experiment()
    data = segmenter.dataserver_test

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (data[k] for k in range(len(data)))

    segmenter.test_dataloader = torch.utils.data.DataLoader(Stream(), 2)
    net = small_net()
    train(segmenter, net)
    scores = segmenter.run_code_for_testing_semantic_segmentation(net)
    assert scores.images == len(data)


def test_no_images_of_one_channel_are_named_too(experiment, small_net):
    segmenter = experiment()
    empty = torch.utils.data.TensorDataset(torch.zeros(0, 1))
    net = small_net(out_channels=1)
    net.output_spec = {
        "class_names": ["a"], "mask_values": [1], "logits": True, "image_size": [16, 16]
    }  # fmt: skip
    with pytest.raises(ValueError, match="no images to score"):
        segmenter.score(net, torch.utils.data.DataLoader(empty))


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="Windows has no load average")
@pytest.mark.parametrize(
    ("load", "threads", "said"), [(9.0, 2, True), (9.0, 1, False), (1.5, 2, False)]
)
def test_a_busy_computer_is_said_where_threads_wait_for_each_other(
    monkeypatch, load, threads, said
):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    hint = recording.hint_at_other_programs(torch.device("cpu"))
    assert bool(hint) is said
    assert not said or "load 9.0 on 2 cores" in hint
    assert recording.hint_at_other_programs(torch.device("cuda")) is None
