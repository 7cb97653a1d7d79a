"""What the COCO data allows: a modern recipe beside the homework's three losses, same time each.

Shows what dense upsampling, BCE+Dice on logits, AdamW with a schedule, and augmentation that
moves image and mask together are worth: four networks, one table.

    python Examples/best_coco_segmentation.py --quick           # 4 x 30 s of training on the CPU
    python Examples/best_coco_segmentation.py --seconds 300 --coco data/coco-64

The folder of the run holds the best recipe's network, ready for predict.py; the folders in it
hold the homework's. Expected scores: see the README.
"""

import functools
import math

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from SegStudio import SegStudio

CLASSES = ("cake", "dog", "motorcycle")
HOMEWORK = {  # SGD and the strided network, as in coco_segmentation.py
    "MAE": {"loss_type": "MAE"},
    "Dice": {"loss_type": "Dice", "dice_form": "squared"},
    "MAE+100*Dice": {"loss_type": "MAE+Dice", "dice_scale": 100, "dice_form": "squared"},
}
WIDTH, DEPTH, BATCH_SIZE = 32, 4, 16  # small and fast: a minute should see many images
AUGMENTATION = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.25)),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
    ]
)


def augment(images, masks):
    """Another draw for each image of the batch; tv_tensors make its mask follow."""
    pairs = [
        AUGMENTATION(tv_tensors.Image(image / 255), tv_tensors.Mask(mask))
        for image, mask in zip(images, masks, strict=True)
    ]
    images, masks = zip(*pairs, strict=True)
    return torch.stack(images).as_subclass(torch.Tensor) * 255, torch.stack(masks).as_subclass(
        torch.Tensor
    )


def schedule(done):
    """Warm up for a tenth of the time, then let the learning rate fall to 0 along a cosine."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9)


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(10000, None),
        full=(10000, None),
        extra={
            "--seconds": {"type": float, "metavar": "N", "help": "for each; default 300, quick 30"},
            "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
            "--image-size": {"type": int, "default": 64, "metavar": "N"},
        },
    )
    seconds = flags.seconds or (30 if flags.quick else 300)
    size = [flags.image_size, flags.image_size]
    settings = {"dataroot": "./data/", "image_size": size, "classes": CLASSES}
    settings = settings | {"use_gpu": True} | flags.settings
    best = SegStudio(**settings | {"batch_size": BATCH_SIZE})
    results = {}
    for name, loss in (HOMEWORK | {"best": {"loss_type": "BCEDice"}}).items():
        dls, network, recipe = best, {"upsampling": "dense", "width": WIDTH}, {}
        if name in HOMEWORK:
            folder = f"{best.run_dir.name}/{name.lower().replace('*', '-')}"
            dls = SegStudio(**settings | {"run_name": folder})
            network = {"depth": 16}
        else:
            network |= {"depth": DEPTH, "input_scale": 1 / 255}
            recipe = {"scheduler": schedule, "augment": augment, "channels_last": True}
            recipe |= {"optimizer": functools.partial(torch.optim.AdamW, lr=4e-3)}
            recipe |= {"precision": "auto"}
        segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
        segmenter.load_coco(flags.coco, flags.train_images)
        model = segmenter.mUnet(out_channels=1, **network)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            model, max_seconds=seconds, report_every=50, **loss, **recipe
        )
        results[name] = segmenter.run_code_for_testing_semantic_segmentation(model)
    results |= segmenter.score_trivial_baselines()
    best.log(f"\n{seconds:g} seconds of training each\n{'':20}{'mean IoU':>10}{'mean Dice':>11}")
    for name, scores in results.items():
        found = scores.compute()
        best.log(f"{name:20}{found['mean_iou']:10.3f}{found['mean_dice']:11.3f}")
    best.log(f"\nNext: python Examples/predict.py IMAGE --model {best.run_dir}")


if __name__ == "__main__":
    SegStudio.run_example(main)
