"""Scores against masks computed by hand, a readable loop, and scikit-image's boundaries."""

import json
import math

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
