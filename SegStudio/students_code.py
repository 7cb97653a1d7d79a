"""Loads a loss or a network from a student's file, in a process of its own with limits.

check-loss, check-network and the exercises use it. `run_limited` runs a function of the package in
another process, where it loads the file and examines it. Time, memory and
output have limits. This is no sandbox: the code can read and write files. Grade strangers' code in
a container.
"""

import ast
import contextlib
import difflib
import importlib
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
from typing import Any

OUTPUT_LIMIT = 10_000_000  # bytes that a file may print before it counts as a flood
KEPT = 20_000  # of these, for the report


class NotLoaded(Exception):
    """The file has no such name, or cannot be imported; the message says why."""


# ---- the process with limits --------------------------------------------------------------------


@dataclass
class Ending:
    """How the process ended.

    how: "answer": the function returned `answer`.
        "not loaded": it raised NotLoaded.
        "time", "flood", "memory": the limit that was reached.
        "exit": the code called sys.exit or ended the process.
        "signal": it crashed, or was killed.
    text: the reason in words, where there is one.
    printed: the beginning of what the code printed.
    """

    how: str
    answer: Any = None
    text: str = ""
    printed: str = ""
    seconds: float = 0.0


def run_limited(function, arguments, seconds, memory, folders=()):
    """Call a function in another process.

    Args:
        function: "package.module:name"; it takes and returns what JSON can hold.
        arguments: list.
        seconds: limit of time, counted from the moment when the function begins.
        memory: GiB beyond what the libraries take (Linux only).
        folders: where further modules are imported from.

    Returns: Ending.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result, work = Path(folder, "result.json"), Path(folder, "work")
        work.mkdir()
        package = Path(__file__).resolve().parents[1]
        paths = [*map(str, folders), str(package), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONIOENCODING": "utf-8",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",  # the same result on every computer
        }
        code = "from SegStudio.students_code import child; child()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, function, json.dumps(arguments), str(result), str(memory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=environment,
            start_new_session=True,
        )
        printed, limit = watch(process, Path(folder, "started"), seconds)
        written = {}
        with contextlib.suppress(OSError, ValueError):
            written = json.loads(result.read_text(encoding="utf-8"))
    common = {"printed": printed, "seconds": time.monotonic() - start}
    if limit == "time":
        return Ending("time", text=f"it was stopped after {seconds:g} seconds", **common)
    if limit == "flood":
        return Ending(
            "flood",
            text=f"it printed more than {OUTPUT_LIMIT / 1e6:.0f} MB: {printed[:60]!r} ...",
            **common,
        )
    if written:
        return Ending(**written, **common)
    if process.returncode >= 0:
        text = f"the process ended with exit code {process.returncode}"
        return Ending("exit", text=text, **common)
    return Ending("signal", text=f"it was ended by signal {-process.returncode}", **common)


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
    end(process)
    process.wait()
    reader.join(timeout=5)
    text = b"".join(kept)[:KEPT].decode("utf-8", "replace")
    return text, "flood" if flood.is_set() else ending


def end(process):
    """End a process and, on Linux and macOS, all processes that it has started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def child():
    """In the other process: sys.argv has function, arguments, file for the result, memory."""
    function, arguments, result, memory = sys.argv[1:5]
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    limit_memory(float(memory))
    Path(result).with_name("started").touch()
    try:
        ending = {"how": "answer", "answer": call(*json.loads(arguments))}
    except NotLoaded as error:
        ending = {"how": "not loaded", "text": str(error)}
    except SystemExit as error:
        ending = {"how": "exit", "text": f"sys.exit({error.code!r}) was called"}
    except MemoryError:
        limit_memory(None)  # the next lines need some memory
        ending = {"how": "memory", "text": f"it needs more memory than the limit of {memory} GiB"}
    part = Path(f"{result}.part")
    part.write_text(json.dumps(ending), encoding="utf-8")
    part.replace(result)
    sys.stdout.flush()
    os._exit(0)  # do not wait for threads that the file has started


def limit_memory(gibibytes):
    """Allow this much memory beyond that of the libraries, on Linux. None: no limit."""
    try:
        import resource

        most = limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        if gibibytes is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):
        pass


# ---- the file -----------------------------------------------------------------------------------


def split_target(target):
    """(file, name) of FILE.py:NAME. The name is empty if only FILE.py is given."""
    file, separator, name = target.rpartition(".py:")
    return (f"{file}.py", name) if separator else (target, "")


def load_thing(path, name):
    """What `name` names in a file: "MyDice", "Homework.MyDice", or "MyDice(smooth=1)".

    Errors: NotLoaded.
    """
    expression, arguments = split_name(name)
    thing = find(load(path), expression, path)
    if arguments is None:
        return thing
    try:
        return thing(*arguments[0], **arguments[1])
    except Exception as error:
        raise NotLoaded(f"{name}: {type(error).__name__}: {error}") from error


def find(module, name, path):
    """The attribute of a module that a dotted name names.

    Errors: NotLoaded.
    """
    thing = module
    for part in name.split("."):
        if not hasattr(thing, part):
            own = [key for key in vars(module) if not key.startswith("_")]
            near = difflib.get_close_matches(part, own, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise NotLoaded(f"{path.name} has no {name}{hint}")
        thing = getattr(thing, part)
    return thing


def split_name(name):
    """("MyDice", ([], {"smooth": 1})) from "MyDice(smooth=1)"; (name, None) without arguments."""
    try:
        node = ast.parse(name, mode="eval").body
        if not isinstance(node, ast.Call):
            return name, None
        positional = [ast.literal_eval(value) for value in node.args]
        named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
    except (SyntaxError, ValueError) as error:
        raise NotLoaded(f"{name} is not a name such as MyDice or MyDice(smooth=1)") from error
    return ast.unparse(node.func), (positional, named)


def load(path):
    """Import a file; it can import files beside it.

    Errors: NotLoaded.
    """
    if not path.is_file():
        raise NotLoaded(f"there is no file {path}")
    if path.suffix != ".py":
        raise NotLoaded("it is not a Python file: its name must end in .py")
    sys.argv = [str(path)]
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
