"""A trained network in the browser: draw shapes, and see its masks and feature maps.

    python Examples/explore.py runs/classroom_demo           # strided beside dense
    python Examples/explore.py runs/best_segmentation        # any mUnet or UNet trained on shapes
    python Examples/explore.py runs/first runs/second        # two runs side by side

Writes RUN/explore.html in a few seconds: one file that contains everything. Open it by a double
click, or send it by mail. It needs no internet connection and no server. In the page

- you draw and drag shapes, or choose a test image, and the masks follow;
- a click on a stage of the network shows its feature maps of your image;
- a click on an output pixel shows its receptive field, and whether the input reaches it at all;
- a slider for each class moves its threshold; scores and DLStudio's windows are beside it;
- you paint a mask yourself and see its score, beside those of the network.

The classroom demo and semantic_segmentation.py --quick leave two networks in one folder: the dense
one, and the strided one in the folder strided/ in it. The page shows both. The page takes
networks of up to 1,000,000 parameters; the homework's network, with 7 million, is too large.

The parts of the page are beside this file: explore.html.j2, explore.css, explore.js (what the page
does), explore_network.js (the network in JavaScript). export_graph.py prepares the network for it.
"""

import argparse
import base64
from pathlib import Path

import numpy as np
from export_graph import export_graph
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from SegStudio import SegStudio, backstage

LARGEST_NETWORK = 1_000_000  # parameters: a page of 6 MB
NUM_IMAGES = 20  # test images in the page
TEST_ARCHIVES = (200, 1000, 20)  # sizes of the test archives that an example leaves
TEST_SEED = 1  # generated test archives are drawn with it

# As in SemanticSegmentation.make_test_grid. None: no upper end.
WINDOWS = ((25, 85), (65, 135), (115, 185), (165, 230), (210, None))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folders of one or two runs")
    parser.add_argument("--dataroot", metavar="DIR", help="folder of the data; default: the run's")
    parser.add_argument("--out", metavar="FILE", help="the page; default: RUN/explore.html")
    flags = parser.parse_args()
    runs = find_runs(flags.runs)
    text = make_page(runs, flags.dataroot)
    path = Path(flags.out or Path(flags.runs[-1]) / "explore.html").expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    SegStudio.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"The page, {path.stat().st_size / 1e6:.1f} MB; open it in a browser: {path}")


def find_runs(names):
    """The folders of the networks to show: the runs, and strided/ if a single run has it."""
    runs = [Path(name).expanduser() for name in names]
    if len(runs) > 2:
        raise ValueError(f"the page shows one or two runs, not {len(runs)}")
    strided = runs[0] / "strided"
    if len(runs) == 2 or not (strided / "settings.json").is_file():
        return runs
    # A later command may have used the same folder: then strided/ is from an earlier command.
    commands = [backstage.read_settings(run)["command"] for run in (strided, runs[0])]
    return [strided, *runs] if commands[0] == commands[1] else runs


# ---- What the page holds ------------------------------------------------------------------------


def make_page(runs, dataroot=None):
    """The page as text.

    Errors: FileNotFoundError for a folder without a run; ValueError for a network that is too
    large, of another class, or not trained on the five shapes.
    """
    dls = SegStudio(run_name="explore")  # makes no folder before something is written
    segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    networks = [describe_network(segmenter, run) for run in runs]
    for network, name in zip(networks, names_of(runs, networks), strict=True):
        network["name"] = name
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,  # names of folders and classes are text, never HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    dataset = segmenter.PurdueShapes5MultiObjectDataset
    if dataroot is None:  # the run's, which may be relative to the folder where it was made
        settings = backstage.read_settings(runs[-1])
        dataroot = settings.get("folder", "") / Path(settings["settings"]["dataroot"]).expanduser()
    images, source = read_images(segmenter, Path(dataroot).expanduser())
    data = {
        "classes": dataset.class_names,
        "maskValues": dataset.mask_values,
        "colors": backstage.class_colors(len(dataset.class_names)),
        "windows": WINDOWS,
        "size": 64,
        "networks": networks,
        "images": images,
    }
    return environment.get_template("explore.html.j2").render(
        data=data,
        networks=networks,
        source=source,
        style=(folder / "explore.css").read_text(encoding="utf-8"),
        scripts=[
            (folder / name).read_text(encoding="utf-8")
            for name in ("explore_network.js", "explore.js")
        ],
    )


def describe_network(segmenter, run):
    """A run's network for the page: its steps, its stages, its weights, and what it is."""
    net = segmenter.load_run(run)
    kind = type(net).__name__
    parameters = sum(p.numel() for p in net.parameters())
    if parameters > LARGEST_NETWORK:
        raise ValueError(
            f"{run} has a {kind} of {parameters:,} parameters, but the page takes networks of up "
            f"to {LARGEST_NETWORK:,}: give a smaller one, such as the run of "
            f"Examples/classroom_demo.py"
        )
    spec = segmenter.output_spec_of(net)
    shapes = segmenter.PurdueShapes5MultiObjectDataset
    if tuple(spec["class_names"]) != shapes.class_names or list(spec["image_size"]) != [64, 64]:
        raise ValueError(
            f"{run} was trained on {', '.join(spec['class_names'])}, but the page draws "
            f"{', '.join(shapes.class_names)} of 64x64 pixels: give a run on these shapes"
        )
    graph = export_graph(net, spec["image_size"])
    arguments = net.arguments
    facts = [kind]
    facts += [f"{key} {arguments[key]}" for key in ("depth", "width") if key in arguments]
    facts += [f"{arguments['upsampling']} upsampling"] if "upsampling" in arguments else []
    facts += [f"{parameters:,} parameters"]
    return {
        "kind": kind,
        "folder": str(run),
        "upsampling": arguments.get("upsampling"),
        "facts": ", ".join(facts),
        "logits": bool(spec["logits"]),
        "steps": graph.steps,
        "stages": graph.stages,
        "weights": as_text(graph.weights.astype("<f4")),
    }


def names_of(runs, networks):
    """Short, different names: strided and dense, or the class, or the folder."""
    for names in (
        [network["upsampling"] or network["kind"] for network in networks],
        [run.resolve().name for run in runs],
        [str(run) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def read_images(segmenter, dataroot):
    """The first test images and masks as text, and where they come from.

    A pixel of a mask has bit k set if class k is there.
    """
    dls = segmenter.dl_studio
    dls.dataroot = dataroot
    for number in TEST_ARCHIVES:
        name = f"PurdueShapes5MultiObject-{number}-test.gz"
        if (dataroot / name).is_file():
            dataset = segmenter.PurdueShapes5MultiObjectDataset(dls, segmenter, "test", name)
            items = [dataset[k] for k in range(min(NUM_IMAGES, len(dataset)))]
            pairs = [(item["image"].numpy(), item["mask_tensor"].numpy()) for item in items]
            source = "generated by SegStudio" if dataset.generated else f"from {name}"
            break
    else:
        pairs = [backstage.draw_shapes(TEST_SEED, index)[:2] for index in range(NUM_IMAGES)]
        source = "generated by SegStudio"
    bits = 1 << np.arange(5)[:, None, None]
    images = [
        {
            "pixels": as_text(image.astype(np.uint8)),  # (3, 64, 64)
            "masks": as_text(((mask > 0) * bits).sum(axis=0).astype(np.uint8)),  # (64, 64)
        }
        for image, mask in pairs
    ]
    return images, source


def as_text(array):
    return base64.b64encode(array.tobytes()).decode()


if __name__ == "__main__":
    SegStudio.run_example(main)
