"""reproduce_homework.py: which runs it makes, keeps, continues and moves aside."""

import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import Segmentation, TinyShapes
from run_folders import example, make_run

from SegStudio import SegStudio, backstage

reproduce = example("reproduce_homework")
homework_page = example("homework_page")
MSE = homework_page.EXPERIMENTS[0]
COCO_MAE = homework_page.EXPERIMENTS[5]


def make_flags(results, **changes):
    """What read_flags returns, for tiny runs in the folder `results`."""
    flags = {
        "quick": True,
        "epochs": 2,
        "seed": 0,
        "seeds": 1,
        "seconds": None,
        "train_images": 8,
        "results_dir": str(results),
        "coco": None,
        "dataroot": None,
        "precision": "fp32",
        "show": False,
        "only": None,
        **changes,
    }
    names = ("epochs", "seed", "results_dir")
    return SimpleNamespace(**flags, settings={name: flags[name] for name in names})


# ---- what is left to do, told from the files of a run -------------------------------------------


def find_step(folder, flags, experiment=MSE, seed=0):
    wanted = reproduce.wanted_settings(experiment, flags, seed)
    return reproduce.what_is_left(folder, wanted)[0]


@pytest.fixture
def full(tmp_path):
    """The flags of the homework's own schedule."""
    return make_flags(tmp_path, quick=False, epochs=6, train_images=10000)


@pytest.fixture
def quick(tmp_path):
    """The flags of --quick."""
    return make_flags(tmp_path, epochs=1, train_images=2000, seconds=40)


def test_without_a_run_there_is_all_to_do(tmp_path, full):
    assert find_step(tmp_path / "mse", full) == "train"


def test_a_finished_run_with_the_same_settings_is_complete(tmp_path, full, quick):
    assert find_step(make_run(tmp_path / "mse"), full) == "nothing"
    short = make_run(tmp_path / "short", images=2000, max_seconds=40)
    assert find_step(short, quick) == "nothing"


def test_a_run_without_its_scores_is_continued(tmp_path, full):
    folder = make_run(tmp_path / "mse", iou=None)
    assert find_step(folder, full) == "continue"
    (folder / "model.pt").unlink()
    assert find_step(folder, full) == "continue"


def test_a_longer_run_is_kept_and_a_shorter_one_moves(tmp_path, full, quick):
    long = make_run(tmp_path / "long")
    short = make_run(tmp_path / "short", images=2000, max_seconds=40)
    assert find_step(long, quick) == "nothing"
    assert find_step(short, full) == "move"
    assert find_step(make_run(tmp_path / "epochs", epochs=7), full) == "nothing"


@pytest.mark.parametrize("epochs", [6, 12])
def test_a_run_of_another_seed_moves_even_if_it_is_longer(tmp_path, full, epochs):
    assert find_step(make_run(tmp_path / "mse", seed=1, epochs=epochs), full) == "move"


def test_a_run_of_another_precision_moves(tmp_path, full):
    folder = make_run(tmp_path / "mse")
    full.precision = "bf16"
    assert find_step(folder, full) == "move"


def test_a_synthetic_run_is_not_taken_for_coco(tmp_path, full):
    folder = make_run(tmp_path / "coco_mae", loss="MAE", images=300, source="a SYNTHETIC set")
    assert find_step(folder, full, COCO_MAE) == "nothing"
    full.coco = "data/coco-64"
    assert find_step(folder, full, COCO_MAE) == "move"


def test_a_damaged_run_is_an_error(tmp_path, full):
    folder = make_run(tmp_path / "mse")
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="rename or remove that folder"):
        find_step(folder, full)


def test_moved_runs_keep_their_files_and_their_numbers_count_on(tmp_path):
    for number in (1, 2):
        folder = make_run(tmp_path / "mse", seed=number)
        assert reproduce.move_aside(folder) == tmp_path / f"mse_before_{number}"
    assert not (tmp_path / "mse").exists()
    assert homework_page.read_run(tmp_path / "mse_before_1").settings["seed"] == 1
    assert (tmp_path / "mse_before_2" / "model.pt").read_bytes() == b"weights"


# ---- the command line ---------------------------------------------------------------------------


