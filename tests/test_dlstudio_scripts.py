"""Scripts as DLStudio's users have them, run unchanged but for the name of the package."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from SegStudio import SegStudio

# As in DLStudio's example: settings, two datasets by their file names, a network, two calls.
EXAMPLE = """
import random
import numpy
import torch
import os, sys

from SegStudio import *

dls = SegStudio(
                  dataroot = "./data/PurdueShapes5MultiObject/",
                  image_size = [64,64],
                  path_saved_model = "./saved_model",
                  momentum = 0.9,
                  learning_rate = 1e-4,
                  epochs = 1,
                  batch_size = 4,
                  classes = ('rectangle','triangle','disk','oval','star'),
                  use_gpu = True,
              )

segmenter = SegStudio.SemanticSegmentation(
                  dl_studio = dls,
                  max_num_objects = 5,
              )

train_set = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(
                          train_or_test = 'train',
                          dl_studio = dls,
                          segmenter = segmenter,
                          dataset_file = "PurdueShapes5MultiObject-10000-train.gz",
                        )
test_set = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(
                          train_or_test = 'test',
                          dl_studio = dls,
                          segmenter = segmenter,
                          dataset_file = "PurdueShapes5MultiObject-1000-test.gz"
                        )
segmenter.dataserver_train = train_set
segmenter.dataserver_test = test_set
segmenter.load_PurdueShapes5MultiObject_dataset(train_set, test_set)

model = segmenter.NETWORK(skip_connections=True, depth=4)
print("learnable: %d" % sum(p.numel() for p in model.parameters() if p.requires_grad))
print("layers: %d" % len(list(model.parameters())))

segmenter.run_code_for_training_for_semantic_segmentation(model)
segmenter.run_code_for_testing_semantic_segmentation(model)
"""

# As in the homework's reports: both classes extended, DLStudio's way of super(), overridden loops.
STUDENT = """
import time
import copy
import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
import torchvision
import matplotlib
matplotlib.use("Agg")
from SegStudio import SegStudio


class MyStudio(SegStudio):
    def __init__(self, *args, **kwargs):
        super(MyStudio, self).__init__(*args, **kwargs)


class MySegmentation(SegStudio.SemanticSegmentation):
    def __init__(self, dl_studio, max_num_objects, dataserver_train=None, dataserver_test=None):
        INIT

    class SegmentationLossDice(nn.Module):
        def __init__(self, batch_size):
            super(MySegmentation.SegmentationLossDice, self).__init__()
            self.batch_size = batch_size

        def forward(self, output, mask_tensor):
            up = 2 * torch.sum(output * mask_tensor, dim=(2, 3))
            down = torch.sum(output * output, dim=(2, 3)) + torch.sum(mask_tensor ** 2, dim=(2, 3))
            return torch.mean(1 - up / (down + 1e-6))

    def run_code_for_training_for_semantic_segmentation(self, net):
        net = copy.deepcopy(net)
        net = net.to(self.dl_studio.device)
        criterion1 = self.SegmentationLossDice(self.dl_studio.batch_size)
        optimizer = optim.SGD(net.parameters(), lr=self.dl_studio.learning_rate,
                              momentum=self.dl_studio.momentum)
        losses = []
        for epoch in range(self.dl_studio.epochs):
            for i, data in enumerate(self.train_dataloader):
                im_tensor, mask_tensor, bbox_tensor = (
                    data['image'], data['mask_tensor'], data['bbox_tensor'])
                im_tensor = im_tensor.to(self.dl_studio.device)
                mask_tensor = mask_tensor.type(torch.FloatTensor)
                mask_tensor = mask_tensor.to(self.dl_studio.device)
                bbox_tensor = bbox_tensor.to(self.dl_studio.device)
                optimizer.zero_grad()
                output = net(im_tensor)
                loss = criterion1(output, mask_tensor)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        print("iterations: %d" % len(losses))
        self.save_model(net)
        return losses

    def run_code_for_testing_semantic_segmentation(self, net):
        net.load_state_dict(torch.load(self.dl_studio.path_saved_model))
        batch_size = self.dl_studio.batch_size
        image_size = self.dl_studio.image_size
        max_num_objects = self.max_num_objects
        with torch.no_grad():
            for i, data in enumerate(self.test_dataloader):
                im_tensor, mask_tensor, bbox_tensor = (
                    data['image'], data['mask_tensor'], data['bbox_tensor'])
                if i % 50 == 0:
                    outputs = net(im_tensor)
                    display = torch.zeros(7 * batch_size, 3, image_size[0], image_size[1],
                                          dtype=float)
                    for idx in range(batch_size):
                        for bbox_idx in range(max_num_objects):
                            bb_tensor = bbox_tensor[idx, bbox_idx]
                            for k in range(max_num_objects):
                                i1, i2 = int(bb_tensor[k][1]), int(bb_tensor[k][3])
                                j1, j2 = int(bb_tensor[k][0]), int(bb_tensor[k][2])
                                im_tensor[idx, 0, i1:i2, j1] = 255
                                im_tensor[idx, 0, i2, j1:j2] = 255
                    display[:batch_size] = outputs.max(dim=1, keepdim=True).values
                    display[batch_size:2 * batch_size] = im_tensor
                    for k in range(5):
                        display[(2 + k) * batch_size:(3 + k) * batch_size] = outputs[:, k:k + 1]
                    self.dl_studio.display_tensor_as_image(
                        torchvision.utils.make_grid(display, nrow=batch_size, normalize=True,
                                                    padding=2, pad_value=10), "batch %d" % i)
        print("tested")


