"""Subclasses as students write them: they skip an __init__, bring their own data, nest classes.

DLStudio's classes hold nothing but what their own __init__ sets, so in DLStudio these work.
"""

import gzip
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation
Shapes = Segmentation.PurdueShapes5MultiObjectDataset


def archive_items(archives, name="PurdueShapes5MultiObject-20-train.gz"):
    return pickle.loads(gzip.decompress((archives / name).read_bytes()))


def assert_same_item(item, other):
    assert item.keys() == other.keys()
    for key in other:
        assert torch.equal(item[key], other[key])
        assert item[key].dtype == other[key].dtype


@pytest.fixture
def original(archives, experiment):
    segmenter = experiment(dataroot=archives)
    return Shapes(segmenter.dl_studio, segmenter, "train", "PurdueShapes5MultiObject-20-train.gz")


def test_a_third_split_and_a_dataroot_that_begins_the_file_name(archives, experiment, original):
    """DLStudio looks only for "train", and joins dataroot and file name as text."""
    segmenter = experiment(dataroot=f"{archives}/PurdueShapes5MultiObject-20")
    data = Shapes(segmenter.dl_studio, segmenter, "val", "-train.gz")
    assert data.train_or_test == "val"
    assert_same_item(data[3], original[3])


# ---- datasets -----------------------------------------------------------------------------------


class OwnReader(Shapes):
    """Unpickles the archive itself, as DLStudio's __init__ does, and inherits the rest."""

    def __init__(self, archives):
        torch.utils.data.Dataset.__init__(self)
        self.dataset, self.label_map = archive_items(archives)
        self.class_labels = dict(map(reversed, self.label_map.items()))
        self.num_shapes = len(self.class_labels)
        self.image_size = [64, 64]


def test_a_dataset_that_skips_init_has_the_items_of_its_parent(archives, original, experiment):
    mine = OwnReader(archives)
    assert len(mine) == 20
    for index in (0, 7, 19):
        assert_same_item(mine[index], original[index])
    segmenter = experiment(train=mine, test=mine, batch_size=10)
    net = segmenter.mUnet(depth=2, width=4)
    assert segmenter.run_code_for_training_for_semantic_segmentation(net).iterations == 2
    assert segmenter.run_code_for_testing_semantic_segmentation(net).images == 20


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dataset_may_keep_other_things_in_self_dataset(experiment, workers):
    """A student's COCO dataset: it inherits __len__ and has its own items."""

    class Photos(Shapes):
        def __init__(self):
            self.dataset = [(f"photo-{k}.jpg", 20 * k) for k in range(8)]

        def __getitem__(self, index):
            name, brightness = self.dataset[index]
            mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
            mask[:, :8] = 255
            return {"image": torch.full((3, 16, 16), float(brightness)), "mask_tensor": mask}

    photos = Photos()
    assert len(photos) == 8
    assert photos.dataset[3] == ("photo-3.jpg", 60)
    if workers == 0:
        segmenter = experiment(train=photos, test=photos, classes=("object",))
        net = segmenter.mUnet(depth=2, width=4, out_channels=1)
        segmenter.run_code_for_training_for_semantic_segmentation(net)
        scores = segmenter.run_code_for_testing_semantic_segmentation(net)
        assert scores.images == 8
        assert scores.class_names == ("object",)
    else:
        loader = torch.utils.data.DataLoader(photos, 4, num_workers=workers)
        assert [batch["image"].amax().item() for batch in loader] == [60, 140]


def test_what_is_assigned_to_dataset_is_what_is_read_back(archives, original):
    items, _ = archive_items(archives)
    original.dataset = items
    assert original.dataset is items


def test_an_assigned_item_that_is_changed_changes_what_is_trained_on(archives, original):
    """As in DLStudio, before and after the item was read."""
    original.dataset, _ = archive_items(archives)
    for value in (1, 2):
        for index in range(20):
            mask = original.dataset[index][3]
            original.dataset[index][3] = np.where(mask > 0, 50 * np.arange(1, 6)[:, None, None], 0)
            original.dataset[index][0] = [value] * 4096
        assert original[4]["image"][0].unique().tolist() == [value]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.__setitem__(0, data[1]),
        lambda data: data[0].__setitem__(3, 0),
    ],
    ids=["an item", "a part of an item"],
)
def test_a_change_that_would_be_lost_is_refused(original, change):
    """The items of an archive are read from its cache, so a changed copy would change nothing."""
    with pytest.raises(TypeError, match="would be lost.*dataset = "):
        change(original.dataset)
    items = [list(item) for item in original.dataset.values()]
    items[0][0] = [7] * 4096
    original.dataset = items
    assert original[0]["image"][0].unique().tolist() == [7]


