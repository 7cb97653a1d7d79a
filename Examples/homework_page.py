"""The homework page: every figure of the homework, by number, beside the results of a report.

Reads the run folders that reproduce_homework.py made and writes one HTML file that holds its
pictures itself, so it can be mailed, opened offline or printed.

    python Examples/homework_page.py      # a second; writes runs/homework-page/index.html

A run that is missing or damaged becomes a sentence on the page, with the command that makes it.
The layout and the style sheet are in homework_page.html.j2, beside this file.
"""

import argparse
import base64
import csv
import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from SegStudio import SegStudio

# ---- The homework's experiments -----------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """One experiment of the homework.

    name: what --only of reproduce_homework.py takes.
    first_figure: the number of its loss curve in a student's report; its pictures come next.
    loss, dice_scale: loss_type and dice_scale of the training method.
    report_saw: what the student's report says about the loss.
    data: "shapes" (PurdueShapes5MultiObject) or "coco" (the bonus, one object per image).
    """

    name: str
    first_figure: int
    title: str
    loss: str
    dice_scale: float
    report_saw: str
    data: str = "shapes"

    @property
    def folder_name(self):
        return self.name.replace("-", "_")


EXPERIMENTS = (
    Experiment(
        name="mse",
        first_figure=1,
        title="MSE",
        loss="MSE",
        dice_scale=1,
        report_saw="300-400, falling with fluctuations",
    ),
    Experiment(
        name="dice",
        first_figure=3,
        title="Dice",
        loss="Dice",
        dice_scale=1,
        report_saw="0.8-1, smoother than MSE and faster to settle",
    ),
    Experiment(
        name="combined-200",
        first_figure=5,
        title="MSE + 200 Dice",
        loss="Combined",
        dice_scale=200,
        report_saw="568 → 504 in epoch 1, 496 → 492 in epoch 2",
    ),
    Experiment(
        name="combined-300",
        first_figure=7,
        title="MSE + 300 Dice",
        loss="Combined",
        dice_scale=300,
        report_saw="654 → 590 in epoch 1, then no clear convergence",
    ),
    Experiment(
        name="combined-400",
        first_figure=9,
        title="MSE + 400 Dice",
        loss="Combined",
        dice_scale=400,
        report_saw="a steady decrease; both terms near 300",
    ),
    Experiment(
        name="coco-mae",
        first_figure=12,
        title="COCO, MAE",
        loss="MAE",
        dice_scale=1,
        report_saw="81.7 → 76.8 in epoch 1, 72-75 in epochs 5 and 6",
        data="coco",
    ),
    Experiment(
        name="coco-dice",
        first_figure=16,
        title="COCO, Dice",
        loss="Dice",
        dice_scale=1,
        report_saw="a smooth decrease; masks slightly better",
        data="coco",
    ),
    Experiment(
        name="coco-combined",
        first_figure=20,
        title="COCO, MAE + 100 Dice",
        loss="MAE+Dice",
        dice_scale=100,
        report_saw="about 170 → 140",
        data="coco",
    ),
)

# The homework's recipe, under the names that settings.json uses. COCO's recipe is the same.
HOMEWORK_SETTINGS = {
    "image_size": [64, 64],
    "batch_size": 4,
    "optimizer": "SGD",
    "learning_rate": 1e-4,
    "momentum": 0.9,
    "network": "mUnet",
    "depth": 16,
    "skip_connections": True,
    "upsampling": "strided",
}
HOMEWORK_EPOCHS = 6
HOMEWORK_IMAGES = {"shapes": 10000, "coco": 891 + 1201 + 1193}

QUICK_SECONDS = 60  # of one experiment by reproduce_homework.py --quick, on a 2-core CPU


# ---- Run folders --------------------------------------------------------------------------------


@dataclass
class Run:
    """The content of a run folder: settings.json, losses.csv and, after testing, metrics.json."""

    folder: Path
    settings: dict
    network: dict
    training: dict
    data: dict
    machine: dict
    rows: list  # of losses.csv, a dict of numbers for each
    metrics: dict | None
    command: list = field(default_factory=list)
    losses: list = field(init=False)  # the rows that have a loss

    def __post_init__(self):
        self.losses = [row for row in self.rows if {"loss", "epoch"} <= row.keys()]

    @property
    def name(self):
        return self.folder.name

    @property
    def loss(self):
        return str(self.training["loss"])

    @property
    def iterations(self):
        return int(self.losses[-1]["iteration"])

    @property
    def seconds(self):
        """Seconds of training, without evaluation and testing."""
        return float(self.rows[-1]["seconds"])

    @property
    def max_seconds(self):
        """The time limit of the training, or None if it has a number of epochs."""
        return self.training.get("max_seconds")

    @property
    def iterations_per_epoch(self):
        return math.ceil(self.training["images"] / self.training["batch_size"])

    @property
    def planned_iterations(self):
        """Iterations of the whole training, or None if it is bounded by time."""
        if self.max_seconds is not None:
            return None
        return self.iterations_per_epoch * int(self.settings["epochs"])

    @property
    def planned_images(self):
        """How many images the training uses in all; if it is bounded by time, those so far."""
        if self.max_seconds is not None:
            return self.iterations * self.training["batch_size"]
        return self.training["images"] * int(self.settings["epochs"])

    @property
    def source(self):
        """Where the images come from, in the words of settings.json."""
        return str(self.data.get("source", ""))

    @property
    def synthetic(self):
        return "synthetic" in self.source.lower()

    @property
    def generated(self):
        return "generated" in self.source.lower()

    def changed_settings(self):
        """{name: value} of the settings of network and recipe that are not the homework's."""
        used = {
            **self.settings,
            **self.training,
            "network": self.network.get("class"),
            **(self.network.get("arguments") or {}),
        }
        return {
            name: used[name]
            for name, expected in HOMEWORK_SETTINGS.items()
            if used.get(name, expected) != expected
        }


