"""The rules of the module: its order, and that every class of it can be copied out and runs."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from SegStudio import SegStudio, backstage
from SegStudio import SegStudio as package
from SegStudio.__main__ import main
from SegStudio.show import show_class

Segmentation = SegStudio.SemanticSegmentation
MODULE = Path(inspect.getsourcefile(package))
SOURCE = MODULE.read_text(encoding="utf-8")
LINES = SOURCE.splitlines()
TREE = ast.parse(SOURCE)
CLASSES = {name: value for name, value in vars(Segmentation).items() if inspect.isclass(value)}
ALONE = [name for name, cls in CLASSES.items() if not issubclass(cls, Dataset)]


# ---- classes copy out ---------------------------------------------------------------------------


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 5, 16, 16, generator=generator) < 0.3).float()
    return torch.rand(2, 5, 16, 16, generator=generator), mask


def use_mUnet(cls):
    torch.manual_seed(0)
    net = cls(depth=4, width=4)
    torch.manual_seed(0)
    original = Segmentation.mUnet(depth=4, width=4)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(net(x), original(x))
    net(x).sum().backward()
    assert cls(upsampling="dense", depth=2, width=2)(x).shape == (1, 5, 16, 16)
    assert cls.SkipBlockDN is not Segmentation.SkipBlockDN, "it brings its own blocks"


def use_UNet(cls):
    torch.manual_seed(0)
    net = cls(width=4)
    torch.manual_seed(0)
    original = Segmentation.UNet(width=4)
    x = torch.rand(2, 3, 16, 16) * 255
    assert torch.equal(net(x), original(x))


def use_block(cls):
    cls(4, 4, True)(torch.rand(1, 4, 8, 8)).sum().backward()


def use_loss(cls):
    output, mask = batch()
    output.requires_grad_()
    loss = cls(4)(output, mask)
    loss.backward()
    assert output.grad.abs().sum() > 0
    assert torch.equal(loss, getattr(Segmentation, cls.__name__)(4)(output, mask))


def use_scores(cls):
    output, mask = batch()
    scores, original = cls("abcde"), Segmentation.SegmentationScores("abcde")
    scores.update(output > 0.5, mask > 0)
    original.update(output > 0.5, mask > 0)
    assert (scores + scores).compute()["images"] == 4
    assert scores.compute() == original.compute()
    assert str(scores) == str(original)


def use_constant(cls):
    mask = batch()[1][0]
    assert torch.equal(cls(mask)(torch.rand(3, 3, 16, 16)), torch.stack([mask] * 3))


def use_muon(cls):
    weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    optimizer = cls([weight], lr=0.1)
    (weight**2).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, torch.ones(4, 3, 3, 3))


USES = {
    "mUnet": use_mUnet,
    "mUNet": use_mUnet,
    "UNet": use_UNet,
    "SkipBlockDN": use_block,
    "SkipBlockUP": use_block,
    "SegmentationScores": use_scores,
    "ConstantMask": use_constant,
    "Muon": use_muon,
    **{name: use_loss for name in CLASSES if name.startswith("SegmentationLoss")},
}


@pytest.mark.parametrize("name", ALONE)
def test_a_class_pasted_under_two_import_lines_works(name):
    """Networks, losses, scores: `import torch`, `from torch import nn`, and at most math."""
    cls = CLASSES[name]
    pasted = {"__name__": "pasted"}
    exec("import math\nimport torch\nfrom torch import nn\n", pasted)
    exec(textwrap.dedent(inspect.getsource(cls)), pasted)
    copy = pasted[cls.__name__]
    assert copy is not cls
    assert inspect.getdoc(copy) == inspect.getdoc(cls)
    USES[name](copy)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_show_prints_runs_as_a_file(name, tmp_path):
    text = show_class(name)
    assert "\n    class " not in text.split(f"class {CLASSES[name].__name__}")[0]
    namespace = {"__name__": "shown"}
    exec(compile(text, f"{name}.py", "exec"), namespace)
    cls = namespace[CLASSES[name].__name__]
    assert cls is not CLASSES[name]
    if name in USES:
        USES[name](cls)


def test_the_shapes_dataset_that_show_prints_draws_and_reads_without_segstudio(tmp_path):
    (tmp_path / "copied.py").write_text(show_class("PurdueShapes5MultiObjectDataset"))
    (tmp_path / "use.py").write_text(
        "import sys, types\n"
        "sys.modules['SegStudio'] = None  # importing it would fail\n"
        "from copied import PurdueShapes5MultiObjectDataset as Shapes\n"
        "if __name__ == '__main__':\n"
        "    Shapes.generate('few.gz', 3, seed=1)\n"
        "    settings = types.SimpleNamespace(dataroot='.', image_size=[64, 64])\n"
        "    data = Shapes(settings, None, 'train', 'few.gz')\n"
        "    print(len(data), *data[2]['mask_tensor'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 5 64 64"


def test_show_on_the_command_line(capsys):
    main(["show", "SegmentationLossDice"])
    printed = capsys.readouterr().out
    assert printed.startswith('"""SegmentationLossDice, copied from SegStudio')
    assert "\nclass SegmentationLossDice(nn.Module):" in printed
    with pytest.raises(SystemExit, match="no class SegmentationLosDice: did you mean Segmentat"):
        main(["show", "SegmentationLosDice"])


# ---- the order of the module --------------------------------------------------------------------


def line_of(text):
    return next(number for number, line in enumerate(LINES, 1) if text in line)