def test_the_items_of_an_archive_have_the_numbers_of_a_dict(original):
    data = original.dataset
    assert 19 in data
    assert 20 not in data
    assert data.get(20) is None
    with pytest.raises(KeyError):
        data[20]
    with pytest.raises(TypeError):
        data[0:5]


SCALES = {
    "0..1": lambda image: image / 255,
    "-1..1": lambda image: image / 127.5 - 1,
    "mean 0": lambda image: (image - 20) / 50,
}


@pytest.mark.parametrize("scale", SCALES)
def test_images_of_another_scale_are_seen_in_the_pictures_of_a_test(
    experiment, tiny_shapes, small_net, scale
):
    """A student's dataset normalizes its images; DLStudio's are 0..255."""

    class Scaled(tiny_shapes):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item | {"image": SCALES[scale](item["image"])}

    counts = {"test-batch-001.png": [], "worst.png": []}
    for data in (tiny_shapes(8), Scaled(8)):
        segmenter = experiment(train=data, test=data)
        net = small_net()
        segmenter.save_model(net)
        segmenter.run_code_for_testing_semantic_segmentation(net)
        for name, found in counts.items():
            pixels = np.asarray(Image.open(segmenter.dl_studio.run_dir / name).convert("RGB"))
            pixels = pixels.astype(int)
            if name == "worst.png":
                pixels = pixels[:, : pixels.shape[1] // 3]  # the images, without their masks
            boxes = (pixels[..., 0] > 240) & (pixels[..., 1:].max(axis=2) < 25)
            colored = pixels.max(axis=2) - pixels.min(axis=2) > 40
            found.append((colored & ~boxes).sum())
    for expected, found in counts.values():
        assert expected > 500
        assert found == pytest.approx(expected, rel=0.2)


# ---- networks and blocks ------------------------------------------------------------------------


def dlstudios_layers(net, depth, down, up):
    """What DLStudio's mUnet.__init__ makes."""
    net.depth = depth // 2
    net.conv_in = nn.Conv2d(3, 64, 3, padding=1)
    net.pool = nn.MaxPool2d(2, 2)
    net.bn1DN, net.bn2DN = nn.BatchNorm2d(64), nn.BatchNorm2d(128)
    net.skip64DN_arr = nn.ModuleList(down(64, 64) for _ in range(net.depth))
    net.skip64dsDN = down(64, 64, downsample=True)
    net.skip64to128DN = down(64, 128)
    net.skip128DN_arr = nn.ModuleList(down(128, 128) for _ in range(net.depth))
    net.skip128dsDN = down(128, 128, downsample=True)
    net.bn1UP, net.bn2UP = nn.BatchNorm2d(128), nn.BatchNorm2d(64)
    net.skip64UP_arr = nn.ModuleList(up(64, 64) for _ in range(net.depth))
    net.skip64usUP = up(64, 64, upsample=True)
    net.skip128to64UP = up(128, 64)
    net.skip128UP_arr = nn.ModuleList(up(128, 128) for _ in range(net.depth))
    net.skip128usUP = up(128, 128, upsample=True)
    net.conv_out = nn.ConvTranspose2d(64, 5, 3, stride=2, dilation=2, output_padding=1, padding=2)


class PlainDown(Segmentation.SkipBlockDN):
    """A copy of DLStudio's __init__ that calls nn.Module's."""

    def __init__(self, in_ch, out_ch, downsample=False, skip_connections=True):
        nn.Module.__init__(self)
        self.downsample, self.skip_connections = downsample, skip_connections
        self.in_ch, self.out_ch = in_ch, out_ch
        self.convo1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.convo2 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_ch), nn.BatchNorm2d(out_ch)
        if downsample:
            self.downsampler = nn.Conv2d(in_ch, out_ch, 1, stride=2)


class PlainUp(Segmentation.SkipBlockUP):
    def __init__(self, in_ch, out_ch, upsample=False, skip_connections=True):
        nn.Module.__init__(self)
        self.upsample, self.skip_connections = upsample, skip_connections
        self.in_ch, self.out_ch = in_ch, out_ch
        self.convoT1 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
        self.convoT2 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_ch), nn.BatchNorm2d(out_ch)
        if upsample:
            self.upsampler = nn.ConvTranspose2d(
                in_ch, out_ch, 1, stride=2, dilation=2, output_padding=1
            )


class PlainNet(Segmentation.mUnet):
    def __init__(self, down, up):
        nn.Module.__init__(self)
        dlstudios_layers(self, 4, down, up)


@pytest.mark.parametrize(
    ("down", "up"),
    [(Segmentation.SkipBlockDN, Segmentation.SkipBlockUP), (PlainDown, PlainUp)],
    ids=["our blocks", "blocks that skip their init"],
)
def test_a_network_that_skips_init_is_the_parents_network(down, up):
    mine = PlainNet(down, up)
    ours = Segmentation.mUnet(depth=4)
    assert list(mine.state_dict()) == list(ours.state_dict())
    mine.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 16, 16) * 255
    assert torch.equal(mine(x), ours(x))


