"""Why it fails: the cause of each wrong pixel on masks made by hand, and the page."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from conftest import Segmentation, TinyShapes
from PIL import Image

from SegStudio import why_it_fails
from SegStudio.why_it_fails import CAUSES, NAMES, NUMBER, ErrorCauses, causes_of_errors

SIDE = 64  # so d = 2 and a small object has less than 82 pixels


def planes(*boxes, classes=3):
    """Masks (3, 64, 64) with boxes (class, top, left, height, width)."""
    mask = np.zeros((classes, SIDE, SIDE), bool)
    for k, top, left, height, width in boxes:
        mask[k, top : top + height, left : left + width] = True
    return mask


def counted(pred, mask):
    """{cause: pixels} of an image; each wrong pixel has exactly one cause."""
    causes = causes_of_errors(pred, mask)
    assert ((causes > 0) == (pred != mask).any(axis=0)).all()
    return {name: int((causes == NUMBER[name]).sum()) for name in NAMES if NUMBER[name] in causes}


OBJECT = (0, 20, 20, 20, 20)  # 400 pixels, in rows and columns 20 to 39


def test_a_right_image_has_no_cause():
    assert counted(planes(OBJECT), planes(OBJECT)) == {}


def test_an_object_of_another_class_is_confused_as_a_whole():
    """All 400 pixels, also those near the edge."""
    assert counted(planes((1, 20, 20, 20, 20)), planes(OBJECT)) == {"confusion": 400}
    # both classes: 400 pixels of the own class, 300 of another one. The object is found; only
    # the pixels that are not near the edge (2 pixels) count as confused.
    both = planes(OBJECT, (1, 20, 20, 20, 15))
    assert counted(both, planes(OBJECT)) == {"boundary": 300 - 13 * 16, "confusion": 13 * 16}


def test_a_small_object_that_is_not_found():
    small = (0, 10, 10, 9, 9)  # 81 pixels; 2 % of 4096 are 81.9
    assert counted(planes(), planes(small)) == {"small": 81}
    # less than half of it: 4 columns of 9 are found, the other 45 pixels are wrong
    assert counted(planes((0, 10, 10, 9, 4)), planes(small)) == {"small": 45}
    # more than half of it: the last columns are at its edge
    assert counted(planes((0, 10, 10, 9, 7)), planes(small)) == {"boundary": 18}


def test_a_larger_object_that_is_not_found_and_a_part_of_one():
    assert counted(planes(), planes((0, 10, 10, 9, 10))) == {"large": 90}
    # the lower 8 rows of 20 are missed: 2 columns on both sides and 2 rows below are near the
    # edge
    found = counted(planes((0, 20, 20, 12, 20)), planes(OBJECT))
    assert found == {"boundary": 8 * 20 - 6 * 16, "large": 6 * 16}


def test_dotted_masks_have_holes():
    """The homework's network predicts even rows and columns only."""
    pred = planes(OBJECT)
    pred[:, 1::2] = False
    pred[:, :, 1::2] = False
    # Closing fills rows and columns 20 to 38: 361 pixels, 100 of them predicted. The last row and
    # column, 39 pixels, are at the edge.
    assert counted(pred, planes(OBJECT)) == {"holes": 261, "boundary": 39}


def test_a_large_hole_inside_an_object():
    pred = planes(OBJECT)
    pred[0, 26:32, 26:32] = False
    assert counted(pred, planes(OBJECT)) == {"holes": 36}


def test_pixels_where_two_objects_touch():
    mask = planes(OBJECT, (1, 20, 40, 20, 10))
    pred = planes((0, 20, 20, 20, 22), (1, 20, 42, 20, 8))  # two columns too far
    assert counted(pred, mask) == {"occlusion": 40}
    apart = planes(OBJECT, (1, 20, 42, 20, 10))  # two columns of background between them
    assert counted(planes((0, 20, 20, 20, 21), (1, 20, 42, 20, 10)), apart) == {"boundary": 20}


def test_objects_that_overlap_touch():
    """Masks of photos may overlap: the two last columns of the first object are in both."""
    mask = planes(OBJECT, (1, 20, 38, 20, 20))
    pred = planes((0, 20, 20, 20, 18), (1, 20, 38, 20, 20))
    assert counted(pred, mask) == {"occlusion": 40}


def test_the_boundary_reaches_two_pixels_to_both_sides():
    larger = planes((0, 17, 20, 23, 20))  # three rows too many
    assert counted(larger, planes(OBJECT)) == {"boundary": 40, "false": 20}


def test_the_edge_of_the_image_is_no_boundary():
    mask = planes((0, 0, 0, 30, 30))
    pred = mask.copy()
    pred[0, :20, :15] = False  # 300 of 900 pixels
    # d = 2, but rows and columns 0 and 1 are not at an edge of the object
    assert counted(pred, mask) == {"large": 300}


