"""The one training loop and the testing routine: what they compute, write, refuse and resume."""

import copy
import functools
import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from conftest import rows, train, weights
from PIL import Image
from torch import nn

from SegStudio import SegStudio, backstage, recording

Segmentation = SegStudio.SemanticSegmentation


def column(segmenter, name):
    return [float(row[name]) for row in rows(segmenter) if row.get(name)]


# ---- one loop -----------------------------------------------------------------------------------


def test_one_step_is_plain_sgd_on_the_mse(experiment, small_net):
    """The loop against the five lines of a textbook, on one batch of all images."""
    segmenter = experiment(train=4, learning_rate=1e-3)
    net = small_net()
    twin = copy.deepcopy(net)
    history = segmenter.run_code_for_training_for_semantic_segmentation(net)

    (batch,) = list(torch.utils.data.DataLoader(segmenter.dataserver_train, 4))
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
    loss = nn.MSELoss()(twin(batch["image"]), batch["mask_tensor"].float())
    loss.backward()
    optimizer.step()
    assert history.losses == [pytest.approx(loss.item(), rel=1e-5)]
    torch.testing.assert_close(weights(net), weights(twin), rtol=1e-4, atol=1e-4)


def test_the_plain_method_is_the_mse_case(experiment, small_net):
    plain, custom = small_net(), small_net()
    experiment().run_code_for_training_for_semantic_segmentation(plain)
    train(experiment(), custom)
    assert torch.equal(weights(plain), weights(custom))


@pytest.mark.slow
def test_it_learns(experiment, small_net):
    segmenter = experiment(epochs=25)
    net = small_net(upsampling="dense")
    before = segmenter.score(net)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    history = train(segmenter, net, "BCEDice", optimizer=optimizer, scheduler=lambda f: 1 - f)
    scores = segmenter.run_code_for_testing_semantic_segmentation(net, before=before)
    assert history.losses[-1] < 0.6 * history.losses[0]
    assert scores.compute()["mean_iou"] > before.compute()["mean_iou"] + 0.08


def test_it_prints_dlstudios_lines(experiment, small_net, capsys):
    segmenter = experiment(train=20, epochs=2)
    history = segmenter.run_code_for_training_for_semantic_segmentation(
        small_net(), log_every=2
    )  # fmt: skip
    printed = capsys.readouterr().out
    pattern = (
        r"^\[epoch=(\d)/2, iter= +(\d+)  elapsed_time= +(\d+) secs\]   MSE loss: (\d+\.\d{3})$"
    )
    found = re.findall(pattern, printed, re.MULTILINE)
    expected = [("1", "2"), ("1", "4"), ("1", "5"), ("2", "2"), ("2", "4"), ("2", "5")]
    assert [line[:2] for line in found] == expected
    assert [line[3] for line in found] == [f"{loss:.3f}" for loss in history.losses]
    assert "Finished Training" in printed
    assert printed.strip() == (segmenter.dl_studio.run_dir / "log.txt").read_text().strip()


def test_the_history_and_losses_csv(experiment, small_net):
    segmenter = experiment(train=20, epochs=2)
    history = train(segmenter, small_net(), log_every=2)
    assert history.loss_name == "MSE"
    assert history.iterations == 10
    assert history.seconds > 0
    assert [iteration for iteration, _ in history.column("loss")] == [2, 4, 5, 7, 9, 10]
    assert column(segmenter, "loss") == pytest.approx(history.losses)
    assert column(segmenter, "iteration") == [2, 4, 5, 7, 9, 10]
    assert column(segmenter, "epoch") == [1, 1, 1, 2, 2, 2]
    assert column(segmenter, "learning_rate") == [1e-4] * 6
    seconds = column(segmenter, "seconds")
    assert seconds == sorted(seconds)
    assert seconds[-1] <= history.seconds + 1e-3


def test_reported_losses_are_means_of_their_interval(experiment, small_net):
    each = train(experiment(train=20), small_net(), log_every=1).losses
    pairs = train(experiment(train=20), small_net(), log_every=2).losses
    assert pairs == pytest.approx([sum(each[:2]) / 2, sum(each[2:4]) / 2, each[4]])


