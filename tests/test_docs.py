"""The documentation agrees with the code: links, commands, snippets, tables, version numbers."""

import doctest
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from SegStudio import SegStudio
from SegStudio.SegStudio import __version__

ROOT = Path(__file__).resolve().parents[1]
Segmentation = SegStudio.SemanticSegmentation
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "doc").glob("*.md")),
    *sorted((ROOT / "Datasets").glob("*.md")),
]
SCRIPT = r"python ((?:Examples|Datasets|doc/scripts|tests/benchmarks)/[a-z0-9_]+\.py)([^`\n#&|]*)"


def each_page(pages):
    return pytest.mark.parametrize("page", pages, ids=[str(p.relative_to(ROOT)) for p in pages])


# ---- links --------------------------------------------------------------------------------------


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = without_code(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading).lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in words}


@each_page(PAGES)
def test_relative_links_and_images_exist(page):
    text = without_code(page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):  # an address in the web
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_no_heading_starts_with_a_digit():
    """Its anchor would too. MkDocs' script stops at such an anchor, and tables lose their style."""
    for page in (ROOT / "doc").glob("*.md"):
        assert not [anchor for anchor in anchors(page) if anchor[:1].isdigit()], page.name


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "doc").glob("*.md"):
        assert f": {page.name}" in navigation


def test_every_figure_is_used():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for figure in (ROOT / "doc" / "figures").iterdir():
        assert f"figures/{figure.name}" in text


# ---- commands -----------------------------------------------------------------------------------


def commands(page):
    """(script, its flags) of every command on a page that runs a script of this repository."""
    for script, rest in re.findall(SCRIPT, page.read_text(encoding="utf-8")):
        yield script, re.findall(r"(?<!\S)--[a-z][\w-]*", rest)


@each_page(PAGES)
def test_commands_name_files_that_exist(page):
    for script, _ in commands(page):
        assert (ROOT / script).is_file(), f"{page.name}: python {script}"


@functools.cache
def usage(script):
    """The first paragraph of --help: all flags, and nothing of the script's docstring."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\n\n")[0]


USED = sorted(
    {
        (script, flag)
        for page in PAGES
        for script, flags in commands(page)
        if script.startswith(("Examples/", "Datasets/")) and (ROOT / script).is_file()
        for flag in flags
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({script for script, _ in USED}))
def test_commands_use_flags_that_the_script_knows(script):
    known = set(re.findall(r"--[a-z][\w-]*", usage(script)))
    assert {flag for name, flag in USED if name == script} <= known


# ---- snippets -----------------------------------------------------------------------------------


@each_page([ROOT / "doc" / "masks.md", ROOT / "doc" / "scores.md"])
def test_snippets_give_what_the_page_shows(page, tmp_path, monkeypatch):
    (tmp_path / "Datasets").mkdir()
    for archive in (ROOT / "Datasets").glob("*.gz"):
        shutil.copy(archive, tmp_path / "Datasets")
    monkeypatch.chdir(tmp_path)
    dls = SegStudio(dataroot="Datasets/")
    for part in ("train", "test"):  # so that the snippets find a cache and print nothing of it
        name = f"PurdueShapes5MultiObject-20-{part}.gz"
        Segmentation.PurdueShapes5MultiObjectDataset(dls, None, part, name)
    text = page.read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert snippets
    parser = doctest.DocTestParser()
    test = parser.get_doctest("\n".join(snippets), {}, page.name, str(page), 0)
    assert len(test.examples) > 10
    printed = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=printed.append)
    assert not printed, "".join(printed)


# ---- what is made from the code -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["mUnet", "UNet"])
def test_the_page_of_the_networks_has_their_numbers_of_parameters(name):
    total = sum(p.numel() for p in getattr(Segmentation, name)().parameters())
    page = (ROOT / "doc" / "networks.md").read_text(encoding="utf-8")
    assert f"\n- {total:,} parameters.\n" in page, "run python doc/scripts/networks.py"


@pytest.mark.slow
def test_the_page_of_the_networks_is_what_its_script_makes(tmp_path):
    path = ROOT / "doc" / "scripts" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks_script", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    page = ROOT / "doc" / "networks.md"
    again = tmp_path / "networks.md"
    shutil.copy(page, again)
    script.write_page(again)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), (
        "a network has changed: run python doc/scripts/networks.py"
    )


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == __version__