def test_false_alarms():
    assert counted(planes(OBJECT, (2, 50, 50, 5, 5)), planes(OBJECT)) == {"false": 25}


def test_one_channel_and_many_classes():
    mask = planes((0, 20, 20, 20, 20), classes=1)
    assert counted(planes((0, 20, 20, 20, 20), (0, 2, 2, 3, 3), classes=1), mask) == {"false": 9}


# ---- the counts of a test -----------------------------------------------------------------------


def batch_of(*masks, **more):
    masks = torch.from_numpy(np.stack(masks))
    image = masks.any(dim=1, keepdim=True).expand(-1, 3, -1, -1) * 200.0
    return {"image": image, "mask_tensor": masks.byte() * 50, **more}


def preds_of(*preds):
    return torch.from_numpy(np.stack(preds))


def test_shares_and_scores_without_a_cause():
    truth = planes(OBJECT, (1, 2, 2, 8, 8))
    causes = ErrorCauses("abc")
    # image 0: the small object is missed (64 pixels); image 1: 25 pixels of false alarm
    causes.add(batch_of(truth, truth), preds_of(planes(OBJECT), truth | planes((2, 50, 50, 5, 5))))
    assert causes.shares() == {"small": 64 / 89, "false": 25 / 89}
    assert list(causes.shares()) == ["false", "small"], "first what gains most"
    assert causes.mean_iou() == pytest.approx((1 + 0.5 + 0) / 3)
    assert causes.mean_iou(without="small") == pytest.approx((1 + 1 + 0) / 3)
    assert causes.mean_iou(without="false") == pytest.approx((1 + 0.5) / 2), "class c is nowhere"
    assert causes.first_sentence() == (
        "Fix first: false alarms. 28% of all wrong pixels lie on the background, where there is no "
        "object. Without them the mean IoU would be 0.750 instead of 0.500."
    )
    assert causes.details("small") == "The class b has the most of them: 100%."


def test_the_mean_iou_is_that_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 5, 16, 16, generator=generator) < 0.3
    pred = torch.rand(6, 5, 16, 16, generator=generator) < 0.3
    scores, causes = Segmentation.SegmentationScores("abcde"), ErrorCauses("abcde")
    scores.update(pred, mask)
    causes.add({"image": torch.zeros(6, 3, 16, 16), "mask_tensor": mask.byte()}, pred)
    assert causes.mean_iou() == pytest.approx(scores.compute()["mean_iou"])
    category = torch.tensor([0, 1, 1, 2, 0, 2])
    scores, causes = Segmentation.SegmentationScores("abc"), ErrorCauses("abc")
    scores.update(pred[:, :1], mask[:, :1], category)
    batch = {"image": torch.zeros(6, 3, 16, 16), "mask_tensor": mask[:, :1].byte()}
    causes.add({**batch, "category": category}, pred[:, :1])
    assert causes.mean_iou() == pytest.approx(scores.compute()["mean_iou"])
    assert causes.mean_iou("boundary") >= causes.mean_iou()


def test_the_most_frequent_confusion_is_named():
    causes = ErrorCauses(("disk", "star", "oval"))
    truth = planes(OBJECT, (2, 50, 2, 10, 10))
    taken = planes((1, 20, 20, 20, 20), (0, 50, 2, 10, 10))  # disk for star, oval for disk
    causes.add(batch_of(truth), preds_of(taken))
    assert causes.details("confusion") == (
        "Most often disk is taken for star: 80% of these pixels."
    )


def test_the_four_worst_pictures_of_a_cause_are_kept():
    causes = ErrorCauses("abc")
    sizes = (3, 9, 5, 7, 4, 8)
    preds = [planes(OBJECT, (2, 50, 50, size, size)) for size in sizes]
    causes.add(batch_of(*[planes(OBJECT)] * 4), preds_of(*preds[:4]))
    causes.add(batch_of(*[planes(OBJECT)] * 2), preds_of(*preds[4:]))
    kept = sorted((entry[0], -entry[1]) for entry in causes.worst[NAMES.index("false")])
    assert kept == [(25, 2), (49, 3), (64, 5), (81, 1)]
    assert causes.images == 6
    assert causes.affected[NAMES.index("false")] == 6


def test_nothing_wrong_and_nothing_tested():
    causes = ErrorCauses("abc")
    assert causes.first_sentence() == "There are no test images."
    causes.add(batch_of(planes(OBJECT)), preds_of(planes(OBJECT)))
    assert causes.first_sentence() == "Nothing to fix: every pixel of the 1 test images is right."


# ---- the page -----------------------------------------------------------------------------------