dls = MyStudio(dataroot="./data/PurdueShapes5MultiObject/", image_size=[64, 64],
               path_saved_model="./saved_model", momentum=0.9, learning_rate=1e-4, epochs=1,
               batch_size=4, classes=('rectangle', 'triangle', 'disk', 'oval', 'star'),
               use_gpu=True)
segmenter = MySegmentation(dl_studio=dls, max_num_objects=5)
Data = MySegmentation.PurdueShapes5MultiObjectDataset
train_set = Data(train_or_test='train', dl_studio=dls, segmenter=segmenter,
                 dataset_file="PurdueShapes5MultiObject-20-train.gz")
test_set = Data(train_or_test='test', dl_studio=dls, segmenter=segmenter,
                dataset_file="PurdueShapes5MultiObject-20-test.gz")
segmenter.load_PurdueShapes5MultiObject_dataset(train_set, test_set)
assert train_set.class_labels[50] == 'rectangle', train_set.class_labels

model = segmenter.mUnet(skip_connections=True, depth=2)
segmenter.run_code_for_training_for_semantic_segmentation(model)
segmenter.run_code_for_testing_semantic_segmentation(model)

# The report's classes by name and with its arguments, and the loop of the package beside it.
output, mask = torch.rand(4, 5, 64, 64), next(iter(segmenter.test_dataloader))['mask_tensor']
for loss in (SegStudio.SemanticSegmentation.SegmentationLossDice(4),
             SegStudio.SemanticSegmentation.SegmentationLossMSE(4),
             SegStudio.SemanticSegmentation.SegmentationLossComb(4, 200),
             SegStudio.SemanticSegmentation.SegmentationLoss(4), segmenter.SegmentationLossDice(4)):
    assert torch.isfinite(loss(output, mask.float())), loss
SegStudio.SemanticSegmentation.run_code_for_training_for_semantic_segmentation(segmenter, model)
segmenter.custom_run_code_for_training_for_semantic_segmentation(
    segmenter.mUnet(depth=2), "Combined", 200, dice_form="squared")
SegStudio.SemanticSegmentation.run_code_for_testing_semantic_segmentation(segmenter, model)
print("all done")
"""

INITS = {
    "handed on": "super(MySegmentation, self).__init__(dl_studio, max_num_objects)",
    "copied": (
        "super(SegStudio.SemanticSegmentation, self).__init__()\n"
        "        self.dl_studio = dl_studio\n"
        "        self.max_num_objects = max_num_objects\n"
        "        self.dataserver_train = dataserver_train\n"
        "        self.dataserver_test = dataserver_test"
    ),
}


@pytest.fixture
def folder(tmp_path, archives):
    """An empty folder but for the data, where the scripts look for it."""
    data = tmp_path / "data" / "PurdueShapes5MultiObject"
    data.mkdir(parents=True)
    for archive in archives.glob("*.gz"):
        shutil.copy(archive, data)
    return tmp_path


def names_in(folder):
    return {path.name for path in folder.iterdir()} - {".cache"}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mUnet", "mUNet"])
def test_a_script_like_dlstudios_example(folder, run_script, network):
    script = folder / "semantic_segmentation.py"
    script.write_text(EXAMPLE.replace("NETWORK", network))
    done = run_script(folder, script)
    assert done.returncode == 0, done.stderr
    for line in ("layers: 132", "Finished Training", "Showing output for test batch 1"):
        assert line in done.stdout
    assert re.search(r"\[epoch=1/1, iter= +5  elapsed_time= +\d+ secs\]   MSE loss: ", done.stdout)
    assert names_in(folder) == {"data", "runs", "saved_model", script.name}
    assert coloured(folder / "runs" / "semantic_segmentation" / "test-batch-001.png") > 500


def coloured(path):
    """The number of bright coloured pixels of a picture: the shapes in the row of images."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return ((np.ptp(pixels, axis=2) > 60) & (pixels.max(axis=2) > 100)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("init", INITS)
