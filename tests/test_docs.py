"""The documentation agrees with the code: links, commands, snippets, tables, version numbers."""

import contextlib
import doctest
import functools
import importlib.util
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_examples import draw_archives

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
    """The first paragraph of --help: all flags, and nothing of the script's docstring.

    The script runs in this process: it takes seconds to start another one.
    """
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(ROOT / script), "--help"])
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not ended.value.code
    return printed.getvalue().partition("\n\n")[0]


USED = sorted(
    {
        (script, flag)
        for page in PAGES
        for script, flags in commands(page)
        if script.startswith(("Examples/", "Datasets/")) and (ROOT / script).is_file()
        for flag in flags
    }
)


@pytest.mark.parametrize("script", sorted({script for script, _ in USED}))
def test_commands_use_flags_that_the_script_knows(script):
    known = set(re.findall(r"--[a-z][\w-]*", usage(script)))
    assert {flag for name, flag in USED if name == script} <= known


# ---- snippets -----------------------------------------------------------------------------------


PAGES_OF_SNIPPETS = [ROOT / "doc" / "masks.md", ROOT / "doc" / "scores.md"]


@each_page(PAGES_OF_SNIPPETS)
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


# ---- pages that belong together -----------------------------------------------------------------


@pytest.mark.parametrize("front", ["README.md", "doc/index.md"])
def test_a_reader_finds_every_page_from_the_front(front):
    text = (ROOT / front).read_text(encoding="utf-8")
    for page in (ROOT / "doc").glob("*.md"):
        if page.name != "index.md":
            assert re.search(rf"\]\((doc/)?{page.name}\)", text), f"{front}: no link to {page.name}"


def test_the_page_on_scores_links_the_glossary():
    assert "](glossary.md)" in (ROOT / "doc" / "scores.md").read_text(encoding="utf-8")


def glossary_terms():
    text = (ROOT / "doc" / "glossary.md").read_text(encoding="utf-8")
    return [term.lower() for term in re.findall(r"\*\*(.+?)\*\*", text)]


def test_the_glossary_has_the_words_of_the_module_and_every_score():
    words = re.findall(r"\*([a-z]+)\*", sys.modules["SegStudio.SegStudio"].__doc__)
    assert {"image", "mask", "output", "pred"} <= set(words)
    titles = [title.lower() for title in Segmentation.SegmentationScores.titles]
    # the field's words in the README, the pages and the examples' docstrings
    field = """threshold, logit, mean iou of single images, baseline, strided, dense, lattice,
        receptive field, skip connection, residual connection, encoder, decoder, feature map,
        batchnorm, state dict, epoch, muon, bf16, empty channel, soft dice, augmentation"""
    terms = {word for term in glossary_terms() for word in (term, *term.split(", "))}
    missing = {*words, *titles, *re.split(r",\s*", field)} - terms
    assert not missing


def test_the_glossary_explains_a_term_once():
    terms = glossary_terms()
    assert len(terms) == len(set(terms))


def test_what_the_page_for_dlstudios_users_calls_missing_is_missing():
    page = (ROOT / "doc" / "coming-from-dlstudio.md").read_text(encoding="utf-8")
    missing = page.partition("## What is not there")[2].partition("## ")[0]
    names = re.findall(r"`(\w+)`", missing.partition("Their settings")[0])
    assert len(names) > 14
    for name in set(names) - {"DLStudio"}:
        assert not hasattr(SegStudio, name), name


def test_what_the_page_for_dlstudios_users_calls_the_same_is_there():
    page = (ROOT / "doc" / "coming-from-dlstudio.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:class paths|methods) \| (.*) \|$", page, re.MULTILINE)
    names = re.findall(r"`(?:SegStudio\.)?(\w+)`", " ".join(rows))
    assert len(names) > 10
    for name in names:
        assert hasattr(SegStudio, name) or hasattr(Segmentation, name), name


SEND_TO_THE_README = [
    path.name
    for path in sorted((ROOT / "Examples").glob("*.py"))
    if "README" in path.read_text(encoding="utf-8").partition('"""\n\n')[0]
]


