"""Five mistakes that raise no error, each as one figure and one measured sentence.

python Examples/pitfalls.py     # about a minute on a 2-core CPU; see doc/pitfalls.md"""

import torch

from SegStudio.SegStudio import PALETTE, SegStudio


def draw_bars(panel, labels, groups):
    for k, (name, values) in enumerate(groups.items()):
        places = [place + 0.4 * k - 0.2 for place in range(len(labels))]
        panel.bar_label(panel.bar(places, values, 0.4, color=PALETTE[k], label=name), fmt="%.2g")
    panel.set(xticks=range(len(labels)), xticklabels=labels, ylabel="gradient norm", ymargin=0.3)
    panel.legend(loc="upper left")


class Pitfalls(SegStudio.SemanticSegmentation):
    def lattice(self, panels, images, masks):
        """DLStudio's upsampling leaves 3 output pixels in 4 that no image can change (orange)."""
        for panel, name in zip(panels, ("strided", "dense"), strict=True):
            reach = self.probe_output_coverage(self.mUnet(upsampling=name), (64, 64))
            panel.imshow(reach.picture[:, :128, :128].permute(1, 2, 0))  # 16 x 16 output pixels
            panel.set(xticks=[], yticks=[], title=f"{name} {reach.fraction:.0%}")
        return f"output pixels that follow the image: {', '.join(p.get_title() for p in panels)}"

    def channel_loop(self, panels, images, masks):
        """A loop over mask.shape[0] runs over the 4 images of a batch, not over its 5 channels."""
        output, norms = self.mUnet(depth=4)(images).detach().requires_grad_(), {}
        for axis in (0, 1):
            mse = sum(((output[:, k] - masks[:, k]) ** 2).mean() for k in range(masks.shape[axis]))
            gradient = torch.autograd.grad(mse, output)[0].transpose(0, 1)  # (C, N, H, W)
            norms[f"range(mask.shape[{axis}])"] = gradient.flatten(1).norm(dim=1).tolist()
        draw_bars(panels[0], self.dl_studio.class_labels, norms)
        return f"gradient norms of the star: {[round(values[4], 3) for values in norms.values()]}"

    def dice_pole(self, panels, images, masks):
        """Pixelwise Dice has a pole (dotted) at p = -1 - m, and no lower bound."""
        outputs = torch.sinh(torch.linspace(-6.4, 6.4, 401))  # from -300 to 300, dense around 0
        for panel, form in zip(panels, ("pixelwise", "squared", "linear"), strict=True):
            dice = self.SegmentationLossDice(form=form)
            for color, m in zip(PALETTE, (0, 1, 50, 250), strict=False):
                mask = torch.full((1, 1, 8, 8), m)
                loss = torch.stack([dice(p.expand(mask.shape), mask) for p in outputs])
                pole = -m - {"pixelwise": 1, "squared": torch.nan, "linear": 1 / 64}[form]
                loss[(outputs < pole).nonzero()[-1:]] = torch.nan  # no line across it
                panel.plot(outputs, loss, color=color, label=f"m = {m}")
                panel.axvline(pole, color=color, linestyle=":")
            panel.set(xscale="symlog", yscale="symlog", xticks=(-100, -10, 0, 10, 100))
            panel.set(title=f"{form} Dice", xlabel="output p", ylabel="loss", ylim=(-1e4, 1e5))
        panels[0].legend()
        beyond = (self.mUnet(depth=4)(images) + masks < -1).float().mean()
        return f"{beyond:.0%} of an untrained network's output pixels lie beyond the pole"

    def missing_eval(self, panels, images, masks):
        """Without eval(), BatchNorm lets the other images of a batch into each image's masks."""
        net, preds = self.mUnet(depth=2, width=32, upsampling="dense", input_scale=1 / 255), []
        recipe = {"loss_type": "BCEDice", "optimizer": torch.optim.AdamW}
        self.custom_run_code_for_training_for_semantic_segmentation(net, **recipe)
        tests = torch.stack([self.dataserver_test[k]["image"] for k in range(7)])
        for k, panel in enumerate(panels):  # train() last: a forward pass there changes the net
            batch = torch.cat((tests[:1], tests[4:] if k % 2 else tests[1:4]))
            preds.append(self.predict(net.train(k >= 2)(batch))[0])
            panel.imshow(self.overlay(tests[0], preds[k]).permute(1, 2, 0))
            panel.set_title(f"{('eval', 'train')[k // 2]}(), companions {'AB'[k % 2]}")
            panel.set_axis_off()
        changed = [(preds[k] ^ preds[k + 1]).sum().item() for k in (0, 2)]
        return "other companions change {} mask pixels in eval(), {} in train()".format(*changed)

    def empty_channels(self, panels, images, masks):
        """Squared Dice has no gradient where an image lacks the class; BCE has, linear hardly."""
        logits, truth, norms = torch.randn_like(masks).requires_grad_(), (masks > 0).float(), []
        empty = truth.amax(dim=(2, 3)) == 0  # (N, C)
        losses = [self.SegmentationLossDice(form=form) for form in ("squared", "linear")]
        for loss in (*losses, torch.nn.functional.binary_cross_entropy):
            gradient = torch.autograd.grad(loss(logits.sigmoid(), truth), logits)[0]
            norms.append([gradient[channels].norm().item() for channels in (~empty, empty)])
        has, lacks = zip(*norms, strict=True)
        draw_bars(panels[0], ("squared", "linear", "BCE"), {"class there": has, "missing": lacks})
        return "gradient norm without the class: {:.2g}, {:.2g} and {:.2g}".format(*lacks)


def main():
    flags = SegStudio.example_flags(__doc__, quick=(400, 1), full=(1600, 1))
    dls = SegStudio(**flags.settings)
    segmenter = Pitfalls(dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200)
    batch = next(iter(segmenter.train_dataloader))
    names = ("lattice", "channel_loop", "dice_pole", "missing_eval", "empty_channels")
    for number, (name, columns) in enumerate(zip(names, (2, 1, 3, 4, 1), strict=True), start=1):
        figure = dls.new_figure(figsize=(max(3.2 * columns, 7), 4), layout="constrained")
        panels, show = figure.subplots(1, columns, squeeze=False)[0], getattr(segmenter, name)
        measured = show(panels, batch["image"], batch["mask_tensor"].float())
        figure.suptitle(show.__doc__)
        dls.save_figure(figure, f"{number}-{name}.png")
        dls.log(f"{number}. {show.__doc__} Measured: {measured}.")


if __name__ == "__main__":
    SegStudio.run_example(main)
