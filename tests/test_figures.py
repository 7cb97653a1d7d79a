"""The figures that training and testing write: their pixels, and the words on them."""

import math

import numpy as np
import pytest
import torch
from conftest import TinyShapes
from PIL import Image
from torch import nn

from SegStudio import SegStudio, backstage, recording

Segmentation = SegStudio.SemanticSegmentation
PALETTE = SegStudio.PALETTE


class Known(nn.Module):
    """A network whose answers are known: the next items' masks, changed by a function."""

    def __init__(self, dataset, change):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dataset, self.change, self.next = dataset, change, 0

    def forward(self, images):
        numbers = [(self.next + k) % len(self.dataset) for k in range(len(images))]
        self.next += len(images)
        masks = torch.stack([self.dataset[number]["mask_tensor"] for number in numbers])
        return self.change(masks.float())


class Changed(TinyShapes):
    """TinyShapes with other items: Changed(number, function of an item)."""

    def __init__(self, number, change, **options):
        super().__init__(number, **options)
        self.change = change

    def __getitem__(self, idx):
        return self.change(super().__getitem__(idx))


def run_test(experiment, dataset, change=lambda masks: masks, **settings):
    """The segmenter after a test of Known; segmenter.words: {file: the texts on the figure}."""
    segmenter = experiment(train=dataset, test=dataset, **settings)
    net = Known(dataset, change)
    net.output_spec = segmenter.data_spec()
    segmenter.save_model(net)
    segmenter.words = {}
    save = segmenter.dl_studio.save_figure

    def look(figure, name):
        texts = [text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text"))]
        segmenter.words[name] = [text for text in texts if text]
        return save(figure, name)

    segmenter.dl_studio.save_figure = look
    segmenter.run_code_for_testing_semantic_segmentation(net)
    return segmenter


def pixels_of(segmenter, name):
    with Image.open(segmenter.dl_studio.run_dir / name) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def count(pixels, color, tolerance=45):
    wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=2) <= tolerance).sum())


# ---- truth beside prediction --------------------------------------------------------------------


def test_predictions_follow_the_rule_of_the_scores_and_not_dlstudios_windows(experiment):
    """An output of 0.6 times the mask value counts, but lies outside of most windows."""
    for factor, counts in ((0.6, True), (0.4, False)):
        segmenter = run_test(experiment, TinyShapes(4), lambda masks, f=factor: f * masks)
        words = segmenter.words["predictions-001.png"]
        assert words.count("IoU 1.00") == 4 * counts
        assert words.count("IoU 0.00\nnothing predicted") == 4 * (not counts)
        pixels = pixels_of(segmenter, "predictions-001.png")
        truth, prediction = pixels[300:550], pixels[580:790]
        for color in PALETTE[:4]:
            assert count(truth, color) > 500
            assert (count(prediction, color) > 500) == counts


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_one_column_for_each_image_of_the_batch(experiment, batch_size):
    segmenter = run_test(experiment, TinyShapes(9), batch_size=batch_size)
    words = segmenter.words["predictions-001.png"]
    assert [word for word in words if word.startswith("image ")] == [
        f"image {k}" for k in range(batch_size)
    ]
    assert {"image", "truth", "prediction", *TinyShapes.class_names} <= set(words)
    height, width, _ = pixels_of(segmenter, "predictions-001.png").shape
    assert height < 1000
    assert width < 1800


def test_dlstudios_view_stays_and_says_where_the_other_rule_is(experiment):
    segmenter = run_test(experiment, TinyShapes(4))
    words = "\n".join(segmenter.words["test-batch-001.png"])
    assert "DLStudio's view" in words
    assert "predictions-001.png" in words
    assert count(pixels_of(segmenter, "test-batch-001.png"), "#323232", 5) > 10000, "50 of 255"


def test_where_dlstudios_windows_do_not_fit_there_is_no_such_picture(experiment):
    def zero_one(item):
        return {**item, "mask_tensor": (item["mask_tensor"] > 0).byte()}

    def without_boxes(item):
        return {key: value for key, value in item.items() if key != "bbox_tensor"}

    for change in (zero_one, without_boxes):
        segmenter = run_test(experiment, Changed(8, change), run_name=change.__name__)
        names = {path.name for path in segmenter.dl_studio.run_dir.glob("*.png")}
        assert names == {"predictions-001.png", "worst.png", "confusion.png"}


def test_nothing_there_is_told_from_nothing_predicted(experiment):
    def empty(item):
        return {**item, "mask_tensor": torch.zeros_like(item["mask_tensor"])}

    class HalfEmpty(TinyShapes):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            return empty(item) if idx % 2 else item

    words = run_test(experiment, HalfEmpty(4), lambda masks: 0 * masks).words
    assert words["predictions-001.png"].count("IoU 0.00\nnothing predicted") == 2
    assert words["predictions-001.png"].count("nothing there,\nnothing predicted") == 2


