"""The homework's bonus: one object per COCO image; one output channel; MAE, Dice or their sum.

    python Examples/coco_segmentation.py --quick                # 150 seconds on any 2-core computer
    python Examples/coco_segmentation.py --loss combined --coco data/coco

Shows binary masks on photos: sample training images, the loss curve, and image, truth and
prediction for each class. Compare the scores with those of two baselines that ignore the image.

--loss is mae, dice, or combined: MAE + 100 * Dice. --coco is a folder that
Datasets/prepare_coco.py wrote. Without it a synthetic set in COCO's format is drawn first. The
network, the optimizer and the learning rate are the homework's, also with --quick, so expect
little: an IoU below 0.2 with --quick, because the upsampling is strided and the time is short.
best_coco_segmentation.py shows the best scores on these images.
"""

import math

from coco_folder import find_or_draw_coco
from side_by_side import generated_or_not
from torch.utils.data import default_collate

from SegStudio import SegStudio

CLASSES = ("cake", "dog", "motorcycle")
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
QUICK_SECONDS = 145


def main():
    flags = read_flags()
    settings = dict(flags.settings)
    settings.setdefault("dataroot", "./data/")
    dls = SegStudio(
        image_size=[flags.image_size, flags.image_size],
        momentum=MOMENTUM,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **settings,
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
    segmenter.load_coco(find_or_draw_coco(flags.coco, dls), flags.train_images)
    save_samples(segmenter)
    baselines = segmenter.score_baselines()

    model = segmenter.mUnet(skip_connections=True, depth=DEPTH, out_channels=1)
    losses = {
        "mae": segmenter.SegmentationLossMAE(),
        "dice": segmenter.SegmentationLossDice(form="squared"),
        "combined": segmenter.SegmentationLossComb(dice_scale=100, base="mae"),
    }
    max_seconds = flags.training_seconds(reserve=15)
    if flags.seconds is not None:
        max_seconds = flags.seconds
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        criterion=losses[flags.loss],
        max_seconds=max_seconds,
        log_every=25 if flags.quick else 100,
        precision=flags.precision,
        channels_last=flags.precision == "bf16",
        resume=flags.resume,
    )
    save_panels(segmenter, model)
    segmenter.run_code_for_testing_semantic_segmentation(model, baselines=baselines)
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/best_coco_segmentation.py --quick  (the best scores here)")


def read_flags():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(480, 1),
        quick_seconds=QUICK_SECONDS,
        extra={
            "--loss": {"choices": ("mae", "dice", "combined"), "default": "mae"},
            "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
            "--image-size": {"type": int, "default": 64, "metavar": "N", "help": "default 64"},
            "--seconds": {"type": float, "metavar": "N", "help": "train for this time"},
            "--precision": {"choices": ("fp32", "bf16"), "default": "fp32"},
        },
    )
    if flags.seconds is not None and not 0 < flags.seconds < math.inf:
        raise ValueError(f"--seconds is above 0, not {flags.seconds:g}")
    return flags


# ---- Figures ------------------------------------------------------------------------------------


def items_of_each_class(dataset, count):
    """{class name: the first `count` items of that class}."""
    items = {name: [] for name in dataset.class_names}
    for index in range(len(dataset)):
        item = dataset[index]
        of_class = items[dataset.class_names[item["category"]]]
        if len(of_class) < count:
            of_class.append(item)
    return items


def save_samples(segmenter):
    """samples.png: five training images of each class, with their masks."""
    dataset = segmenter.dataserver_train
    count = 5
    rows = len(dataset.class_names)
    figure = segmenter.dl_studio.new_figure(
        figsize=(1.9 * count + 0.6, 1.9 * rows + 0.6), dpi=110, layout="constrained"
    )
    grid = figure.subplots(rows, count, squeeze=False)
    for panels, (name, items) in zip(
        grid, items_of_each_class(dataset, count).items(), strict=True
    ):
        panels[0].set_ylabel(name, fontsize=14)
        for axes in panels:
            axes.set_xticks([])
            axes.set_yticks([])
        for axes, item in zip(panels, items, strict=False):
            picture = segmenter.overlay(item["image"], item["mask_tensor"] > 0, alpha=0.5)
            axes.imshow(picture.permute(1, 2, 0).numpy())
    source = generated_or_not(dataset)
    figure.suptitle(f"Training images with their masks ({source})", fontsize=15)
    segmenter.dl_studio.save_figure(figure, "samples.png")


def save_panels(segmenter, model):
    """test-panel-CLASS.png: image, truth and prediction of four test images of each class."""
    dataset = segmenter.dataserver_test
    for name, items in items_of_each_class(dataset, 4).items():
        if not items:
            continue
        batch = default_collate(items)
        preds = segmenter.binarize(model, segmenter.infer(model, batch["image"])).cpu()
        segmenter.save_panel_figure(
            batch,
            preds,
            f"test-panel-{name}.png",
            heading=f"Test images: {name} ({generated_or_not(dataset)})",
        )


if __name__ == "__main__":
    SegStudio.run_example(main)
