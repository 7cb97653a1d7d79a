"""The whole homework by one command, and one page that shows all of it by figure number.

Runs the experiments of the homework (all, or those of --only), each in a folder of its own in the
results folder. What is finished with the same schedule is skipped; what was interrupted goes on
after its last whole epoch; a longer run is never replaced by a shorter one. The page,
runs/report/index.html, holds its pictures itself: mail it, print it, read it offline.

    python Examples/reproduce_homework.py --quick --only mse,dice,combined-200
    python Examples/reproduce_homework.py --only mse      # the homework's schedule

On 2 CPU cores: about 2 minutes for each experiment with --quick, about an hour without.
"""

import subprocess
import sys
from pathlib import Path

from torch.utils.data import Subset

from SegStudio import SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
FILES_OF_A_RUN = ("*.png", "*.json", "losses.csv", "log.txt", "model.pt", "checkpoint.pt")


def what_is_left(folder, schedule):
    """What a run's folder still needs: "all", "rest" (of the training), "test" or "nothing"."""
    try:
        run = SegStudio.HomeworkReport.read_run(folder)
        there = {name: (run["settings"] | run["training"])[name] for name in schedule}
    except (OSError, ValueError, KeyError, TypeError):
        return "all"
    if there != schedule:
        longer = there["images"] * there["epochs"] > schedule["images"] * schedule["epochs"]
        return "nothing" if longer else "all"
    if (folder / "checkpoint.pt").exists():
        return "rest"
    if not (folder / "model.pt").exists():
        return "all"
    return "nothing" if (folder / "metrics.json").exists() else "test"


def run_shapes(experiment, folder, flags):
    """Train and test one of the experiments on PurdueShapes5MultiObject, or the rest of it."""
    schedule = {"images": flags.train_images, "epochs": flags.epochs, "seed": flags.seed}
    schedule |= {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM}
    left = what_is_left(folder, schedule)
    if left == "nothing":
        return print(f"{experiment.name}: {folder} is complete, or longer. To repeat: remove it")
    if left == "all":
        for path in [path for pattern in FILES_OF_A_RUN for path in folder.glob(pattern)]:
            path.unlink()
    settings = flags.settings | {"run_name": folder.name}
    settings |= {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM}
    dls = SegStudio(image_size=[64, 64], use_gpu=True, **settings)
    dls.log(f"\n==== {experiment.name}: {experiment.title}")
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    segmenter.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    untrained = segmenter.score(model)
    if left != "test":
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            model,
            experiment.loss_type,
            experiment.dice_scale,
            report_every=60 if flags.quick else 500,
            # Scores after every epoch, for compare_losses.py. Nothing is chosen by them.
            evaluate_every=len(segmenter.train_dataloader),
            held_out=Subset(segmenter.dataserver_test, range(200)),
            resume=True,
        )
    show = 12 if flags.quick else 50  # five test batches, as in the report
    segmenter.run_code_for_testing_semantic_segmentation(model, before=untrained, show_every=show)
    return None


def run_coco(experiment, folder, flags):
    """The COCO experiments have a script of their own, which also finds or draws their data."""
    command = [str(Path(__file__).with_name("coco_segmentation.py"))]
    command += ["--loss", experiment.name.removeprefix("coco-"), "--run-name", folder.name]
    command += ["--results-dir", str(flags.results_dir), "--seed", str(flags.seed)]
    command += [flag for flag in ("--quick", "--show") if flag in sys.argv]
    if (folder / "metrics.json").exists():
        run = SegStudio.HomeworkReport.read_run(folder)
        if run["command"][1:] == command[1:]:
            return print(f"{experiment.name}: {folder} is complete. To repeat: remove it")
    if subprocess.run([sys.executable, *command]).returncode:
        raise ValueError(f"{experiment.name} did not finish: see the lines above")
    return None


def main():
    only = {"metavar": "NAMES", "help": "such as mse,dice,combined-200; default: all"}
    flags = SegStudio.example_flags(__doc__, quick=(1200, 2), extra={"--only": only})
    report = SegStudio.HomeworkReport(flags.results_dir)
    known = {experiment.name: experiment for experiment in report.experiments}
    names = flags.only.split(",") if flags.only else list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--only has no experiment {name!r}; it has {', '.join(known)}")
    if flags.run_name:
        raise ValueError("every experiment has a fixed folder here: use --results-dir instead")
    for name in names:
        run = run_coco if name.startswith("coco") else run_shapes
        run(known[name], report.folder(known[name]), flags)
        page = report.write()  # after each, so that an interruption leaves what is done
    print(f"\nThe report: {page}\nNext: python Examples/compare_losses.py  (one yardstick)")


if __name__ == "__main__":
    SegStudio.run_example(main)