def test_the_network_keeps_its_weights_and_both_files_have_them(experiment, small_net, tmp_path):
    saved = tmp_path / "elsewhere"
    segmenter = experiment(path_saved_model=str(saved))
    net = small_net()
    start = weights(net)
    train(segmenter, net)
    assert net.training
    assert not torch.equal(weights(net), start)
    for path in (saved, segmenter.dl_studio.run_dir / "model.pt"):
        state = torch.load(path, weights_only=True)
        assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_a_run_folder_holds_what_design_says(experiment, small_net):
    segmenter = experiment(momentum=0.7)
    net = small_net()
    train(segmenter, net, "Dice")
    segmenter.run_code_for_testing_semantic_segmentation(net)
    names = {path.name for path in segmenter.dl_studio.run_dir.iterdir()}
    assert names == {
        "settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt", "loss.png",
        "test-batch-001.png", "predictions-001.png", "worst.png", "confusion.png",
        "why-it-fails.html",
    }  # fmt: skip
    settings = json.loads((segmenter.dl_studio.run_dir / "settings.json").read_text())
    assert settings["settings"]["momentum"] == 0.7
    assert settings["network"]["arguments"] == net.arguments
    assert settings["network"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert settings["training"]["loss"] == "Dice"
    assert settings["training"]["parameter_groups"][0]["momentum"] == 0.7
    assert settings["data"]["mask_values"] == [50, 100, 150, 200, 250]
    assert settings["machine"]["torch"] == torch.__version__


# ---- repeatable ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(experiment):
    def run(seed, num_workers=0):
        segmenter = experiment(train=12, epochs=2, seed=seed, num_workers=num_workers)
        net = segmenter.mUnet(depth=2, width=4)
        history = train(segmenter, net, log_every=1)
        return weights(net), history.losses

    first, losses = run(5)
    again, again_losses = run(5)
    workers, workers_losses = run(5, num_workers=2)
    other, _ = run(6)
    assert losses == again_losses == workers_losses
    assert torch.equal(first, again)
    assert torch.equal(first, workers)
    assert not torch.equal(first, other)


def test_images_come_in_another_order_each_epoch(experiment, small_net):
    segmenter = experiment(train=8, epochs=2)
    seen = []

    def look(images, masks):
        seen.append(tuple(images.flatten(1).sum(1).tolist()))
        return images, masks

    train(segmenter, small_net(), augment=look)
    first, second = seen[:2], seen[2:]
    assert first != second
    assert sorted(sum(first, ())) == sorted(sum(second, ()))


class Interrupted(Exception):
    """What ends a run in the tests of resume."""


@pytest.mark.parametrize("moment", ["log", "data"])
@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_resume_gives_the_weights_of_an_uninterrupted_run(
    experiment, small_net, tiny_shapes, moment, kind
):
    class Fragile(tiny_shapes):
        """Data that fails once, some images after it was told to."""

        left = -1

        def __getitem__(self, idx):
            self.left -= 1
            if self.left == 0:
                raise Interrupted
            return super().__getitem__(idx)

    def options(net):
        if kind == "plain":
            return {}
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

        def flip(images, masks):  # draws from torch's generator
            return (images.flip(3), masks.flip(3)) if torch.rand(()) < 0.5 else (images, masks)

        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=9)
        return {"optimizer": optimizer, "scheduler": schedule, "augment": flip}

    def run(name, train_set=12, seed=0, **more):
        segmenter = experiment(train=train_set, epochs=3, run_name=name, seed=seed)
        net = small_net(seed=seed)
        torch.manual_seed(100 + seed)
        history = train(
            segmenter,
            net,
            "Combined",
            dice_scale=50,
            log_every=2,
            **options(net),
            **more,
        )
        return segmenter, net, history

    def stop(history, net):
        if history.iterations >= 5:
            raise Interrupted

    _, whole, history = run("whole")
    with pytest.raises(Interrupted):
        if moment == "log":
            run("cut", on_log=stop)
        else:
            data = Fragile(12)

            def break_soon(history, net):
                if history.iterations == 3:  # the second epoch begins
                    data.left = 7

            run("cut", train_set=data, on_log=break_soon)
    # The new process starts with other weights and another seed: all comes from the checkpoint.
    again = {"train_set": Fragile(12)} if moment == "data" else {}
    segmenter, resumed, resumed_history = run("cut", seed=9, resume=True, **again)
    assert torch.equal(weights(whole), weights(resumed))
    assert resumed_history.losses == history.losses
    assert resumed_history.iterations == history.iterations == 9
    assert column(segmenter, "loss") == pytest.approx(history.losses)
    assert not (segmenter.dl_studio.run_dir / "checkpoint.pt").exists()


