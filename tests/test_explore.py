"""The page of explore.py: the exported graph equals the network; the page in a real browser."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import skimage.draw
import torch
from browser import Browser, find_chromium
from run_folders import example
from torch.nn import functional

from SegStudio import SegStudio

export_graph = example("export_graph")
explore = example("explore")
Segmentation = SegStudio.SemanticSegmentation


def trained(net):
    """The network with weights and BatchNorm statistics that differ from those of a new one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value += 0.3 * torch.rand(value.shape) * value.abs().mean().clamp(min=0.1)
                if "running_var" in name:
                    value += 0.5
    return net.eval()


NETWORKS = {
    "strided": lambda: Segmentation.mUnet(depth=4, width=8, input_scale=1 / 255),
    "dense": lambda: Segmentation.mUnet(depth=4, width=8, upsampling="dense", input_scale=1 / 255),
    "deep": lambda: Segmentation.mUnet(depth=8, width=4, input_scale=1 / 255),
    "without residual connections": lambda: Segmentation.mUnet(
        False, 4, width=8, out_channels=3, input_scale=1 / 255
    ),
    "UNet": lambda: Segmentation.UNet(width=8, stem=4),
}


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(0)
    return trained(NETWORKS[request.param]())


def interpret(graph, image):
    """All values of an exported graph for an image (3, H, W): what the page's JavaScript does."""

    def conv(step, x):
        out, c = step["shape"][0], x.shape[1]
        size = step["kernel"]
        start, end = step["weight"], step["weight"] + out * c * size * size
        weight = torch.from_numpy(graph.weights[start:end]).view(out, c, size, size)
        bias = torch.from_numpy(graph.weights[step["bias"] : step["bias"] + out])
        return functional.conv2d(x, weight, bias, step["stride"], step["padding"], step["dilation"])

    def spread(step, x):
        result = torch.zeros(1, *step["shape"])
        result[:, :, :: step["stride"], :: step["stride"]] = x
        return result

    def affine(step, x):
        channels = x.shape[1]
        scale, shift = (
            torch.from_numpy(graph.weights[step[key] : step[key] + channels])[:, None, None]
            for key in ("scale", "shift")
        )
        return x * scale + shift

    operations = {
        "conv": conv,
        "spread": spread,
        "affine": affine,
        "pool": lambda step, x: functional.max_pool2d(x, step["size"]),
        "enlarge": lambda step, x: functional.interpolate(x, scale_factor=step["size"]),
        "relu": lambda step, x: x,  # the key "relu", below, does it
        "slice": lambda step, x: x[:, step["start"] : step["start"] + step["shape"][0]],
        "add": lambda step, x, y: x + y,
        "cat": lambda step, *parts: torch.cat(parts, dim=1),
    }
    values = [image[None]]
    for step in graph.steps[1:]:
        value = operations[step["op"]](step, *(values[k] for k in step["from"]))
        values.append(torch.relu(value) if step["relu"] else value)
        assert list(values[-1].shape[1:]) == step["shape"]
    return values


# ---- the graph ----------------------------------------------------------------------------------


def test_the_exported_graph_computes_what_the_network_computes(net):
    graph = export_graph.export_graph(net, (64, 64))
    for seed in range(3):
        image = 255 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = net(image[None])
        output = interpret(graph, image)[-1]
        assert (output - expected).norm() < 1e-5 * expected.norm()
        assert expected.std() > 1e-3


def test_the_graph_holds_the_used_weights_once(net):
    """Some layers run twice; unused blocks and BatchNorm layers are left out."""
    graph = export_graph.export_graph(net, (64, 64))
    convs = [step for step in graph.steps if step["op"] == "conv"]
    offsets = {step["weight"] for step in convs}
    if getattr(net, "arguments", {}).get("skip_connections"):
        assert len(offsets) < len(convs)
    assert graph.weights.dtype == np.float32
    assert graph.weights.size <= sum(p.numel() for p in net.parameters()) + 100
    assert not any(step["op"] == "batch_norm" for step in graph.steps)


