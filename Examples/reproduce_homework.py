"""The whole homework by one command: eight experiments, and one page with all their figures.

Each experiment has a fixed folder in runs/. A finished run is kept, an interrupted run continues
(with --resume or without), and a longer run is kept too. A run with other settings is renamed,
never deleted. After each experiment the homework page, runs/homework-page/index.html, is written
again.

    python Examples/reproduce_homework.py --quick          # about 60 s for each experiment, 8 min
    python Examples/reproduce_homework.py --only mse,dice  # the homework's schedule: an hour each
    python Examples/reproduce_homework.py --quick --seeds 3 --only mse,dice    # 3 runs of each loss

--quick limits the time: each experiment trains for 35 s and takes about 60 s with its data and its
test. --epochs or --train-images lift that limit and set the exact size; --train-images is for the
shapes only. --precision bf16 computes convolutions in bfloat16, faster on a CPU or GPU that has it.
The three COCO experiments draw a synthetic set unless --coco names a folder that
Datasets/prepare_coco.py wrote.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from homework_page import (
    EXPERIMENTS,
    HOMEWORK_EPOCHS,
    HOMEWORK_IMAGES,
    QUICK_SECONDS,
    read_run,
    write_page,
)

from SegStudio import SegStudio
from SegStudio.backstage import RERUN, move_aside, rerun_folder

# The homework's recipe.
IMAGE_SIZE = [64, 64]
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
DEPTH = 16
CLASSES = ("rectangle", "triangle", "disk", "oval", "star")

# With --quick: how many of the QUICK_SECONDS of an experiment are training. The rest is for the
# data, the scores of the untrained network and the test. All runs train for the same time, so that
# compare_losses.py can compare them.
QUICK_TRAINING_SECONDS = 35
QUICK_IMAGES = 2000

COCO_SCRIPT = Path(__file__).with_name("coco_segmentation.py")
COCO_LOSSES = {"coco-mae": "mae", "coco-dice": "dice", "coco-combined": "combined"}


# ---- What is left to do -------------------------------------------------------------------------


def wanted_settings(experiment, flags, seed):
    """{name: value} in the settings.json of the wanted run."""
    wanted = {"seed": seed, "max_seconds": flags.seconds, "precision": flags.precision}
    if flags.seconds is None:
        wanted["epochs"] = flags.epochs
    if experiment.data == "coco":
        return wanted | {"synthetic": flags.coco is None}
    return wanted | {
        "images": flags.train_images,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
    }


def what_is_left(folder, wanted):
    """What to do for the run in `folder`, as (step, reason).

    The steps:
        "train": there is no run yet.
        "continue": it was interrupted in its training or its test.
        "nothing": it is complete, or longer than the run asked for.
        "move": there is a run with other settings that is not longer.

    Errors: ValueError for a damaged run.
    """
    try:
        run = read_run(folder)
    except FileNotFoundError:
        return "train", "not run yet"
    actual = {**run.settings, **run.training, "synthetic": run.synthetic}
    differing = [name for name, value in wanted.items() if actual.get(name) != value]
    if differing:
        changes = ", ".join(
            f"{name.replace('_', ' ')} {actual.get(name)} instead of {wanted[name]}"
            for name in differing
        )
        if is_longer(run, wanted) and set(differing) <= {"images", "epochs", "max_seconds"}:
            unfinished = "" if run.metrics else "; it is not finished"
            return "nothing", f"a longer run is kept ({changes}){unfinished}"
        return "move", changes
    if (folder / "metrics.json").exists():
        return "nothing", "complete"
    script = Path(run.command[0]).name if run.command else None  # None: made by hand
    if script not in (None, Path(__file__).name, COCO_SCRIPT.name):
        return "move", f"an unfinished run of {script}"
    return "continue", "it was interrupted"


def is_longer(run, wanted):
    """Whether the run is longer than the wanted one, by seconds if that is bounded by time."""
    if wanted["max_seconds"] is not None:
        return run.seconds > wanted["max_seconds"]
    images = wanted.get("images", run.training["images"])
    return run.planned_images > images * wanted["epochs"]


# ---- The experiments ----------------------------------------------------------------------------


def run_shapes(experiment, run_name, seed, flags):
    """Train mUnet on the shapes with the experiment's loss, and test it."""
    dls = SegStudio(
        image_size=IMAGE_SIZE,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        batch_size=BATCH_SIZE,
        classes=CLASSES,
        use_gpu=True,
        **flags.settings | {"run_name": run_name, "seed": seed},
    )
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    # The validation images are generated in addition: training uses all of its images, and
    # no score during training comes from the test images.
    segmenter.load_shapes(
        flags.train_images,
        test_images=200 if flags.quick else 1000,
        validation_images=100 if flags.quick else 500,
    )
    model = segmenter.mUnet(skip_connections=True, depth=DEPTH)
    untrained = segmenter.score(model)
    segmenter.custom_run_code_for_training_for_semantic_segmentation(
        model,
        experiment.loss,
        dice_scale=experiment.dice_scale,
        max_seconds=flags.seconds,
        log_every=25 if flags.quick else 500,
        evaluate_every=50 if flags.quick else len(segmenter.train_dataloader),
        precision=flags.precision,
        channels_last=flags.precision == "bf16",
        resume=True,
    )
    quarter = -(-len(segmenter.test_dataloader) // 4)  # rounded up: four test batches are shown
    dls.log("In this table each cell is untrained -> trained.")
    segmenter.run_code_for_testing_semantic_segmentation(
        model, before=untrained, show_every=quarter
    )


def run_coco(experiment, run_name, seed, flags):
    """Run the script of the COCO experiments, which also finds or draws their data."""
    command = [sys.executable, str(COCO_SCRIPT)]
    command += [f"--loss={COCO_LOSSES[experiment.name]}", f"--run-name={run_name}"]
    command += [f"--results-dir={flags.results_dir}", f"--seed={seed}"]
    command += [f"--precision={flags.precision}"]
    command += [f"--{name}" for name in ("quick", "show") if getattr(flags, name)]
    if flags.coco is not None:
        command.append(f"--coco={flags.coco}")
    if flags.dataroot is not None:
        command.append(f"--dataroot={flags.dataroot}")
    if flags.seconds is not None:
        command.append(f"--seconds={flags.seconds}")
    else:
        command.append(f"--epochs={flags.epochs}")
    if (Path(flags.results_dir).expanduser() / run_name).is_dir():
        command.append("--resume")
    if subprocess.run(command).returncode != 0:
        raise ValueError("it did not finish; the lines above say why")


def run_experiment(experiment, seed, run_name, flags):
    """Do what is left of one run, and print what that is."""
    folder = Path(flags.results_dir).expanduser() / run_name
    if RERUN in os.environ:
        folder = rerun_folder(folder)
    step, reason = what_is_left(folder, wanted_settings(experiment, flags, seed))
    if step == "move":
        print(f"{folder} has other settings ({reason}). It is now {move_aside(folder)}.")
    elif step == "nothing":
        print(f"{folder}: {reason}")
        return
    # At once, because a COCO run is another process that prints to the same place.
    print(f"{folder}: {experiment.title}, seed {seed}", flush=True)
    run = run_shapes if experiment.data == "shapes" else run_coco
    run(experiment, run_name, seed, flags)


def is_to_run(folder):
    """`python -m SegStudio rerun` repeats one run of this script, not all of its command."""
    return RERUN not in os.environ or folder.absolute() == Path(os.environ[RERUN])


def main():
    flags = read_flags()
    experiments = chosen_experiments(flags.only)
    seeds = range(flags.seed, flags.seed + flags.seeds)
    count = len(experiments) * len(seeds)
    print(describe_time(count, flags))
    failed = {}  # {reason: names of the runs}
    page = None
    for number, (experiment, seed) in enumerate(itertools.product(experiments, seeds), start=1):
        run_name = experiment.folder_name
        if seed != flags.seed:
            run_name += f"_seed_{seed}"
        print(f"\nRun {number} of {count}")
        if not is_to_run(Path(flags.results_dir).expanduser() / run_name):
            continue
        try:
            run_experiment(experiment, seed, run_name, flags)
            # After each run: if the next one is interrupted, the page shows what is done.
            page = write_page(Path(flags.results_dir).expanduser())
        except (ArithmeticError, OSError, ValueError) as error:
            print(f"{run_name} failed: {error}")
            failed.setdefault(str(error), []).append(run_name)
    if page is not None:
        print(f"\nThe homework page: {page}")
        print("Next: python Examples/compare_losses.py")
    if failed:
        raise ValueError("; ".join(f"{', '.join(names)}: {why}" for why, names in failed.items()))


def describe_time(count, flags):
    """How many runs there are, and how long they take, if the flags leave that to the script."""
    runs = f"{count} run{'s' if count > 1 else ''}"
    if flags.seconds is not None:
        return f"{runs}, about {QUICK_SECONDS} s each"
    if (flags.train_images, flags.epochs) == (HOMEWORK_IMAGES["shapes"], HOMEWORK_EPOCHS):
        return (
            f"{runs} on the homework's schedule: each takes about an hour on a 2-core CPU, for "
            f"COCO half an hour. Finished runs are kept. A short run of all: --quick"
        )
    return runs


def read_flags():
    count = len(EXPERIMENTS)
    flags = SegStudio.example_flags(
        __doc__,
        quick=(QUICK_IMAGES, 1),
        full=(HOMEWORK_IMAGES["shapes"], HOMEWORK_EPOCHS),
        quick_seconds=count * QUICK_SECONDS,
        last_file=None,
        extra={
            "--only": {"metavar": "NAMES", "help": "such as mse,combined-200; default: all"},
            "--coco": {"metavar": "DIR", "help": "made by prepare_coco.py; default: synthetic"},
            "--seeds": {
                "type": int,
                "default": 1,
                "metavar": "N",
                "help": "train each experiment N times, from --seed on; default 1",
            },
            "--precision": {
                "choices": ("fp32", "bf16"),
                "default": "fp32",
                "help": "bf16: about twice as fast on a CPU that has it; default fp32",
            },
        },
    )
    if flags.seeds < 1:
        raise ValueError(f"--seeds is 1 or more, not {flags.seeds}")
    chosen_experiments(flags.only)  # a wrong name is an error before anything runs
    bounded = flags.training_seconds() is not None
    flags.seconds = QUICK_TRAINING_SECONDS if bounded else None
    return flags


def chosen_experiments(only):
    """The experiments that --only names, in the homework's order; all of them without it."""
    if not only:
        return EXPERIMENTS
    names = [name.strip() for name in only.split(",")]
    known = [experiment.name for experiment in EXPERIMENTS]
    for name in names:
        if name not in known:
            raise ValueError(f"--only has no experiment {name!r}; it has {', '.join(known)}")
    return [experiment for experiment in EXPERIMENTS if experiment.name in names]


if __name__ == "__main__":
    SegStudio.run_example(main)