def test_resume_without_a_checkpoint_starts_anew(experiment, small_net):
    net, other = small_net(), small_net()
    train(experiment(), net, resume=True)
    train(experiment(), other)
    assert torch.equal(weights(net), weights(other))


# ---- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_type", "criterion", "name"),
    [
        ("MSE", Segmentation.SegmentationLossMSE(), "MSE"),
        ("mae", Segmentation.SegmentationLossMAE(), "MAE"),
        ("Dice", Segmentation.SegmentationLossDice(form="squared"), "Dice"),
        ("Combined", Segmentation.SegmentationLossComb(4, 30), "MSE+30*Dice"),
        ("MAE+Dice", Segmentation.SegmentationLossComb(4, 30, "mae"), "MAE+30*Dice"),
    ],
)
def test_loss_types(experiment, small_net, capsys, loss_type, criterion, name):
    segmenter = experiment(train=4)
    net = small_net()
    twin = copy.deepcopy(net)
    history = train(segmenter, net, loss_type, dice_scale=30)
    (batch,) = list(torch.utils.data.DataLoader(segmenter.dataserver_train, 4))
    expected = criterion(twin(batch["image"]), batch["mask_tensor"].float()).item()
    assert history.losses == [pytest.approx(expected, rel=1e-4)]
    assert f"   {name} loss: " in capsys.readouterr().out


def test_bce_dice_trains_on_binary_masks_and_scores_logits(experiment, small_net):
    segmenter = experiment(train=4)
    net = small_net()
    twin = copy.deepcopy(net)
    history = train(segmenter, net, "BCEDice")
    (batch,) = list(torch.utils.data.DataLoader(segmenter.dataserver_train, 4))
    output, mask = twin(batch["image"]), (batch["mask_tensor"] > 0).float()
    expected = Segmentation.SegmentationLossBCEDice()(output, mask).item()
    assert history.losses == [pytest.approx(expected, rel=1e-4)]
    logits = torch.tensor([-0.1, 0.1]).reshape(1, 1, 1, 2).expand(1, 5, 1, 2)
    assert segmenter.binarize(net, logits).tolist() == [[[[False, True]]] * 5]
    values = segmenter.to_mask_values(net, torch.zeros(1, 5, 1, 1)).flatten().tolist()
    assert values == [25, 50, 75, 100, 125]


def test_outputs_are_predictions_beyond_half_the_mask_value(experiment, small_net):
    segmenter, net = experiment(), small_net()
    values = torch.tensor([50.0, 100, 150, 200, 250]).reshape(1, 5, 1, 1)
    assert not segmenter.binarize(net, values / 2).any()
    assert segmenter.binarize(net, values / 2 + 0.01).all()
    assert torch.equal(segmenter.to_mask_values(net, values), values)


def test_a_loss_of_the_students_own(experiment, small_net, capsys):
    class Cubic(nn.Module):
        def forward(self, output, mask):
            return ((output - mask).abs() ** 3).mean().sqrt()

    history = train(experiment(), small_net(), criterion=Cubic())
    assert history.loss_name == "Cubic"
    assert "   Cubic loss: " in capsys.readouterr().out


@pytest.mark.parametrize("loss_type", ["Jaccard", None, 3, nn.MSELoss()])
def test_an_unknown_loss_type_is_named(experiment, small_net, tmp_path, loss_type):
    with pytest.raises(ValueError, match=re.escape(repr(loss_type))):
        train(experiment(), small_net(), loss_type)
    assert not list(tmp_path.iterdir())


def test_combined_logs_both_terms_and_their_gradients_at_the_output(experiment, small_net):
    segmenter = experiment(train=4)
    net = small_net()
    twin = copy.deepcopy(net)
    history = train(segmenter, net, "Combined", dice_scale=200, log_every=1)
    (row,) = rows(segmenter)
    (batch,) = list(torch.utils.data.DataLoader(segmenter.dataserver_train, 4))
    output, mask = twin(batch["image"]).detach().requires_grad_(), batch["mask_tensor"].float()
    overlap, squares = (output * mask).sum((2, 3)), (output**2 + mask**2).sum((2, 3))
    terms = {
        "mse": ((output - mask) ** 2).mean(),
        "dice": 200 * (1 - 2 * overlap / squares).mean(),
    }
    for name, term in terms.items():
        assert float(row[name]) == pytest.approx(term.item(), rel=1e-3)
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        assert float(row[f"grad_norm_{name}"]) == pytest.approx(gradient.norm().item(), rel=1e-3)
    assert float(row["mse"]) + float(row["dice"]) == pytest.approx(history.losses[0], rel=1e-5)