@pytest.mark.parametrize(
    ("generated", "manifest", "word"),
    [
        (True, False, "generated "),
        (True, True, "synthetic "),
        (False, True, ""),
        (False, False, ""),
    ],
)
def test_pictures_of_drawn_images_say_so(experiment, generated, manifest, word):
    data = TinyShapes(4)
    data.generated = generated
    if manifest:
        data.manifest = {}
    segmenter = run_test(experiment, data)
    for name, words in segmenter.words.items():
        assert f"{word}test images" in " ".join(words), name
        assert word or not any("generated" in w or "synthetic" in w for w in words)
    history = recording.TrainingHistory("MSE")
    history.iterations = 1
    history.add(loss=1.0)
    segmenter.save_loss_figure(history)
    assert f"Training loss: MSE, {word}images" in segmenter.words["loss.png"]


def test_a_single_interval_is_visible_in_the_loss_figure(experiment):
    segmenter = experiment()
    history = recording.TrainingHistory("MSE")
    history.iterations = 500
    history.add(loss=400.0)
    segmenter.save_loss_figure(history)
    plot = pixels_of(segmenter, "loss.png")[40:410]  # without the legend
    assert count(plot, PALETTE[0]) > 10


# ---- the words around the table -----------------------------------------------------------------


def test_the_log_explains_scores_and_baselines_once(experiment):
    segmenter = run_test(experiment, TinyShapes(4))
    net = Known(TinyShapes(4), lambda masks: masks)
    segmenter.run_code_for_testing_semantic_segmentation(
        net, baselines=segmenter.score_baselines()
    )  # fmt: skip
    log = (segmenter.dl_studio.run_dir / "log.txt").read_text()
    first, second = log.split("Scores on 4 test images:")[1:]
    scores = segmenter.score(net)
    for part in (first, second):
        assert part.startswith(f"\n{scores}\n{scores.explanation()}\n")
        assert part.count("Pixel accuracy: ") == 1
    assert "aseline" not in first
    assert second.count("Baselines ignore the image") == 1
    assert second.index("Baselines ignore") < second.index("Baseline, all foreground:\n")
    assert "Baseline, mean training mask:\n" in second


# ---- the worst images ---------------------------------------------------------------------------


def test_of_equally_bad_images_the_worst_have_the_most_wrong_pixels(experiment):
    """Nothing is predicted, so all have an IoU of 0: the largest objects are shown."""
    data = TinyShapes(12)
    words = run_test(experiment, data, lambda masks: 0 * masks).words["worst.png"]
    sizes = [int((data[k]["mask_tensor"] > 0).sum()) for k in range(12)]
    largest = sorted(range(12), key=lambda k: (-sizes[k], k))[:4]
    assert [word for word in words if word.startswith("image ")] == [f"image {k}" for k in largest]
    assert sizes[0] < sizes[largest[0]]
    assert words.count("IoU 0.00\nnothing predicted") == 4


# ---- the confusion matrix -----------------------------------------------------------------------


def test_the_confusion_matrix_is_a_figure_of_each_test(experiment):
    """The rectangle is half missed, half taken for a triangle."""

    def swap(masks):
        masks[:, 1] += 2 * masks[:, 0]
        masks[:, 1, :, 5:] *= masks[:, 0, :, 5:] == 0  # it has columns 2 to 7
        masks[:, 0] = 0
        return masks

    segmenter = run_test(experiment, TinyShapes(5), swap)
    words = segmenter.words["confusion.png"]
    assert words.count("100.0") == 5, "all others are right"
    assert words.count("50.0") == 2
    assert {"background", "rectangle", "star"} <= set(words)
    assert any(word.startswith("background (9") for word in words), "its share of the pixels"
    assert count(pixels_of(segmenter, "confusion.png"), "#08306B", 5) > 5 * 5000, "100 % is dark"


def test_small_confusions_and_absent_classes_are_told_from_none(experiment):
    scores = Segmentation.SegmentationScores(("seen", "absent"))
    mask = torch.zeros(1, 2, 100, 100, dtype=torch.bool)
    mask[0, 0, :50] = True
    pred = mask.clone()
    pred[0, 1, 99, 0] = True
    scores.update(pred, mask)
    figure = backstage.draw_confusion(experiment().dl_studio, scores, "test images")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["100.0", "0", "<0.1", "0", "100.0", "0", "-", "-", "-"]


