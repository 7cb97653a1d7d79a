"""python -m SegStudio check-loss: exit codes, files that misbehave, a class of students."""

import csv
import json
import re
import sys
import time
from pathlib import Path

import pytest

from SegStudio import grade_losses
from SegStudio.__main__ import main
from SegStudio.check_loss import Finding, Report

GOOD = "import torch\ndef loss(output, mask):\n    return ((output - mask) ** 2).mean()\n"
BAD = "import torch\ndef loss(output, mask):\n    return -((output - mask) ** 2).mean()\n"


def command(*arguments):
    """The exit code of the command."""
    try:
        main(["check-loss", *map(str, arguments)])
    except SystemExit as ending:
        return ending.code
    return 0


def write(folder, text, name="losses.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- the exit codes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "code", "printed"),
    [
        (GOOD, "loss", 0, "It equals: MSE."),
        (BAD, "loss", 1, "OBJECTION: higher-is-better"),
        ("def loss(:\n", "loss", 2, "line 1: "),
        (GOOD, "lost", 2, "losses.py has no lost: did you mean loss?"),
        ("import torch\n\nimport nothing_of_this_name\n", "loss", 2, "line 3: ModuleNotFoundError"),
        ("answer = 1 / 0\n", "loss", 2, "line 1: ZeroDivisionError: division by zero"),
        (GOOD, "loss(", 2, "loss( is not a name"),
        ("loss = 42\n", "loss", 1, "int is not a loss"),
    ],
    ids=["right", "wrong", "syntax", "no such name", "import", "error", "no expression", "number"],
)
@pytest.mark.usefixtures("in_this_process")
def test_the_exit_code(tmp_path, capsys, text, name, code, printed):
    path = write(tmp_path, text)
    assert command(f"{path}:{name}") == code
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either FILE.py:NAME or --all DIR"),
        (["losses.py"], "write FILE.py:NAME"),
        (["--all", "."], "--all needs --name"),
        (["--all", "nowhere", "--name", "x"], "there is no folder nowhere"),
        (["a.py:x", "--csv", "grades.csv"], "--name and --csv belong to --all"),
        (["--all", ".", "--name", "x", "--gradescope", "r.json"], "--gradescope is for one"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert command(f"{tmp_path / 'none.py'}:loss") == 2
    assert "there is no file none.py" in capsys.readouterr().out


# ---- files that misbehave -----------------------------------------------------------------------

LOSS = "import os, sys, time\ndef loss(output, mask):\n    {}\n"
MISBEHAVING = {
    "a loop without end": (LOSS.format("while True: pass"), "takes-too-long"),
    "a loop without end at import": ("while True: pass\n", "takes-too-long"),
    "sys.exit at import": ("import sys\nsys.exit(0)\n", "exits"),
    "sys.exit in the loss": (LOSS.format("sys.exit(3)"), "exits"),
    "os._exit": (LOSS.format("os._exit(0)"), "exits"),
    "a flood": (LOSS.format("while True: print('x' * 1000)"), "prints-a-flood"),
    "a flood at import": ("while True: print('x' * 1000)\n", "prints-a-flood"),
    "input": (LOSS.format("input()"), "raises"),
    "a signal": (LOSS.format("os.kill(os.getpid(), 9)"), "crashes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISBEHAVING)
def test_a_file_that_misbehaves_gets_an_objection(tmp_path, name):
    text, finding = MISBEHAVING[name]
    outcome = grade_losses.examine_file(write(tmp_path, text), "loss", seconds=4)
    assert [f.id for f in outcome.report.objections] == [finding], str(outcome)
    assert outcome.code == 1
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["losses.py"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize(
    "text",
    [
        "import torch\nbig = torch.ones(2 * 2**30)\n",
        "big = [bytes(2**20) for _ in range(8 * 2**10)]\n",
        LOSS.format("return output.new_ones(2 * 2**30).mean() * output.mean()"),
    ],
    ids=["tensor at import", "list at import", "in the loss"],
)
def test_the_memory_has_a_limit(tmp_path, text):
    outcome = grade_losses.examine_file(write(tmp_path, text), "loss", memory=1)
    assert [f.id for f in outcome.report.objections] == ["needs-too-much-memory"], str(outcome)


@pytest.mark.slow
def test_what_a_file_starts_ends_with_it(tmp_path):
    """Its own process group: a child that goes on would write the file."""
    text = (
        "import subprocess, sys\n"
        "code = 'import time, pathlib; time.sleep(4); pathlib.Path(sys_path).touch()'\n"
        f"code = code.replace('sys_path', repr({str(tmp_path / 'later')!r}))\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        "def loss(output, mask):\n    return ((output - mask) ** 2).mean()\n"
    )
    outcome = grade_losses.examine_file(write(tmp_path, text), "loss")
    assert outcome.code == 0, str(outcome)
    time.sleep(6)
    assert not (tmp_path / "later").exists()


@pytest.mark.slow
def test_a_print_is_a_remark_and_files_beside_it_can_be_imported(tmp_path):
    write(tmp_path, GOOD, "helper.py")
    path = write(tmp_path, "import helper\ndef loss(output, mask):\n    print('loss', 'called')\n"
                 "    return helper.loss(output, mask)\n")  # fmt: skip
    outcome = grade_losses.examine_file(path, "loss")
    assert outcome.code == 0
    assert "such as 'loss called'" in str(outcome)


@pytest.mark.usefixtures("in_this_process")
def test_names_with_arguments_and_dots(tmp_path):
    path = write(
        tmp_path,
        "class Homework:\n"
        "    class Scaled:\n"
        "        def __init__(self, factor):\n            self.factor = factor\n"
        "        def __call__(self, output, mask):\n"
        "            return self.factor * ((output - mask) ** 2).mean()\n",
    )
    outcome = grade_losses.examine_file(path, "Homework.Scaled(factor=3)")
    assert outcome.report.recognised == "3 * MSE"


# ---- a class of students ------------------------------------------------------------------------


def canned(path, name, seconds=0, memory=0):
    """An examination without the process: what a file says is what comes of it."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    outcome = grade_losses.Outcome(path.name, seconds=1.25)
    if "broken" in text:
        outcome.problem = "line 1: SyntaxError"
    elif "wrong" in text:
        findings = [Finding("higher-is-better", "seen"), Finding("slow")]
        outcome.report = Report(path.name, findings, recognised="-1 * MSE")
    else:
        outcome.report = Report(path.name, [Finding("slow", "5 ms")], recognised="MSE")
    return outcome


@pytest.fixture
def submissions(tmp_path, monkeypatch):
    monkeypatch.setattr(grade_losses, "examine_file", canned)
    folder = tmp_path / "submissions"
    write(folder, "MyDice = 'right'\n", "ada.py")
    write(folder, "MyDice = 'wrong'\n", "bob.py")
    write(folder, "MyDice = broken(\n", "carl.py")
    write(folder, "class MyDice: pass  # right\n", "dora/deep/homework.py")
    write(folder, "x = 1\n", "dora/other.py")
    write(folder, "x = 1\n", "emil/homework.py")
    write(folder, "not python", "readme.txt")
    write(folder, "x = 1\n", "__pycache__/x.py")
    return folder


def test_one_row_per_student(submissions, tmp_path, capsys):
    table = tmp_path / "grades.csv"
    assert command("--all", submissions, "--name", "MyDice", "--csv", table) == 2
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ada", "bob", "carl", "dora", "emil"]
    results = [row["result"] for row in rows.values()]
    assert results == ["nothing wrong", "objections", "cannot be loaded", "nothing wrong",
                       "cannot be loaded"]  # fmt: skip
    assert rows["bob"]["objections"] == "higher-is-better"
    assert rows["bob"]["remarks"] == "slow"
    assert rows["bob"]["reasons"].startswith("A better output costs more")
    assert rows["bob"]["equals"] == "-1 * MSE"
    assert rows["ada"]["reasons"] == ""
    assert rows["ada"]["seconds"] == "1.2"
    assert rows["dora"]["file"] == "dora/deep/homework.py"
    assert rows["emil"]["reasons"] == "no file defines MyDice"
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "bob: objections: higher-is-better"


def test_the_exit_code_of_a_class_is_the_worst(submissions):
    for name in ("carl.py", "emil/homework.py"):
        (submissions / name).unlink()
    (submissions / "emil").rmdir()
    assert command("--all", submissions, "--name", "MyDice") == 1
    (submissions / "bob.py").unlink()
    assert command("--all", submissions, "--name", "MyDice") == 0


def test_an_empty_folder(tmp_path, capsys):
    assert command("--all", tmp_path, "--name", "MyDice") == 2
    assert "has no submissions" in capsys.readouterr().out


def test_gradescopes_results(submissions, tmp_path):
    results = {}
    for student in ("ada", "bob", "carl"):
        file = tmp_path / f"{student}.json"
        command(f"{submissions / student}.py:MyDice", "--gradescope", file, "--points", 5)
        results[student] = json.loads(file.read_text(encoding="utf-8"))
    assert [results[name]["score"] for name in results] == [5, 0, 0]
    assert [test["status"] for test in results["ada"]["tests"]] == ["passed"]
    assert [test["status"] for test in results["bob"]["tests"]] == ["failed", "passed"]
    assert results["bob"]["tests"][0]["name"].startswith("higher-is-better: ")
    assert re.search("Why it matters", results["bob"]["tests"][0]["output"])
    assert results["carl"]["tests"][0]["status"] == "failed"
    assert "SyntaxError" in results["carl"]["output"]
