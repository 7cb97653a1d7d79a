"""The best scores on COCO: a modern recipe and the homework's three losses, each for the same time.

    python Examples/best_coco_segmentation.py --quick       # 170 seconds on any 2-core computer
    python Examples/best_coco_segmentation.py --coco data/coco --seconds 300    # 22 minutes

Trains four networks for the same time and prints one table and one picture of all of them:
    MAE, Dice, MAE + 100 * Dice    the homework's: strided mUnet of depth 16, SGD at 1e-4
    best                           UNet, BCE + Dice on logits, Muon and AdamW, augmentation

The augmentation changes image and mask together: with torchvision's tv_tensors, a transform knows
which is the mask. --coco is a folder that Datasets/prepare_coco.py wrote; without it a synthetic
set in COCO's format is drawn first. --seconds N is the training time of each network; by default
300, and with --quick a share of the 170 seconds.

The folder of the run holds the best network, ready for predict.py; the folders in it hold the
homework's. Expected mean IoU on the synthetic set: see the README.
"""

import math

import torch
from coco_folder import find_or_draw_coco
from side_by_side import as_batch, generated_or_not, save_side_by_side
from small_recipe import warm_up_then_cosine
from torchvision import tv_tensors
from torchvision.transforms import v2

from SegStudio import SegStudio

CLASSES = ("cake", "dog", "motorcycle")
QUICK_SECONDS = 165

# The homework's settings, as in coco_segmentation.py.
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16

# The settings of the best recipe.
BEST_BATCH_SIZE = 16
BEST_MUON_RATE = 0.03
BEST_ADAMW_RATE = 6e-3
AUGMENTATION = v2.Compose([
    v2.RandomHorizontalFlip(),
    v2.RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.25)),
    v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
])  # fmt: skip


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(10000, None),
        full=(10000, None),
        quick_seconds=QUICK_SECONDS,
        last_file="side_by_side.png",
        extra={
            "--seconds": {
                "type": float,
                "metavar": "N",
                "help": "time of training for each network; default 300, less with --quick",
            },
            "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
            "--image-size": {"type": int, "default": 64, "metavar": "N", "help": "default 64"},
        },
    )
    if flags.seconds is not None and not 0 < flags.seconds < math.inf:
        raise ValueError(f"--seconds is above 0, not {flags.seconds:g}")
    best = make_segmenter(flags)
    homework = {
        "MAE": best.SegmentationLossMAE(),
        "Dice": best.SegmentationLossDice(form="squared"),
        "MAE+100*Dice": best.SegmentationLossComb(dice_scale=100, base="mae"),
    }
    seconds = flags.seconds or flags.training_seconds(len(homework) + 1, reserve=6) or 300
    examples = as_batch([best.dataserver_test[index] for index in one_of_each_class(best)])
    scores = {}
    preds = {}

    for name, criterion in homework.items():
        segmenter = best.part_of_run(name.lower().replace("*", "-"))
        segmenter.dl_studio.batch_size = BATCH_SIZE
        segmenter.load_Coco_dataset(best.dataserver_train, best.dataserver_test)
        segmenter.dl_studio.log(f"\nThe homework's {name}, {seconds:.0f} seconds")
        net = segmenter.mUnet(skip_connections=True, depth=DEPTH, out_channels=1)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            net, criterion=criterion, max_seconds=seconds, log_every=50, resume=flags.resume
        )
        scores[name] = segmenter.run_code_for_testing_semantic_segmentation(net)
        preds[name] = segmenter.binarize(net, segmenter.infer(net, examples["image"])).cpu()

    best.dl_studio.log(f"\nThe best recipe, {seconds:.0f} seconds")
    net = train_best(best, seconds, flags.resume)
    scores["best"] = best.run_code_for_testing_semantic_segmentation(net)
    preds["best"] = best.binarize(net, best.infer(net, examples["image"])).cpu()

    scores.update(best.score_baselines())
    log_table(best.dl_studio, scores, seconds)
    source = generated_or_not(best.dataserver_test)
    heading = f"Test images ({source}), {seconds:.0f} s of training each"
    picture = save_side_by_side(best, examples, preds, "side_by_side.png", heading)
    best.dl_studio.log(f"\nThe picture: {picture}")
    best.dl_studio.log(f"Next: python Examples/predict.py IMAGE --model {best.dl_studio.run_dir}")


def make_segmenter(flags):
    """A SemanticSegmentation with its data."""
    settings = {"dataroot": "./data/"} | flags.settings
    dls = SegStudio(
        image_size=[flags.image_size, flags.image_size],
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        batch_size=BEST_BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
    segmenter.load_coco(find_or_draw_coco(flags.coco, dls), flags.train_images)
    return segmenter


# ---- The best recipe ----------------------------------------------------------------------------


def train_best(segmenter, seconds, resume):
    """Train a UNet for `seconds` seconds; returns it."""
    net = segmenter.UNet(out_channels=1)
    hidden, rest = segmenter.Muon.split(net)
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net,
        criterion=segmenter.SegmentationLossBCEDice(),
        optimizer=[
            segmenter.Muon(hidden, lr=BEST_MUON_RATE),
            torch.optim.AdamW(rest, lr=BEST_ADAMW_RATE),
        ],
        scheduler=warm_up_then_cosine,
        precision="auto",
        channels_last=True,
        augment=augment,
        max_seconds=seconds,
        log_every=50,
        resume=resume,
    )
    return net


def augment(images, masks):
    """Change each image of the batch at random, and its mask in the same way."""
    changed_images = []
    changed_masks = []
    for image, mask in zip(images, masks, strict=True):
        image, mask = AUGMENTATION(tv_tensors.Image(image / 255), tv_tensors.Mask(mask))
        changed_images.append(255 * image.as_subclass(torch.Tensor))
        changed_masks.append(mask.as_subclass(torch.Tensor))
    return torch.stack(changed_images), torch.stack(changed_masks)


# ---- The results --------------------------------------------------------------------------------


def one_of_each_class(segmenter):
    """The numbers of the first two test images of each class."""
    categories = [
        segmenter.dataserver_test[k]["category"] for k in range(len(segmenter.dataserver_test))
    ]
    return [k for k, category in enumerate(categories) if categories[:k].count(category) < 2][:6]


def log_table(dls, scores, seconds):
    dls.log(f"\n{seconds:.0f} seconds of training each\n{'':20}{'mean IoU':>10}{'mean Dice':>11}")
    for name, of_network in scores.items():
        found = of_network.compute()
        dls.log(f"{name:20}{found['mean_iou']:10.3f}{found['mean_dice']:11.3f}")


if __name__ == "__main__":
    SegStudio.run_example(main)
