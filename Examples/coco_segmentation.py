"""The homework's bonus: one object per COCO image, one output channel, MAE, Dice or their sum.

Shows binary masks on natural images: sample training images, the loss curve, and image, truth
and prediction for each class, with scores beside two answers that never look at the image.

    python Examples/coco_segmentation.py --loss mae --quick     # 2 to 3 minutes on a 2-core CPU
    python Examples/coco_segmentation.py --loss combined --coco data/coco-64

--coco is a folder that Datasets/prepare_coco.py wrote. Without it a synthetic set in COCO's format
is drawn first, and said to be synthetic. Expected scores: see the README.
"""

from torch.utils.data import default_collate

from SegStudio import SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
CLASSES = ("cake", "dog", "motorcycle")
LOSSES = {"mae": ("MAE", 1), "dice": ("Dice", 1), "combined": ("MAE+Dice", 100)}


def save_samples(segmenter, dataset, name, count):
    """One row for each class: `count` training images with their masks."""
    figure = segmenter.dl_studio.new_figure(
        figsize=(1.9 * count + 0.6, 1.9 * len(dataset.class_names) + 0.6), layout="constrained"
    )
    grid = figure.subplots(len(dataset.class_names), count, squeeze=False)
    for row, (index, items) in enumerate(pick_of_each_class(dataset, count).items()):
        for axes, item in zip(grid[row], items, strict=False):
            picture = segmenter.overlay(item["image"], item["mask_tensor"] > 0)
            axes.imshow(picture.permute(1, 2, 0))
        for axes in grid[row]:
            axes.set(xticks=[], yticks=[])
        grid[row][0].set_ylabel(dataset.class_names[index])
    figure.suptitle("Training images with their masks")
    segmenter.dl_studio.save_figure(figure, name)


def pick_of_each_class(dataset, count):
    """{class index: the first `count` items of that class}."""
    picked = {index: [] for index in range(len(dataset.class_names))}
    for number in range(len(dataset)):
        item = dataset[number]
        if len(picked[int(item["category"])]) < count:
            picked[int(item["category"])].append(item)
    return picked


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(300, 2),
        extra={
            "--loss": {"choices": LOSSES, "default": "mae"},
            "--coco": {"metavar": "DIR", "help": "a folder that prepare_coco.py wrote"},
            "--resume": {"action": "store_true", "help": "go on with the run of --run-name"},
            "--image-size": {"type": int, "default": 64, "metavar": "N"},
        },
    )
    dls = SegStudio(
        image_size=[flags.image_size, flags.image_size],
        momentum=MOMENTUM,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **({"dataroot": "./data/"} | flags.settings),
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=1)
    segmenter.load_coco(flags.coco, flags.train_images)
    save_samples(segmenter, segmenter.dataserver_train, "samples.png", 5)
    baselines = segmenter.score_trivial_baselines()

    model = segmenter.mUnet(skip_connections=True, depth=DEPTH, out_channels=1)
    loss_type, dice_scale = LOSSES[flags.loss]
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        *(model, loss_type, dice_scale),
        dice_form="squared",  # the report's pixelwise form has no bound on masks of 0/255
        report_every=25 if flags.quick else 100,
        resume=flags.resume,
    )
    segmenter.run_code_for_testing_semantic_segmentation(model, baselines=baselines)

    for index, items in pick_of_each_class(segmenter.dataserver_test, 4).items():
        if items:
            batch = default_collate(items)
            name = segmenter.dataserver_test.class_names[index]
            output = segmenter.output_of(model, batch["image"]).cpu()
            segmenter.save_panel_figure(batch, output, f"test-panel-{name}.png")
    dls.log(f"\nPictures and numbers: {dls.run_dir}")
    dls.log("Next: python Examples/best_coco_segmentation.py --quick  (what this data allows)")


if __name__ == "__main__":
    SegStudio.run_example(main)