@pytest.fixture
def run_main(monkeypatch, tmp_path):
    """run_main(*flags): the script in tmp_path; returns the sentence that it ends with."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        monkeypatch.setattr("sys.argv", ["reproduce_homework.py", *flags])
        try:
            SegStudio.run_example(reproduce.main)
        except SystemExit as end:
            return str(end)
        return ""

    return run


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--only", "mse,nose"], "no experiment 'nose'; it has mse, dice, combined-200"),
        (["--seeds", "0"], "--seeds is 1 or more"),
    ],
)
def test_wrong_flags_get_a_sentence(run_main, tmp_path, flags, sentence):
    assert sentence in run_main(*flags)
    assert not list(tmp_path.iterdir())


def test_a_run_name_is_refused_before_anything_moves(run_main, tmp_path, capsys):
    folder = make_run(tmp_path / "runs" / "dice")
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    run_main("--results-dir", str(tmp_path / "runs"), "--run-name", "dice")
    assert "each experiment has a fixed folder: use --results-dir" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before
    assert (folder / "metrics.json").exists()


def test_the_command_that_goes_on_after_ctrl_c_is_one_that_it_takes(run_main, monkeypatch, capfd):
    def interrupt(experiment, seed, run_name, flags):
        dls = SegStudio(**flags.settings | {"run_name": run_name})
        raise KeyboardInterrupt(backstage.how_to_go_on(dls))

    monkeypatch.setattr(reproduce, "run_experiment", interrupt)
    assert run_main("--quick", "--only", "dice") == "130"
    command = capfd.readouterr().err.partition("To go on: ")[2].split()
    assert command[2:] == ["--quick", "--only", "dice", "--resume"]


def test_an_unfinished_run_of_another_script_moves_aside(tmp_path, full):
    folder = make_run(tmp_path / "mse", iou=None)
    settings = json.loads((folder / "settings.json").read_text())
    settings["command"] = ["Examples/semantic_segmentation.py", "--run-name", "mse"]
    (folder / "settings.json").write_text(json.dumps(settings))
    assert find_step(folder, full) == "move"


@pytest.fixture
def trained(monkeypatch):
    """The calls that would train: [(run name, seed, seconds), ...]."""
    calls = []

    def note(experiment, run_name, seed, flags):
        calls.append((run_name, seed, flags.seconds))
        if run_name == "dice":
            raise FloatingPointError("the Dice loss became nan")
        folder = homework_page.Path(flags.results_dir) / run_name
        make_run(folder, seed=seed, images=flags.train_images, max_seconds=flags.seconds)

    monkeypatch.setattr(reproduce, "run_shapes", note)
    monkeypatch.setattr(reproduce, "run_coco", note)
    return calls


def test_quick_is_bounded_by_time_and_finished_runs_are_kept(run_main, trained, capsys):
    assert run_main("--quick", "--only", "combined-200,mse") == ""
    seconds = reproduce.QUICK_TRAINING_SECONDS
    assert seconds < homework_page.QUICK_SECONDS
    assert trained == [("mse", 0, seconds), ("combined_200", 0, seconds)]
    assert "homework-page/index.html" in capsys.readouterr().out
    assert run_main("--quick", "--only", "combined-200,mse") == ""
    assert len(trained) == 2
    assert "runs/mse: complete" in capsys.readouterr().out


def test_epochs_and_images_that_are_given_lift_the_limit(run_main, trained):
    run_main("--quick", "--only", "mse", "--epochs", "2")
    run_main("--quick", "--only", "mse", "--train-images", "100", "--results-dir", "other")
    run_main("--only", "mse", "--results-dir", "full")
    assert [seconds for _, _, seconds in trained] == [None, None, None]


def test_several_seeds_have_folders_of_their_own(run_main, trained):
    assert run_main("--quick", "--only", "mse", "--seed", "4", "--seeds", "3") == ""
    assert [call[:2] for call in trained] == [("mse", 4), ("mse_seed_5", 5), ("mse_seed_6", 6)]


def test_a_run_of_another_seed_is_moved_aside_and_this_is_said(run_main, trained, tmp_path, capsys):
    run_main("--quick", "--only", "mse")
    run_main("--quick", "--only", "mse", "--seed", "1")
    assert "It is now runs/mse_before_1" in capsys.readouterr().out
    seeds = {
        name: homework_page.read_run(tmp_path / "runs" / name).settings["seed"]
        for name in ("mse", "mse_before_1")
    }
    assert seeds == {"mse": 1, "mse_before_1": 0}


def test_an_experiment_that_fails_does_not_stop_the_others(run_main, trained):
    assert "dice: the Dice loss became nan" in run_main("--quick", "--only", "mse,dice,coco-mae")
    assert [call[0] for call in trained] == ["mse", "dice", "coco_mae"]


def test_a_reason_that_stops_several_runs_is_said_once(run_main, monkeypatch):
    def fail(*_):
        raise OSError("images cannot be drawn into /data (Read-only file system)")

    monkeypatch.setattr(reproduce, "run_shapes", fail)
    sentence = run_main("--quick", "--only", "mse,dice,combined-300")
    assert "mse, dice, combined_300: images cannot be drawn" in sentence
    assert sentence.count("Read-only") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quick", "--only", "mse,dice"], "2 runs, about 60 s each"),
        (["--only", "mse,coco-mae", "--seeds", "2"], "4 runs on the homework's schedule"),
        (["--epochs", "1", "--only", "mse"], "1 run\n"),
    ],
)
def test_the_time_of_all_runs_is_said_before_they_begin(run_main, trained, capsys, flags, said):
    run_main(*flags)
    printed = capsys.readouterr().out
    assert printed.startswith(said)
    assert ("an hour" in printed) == ("schedule" in said)
    assert "Run 1 of " in printed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seconds": 40}, {"--quick", "--seconds=40"}),
        ({"epochs": 3}, {"--quick", "--epochs=3"}),
        ({"quick": False, "epochs": 6, "coco": "data/coco"}, {"--epochs=6", "--coco=data/coco"}),
    ],
)
def test_coco_runs_by_its_own_script(monkeypatch, tmp_path, changes, expected):
    commands = []

    def note(command):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce.subprocess, "run", note)
    flags = make_flags(tmp_path, **changes)
    reproduce.run_coco(COCO_MAE, "coco_mae", 3, flags)
    _, script, *words = commands[0]
    assert script.endswith("coco_segmentation.py")
    always = {"--loss=mae", "--run-name=coco_mae", "--precision=fp32", "--seed=3"}
    always.add(f"--results-dir={tmp_path}")
    assert set(words) == always | expected
    (tmp_path / "coco_mae").mkdir()
    reproduce.run_coco(COCO_MAE, "coco_mae", 3, flags)
    assert commands[1][-1] == "--resume"


def test_what_is_printed_before_a_coco_run_stands_before_its_output(monkeypatch, tmp_path):
    """Into a file or a pipe Python prints in blocks, and the COCO script is another process."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    seen = []

    def note(command):
        seen.append(written.getvalue().decode())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce.subprocess, "run", note)
    reproduce.run_experiment(COCO_MAE, 0, "coco_mae", make_flags(tmp_path))
    assert "coco_mae: COCO, MAE, seed 0" in seen[0]