def test_a_network_that_skips_init_trains_tests_and_is_saved(experiment):
    segmenter = experiment(train=4, test=4)
    net = PlainNet(PlainDown, PlainUp)
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    assert segmenter.run_code_for_testing_semantic_segmentation(net).images == 4
    with pytest.raises(ValueError, match="PlainNet.*load_model"):
        segmenter.load_run(segmenter.dl_studio.run_dir)


def test_a_network_may_nest_its_own_blocks_with_dlstudios_arguments():
    """A student's mUnet with blocks of its own, which know nothing of `upsampling`."""

    class Mine(Segmentation.mUnet):
        class SkipBlockDN(Segmentation.SkipBlockDN):
            def __init__(self, in_ch, out_ch, downsample=False, skip_connections=True):
                super().__init__(in_ch, out_ch, downsample, skip_connections)
                self.dropout = nn.Dropout2d(0.5)

            def forward(self, x):
                return self.dropout(super().forward(x))

        class SkipBlockUP(PlainUp):
            pass

    net = Mine(depth=4, width=8)
    assert sum(isinstance(module, nn.Dropout2d) for module in net.modules()) == 7
    assert sum(isinstance(module, PlainUp) for module in net.modules()) == 7
    assert net(torch.rand(1, 3, 16, 16)).shape == (1, 5, 16, 16)
    net(torch.rand(2, 3, 16, 16)).sum().backward()


# ---- losses -------------------------------------------------------------------------------------


def test_losses_that_a_subclass_nests_are_used_with_the_reports_arguments(experiment, tiny_shapes):
    """The report's classes take batch_size, and the combined one dice_scale; nothing else."""
    made = []

    class Mine(Segmentation):
        class SegmentationLossMSE(nn.Module):
            def __init__(self, batch_size):
                super().__init__()
                made.append(("MSE", batch_size))

            def forward(self, output, mask_tensor):
                return ((output - mask_tensor) ** 2).mean()

        class SegmentationLossDice(SegmentationLossMSE):
            def __init__(self, batch_size):
                nn.Module.__init__(self)
                made.append(("Dice", batch_size))

        class SegmentationLossComb(SegmentationLossMSE):
            def __init__(self, batch_size, dice_scale):
                nn.Module.__init__(self)
                made.append(("Comb", batch_size, dice_scale))

    segmenter = Mine(experiment(batch_size=2).dl_studio, 5)
    segmenter.load_PurdueShapes5MultiObject_dataset(tiny_shapes(4), tiny_shapes(2))
    segmenter.run_code_for_training_for_semantic_segmentation(segmenter.mUnet(depth=2, width=4))
    for name in ("Dice", "Combined"):
        net = segmenter.mUnet(depth=2, width=4)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(net, name, 300)
    assert made == [("MSE", 2), ("Dice", 2), ("Comb", 2, 300)]


# ---- settings -----------------------------------------------------------------------------------


class PlainStudio(SegStudio):
    """A copy of DLStudio's __init__, which knows nothing of run folders."""

    def __init__(self, *args, **kwargs):
        self.dataroot = kwargs.pop("dataroot", "./data/")
        self.image_size = [64, 64]
        self.path_saved_model = "./saved_model"
        self.momentum = 0.9
        self.learning_rate = 1e-4
        self.epochs = 1
        self.batch_size = 4
        self.class_labels = kwargs.pop("classes", ("rectangle", "triangle", "disk", "oval", "star"))
        self.use_gpu = True
        self.device = torch.device("cpu")


def test_settings_that_skip_init_train_test_and_display(tmp_path, monkeypatch, tiny_shapes):
    monkeypatch.chdir(tmp_path)
    dls = PlainStudio()
    segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_PurdueShapes5MultiObject_dataset(tiny_shapes(8), tiny_shapes(4))
    net = segmenter.mUnet(depth=2, width=4)
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    assert segmenter.run_code_for_testing_semantic_segmentation(net).images == 4
    dls.display_tensor_as_image(torch.rand(3, 8, 8))
    assert (dls.run_dir / "display-001.png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "saved_model"}


def test_a_device_may_be_set_by_its_name(experiment, small_net):
    segmenter = experiment()
    segmenter.dl_studio.device = "cpu"
    net = small_net()
    segmenter.run_code_for_training_for_semantic_segmentation(net)
    assert segmenter.run_code_for_testing_semantic_segmentation(net).images == 8


def test_all_keywords_of_dlstudio_are_taken():
    config = {"convo_layers_config": "1x[128,3,3,1]-MaxPool(2)", "fc_layers_config": [-1, 1024, 10]}
    dls = SegStudio(debug_train=1, debug_test=1, **config)
    assert {name: getattr(dls, name) for name in config} == config
