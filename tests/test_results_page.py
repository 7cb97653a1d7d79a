"""doc/results.md explains every file, field, column and line that a run writes, and no other."""

import csv
import fnmatch
import json
import re

import pytest
import torch
from conftest import ROOT, Segmentation, TinyShapes, train

from SegStudio import SegStudio, doctor, grade_losses, grade_models

PAGE = ROOT / "doc" / "results.md"
# Fields of which the page explains the whole: what is inside belongs to torch, a network, a loss.
WHOLE = (
    "network.arguments", "training.loss_options",
    "training.parameter_groups", "command",
)  # fmt: skip


# A line of the log that depends on the computer.
BUSY = (
    "Other programs are running (load L on C cores), and T threads then slow each other down. HINT"
)


def section(title):
    text = PAGE.read_text(encoding="utf-8")
    assert f"\n## {title}\n" in text
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text):
    """The names in `code` in the first column of the tables in a text."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", text, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) == len(set(names)), "a name has two rows"
    return set(names)


def leaves(value, name=""):
    """The names of all fields of nested dicts, with dots between them."""
    if isinstance(value, dict) and name not in WHOLE:
        return {x for key, part in value.items() for x in leaves(part, f"{name}.{key}".strip("."))}
    return {name}


class NaNAfter(torch.nn.Module):
    def __init__(self, iterations):
        super().__init__()
        self.left = iterations

    def forward(self, output, mask):
        self.left -= 1
        return ((output - mask) ** 2).mean() * (1 if self.left >= 0 else float("nan"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trainings with all options that add a field, a column, a line or a file."""
    results = tmp_path_factory.mktemp("results")
    found = {"files": set(), "log": ""}

    def experiment(**settings):
        settings = {"run_name": "run", "batch_size": 2, "seed": 0, **settings}
        segmenter = Segmentation(SegStudio(results_dir=results, **settings), max_num_objects=5)
        segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(14), TinyShapes(6))
        return segmenter, segmenter.mUnet(depth=4, width=4)

    def note(folder):
        found["files"] |= {path.name for path in folder.iterdir()}
        found["log"] += (folder / "log.txt").read_text(encoding="utf-8")

    def interrupt(history, net):
        if history.iterations == 6:
            raise KeyboardInterrupt

    options = {"loss": "Combined", "log_every": 2, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        train(*experiment(epochs=3), on_log=interrupt, **options)
    found["files"] |= {path.name for path in (results / "run").iterdir()}
    for _ in range(2):  # the first one goes on, the second one finds that all is done
        train(*experiment(epochs=3), **options)
    note(results / "run")
    segmenter, net = experiment(epochs=1)
    before, baselines = segmenter.score(net), segmenter.score_baselines()
    net.was_trained = True
    train(
        segmenter, net, "Combined", log_every=2, evaluate_every=3, evaluate_on=TinyShapes(4),
        max_seconds=1, clip_grad_norm=1.0,
    )  # fmt: skip
    segmenter.run_code_for_testing_semantic_segmentation(net, before=before, baselines=baselines)
    note(results / "run")
    with pytest.raises(FloatingPointError):
        train(*experiment(run_name="nan"), criterion=NaNAfter(3), log_every=2)
    note(results / "nan")
    for name in ("settings", "metrics", "fractions"):
        path = results / "run" / f"{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    with (results / "run" / "losses.csv").open(newline="") as file:
        found["columns"] = next(csv.reader(file))
    return found


# ---- a run --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_files(run):
    named = {name.replace("NNN", "*") for name in first_cells(section("The files"))}
    explained = {name for pattern in named for name in fnmatch.filter(run["files"], pattern)}
    assert run["files"] - explained == set()
    unseen = {pattern for pattern in named if not fnmatch.filter(run["files"], pattern)}
    assert unseen == {"strided/"}  # of scripts that train two networks; the next test has it


def test_the_files_of_the_examples():
    known = first_cells(section("The files")) | {"manifest.json", "index.html"}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "Examples").glob("*.py")]
    assert any('part_of_run("strided")' in source for source in sources)
    written = {
        name
        for source in sources
        for name in re.findall(r'"([\w-]+\.(?:png|gif|json|html))"', source)
    }
    paragraph = section("The files").partition("Scripts add files of their own:")[2]
    named = set(re.findall(r"`([\w-]+\.(?:png|gif|json|html))`", paragraph))
    others = {"5-empty_channels.png", "test-panel-NAME.png", "display-NNN.png"}
    assert written - known - others == named - others


