"""python -m SegStudio check-loss: examines the losses in students' files, one process for each.

    python -m SegStudio check-loss FILE.py:NAME
    python -m SegStudio check-loss --all submissions/ --name MyDice --csv grades.csv

The file runs in a process of its own with a limit on its time, memory and output. This is no
sandbox: the code can read and write files. Grade strangers' code in a container.
"""

import ast
import csv
import json
from dataclasses import dataclass
from pathlib import Path

from SegStudio import students_code
from SegStudio.check_loss import Examination, Finding, Report

# The objection to a file whose process did not end with a report.
FINDING_OF_ENDING = {
    "time": "takes-too-long",
    "flood": "prints-a-flood",
    "memory": "needs-too-much-memory",
    "exit": "exits",
    "signal": "crashes",
}
NOTHING_WRONG, OBJECTIONS, NOT_LOADED = 0, 1, 2  # exit codes


# ---- the command line ---------------------------------------------------------------------------


def add_command(commands):
    """Add check-loss to the subcommands of python -m SegStudio."""
    parser = commands.add_parser(
        "check-loss",
        help="examine a loss: what is wrong, an example, and why it matters",
        description=__doc__,
        epilog="Exit code 0: nothing wrong; 1: objections; 2: a file cannot be loaded.",
    )
    parser.add_argument(
        "target", nargs="?", metavar="FILE.py:NAME",
        help="a function, a class, or a function that makes a loss; arguments are possible: "
        "'FILE.py:MyDice(smooth=1)'",
    )  # fmt: skip
    parser.add_argument("--all", metavar="DIR", help="examine the submissions in this folder")
    parser.add_argument("--name", help="with --all: the name of the loss in every submission")
    parser.add_argument("--csv", metavar="FILE", help="with --all: write one row per student")
    parser.add_argument("--gradescope", metavar="FILE", help="write Gradescope's results.json")
    parser.add_argument("--points", type=float, default=10, help="for --gradescope (default 10)")
    parser.add_argument("--seconds", type=float, default=60, help="time limit (default 60)")
    parser.add_argument("--memory", type=float, default=4, help="limit in GiB (default 4)")
    parser.set_defaults(run=lambda options: run(options, parser))


def run(options, parser):
    """Returns the exit code."""
    if bool(options.all) == bool(options.target):
        parser.error("give either FILE.py:NAME or --all DIR")
    if options.all:
        if not options.name:
            parser.error("--all needs --name, the name of the loss in every submission")
        if options.gradescope:
            parser.error("--gradescope is for one submission: give FILE.py:NAME")
        if not Path(options.all).is_dir():
            parser.error(f"there is no folder {options.all}")
        return grade_all(options)
    if options.csv or options.name:
        parser.error("--name and --csv belong to --all")
    file, name = students_code.split_target(options.target)
    if not name:
        parser.error(f"{options.target}: write FILE.py:NAME, as in my_losses.py:MyDice")
    outcome = examine_file(file, name, options.seconds, options.memory)
    print(outcome)
    if options.gradescope:
        text = json.dumps(gradescope(outcome, options.points), indent=2)
        Path(options.gradescope).write_text(text, encoding="utf-8")
    return outcome.code


# ---- one file -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one file: a report, or the reason why it could not be loaded."""

    name: str
    report: Report | None = None
    problem: str = ""
    seconds: float = 0.0
    printed: str = ""

    @property
    def code(self):
        if self.report is None:
            return NOT_LOADED
        return NOTHING_WRONG if self.report.ok else OBJECTIONS

    def __str__(self):
        if self.report is None:
            return f"check_loss: {self.name}\n\nIt cannot be loaded: {self.problem}"
        return f"{self.report}\n({self.seconds:.1f} seconds)"