@pytest.mark.parametrize("script", SEND_TO_THE_README)
def test_the_readme_has_the_scores_to_which_an_example_sends(script):
    """A section of the README names the script and has a table of IoUs."""
    sections = re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    tables = [text for text in sections if script in text and re.search(r"\| \**0\.\d", text)]
    assert tables


def test_the_readme_speaks_of_the_solutions_that_the_package_contains():
    for page in ("README.md", "doc/index.md"):
        assert "contains solutions of the homework" in (ROOT / page).read_text(encoding="utf-8")


def test_the_folder_of_coco_has_one_name():
    """data/coco in every command; data/synthetic-coco for the set that is not COCO."""
    for path in [*PAGES, *(ROOT / "Examples").glob("*.py"), *(ROOT / "Datasets").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"--(?:coco|out) (data/[\w-]*coco[\w-]*)", text))
        assert found <= {"data/coco", "data/synthetic-coco"}, path.name


def test_the_readme_says_which_flags_the_examples_take():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## The examples")[2].partition("\n## ")[0]
    intro, _, table = section.partition("| script |")
    others, _, flags = intro.partition(" take\n")
    timed = flags.partition("refuse `--epochs`:")[2].partition(". ")[0]
    flags = re.findall(r"--[\w-]+", flags.partition(". ")[0])
    assert len(flags) == 10
    scripts = set(re.findall(r"`(\w+\.py)", table))
    named = set(re.findall(r"`(\w+\.py)`", others))
    for script in scripts:
        known = re.findall(r"--[\w-]+", usage(f"Examples/{script}"))
        assert (set(flags) <= set(known)) == (script not in named), script
    for script in re.findall(r"`(\w+\.py)`", timed.partition("which have")[0]):
        assert "--seconds" in usage(f"Examples/{script}"), script


def test_the_page_of_pitfalls_has_the_rows_that_its_script_prints():
    from coco_exploding_mse import CASES, LOSSES

    page = (ROOT / "doc" / "pitfalls.md").read_text(encoding="utf-8").partition("## Mistake 6")[2]
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| masks")]
    shown = [(title.strip(), loss.strip()) for title, loss, *_ in rows]
    assert shown == [(case.title, loss) for case in CASES for loss in LOSSES]
    for *_, ends, gradient, output in rows:
        assert sum(map(int, re.findall(r"\d+(?= (?:NaN|inf|finite))", ends))) == 3
        assert all(0 < float(norm) < float("inf") for norm in (gradient, output))


