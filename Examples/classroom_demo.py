"""For class: a window shows two networks while they train, one after the other.

    python Examples/classroom_demo.py                     # 150 seconds on any 2-core computer
    python Examples/classroom_demo.py --quick             # 60 seconds
    python Examples/classroom_demo.py --iterations 200    # the same training on every laptop

The first network is the homework's ("strided"): three of its output pixels in four are constant.
The second one is its "dense" twin, with the same weights at the start. Both learn small shapes by
one recipe: BCE + Dice, Muon and AdamW. The window shows their losses and their masks of one test
image. It opens at once if there is a display; if it is closed early, the demo goes on without it.
live.gif in the run's folder is the same as a film, for a computer without a display.

Expected mean IoU on 200 test images after 150 seconds: strided 0.2, dense 0.6 to 0.8, depending on
the computer (0.22 and 0.77 with one thread in fp32). --seconds N changes the time of the whole
demo. With --iterations N every computer trains on the same batches, however long that takes. The
scores still differ a little, because processors round differently and training enlarges that. With
--iterations 200 the same Intel Xeon had 0.17 to 0.18 strided and 0.49 to 0.52 dense in six
settings: 1 and 2 threads (OMP_NUM_THREADS), with all of its instructions, AVX-512 only and AVX2
only (ONEDNN_MAX_CPU_ISA).
"""

import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps
from side_by_side import class_patches, generated_or_not, iou_of_image, paint_masks
from small_recipe import make_one_epoch, train_small

from SegStudio import SegStudio

CLASSES = ("rectangle", "triangle", "disk", "oval", "star")
DEPTH = 4
WIDTH = 16
BATCH_SIZE = 16
ADAMW_RATE = 6e-3
LOG_EVERY = 10  # iterations; on a slow computer the window stands still meanwhile
COLORS = {"strided": "#D55E00", "dense": "#222222"}

SLIDE = (16, 9)  # inches; at FONT_SIZE, text that the last row can read
FONT_SIZE = 20  # points
WINDOW_DPI = 75  # 1200x675 pixels: fits on a projector of 1366x768

FILM_SIZE = (960, 540)  # pixels
FRAME_MILLISECONDS = 150
LAST_FRAME_MILLISECONDS = 5000

STARTED = time.perf_counter()
AROUND_TRAINING = 12  # seconds for the imports before this line, the scores and the film


class LiveView:
    """A figure for the projector: the losses of both networks, and their masks of one image."""

    def __init__(self):
        plt.rcParams.update({"font.size": FONT_SIZE, "toolbar": "None"})
        self.figure = plt.figure(figsize=SLIDE, dpi=WINDOW_DPI, layout="constrained")
        self.figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # inches
        layout = [["loss", "loss", "input", "truth"], ["loss", "loss", "strided", "dense"]]
        self.panels = self.figure.subplot_mosaic(layout)
        black = torch.zeros(3, 64, 64, dtype=torch.uint8)
        for name in ("input", "truth", "strided", "dense"):
            self.draw(name, black, name)
        self.panels["loss"].set(ylabel="loss, BCE + Dice", ylim=(0, 2), xticks=[])
        self.curves = {}
        for name, color in COLORS.items():
            (self.curves[name],) = self.panels["loss"].plot(
                [], [], color=color, linewidth=3, marker="o", label=name
            )
        self.panels["loss"].legend()
        self.figure.legend(
            handles=class_patches(CLASSES),
            loc="outside lower center",
            ncols=7,
            handlelength=1,  # else the legend is wider than the slide
            handletextpad=0.4,
            columnspacing=1.2,
        )
        self.figure.suptitle("Preparing the images ...")
        self.frames = []
        self.frame_seconds = 0.0  # how long the latest frame took
        self.last_frame = 0.0  # when it was drawn
        self.has_window = opens_a_window(self.figure)
        if self.has_window:
            self.figure.canvas.mpl_connect("close_event", self.on_close)
            self.figure.canvas.mpl_connect("resize_event", self.on_resize)
            plt.show(block=False)
        self.draw_frame(keep=False)

    def on_close(self, event):
        """The user closed the window: the demo continues and makes the film."""
        self.has_window = False

    def on_resize(self, event):
        """Let the text grow and shrink with the window, as on a slide."""
        width, height = self.figure.canvas.get_width_height(physical=True)
        dpi = min(width / SLIDE[0], height / SLIDE[1])
        # A window that is just being made has a size of 1; rounding may change a size by 1.
        if dpi > 10 and abs(dpi / self.figure.dpi - 1) > 0.01:
            self.figure.set_size_inches(width / dpi, height / dpi, forward=False)
            self.figure.dpi = dpi

    def begin(self, segmenter, horizontal_axis, end):
        """Show the test image with the most pixels set; prepare the axis of the loss plot."""
        self.segmenter = segmenter
        self.horizontal_axis = horizontal_axis
        items = [segmenter.dataserver_test[index] for index in range(20)]
        item = max(items, key=lambda item: (item["mask_tensor"] > 0).sum())
        self.image = item["image"]
        self.truth = item["mask_tensor"] > 0
        source = generated_or_not(segmenter.dataserver_test)
        self.draw("input", self.image.byte(), f"test image ({source})")
        self.draw("truth", paint_masks(self.image, self.truth), "truth")
        label = "seconds of training" if horizontal_axis == "seconds" else "iteration"
        self.panels["loss"].set(xlabel=label, xlim=(0, end))
        self.panels["loss"].xaxis.set_major_locator(MaxNLocator(6, integer=True))

    def draw(self, name, picture, title):
        panel = self.panels[name]
        panel.clear()
        panel.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(title, fontsize=FONT_SIZE)

    def update(self, name, history, net):
        """Draw after a line of the log, but spend at most a tenth of the time on drawing."""
        if time.perf_counter() - self.last_frame > max(0.5, 9 * self.frame_seconds):
            self.show_network(name, history, net)

    def show_network(self, name, history, net):
        """Draw the loss so far and the masks that the network predicts now."""
        rows = [row for row in history.rows if "loss" in row]
        self.curves[name].set_data(
            [row[self.horizontal_axis] for row in rows], [row["loss"] for row in rows]
        )
        output = self.segmenter.infer(net, self.image[None])
        pred = self.segmenter.binarize(net, output).cpu()[0]
        iou = iou_of_image(self.segmenter, pred, self.truth)
        self.draw(name, paint_masks(self.image, pred), f"{name}: {iou}")
        self.figure.suptitle(f"The {name} network learns: {history.iterations} iterations")
        self.draw_frame()

    def draw_frame(self, keep=True):
        started = time.perf_counter()
        if not self.has_window:  # else drawing would fail after the window was closed
            FigureCanvasAgg(self.figure)
        canvas = self.figure.canvas
        canvas.draw()
        if keep:
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            # A window of another shape gets white margins.
            picture = ImageOps.pad(picture, FILM_SIZE, color="white")
            self.frames.append(picture.quantize(256, dither=Image.Dither.NONE))
        if self.has_window:
            canvas.flush_events()  # last, because the user may close the window here
        self.last_frame = time.perf_counter()
        self.frame_seconds = self.last_frame - started

    def save_film(self, path):
        """The frames as a GIF that loops and shows its last frame longer."""
        durations = [FRAME_MILLISECONDS] * (len(self.frames) - 1) + [LAST_FRAME_MILLISECONDS]
        SegStudio.write_atomically(
            path,
            lambda part: self.frames[0].save(
                part,
                format="GIF",
                save_all=True,
                append_images=self.frames[1:],
                duration=durations,
                loop=0,
            ),
        )