def examine_file(path, name, seconds=60.0, memory=4.0):
    """Examine the loss `name` of a file in a process of its own. Returns an Outcome."""
    path = Path(path).resolve()
    title = f"{path.name}:{name}"
    if not path.is_file():
        return Outcome(title, problem=f"there is no file {path.name}")
    function = "SegStudio.grade_losses:examine"
    ending = students_code.run_limited(function, [str(path), name], seconds, memory)
    outcome = Outcome(title, seconds=ending.seconds, printed=ending.printed)
    if ending.how == "not loaded":
        outcome.problem = ending.text
    elif ending.how != "answer":
        outcome.report = Report(title, [Finding(FINDING_OF_ENDING[ending.how], ending.text)])
    else:
        outcome.report = Report.from_json(ending.answer)
        outcome.report.name = title
        lines = ending.printed.strip().splitlines()
        if lines:
            seen = f"{len(lines)} lines or more, such as {lines[0][:80]!r}"
            outcome.report.findings.append(Finding("prints", seen))
    return outcome


def examine(path, name):
    """In the other process: the report on the loss `name` of a file."""
    return Examination(students_code.load_thing(Path(path), name), name).run().to_json()


# ---- a class of students ------------------------------------------------------------------------

COLUMNS = (
    "student", "file", "result", "objections", "remarks", "equals", "reasons", "seconds",
)  # fmt: skip


def submissions(folder, name):
    """(student, file or None) of a folder: a file per student, or a folder per student."""
    name = name.partition("(")[0].partition(".")[0]
    found = []
    for entry in sorted(Path(folder).iterdir()):
        if entry.is_dir() and not entry.name.startswith((".", "__")):
            files = sorted(p for p in entry.rglob("*.py") if "__MACOSX" not in p.parts)
            found.append((entry.name, next((p for p in files if defines(p, name)), None)))
        elif entry.suffix == ".py":
            found.append((entry.stem, entry))
    return found


def defines(path, name):
    """Does a file define a class, function or variable of this name?"""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError, OSError):
        return False
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return True
        if isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if name in targets:
                return True
    return False


def grade_all(options):
    """Examine every submission; print a line and write a row for each. Returns the exit code."""
    rows, codes = [], []
    for student, path in submissions(options.all, options.name):
        if path is None:
            outcome = Outcome(student, problem=f"no file defines {options.name}")
        else:
            outcome = examine_file(path, options.name, options.seconds, options.memory)
        row = make_row(student, path, outcome, options.all)
        rows.append(row)
        codes.append(outcome.code)
        print(f"{student}: {row['result']}{': ' if row['objections'] else ''}{row['objections']}"
              f"{': ' + outcome.problem if outcome.problem else ''}", flush=True)  # fmt: skip
        if options.csv:  # after every student: an interrupted run keeps what it has
            write_csv(options.csv, rows)
    if not rows:
        print(f"{options.all} has no submissions: no .py files and no folders")
        return NOT_LOADED
    return max(codes)


def make_row(student, path, outcome, folder):
    report = outcome.report
    row = dict.fromkeys(COLUMNS, "")
    row.update(
        student=student,
        file=path.relative_to(folder).as_posix() if path else "",
        result=("nothing wrong", "objections", "cannot be loaded")[outcome.code],
        reasons=outcome.problem,
        seconds=f"{outcome.seconds:.1f}",
    )
    if report:
        row.update(
            objections=" ".join(f.id for f in report.objections),
            remarks=" ".join(f.id for f in report.remarks),
            equals=report.recognised,
            reasons=" ".join(
                f"{f.entry.says}{f' ({f.seen})' if f.seen else ''}" for f in report.objections
            ),
        )
    return row


def write_csv(file, rows):
    with Path(file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def gradescope(outcome, points):
    """Gradescope's results: all points if nothing is wrong, one failed test per objection."""
    report = outcome.report
    tests = []
    for finding in report.findings if report else ():
        objection = finding in report.objections
        tests.append(
            {
                "name": f"{finding.id}: {finding.entry.says}",
                "status": "failed" if objection else "passed",
                "output": str(finding),
            }
        )
    if not tests:
        status = "failed" if report is None else "passed"
        tests = [{"name": outcome.name, "status": status, "output": str(outcome)}]
    return {
        "score": points if outcome.code == NOTHING_WRONG else 0,
        "max_score": points,
        "execution_time": round(outcome.seconds, 1),
        "output": str(outcome),
        "output_format": "text",
        "tests": tests,
    }