def test_the_confusion_matrix_of_80_classes_is_not_a_poster(experiment):
    scores = Segmentation.SegmentationScores([f"class {k}" for k in range(80)])
    mask = torch.zeros(1, 80, 9, 9, dtype=torch.bool)
    for k in range(80):
        mask[0, k, k // 9, k % 9] = True
    scores.update(mask, mask)
    segmenter = experiment()
    segmenter.save_confusion_figure(scores)
    pixels = pixels_of(segmenter, "confusion.png")
    assert max(pixels.shape) < 3600
    assert count(pixels, "#08306B", 5) > 80 * 500


# ---- colours ------------------------------------------------------------------------------------


def test_an_overlay_shows_pixels_of_several_classes_in_white():
    image = torch.full((3, 8, 8), 100.0)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :6] = True
    masks[1, :, 2:] = True
    picture = Segmentation.overlay(image, masks)
    assert (picture[:, :, 2:6] == 255).all()
    assert (picture[:, :, :2] < 255).any()


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("k", range(8))
def test_a_projector_shows_the_class_of_every_pixel_of_a_mask(k, grey):
    """A strong colour, nearest to that of its own class, on a darker image."""
    masks = torch.zeros(8, 40, 40, dtype=torch.bool)
    masks[k, 10:30, 10:30] = True
    picture = Segmentation.overlay(torch.full((3, 40, 40), float(grey)), masks).int()
    colors = torch.stack([backstage.rgb(color) for color in PALETTE]).int()
    assert (colors - picture[:, 20, 20]).square().sum(dim=1).argmin() == k
    assert (picture[:, 20, 20] - picture[:, 0, 0]).abs().max() > 60
    assert picture[:, 0, 0].max() <= 0.33 * grey + 1


def test_a_lower_alpha_shows_more_of_the_image():
    image = torch.tensor([0.0, 255.0]).repeat(3, 20, 10)
    masks = torch.ones(1, 20, 20, dtype=torch.bool)
    masks[:, 10:] = False
    strong, weak = (Segmentation.overlay(image, masks, alpha=a).float() for a in (0.85, 0.5))
    assert weak[:, :10].std(dim=2).min() > 3 * strong[:, :10].std(dim=2).max(), "in the mask"
    assert weak[:, 10:].max() > 140 > 90 > strong[:, 10:].max(), "beside it"


def test_every_class_has_its_own_colour():
    colors = backstage.class_colors(30)
    assert tuple(colors[:8]) == PALETTE
    rgb = torch.stack([backstage.rgb(color) for color in colors]).float()
    distances = torch.cdist(rgb, rgb) + 999 * torch.eye(30)
    assert distances.min() > 20


def test_more_than_eight_classes_have_a_legend_of_those_that_occur(experiment):
    class Many(TinyShapes):
        class_names = tuple(f"a class with a long name {k}" for k in range(12))

        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            mask = torch.zeros(12, 32, 32, dtype=torch.uint8)
            mask[7 + idx % 5] = item["mask_tensor"].amax(dim=0) > 0
            return {"image": item["image"], "mask_tensor": mask}

    segmenter = run_test(experiment, Many(4))
    shown = [word for word in segmenter.words["predictions-001.png"] if "long name" in word]
    assert set(shown) == {f"a class with a long name {k}" for k in (7, 8, 9, 10)}
    pixels = pixels_of(segmenter, "predictions-001.png")
    for color in backstage.class_colors(12)[7:11]:
        assert count(pixels, color) > 200
    assert pixels.shape[1] < 1800


# ---- images of other kinds ----------------------------------------------------------------------


def brightness_of_inputs(segmenter):
    """The brightest pixel of the row of input images."""
    return pixels_of(segmenter, "predictions-001.png")[110:290, 60:-60].max(axis=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image / 255,
        lambda image: 1.01 * image / 255,  # after an augmentation
        lambda image: image / 127.5 - 1,
        lambda image: (image / 255).mean(dim=0, keepdim=True),
        lambda image: image.mean(dim=0, keepdim=True),
    ],
    ids=["0 to 1", "to 1.01", "-1 to 1", "grey", "grey, 0 to 255"],
)
def test_images_of_other_ranges_are_not_black(experiment, change):
    data = Changed(4, lambda item: {**item, "image": change(item["image"])})
    segmenter = run_test(experiment, data)
    inside = brightness_of_inputs(segmenter)
    assert (inside > 100).sum() > 1000, "the objects"
    assert (inside < 50).sum() > 10000, "the background"
    boxes = pixels_of(segmenter, "test-batch-001.png")[150:260]
    assert (boxes[..., 0] > boxes[..., 1] + 50).sum() > 20


