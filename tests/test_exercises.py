"""The exercises: solutions pass, start files do not, and wrong answers are told why."""

import csv
import re
import sys

import check_exercise
import pytest
from conftest import ROOT

from SegStudio import grade_losses, students_code

FOLDER = ROOT / "doc" / "exercises"
SCRIPT = ROOT / "Examples" / "check_exercise.py"
SCRIPTED = sorted(check_exercise.EXERCISES)  # exercise 2 is checked by check-loss
PAGE = (ROOT / "doc" / "exercises.md").read_text(encoding="utf-8")


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks a file in this process, which saves the seconds of a second one."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def run(number, path, train_seconds=1):
        try:
            return check_exercise.examine(path, number, train_seconds)
        except students_code.NotLoaded as error:
            return {"right": [], "problem": str(error)}

    return run


def solution(number):
    return FOLDER / "solutions" / f"solution_{number}.py"


@pytest.fixture
def changed(tmp_path):
    """Writes a solution in which some text is replaced: a wrong answer."""

    def write(number, *changes):
        text = solution(number).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / f"my_{number}.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# ---- solutions and start files ------------------------------------------------------------------


@pytest.mark.parametrize("number", [n for n in SCRIPTED if n != 7])
def test_a_solution_is_right(number, check):
    found = check(number, solution(number))
    assert "wrong" not in found, found
    assert found["right"]


NOT_YET = {
    1: "MyDice is not written yet",
    3: "follows is not written yet (line ",
    4: "balanced_scale is not written yet (line ",
    5: "counts_as is not written yet (line ",
    6: "the loss or its gradient is not finite",
    8: "mask_values must be six whole numbers from 1 to 255",
}


@pytest.mark.parametrize("number", NOT_YET)
def test_a_start_file_is_told_what_is_missing(number, check):
    found = check(number, FOLDER / f"start_{number}.py")
    assert found["wrong"].startswith(NOT_YET[number])
    assert "wrong" in found


@pytest.mark.slow
def test_the_start_file_of_exercise_2_has_the_mistake_and_the_solution_has_not():
    start = grade_losses.examine_file(FOLDER / "start_2.py", "ChannelLoss")
    assert [f.id for f in start.report.objections] == ["channel-loop-over-batch"]
    right = grade_losses.examine_file(solution(2), "ChannelLoss")
    assert right.code == 0
    assert right.report.recognised == "MSE"
    assert not right.report.remarks


@pytest.mark.slow
def test_a_loss_is_compared_with_mse_in_the_same_run(check):
    found = check(7, solution(7), 5)
    assert "wrong" not in found, found
    scores = r"mean IoU on 200 other images: MSE (0\.\d+), yours (0\.\d+)"
    yardstick, yours = map(float, re.fullmatch(scores, found["right"][-1]).groups())
    assert yours >= yardstick + check_exercise.MARGIN


@pytest.fixture
def very_short(monkeypatch):
    """Makes the training of exercise 7 as short as it can be."""
    sizes = {"LEAST_STEPS": 2, "TRAIN_IMAGES": 32, "TEST_IMAGES": 8}
    for name, size in sizes.items():
        monkeypatch.setattr(check_exercise, name, size)


def test_mse_itself_does_not_beat_mse(check, very_short):
    found = check(7, FOLDER / "start_7.py", 0)
    assert found["wrong"] == "MyLoss must beat MSE by 0.02 or more: this is a tie"


# ---- wrong answers ------------------------------------------------------------------------------