def test_a_students_script_that_overrides_the_loops(folder, run_script, init):
    script = folder / "hw7.py"
    script.write_text(STUDENT.replace("INIT", INITS[init]))
    done = run_script(folder, script)
    assert done.returncode == 0, done.stderr
    for line in ("iterations: 5", "tested", "all done"):
        assert line in done.stdout
    assert names_in(folder) == {"data", "runs", "saved_model", "hw7.py"}
    assert coloured(folder / "runs" / "hw7" / "display-001-batch-0.png") > 500


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.3.6", "2.5.8"])
def test_dlstudios_own_example(folder, run_script, version):
    """Where SEGSTUDIO_DLSTUDIO_SOURCES holds DLStudio's unpacked source archives."""
    sources = os.environ.get("SEGSTUDIO_DLSTUDIO_SOURCES", "")
    original = Path(sources, f"DLStudio-{version}", "Examples", "semantic_segmentation.py")
    if not sources or not original.is_file():
        pytest.skip(f"no source archive of DLStudio {version} in SEGSTUDIO_DLSTUDIO_SOURCES")
    script = folder / original.name
    text = original.read_text().replace("DLStudio", "SegStudio")
    script.write_text(
        re.sub(r"^(import pymsgbox|response = .*)", 'response = "OK"', text, flags=re.M)
    )
    done = run_script(folder, script)
    assert done.returncode == 0, done.stderr
    assert "6999109" in done.stdout
    assert "[epoch=6/6, iter=   5" in done.stdout
    assert names_in(folder) == {"data", "runs", "saved_model", script.name}
    assert list((folder / "runs" / "semantic_segmentation").glob("test-batch-*.png"))


# ---- without a seed of ours ---------------------------------------------------------------------


def train_as_dlstudio_does(net, data, epochs=2, learning_rate=1e-4):
    """DLStudio's loop and its loader, written anew: the loss of each iteration."""
    loader = DataLoader(data, batch_size=4, shuffle=True)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = criterion(net(batch["image"]), batch["mask_tensor"].float())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("seed", [0, 7])
def test_torchs_seed_gives_the_weights_and_the_order_of_dlstudios_loop(
    experiment, tiny_shapes, seed
):
    """Scripts seed torch themselves; SegStudio without seed= draws what they would draw."""
    data = tiny_shapes(20)
    segmenter = experiment(train=data, epochs=2, seed=None)
    torch.manual_seed(seed)
    plain = segmenter.mUnet(depth=4, width=16)
    expected = train_as_dlstudio_does(plain, data)

    torch.manual_seed(seed)
    net = segmenter.mUnet(depth=4, width=16)
    history = segmenter.run_code_for_training_for_semantic_segmentation(net, log_every=1)
    assert history.losses == pytest.approx(expected, rel=1e-4)
    assert len(set(history.losses)) == 10
    for mine, theirs in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def dlstudios_run(tmp_path_factory, tiny_shapes):
    """DLStudio's own loop, from torch.manual_seed(3) on: [(loss, batch), ...] of ten iterations."""
    pytest.importorskip("pymsgbox")
    dlstudio = pytest.importorskip("DLStudio").DLStudio
    steps = []

    class Recording(nn.MSELoss):
        def forward(self, output, mask):
            loss = super().forward(output, mask)
            steps.append((loss.item(), mask.clone()))
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dlstudio"))
        patch.setattr(nn, "MSELoss", Recording)
        torch.manual_seed(3)
        settings = dlstudio(
            dataroot="./", image_size=[16, 16], path_saved_model="./saved_model", momentum=0.9,
            learning_rate=1e-4, epochs=2, batch_size=4, classes=tiny_shapes.class_names,
            use_gpu=True,
        )  # fmt: skip
        settings.device = torch.device("cpu")
        segmenter = dlstudio.SemanticSegmentation(dl_studio=settings, max_num_objects=5)
        data = tiny_shapes(20, size=16)
        segmenter.load_PurdueShapes5MultiObject_dataset(data, data)
        model = segmenter.mUnet(skip_connections=True, depth=2)
        segmenter.run_code_for_training_for_semantic_segmentation(model)
    return steps


