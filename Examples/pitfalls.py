"""Five mistakes that raise no error, each as one figure and one measured sentence.

    python Examples/pitfalls.py              # 40 seconds on any 2-core computer
    python Examples/pitfalls.py --quick      # 25 seconds

    1  lattice          upsampling that leaves holes
    2  channel_loop     a loss that forgets a class
    3  dice_pole        a Dice loss without a lower bound
    4  missing_eval     testing in train mode
    5  empty_channels   a loss without a gradient where a class is missing

doc/pitfalls.md says for each how to notice it, and the cure.
"""

import torch
from matplotlib.patches import Patch
from side_by_side import class_patches, paint_masks
from torch import nn

from SegStudio import SegStudio

CLASSES = ("rectangle", "triangle", "disk", "oval", "star")
BATCH_SIZE = 4
EVAL_SECONDS = 25  # of training, for the fourth pitfall
QUICK_SECONDS = 25  # of the whole script with --quick


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(2000, None),
        full=(2000, None),
        quick_seconds=QUICK_SECONDS,
        last_file="5-empty_channels.png",
    )
    dls = SegStudio(batch_size=BATCH_SIZE, classes=CLASSES, **flags.settings)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200)
    batch = next(iter(segmenter.train_dataloader))
    images = batch["image"]
    masks = batch["mask_tensor"].float()
    lattice(segmenter)
    channel_loop(segmenter, images, masks)
    dice_pole(segmenter, images, masks)
    missing_eval(segmenter, flags.training_seconds(reserve=4) or EVAL_SECONDS, flags.resume)
    empty_channels(segmenter, masks)
    dls.log(f"\nThe five figures: {dls.run_dir}")


def finish(segmenter, number, name, figure, sentence, measured):
    """Save a figure under its number and print what was measured."""
    figure.suptitle(sentence, fontsize=14)
    segmenter.dl_studio.save_figure(figure, f"{number}-{name}.png")
    segmenter.dl_studio.log(f"{number}. {sentence}\n   Measured: {measured}")


# ---- 1. Upsampling that leaves holes ------------------------------------------------------------


def lattice(segmenter):
    figure = segmenter.dl_studio.new_figure(figsize=(9, 5.4), dpi=110, layout="constrained")
    reached = {}
    for axes, upsampling in zip(figure.subplots(1, 2), ("strided", "dense"), strict=True):
        net = segmenter.mUnet(upsampling=upsampling)
        reach = segmenter.probe_output_coverage(net, (64, 64))
        reached[upsampling] = reach.fraction
        corner = reach.picture[:, :128, :128]  # 16x16 output pixels: single ones are visible
        axes.imshow(corner.permute(1, 2, 0).numpy(), extent=(0, 16, 16, 0))
        axes.set_xticks([0, 4, 8, 12, 16])
        axes.set_yticks([0, 4, 8, 12, 16])
        axes.set_title(f"{upsampling}: {reach.fraction:.0%}", fontsize=14)
    figure.legend(
        handles=[
            Patch(color=SegStudio.PALETTE[0], label="depends on the image"),
            Patch(color=SegStudio.PALETTE[1], label="constant"),
        ],
        loc="outside lower center",
        ncols=2,
        fontsize=13,
    )
    finish(
        segmenter,
        1,
        "lattice",
        figure,
        "DLStudio's upsampling leaves 3 output pixels in 4 that no image can change",
        f"output pixels that depend on the image: strided {reached['strided']:.0%}, "
        f"dense {reached['dense']:.0%}",
    )


# ---- 2. A loss that forgets a class -------------------------------------------------------------


def channel_loop(segmenter, images, masks):
    output = segmenter.mUnet(depth=4)(images).detach().requires_grad_()  # (N, 5, H, W)
    norms = {}
    for dim in (0, 1):
        # The homework report's loop: shape[0] is the batch size, shape[1] the number of classes.
        loss = 0
        for k in range(masks.shape[dim]):
            loss = loss + ((output[:, k] - masks[:, k]) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, output)
        per_class = gradient.transpose(0, 1).flatten(1).norm(dim=1)  # (5,)
        norms[f"range(mask.shape[{dim}])"] = per_class.tolist()
    figure = segmenter.dl_studio.new_figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    draw_bars(axes, CLASSES, norms)
    wrong, right = (values[4] for values in norms.values())
    finish(
        segmenter,
        2,
        "channel_loop",
        figure,
        "A loop over mask.shape[0] runs over the 4 images of a batch, not over the 5 classes",
        f"gradient norm of the star: {wrong:.3g} with shape[0], {right:.3g} with shape[1]",
    )


def draw_bars(axes, labels, groups):
    """Bars side by side: one group for each label, one colour for each of `groups`."""
    width = 0.4
    for k, (name, values) in enumerate(groups.items()):
        places = [place + width * (k - 0.5) for place in range(len(labels))]
        bars = axes.bar(places, values, width, color=SegStudio.PALETTE[k], label=name)
        axes.bar_label(bars, fmt="%.2g", fontsize=11)
    axes.set_xticks(range(len(labels)), labels, fontsize=12)
    axes.set_ylabel("norm of the gradient", fontsize=12)
    axes.margins(y=0.1)
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=12)


# ---- 3. A Dice loss without a lower bound -------------------------------------------------------