WRONG_ANSWERS = [
    # exercise, (old, new) in the solution, what the answer is told, the example
    (1, ("1 - 2 *", "1 -"), "missing-factor-two", "loss 0.5"),
    (
        1, ("(size + 1e-6))", "(size + 1e-6))[:, : len(m)]"),
        "channel-loop-over-batch", "channels 4 of 0 to 4 do not change the value",
    ),
    (1, ("overlap / (size", "overlap.sum() / (size.sum()"), "Dice (over the whole batch)", ""),
    (
        1, ("(1 - 2 * overlap / (size + 1e-6))", "((p - m) ** 2)"),
        "the exercise asks for 1 - squared Dice (per image and channel); MyDice equals MSE", "",
    ),
    (
        3, ("output != output[:1]", "output != 0"),
        "DLStudio's network: follows is True for 100% of the pixels, but must be for 25%",
        "pixel (row 0, column 1): your follows says that it follows the image",
    ),
    (3, ("    net.eval()", "    #"), "call net.eval() first", "column 1"),
    (3, ("different.any(dim=1)", "different[:, 0]"), "only channel 3 follows", "in channel 3"),
    (
        3, ("(mask & follows).sum() / mask.sum()", "follows.float().mean()"),
        "best_iou is 0.25 for a square of 3x3 pixels, but it must be 0.1111", "1 of its 9 pixels",
    ),
    (
        4, ("(norms[0] / norms[1])", "(norms[1] / norms[0])"),
        "divided by that of MSE: exchange them", "norm of its gradient",
    ),
    (4, ("gradient.norm()", "loss(p, mask).detach()"), "the ratio of the two values", "MSE "),
    (4, ("return (norms[0] / norms[1]).item()", "return 200"), "homework's constants", "Dice "),
    (
        5, (' or own[0]["iscrowd"]', ""),
        'reading "selected", dog: you count 1, but it must be 0', "a crowd of dogs alone",
    ),
    (
        5, ("width >= 200 and height >= 200", "width * height >= 200 * 100"),
        'reading "selected", cake: you count 1, but it must be 0', "too narrow",
    ),
    (5, ('"image": annotations', '"image": own'), '"image", cake: you count 1', "large dog"),
    (
        6, ("p * p + m * m + 1", "p + m + 1 + 1e-6"),
        "the loss of a perfect output must be 0", "mask 50, output 50: loss -48.5",
    ),
    (
        6, ("(1 - (2 * p * m + 1) / (p * p + m * m + 1))", "((p - m) ** 2)"),
        "the loss here must be 0.5", "mask 1, output 0: loss 1",
    ),
    (
        6, ("(2 * p * m + 1) / (p * p + m * m + 1)", "(2 * p * m + 1) / (p + m + 1).clamp(min=1)"),
        "the loss of a perfect output must be 0", "mask 50, output 50: loss -48.5",
    ),
    (8, ("250, 25)", "250, 300)"), "in which 300 becomes 44", ""),
    (8, ("    mask[:, pixels] = 0", "    #"), "a pixel is in two planes", "item "),
    (8, ("default_rng(index)", "default_rng()"), "is different when it is read again", "item 0"),
    (8, ("out_channels=6", "out_channels=5"), "check-network objects", "(3, 6, 64, 64)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "change", "says", "example"),
    WRONG_ANSWERS,
    ids=[f"{number}: {says[:40]}" for number, _, says, _ in WRONG_ANSWERS],
)
def test_a_wrong_answer_is_told_why(number, change, says, example, check, changed):
    found = check(number, changed(number, change))
    assert says in found["wrong"], found
    assert example in found["example"], found
    assert "wrong" in found


def test_a_loss_that_is_not_finite_is_named(check, changed, very_short):
    path = changed(7, ("return bce +", "return bce / 0 +"))
    assert check(7, path, 0)["wrong"].startswith("MyLoss is inf in step 1")


# ---- the command --------------------------------------------------------------------------------


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["check_exercise.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        check_exercise.main()
    return caught.value.code


@pytest.mark.slow
def test_the_command_works_from_any_folder(tmp_path, run_script, monkeypatch, capsys):
    (tmp_path / "my_4.py").write_text(solution(4).read_text(encoding="utf-8"), encoding="utf-8")
    done = run_script(tmp_path, SCRIPT, 4, "my_4.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Exercise 4, balance the two terms: my_4.py\n\nRIGHT  ")
    assert done.stdout.endswith("\nEverything is right.\n")
    assert command(monkeypatch, 4, FOLDER / "start_4.py") == 1
    printed = capsys.readouterr()
    assert "\nWRONG  balanced_scale is not written yet (line " in printed.out
    assert "Traceback" not in printed.out + printed.err
    assert {path.name for path in tmp_path.iterdir()} - {".cache", "__pycache__"} == {"my_4.py"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code", "printed"),
    [
        ("import time\nwhile True: time.sleep(1)\n", 1, "it was stopped after 3 seconds"),
        ("import os\nos._exit(7)\n", 1, "ended with exit code 7"),
    ],
    ids=["endless", "exit"],
)
def test_a_file_that_misbehaves_ends_in_one_sentence(
    text, code, printed, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "my_4.py"
    path.write_text(text, encoding="utf-8")
    assert command(monkeypatch, 4, path, "--limit", 3) == code
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def balanced_scales(output, mask):\n    pass\n", "did you mean balanced_scales?"),
        ("def balanced_scale(:\n", "line 1: "),
        ("\nimport nothing_of_this_name\n", "line 2: ModuleNotFoundError: "),
    ],
    ids=["no such name", "syntax", "import"],
)
def test_a_file_that_cannot_be_loaded_is_told_why(text, problem, check, tmp_path, capsys):
    path = tmp_path / "my_4.py"
    path.write_text(text, encoding="utf-8")
    found = check(4, path)
    assert problem in found["problem"]
    assert check_exercise.show({**found, "printed": ""}, "doc/losses.md") == 2
    assert f"It cannot be loaded: {found['problem']}" in capsys.readouterr().out


def test_what_an_answer_prints_is_shown(capsys):
    found = {"right": [], "wrong": "it is wrong", "printed": "hello\n" * 12}
    assert check_exercise.show(found, "doc/losses.md") == 1
    printed = capsys.readouterr().out
    assert printed.startswith("Your file printed:\n  hello\n")
    assert printed.count("  hello\n") == 10
    assert "\nWRONG  it is wrong\n" in printed


def test_an_error_in_an_answer_has_its_line(check, changed):
    path = changed(4, ("norms.append(gradient.norm())", "norms.append(gradients.norm())"))
    found = check(4, path)
    assert re.fullmatch(r"line \d+: NameError: name 'gradients' .*", found["wrong"])


def test_what_cannot_be_checked_is_said(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, 3, tmp_path / "none.py") == 2
    assert "It cannot be loaded: there is no file" in capsys.readouterr().out
    assert command(monkeypatch, 2, "my_2.py") == 2
    assert "python -m SegStudio check-loss my_2.py:ChannelLoss" in capsys.readouterr().err
    assert command(monkeypatch, 9, "my_9.py") == 2


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_has_every_exercise_with_its_file_and_its_command():
    sections = re.split(r"^## Exercise (\d)", PAGE, flags=re.MULTILINE)
    numbers, texts = sections[1::2], sections[2::2]
    assert [int(number) for number in numbers] == [*range(1, 9)]
    for number, text in zip(numbers, texts, strict=True):
        assert f"(exercises/start_{number}.py)" in text
        command = rf"python Examples/check_exercise\.py {number} my_{number}\.py"
        if number == "2":
            command = r"python -m SegStudio check-loss my_2\.py:ChannelLoss"
        assert re.search(command, text)
        for part in (
            "**You learn**",
            "**Task.**",
            "**Check**",
            "**Time**",
            "**Hint.**",
            "**Read**",
        ):
            assert part in text, f"exercise {number}: {part}"
        assert solution(int(number)).is_file()


def test_the_page_has_the_balanced_scales_of_the_homeworks_run():
    with (ROOT / "doc" / "homework" / "combined_200" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scales = [200 * float(row["grad_norm_mse"]) / float(row["grad_norm_dice"]) for row in rows]
    words = " ".join(PAGE.split())
    assert f"between {min(scales):.0f} and {max(scales):.0f} in the {len(rows)} rows" in words