BETWEEN = {
    "nothing else": {},
    "evaluations": {"evaluate_every": 2},
    "figures": {"figures": True},
    "a worker": {"num_workers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("between", BETWEEN)
def test_the_first_losses_and_batches_are_those_of_dlstudio_itself(
    dlstudios_run, tiny_shapes, experiment, between
):
    options = dict(BETWEEN[between])
    workers = options.pop("num_workers", 0)
    batches = []

    def record(images, masks):
        batches.append(masks.clone())
        return images, masks

    def draw(history, net):
        segmenter.dl_studio.display_tensor_as_image(torch.ones(3, 8, 8))
        segmenter.save_loss_figure(history)

    if options.pop("figures", False):
        options["on_log"] = draw
    torch.manual_seed(3)
    data = tiny_shapes(20, size=16)
    segmenter = experiment(
        train=data, test=data, seed=None, epochs=2, image_size=[16, 16], num_workers=workers
    )
    segmenter.dataserver_validation = tiny_shapes(6, size=16)
    model = segmenter.mUnet(skip_connections=True, depth=2)
    history = segmenter.run_code_for_training_for_semantic_segmentation(
        model, log_every=1, augment=record, **options
    )
    losses, expected_batches = zip(*dlstudios_run, strict=True)
    assert len(losses) == 10
    for mine, theirs in zip(batches, expected_batches, strict=True):
        assert torch.equal(mine, theirs)
    assert history.losses == pytest.approx(losses, rel=1e-4)


def test_the_mask_values_are_looked_for_without_a_draw(experiment, tiny_shapes):
    """Data that does not say its mask values has the same order as any other."""

    class Plain(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, idx):
            return tiny_shapes(20)[idx]

    losses = []
    for data in (tiny_shapes(20), Plain()):
        segmenter = experiment(train=data, seed=None)
        torch.manual_seed(1)
        net = segmenter.mUnet(depth=2, width=4)
        history = segmenter.run_code_for_training_for_semantic_segmentation(net, log_every=1)
        losses.append(history.losses)
    assert losses[0] == losses[1]


def test_torchs_seed_gives_the_first_weights_of_dlstudios_network():
    pytest.importorskip("pymsgbox")
    dlstudio = pytest.importorskip("DLStudio").DLStudio.SemanticSegmentation
    torch.manual_seed(5)
    theirs = dlstudio.mUnet(skip_connections=True, depth=4).state_dict()
    torch.manual_seed(5)
    ours = SegStudio.SemanticSegmentation.mUnet(skip_connections=True, depth=4).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("subclass", ["no init at all", "the init of nn.Module alone"])
def test_a_subclass_that_skips_our_init_trains_and_tests(
    experiment, tiny_shapes, small_net, subclass
):
    class Mine(SegStudio.SemanticSegmentation):
        def __init__(self, dl_studio):
            if subclass != "no init at all":
                nn.Module.__init__(self)
            self.dl_studio = dl_studio
            self.max_num_objects = 5

    segmenter = Mine(experiment().dl_studio)
    segmenter.load_PurdueShapes5MultiObject_dataset(tiny_shapes(8), tiny_shapes(6))
    net = small_net()
    history = segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net, "Combined", 200, evaluate_every=1, evaluate_on=0.5
    )
    assert history.iterations == 1
    assert segmenter.run_code_for_testing_semantic_segmentation(net).compute()["images"] == 6


def test_a_loop_of_the_students_own_may_use_the_loaders_alone(experiment, tiny_shapes):
    """As the homework's reports do: their own datasets in the loaders, and no seed."""
    segmenter = experiment(seed=None)
    segmenter.dataserver_train = segmenter.dataserver_test = None
    segmenter.train_dataloader = DataLoader(tiny_shapes(8), 4, shuffle=True)
    segmenter.test_dataloader = DataLoader(tiny_shapes(6), 4)
    net = segmenter.mUnet(depth=2, width=4)
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    scores = segmenter.run_code_for_testing_semantic_segmentation(net)
    assert list(scores.compute()["classes"]) == list(tiny_shapes.class_names)
