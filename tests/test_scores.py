"""Scores against masks computed by hand, a readable loop, and scikit-image's boundaries."""

import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.morphology import erosion

from SegStudio import SegStudio

Scores = SegStudio.SemanticSegmentation.SegmentationScores


def blobs(n=4, c=3, h=12, w=15, seed=0):
    """Smooth random masks: thresholded noise."""
    noise = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2) > 0.12


def plane(text):
    """A mask from a picture: lines of . and #."""
    rows = [[letter == "#" for letter in line] for line in text.split()]
    return torch.tensor(rows)[None, None]


# ---- the readable loop --------------------------------------------------------------------------


def reach(shape):
    """Boundary IoU's distance: 2 % of the diagonal, at least one pixel."""
    return max(1, round(0.02 * math.hypot(*shape)))


def loop_edge(mask):
    """Set pixels with an unset pixel, or the outside, at most `reach` rows and columns away."""
    edge, d = np.zeros_like(mask), reach(mask.shape)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            for v in range(y - d, y + d + 1):
                for u in range(x - d, x + d + 1):
                    inside = 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]
                    if mask[y, x] and not (inside and mask[v, u]):
                        edge[y, x] = True
    return edge


def ratio(part, whole):
    return part / whole if whole else None


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def loop_scores(pred, mask):
    """Scores of each class, their mean, and the per-image mean IoU, as the docstring says."""
    pred, mask = pred.numpy(), mask.numpy()
    classes, image_ious = [], []
    for c in range(pred.shape[1]):
        i = p = m = agree = pixels = edge_i = edge_union = 0
        for n in range(pred.shape[0]):
            a, b = pred[n, c], mask[n, c]
            i, p, m = i + (a & b).sum(), p + a.sum(), m + b.sum()
            agree, pixels = agree + (a == b).sum(), pixels + a.size
            a_edge, b_edge = loop_edge(a), loop_edge(b)
            edge_i += (a_edge & b_edge).sum()
            edge_union += (a_edge | b_edge).sum()
            image_ious.append(ratio((a & b).sum(), (a | b).sum()))
        boundary = ratio(edge_i, edge_union)
        classes.append((ratio(i, p + m - i), ratio(2 * i, p + m), agree / pixels, boundary))
    return classes, [mean(column) for column in zip(*classes, strict=True)], mean(image_ious)


def assert_equals_loop(scores, pred, mask, names):
    found = scores.compute()
    classes, means, per_image = loop_scores(pred, mask)
    for name, expected in zip(names, classes, strict=True):
        row = [found["classes"][name][metric] for metric in Scores.metrics]
        assert row == pytest.approx(list(expected)), name
    keys = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")
    assert [found[key] for key in keys] == pytest.approx(means)
    assert found["per_image_mean_iou"] == pytest.approx(per_image)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(seed):
    pred, mask = blobs(seed=seed), blobs(seed=seed + 10)
    pred[:, 2] = mask[:, 2]  # one class is perfect
    scores = Scores(("a", "b", "c"))
    scores.update(pred, mask)
    assert_equals_loop(scores, pred, mask, "abc")


def test_batches_of_unequal_sizes_add_up_to_the_whole():
    pred, mask = blobs(n=7), blobs(n=7, seed=5)
    whole, parts = Scores("abc"), Scores("abc")
    ious = whole.update(pred, mask)
    pieces = [parts.update(pred[a:b], mask[a:b]) for a, b in ((0, 4), (4, 5), (5, 7))]
    assert parts.compute() == whole.compute()
    assert torch.equal(torch.cat(pieces), ious)
    assert whole.compute()["images"] == 7


def test_sums_of_scores_are_scores_of_both():
    pred, mask = blobs(n=6), blobs(n=6, seed=5)
    whole, first, second = Scores("abc"), Scores("abc"), Scores("abc")
    whole.update(pred, mask)
    first.update(pred[:2], mask[:2])
    second.update(pred[2:], mask[2:])
    total = first + second
    assert torch.equal(total.counts[:, :8], whole.counts[:, :8])
    torch.testing.assert_close(total.confusion, whole.confusion)
    torch.testing.assert_close(total.counts, whole.counts)  # sums of fractions may round
    assert total.class_names == ("a", "b", "c")
    assert first.images == 2, "adding changes neither"