class Known(torch.nn.Module):
    """A network whose output is known for each image: what `answer` makes of its mask."""

    def __init__(self, data, answer):
        super().__init__()
        self.answers = torch.stack([answer(item["mask_tensor"].float()) for item in data])
        self.images = torch.stack([item["image"] for item in data])

    def forward(self, x):
        same = (x[:, None] == self.images[None]).flatten(2).all(dim=2)  # (N, number of images)
        return self.answers[same.float().argmax(dim=1)]


def test_page(experiment, answer, data=None, **settings):
    """The page of a test of such a network, as text."""
    data = data or TinyShapes(8)
    segmenter = experiment(train=data, test=data, **settings)
    net = Known([data[k] for k in range(len(data))], answer)
    segmenter.save_model(net)
    segmenter.run_code_for_testing_semantic_segmentation(net)
    return segmenter, (segmenter.dl_studio.run_dir / "why-it-fails.html").read_text()


test_page.__test__ = False


def as_another_class(mask):
    return 250.0 * (mask.roll(1, dims=0) > 0)


def pictures_of(page):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]


def test_each_test_writes_the_page(experiment):
    segmenter, page = test_page(experiment, as_another_class)
    body = page.partition("<body>")[2]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).strip()
    assert text.startswith("Why it fails: run Fix first: class confusion. 100%")
    assert "http" not in page and "<script" not in page, "it needs no network"
    log = (segmenter.dl_studio.run_dir / "log.txt").read_text()
    assert (
        "Why it fails: Fix first: class confusion. 100% of all wrong pixels lie on obj"
        in log
    )
    assert "why-it-fails.html" in log
    *pictures, worst = pictures_of(page)
    assert len(pictures) == 4
    assert worst.size == Image.open(segmenter.dl_studio.run_dir / "worst.png").size


def test_a_picture_shows_image_truth_prediction_and_errors(experiment):
    _, page = test_page(experiment, lambda mask: 0 * mask, TinyShapes(1))
    strip, _ = pictures_of(page)
    pixels = np.asarray(strip)  # 4 panels of 32x32 with gaps of 2
    assert pixels.shape == (32, 4 * 32 + 3 * 2, 3)
    image, truth, pred, errors = (pixels[:, 34 * k : 34 * k + 32] for k in range(4))
    item = TinyShapes(1)[0]
    mask = (item["mask_tensor"] > 0).any(dim=0).numpy()
    assert (image == item["image"].byte().permute(1, 2, 0).numpy()).all()
    marked = (errors == why_it_fails.ERROR).all(axis=-1)
    assert (marked == mask).all()
    assert (truth[mask] != pred[mask]).any(axis=1).all()
    assert (truth[~mask] == pred[~mask]).all()


def test_shares_on_the_page_add_up_to_all(experiment):
    def answer(mask):
        mask = mask.clone()
        mask[:, 1::2] = 0
        mask[0, 28:, 28:] = 50
        return mask

    _, page = test_page(experiment, answer)
    widths = [float(width) for width in re.findall(r'style="width: ([\d.]+)%"', page)]
    assert len(widths) > 1
    assert sum(widths) == pytest.approx(100, abs=0.3)
    table = page.partition("<tbody>")[2].partition("</tbody>")[0]
    without = [float(cell) for cell in re.findall(r"<td>(\d\.\d+)</td>", table)]
    assert len(without) == len(widths)
    assert without == sorted(without, reverse=True), "first what gains most"


def test_names_are_text_on_the_page(experiment):
    data = TinyShapes(4)
    data.class_names = ("<b>rectangle", "b", "c", "d", "e")
    _, page = test_page(experiment, as_another_class, data)
    assert "&lt;b&gt;rectangle" in page
    assert "<b>rectangle" not in page


def test_a_perfect_network_has_a_page(experiment):
    _, page = test_page(experiment, lambda mask: mask)
    assert "Nothing to fix" in page


def test_large_pictures_are_made_smaller(experiment):
    _, page = test_page(
        experiment, lambda mask: 0 * mask, TinyShapes(2, size=200), image_size=[200, 200]
    )
    assert pictures_of(page)[0].size == (4 * 128 + 6, 128)


def test_generated_images_are_called_so(experiment):
    data = TinyShapes(2)
    data.generated = True
    _, page = test_page(experiment, lambda mask: 0 * mask, data)
    assert "2 generated test images are wrong" in re.sub(r"\s+", " ", page)


def test_the_rules_on_the_page_are_those_of_the_file():
    found = why_it_fails.rules()
    assert [number for number, _, _ in found] == list("123456789")
    assert {title for _, title, _ in found} == {title for title, _, _ in CAUSES.values()}
    assert found[5][2].endswith("inside or outside.")
