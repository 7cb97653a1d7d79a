"""Which loss is best? Every loss curve, beside one yardstick that all runs share.

An MSE of 300 and a Dice loss of 0.9 cannot be compared: each loss has a scale of its own. Scores
can. The upper plots show the training losses, one plot for each kind; the lower ones the scores by
epoch. Of several runs of a kind (dice scales, seeds), the best case is the one with the highest
mean IoU on the test images, the worst case, drawn dashed, the one with the lowest.

    python Examples/reproduce_homework.py --quick --only mse,dice,combined-200   # makes runs
    python Examples/compare_losses.py [mse dice]        # all runs, or these two: seconds
"""

import re
from collections import Counter
from pathlib import Path

from SegStudio.SegStudio import PALETTE, SegStudio

SCORES = {"mean_iou": "mean IoU", "mean_dice": "mean Dice", "boundary_f1": "boundary F1"}


def read_runs(flags):
    """The runs asked for, or all that can be read; of those the ones with the commonest classes."""
    results = Path(flags.results_dir).expanduser()
    runs = []
    for name in flags.runs or sorted(path.parent.name for path in results.glob("*/losses.csv")):
        try:
            run = SegStudio.HomeworkReport.read_run(results / name)
        except (FileNotFoundError, ValueError) as error:
            if flags.runs:
                raise
            print(f"Left out: {error}")
            continue
        run["test_iou"] = run["metrics"] and run["metrics"]["mean_iou"]
        run["kind"] = re.sub(r"\+[\d.e+]+\*", " + scale*", run["loss"])  # one kind, many scales
        runs.append(run)
    if not runs:
        raise ValueError(f"{results} holds no runs: reproduce_homework.py --quick makes them")
    classes = Counter(str(run["data"]) for run in runs).most_common(1)[0][0]
    for run in [run for run in runs if str(run["data"]) != classes]:
        runs.remove(run)
        print(f"Left out: {run['name']} has other classes than most runs")
    return runs


def draw(dls, runs):
    """Upper row: losses, a plot for each kind. Lower row: the common scores."""
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    figure = dls.new_figure(figsize=(4.6 * max(3, len(kinds)), 8.6), dpi=110, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    upper.suptitle("Training losses: every kind has a scale of its own")
    lower.suptitle("The common yardstick: scores on images kept out of training")
    plots = dict(zip(kinds, upper.subplots(1, len(kinds), squeeze=False)[0], strict=True))
    score_plots = dict(zip(SCORES, lower.subplots(1, 3), strict=True))
    colors = {run["name"]: PALETTE[k % len(PALETTE)] for k, run in enumerate(runs)}
    for run in runs:
        rivals = [r["test_iou"] for r in runs if r["kind"] == run["kind"] and r["metrics"]]
        case = {max(rivals): " (best case)", min(rivals): " (worst case)"} if rivals[1:] else {}
        label = run["name"] + case.get(run["test_iou"], "")
        style = {"color": colors[run["name"]], "linestyle": "--" if "(worst" in label else "-"}
        epochs = [row["iteration"] / run["per_epoch"] for row in run["losses"]]
        plots[run["kind"]].plot(epochs, [r["loss"] for r in run["losses"]], label=label, **style)
        for score, axes in score_plots.items():
            scored = [row for row in run["rows"] if score in row]
            points = [(row["iteration"] / run["per_epoch"], row[score]) for row in scored]
            points += [(epochs[-1], run["metrics"][score])] if run["metrics"] and not points else []
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=run["name"], **style)
    for name, axes in plots.items():
        axes.set(xlabel="epoch", ylabel="loss, mean of an interval", title=name)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17))
    for score, axes in score_plots.items():  # limits only now: they stay as they are when set
        axes.set(xlabel="epoch", ylabel=SCORES[score], ylim=(0, None), title=SCORES[score])
    for axes in (*plots.values(), *score_plots.values()):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
    lower.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return dls.save_figure(figure, "losses.png")


def main():
    names = {"nargs": "*", "help": "folders in the results folder; default: all"}
    flags = SegStudio.example_flags(__doc__, extra={"runs": names})
    runs, dls = read_runs(flags), SegStudio(**flags.settings)
    dls.log(f"{'run':28}{'loss':20}{'first':>9}{'last':>9}{'test mean IoU':>15}{'Dice':>8}")
    for run in sorted(runs, key=lambda run: -(run["test_iou"] or 0)):
        losses = [row["loss"] for row in run["losses"]]
        scores = [(run["metrics"] or {}).get(name) for name in ("mean_iou", "mean_dice")]
        iou, dice = ("-" if score is None else f"{score:.3f}" for score in scores)
        curve = f"{losses[0]:9.4g}{losses[-1]:9.4g}"
        dls.log(f"{run['name']:28}{run['loss']:20}{curve}{iou:>15}{dice:>8}")
    unscored = [run["name"] for run in runs if not any("mean_iou" in row for row in run["rows"])]
    if unscored:
        dls.log(f"\nNo scores by epoch, so the test's score alone: {', '.join(unscored)}")
        dls.log("Training's evaluate_every=N writes scores by epoch.")
    dls.log(f"\nThe plots: {draw(dls, runs)}")


if __name__ == "__main__":
    SegStudio.run_example(main)