def test_terms_are_means_over_the_interval(experiment, small_net):
    segmenter = experiment(train=24)
    train(segmenter, small_net(), "Combined", dice_scale=20, log_every=3)
    for row in rows(segmenter):
        assert float(row["mse"]) + float(row["dice"]) == pytest.approx(float(row["loss"]))
        assert float(row["grad_norm_mse"]) > 0


@pytest.mark.parametrize(
    ("loss", "terms"),
    [("Combined", ("mse", "dice")), ("MAE+Dice", ("mae", "dice")), ("BCEDice", ("bce", "dice"))],
)
def test_every_loss_of_several_terms_adds_them_and_their_gradient_norms(
    experiment, small_net, loss, terms
):
    segmenter = experiment(train=8)
    train(segmenter, small_net(), loss, log_every=1)
    for row in rows(segmenter):
        for term in terms:
            assert float(row[term]) > 0
            assert float(row[f"grad_norm_{term}"]) > 0


# ---- a loss that is not finite ------------------------------------------------------------------


class FailsAt(nn.Module):
    """The mean squared error, until one iteration."""

    def __init__(self, iteration, value):
        super().__init__()
        self.left = iteration
        self.value = value

    def forward(self, output, mask):
        self.left -= 1
        return ((output - mask) ** 2).mean() * (self.value if self.left == 0 else 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("iteration", "log_every"), [(1, 500), (4, 500), (4, 2), (5, 3)])
def test_a_loss_that_is_not_finite_stops_training(
    experiment, small_net, tmp_path, value, iteration, log_every
):
    saved = tmp_path / "saved_model"
    segmenter = experiment(train=12, epochs=2, path_saved_model=saved)
    for path in (saved, segmenter.dl_studio.run_dir / "model.pt"):
        path.write_bytes(b"an older model")
    net = small_net()
    with pytest.raises(FloatingPointError) as caught:
        train(segmenter, net, criterion=FailsAt(iteration, value), log_every=log_every)
    message = str(caught.value)
    assert f"FailsAt loss became {value:g} at iteration {iteration} " in message
    assert re.search(r"outputs from -?[\d.e+-]+ to -?[\d.e+-]+", message)
    assert "learning rate ten times smaller than 0.0001" in message
    assert saved.read_bytes() == b"an older model"
    assert (segmenter.dl_studio.run_dir / "model.pt").read_bytes() == b"an older model"


def test_a_learning_rate_that_explodes(experiment, small_net):
    with pytest.raises(FloatingPointError, match="MSE loss became (nan|inf) at iteration"):
        train(experiment(epochs=10, learning_rate=1e4), small_net())


def test_clip_grad_norm_bounds_the_step(experiment, small_net):
    net = small_net()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    train(experiment(train=4), net, optimizer=optimizer, clip_grad_norm=0.25)
    steps = [(p - q).norm() for p, q in zip(net.parameters(), start, strict=True)]
    assert torch.stack(steps).norm().item() == pytest.approx(0.25, rel=1e-3)


# ---- options ------------------------------------------------------------------------------------


def test_evaluate_every_scores_a_held_out_part(experiment, small_net):
    segmenter = experiment(train=20)
    seen = set()

    def look(images, masks):
        seen.update(images.flatten(1).sum(1).tolist())
        return images, masks

    net = small_net()
    history = train(segmenter, net, evaluate_every=2, evaluate_on=0.2, log_every=3, augment=look)
    assert len(seen) == 16, "four images are held out"
    assert history.iterations == 4
    evaluated = [row for row in rows(segmenter) if row["mean_iou"]]
    assert [int(row["iteration"]) for row in evaluated] == [2, 4]
    assert net.training
    held_out = [
        k for k in range(20) if segmenter.dataserver_train[k]["image"].sum().item() not in seen
    ]
    subset = torch.utils.data.Subset(segmenter.dataserver_train, held_out)
    expected = segmenter.score(net, torch.utils.data.DataLoader(subset, 4)).compute()
    for name in ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou"):
        if expected[name] is not None:
            assert float(evaluated[-1][name]) == pytest.approx(expected[name])