def read_run(folder):
    """Read a run folder.

    Errors: FileNotFoundError if the folder holds no run that has logged a loss; ValueError for a
    damaged run.
    """
    folder = Path(folder)
    if not (folder / "settings.json").is_file() or not (folder / "losses.csv").is_file():
        raise FileNotFoundError(f"{folder} holds no run that has logged a loss")
    try:
        content = read_json(folder / "settings.json")
        lines = (folder / "losses.csv").read_text(encoding="utf-8").splitlines()
        run = Run(
            folder=folder,
            **{name: dict(content[name]) for name in ("settings", "network", "training")},
            **{name: dict(content.get(name, {})) for name in ("data", "machine")},
            rows=[
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(lines)
            ],
            metrics=None,
            command=list(content.get("command", [])),
        )
        if (folder / "metrics.json").is_file():
            run.metrics = read_json(folder / "metrics.json")
            float(run.metrics["mean_iou"])
            dict(run.metrics["classes"])
        # Each of these raises an error for a run that lacks its parts.
        _ = run.loss, run.iterations, run.seconds, run.planned_iterations, run.planned_images
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, csv.Error) as why:
        raise ValueError(
            f"{folder} cannot be read ({type(why).__name__}: {why}): rename or remove that folder "
            f"and run its experiment again"
        ) from None
    return run


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- The facts about an experiment ---------------------------------------------------------------


@dataclass
class Figure:
    """A figure: caption, pictures and number, which is "" if the report has no such figure."""

    number: str
    caption: str
    pictures: list  # of {"name": ..., "data": base64 text}

    @property
    def kind(self):
        """How the page lays it out: one picture, or several side by side."""
        return "several" if len(self.pictures) > 1 else "single"


def figure_files(experiment):
    """[(number, caption, pattern of file names), ...] of an experiment, in the report's order."""
    first = experiment.first_figure
    curve = (str(first), "training loss", "loss.png")
    if experiment.data == "shapes":
        return [curve, (str(first + 1), "test batches", "test-batch-*.png")]
    panels = (f"{first + 1}-{first + 3}", "one test image of each class", "test-panel-*.png")
    if experiment.name == "coco-mae":
        return [("11", "training images and their masks", "samples.png"), curve, panels]
    return [curve, panels]


def read_figure(folder, number, caption, pattern):
    """The Figure of the pictures in `folder` that match `pattern`; there may be none yet."""
    pictures = []
    for path in sorted(folder.glob(pattern)):
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG"):
            raise ValueError(f"{path} is not a PNG picture: run its experiment again")
        pictures.append({"name": path.stem, "data": base64.b64encode(data).decode()})
    return Figure(number, caption, pictures)


def describe(experiment, results_dir):
    """The page's facts about an experiment, as a dict for the template.

    Errors: those of read_run, and ValueError for a file that is not a picture.
    """
    run = read_run(Path(results_dir) / experiment.folder_name)
    figures = [read_figure(run.folder, *figure) for figure in figure_files(experiment)]
    more = [
        read_figure(run.folder, "", "truth beside prediction, as scored", "predictions-*.png"),
        read_figure(run.folder, "", "the worst test images", "worst.png"),
        read_figure(run.folder, "", "which class is taken for which", "confusion.png"),
    ]
    return {
        "experiment": experiment,
        "numbers": ", ".join(figure.number for figure in figures),
        "figures": [*figures, *(figure for figure in more if figure.pictures)],
        "notes": notes(experiment, run),
        "curve": describe_curve(run),
        "scores": describe_scores(run.metrics),
        "schedule": describe_schedule(run),
        "settings": list_facts(
            {
                **{k: run.settings.get(k) for k in ("learning_rate", "momentum", "seed")},
                **{k: run.training.get(k) for k in ("loss", "optimizer", "precision")},
                "image_size": run.settings.get("image_size"),
                "network": run.network.get("class"),
                **(run.network.get("arguments") or {}),
                "data": run.source or "not recorded",
            }
        ),
        "machine": list_facts(run.machine),
        "generated": run.generated and experiment.data == "shapes",
        "synthetic": run.synthetic,
    }


