"""Every code block and command of the pages is run by a test, or is marked as long with a reason.

A block of commands or of Python has an HTML comment on the line before it:

    <!-- run: tests/test_doctor.py::test_no_data -->       this test runs it, with small numbers
    <!-- long: an hour of training -->                     no test runs it

Snippets with >>> need no comment on a page that tests/test_docs.py runs as a whole. A block that is
neither (printed output, a file format) has a language: ```text. A block without one is commands. Of
every command, also of those that are marked as long and of those in a sentence, the programs, files
and flags are checked.
"""

import argparse
import ast
import functools
import re
import shlex
from dataclasses import dataclass

import pytest
from conftest import ROOT
from test_docs import PAGES_OF_SNIPPETS, SCRIPT, each_page
from torch.distributed.run import get_args_parser

from SegStudio.__main__ import COMMANDS

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "doc").rglob("*.md")),
    *sorted((ROOT / "Datasets").glob("*.md")),
]
TEXT = {"text", "json", "csv", "yaml", "html"}  # languages of blocks that nobody runs
SHELL = {"", "bash", "sh", "console"}
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.S | re.M
)
INDENTED = re.compile(r"(?<=\n\n)(?P<text>(?: {4}.*\n)(?:(?: {4}.*)?\n)*)")
MARK = re.compile(r"<!-- (run|long): ((?:(?!-->).)+) -->\s*\Z", re.S)
TEST = re.compile(r"tests/\w+\.py::\w+")


@dataclass
class Block:
    where: str  # page:line
    language: str
    text: str
    mark: str | None  # run, long or None
    reason: str = ""

    @property
    def commands(self):
        """The words of each command of a block of the shell."""
        lines = re.sub(r" *\\\n", " ", self.text).splitlines()
        return [words for line in lines for words in split_commands(line)]


def split_commands(line):
    """The words of the commands of a line, without comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    commands = [[]]
    for word in lexer:
        if word and set(word) <= set("&|;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def find_blocks(path):
    text = path.read_text(encoding="utf-8")
    found = []

    def add(match, language, content):
        mark = MARK.search(text[: match.start()].rstrip(" "))
        line = text[: match.start()].count("\n") + 1
        where = f"{path.relative_to(ROOT)}:{line}"
        found.append(Block(where, language, content, *(mark.groups() if mark else (None,))))

    for match in FENCE.finditer(text):
        add(match, match["language"], match["text"])
    # Blocks that are indented by four spaces; not what is inside a fence, and not parts of lists.
    rest = FENCE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
    for match in INDENTED.finditer(rest):
        before = [line for line in rest[: match.start()].splitlines() if line.strip()]
        paragraph = rest[: match.start()].rstrip().rpartition("\n\n")[2]
        if before and not re.match(r"\s*([-*]|\d+\.) |    |:::", paragraph):
            add(match, "", re.sub(r"^ {4}", "", match["text"], flags=re.M))
    return found


BLOCKS = [block for page in PAGES for block in find_blocks(page)]
each_block = pytest.mark.parametrize("block", BLOCKS, ids=[block.where for block in BLOCKS])
HOW = "put <!-- run: tests/FILE.py::TEST --> or <!-- long: REASON --> on the line before the block"


def test_there_are_blocks_of_each_kind():
    kinds = {(block.language or "commands", block.mark) for block in BLOCKS}
    assert {("text", None), ("commands", "run"), ("commands", "long"), ("python", "run")} <= kinds


# ---- run or marked ------------------------------------------------------------------------------


@each_block
def test_a_block_is_run_or_marked(block):
    if block.language in TEXT:
        hidden = re.search(r"^(python|pip|pytest|torchrun) ", block.text, re.M)
        assert not hidden, f"{block.where}: a command belongs into a block of its own"
        return
    assert block.language in SHELL | {"python"}, f"{block.where}: tag it as ```text"
    if block.language == "python" and ">>>" in block.text:
        assert ROOT / block.where.partition(":")[0] in PAGES_OF_SNIPPETS
        return
    assert block.mark, f"{block.where}: {HOW}"
    if block.mark == "long":
        assert len(block.reason.split()) > 1, f"{block.where}: say why"
    else:
        assert TEST.search(block.reason), f"{block.where}: {HOW}"


@functools.cache
def functions(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each_block
def test_the_tests_of_a_mark_exist_and_are_about_its_commands(block):
    tests = TEST.findall(block.reason)
    for test in tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), f"{block.where}: {file}"
        assert name in functions(file), f"{block.where}: {test}"
    if block.mark != "run" or block.language == "python":
        return
    texts = [(ROOT / test.partition("::")[0]).read_text(encoding="utf-8") for test in tests]
    for words in block.commands:
        name = subject(words)
        known = name is None or any(re.search(rf"(?<!\w){name}(?!\w)", text) for text in texts)
        assert known, f"{block.where}: {name}"


def subject(words):
    """The name that a test which runs this command contains: of a script or of a tool."""
    if words[:3] == ["python", "-m", "SegStudio"]:
        return words[3]
    script = next((word for word in words if word.endswith(".py")), None)
    return script and script.rpartition("/")[2].removesuffix(".py")


# ---- every command is possible ------------------------------------------------------------------


def in_sentences(path):
    """The commands in `code` in the sentences of a page."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]+)`", text):
        if re.match(r"(\w+=\S+ )*(python|pip|pytest|torchrun|mkdocs) ", code):
            yield from split_commands(" ".join(code.split()))


