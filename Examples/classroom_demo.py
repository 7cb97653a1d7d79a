"""For class: the homework's network and the dense one learn, a minute each, before your eyes.

Draws a small set of shapes, trains both networks by one recipe, and shows their losses and what
they make of one test image: the strided (the homework's) masks stay dotted, the dense ones fill.
Both learn by BCE + Dice with AdamW; the homework's MSE with SGD at 1e-4 hardly moves in a minute on
a CPU. Where there is a display, a window follows; live.gif in the run's folder is the film.

    python Examples/classroom_demo.py     # 2-3 minutes on 2 CPU cores; mean IoU 0.21 and 0.63
"""

import functools
import io
import math

import matplotlib.pyplot as plt
import torch
from PIL import Image

from SegStudio.SegStudio import PALETTE, SegStudio

DEPTH, WIDTH, BATCH_SIZE, LEARNING_RATE = 2, 32, 16, 3e-3
COLORS = {"strided": PALETTE[1], "dense": PALETTE[0]}


class LiveView:
    """One figure of both networks: their losses, and one test image as they see it."""

    def __init__(self, segmenter, seconds):
        self.segmenter, self.frames, self.last = segmenter, [], 0.0
        items = [segmenter.dataserver_test[k] for k in range(20)]
        item = max(items, key=lambda item: (item["mask_tensor"] > 0).sum())
        self.image, self.truth = item["image"], item["mask_tensor"] > 0
        self.figure = plt.figure(figsize=(9, 4.6), dpi=80, layout="constrained")
        rows = [["loss", "loss", "input", "truth"], ["loss", "loss", *COLORS]]
        self.panels = self.figure.subplot_mosaic(rows)
        panel = self.panels["loss"]
        panel.set(xlabel="seconds of training", ylabel="BCE + Dice", xlim=(0, seconds), ylim=(0, 2))
        self.curves = {k: panel.plot([], [], color=COLORS[k], label=k)[0] for k in COLORS}
        panel.legend()
        self.draw("input", self.image.byte(), "test image")
        self.draw("truth", segmenter.overlay(self.image, self.truth), "truth")
        self.has_window = plt.get_backend().lower() != "agg"
        if self.has_window:
            plt.show(block=False)

    def draw(self, name, picture, title):
        self.panels[name].clear()
        self.panels[name].imshow(picture.permute(1, 2, 0))
        self.panels[name].set(xticks=[], yticks=[], title=title)

    def update(self, name, history, net):
        """Training calls this after each report; a new frame every second is live enough."""
        if 0 <= history.seconds - self.last < 1:
            return
        self.last = history.seconds
        self.curves[name].set_data([row["seconds"] for row in history.rows], history.losses)
        pred = self.segmenter.predict(self.segmenter.output_of(net, self.image[None])).cpu()
        scores = self.segmenter.SegmentationScores(self.segmenter.dl_studio.class_labels)
        iou = scores.update(pred, self.truth[None]).item()
        self.draw(name, self.segmenter.overlay(self.image, pred[0]), f"{name}, IoU {iou:.2f}")
        with io.BytesIO() as png:
            self.figure.savefig(png)
            self.frames.append(Image.open(png).convert("RGB").quantize(64))
        if self.has_window:
            self.figure.canvas.draw_idle()
            self.figure.canvas.flush_events()


def main():
    extra = {"--seconds": {"type": float, "help": "for each network; default 60, --quick 20"}}
    flags = SegStudio.example_flags(__doc__, quick=(600, None), full=(2000, None), extra=extra)
    seconds = flags.seconds or (20 if flags.quick else 60)
    dls = SegStudio(batch_size=BATCH_SIZE, **flags.settings)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200)
    view, scores = LiveView(segmenter, seconds), {}
    for name in COLORS:
        dls.log(f"\nThe {name} network, for {seconds:g} seconds")
        torch.manual_seed(flags.seed)  # both start from the same weights
        net = segmenter.mUnet(depth=DEPTH, width=WIDTH, upsampling=name, input_scale=1 / 255)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            net, "BCEDice", optimizer=functools.partial(torch.optim.AdamW, lr=LEARNING_RATE),
            scheduler=lambda done: min(done / 0.15, (1 + math.cos(math.pi * done)) / 2) + 0.01,
            max_seconds=seconds, report_every=25, on_report=functools.partial(view.update, name),
        )  # fmt: skip
        scores[name] = segmenter.score(net)
    film = {"format": "GIF", "save_all": True, "append_images": view.frames[1:], "duration": 150}
    dls.write_atomically(dls.run_dir / "live.gif", lambda part: view.frames[0].save(part, **film))
    table = scores["dense"].table(before=scores["strided"])
    both = scores["dense"].compute() | {"before": scores["strided"].compute()}
    dls.write_json("metrics.json", both)
    dls.log(f"Test scores, strided -> dense:\n{table}\nThe film: {dls.run_dir / 'live.gif'}")
    if view.has_window:
        plt.show()


if __name__ == "__main__":
    SegStudio.run_example(main)