@pytest.mark.parametrize("size", [(12, 15), (64, 64), (90, 40)])
@pytest.mark.parametrize("seed", range(2))
def test_boundaries_are_the_mask_without_scikit_images_erosion(seed, size):
    mask = blobs(2, 2, *size, seed=seed)
    mask[0, 0] = True  # touches every side of the picture
    mask[0, 1] = False
    ours, d = Scores.boundary(mask), reach(size)
    for n in range(2):
        for c in range(2):
            padded = np.pad(mask[n, c].numpy(), d)  # outside the image there is no object
            eroded = erosion(padded, np.ones((2 * d + 1, 2 * d + 1)))
            assert (ours[n, c].numpy() == (padded & ~eroded)[d:-d, d:-d]).all()


def test_boundary_iou_does_not_reward_dotted_masks():
    """The truth's own lattice, one pixel in four: boundary F1 gave it 0.94."""
    rows, columns = np.mgrid[:64, :64]
    truth = torch.from_numpy((rows - 32) ** 2 + (columns - 32) ** 2 <= 16)[None, None]
    dotted = torch.zeros_like(truth)
    dotted[..., ::2, ::2] = truth[..., ::2, ::2]
    found = score(dotted, truth)
    assert found["iou"] < 0.3
    assert found["boundary_iou"] < 0.3


# ---- by hand ------------------------------------------------------------------------------------

TRUTH = plane("""
    ......
    .###..
    .###..
    .###..
    ......
""")
SHIFTED = plane("""
    ......
    ..###.
    ..###.
    ..###.
    ......
""")


def score(pred, mask):
    scores = Scores(("it",))
    scores.update(pred, mask)
    return scores.compute()["classes"]["it"]


def test_by_hand_a_square_moved_by_one_pixel():
    found = score(SHIFTED, TRUTH)
    assert found["iou"] == 6 / (9 + 9 - 6)
    assert found["dice"] == 2 * 6 / 18
    assert found["pixel_accuracy"] == (30 - 6) / 30
    # The boundary regions are the squares without their centres: two rings of 8, of which the
    # rows above and below and the two shared middle columns overlap in 4 pixels.
    assert found["boundary_iou"] == 4 / (8 + 8 - 4)


def test_a_perfect_prediction():
    found = score(TRUTH, TRUTH)
    assert set(found.values()) == {1.0}


def test_nothing_predicted():
    found = score(torch.zeros_like(TRUTH), TRUTH)
    assert (found["iou"], found["dice"], found["boundary_iou"]) == (0, 0, 0)
    assert found["pixel_accuracy"] == 21 / 30, "the picture is mostly background"


def test_a_class_that_neither_has_is_left_out_of_the_mean():
    empty = torch.zeros_like(TRUTH)
    scores = Scores(("seen", "absent"))
    ious = scores.update(torch.cat((SHIFTED, empty), 1), torch.cat((TRUTH, empty), 1))
    found = scores.compute()
    assert found["classes"]["absent"] == {
        "iou": None, "dice": None, "pixel_accuracy": 1.0, "boundary_iou": None
    }  # fmt: skip
    assert found["mean_iou"] == found["classes"]["seen"]["iou"] == 0.5
    accuracies = [found["classes"][name]["pixel_accuracy"] for name in ("seen", "absent")]
    assert found["pixel_accuracy"] == sum(accuracies) / 2, "here the absent class counts"
    assert found["per_image_mean_iou"] == 0.5
    assert ious.tolist() == [0.5]


def test_a_class_that_only_the_prediction_has_counts_as_zero():
    empty = torch.zeros_like(TRUTH)
    scores = Scores(("right", "false"))
    scores.update(torch.cat((TRUTH, TRUTH), 1), torch.cat((TRUTH, empty), 1))
    found = scores.compute()
    assert found["mean_iou"] == found["per_image_mean_iou"] == 0.5


def test_images_without_any_class_have_no_score():
    empty = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    scores = Scores(("it",))
    assert all(math.isnan(value) for value in scores.update(empty, empty).tolist())
    found = scores.compute()
    assert found["mean_iou"] is None
    assert found["per_image_mean_iou"] is None
    assert json.loads(json.dumps(found)) == found
    assert "-" in str(scores)


def test_mean_iou_and_per_image_mean_iou_differ():
    """A small object that is missed weighs little in the counts and a half in the images."""
    small = plane("""
        ......
        .#....
        ......
        ......
        ......
    """)
    scores = Scores(("it",))
    scores.update(
        torch.cat((TRUTH, torch.zeros_like(small))), torch.cat((TRUTH, small))
    )  # fmt: skip
    found = scores.compute()
    assert found["mean_iou"] == 9 / 10
    assert found["per_image_mean_iou"] == 0.5


