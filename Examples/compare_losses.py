"""Which loss is best? Compare scores, because each loss has its own scale.

An MSE of 300 and a Dice loss of 0.9 cannot be compared; the mean IoU of both networks can. The
upper plots show the training losses, one plot for each kind of loss. The lower plots show scores on
validation images, during training.

    python Examples/reproduce_homework.py --quick --seeds 3 --only mse,dice,combined-200  # 9 min
    python Examples/compare_losses.py              # the homework's runs: seconds
    python Examples/compare_losses.py mse my_run   # these two, even if their settings differ

Without names the script compares like with like: runs of the homework's network and recipe, on the
same data, with the same schedule. It says which runs it leaves out, and why.
One run of each loss does not show which is best: with another seed the order can change. So
the script names a best (or worst) case only if its range over several seeds lies above (or below)
all others, and if runs that are bounded by time have about as many iterations.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from homework_page import list_facts, read_run
from matplotlib.ticker import MaxNLocator

from SegStudio import SegStudio

SCORES = {"mean_iou": "mean IoU", "mean_dice": "mean Dice", "boundary_iou": "boundary IoU"}
# The palette without its yellow, which is hard to see on white.
COLORS = tuple(color for color in SegStudio.PALETTE if color.upper() != "#F0E442")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


# ---- Which runs are compared --------------------------------------------------------------------


def read_runs(results_dir, names=()):
    """The runs called `names`, or all runs in results_dir that can be read."""
    results_dir = Path(results_dir).expanduser()
    if names:
        folders = [results_dir / name for name in names]
        # The shell completes a path: runs/mse is the same as mse.
        folders = [
            Path(name) if Path(name).is_dir() and not folder.is_dir() else folder
            for name, folder in zip(names, folders, strict=True)
        ]
        return [read_run(folder) for folder in dict.fromkeys(folders)]
    runs = []
    for folder in sorted(path.parent for path in results_dir.glob("*/losses.csv")):
        try:
            runs.append(read_run(folder))
        except (FileNotFoundError, ValueError) as error:
            print(f"Left out: {error}")
    if not runs:
        raise ValueError(f"{results_dir} holds no runs: reproduce_homework.py --quick makes them")
    return runs


def data_of(run):
    """The data of a run: source, classes and size of the images."""
    return {
        "data": run.source or "unknown source",
        "classes": ", ".join(run.data.get("class_names", ())),
        "image size": run.settings.get("image_size"),
    }


def schedule_of(run):
    """The number of images, and the time or epochs, of a training."""
    if run.max_seconds is not None:
        return {"images": run.training["images"], "seconds": run.max_seconds}
    return {"images": run.training["images"], "epochs": run.settings["epochs"]}


def case_of(run):
    """The case of a run: its loss, with the form of Dice if that is not the default."""
    form = run.training.get("loss_options", {}).get("form", "squared")
    return run.loss if form == "squared" else f"{run.loss} ({form})"


def seed_of(run):
    return run.settings.get("seed")


def choose_comparable(runs):
    """(the runs to compare, [(run, why it is left out), ...]).

    Only finished runs of the homework's network and recipe are kept. Among them, the largest group
    with the same data and schedule is kept (if two are equally large, the longer schedule). Of
    several runs with the same loss and seed, the first is kept.
    """
    left_out, groups = [], {}
    for run in runs:
        if changed := run.changed_settings():
            left_out.append((run, f"not the homework's recipe: {list_facts(changed)}"))
        elif run.metrics is None:
            left_out.append((run, "training or testing has not finished"))
        else:
            key = str(data_of(run) | schedule_of(run))
            groups.setdefault(key, []).append(run)
    if not groups:
        return [], left_out
    kept = max(groups.values(), key=lambda group: (len(group), group[0].planned_images))
    reference = data_of(kept[0]) | schedule_of(kept[0])
    for group in groups.values():
        if group is not kept:
            left_out += [(run, f"other {list_differences(run, reference)}") for run in group]
    chosen = {}
    for run in kept:
        first = chosen.setdefault((case_of(run), seed_of(run)), run)
        if first is not run:
            left_out.append((run, f"the same loss and seed as {first.name}"))
    return list(chosen.values()), left_out


def list_differences(run, reference):
    """The data and schedule of a run that differ from `reference`, as text."""
    facts = data_of(run) | schedule_of(run)
    differing = {name: value for name, value in facts.items() if reference.get(name) != value}
    return list_facts(differing)


def explain_differences(runs):
    """One line for each thing that differs between runs that a user chose."""
    lines = []
    for run in runs:
        if changed := run.changed_settings():
            lines.append(f"{run.name} does not use the homework's recipe: {list_facts(changed)}")
    reference = data_of(runs[0]) | schedule_of(runs[0])
    for run in runs[1:]:
        if differences := list_differences(run, reference):
            lines.append(f"{run.name} differs from {runs[0].name}: {differences}")
    return lines


def group_by_case(runs):
    """{case: its runs, one for each seed}, the case with the highest mean IoU first."""
    cases = {}
    for run in runs:
        cases.setdefault(case_of(run), []).append(run)
    return dict(sorted(cases.items(), key=lambda item: -np.mean(test_scores(item[1]) or [0.0])))


def test_scores(runs, name="mean_iou"):
    """A score of the runs on the test images; runs without it are left out."""
    scores = [(run.metrics or {}).get(name) for run in runs]
    return [score for score in scores if score is not None]


# ---- What the numbers say -----------------------------------------------------------------------


def write_range(values, digits=3):
    """One value as it is, several values as "mean (lowest - highest)"."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def make_table(cases):
    """The table of all cases: losses, and scores on the test images."""
    lines = [
        f"{'loss':20}{'seeds':>6}{'iterations':>13}{'first':>9}{'last':>9}{'test mean IoU':>24}"
        f"{'Dice':>24}"
    ]
    for case, runs in cases.items():
        first = np.mean([run.losses[0]["loss"] for run in runs])
        last = np.mean([run.losses[-1]["loss"] for run in runs])
        iou, dice = (write_range(test_scores(runs, name)) for name in ("mean_iou", "mean_dice"))
        counts = sorted({run.iterations for run in runs})
        count = str(counts[0]) if len(counts) == 1 else f"{counts[0]} - {counts[-1]}"
        lines.append(f"{case:20}{len(runs):6}{count:>13}{first:9.4g}{last:9.4g}{iou:>24}{dice:>24}")
    lines.append("first, last: means of the first and the last logged interval of training")
    return "\n".join(lines)