# ---- real, tiny trainings -----------------------------------------------------------------------


@pytest.fixture
def tiny_homework(monkeypatch, tmp_path):
    """run(**flags): the experiment "mse" on tiny data."""

    def load(self, train_images, test_images, validation_images):
        self.dataserver_validation = TinyShapes(4)
        self.load_PurdueShapes5MultiObject_dataset(TinyShapes(train_images), TinyShapes(16))

    monkeypatch.setattr(sys, "argv", ["reproduce_homework.py"])
    monkeypatch.setattr(Segmentation, "load_shapes", load)
    network = Segmentation.mUnet
    tiny = staticmethod(lambda skip_connections, depth: network(depth=2, width=4))
    monkeypatch.setattr(Segmentation, "mUnet", tiny)

    def run(**changes):
        flags = make_flags(tmp_path / "runs", **changes)
        reproduce.run_experiment(MSE, flags.seed, "mse", flags)
        return homework_page.read_run(tmp_path / "runs" / "mse")

    return run


@pytest.mark.slow
def test_a_run_is_made_kept_and_shown(tiny_homework, tmp_path):
    model = tmp_path / "runs" / "mse" / "model.pt"
    assert tiny_homework().iterations == 4
    written = model.stat().st_mtime_ns
    assert tiny_homework().iterations == 4
    assert tiny_homework(epochs=1).iterations == 4
    assert model.stat().st_mtime_ns == written
    assert tiny_homework(epochs=3).iterations == 6
    assert (tmp_path / "runs" / "mse_before_1" / "model.pt").stat().st_mtime_ns == written
    assert "Figures 1, 2: MSE" in homework_page.make_page(tmp_path / "runs")


@pytest.mark.slow
def test_the_full_schedule_scores_on_validation_images_after_each_epoch(tiny_homework):
    run = tiny_homework(quick=False)
    scored = [row["iteration"] for row in run.rows if "mean_iou" in row]
    assert scored == [2, 4]
    assert run.training["images"] == 8  # no image was taken from training


@pytest.mark.slow
def test_a_run_bounded_by_time_is_complete_for_the_same_time(tiny_homework):
    run = tiny_homework(seconds=0.5)
    assert run.max_seconds == 0.5
    assert tiny_homework(seconds=0.5).seconds == run.seconds


@pytest.mark.slow
def test_a_run_that_was_not_tested_is_only_tested(tiny_homework, tmp_path):
    folder = tmp_path / "runs" / "mse"
    tiny_homework()
    (folder / "metrics.json").unlink()
    written = (folder / "model.pt").stat().st_mtime_ns
    assert tiny_homework().metrics is not None
    assert (folder / "model.pt").stat().st_mtime_ns == written


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_homework, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "mse"
    tiny_homework()
    weights = torch.load(folder / "model.pt", weights_only=True)
    shutil.rmtree(folder)
    forward = Segmentation.SegmentationLossMSE.forward
    steps = []

    def stop_in_the_second_epoch(self, output, mask):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return forward(self, output, mask)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Segmentation.SegmentationLossMSE, "forward", stop_in_the_second_epoch)
        tiny_homework()
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "metrics.json").exists()
    assert tiny_homework().metrics is not None
    again = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