def test_the_lecture_comes_first_and_in_its_order():
    places = [line_of(f"# ==== §{number} ") for number in range(1, 8)]
    assert places == sorted(places)
    assert line_of("class mUnet(") <= 450, "the first network is within reach"
    assert line_of("# ==== §7 FIGURES") < line_of("# ==== for the examples")


def run_code(tmp_path, code, folder):
    """Run code with `folder` on Python's path; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# All that DLStudio.py of 2.3.6 and 2.5.8 imports, but for pymsgbox and torchmetrics.
DLSTUDIO_IMPORTS = (
    "sys os glob torch nn F torchvision tvt optim np ImageFilter Image numbers re math random copy "
    "plt gzip pickle time logging"
)


def test_the_flat_file_gives_the_names_that_dlstudios_star_import_gave(tmp_path):
    code = (
        "from SegStudio import *\n"
        "print(SegStudio.SemanticSegmentation.mUnet(depth=2).depth)\n"
        "assert plt.figure and F.relu and tvt.ToTensor and nn.Module and np.array and optim.SGD\n"
        f"print(*(globals()[name].__name__ for name in '{DLSTUDIO_IMPORTS}'.split()))\n"
        "print(*sorted(name for name in globals() if name[0] != '_'))"
    )
    depth, *printed = run_code(tmp_path, code, MODULE.parent)
    names = DLSTUDIO_IMPORTS.split()
    full = {
        "nn": "torch.nn", "F": "torch.nn.functional", "tvt": "torchvision.transforms",
        "optim": "torch.optim", "np": "numpy", "ImageFilter": "PIL.ImageFilter",
        "Image": "PIL.Image", "plt": "matplotlib.pyplot",
    }  # fmt: skip
    assert depth == "1"
    assert printed[: len(names)] == [full.get(name, name) for name in names]
    assert printed[len(names) :] == sorted([*names, "SegStudio"])


@pytest.mark.parametrize(
    ("folder", "module"), [(MODULE.parent, "SegStudio"), (MODULE.parents[1], "SegStudio.SegStudio")]
)
def test_the_names_of_dlstudios_star_import_are_imported_when_asked_for(tmp_path, folder, module):
    code = (
        f"import sys, {module}\n"
        f"module = sys.modules['{module}']\n"
        "print('matplotlib.pyplot' in sys.modules, 'logging' in vars(module))\n"
        "print(module.plt.__name__, module.logging.__name__, hasattr(module, 'pandas'))\n"
    )
    printed = run_code(tmp_path, code, folder)
    assert printed == ["False", "False", "matplotlib.pyplot", "logging", "False"]


def test_the_packages_star_import_gives_what_dlstudios_package_gave(tmp_path):
    code = (
        "from SegStudio import *\n"
        "print(*(name for name in dict(globals()) if name[0] != '_'), sys.__name__)\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    *names, pyplot = run_code(tmp_path, code, MODULE.parents[1])
    assert sorted(names) == ["SegStudio", "sys", "sys"]
    assert pyplot == "False"


def test_losses_come_before_the_one_that_combines_them():
    names = ("MSE", "MAE", "Dice", "Comb", "BCEDice")
    places = [line_of(f"class SegmentationLoss{name}(") for name in names]
    assert places == sorted(places)


def test_the_loop_and_the_step_stand_in_one_place():
    source = inspect.getsource(Segmentation.training_loop)
    code = source.split('"""')[2].splitlines()
    steps = (
        "for _ in recorder.epochs():", "for batch in loader:", "output = net(images)",
        "loss = criterion(output.float(), masks)", "optimizer.zero_grad()", "loss.backward()",
        "optimizer.step()",
    )  # fmt: skip
    places = [next(k for k, line in enumerate(code) if step in line) for step in steps]
    assert places == sorted(places)
    assert len(code) <= 40
    assert SOURCE.count("loss.backward()") == 1, "there is one training loop"


def test_one_class_holds_all_that_is_taught():
    assert [node.name for node in TREE.body if isinstance(node, ast.ClassDef)] == ["SegStudio"]
    assert not [node for node in TREE.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_says_where_it_lives(name):
    cls = CLASSES[name]
    path = f"Class Path:   SegStudio  ->  SemanticSegmentation  ->  {cls.__name__}"
    assert path in cls.__doc__


def public_methods():
    for owner in (SegStudio, Segmentation, *CLASSES.values()):
        for name, member in vars(owner).items():
            function = getattr(member, "__func__", member)
            if inspect.isfunction(function) and not name.startswith("_"):
                yield f"{owner.__name__}.{name}", function


PUBLIC_METHODS = dict(public_methods())


@pytest.mark.parametrize("name", PUBLIC_METHODS)
def test_a_public_method_has_type_hints_and_a_docstring(name):
    function = PUBLIC_METHODS[name]
    if name.rpartition(".")[2] not in ("forward", "step"):  # torch's own names
        assert inspect.getdoc(function)
    parameters = list(inspect.signature(function).parameters.values())
    free = ("self", "path", "folder", "run", "before", "closure", "dataroot")  # or anything like it
    missing = [
        p.name for p in parameters if p.annotation is p.empty and p.name not in free
    ]
    assert missing == []


def test_importing_needs_no_window_and_the_facts_of_the_shapes_stand_in_one_place():
    assert Segmentation.PurdueShapes5MultiObjectDataset.label_map == backstage.LABEL_MAP