def warn_of_unequal_lengths(runs):
    """[a warning] if runs bounded by time have very different numbers of iterations, else []."""
    limited = [run for run in runs if run.max_seconds is not None]
    if not limited:
        return []
    short = min(limited, key=lambda run: run.iterations)
    long = max(limited, key=lambda run: run.iterations)
    if long.iterations < 1.25 * short.iterations:
        return []
    return [
        f"The runs are bounded by time and had from {short.iterations} ({short.name}) to "
        f"{long.iterations} ({long.name}) iterations, because the computer was not equally fast: "
        f"a part of the differences comes from that, so no best case is named."
    ]


def find_best_and_worst(cases):
    """(best case or None, worst case or None, the sentences that say why).

    Every case needs at least two seeds. A case is best if its lowest mean IoU is above the highest
    of all other cases, and worst if its highest is below the lowest of all others.
    """
    scores = {case: test_scores(runs) for case, runs in cases.items() if test_scores(runs)}
    if len(scores) < 2:
        return None, None, ["There is one case only, so nothing to compare."]
    if min(len(values) for values in scores.values()) < 2:
        sentences = [
            "Not every loss has two seeds. A difference may be chance, so no best case is named.",
            "More seeds: python Examples/reproduce_homework.py --quick --seeds 3",
        ]
        return None, None, sentences
    ranked = sorted(scores, key=lambda case: -np.mean(scores[case]))
    best, worst, sentences = None, None, []
    others = [score for case in ranked[1:] for score in scores[case]]
    if min(scores[ranked[0]]) > max(others):
        best = ranked[0]
        sentences.append(
            f"Best case: {best}. Its lowest mean IoU over the seeds, {min(scores[best]):.3f}, is "
            f"above the highest of all others, {max(others):.3f}."
        )
    else:
        rivals = [case for case in ranked[1:] if max(scores[case]) >= min(scores[ranked[0]])]
        sentences.append(
            f"No best case: {ranked[0]} has the highest mean, but the seeds of "
            f"{' and '.join(rivals)} reach into its range."
        )
    others = [score for case in ranked[:-1] for score in scores[case]]
    if max(scores[ranked[-1]]) < min(others):
        worst = ranked[-1]
        sentences.append(
            f"Worst case: {worst}. Its highest mean IoU, {max(scores[worst]):.3f}, is below the "
            f"lowest of all others, {min(others):.3f}."
        )
    return best, worst, sentences


# ---- The plots ----------------------------------------------------------------------------------


def kind_of(case):
    """The kind of a loss: "MSE+200*Dice" and "MSE+300*Dice" are both "MSE + scale * Dice"."""
    return re.sub(r"\+[\d.e+]+\*", " + scale * ", case)