@pytest.mark.slow
def test_the_columns_of_losses_csv(run):
    terms = set(run["columns"]) & {"mse", "dice"}
    assert len(terms) == 2
    columns = {
        re.sub(rf"^(grad_norm_)?({'|'.join(terms)})$", r"\1TERM", name) for name in run["columns"]
    }
    table = section("losses.csv").partition("The values of the runs that are kept")[0]
    names = {row.partition("`")[2].partition("`")[0] for row in re.findall(r"^\| `.*", table, re.M)}
    assert names == columns


@pytest.mark.parametrize(
    "loss",
    [Segmentation.SegmentationLossComb(base="mse"), Segmentation.SegmentationLossComb(base="mae"),
     Segmentation.SegmentationLossBCEDice()],
)  # fmt: skip
def test_the_names_of_the_terms(loss):
    (row,) = re.findall(r"^\| `TERM` .*", section("losses.csv"), re.MULTILINE)
    assert set(loss.terms(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))) <= set(
        re.findall(r"`(\w+)`", row)
    )


@pytest.mark.slow
def test_the_fields_of_metrics_json(run):
    names = "|".join(("background", *TinyShapes.class_names))
    fields = {
        re.sub(rf"\b({names})\b", "CLASS", field)
        for field in leaves(run["metrics"])
        if not field.startswith(("before", "baselines"))
    }
    assert {"before", "baselines"} <= set(run["metrics"])
    assert first_cells(section("metrics.json")) == fields | {"before", "baselines.NAME"}
    assert set(run["metrics"]["baselines"]) == {"all foreground", "mean training mask"}
    (row,) = re.findall(r"^\| `baselines.NAME` .*", section("metrics.json"), re.MULTILINE)
    assert all(f"`{name}`" in row for name in run["metrics"]["baselines"])
    nested = (run["metrics"]["before"], *run["metrics"]["baselines"].values())
    assert all(leaves(scores) == leaves(run["metrics"]["before"]) for scores in nested)


@pytest.mark.slow
def test_the_fields_of_settings_json(run):
    assert first_cells(section("settings.json")) == leaves(run["settings"])


@pytest.mark.slow
def test_fractions_grow_to_the_whole_time(run):
    """As the page says: one for each iteration, from nearly 0 to 1 or a little more."""
    assert run["fractions"] == sorted(run["fractions"])
    assert 0 < run["fractions"][0] < 1 <= run["fractions"][-1]


@pytest.mark.slow
def test_the_lines_of_the_log(run):
    patterns = {
        line: re.compile(re.sub(r"\b[A-Z]+\b", ".+?", re.escape(line)) + r"(\W|$)")
        for line in first_cells(section("The log"))
    }
    table_of_scores = re.compile(rf"\s+IoU  |({'|'.join(TinyShapes.class_names)}|mean)  ")
    lines = [line.strip("\n") for line in run["log"].splitlines() if line.strip()]
    lines = [line for line in lines if not table_of_scores.match(line)]
    assert [line for line in lines if not any(p.match(line) for p in patterns.values())] == []
    del patterns[BUSY]  # only on a busy computer; tests/test_engine.py makes it
    unseen = [name for name, p in patterns.items() if not any(map(p.match, lines))]
    assert unseen == []


# ---- the kept runs ------------------------------------------------------------------------------


def test_the_values_of_the_kept_runs():
    table = section("losses.csv").partition("The values of the runs that are kept")[2]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:1] == "|"]
    columns = [cell.partition("`")[2].partition("`")[0] for cell in lines[0]][1:]
    assert len(lines) > 4
    for name, *cells in lines[2:]:
        with (ROOT / "doc/homework" / name.strip("`") / "losses.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for column, cell in zip(columns, cells, strict=True):
            values = [f"{float(row[column]):.3g}" for row in rows if row.get(column)]
            shown = "-"
            if column == "mean_iou":
                shown = values[-1]
            elif values:
                shown = f"{values[0]} to {values[-1]}"
            assert cell == shown, f"{name}, {column}: {shown}"


# ---- the tables of the tools --------------------------------------------------------------------


def rows_of_tools(heading):
    tables = section("The tables of the tools for a class").split("\n\n")
    (table,) = [table for table in tables if table.startswith(f"| {heading}")]
    return first_cells(table)


def test_the_columns_of_grade_models():
    assert rows_of_tools("column of grades.csv") == set(grade_models.COLUMNS)


def test_the_columns_of_check_loss():
    assert rows_of_tools("column of check-loss") == set(grade_losses.COLUMNS)


def test_the_lines_of_doctor():
    assert rows_of_tools("line of doctor") == {name for name, _ in doctor.describe_computer()}
