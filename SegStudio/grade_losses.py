"""python -m SegStudio check-loss: examines the losses in students' files, one process for each.

    python -m SegStudio check-loss FILE.py:NAME
    python -m SegStudio check-loss --all submissions/ --name MyDice --csv grades.csv

The file runs in a process of its own with a limit on its time, memory and output. This is no
sandbox: the code can read and write files. Grade strangers' code in a container.
"""

import ast
import contextlib
import csv
import difflib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from SegStudio.check_loss import Examination, Finding, Report

OUTPUT_LIMIT = 10_000_000  # characters that a file may print before it counts as a flood
KEPT = 20_000  # of these, for the report
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
    file, separator, name = options.target.rpartition(".py:")
    if not separator or not name:
        parser.error(f"{options.target}: write FILE.py:NAME, as in my_losses.py:MyDice")
    outcome = examine_file(f"{file}.py", name, options.seconds, options.memory)
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
    path, start = Path(path).resolve(), time.monotonic()
    title = f"{path.name}:{name}"
    if not path.is_file():
        return Outcome(title, problem=f"there is no file {path.name}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = Path(folder, "result.json")
        work = Path(folder, "work")
        work.mkdir()
        package = str(Path(__file__).resolve().parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [package, os.environ.get("PYTHONPATH", "")])
            ),
            "PYTHONIOENCODING": "utf-8",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",  # the same result on every computer
        }
        code = "from SegStudio.grade_losses import child; child()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), name, str(result), str(memory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=work, env=environment, start_new_session=True,
        )  # fmt: skip
        printed, ending = watch(process, Path(folder, "started"), seconds)
        outcome = Outcome(title, seconds=time.monotonic() - start, printed=printed)
        finding = None
        answer = {}
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(result.read_text(encoding="utf-8"))
        if ending == "time":
            finding = Finding("takes-too-long", f"it was stopped after {seconds:g} seconds")
        elif ending == "flood":
            finding = Finding("prints-a-flood", f"it begins with {printed[:60]!r}")
        elif "problem" in answer:
            outcome.problem = answer["problem"]
            return outcome
        elif "finding" in answer:
            finding = Finding(**answer["finding"])
        elif "report" in answer:
            outcome.report = Report.from_json(answer["report"])
            outcome.report.name = title
            if printed.strip():
                seen = f"{len(printed.splitlines())} lines or more, such as "
                line = printed.strip().splitlines()[0][:80]
                outcome.report.findings.append(Finding("prints", f"{seen}{line!r}"))
        elif process.returncode >= 0:
            finding = Finding("exits", f"the process ended with exit code {process.returncode}")
        else:
            finding = Finding("crashes", f"it was ended by signal {-process.returncode}")
        if finding:
            outcome.report = Report(title, [finding])
        return outcome


def watch(process, started, seconds):
    """Wait for a process and end it at the limits; its time begins when `started` exists.

    Returns: (what it printed, "time", "flood" or "").
    """
    kept, size, flood = [], 0, threading.Event()

    def read():
        nonlocal size
        while chunk := process.stdout.read1(65536):
            if size < KEPT:
                kept.append(chunk)
            size += len(chunk)
            if size > OUTPUT_LIMIT:
                flood.set()
                end(process)
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ending, deadline = "", None
    while not ending:
        try:
            process.wait(timeout=0.05)
            break
        except subprocess.TimeoutExpired:
            if deadline is None and started.exists():  # the libraries are loaded
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                ending = "time"
    end(process)  # and whatever it started
    process.wait()
    reader.join(timeout=5)
    text = b"".join(kept)[:KEPT].decode("utf-8", "replace")
    return text, "flood" if flood.is_set() else ending


def end(process):
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


# ---- in the process of the file -----------------------------------------------------------------


class NotLoaded(Exception):
    """The file has no such loss, or cannot be imported; the message says why."""


def child():
    """Load and examine one loss: path, name, file for the result and memory limit in sys.argv."""
    path, name, result, memory = sys.argv[1:5]
    sys.argv = [path]
    limit_memory(float(memory))
    Path(result).with_name("started").touch()
    try:
        answer = {"report": examine(Path(path), name).to_json()}
    except NotLoaded as error:
        answer = {"problem": str(error)}
    except SystemExit as error:
        answer = {"finding": {"id": "exits", "seen": f"sys.exit({error.code!r}) was called"}}
    except MemoryError:
        limit_memory(None)  # what follows needs a little
        answer = {"finding": {"id": "needs-too-much-memory", "seen": f"the limit is {memory} GiB"}}
    part = Path(f"{result}.part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(result)
    sys.stdout.flush()
    os._exit(0)  # threads that the file left behind do not count


def limit_memory(gibibytes):
    """Allow so much more than the libraries take, where the platform has it. None: no limit."""
    try:
        import resource

        most = limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        if gibibytes is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):
        pass


def examine(path, name):
    """The Report on the loss `name` of a file."""
    expression, arguments = split_name(name)
    module = load(path)
    thing = module
    for part in expression.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            own = [key for key in vars(module) if not key.startswith("_")]
            near = difflib.get_close_matches(part, own, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise NotLoaded(f"{path.name} has no {expression}{hint}") from None
    if arguments is not None:
        try:
            thing = thing(*arguments[0], **arguments[1])
        except Exception as error:
            raise NotLoaded(f"{name}: {type(error).__name__}: {error}") from error
    return Examination(thing, name).run()


def split_name(name):
    """("MyDice", ([], {"smooth": 1})) from "MyDice(smooth=1)"; (name, None) without arguments."""
    try:
        node = ast.parse(name, mode="eval").body
        if not isinstance(node, ast.Call):
            return name, None
        positional = [ast.literal_eval(value) for value in node.args]
        named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
    except (SyntaxError, ValueError) as error:
        raise NotLoaded(f"{name} is not a name, nor a name with plain arguments") from error
    return ast.unparse(node.func), (positional, named)


def load(path):
    """Import a file; files beside it can be imported by it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except MemoryError:
        raise
    except SyntaxError as error:
        raise NotLoaded(f"line {error.lineno}: {error.msg}") from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise MemoryError from error
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = f"line {frames[-1].lineno}: " if frames else ""
        raise NotLoaded(f"{line}{type(error).__name__}: {error}") from error
    return module


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