def notes(experiment, run):
    """Differences from the report that a reader has to know, in a few words each."""
    found = []
    if run.synthetic:
        found.append("synthetic images, not COCO")
    elif run.generated:
        found.append("shapes generated by SegStudio")
    full = HOMEWORK_EPOCHS * HOMEWORK_IMAGES[experiment.data]
    share = run.planned_images / full
    if share < 0.95:
        found.append(f"short schedule: {share:.1%} of the homework's")
    if run.planned_iterations is not None and run.iterations < run.planned_iterations:
        found.append("training has not finished")
    if changed := run.changed_settings():
        found.append(f"not the homework's recipe: {list_facts(changed)}")
    return found


def describe_curve(run):
    """The first and last logged loss of each epoch: "411 → 399 in epoch 1, ..."."""
    epochs = []
    for epoch, rows in itertools.groupby(run.losses, lambda row: row["epoch"]):
        values = [f"{row['loss']:.4g}" for row in rows]
        ends = values if len(values) == 1 else [values[0], values[-1]]
        epochs.append(f"{' → '.join(ends)} in epoch {epoch:.0f}")
    return ", ".join(epochs)


def describe_schedule(run):
    """How long the training was, in one sentence."""
    images, batch = run.training["images"], run.training["batch_size"]
    minutes = run.seconds / 60
    if run.planned_iterations is None:
        return (
            f"{images:,} images, batches of {batch}: {run.iterations:,} iterations in "
            f"{minutes:.1f} minutes, a training bounded by time"
        )
    return (
        f"{images:,} images, {run.settings['epochs']} epochs, batches of {batch}: "
        f"{run.iterations:,} of {run.planned_iterations:,} iterations in {minutes:.1f} minutes"
    )


CLASS_SCORES = ("iou", "dice", "pixel_accuracy", "boundary_iou")
MEAN_SCORES = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")


def describe_scores(metrics):
    """Rows of (before, after) for the tables of scores, or None before testing is done."""
    if metrics is None:
        return None
    before = metrics.get("before") or {}
    classes_before = before.get("classes") or {}
    return {
        "images": metrics.get("images"),
        "mean": score_cells(metrics, before, MEAN_SCORES),
        "classes": {
            name: score_cells(scores, classes_before.get(name) or {}, CLASS_SCORES)
            for name, scores in metrics["classes"].items()
        },
        "baselines": {
            name: score_cells(scores, {}, MEAN_SCORES)
            for name, scores in (metrics.get("baselines") or {}).items()
        },
    }


def score_cells(scores, before, names):
    """[(score before training or "", score), ...] as text, for the scores called `names`."""

    def text(value, missing):
        return missing if value is None else f"{value:.3f}"

    return [(text(before.get(name), ""), text(scores.get(name), "-")) for name in names]


def list_facts(facts):
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


# ---- The page -----------------------------------------------------------------------------------


def make_page(results_dir="runs"):
    """The homework page of the runs in results_dir, as text.

    Errors: FileNotFoundError if none of the homework's runs can be read.
    """
    sections, missing = [], []
    for experiment in EXPERIMENTS:
        try:
            sections.append(describe(experiment, results_dir))
        except FileNotFoundError:
            missing.append((experiment, "not run yet"))
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            missing.append((experiment, str(error)))
    if not sections:
        raise FileNotFoundError(
            f"{results_dir} holds none of the homework's runs that can be read: make them with "
            f"python Examples/reproduce_homework.py --quick"
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, machines and files are text, never HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("homework_page.html.j2").render(
        sections=sections,
        missing=missing,
        generated=any(section["generated"] for section in sections),
        synthetic=any(section["synthetic"] for section in sections),
        quick_seconds=QUICK_SECONDS,
    )


def write_page(results_dir="runs"):
    """Write results_dir/homework-page/index.html, complete or not at all; returns its path."""
    text = make_page(results_dir)
    path = Path(results_dir) / "homework-page" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    SegStudio.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results-dir", default="runs", metavar="DIR", help="folder of all runs")
    flags = parser.parse_args()
    print(f"The homework page: {write_page(Path(flags.results_dir).expanduser())}")


if __name__ == "__main__":
    SegStudio.run_example(main)