def test_stages_have_the_values_of_the_modules(net):
    graph = export_graph.export_graph(net, (64, 64))
    image = 255 * torch.rand(3, 64, 64)
    seen = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, []).append(output)
        )
    with torch.no_grad():
        net(image[None])
    values = interpret(graph, image)
    names = [stage["name"] for stage in graph.stages]
    assert len(names) == len(set(names))
    watched = [stage for stage in graph.stages if stage["name"] != "cat" and stage["module"]]
    assert len(watched) > 8
    for stage in watched:
        expected = seen[stage["module"]][stage["call"]]
        torch.testing.assert_close(values[stage["step"]], expected, rtol=1e-3, atol=1e-4)


def test_skip_connections_are_found(net):
    graph = export_graph.export_graph(net, (64, 64))
    stages = graph.stages
    copies = [(stages[s["copied_from"]]["name"], s["copied"]) for s in stages if "copied" in s]
    if isinstance(net, Segmentation.UNet):
        assert copies == [("encoders[1]", 16), ("encoders[0]", 8), ("stem", 4)]
    else:
        w = net.width
        assert [count for _, count in copies] == [w, w // 2, w // 2]
        assert [name for name, _ in copies][:2] == ["bn2DN", "bn1DN"]
        assert copies[2][0] in ("pool", "skip64DN_arr[0]")


def test_a_network_with_an_unknown_operation_is_refused_in_one_sentence():
    class Sine(torch.nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(ValueError, match=r"Sine.*\bsin\b"):
        export_graph.export_graph(Sine(), (64, 64))


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(3, 6, 3, groups=3),
        torch.nn.Conv2d(3, 6, (3, 1)),
        torch.nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        torch.nn.ConvTranspose2d(3, 5, 1, padding=1),
        torch.nn.MaxPool2d(3, stride=2),
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
    ],
    ids=lambda layer: str(layer)[:40],
)
def test_a_layer_that_the_page_cannot_run_is_refused_and_not_run_wrongly(layer):
    with pytest.raises(ValueError, match="Sequential"):
        export_graph.export_graph(torch.nn.Sequential(layer), (64, 64))


# ---- the page as a file -------------------------------------------------------------------------


def save_run(folder, net, logits=True, names=None):
    """The folder of a run as training leaves it, with the weights of `net`."""
    dls = SegStudio(results_dir=folder.parent, run_name=folder.name)
    segmenter = Segmentation(dl_studio=dls, max_num_objects=5)
    shapes = Segmentation.PurdueShapes5MultiObjectDataset
    net.output_spec = {
        "class_names": list(names or shapes.class_names),
        "mask_values": list(shapes.mask_values)[: net.arguments["out_channels"]],
        "logits": logits,
        "image_size": [64, 64],
    }
    segmenter.save_model(net)
    settings = {
        "command": ["script.py"],
        "folder": str(folder.parent),
        "settings": {"dataroot": "data"},
        "network": {"class": type(net).__name__, "arguments": net.arguments},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs with random weights: a run as the classroom demo leaves it, a UNet, an MSE network."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"depth": 4, "width": 16, "input_scale": 1 / 255}
    torch.manual_seed(0)
    save_run(folder / "demo", trained(Segmentation.mUnet(upsampling="dense", **small)))
    save_run(folder / "demo" / "strided", trained(Segmentation.mUnet(**small)))
    save_run(folder / "unet", trained(Segmentation.UNet()))
    mse = trained(Segmentation.mUnet(upsampling="dense", **small))
    with torch.no_grad():
        mse.conv_out.weight *= 300
    save_run(folder / "mse", mse, logits=False)
    return folder


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def array(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_holds_the_run_and_its_strided_twin(runs):
    page = explore.make_page(explore.find_runs([runs / "demo"]))
    strided, dense = data_of(page)["networks"]
    assert (strided["name"], dense["name"]) == ("strided", "dense")
    segmenter = Segmentation(dl_studio=SegStudio(), max_num_objects=5)
    image = 255 * torch.rand(3, 64, 64)
    for network, run in ((strided, "demo/strided"), (dense, "demo")):
        net = segmenter.load_run(runs / run)
        weights = array(network["weights"], "<f4")
        graph = export_graph.Graph(network["steps"], weights.copy(), network["stages"])
        expected = segmenter.infer(net, image[None])
        assert (interpret(graph, image)[-1] - expected).norm() < 1e-5 * expected.norm()


def test_the_strided_network_of_another_command_is_left_out(runs, tmp_path):
    run = tmp_path / "demo"
    shutil.copytree(runs / "demo", run)
    assert explore.find_runs([run]) == [run / "strided", run]
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"command": ["other.py"]}))
    assert explore.find_runs([run]) == [run]
    assert explore.find_runs([runs / "unet"]) == [runs / "unet"]