@pytest.mark.parametrize("given", ["callable", "object"])
def test_optimizers(experiment, small_net, given):
    net, twin = small_net(), small_net()
    make = functools.partial(torch.optim.AdamW, lr=3e-3)
    segmenter = experiment(train=4)
    train(segmenter, net, optimizer=make if given == "callable" else make(net.parameters()))
    (batch,) = list(torch.utils.data.DataLoader(segmenter.dataserver_train, 4))
    optimizer = make(twin.parameters())
    nn.MSELoss()(twin(batch["image"]), batch["mask_tensor"].float()).backward()
    optimizer.step()
    assert column(segmenter, "learning_rate") == [3e-3]
    difference = (weights(net) - weights(twin)).abs()
    assert (difference < 1e-3).float().mean() > 0.98  # AdamW's first step is a sign


def test_a_scheduler_of_torch_is_stepped_after_each_iteration(experiment, small_net):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    segmenter = experiment(train=20)
    train(segmenter, net, optimizer=optimizer, scheduler=scheduler, log_every=1)
    assert column(segmenter, "learning_rate") == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


def test_a_scheduler_may_be_a_function_of_the_fraction_done(experiment, small_net):
    fractions, rates = [], []

    class Watched(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    def schedule(fraction):
        fractions.append(fraction)
        return fraction / 2

    optimizer = functools.partial(Watched, lr=1e-3)
    train(experiment(train=16), small_net(), optimizer=optimizer, scheduler=schedule)
    assert fractions == [0, 0.25, 0.5, 0.75, 1]
    assert rates == pytest.approx([0, 1.25e-4, 2.5e-4, 3.75e-4])


def test_max_seconds_ends_training_by_the_clock(experiment, small_net):
    history = train(experiment(epochs=1), small_net(), max_seconds=0.8)
    assert 0.8 <= history.seconds < 10
    assert history.iterations > 3, "it goes on beyond the epochs of the settings"


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_precision(experiment, small_net, precision):
    net, dtypes = small_net(), set()
    net.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    segmenter = experiment(train=4)
    train(segmenter, net, precision=precision)
    hardware = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    bf16 = precision == "bf16" or hardware
    assert dtypes == {torch.bfloat16 if bf16 else torch.float32}
    assert all(p.dtype == torch.float32 for p in net.parameters())
    settings = json.loads((segmenter.dl_studio.run_dir / "settings.json").read_text())
    assert settings["training"]["precision"] == ("bf16" if bf16 else "fp32")


def test_channels_last_changes_the_memory_order_alone(experiment, small_net):
    plain, last = small_net(), small_net()
    train(experiment(train=4), plain)
    train(experiment(train=4), last, channels_last=True)
    assert last.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weights(last), weights(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_every", 0), ("evaluate_every", 0), ("evaluate_every", -3), ("max_seconds", 0),
        ("max_seconds", -1.0), ("precision", "fp16"),
    ],
)  # fmt: skip
def test_impossible_options_are_named(experiment, small_net, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is .*{value}"):
        train(experiment(), small_net(), **{"evaluate_on": 0.5, "evaluate_every": 1, name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0, 1, 0.01])
def test_a_held_out_part_leaves_images_on_both_sides(experiment, small_net, share):
    with pytest.raises(ValueError, match="evaluate_on"):
        train(experiment(), small_net(), evaluate_every=1, evaluate_on=share)


def test_a_loader_of_the_students_own(experiment, small_net):
    segmenter = experiment()
    segmenter.train_dataloader = torch.utils.data.DataLoader(segmenter.dataserver_train, 3)
    assert train(segmenter, small_net(), log_every=1).iterations == 4


# ---- testing ------------------------------------------------------------------------------------


@pytest.fixture
def trained(experiment, small_net):
    segmenter = experiment(train=4, test=6)
    net = small_net()
    train(segmenter, net)
    return segmenter, net


def test_testing_uses_eval_and_every_image_and_writes_the_scores(trained, monkeypatch):
    segmenter, net = trained
    modes, images = [], []
    net.register_forward_pre_hook(
        lambda module, args: (
            (modes.append(module.training), images.append(len(args[0])))[:0] or None
        )
    )
    before = segmenter.score(net)
    scores = segmenter.run_code_for_testing_semantic_segmentation(net, before=before)
    assert set(modes) == {False}
    assert images == [4, 2, 4, 2], "once before and once now, the last batch is not full"
    assert net.training, "the mode it was in is given back"
    written = json.loads((segmenter.dl_studio.run_dir / "metrics.json").read_text())
    assert written.pop("before") == before.compute()
    assert written == scores.compute()
    assert list(written)[:4] == ["mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou"]
    assert list(written["classes"]) == ["rectangle", "triangle", "disk", "oval", "star"]
    log = (segmenter.dl_studio.run_dir / "log.txt").read_text()
    assert "Scores on 6 test images" in log
    assert scores.table(before) in log


def test_scores_are_those_of_an_independent_computation(trained):
    segmenter, net = trained
    found = segmenter.run_code_for_testing_semantic_segmentation(net).compute()
    batch = next(iter(torch.utils.data.DataLoader(segmenter.dataserver_test, 6)))
    with torch.no_grad():
        output = net.eval()(batch["image"])
    for k, name in enumerate(segmenter.dataserver_test.class_names):
        pred, mask = output[:, k] > 25 * (k + 1), batch["mask_tensor"][:, k] > 0
        union = (pred | mask).sum().item()
        iou = (pred & mask).sum().item() / union if union else None
        assert found["classes"][name]["iou"] == pytest.approx(iou)


def test_testing_loads_what_was_saved(trained):
    segmenter, net = trained
    expected = segmenter.run_code_for_testing_semantic_segmentation(net).compute()
    fresh = segmenter.mUnet(depth=4, width=8)
    assert segmenter.run_code_for_testing_semantic_segmentation(fresh).compute() == expected
    assert torch.equal(weights(fresh), weights(net))


def test_a_picture_for_every_50th_batch_and_the_worst(experiment, small_net, capsys):
    segmenter = experiment(train=4, test=102, batch_size=2)
    net = small_net()
    train(segmenter, net)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    names = sorted(path.name for path in segmenter.dl_studio.run_dir.glob("test-batch-*.png"))
    assert names == ["test-batch-001.png", "test-batch-051.png"]
    printed = capsys.readouterr().out
    assert "Showing output for test batch 1\n" in printed
    assert "Showing output for test batch 51\n" in printed
    for path in segmenter.dl_studio.run_dir.glob("*.png"):
        assert min(Image.open(path).size) > 200, path.name


def test_the_worst_images_are_the_worst_and_numbered(trained, monkeypatch):
    segmenter, net = trained
    ranks, kept = [], []
    monkeypatch.setattr(segmenter, "save_worst_figure", lambda worst, names: kept.extend(worst))
    segmenter.run_code_for_testing_semantic_segmentation(net)

    def rank(number, batch, output, pred, ious):
        wrong = (pred != (batch["mask_tensor"] > 0)).flatten(1).sum(dim=1)
        for iou, pixels in zip(ious.tolist(), wrong.tolist(), strict=True):
            ranks.append((iou, -pixels, len(ranks)))

    segmenter.score(net, on_batch=rank)
    expected = sorted(entry for entry in ranks if not math.isnan(entry[0]))[:4]
    assert [(iou, number) for iou, number, _, _ in kept] == [(i, n) for i, _, n in expected]
    for _, number, item, pred in kept:
        assert torch.equal(item["image"], segmenter.dataserver_test[number]["image"])
        assert pred.shape == (5, 32, 32)
        assert pred.dtype == torch.bool


def test_without_a_saved_model(experiment, small_net, tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved model at .*model.pt: train first"):
        experiment().run_code_for_testing_semantic_segmentation(small_net())
    with pytest.raises(FileNotFoundError, match="no saved model at .*nowhere"):
        experiment(path_saved_model=tmp_path / "nowhere").load_model(small_net())


@pytest.mark.parametrize("arguments", [{"depth": 8}, {"width": 4}, {"out_channels": 1}])
def test_the_model_of_another_network(trained, small_net, arguments):
    segmenter, _ = trained
    net = small_net(**arguments)
    before = weights(net)
    with pytest.raises(ValueError, match="weights of another network.*depth, width and channels"):
        segmenter.load_model(net)
    assert torch.equal(weights(net), before)


class Calls:
    def __reduce__(self):
        return print, ("a pickle that calls",)


@pytest.mark.parametrize(
    "damage",
    ["empty", "noise", "text", "a page", "zeros", "truncated", "a list", "numbers",
     "a whole module", "a pickle that calls"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_model_is_one_sentence(trained, small_net, damage, capsys):
    segmenter, net = trained
    path = segmenter.dl_studio.run_dir / "model.pt"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif damage in ("text", "a page", "zeros"):
        content = {"text": b"the quick brown fox\n", "a page": b"<html></html>\n"}
        path.write_bytes(content.get(damage, bytes(5000)))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "a pickle that calls":
        path.write_bytes(pickle.dumps(Calls()))
    else:
        torch.save({"a list": [1, 2], "numbers": {"a": 3}, "a whole module": net}[damage], path)
    capsys.readouterr()
    with pytest.raises(ValueError, match="model.pt is not a saved model") as caught:
        segmenter.run_code_for_testing_semantic_segmentation(small_net())
    assert "\n" not in str(caught.value)
    if damage != "a pickle that calls":  # torch does not read this kind of pickle at all
        assert ("holds Python objects" in str(caught.value)) is (damage == "a whole module")
    assert "a pickle that calls" not in capsys.readouterr().out


def test_a_full_disk_while_the_model_is_written_keeps_the_old_one(trained, monkeypatch):
    segmenter, net = trained
    path = segmenter.dl_studio.run_dir / "model.pt"
    old = path.read_bytes()

    def full(state, file):
        file.write_bytes(b"the first part")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="model.pt could not be written"):
        segmenter.save_model(net)
    assert path.read_bytes() == old
    assert not list(path.parent.glob("*.part"))


# ---- DLStudio's picture -------------------------------------------------------------------------


def loop_grid(images, boxes, outputs, max_num_objects=5):
    """The picture of DLStudio's testing code, one pixel at a time."""
    n, height, width = outputs.shape[0], *outputs.shape[2:]
    images, outputs = images.clone(), outputs.clone()
    brightest = torch.zeros(n, 1, height, width, dtype=torch.float64)
    for b in range(n):
        for y in range(height):
            for x in range(width):
                brightest[b, 0, y, x] = max(outputs[b, :, y, x].tolist())
    for b in range(n):
        for i in range(max_num_objects):
            for k in range(max_num_objects):
                x1, y1, x2, y2 = (int(v) for v in boxes[b, i, k])
                for picture in (brightest, images):
                    for y in range(y1, y2):
                        picture[b, 0, y, x1] = picture[b, 0, y, x2] = 255
                    for x in range(x1, x2):
                        picture[b, 0, y1, x] = picture[b, 0, y2, x] = 255
    windows = [(25, 85), (65, 135), (115, 185), (165, 230), (210, float("inf"))]
    shown = torch.zeros(7 * n, 3, height, width, dtype=torch.float64)
    for b in range(n):
        shown[b] = brightest[b]
        shown[n + b] = images[b]
        for k, (low, high) in enumerate(windows):
            for y in range(height):
                for x in range(width):
                    inside = low < outputs[b, k, y, x].item() < high
                    shown[(2 + k) * n + b, :, y, x] = 255 if inside else 50
    return torchvision.utils.make_grid(shown, nrow=n, normalize=True, padding=2, pad_value=10)


@pytest.mark.parametrize("n", [1, 3])
def test_the_grid_is_dlstudios(tiny_shapes, n):
    batch = next(iter(torch.utils.data.DataLoader(tiny_shapes(6, size=24), n)))
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(n, 5, 24, 24, generator=generator) * 320 - 30
    output[:, :, :2, :5] = torch.tensor([25.0, 85.0, 210.0, 230.0, 65.0])  # on the windows' edges
    given = {"images": batch["image"].clone(), "output": output.clone()}
    grid = Segmentation.make_test_grid(batch["image"], batch["bbox_tensor"], output)
    assert torch.equal(grid, loop_grid(batch["image"], batch["bbox_tensor"], output))
    assert grid.shape == (3, 7 * 26 + 2, n * 26 + 2)
    assert torch.equal(batch["image"], given["images"]), "DLStudio paints into the data"
    assert torch.equal(output, given["output"])


@pytest.mark.parametrize(("hidden", "expected"), [("AVX2", False), ("ALL", True), (None, True)])
def test_auto_precision_heeds_a_cpu_that_is_hidden_in_part(monkeypatch, hidden, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if hidden:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", hidden)
    assert recording.use_bf16("auto", torch.device("cpu")) is expected


# ---- the caller's network -----------------------------------------------------------------------

AGAIN = "This network was trained before"


def test_a_second_training_of_one_network_is_said_once_with_the_remedy(
    experiment, small_net, capsys
):
    segmenter = experiment()
    net = small_net()
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    assert AGAIN not in capsys.readouterr().out
    segmenter.custom_run_code_for_training_for_semantic_segmentation(net, "Dice")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if AGAIN in line]
    assert "new network" in line
    assert "copy.deepcopy" in line


def test_networks_that_start_afresh_are_not_called_trained(experiment, small_net, capsys, tmp_path):
    segmenter = experiment()
    first = small_net()
    untrained = copy.deepcopy(first)
    train = segmenter.run_code_for_training_for_semantic_segmentation
    train(first)
    train(small_net())
    train(untrained)
    loaded = segmenter.load_model(small_net())  # fine-tuning: the script says so itself
    train(loaded)
    assert AGAIN not in capsys.readouterr().out
    train(copy.deepcopy(first))
    assert AGAIN in capsys.readouterr().out


def test_a_network_whose_training_never_began_is_not_called_trained(experiment, capsys):
    segmenter = experiment()
    train = segmenter.run_code_for_training_for_semantic_segmentation
    net = segmenter.mUnet(depth=2, width=4)
    net.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(net)
    del net.forward
    train(net)
    assert AGAIN not in capsys.readouterr().out


def test_resuming_is_no_second_training(experiment, small_net, capsys):
    """In one process, as a notebook resumes: the interrupted network itself goes on."""
    segmenter = experiment(epochs=2)
    net = small_net()
    steps = iter(range(100))

    def interrupt(images, masks):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return images, masks

    train = segmenter.custom_run_code_for_training_for_semantic_segmentation
    with pytest.raises(KeyboardInterrupt):
        train(net, augment=interrupt)
    train(net, augment=interrupt, resume=True)
    assert AGAIN not in capsys.readouterr().out


class Travelling(nn.Module):
    """Stands for a network on a machine with a GPU: it records where it is sent.

    No GPU is needed: "cpu:1" is a second place whose tensors are those of the CPU.
    """

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1)
        self.place = "home"
        self.places = ["home"]
        self.places_of_outputs = set()

    def to(self, *args, **options):
        for place in args:
            if str(place) != self.place:
                self.place = str(place)
                self.places.append(self.place)
        return self

    def forward(self, x):
        self.places_of_outputs.add(self.place)
        return self.layer(x)


@pytest.fixture
def gpu_experiment(experiment, monkeypatch):
    segmenter = experiment()
    segmenter.dl_studio.device = torch.device("cpu:1")
    original = backstage.device_of
    monkeypatch.setattr(
        backstage, "device_of", lambda module: getattr(module, "place", original(module))
    )
    return segmenter


def test_training_and_testing_leave_the_network_on_its_own_device(gpu_experiment):
    net = Travelling()
    gpu_experiment.custom_run_code_for_training_for_semantic_segmentation(
        net, evaluate_every=1, evaluate_on=0.5
    )
    assert net.places == ["home", "cpu:1", "home"]
    gpu_experiment.run_code_for_testing_semantic_segmentation(net)
    assert net.places == ["home", "cpu:1"] * 2 + ["home"]
    gpu_experiment.infer(net, torch.zeros(1, 3, 32, 32))
    gpu_experiment.predict_image(net, Image.new("RGB", (50, 40)))
    assert net.places[-1] == "home"
    assert net.places_of_outputs == {"cpu:1"}


def test_a_training_that_fails_leaves_the_network_on_its_own_device(gpu_experiment):
    net = Travelling()

    def interrupt(images, masks):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_experiment.custom_run_code_for_training_for_semantic_segmentation(
            net, augment=interrupt
        )
    assert net.places == ["home", "cpu:1", "home"]


def test_a_model_is_saved_from_the_device_that_its_network_came_from(gpu_experiment, monkeypatch):
    """A file of CPU tensors also loads on a machine without a GPU."""
    net, places = Travelling(), []
    monkeypatch.setattr(gpu_experiment, "save_model", lambda model: places.append(model.place))
    gpu_experiment.run_code_for_training_for_semantic_segmentation(net)
    assert places == ["home"]


def test_the_device_of_a_module():
    assert backstage.device_of(nn.Conv2d(1, 1, 1)) == torch.device("cpu")
    assert backstage.device_of(nn.Conv2d(1, 1, 1, device="meta")) == torch.device("meta")
    assert backstage.device_of(nn.BatchNorm2d(1, affine=False)) == torch.device("cpu")
    assert backstage.device_of(nn.MSELoss()) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_students_own_cpu_loop_works_after_training(experiment, small_net):
    segmenter = experiment(use_gpu=True)
    net = small_net()
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 32, 32)).is_cpu