def opens_a_window(figure):
    """Whether matplotlib shows this figure in a window; without a display it does not."""
    return figure.canvas.required_interactive_framework is not None


def main():
    flags = SegStudio.example_flags(
        __doc__,
        quick=(2000, None),
        full=(2000, None),
        last_file="live.gif",
        extra={
            "--seconds": {
                "type": float,
                "metavar": "N",
                "help": "time of the whole demo; default 150, with --quick 60",
            },
            "--iterations": {
                "type": int,
                "metavar": "N",
                "help": "train each network for N batches, however long that takes",
            },
        },
    )
    for name in ("seconds", "iterations"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} is above 0, not {value:g}")
    if flags.seconds and flags.iterations:
        raise ValueError("give --seconds or --iterations, not both")
    view = LiveView()
    # The demo has its own window, so the figures that it saves open none.
    settings = flags.settings | {"show": False}
    dls = SegStudio(batch_size=BATCH_SIZE, classes=CLASSES, **settings)
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200)
    if flags.iterations:
        max_seconds = None
        view.begin(segmenter, "iteration", flags.iterations)
    else:
        max_seconds = seconds_for_each(flags.seconds or (60 if flags.quick else 150))
        view.begin(segmenter, "seconds", max_seconds)

    parts = {"strided": segmenter.part_of_run("strided"), "dense": segmenter}
    scores = {}
    for upsampling, part in parts.items():
        part.dl_studio.log(f"\nThe {upsampling} network")
        torch.manual_seed(flags.seed)  # both networks start with the same weights
        net = segmenter.mUnet(depth=DEPTH, width=WIDTH, upsampling=upsampling, input_scale=1 / 255)
        if flags.iterations:
            make_one_epoch(part, flags.iterations, flags.seed)
        history = train_small(
            part,
            net,
            segmenter.SegmentationLossBCEDice(),
            ADAMW_RATE,
            max_seconds,
            log_every=LOG_EVERY,
            on_log=lambda history, net, name=upsampling: view.update(name, history, net),
            resume=flags.resume,
        )
        view.show_network(upsampling, history, net)
        scores[upsampling] = segmenter.score(net)
        view.panels[upsampling].set_xlabel(
            f"test set: mean IoU {scores[upsampling].compute()['mean_iou']:.2f}"
        )

    table = scores["dense"].table(before=scores["strided"])
    dls.log(f"Scores on {scores['dense'].images} test images, strided -> dense:\n{table}")
    dls.log(scores["dense"].explanation())
    segmenter.save_confusion_figure(scores["dense"])
    metrics = scores["dense"].compute()
    metrics["before"] = scores["strided"].compute()
    dls.write_json("metrics.json", metrics)
    view.figure.suptitle("Three pixels in four of the strided output are constant.")
    view.draw_frame()
    view.save_film(dls.run_dir / "live.gif")
    dls.log(f"The film: {dls.run_dir / 'live.gif'}")
    dls.log(f"Next: python Examples/explore.py {dls.run_dir}  (both networks in your browser)")
    if view.has_window:
        dls.log("Close the window to end.")
        view.figure.suptitle("Finished. Close the window to end.")
        plt.show()


def seconds_for_each(seconds):
    """The training time of each network, so that the whole demo takes `seconds`."""
    left = seconds - (time.perf_counter() - STARTED) - AROUND_TRAINING
    return max(1.0, 0.9 * left / 2)  # a tenth of the time is for the frames


if __name__ == "__main__":
    SegStudio.run_example(main)
