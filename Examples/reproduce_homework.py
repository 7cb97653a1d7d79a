"""The whole homework by one command, and one page that shows all of it by figure number.

Runs the experiments of the homework (all, or those of --only), each in a folder of its own in the
results folder. What is finished with the same schedule is skipped; what was interrupted goes on
after its last whole epoch; a longer run is never replaced by a shorter one (remove its folder to
repeat it). The page, runs/report/index.html, holds its pictures itself: mail it, or print it.

    python Examples/reproduce_homework.py --quick         # 2 CPU cores: 2 minutes an experiment
    python Examples/reproduce_homework.py --only mse,dice # the homework's schedule: an hour each
"""

import subprocess
import sys
from pathlib import Path

from torch.utils.data import Subset

from SegStudio import SegStudio

RECIPE = {"batch_size": 4, "learning_rate": 1e-4, "momentum": 0.9}
RUN_FILES = ("settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt", "checkpoint.pt")


def what_is_left(folder, schedule):
    """What of a run is still to do: "all", "rest" (of the training), "test" or "nothing"."""
    try:
        run = SegStudio.HomeworkReport.read_run(folder)
    except FileNotFoundError:
        return "all"
    there = {name: (run["settings"] | run["training"]).get(name) for name in schedule}
    if there != schedule:
        mine, other = (facts["images"] * facts["epochs"] for facts in (schedule, there))
        return "nothing" if other > mine else "all"
    steps = {"checkpoint.pt": "rest", "metrics.json": "nothing", "model.pt": "test"}
    return next((step for name, step in steps.items() if (folder / name).exists()), "all")


def run_shapes(experiment, folder, flags):
    """Train and test on the shapes, or do the rest of it; the pixelwise Dice form diverges."""
    schedule = {"images": flags.train_images, "epochs": flags.epochs, "seed": flags.seed}
    left = what_is_left(folder, schedule | RECIPE)
    if left == "nothing":
        return "complete, or of a longer schedule, so it is kept"
    for path in folder.glob("*") if left == "all" else ():
        if path.name in RUN_FILES or path.suffix == ".png":
            path.unlink()
    dls = SegStudio(use_gpu=True, **flags.settings | RECIPE | {"run_name": folder.name})
    dls.log(f"\n==== {experiment.name}: {experiment.title}")
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    model = segmenter.mUnet(skip_connections=True, depth=16)
    untrained = segmenter.score(model)
    if left != "test":
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            *(model, experiment.loss_type, experiment.dice_scale),
            **{"report_every": 50 if flags.quick else 500, "resume": True, "dice_form": "squared"},
            evaluate_every=len(segmenter.train_dataloader),
            held_out=Subset(segmenter.dataserver_test, range(200)),
        )
    every = -(-len(segmenter.test_dataloader) // 4)  # four test batches are shown
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained, show_every=every)
    return "done"


def run_coco(experiment, folder, flags):
    """The COCO experiments have a script of their own, which also finds or draws their data."""
    command = [Path(__file__).with_name("coco_segmentation.py"), "--run-name", folder.name]
    command += ["--loss", experiment.name.removeprefix("coco-")]
    command += ["--results-dir", flags.results_dir, "--seed", flags.seed, "--epochs", flags.epochs]
    command += (["--coco", flags.coco] if flags.coco else []) + ["--quick"] * flags.quick
    command = [str(word) for word in command]
    done = (folder / "metrics.json").exists() and SegStudio.HomeworkReport.read_run(folder)
    if done and done["command"][1:] == command[1:]:
        return "complete, so it is kept"
    if subprocess.run([sys.executable, *command]).returncode:
        raise ValueError(f"{experiment.name} did not finish: see the lines above")
    return "done"


def main():
    extra = {"--only": {"metavar": "NAMES", "help": "such as mse,combined-200; default: all"}}
    extra["--coco"] = {"metavar": "DIR", "help": "made by prepare_coco.py; default: synthetic"}
    flags = SegStudio.example_flags(__doc__, quick=(1000, 2), extra=extra)
    report = SegStudio.HomeworkReport(flags.results_dir)
    known = {experiment.name: experiment for experiment in report.experiments}
    names = flags.only.split(",") if flags.only else list(known)
    if unknown := set(names) - set(known):
        raise ValueError(f"--only has no experiment {min(unknown)!r}; it has {', '.join(known)}")
    if flags.run_name:
        raise ValueError("each experiment has a fixed folder: use --results-dir, not --run-name")
    for experiment in map(known.get, names):
        run = run_coco if experiment.name.startswith("coco") else run_shapes
        folder = report.folder(experiment)
        print(f"{folder}: {run(experiment, folder, flags)}")
        page = report.write()  # after each, so that an interruption leaves what is done
    print(f"\nThe report: {page}\nNext: python Examples/compare_losses.py")


if __name__ == "__main__":
    SegStudio.run_example(main)
