"""Prints a class of the module as a file that runs: its imports, its helpers and the class."""

import ast
import difflib
import inspect
import re
import symtable
import sys
import textwrap
from pathlib import Path

from SegStudio import SegStudio as package
from SegStudio.SegStudio import __file__ as MODULE_FILE

# The files of the package, in the order in which a copy needs their definitions.
FILES = ("SegStudio.py", "processes.py", "backstage.py", "loading.py", "recording.py")
PREFIXES = re.compile(r"\b(backstage|processes|loading|recording)\.(?=[A-Za-z])")


def add_command(commands):
    text = "print a class, ready to copy into a file of your own"
    parser = commands.add_parser("show", help=text, description=text)
    parser.add_argument("name", help="such as mUnet or SegmentationLossDice")
    parser.set_defaults(run=run)


def run(options):
    try:
        print(show_class(options.name), end="")
    except ValueError as error:
        sys.exit(f"python -m SegStudio: {error}")


def show_class(name: str) -> str:
    """The text of a file with the class `name` at the left margin and everything that it uses.

    Errors: ValueError for an unknown name; the message suggests the nearest one.
    """
    folder = Path(MODULE_FILE).parent
    source = "\n".join((folder / file).read_text(encoding="utf-8") for file in FILES)
    module = Module(PREFIXES.sub("", source))  # in the copy, all stands in one file
    cls = find_class(name)
    text = PREFIXES.sub("", textwrap.dedent(inspect.getsource(cls)))
    names = module.names_needed(text)
    parts = [
        f'"""{name}, copied from SegStudio (python -m SegStudio show {name})."""',
        module.imports(names),
        *module.helpers(names),
        text.strip(),
    ]
    return "\n\n\n".join(part for part in parts if part) + "\n"


def find_class(name):
    """The class of this name: SegStudio, or one that is nested in SemanticSegmentation."""
    segmentation = package.SemanticSegmentation
    classes = {key: value for key, value in vars(segmentation).items() if inspect.isclass(value)}
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no class {name}: did you mean {near}? The classes: {', '.join(classes)}"
        )
    return classes[name]


class Module:
    """The text of module and backstage, split into imports and top-level definitions by name."""

    def __init__(self, source):
        self.source = source
        self.import_lines, self.definitions = {}, {}
        for node in ast.parse(source).body:
            text = self.text(node)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    key = alias.asname or alias.name.split(".")[0]
                    self.import_lines.setdefault(key, []).append(text)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    line = f"from {node.module} import {alias.name}"
                    line += f" as {alias.asname}" if alias.asname else ""
                    self.import_lines.setdefault(alias.asname or alias.name, []).append(line)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.definitions[node.name] = text
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.definitions[node.targets[0].id] = text
        self.order = list(self.definitions)

    def text(self, node):
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return "\n".join(self.source.splitlines()[first - 1 : node.end_lineno])

    def names_needed(self, text):
        """The module's names that a text uses, and the names that their definitions use."""
        found, to_read = set(), [text]
        while to_read:
            for name in global_names(to_read.pop()) - found:
                found.add(name)
                if name in self.definitions and name != "SegStudio":
                    to_read.append(self.definitions[name])
        return found

    def imports(self, names):
        lines = {line for name in names for line in self.import_lines.get(name, [])}
        if "SegStudio" in names:
            lines.add("from SegStudio import SegStudio")
        plain = sorted(line for line in lines if line.startswith("import "))
        return "\n".join(plain + sorted(lines - set(plain)))

    def helpers(self, names):
        return [
            self.definitions[name] for name in self.order if name in names and name != "SegStudio"
        ]


def global_names(text):
    """The names that a text uses in any scope but does not define there."""
    scopes, found = [symtable.symtable(text, "copied", "exec")], set()
    while scopes:
        scope = scopes.pop()
        scopes.extend(scope.get_children())
        found.update(
            symbol.get_name()
            for symbol in scope.get_symbols()
            if symbol.is_global() or (scope.get_type() == "module" and symbol.is_referenced())
        )
    return found
