"""doc/troubleshooting.md: its messages are those of the code, and its symptoms are real."""

import re

import pytest
import torch
from conftest import ROOT, Segmentation, TinyShapes, train

from SegStudio import SegStudio

PAGE = (ROOT / "doc" / "troubleshooting.md").read_text(encoding="utf-8")
# Messages of torch and Python; and one that the probe puts together, which a test below prints.
OF_OTHERS = {
    "The image reaches 25% of the output pixels. No training can make the other 75% depend on the "
    "image",
    "all elements of input should be between 0 and 1",
    "CUDA out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "An attempt has been made to start a new process before the",
    "DataLoader worker (pid(s)",
    "Weights only load failed",
}


def section(title):
    assert f"\n### {title}\n" in PAGE
    return re.split(r"\n##+ ", PAGE.partition(f"\n### {title}\n")[2])[0]


def quoted():
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def literals():
    """All text of the package, in which the parts of a message are joined."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "SegStudio").glob("*.py")]
    joined = re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))
    return re.sub(r"\\(['\"])", r"\1", joined)


# Messages with values that the code fills in: their literal part.
FILLED = {
    "is not a saved model: it holds Python objects, which could run code, and not only weights":
        "it holds Python objects, which could run code, and not only weights",
    "loss became nan": "loss became {",
}  # fmt: skip


@pytest.mark.parametrize("message", [line for line in quoted() if line not in OF_OTHERS])
def test_a_message_of_the_page_is_one_of_the_code(message):
    assert FILLED.get(message, message) in literals()


def test_the_messages_of_others_are_on_the_page():
    assert set(quoted()) >= OF_OTHERS
    assert len(quoted()) > 15


def test_every_symptom_says_what_why_and_what_to_do():
    titles = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(titles) > 14
    for title in titles:
        text = section(title)
        assert "**You see**" in text, title
        assert "**Why" in text, title
        assert "hat to do" in text, title


def run_of(tmp_path, **settings):
    segmenter = Segmentation(
        SegStudio(results_dir=tmp_path, run_name="run", epochs=1, seed=0, **settings), 5
    )
    segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(8), TinyShapes(4))
    return segmenter, segmenter.mUnet(depth=4, width=4)


# ---- symptoms -----------------------------------------------------------------------------------


def test_dotted_masks_are_found_by_the_probe(tmp_path, capsys):
    segmenter, net = run_of(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", section("The masks are dotted"), re.S | re.M)
    exec(code, {"segmenter": segmenter, "net": net})
    (shown,) = [line for line in quoted() if line.startswith("The image reaches")]
    assert shown in capsys.readouterr().out
    dense = segmenter.mUnet(depth=4, width=4, upsampling="dense")
    assert segmenter.probe_output_coverage(dense, (64, 64)).fraction == 1
    dense.load_state_dict(net.state_dict())  # as the page says: trained weights can be loaded


def test_a_mask_of_ones_is_black_and_display_makes_it_white(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    show = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda *a, **o: drawn.append((a[1], o)) or show(*a, **o))
    segmenter, _ = run_of(tmp_path)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:4] = 1
    segmenter.dl_studio.display_tensor_as_image(mask)
    ((picture, options),) = drawn
    top = options.get("vmax") or torch.as_tensor(picture).max()
    assert torch.as_tensor(picture).max() == top


def test_binary_cross_entropy_on_mask_values_fails_and_logits_makes_masks_0_and_1(tmp_path):
    segmenter, net = run_of(tmp_path)
    values = set()

    def loss(output, mask):
        values.update(mask.unique().tolist())
        return torch.nn.functional.binary_cross_entropy_with_logits(output, mask)

    with pytest.raises(RuntimeError, match="all elements of input should be between 0 and 1"):
        train(segmenter, net, criterion=torch.nn.functional.binary_cross_entropy)
    train(segmenter, net, criterion=loss)
    assert values == {0, 50, 100, 150, 200, 250}
    values.clear()
    loss.logits = True
    train(segmenter, net, criterion=loss)
    assert values == {0, 1}


def test_an_output_of_zeros_has_the_loss_and_the_accuracy_that_the_page_warns_of(tmp_path):
    segmenter, _ = run_of(tmp_path)
    zeros = segmenter.ConstantMask(torch.zeros(5, 32, 32))
    found = segmenter.score(zeros).compute()
    assert found["mean_iou"] == 0
    assert found["pixel_accuracy"] > 0.9


def test_a_network_that_is_trained_twice_is_told_so(tmp_path):
    segmenter, net = run_of(tmp_path)
    (shown,) = [line for line in quoted() if line.startswith("This network was trained")]
    train(segmenter, net)
    log = segmenter.dl_studio.run_dir / "log.txt"
    assert shown not in log.read_text()
    train(segmenter, net)
    assert shown in log.read_text()


def test_a_file_with_a_whole_network_is_refused_and_its_state_dict_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter, net = run_of(tmp_path)
    torch.save(net, "whole.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load("whole.pt", weights_only=True)
    (shown,) = [line for line in quoted() if line.startswith("is not a saved model")]
    with pytest.raises(ValueError, match=shown) as caught:
        segmenter.load_model(net, "whole.pt")
    assert "\n" not in str(caught.value)
    text = section("A file with weights does not load")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    exec(code, {"torch": torch, "net": net})
    segmenter.load_model(net, "weights.pt")
    with pytest.raises(ValueError, match="holds the weights of another network"):
        segmenter.load_model(segmenter.mUnet(depth=2, width=4), "weights.pt")
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        segmenter.load_model(net, "nothing.pt")


SCRIPT = """
import multiprocessing, sys

print("the first line")
sys.path[:0] = [{root!r}, {tests!r}]
multiprocessing.set_start_method("spawn", force=True)
from conftest import Segmentation, SegStudio, TinyShapes

segmenter = Segmentation(SegStudio(epochs=1, num_workers=1), 5)
segmenter.load_PurdueShapes5MultiObject_dataset(TinyShapes(4), TinyShapes(4))
segmenter.run_code_for_training_for_semantic_segmentation(segmenter.mUnet(depth=2, width=2))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so_where_workers_import_it(tmp_path, run_script):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    done = run_script(tmp_path, script)
    assert done.returncode != 0
    assert done.stdout.count("the first line") == 2
    text = section("Windows and macOS: workers start the script again")
    (messages,) = re.findall(r"^```text\n(.*?)^```$", text, re.S | re.M)
    for message in messages.splitlines():
        assert message in " ".join(done.stderr.split())