def dice_pole(segmenter, images, masks):
    forms = ("pixelwise", "linear", "squared")
    poles = {"pixelwise": -1, "linear": -1 / 64, "squared": None}  # p + m there, 8x8 pixels
    outputs = torch.sinh(torch.linspace(-6.4, 6.4, 401))  # from -300 to 300, dense around 0
    figure = segmenter.dl_studio.new_figure(figsize=(13, 5), dpi=110, layout="constrained")
    for axes, form in zip(figure.subplots(1, 3, sharey=True), forms, strict=True):
        dice = segmenter.SegmentationLossDice(form=form)
        for color, value in zip(SegStudio.PALETTE, (0, 1, 50, 250), strict=False):
            mask = torch.full((1, 1, 8, 8), value)
            losses = torch.stack([dice(p.expand(mask.shape), mask) for p in outputs])
            if poles[form] is not None:
                pole = poles[form] - value
                losses[(outputs < pole).nonzero()[-1:]] = torch.nan  # no line across the pole
                axes.axvline(pole, color=color, linestyle=":")
            axes.plot(outputs, losses, color=color, linewidth=2, label=f"m = {value}")
        axes.set_xscale("symlog")
        axes.set_yscale("symlog")
        axes.set_xticks([-100, -10, 0, 10, 100])
        axes.set_ylim(-1e4, 1e5)
        axes.grid(alpha=0.3)
        axes.set_title(f"{form} Dice", fontsize=14)
        axes.set_xlabel("output p of every pixel", fontsize=12)
    figure.axes[0].set_ylabel("loss", fontsize=12)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=12)
    output = segmenter.mUnet(depth=4)(images).detach()
    beyond = (output + masks < -1).float().mean().item()
    finish(
        segmenter,
        3,
        "dice_pole",
        figure,
        "Pixelwise Dice has a pole (dotted) at p = -1 - m, and no lower bound",
        f"{beyond:.0%} of an untrained network's output pixels lie beyond the pole",
    )


# ---- 4. Testing in train mode -------------------------------------------------------------------


def missing_eval(segmenter, seconds, resume):
    net = segmenter.mUnet(depth=4, width=16, upsampling="dense", input_scale=1 / 255)
    hidden, rest = segmenter.Muon.split(net)
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        net,
        criterion=segmenter.SegmentationLossBCEDice(),
        optimizer=[segmenter.Muon(hidden, lr=0.03), torch.optim.AdamW(rest, lr=6e-3)],
        scheduler=lambda done: 1 - 0.9 * done,
        max_seconds=seconds,
        log_every=100,
        resume=resume,
    )
    tests = torch.stack([segmenter.dataserver_test[k]["image"] for k in range(7)])
    image = tests[:1]
    batches = {"A": tests[:4], "B": torch.cat((image, tests[4:]))}
    figure = segmenter.dl_studio.new_figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 5)
    panels[0].imshow(image[0].byte().permute(1, 2, 0).numpy())
    panels[0].set_title("test image", fontsize=13)
    preds = {}
    settings = [("eval", "A"), ("eval", "B"), ("train", "A"), ("train", "B")]
    for axes, (mode, others) in zip(panels[1:], settings, strict=True):
        net.train(mode == "train")  # last, because a forward pass in train mode changes the net
        with torch.no_grad():
            output = net(batches[others])
        preds[mode, others] = segmenter.binarize(net, output)[0]
        axes.imshow(paint_masks(image[0], preds[mode, others]).permute(1, 2, 0).numpy())
        axes.set_title(f"{mode} mode,\nbatch-mates {others}", fontsize=13)
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.legend(handles=class_patches(CLASSES), loc="outside lower center", ncols=7, fontsize=12)
    changed = {
        mode: (preds[mode, "A"] ^ preds[mode, "B"]).sum().item() for mode in ("eval", "train")
    }
    finish(
        segmenter,
        4,
        "missing_eval",
        figure,
        "Without eval(), an image's masks depend on the other images of its batch",
        f"other images in the batch change {changed['eval']} mask pixels in eval mode, "
        f"{changed['train']} in train mode",
    )


# ---- 5. No gradient where a class is missing ----------------------------------------------------


def empty_channels(segmenter, masks):
    logits = torch.randn_like(masks).requires_grad_()
    truth = (masks > 0).float()
    empty = truth.amax(dim=(2, 3)) == 0  # (N, C): is the class missing in this image?
    losses = {
        "squared Dice": segmenter.SegmentationLossDice(form="squared"),
        "linear Dice": segmenter.SegmentationLossDice(form="linear"),
        "BCE": nn.functional.binary_cross_entropy,
    }
    norms = {"class in the image": [], "class missing": []}
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss(logits.sigmoid(), truth), logits)
        norms["class in the image"].append(gradient[~empty].norm().item())
        norms["class missing"].append(gradient[empty].norm().item())
    figure = segmenter.dl_studio.new_figure(figsize=(9, 5), dpi=110, layout="constrained")
    draw_bars(figure.add_subplot(), losses, norms)
    squared, linear, bce = norms["class missing"]
    finish(
        segmenter,
        5,
        "empty_channels",
        figure,
        "Squared Dice has no gradient on the channels whose class is missing in an image",
        f"norm of the gradient there: squared Dice {squared:.2g}, linear Dice {linear:.2g}, "
        f"BCE {bce:.2g}",
    )


if __name__ == "__main__":
    SegStudio.run_example(main)