# ---- one channel, several classes ---------------------------------------------------------------


def test_with_a_category_each_image_counts_for_its_class():
    pred, mask = blobs(n=6, c=1), blobs(n=6, c=1, seed=3)
    category = torch.tensor([0, 2, 0, 0, 2, 2])
    scores = Scores(("cake", "dog", "train"))
    scores.update(pred[:4], mask[:4], category[:4])
    scores.update(pred[4:], mask[4:], category[4:])
    found = scores.compute()
    for k, name in ((0, "cake"), (2, "train")):
        alone = Scores((name,))
        alone.update(pred[category == k], mask[category == k])
        assert found["classes"][name] == alone.compute()["classes"][name]
    assert found["classes"]["dog"]["iou"] is None
    pair = [found["classes"][name]["iou"] for name in ("cake", "train")]
    assert found["mean_iou"] == pytest.approx(sum(pair) / 2)
    assert found["images"] == 6


# ---- torchmetrics -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_equals_torchmetrics(seed):
    """Its multilabel scores of whole sets, and its segmentation scores of single images."""
    classification = pytest.importorskip("torchmetrics.classification")
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    pred, mask = blobs(n=5, seed=seed), blobs(n=5, seed=seed + 10)
    pred[1, 2] = mask[1, 2] = False  # a pair that has no IoU
    scores = Scores("abc")
    ious = scores.update(pred, mask)
    found = scores.compute()
    for metric, theirs in (
        ("iou", classification.MultilabelJaccardIndex),
        ("dice", classification.MultilabelF1Score),
        ("pixel_accuracy", classification.MultilabelAccuracy),
    ):
        expected = theirs(3, average="none")(pred.int(), mask.int()).tolist()
        assert [found["classes"][name][metric] for name in "abc"] == pytest.approx(expected), metric
    dice = segmentation.DiceScore(
        3, include_background=True, average="none", aggregation_level="global"
    )
    expected = dice(pred.int(), mask.int()).tolist()
    assert [found["classes"][name]["dice"] for name in "abc"] == pytest.approx(expected)
    of_images = torch.stack([
        segmentation.MeanIoU(3, include_background=True)(p[None].int(), m[None].int())
        for p, m in zip(pred, mask, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(ious.float(), of_images)


def test_the_page_shows_the_comparison_with_torchmetrics():
    pytest.importorskip("torchmetrics")
    doc = Path(__file__).resolve().parents[1] / "doc"
    script = runpy.run_path(str(doc / "scripts" / "scores_torchmetrics.py"))
    shown = (doc / "scores.md").read_text(encoding="utf-8")
    for line in script["lines"]():
        assert line.strip() in shown
        numbers = re.findall(r"\d\.\d{6}", line)
        assert numbers[::2] == numbers[1::2], "ours and theirs"


# ---- the confusion matrix -----------------------------------------------------------------------


def loop_confusion(pred, mask):
    """The rule of the docstring, pixel by pixel: {(true, predicted): pixels}, 0 is background."""
    n, c, height, width = pred.shape
    counts = np.zeros((c + 1, c + 1))
    for image in range(n):
        for y in range(height):
            for x in range(width):
                true = {k for k in range(c) if mask[image, k, y, x]}
                predicted = {k for k in range(c) if pred[image, k, y, x]}
                for t in true or {None}:
                    answers = predicted - (true - {t})
                    row = 0 if t is None else t + 1
                    for answer in answers:
                        counts[row, answer + 1] += 1 / len(answers)
                    if not answers:
                        counts[row, 0] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_confusion_equals_the_loop(seed):
    pred, mask = blobs(seed=seed), blobs(seed=seed + 10)  # classes overlap in both
    scores = Scores("abc")
    scores.update(pred[:3], mask[:3])
    scores.update(pred[3:], mask[3:])
    expected = loop_confusion(pred, mask)
    np.testing.assert_allclose(scores.confusion.numpy(), expected, rtol=1e-5)
    shares = scores.compute()["confusion"]
    assert list(shares) == ["background", "a", "b", "c"]
    for row, name in zip(expected, shares, strict=True):
        assert list(shares[name]) == ["background", "a", "b", "c"]
        assert list(shares[name].values()) == pytest.approx((row / row.sum()).tolist(), rel=1e-5)


def test_confusion_by_hand():
    """A star is taken for a disk, a part of it for both; a disk is missed; nothing is invented."""
    mask = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    pred = mask.clone()
    mask[0, 1, 0] = True  # four pixels of a star
    pred[0, 0, 0, :3] = True  # three of them: disk
    pred[0, 1, 0, 2] = True  # one of these also: star
    mask[0, 0, 1, 0] = True  # one pixel of a disk, not predicted
    scores = Scores(("disk", "star"))
    scores.update(pred, mask)
    assert scores.compute()["confusion"] == {
        "background": {"background": 1, "disk": 0, "star": 0},
        "disk": {"background": 1, "disk": 0, "star": 0},
        "star": {"background": 1 / 4, "disk": 2.5 / 4, "star": 0.5 / 4},
    }


def test_confusion_counts_overlapping_masks_that_are_right_as_right():
    both = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    scores = Scores(("dog", "collar"))
    scores.update(both, both)
    shares = scores.compute()["confusion"]
    assert shares["dog"]["dog"] == shares["collar"]["collar"] == 1
    assert "background" not in shares, "no pixel is background"


def test_confusion_of_one_channel_says_what_was_found_of_each_class():
    mask = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    pred = mask.clone()
    mask[0, :, 0], pred[1, :, :, 0] = False, False
    scores = Scores(("cake", "dog", "train"))
    scores.update(pred, mask, torch.tensor([0, 2]))
    expected = {
        "background": {"background": 0, "object": 1},
        "cake": {"background": 0, "object": 1},
        "train": {"background": 0.5, "object": 0.5},
    }
    assert scores.compute()["confusion"] == expected
    assert (scores + Scores(("cake", "dog", "train"))).compute()["confusion"] == expected


def test_a_class_may_be_called_background():
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[:, 0, 0], mask[:, 1, 1] = True, True
    scores = Scores(("background", "disk"))
    scores.update(mask, mask)
    assert scores.compute()["confusion"] == {
        "background": {"no class": 0, "background": 1, "disk": 0},
        "disk": {"no class": 0, "background": 0, "disk": 1},
    }


# ---- mistakes and the table ---------------------------------------------------------------------


def test_shapes_that_do_not_fit():
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(2, 3, 4, 5\)"):
        Scores("abc").update(a, b)
    with pytest.raises(ValueError, match=r"one shape \(N, C, H, W\)"):
        Scores("abc").update(a[0], a[0])
    with pytest.raises(ValueError, match="3 channels cannot be scored as the 2 classes a, b"):
        Scores("ab").update(a, a)


def test_table_shows_every_class_and_the_mean_before_and_now():
    before, now = Scores(("disk", "star")), Scores(("disk", "star"))
    pred, mask = torch.cat((SHIFTED, TRUTH), 1), torch.cat((TRUTH, TRUTH), 1)
    before.update(torch.zeros_like(pred), mask)
    now.update(pred, mask)
    lines = str(now).splitlines()
    assert lines[0].split() == ["IoU", "Dice", "pixel", "accuracy", "boundary", "IoU"]
    assert lines[1].split() == ["disk", "0.500", "0.667", "0.800", "0.333"]
    assert lines[2].split() == ["star"] + ["1.000"] * 4
    assert lines[3].split() == ["mean", "0.750", "0.833", "0.900", "0.667"]
    assert lines[4].startswith("mean IoU of single images 0.750, over 1 images")
    line = now.table(before).splitlines()[1]
    assert line.split()[:4] == ["disk", "0.000", "->", "0.500"]


def test_the_lines_under_the_table_explain_the_scores():
    """What predicting nothing would have is counted, so that 0.97 impresses nobody."""
    scores = Scores(("it", "absent"))
    empty = torch.zeros_like(TRUTH)
    scores.update(torch.cat((SHIFTED, empty), 1), torch.cat((TRUTH, empty), 1))
    nothing = Scores(("it", "absent"))
    nothing.update(torch.cat((empty, empty), 1), torch.cat((TRUTH, empty), 1))
    lines = scores.explanation().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "IoU", "Dice", "Pixel accuracy", "Boundary IoU"
    ]  # fmt: skip
    assert f"Predicting nothing has {nothing.compute()['pixel_accuracy']:.3f} here" in lines[2]
    assert all(len(line) <= 100 for line in lines)


def test_the_table_keeps_its_columns_with_long_names():
    names = ("it", "a class with a name that is long")
    scores = Scores(names)
    scores.update(torch.cat((SHIFTED, TRUTH), 1), torch.cat((TRUTH, TRUTH), 1))
    lines = str(scores).splitlines()[:-1]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith(f"{names[1]} ")
