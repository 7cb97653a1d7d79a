"""How an output is read travels with the network and its saved weights, never with the segmenter.

A network that was trained with BCEDice gives logits, one trained with MSE gives mask values. The
weights alone do not say which.
"""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


def train(segmenter, net, *loss, **options):
    return segmenter.custom_run_code_for_training_for_semantic_segmentation(net, *loss, **options)


@pytest.fixture
def logits(experiment, small_net):
    """A segmenter, the net that it trained with BCEDice, and the net's scores.

    Some outputs lie between 0 and half of a mask value, so the way they are read decides.
    """
    segmenter = experiment(epochs=4, run_name="logits")
    net = small_net(upsampling="dense")
    train(segmenter, net, "BCEDice", optimizer=torch.optim.AdamW(net.parameters(), lr=1e-2))
    scores = segmenter.score(net).compute()
    output = segmenter.infer(net, segmenter.dataserver_test[0]["image"][None])
    assert ((output > 0) & (output < 25)).any()
    assert scores["mean_iou"] > 0
    return segmenter, net, scores


@pytest.fixture
def model(logits):
    return logits[0].dl_studio.run_dir / "model.pt"


def test_training_says_how_the_output_is_read(logits, experiment, small_net):
    _, net, _ = logits
    assert net.output_spec == {
        "class_names": ["rectangle", "triangle", "disk", "oval", "star"],
        "mask_values": [50, 100, 150, 200, 250],
        "logits": True,
        "image_size": [64, 64],
    }
    other = small_net()
    train(experiment(run_name="other"), other)
    assert other.output_spec == {**net.output_spec, "logits": False}


def test_training_another_net_on_the_same_segmenter_changes_no_scores(logits, small_net):
    segmenter, net, scores = logits
    other = small_net(seed=1)
    train(segmenter, other, "MSE")
    assert segmenter.score(net).compute() == scores
    train(segmenter, small_net(seed=2), "BCEDice")
    assert other.output_spec["logits"] is False


@pytest.mark.parametrize("way", ["load_model", "load_run", "testing", "path_saved_model"])
def test_another_segmenter_scores_the_saved_weights_alike(
    logits, model, experiment, small_net, tmp_path, way
):
    _, _, scores = logits
    there = {"path_saved_model": str(model)} if way in ("testing", "path_saved_model") else {}
    segmenter = experiment(run_name="another", **there)
    net = small_net(seed=5, upsampling="dense")
    if way == "testing":
        found = segmenter.run_code_for_testing_semantic_segmentation(net)
    elif way == "load_run":
        found = segmenter.score(segmenter.load_run(model.parent))
    else:
        found = segmenter.score(segmenter.load_model(net, *([model] if not there else [])))
    assert found.compute() == scores


@pytest.mark.slow
def test_another_process_scores_the_saved_weights_alike(logits, model, run_script, tmp_path):
    _, _, scores = logits
    (tmp_path / "score.py").write_text(
        f"""
import json, sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from conftest import Segmentation, SegStudio, TinyShapes

segmenter = Segmentation(dl_studio=SegStudio(run_name="score"), max_num_objects=5)
segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(12), TinyShapes(8))
net = segmenter.load_run({str(model.parent)!r})
print(json.dumps(segmenter.score(net).compute()))
"""
    )
    done = run_script(tmp_path, "score.py")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == scores


# ---- the file -----------------------------------------------------------------------------------


def test_the_saved_file_has_no_new_key_and_plain_torch_loads_it_strictly(logits, model, small_net):
    _, net, _ = logits
    state = torch.load(model, weights_only=True)
    fresh = small_net(seed=5, upsampling="dense")
    assert list(state) == list(fresh.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    fresh.load_state_dict(state, strict=True)
    for mine, saved in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(mine, saved)
    assert state._metadata[""]["output_spec"] == net.output_spec


def test_dlstudios_own_network_loads_the_saved_file_strictly(experiment, tmp_path):
    pytest.importorskip("pymsgbox")
    dlstudio = pytest.importorskip("DLStudio").DLStudio.SemanticSegmentation
    segmenter = experiment(train=4, path_saved_model=str(tmp_path / "saved_model"))
    net = segmenter.mUnet(depth=2)
    train(segmenter, net, "BCEDice")
    theirs = dlstudio.mUnet(skip_connections=True, depth=2)
    theirs.load_state_dict(torch.load(tmp_path / "saved_model"))  # DLStudio's line
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), net.eval()(images))


def test_saving_leaves_the_networks_own_state_dict_alone(logits):
    _, net, _ = logits
    assert "output_spec" not in net.state_dict()._metadata[""]


def test_a_copy_of_a_net_is_read_as_the_net(logits, experiment):
    segmenter, net, scores = logits
    twin = copy.deepcopy(net)
    train(segmenter, net, "MSE")
    assert segmenter.score(twin).compute() == scores


def test_a_file_of_dlstudio_says_nothing_and_the_data_decides(experiment, small_net, tmp_path):
    segmenter, net = experiment(), small_net()
    torch.save(net.state_dict(), tmp_path / "saved_model")
    loaded = segmenter.load_model(small_net(seed=3), tmp_path / "saved_model")
    values = torch.tensor([50.0, 100, 150, 200, 250]).reshape(1, 5, 1, 1)
    assert not segmenter.binarize(loaded, values / 2).any()
    assert segmenter.binarize(loaded, values / 2 + 0.01).all()


# ---- other data ---------------------------------------------------------------------------------