def test_the_page_loads_nothing_and_is_small(runs):
    page = explore.make_page([runs / "unet"])
    assert len(page) < 4e6
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(
        r'<script type="application/json".*?</script>', "", page, flags=re.S
    )
    for network in data_of(page)["networks"]:
        assert len(network["weights"]) < 2.2e6


def test_the_largest_network_makes_a_page_below_10_megabytes(tmp_path):
    net = Segmentation.UNet(width=50, stem=24)
    parameters = sum(p.numel() for p in net.parameters())
    assert 0.9 * explore.LARGEST_NETWORK < parameters <= explore.LARGEST_NETWORK
    assert len(explore.make_page([save_run(tmp_path / "large", net)])) < 10e6


def test_test_images_come_from_the_runs_archive_or_are_drawn(runs, tmp_path):
    def images(dataroot):
        data = data_of(explore.make_page([runs / "demo"], dataroot))["images"]
        masks = [array(image["masks"], np.uint8) for image in data]
        return [array(image["pixels"], np.uint8) for image in data], masks

    shapes = Segmentation.PurdueShapes5MultiObjectDataset
    archive = shapes.find_or_generate(tmp_path, "PurdueShapes5MultiObject-20-test.gz")
    dataset = shapes(SegStudio(dataroot=tmp_path), None, "test", archive.name)
    pictures, masks = images(tmp_path)
    assert len(pictures) == len(masks) == 20
    for index in (0, 7, 19):
        item = dataset[index]
        assert (pictures[index] == item["image"].numpy().ravel()).all()
        for k in range(5):
            there = (masks[index].reshape(64, 64) >> k) & 1
            assert (there == (item["mask_tensor"][k].numpy() > 0)).all()
    drawn, _ = images(tmp_path / "missing")
    assert all((a == b).all() for a, b in zip(drawn, pictures, strict=True))


def test_a_relative_dataroot_is_found_from_any_folder(tmp_path):
    run = save_run(tmp_path / "run", Segmentation.UNet(width=8, stem=4))
    shapes = Segmentation.PurdueShapes5MultiObjectDataset
    shapes.generate(tmp_path / "data" / "PurdueShapes5MultiObject-20-test.gz", 3, seed=7)
    assert len(data_of(explore.make_page([run]))["images"]) == 3


def test_too_large_and_foreign_networks_are_refused_in_one_sentence(tmp_path):
    save_run(tmp_path / "homework", Segmentation.mUnet())
    with pytest.raises(ValueError, match=r"6,999,109 parameters.* 1,000,000"):
        explore.make_page([tmp_path / "homework"])
    save_run(tmp_path / "coco", Segmentation.UNet(1), names=("cake", "dog", "motorcycle"))
    with pytest.raises(ValueError, match="trained on cake, dog, motorcycle"):
        explore.make_page([tmp_path / "coco"])
    settings = json.loads((tmp_path / "homework" / "settings.json").read_text())
    settings["network"]["class"] = "MyNetwork"
    (tmp_path / "homework" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="MyNetwork, which is not a network of this package"):
        explore.make_page([tmp_path / "homework"])
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        explore.make_page([tmp_path])
    with pytest.raises(ValueError, match="one or two runs, not 3"):
        explore.find_runs(["a", "b", "c"])


def test_names_differ_when_the_runs_do(runs):
    networks = [{"upsampling": "dense", "kind": "mUnet"}] * 2
    assert explore.names_of([runs / "demo", runs / "mse"], networks) == ["demo", "mse"]
    assert len(set(explore.names_of([runs / "demo", runs / "demo"], networks))) == 2


def test_the_windows_are_those_of_the_test_pictures():
    """An output that rises from 0 to 300 is inside a window where the test picture is white."""
    ramp = torch.arange(0, 300, dtype=torch.float32).view(1, 1, 1, 300).expand(1, 5, 1, 300)
    grid = Segmentation.make_test_grid(torch.zeros(1, 3, 1, 300), torch.zeros(1, 5, 5, 4), ramp)
    rows = grid[0, 2::3, 2:302]  # each picture has one row and a border of two
    for k, (low, high) in enumerate(explore.WINDOWS):
        white = (rows[2 + k] == rows[2 + k].max()).nonzero().flatten()
        assert (white[0], white[-1]) == (low + 1, (high or 300) - 1)