def test_images_of_0_to_255_are_shown_as_they_are():
    image = torch.tensor([3.0, 0.0, 100.0, 255.0]).reshape(1, 2, 2).expand(3, 2, 2)
    assert torch.equal(backstage.as_bytes(image), image.byte())
    dark = torch.ones(3, 2, 2, dtype=torch.uint8)
    assert torch.equal(backstage.as_bytes(dark), dark), "whole numbers are 0 to 255"


@pytest.mark.parametrize("size", [(16, 48), (48, 16)])
def test_images_that_are_not_square(experiment, size):
    def stretch(item):
        resized = {
            key: nn.functional.interpolate(item[key][None].float(), size)[0].to(item[key].dtype)
            for key in ("image", "mask_tensor")
        }
        return {**item, **resized, "bbox_tensor": 0 * item["bbox_tensor"]}

    segmenter = run_test(experiment, Changed(4, stretch), image_size=size)
    for name in ("predictions-001.png", "test-batch-001.png"):
        height, width, _ = pixels_of(segmenter, name).shape
        assert (height > width) == (size[0] > size[1]), name


def test_an_output_that_is_not_finite_or_huge_leaves_dlstudios_picture_readable(experiment):
    def spoil(masks):
        masks[0] = math.nan
        masks[1, 0] = 1e12
        masks[2, 0] = -1e12
        return masks

    segmenter = run_test(experiment, TinyShapes(4), spoil)
    pixels = pixels_of(segmenter, "test-batch-001.png")
    assert count(pixels, "#FF0000", 60) > 20, "the boxes"
    assert count(pixels, "#323232", 5) > 10000, "the channels"


def test_an_empty_test_set_is_named(experiment, small_net):
    segmenter = experiment()
    loader = torch.utils.data.DataLoader(TinyShapes(0))
    with pytest.raises(ValueError, match="no images to score"):
        segmenter.score(small_net(), loader)


# ---- progress -----------------------------------------------------------------------------------


def test_a_bar_in_a_file_is_a_line_of_its_own(capsys, monkeypatch):
    """Time is simulated: each step takes 3 seconds."""
    import tqdm.std

    clock = iter(range(0, 10**6, 3))
    monkeypatch.setattr(tqdm.std, "time", lambda: float(next(clock)))
    for _ in backstage.progress_bar(range(10), "drawing", unit="image"):
        pass
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("drawing: ") and "of" not in line for line in lines)
    assert "\r" not in printed


def test_short_work_writes_no_bar_to_a_file(capsys):
    assert list(backstage.progress_bar(range(3), "drawing")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_every_long_step_has_a_bar(experiment, small_net, monkeypatch, tmp_path):
    seen = {}
    original = backstage.progress_bar

    def look(items=None, desc=None, **options):
        seen[desc] = options.get("total", len(items) if hasattr(items, "__len__") else None)
        return original(items, desc, **options)

    monkeypatch.setattr(backstage, "progress_bar", look)
    path = tmp_path / "PurdueShapes5MultiObject-6-train.gz"
    Segmentation.PurdueShapes5MultiObjectDataset.generate(path, 6)
    segmenter = experiment(train=12, test=8, dataroot=tmp_path)
    segmenter.PurdueShapes5MultiObjectDataset(segmenter.dl_studio, segmenter, "train", path.name)
    net = small_net()
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net, evaluate_every=1, evaluate_on=0.5
    )
    segmenter.score_baselines()
    assert seen == {
        "drawing PurdueShapes5MultiObject-6-train.gz": 6,
        "reading the archive": path.stat().st_size,
        "writing the cache": 6,
        "looking for the mask values": None,
        "training": 2,
        "mean training mask": 3,
        "scoring": 2,
    }


def test_the_bar_of_a_training_bounded_by_time_counts_its_seconds(
    experiment, small_net, monkeypatch
):
    bars = []
    original = backstage.progress_bar

    def keep(items=None, desc=None, **options):
        bars.append(original(items, desc, **options))
        return bars[-1]

    monkeypatch.setattr(backstage, "progress_bar", keep)
    now = [0.0]
    monkeypatch.setattr(backstage.time, "perf_counter", lambda: now[0])
    net, states = small_net(), []

    def tick(*_):
        states.append(str(bars[-1]))
        now[0] += 4

    net.register_forward_hook(tick)
    experiment().custom_run_code_for_training_for_semantic_segmentation(net, max_seconds=10)
    assert ["0 of 10 s" in states[0], "4 of 10 s" in states[1], "8 of 10 s" in states[2]] == [
        True
    ] * 3
    assert "10 of 10 s" in str(bars[-1])
