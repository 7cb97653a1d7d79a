"""The site: one command builds it, it needs no server and no network, and it has every class."""

import ast
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import Browser, find_chromium
from conftest import ROOT

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


# ---- the reference ------------------------------------------------------------------------------


def named_in_the_reference():
    """The names after ::: in doc/api/, and the members that a line `members:` adds."""
    names = []
    for page in (ROOT / "doc" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", text + "\n", re.MULTILINE):
            names.append(name)
            members = re.search(r"members: \[(.*)\]", options)
            names += [f"{name}.{member}" for member in members[1].split(", ")] if members else []
    return names


def public(cls):
    """The public methods and nested classes that a class defines, with a docstring."""
    found = []
    for name in vars(cls):
        value = inspect.getattr_static(cls, name)
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        own = getattr(value, "__qualname__", "") == f"{cls.__qualname__}.{name}"
        if name[0] != "_" and own and inspect.getdoc(value):
            found.append(name)
    return found


def test_the_reference_has_every_public_class_and_method():
    experiment = "SegStudio.SegStudio.SemanticSegmentation"
    expected = {"SegStudio.SegStudio", experiment}
    expected |= {f"SegStudio.SegStudio.{name}" for name in public(SegStudio)}
    expected |= {f"{experiment}.{name}" for name in public(Segmentation)}
    names = named_in_the_reference()
    assert sorted(names) == sorted(set(names)), "a name stands there twice"
    assert set(names) == expected
    assert len(names) > 40


def test_each_docstring_becomes_markdown():
    sys.path.insert(0, str(ROOT / "doc" / "scripts"))
    docstrings = pytest.importorskip("docstrings", reason="griffe is part of the extra docs")
    tree = ast.parse((ROOT / "SegStudio" / "SegStudio.py").read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    found = [d for node in nodes if (d := ast.get_docstring(node))]
    assert len(found) > 60
    for text in found:
        markdown = docstrings.to_markdown(text)
        assert markdown.count("```") % 2 == 0
        words = re.findall(r"\w\w+", re.sub(r"[\\`*]", "", text.replace("Args:", "Arguments")))
        kept = re.sub(r"^```(python|text)$", "", markdown, flags=re.MULTILINE)
        kept = re.findall(r"\w\w+", re.sub(r"[\\`*]", "", kept))
        assert [w.lower() for w in words] == [w.lower() for w in kept]


# ---- the built site -----------------------------------------------------------------------------


class Links(HTMLParser):
    """The links, the files that a page loads, and the anchors of an HTML page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag in ("script", "img", "iframe") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as the one command of doc/index.md builds it."""
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # ruff
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_link_leads_somewhere_and_nothing_is_loaded_from_the_internet(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 25
    for path, page in pages.items():
        assert len(page.loaded) > 2
        for address in page.loaded + page.links:
            if re.match(r"[a-z]+:", address):
                assert address not in page.loaded, f"{path.name} loads {address}"
                continue
            file, _, anchor = unquote(address).partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path.name}: {address}"
            if target.suffix == ".html":
                assert anchor in pages[target].anchors, f"{path.name}: {address}"


@pytest.mark.slow
def test_the_reference_shows_signatures_docstrings_and_the_source(site):
    page = (site / "api" / "losses.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "SegmentationLossDice(" in text
    assert "Shape: output and mask (N, C, H, W)" in text
    assert "1 - 2 sum(pm) / (sum(pp) + sum(mm) + eps)" in text.replace("&gt;", ">")
    assert "Source code in" in text
    assert "super().__init__()" in text


in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium"),
]
READY = "document.querySelector('article') !== null"


@pytest.fixture(scope="module")
def browser():
    with Browser(seconds=60) as browser:
        yield browser
        assert not browser.errors


class TestInABrowser:
    pytestmark = in_browser

    def test_the_search_works_without_a_server(self, browser, site):
        browser.open(site / "index.html", ready=READY)
        browser.click("input.md-search__input")
        browser.press(*"Dice")
        browser.wait_for("document.querySelectorAll('.md-search-result__link').length > 5")
        found = browser.evaluate(
            "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
        )
        files = {address.partition("#")[0].rpartition("/site")[2] for address in found}
        assert any(file.endswith("/losses.html") for file in files)
        assert any(file.endswith("/api/losses.html") for file in files)
        assert all(address.startswith("file:") for address in found)
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}

    @pytest.mark.parametrize("name", ["index", "losses", "results", "api/data", "api/training"])
    def test_a_page_is_not_wider_than_a_telephone(self, browser, site, name):
        browser.open(site / f"{name}.html", width=400, touch=True, ready=READY)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 400