@pytest.mark.slow
def test_the_command_writes_the_page_beside_the_run(runs, run_script, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "runs" / "demo")
    done = run_script(tmp_path, explore.__file__, "runs/demo")
    assert done.returncode == 0, done.stderr
    assert "runs/demo/explore.html" in done.stdout.replace("\\", "/")
    assert len(data_of((tmp_path / "runs/demo/explore.html").read_text("utf-8"))["networks"]) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".cache"}
    done = run_script(tmp_path, explore.__file__, "runs/none")
    assert done.returncode == 1
    assert done.stderr.startswith("explore.py: error: ")
    assert done.stderr.count("\n") == 1


# ---- the page in a browser ----------------------------------------------------------------------

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("there is no Chromium")
    with Browser() as browser:
        yield browser
        assert not browser.errors


@pytest.fixture(scope="module")
def pages(runs):
    """The pages of the demo and of UNet beside the MSE network."""
    paths = {}
    for name, shown in {"demo": ["demo"], "pair": ["unet", "mse"], "unet": ["unet"]}.items():
        paths[name] = runs / f"{name}.html"
        text = explore.make_page(explore.find_runs([runs / run for run in shown]))
        paths[name].write_text(text, encoding="utf-8")
    return paths


@pytest.fixture
def demo(browser, pages):
    browser.open(pages["demo"])
    return browser


def numbers(browser, expression):
    """A typed array of the page as a numpy array."""
    return np.array(browser.evaluate(f"Array.from({expression})"))


def image_of(browser):
    return torch.from_numpy(numbers(browser, "explore.image")).view(3, 64, 64).float()


def planes(bits):
    """Masks of the page, one bit for each class, as (5, 64, 64) of True and False."""
    return torch.from_numpy(np.stack([(bits.reshape(64, 64) >> k) & 1 for k in range(5)]) > 0)


RUNS_OF_PAGES = {"demo": ["demo/strided", "demo"], "pair": ["unet", "mse"]}


class TestTheBrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize("page", RUNS_OF_PAGES)
    def test_computes_what_torch_computes_on_20_images(self, browser, pages, runs, page):
        browser.open(pages[page])
        segmenter = Segmentation(dl_studio=SegStudio(), max_num_objects=5)
        nets = [segmenter.load_run(runs / run) for run in RUNS_OF_PAGES[page]]
        worst, milliseconds = 0, {run: [] for run in RUNS_OF_PAGES[page]}
        for _ in range(20):
            browser.click("#next")
            image = image_of(browser)
            assert image.max() > 0
            for number, net in enumerate(nets):
                expected = segmenter.infer(net, image[None])[0]
                output = numbers(browser, f"explore.networks[{number}].output")
                difference = torch.from_numpy(output).view(5, 64, 64).float() - expected
                worst = max(worst, (difference.norm() / expected.norm()).item())
                time = browser.evaluate(f"explore.results[{number}].milliseconds")
                milliseconds[RUNS_OF_PAGES[page][number]].append(time)
                pred = segmenter.binarize(net, expected[None])[0]
                masks = planes(numbers(browser, f"explore.results[{number}].threshold"))
                assert (masks != pred).float().mean() < 1e-3
        assert browser.evaluate("explore.state.base") == 19
        times = {run: f"{np.median(values):.0f} ms" for run, values in milliseconds.items()}
        print(f"relative difference {worst:.1e}; an image took (median) {times}")
        assert worst < 1e-3

    def test_loads_nothing_and_fits_a_projector_and_a_phone(self, browser, pages):
        for page in ("demo", "unet"):
            for width in (1400, 400):
                browser.open(pages[page], width=width, touch=width == 400)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert not [url for url in browser.requests if not url.startswith(("file", "data"))]

    def test_a_shape_is_dragged_and_another_one_is_drawn(self, demo):
        before = numbers(demo, "explore.networks[1].output")
        truth = numbers(demo, "explore.truth")
        demo.drag("#editor", (33.5 / 64, 44.5 / 64), (0.6, 0.6), (0.3, 0.7))  # the star
        star = demo.evaluate("explore.state.shapes[2]")
        assert star["x"] == pytest.approx(33 + 0.3 * 64 - 33.5, abs=1)
        assert star["y"] == pytest.approx(44 + 0.7 * 64 - 44.5, abs=1)
        moved = numbers(demo, "explore.truth")
        assert ((moved & 16) > 0).sum() == pytest.approx(((truth & 16) > 0).sum(), rel=0.2)
        assert ((moved & 16) != (truth & 16)).sum() > 100
        assert np.abs(numbers(demo, "explore.networks[1].output") - before).max() > 1e-3
        demo.click("input[name=kind][value='3']")
        demo.drag("#editor", (0.75, 0.75), (0.75, 0.85), (0.75, 0.9))
        shapes = demo.evaluate("explore.state.shapes")
        assert len(shapes) == 4
        assert shapes[3]["kind"] == 3
        assert shapes[3]["radius"] == pytest.approx(0.15 * 64, abs=1)
        assert ((numbers(demo, "explore.truth") & 8) > 0).sum() > 50

    def test_shapes_have_the_pixels_that_segstudio_draws(self, demo):
        """Corners and rules as in backstage.shape_pixels; a pixel on an edge may differ."""
        for kind in range(5):
            shape = {"kind": kind, "x": 30.3, "y": 33.6, "radius": 13.4, "slim": 0.6, "turn": 0.5}
            shape = json.dumps(shape | {"color": [200, 100, 50]})
            demo.evaluate(f"explore.state.shapes.splice(0, 9, {shape}); explore.update()")
            demo.settle()
            drawn = planes(numbers(demo, "explore.truth"))[kind].numpy()
            if kind == 2:
                rows, columns = skimage.draw.disk((33.6, 30.3), 13.4)
            elif kind == 3:
                rows, columns = skimage.draw.ellipse(33.6, 30.3, 13.4 * 0.6, 13.4, rotation=-0.5)
            else:
                reach, angles = {
                    0: (1, np.array([0.6, np.pi - 0.6, np.pi + 0.6, -0.6])),
                    1: (1, np.arange(3) * 2 * np.pi / 3),
                    4: (np.tile([1, 0.45], 5), np.arange(10) * np.pi / 5),
                }[kind]
                rows, columns = skimage.draw.polygon(
                    33.6 + 13.4 * reach * np.sin(angles + 0.5),
                    30.3 + 13.4 * reach * np.cos(angles + 0.5),
                )
            expected = np.zeros((64, 64), bool)
            expected[rows, columns] = True
            assert expected.sum() > 100
            assert (drawn != expected).sum() <= 4, kind
            image = image_of(demo)
            assert (image[0][drawn] == 200).all() and (image[0][~drawn] == 0).all()

    def test_the_keyboard_moves_turns_resizes_adds_and_deletes_shapes(self, demo):
        demo.focus("#editor")
        star = demo.evaluate("explore.state.chosen")
        demo.press("ArrowLeft", "ArrowLeft", "ArrowUp", "+", "t")
        after = demo.evaluate("explore.state.chosen")
        assert after["x"] == star["x"] - 2
        assert after["y"] == star["y"] - 1
        assert after["radius"] == star["radius"] + 1
        assert after["turn"] > star["turn"]
        demo.press("n")
        assert demo.evaluate("explore.state.chosen.kind") == 0
        demo.press("Delete")
        assert demo.evaluate("explore.state.shapes.map(shape => shape.kind)") == [2, 4]
        demo.press("a")
        assert demo.evaluate("explore.state.shapes.length") == 3
        assert (numbers(demo, "explore.truth") & 1).sum() > 20

    def test_all_controls_are_reached_by_the_tab_key(self, demo):
        demo.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(80):
            demo.press("Tab")
            name = "document.activeElement.id || document.activeElement.name"
            reached.add(demo.evaluate(f"{name} || document.activeElement.dataset.stage"))
        for name in ("mode", "kind", "add", "random", "image", "next", "editor", "network-0",
                     "network-1", "view", "coverage", "threshold-0", "threshold-4", "reset",
                     "network", "0", "21"):  # fmt: skip
            assert name in reached, name

    def test_a_slider_moves_its_threshold_and_the_scores_follow(self, demo):
        demo.evaluate("explore.state.base = 3; explore.state.shapes.length = 0; explore.update()")
        demo.settle()
        demo.focus("#threshold-2")
        demo.press(*["ArrowLeft"] * 12)
        thresholds = demo.evaluate("explore.state.thresholds")
        assert thresholds == pytest.approx([0.5, 0.5, 0.38, 0.5, 0.5])
        confidence = numbers(demo, "explore.results[1].confidence").reshape(5, 64, 64)
        truth = planes(numbers(demo, "explore.truth"))
        pred = torch.from_numpy(confidence > np.array(thresholds)[:, None, None])
        assert (planes(numbers(demo, "explore.results[1].threshold")) == pred).all()
        scores = Segmentation.SegmentationScores(range(5))
        mean = scores.update(pred[None], truth[None]).item()
        assert demo.evaluate("explore.scores(explore.results[1].threshold).mean.iou") == (
            pytest.approx(mean, abs=1e-6)
        )
        table = scores.compute()["classes"]
        cell = "document.querySelectorAll('#scores tr[data-class] td:nth-of-type(3) span')[%d]"
        for k in range(5):
            text = demo.evaluate(cell % k + ".innerText")
            if (pred | truth)[k].any():
                assert text == f"IoU {table[k]['iou']:.2f}\nDice {table[k]['dice']:.2f}"
            else:
                assert text == "not there"

    def test_the_windows_mask_is_dlstudios(self, browser, pages, runs):
        browser.open(pages["pair"])
        browser.click("#next")
        output = torch.from_numpy(numbers(browser, "explore.networks[1].output"))
        output = output.view(1, 5, 64, 64).clamp(0, 255)  # as save_test_figure does
        grid = Segmentation.make_test_grid(
            torch.zeros(1, 3, 64, 64), torch.zeros(1, 5, 5, 4), output
        )
        masks = planes(numbers(browser, "explore.results[1].window"))
        for k in range(5):
            top = 2 + 66 * (2 + k)
            picture = grid[0, top : top + 64, 2:66]
            assert ((picture > 0.9) == masks[k]).all()
        assert 0 < masks.float().mean() < 1

    def test_masks_are_painted_with_mouse_and_keys_and_scored(self, demo):
        demo.click("input[name=mode][value=paint]")
        assert demo.evaluate("document.body.classList.contains('hiding')")
        demo.click("input[name=kind][value='2']")
        demo.drag("#editor", (0.6, 0.3), (0.8, 0.3))
        painted = planes(numbers(demo, "explore.state.painted"))
        assert painted.any(dim=2).any(dim=1).tolist() == [False, False, True, False, False]
        assert painted[2].any(dim=0).sum() == pytest.approx(0.2 * 64 + 3, abs=2)
        assert painted[2].any(dim=1).sum() == 3
        truth = planes(numbers(demo, "explore.truth"))
        both, either = (painted & truth)[2].sum(), (painted | truth)[2].sum()
        row = "#scores tr[data-class='2'] td.you span"
        iou = demo.evaluate(f"document.querySelector({row!r}).innerText")
        assert iou.startswith(f"IoU {both / either:.2f}")
        assert both > 0
        demo.focus("#editor")
        demo.press("p", "ArrowDown", "ArrowDown", "p", "ArrowDown")
        again = planes(numbers(demo, "explore.state.painted"))
        assert again[2].any(dim=1).sum() == 5
        demo.click("#clear-paint")
        assert not numbers(demo, "explore.state.painted").any()

    def test_a_click_on_an_output_pixel_tells_what_reaches_it(self, demo):
        text = "document.querySelector('#pixel').innerText"
        demo.click("#network-0", 21.5 / 64, 10.5 / 64)
        assert demo.evaluate("explore.state.pixel") == {"network": 0, "row": 10, "column": 21}
        assert "No input pixel reaches it" in demo.evaluate(text)
        demo.press("ArrowRight")
        assert "row 10, column 22" in demo.evaluate(text)
        assert "of 4,096 input pixels reach it" in demo.evaluate(text)
        demo.click("#network-1", 21.5 / 64, 10.5 / 64)
        assert "of 4,096 input pixels reach it" in demo.evaluate(text)
        demo.press("Escape")
        assert "No pixel is chosen" in demo.evaluate(text)

    def test_the_orange_pixels_are_those_that_the_coverage_probe_finds(self, demo, runs):
        segmenter = Segmentation(dl_studio=SegStudio(), max_num_objects=5)
        for number, run in enumerate(RUNS_OF_PAGES["demo"]):
            reached = numbers(demo, f"explore.networks[{number}].coverage()").reshape(64, 64) > 0
            probe = segmenter.probe_output_coverage(segmenter.load_run(runs / run), (64, 64))
            assert (torch.from_numpy(reached) == probe.map).all()
        demo.click("#coverage")
        context = "document.querySelector('#network-0').getContext('2d')"
        pixel = f"[...{context}.getImageData(%d, 4, 1, 1).data]"
        assert demo.evaluate(pixel % 12) == [213, 94, 0, 255]
        assert demo.evaluate(pixel % 4) != [213, 94, 0, 255]

    def test_field_and_influence_agree_with_torchs_gradients(self, browser, pages, runs):
        browser.open(pages["pair"])
        browser.click("#next")
        segmenter = Segmentation(dl_studio=SegStudio(), max_num_objects=5)
        for number, run in enumerate(RUNS_OF_PAGES["pair"]):
            net = segmenter.load_run(runs / run).eval()
            for k, row, column in ((1, 0, 0), (4, 63, 20)):
                image = image_of(browser)[None].requires_grad_()
                net(image)[0, k, row, column].backward()
                expected = image.grad.abs().sum(dim=(0, 1))
                here = f"explore.networks[{number}]"
                found = numbers(browser, f"{here}.influence({k}, {row}, {column})").reshape(64, 64)
                assert np.abs(found - expected.numpy()).max() < 1e-3 * expected.max()
                field = numbers(browser, f"{here}.receptiveField({row}, {column})").reshape(64, 64)
                assert (field[expected > 0] == 1).all()
                assert 0.2 < field.mean() <= 1
                if run == "unet":  # it sees a part of the image only
                    assert (field == positive_field(net, row, column)).all()
                    assert field.mean() < 0.9

    def test_a_click_on_a_stage_shows_its_feature_maps(self, demo):
        names = demo.evaluate(
            "[...document.querySelectorAll('#u button b')].map(b => b.textContent)"
        )
        assert len(names) == 22
        stage = demo.evaluate("explore.networks[0].stages.findIndex(s => s.name === 'skip64usUP')")
        demo.click(f"[data-stage='{stage}']")
        titles = "[...document.querySelectorAll('#maps h3')].map(h => h.textContent)"
        assert demo.evaluate(titles) == ["skip64usUP, strided", "skip64usUP, dense"]
        assert demo.evaluate(
            "document.querySelector(`#u [aria-pressed=true]`).innerText"
        ).startswith("skip64usUP")
        stripes = """(canvas => {
            const {data, width} = canvas.getContext("2d").getImageData(0, 0, 64, 64);
            return Array.from({length: 64 * 64}, (_, i) => data[4 * i]);
        })(document.querySelectorAll("#maps canvas")[%d])"""
        strided, dense = (np.array(demo.evaluate(stripes % k)) for k in (0, 1))
        assert strided.std() > 5 and dense.std() > 5, "pictures, not one colour"
        before = demo.evaluate(stripes % 1)
        demo.click("#next")
        assert demo.evaluate(stripes % 1) != before, "they follow the image"
        demo.focus(f"[data-stage='{stage}']")
        demo.press("ArrowUp")
        assert demo.evaluate(titles)[0] == "cat (3), strided"


def positive_field(net, row, column):
    """The pixels with a path to an output pixel: with positive weights they have a gradient."""
    net = Segmentation.UNet(**net.arguments).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1 / max(1, parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    for encoder in net.encoders:
        encoder[0] = torch.nn.AvgPool2d(2)  # MaxPool2d passes a gradient to one pixel of four
    image = torch.full((1, 3, 64, 64), 255.0, dtype=torch.float64, requires_grad=True)
    net(image)[0, :, row, column].sum().backward()
    return (image.grad.sum(dim=(0, 1)) > 0).numpy()