def curves_of(runs, column):
    """[(iterations, values), ...] of a column of losses.csv, one curve for each seed."""
    curves = []
    for run in runs:
        points = [(row["iteration"], row[column]) for row in run.rows if column in row]
        if points:
            curves.append(tuple(np.array(points).T))
    return curves


def draw_curves(axes, curves, **style):
    """The mean of the seeds' curves as a line, with a band from the lowest to the highest.

    Runs that are bounded by time have different lengths. The line ends with the shortest run, or
    its last points would be the mean of fewer seeds.
    """
    shortest = min((steps for steps, _ in curves), key=lambda steps: steps[-1])
    values = np.array([np.interp(shortest, steps, y) for steps, y in curves])  # (seeds, points)
    axes.plot(shortest, values.mean(axis=0), **style)
    if len(curves) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(shortest, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if len(shortest) == 1:  # a band would have no width
            axes.vlines(shortest, low, high, color=style["color"], linewidth=2)


def draw(dls, cases, best=None, worst=None):
    """Draw losses.png. Upper row: a plot for each kind of loss. Lower row: the scores."""
    kinds = list(dict.fromkeys(map(kind_of, cases)))
    figure = dls.new_figure(figsize=(4.6 * max(3, len(kinds)), 9), dpi=110, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    upper.suptitle("Training losses: each kind has a scale of its own")
    sources = {run.training.get("evaluated_on") for runs in cases.values() for run in runs}
    source = f" ({sources.pop()})" if len(sources) == 1 and None not in sources else ""
    lower.suptitle(f"Scores on validation images during training{source}")
    loss_plots = dict(zip(kinds, upper.subplots(1, len(kinds), squeeze=False)[0], strict=True))
    score_plots = dict(zip(SCORES, lower.subplots(1, len(SCORES)), strict=True))
    names = {best: " (best case)", worst: " (worst case)"}
    for number, (case, runs) in enumerate(cases.items()):
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        style = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4,
            "label": case + seeds + names.get(case, ""),
        }
        draw_curves(loss_plots[kind_of(case)], curves_of(runs, "loss"), **style)
        for score, axes in score_plots.items():
            if curves := curves_of(runs, score):
                draw_curves(axes, curves, **style)
            elif tested := [run for run in runs if test_scores([run], score)]:
                ends = [(np.array([r.iterations]), np.array([r.metrics[score]])) for r in tested]
                draw_curves(axes, ends, **style | {"label": f"{style['label']} (test images)"})
    for kind, axes in loss_plots.items():
        axes.set(title=kind, ylabel="loss, mean of an interval")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17))
    for score, axes in score_plots.items():
        axes.set(title=SCORES[score], ylabel=SCORES[score], ylim=(0, None))
    for axes in (*loss_plots.values(), *score_plots.values()):
        axes.set(xlabel="iteration", xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    handles = [axes.get_legend_handles_labels() for axes in score_plots.values() if axes.lines]
    if handles:
        lower.legend(*handles[0], loc="outside lower center", ncols=4)
    return dls.save_figure(figure, "losses.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", help="runs in the results folder, or paths; default: see above")
    add("--results-dir", default="runs", metavar="DIR", help="folder of all runs")
    add("--run-name", metavar="NAME", help="folder of the plots in it; default: a new one")
    add("--show", action="store_true", help="open a window for the plots")
    flags = parser.parse_args()
    runs = read_runs(flags.results_dir, flags.runs)
    if flags.runs:
        left_out, remarks = [], explain_differences(runs)
    else:
        runs, left_out = choose_comparable(runs)
        remarks = []
    lines = [f"Left out: {run.name} ({why})" for run, why in left_out]
    if not runs:
        raise ValueError(
            "\n".join(
                [
                    *lines,
                    "no finished run of the homework is left to compare. Make some: "
                    "python Examples/reproduce_homework.py --quick --only mse,dice",
                ]
            )
        )
    dls = SegStudio(results_dir=flags.results_dir, run_name=flags.run_name, show=flags.show)
    for line in (*lines, *remarks):
        dls.log(line)
    if not remarks:
        dls.log(f"All with {list_facts(data_of(runs[0]) | schedule_of(runs[0]))}\n")
    cases = group_by_case(runs)
    dls.log(make_table(cases))
    best, worst, sentences = find_best_and_worst(cases)
    if warning := warn_of_unequal_lengths(runs):
        best, worst, sentences = None, None, warning
    for sentence in sentences:
        dls.log(sentence)
    unscored = [run.name for run in runs if not curves_of([run], "mean_iou")]
    if unscored:
        dls.log(f"No scores during training, so only the test score: {', '.join(unscored)}")
    dls.log(f"\nThe plots: {draw(dls, cases, best, worst)}")


if __name__ == "__main__":
    SegStudio.run_example(main)