class Planes(Dataset):
    """Masks of 0 and a value, of three classes; the image is the mask, so Copy is perfect."""

    def __init__(self, number=8, value=1, kind=torch.uint8):
        self.number = number
        self.value = value
        self.kind = kind

    def __len__(self):
        return self.number

    def __getitem__(self, idx):
        mask = torch.zeros(3, 16, 16)
        mask[idx % 3, idx : idx + 5, 2:9] = self.value
        return {"image": mask, "mask_tensor": mask.to(self.kind)}


class Copy(nn.Module):
    """A perfect network for Planes, where nothing has to be learned."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, torch.uint8), (1, torch.float32), (1, torch.bool), (255, torch.uint8), (7, torch.int64)],
)
@pytest.mark.parametrize("way", ["plain", "subset", "concatenated", "a loader alone", "trained"])
def test_masks_of_any_value_need_no_mask_values(tmp_path, value, kind, way):
    """A perfect network scores IoU 1; with thresholds of 25 to 125 it would score 0."""
    data = Planes(8, value, kind)
    if way == "subset":
        data = Subset(Subset(data, range(7)), range(1, 7))
    elif way == "concatenated":
        data = ConcatDataset([data, data])
    dls = SegStudio(results_dir=tmp_path, run_name="r", classes=("a", "b", "c"), seed=0)
    segmenter = Segmentation(dl_studio=dls, max_num_objects=3)
    if way == "a loader alone":
        segmenter.train_dataloader = segmenter.test_dataloader = DataLoader(data, 4)
    else:
        segmenter.load_PurdueShapes5MultiObject_dataset(data, data)
    net = Copy()
    if way == "trained":
        train(segmenter, net, "Dice")
        assert net.output_spec["mask_values"] == [value] * 3
        net = segmenter.load_model(Copy())
    scores = segmenter.score(net).compute()
    assert scores["mean_iou"] == 1
    assert list(scores["classes"]) == ["a", "b", "c"]
    assert scores["images"] == len(data)


def test_a_class_that_is_in_no_mask_has_the_value_of_the_others(tmp_path):
    segmenter = Segmentation(SegStudio(results_dir=tmp_path, classes=("a", "b", "c")), 3)
    segmenter.load_PurdueShapes5MultiObject_dataset(Planes(2, 9), Planes(2, 9))
    assert segmenter.data_spec()["mask_values"] == [9, 9, 9]


def test_masks_are_searched_once_for_a_whole_score(tmp_path):
    """With a class that is never there, the search reads all images."""

    class Counting(Planes):
        reads = 0

        def __getitem__(self, idx):
            self.reads += 1
            return super().__getitem__(0)

    data = Counting(40)
    segmenter = Segmentation(SegStudio(results_dir=tmp_path, classes=("a", "b", "c")), 3)
    segmenter.load_PurdueShapes5MultiObject_dataset(data, data)
    segmenter.score(Copy())
    assert data.reads == 40 + 40


def test_load_run_leaves_settings_and_later_data_alone(logits, model, tmp_path):
    dls = SegStudio(results_dir=tmp_path, run_name="later", classes=("a", "b", "c"))
    segmenter = Segmentation(dl_studio=dls, max_num_objects=3)
    settings = copy.deepcopy(vars(dls))
    attributes = set(vars(segmenter))
    loaded = segmenter.load_run(model.parent)
    assert loaded.output_spec["logits"]
    assert vars(dls) == settings
    assert set(vars(segmenter)) == attributes
    segmenter.load_PurdueShapes5MultiObject_dataset(Planes(), Planes())
    assert segmenter.score(Copy()).compute()["mean_iou"] == 1


def test_predicting_uses_the_size_that_the_net_was_trained_with(experiment, small_net, tmp_path):
    from PIL import Image

    sizes = []
    segmenter = experiment(train=4, image_size=[32, 32])
    net = small_net()
    train(segmenter, net)
    other = Segmentation(SegStudio(results_dir=tmp_path, image_size=[64, 64]), 5)
    net = other.load_run(segmenter.dl_studio.run_dir)
    net.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    pred = other.predict_image(net, Image.new("RGB", (90, 50)))
    assert sizes == [(1, 3, 32, 32)]
    assert pred.shape == (5, 50, 90)
    assert pred.dtype == torch.bool


class OneObject(Dataset):
    """Photos with one object each: one plane, and a category that says which class it is of."""

    mask_values = (255,)

    def __init__(self, *class_names):
        self.class_names = class_names

    def __len__(self):
        return 6

    def __getitem__(self, idx):
        image = torch.zeros(3, 16, 16)
        image[:, idx : idx + 5, 3:9] = 255
        mask = image[:1].to(torch.uint8)
        return {"image": image, "mask_tensor": mask, "category": idx % len(self.class_names)}


def test_the_class_of_a_photo_is_known_by_the_data(tmp_path):
    """One output channel for all classes: the net may meet classes that it was not trained on."""

    class OneChannel(Copy):
        def forward(self, x):
            return x[:, :1] * self.scale

    dls = SegStudio(results_dir=tmp_path, run_name="r", seed=0)
    segmenter = Segmentation(dls, max_num_objects=1)
    segmenter.load_Coco_dataset(OneObject("dog", "cat"), OneObject("dog", "cat"))
    net = OneChannel()
    train(segmenter, net, "Dice")
    assert net.output_spec["class_names"] == ["dog", "cat"]
    later = OneObject("motorcycle", "dog", "cake")
    scores = segmenter.score(net, DataLoader(Subset(later, range(6)), 4)).compute()
    assert list(scores["classes"]) == ["motorcycle", "dog", "cake"]
    assert [row["iou"] for row in scores["classes"].values()] == [1, 1, 1]
    segmenter.load_Coco_dataset(later, later)
    tested = segmenter.run_code_for_testing_semantic_segmentation(net)
    assert tested.compute() == scores