# ---- scripts to copy ----------------------------------------------------------------------------


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run_block(code, changes, folder, run_script):
    """Run a script of a page in `folder`, with smaller numbers."""
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    script = folder / "my_script.py"
    script.write_text(code)
    done = run_script(folder, script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def folder_of_photos(folder):
    """Photos of a green or a red square on grey, and their masks: 1 is green, 2 is red."""
    for part, number in (("train", 8), ("test", 4)):
        for kind in ("images", "masks"):
            (folder / "my_data" / part / kind).mkdir(parents=True)
        for index in range(number):
            image = np.full((48, 64, 3), 90, np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            top, left = 4 + 3 * index % 20, 30 - 3 * index % 20
            image[top : top + 20, left : left + 20] = (30, 200, 60) if index % 2 else (200, 60, 30)
            mask[top : top + 20, left : left + 20] = 1 if index % 2 else 2
            Image.fromarray(image).save(folder / "my_data" / part / f"images/{index}.jpg")
            Image.fromarray(mask).save(folder / "my_data" / part / f"masks/{index}.png")


SMALL_SHAPES = {"train_images=2000, test_images=200": "train_images=20, test_images=8"}


@pytest.mark.slow
def test_your_own_loss_trains_to_the_end(tmp_path, run_script):
    draw_archives(tmp_path)
    printed = run_block(blocks("doc/your-own.md")[0], SMALL_SHAPES, tmp_path, run_script)
    assert "Tversky loss: 0." in printed
    assert "Scores on 24 test images" in printed or "Scores on 8 test images" in printed
    assert (tmp_path / "runs" / "my_script" / "metrics.json").is_file()


@pytest.mark.slow
def test_your_own_dataset_is_learned(tmp_path, run_script):
    folder_of_photos(tmp_path)
    changes = {"SIZE = 128": "SIZE = 32", "epochs=20": "epochs=60"}
    printed = run_block(blocks("doc/your-own.md")[1], changes, tmp_path, run_script)
    assert "Scores on 4 test images" in printed
    metrics = json.loads((tmp_path / "runs" / "my_script" / "metrics.json").read_text())
    assert metrics["classes"].keys() == {"cat", "dog"}
    assert metrics["mean_iou"] > 0.5  # squares of two colours are easy
    predict = ROOT / "Examples" / "predict.py"
    photo = "my_data/test/images/1.jpg"
    done = run_script(tmp_path, predict, photo, "--model", "runs/my_script")
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout


@pytest.mark.slow
def test_your_own_network_trains_to_the_end_and_loads_again(tmp_path, run_script):
    draw_archives(tmp_path)
    code = blocks("doc/your-own.md")[2]
    page = (ROOT / "doc" / "your-own.md").read_text(encoding="utf-8")
    (load,) = re.findall(r"`(segmenter\.load_model\(.*\))`", page)
    code += load.replace("runs/NAME", "runs/my_script") + '\nprint("loaded")\n'
    printed = run_block(code, SMALL_SHAPES, tmp_path, run_script)
    assert "coverage: 1.0\n" in printed
    assert "BCE+Dice loss: " in printed
    assert printed.endswith("loaded\n")


@pytest.mark.slow
def test_the_report_of_check_loss_in_python(capsys):
    class MyDice(torch.nn.Module):
        def forward(self, output, mask):
            return 1 - (output * mask).sum() / ((output**2).sum() + (mask**2).sum() + 1e-6)

    (code,) = blocks("doc/check-loss.md")
    exec(code, {"MyDice": MyDice})
    printed = capsys.readouterr().out
    assert "OBJECTION: missing-factor-two" in printed
    assert "missing-factor-two" in printed.splitlines()[-1]


@pytest.mark.slow
def test_the_readmes_script_loads_trains_and_tests(tmp_path, run_script):
    draw_archives(tmp_path)
    (code,) = blocks("README.md")
    changes = {
        "train_images=10000, test_images=1000": "train_images=8, test_images=24",
        "epochs=6": "epochs=1",
        "depth=16": "depth=2",
    }
    printed = run_block(code, changes, tmp_path, run_script)
    assert "MSE loss: " in printed
    assert "Scores on 24 test images" in printed
    assert (tmp_path / "saved_model").is_file()
    # The table of a run's files, to which the README links, has them all.
    table = (ROOT / "doc" / "results.md").read_text(encoding="utf-8").partition("## The files")[2]
    cells = re.findall(r"^\| (`.+?) \|", table.partition("\n\nBeside")[0], re.MULTILINE)
    named = re.findall(r"`(.+?)`", " ".join(cells).replace("NNN", "*"))
    for path in (tmp_path / "runs" / "my_script").iterdir():
        assert any(path.match(pattern) for pattern in named), path.name


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
    assert re.search(r"^## (\d\S*)", changelog, re.MULTILINE).group(1) == __version__


# ---- spelling -----------------------------------------------------------------------------------

# Words that codespell takes for mistakes: names of axes in einsum.
RIGHT_WORDS = ("thw",)


def test_the_words_are_spelled_right():
    """codespell knows frequent mistakes; it reads pages, docstrings and comments."""
    places = [*PAGES, ROOT / "SegStudio", ROOT / "Examples", ROOT / "Datasets", ROOT / "doc"]
    ignored = ["--ignore-words-list", ",".join(RIGHT_WORDS), "--skip", "*.js,*.json,*.csv,*.css"]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *ignored, *map(str, places)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_codespell_finds_a_mistake(tmp_path):
    (tmp_path / "page.md").write_text("The netwrok is recieved.\n")
    command = [sys.executable, "-m", "codespell_lib", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 65
    assert "recieved ==> received" in done.stdout


def test_the_tests_that_a_page_names_exist():
    for page in PAGES:
        for path in re.findall(r"`(tests/[\w/]+(?:\.py)?)`", page.read_text(encoding="utf-8")):
            assert "NAME" in path or (ROOT / path).exists(), f"{page.name}: {path}"
