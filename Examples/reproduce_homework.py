"""The whole homework by one command, and one page that shows all of it by figure number.

Runs the experiments of the homework, each in a fixed folder of runs/. What is finished is skipped,
what was interrupted goes on after its last whole epoch, a longer run is kept. The page,
runs/report/index.html, holds its pictures itself: mail it, or print it.

    python Examples/reproduce_homework.py --quick         # 2 CPU cores: 2 minutes an experiment
    python Examples/reproduce_homework.py --only mse,dice # the homework's schedule: an hour each
"""

import subprocess
import sys
from pathlib import Path

from torch.utils.data import Subset

from SegStudio import SegStudio

RECIPE = {"batch_size": 4, "learning_rate": 1e-4, "momentum": 0.9}
COCO_SCRIPT = str(Path(__file__).with_name("coco_segmentation.py"))
RUN_FILES = ("settings.json", "losses.csv", "metrics.json", "log.txt", "model.pt", "checkpoint.pt")


def what_is_left(folder, schedule):
    """What of a run is still to do: "all", "rest" (of the training), "test" or "nothing"."""
    try:
        run = SegStudio.HomeworkReport.read_run(folder)
    except FileNotFoundError:
        return "all"
    there = {name: (run["settings"] | run["training"]).get(name) for name in schedule}
    if there != schedule:
        mine, other = (facts.get("images", 1) * facts["epochs"] for facts in (schedule, there))
        return "nothing" if other > mine else "all"
    steps = {"checkpoint.pt": "rest", "metrics.json": "nothing", "model.pt": "test"}
    return next((step for name, step in steps.items() if (folder / name).exists()), "all")


def run_shapes(experiment, folder, flags, left):
    """Train and test on the shapes, or do the rest of it; the pixelwise Dice form diverges."""
    for path in folder.glob("*") if left == "all" else ():
        if path.name in RUN_FILES or path.suffix == ".png":
            path.unlink()
    dls = SegStudio(use_gpu=True, **flags.settings | RECIPE | {"run_name": folder.name})
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
    shown = {"before": untrained, "show_every": -(-len(segmenter.test_dataloader) // 4)}
    segmenter.run_code_for_testing_semantic_segmentation(model, **shown)  # four test batches


def run_coco(experiment, folder, flags, left):
    """The COCO experiments have a script of their own, which also finds or draws their data."""
    words = vars(flags) | {"loss": experiment.name.removeprefix("coco-"), "run_name": folder.name}
    names = ("loss", "run_name", "results_dir", "seed", "epochs", "coco", "dataroot")
    command = [f"--{n.replace('_', '-')}={words[n]}" for n in names if words[n] is not None]
    switches = {"quick": flags.quick, "show": flags.show, "resume": left == "rest"}
    command += [f"--{name}" for name, on in switches.items() if on]
    if subprocess.run([sys.executable, COCO_SCRIPT, *command]).returncode:
        raise ValueError(f"{experiment.name} did not finish: see the lines above")


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
    failed = []
    for experiment in map(known.get, names):
        schedule, run = {"epochs": flags.epochs, "seed": flags.seed}, run_coco
        if not experiment.name.startswith("coco"):
            schedule, run = schedule | RECIPE | {"images": flags.train_images}, run_shapes
        folder = report.folder(experiment)
        try:
            if (left := what_is_left(folder, schedule)) != "nothing":
                run(experiment, folder, flags, left)
            print(f"{folder}: complete")
            page = report.write()  # after each, so that an interruption leaves what is done
        except (ArithmeticError, OSError, ValueError) as error:
            failed.append(f"{experiment.name}: {error}")
    if failed:
        raise ValueError("; ".join(failed))
    print(f"\nThe report: {page}\nNext: python Examples/compare_losses.py")


if __name__ == "__main__":
    SegStudio.run_example(main)