@each_page(PAGES)
def test_the_commands_in_sentences_are_possible(page):
    for words in in_sentences(page):
        assert mistake(words) is None, f"{page.name}: {' '.join(words)}: {mistake(words)}"


@each_block
def test_the_commands_of_a_block_are_possible(block):
    if block.language == "python":
        ast.parse("" if ">>>" in block.text else block.text)
    if block.language in SHELL:
        assert block.commands, f"{block.where}: no command"
        for words in block.commands:
            assert mistake(words) is None, f"{block.where}: {' '.join(words)}: {mistake(words)}"


@functools.cache
def tools():
    """{command of python -m SegStudio: its flags}."""
    commands = argparse.ArgumentParser().add_subparsers()
    for command in COMMANDS:
        command.add_command(commands)
    help_texts = {name: parser.format_help() for name, parser in commands.choices.items()}
    return {name: set(re.findall(r"--[a-z][\w-]*", text)) for name, text in help_texts.items()}


@functools.cache
def extras():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8").partition("extras_require")[2]
    return set(re.findall(r'"(\w+)": ', setup))


def mistake(words):
    """What is wrong with a command; None if it is possible."""
    words = list(words)
    if words[0] == "env":
        words = words[1:]
        while words[0] in ("-u", "DISPLAY"):
            words.pop(0)
    while re.match(r"\w+=", words[0]):  # variables
        words.pop(0)
    program, *rest = words
    flags = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}
    if program.startswith("python") and rest[:2] == ["-m", "SegStudio"]:
        if len(rest) > 2 and rest[2] not in tools():
            return f"no tool {rest[2]}"
        unknown = flags - (tools()[rest[2]] if len(rest) > 2 else set())
        return f"no flag {unknown}" if unknown else None
    if program.startswith("python") and rest[:2] in (["-m", "venv"], ["-m", "pytest"]):
        return None
    if program.startswith("python"):
        return mistake_of_script(rest, flags)
    if program in ("pip", "%pip") and rest[0] == "install":
        wanted = {name for word in rest for name in re.findall(r"(?<=[\[,])\w+(?=[\],])", word)}
        return f"no extra {wanted - extras()}" if wanted - extras() else None
    if program == "torchrun":
        known = get_args_parser().format_help()
        unknown = {flag for flag in flags if flag not in known}
        return f"no flag {unknown}" if unknown else mistake_of_script(rest, set())
    if program in ("pytest", "mkdocs", "ruff", "source", "git", "cd", "%cd"):
        files = [word for word in rest if word.endswith(".py")]
        missing = [file for file in files if not (ROOT / file).is_file() and "NAME" not in file]
        return f"no file {missing}" if missing else None
    return f"{program}: teach tests/test_code_blocks.py this program"


def mistake_of_script(words, flags):
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None:
        return None if any("..." in word for word in words) else "no script"
    if not re.match(r"(Examples|Datasets|doc/scripts|tests)/", script):
        return None  # a reader's own
    if "NAME" in script:
        return None
    if not (ROOT / script).is_file():
        return f"no file {script}"
    if re.match(SCRIPT, f"python {script}") and script.startswith(("Examples/", "Datasets/")):
        return None  # tests/test_docs.py asks the script for its flags
    source = (ROOT / script).read_text(encoding="utf-8")
    unknown = {flag for flag in flags if f'"{flag}"' not in source}
    return f"no flag {unknown}" if unknown else None


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("python -m SegStudio doctor --data DIR", None),
        ("python -m SegStudio doctor --speed", "no flag"),
        ("python -m SegStudio nurse", "no tool"),
        ("OMP_NUM_THREADS=1 python Examples/nothing.py", "no file"),
        ("python tests/benchmarks/bench_peer.py --no-such-flag", "no flag"),
        ("pip install '.[test,docs]'", None),
        ("pip install '.[tests]'", "no extra"),
        ("torchrun --processes 2 Examples/semantic_segmentation.py", "no flag"),
        ("frobnicate --all", "teach"),
    ],
)
def test_impossible_commands_are_found(line, wrong):
    (words,) = split_commands(line)
    found = mistake(words)
    assert (found is None) if wrong is None else (wrong in found)
