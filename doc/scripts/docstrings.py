"""Turns the docstrings of SegStudio into Markdown for the pages of doc/api/; mkdocs.yml names it.

A docstring has paragraphs, labels (`Shape: ...`), lists of arguments (`Args:` and indented lines),
definitions (`"squared": ...`) and indented blocks (worked examples, tables, code).
"""

import re
import textwrap

import griffe

LABEL = re.compile(r"(Shape|Errors|Source|Returns|Example): *(.*)")
CLASS_PATH = re.compile(r"Class Paths?: *(.*)")
ARGUMENT = re.compile(r"( *)([\w*]+(?:, [\w*]+)*): (.*)")
DEFINITION = re.compile(r'("\w+"): (.*)')


class ReadableDocstrings(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    lines = textwrap.dedent(docstring).strip().splitlines()
    first, *rest = lines
    # The first line of a docstring has no indentation, the others have that of the code.
    lines = [first, *textwrap.dedent("\n".join(rest)).splitlines()]
    parts, paragraph = [], []

    def end_paragraph():
        if paragraph:
            parts.append(" ".join(paragraph))
            paragraph.clear()

    while lines:
        line = lines.pop(0)
        if not line.strip():
            end_paragraph()
        elif line == "Args:":
            end_paragraph()
            parts.append("**Arguments**")
            parts.append(list_of_arguments(take_block(lines)))
        elif line[0] == " " and paragraph and not paragraph[0].startswith("- "):
            end_paragraph()
            block = textwrap.dedent("\n".join([line, *take_block(lines)]))
            language = "python" if is_python(block) else "text"
            parts.append(f"```{language}\n{block.rstrip()}\n```")
        elif match := CLASS_PATH.fullmatch(line):
            end_paragraph()
            parts.append(f"**Class path:** `{' '.join(match[1].split())}`")
        elif match := LABEL.fullmatch(line):
            end_paragraph()
            paragraph.append(f"**{match[1]}:** {escape(match[2])}".rstrip().removesuffix("**:"))
        elif match := DEFINITION.fullmatch(line):
            end_paragraph()
            paragraph.append(f"- `{match[1]}`: {escape(match[2])}")
        else:
            paragraph.append(escape(line.strip()))
            if paragraph[0].startswith("- ") and not (lines and lines[0].startswith(" ")):
                end_paragraph()
    end_paragraph()
    return "\n\n".join(parts)


def take_block(lines):
    """Remove the indented lines from the front of `lines`, with empty lines between them."""
    block = []
    while lines and (lines[0].startswith(" ") or (not lines[0] and lines[1:2] and block
                     and lines[1].startswith(" "))):  # fmt: skip
        block.append(lines.pop(0))
    return block


def is_python(block):
    """Whether a block is code: it compiles, and has more than names and numbers."""
    try:
        compile(block, "docstring", "exec")
    except SyntaxError:
        return False
    return "=" in block or "(" in block


def list_of_arguments(block):
    """`name, name: text` and lines that go on, as a list."""
    items = []
    for line in textwrap.dedent("\n".join(block)).splitlines():
        match = ARGUMENT.fullmatch(line)
        if match and not match[1]:
            names = ", ".join(f"`{name}`" for name in match[2].split(", "))
            items.append(f"- {names}: {escape(match[3])}")
        elif items:
            items[-1] += " " + escape(line.strip())
        else:
            items.append(f"- {escape(line.strip())}")
    return "\n".join(items)


def escape(text):
    """Keep `code` and *emphasis*; all other signs stand for themselves."""
    parts = re.split(r"(`[^`]+`|(?<!\S)\*[a-z]+\*(?!\w))", text)
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"([\\*_<>\[\]|#])", r"\\\1", parts[k])
    return "".join(parts)
