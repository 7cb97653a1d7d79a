"""A test picture, side by side with DLStudio 2.3.6's pixel loops, in one process.

    pip install '.[bench]' && python tests/benchmarks/bench_testing.py

Computing the 7-row grid of one batch of 4 images: the bar is 100 times as fast as DLStudio.
Drawing it and saving it as a PNG included: 5 times. DLStudio's own testing method is run, with
its window replaced by saving the same figure, on one batch; its forward pass is part of both.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import make_batches, name_machine

from SegStudio import SegStudio

Segmentation = SegStudio.SemanticSegmentation


def make_batch():
    batch = next(iter(make_batches(1)))
    boxes = torch.zeros(4, 64, 5, 4)
    for k in range(5):
        boxes[:, 0, k] = torch.tensor([4.0 + 9 * k, 6, 20 + 9 * k, 30]).clamp(max=63)
    return {**batch, "bbox_tensor": boxes}


def time_dlstudio(net, batch, folder, rounds):
    """(computing, computing + drawing + saving) in seconds, of DLStudio's own method."""
    import DLStudio
    import matplotlib.pyplot as plt

    path = Path(folder) / "saved_model"
    torch.save(net.state_dict(), path)
    dls = DLStudio.DLStudio(
        dataroot="./", image_size=[64, 64], path_saved_model=str(path), momentum=0.9,
        learning_rate=1e-4, epochs=1, batch_size=4, classes=tuple("abcde"), use_gpu=True,
    )  # fmt: skip
    segmenter = DLStudio.DLStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
    twin = segmenter.mUnet(True, 16)
    display, drawing = dls.display_tensor_as_image, []

    def save_instead():
        plt.savefig(Path(folder) / "dlstudio.png")
        plt.close("all")

    def watched(*args):
        start = time.perf_counter()
        display(*args)
        drawing.append(time.perf_counter() - start)

    plt.show, dls.display_tensor_as_image = save_instead, watched
    whole = []
    for _ in range(rounds):
        segmenter.test_dataloader = [{name: value.clone() for name, value in batch.items()}]
        start = time.perf_counter()
        segmenter.run_code_for_testing_semantic_segmentation(twin)
        whole.append(time.perf_counter() - start)
    return [w - d for w, d in zip(whole, drawing, strict=True)], whole


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    net, batch = Segmentation.mUnet(True, 16), make_batch()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        segmenter = Segmentation(SegStudio(results_dir=folder, run_name="bench"), 5)
        output, forward, grid, drawn = net(batch["image"]), [], [], []
        for _ in range(20 * rounds):
            start = time.perf_counter()
            Segmentation.make_test_grid(batch["image"], batch["bbox_tensor"], output)
            grid.append(time.perf_counter() - start)
        for number in range(2 * rounds):
            start = time.perf_counter()
            output = net(batch["image"])
            forward.append(time.perf_counter() - start)
            segmenter.save_test_figure(net, batch, output, number)
            drawn.append(time.perf_counter() - start)
        computing, whole = time_dlstudio(net, batch, folder, rounds)
    forward = statistics.median(forward)
    rows = {
        "computing the grid": (statistics.median(computing) - forward, statistics.median(grid)),
        "with forward pass, drawing, saving": (statistics.median(whole), statistics.median(drawn)),
    }
    print(f"A test picture of 4 images; {name_machine()}, torch {torch.__version__}; medians")
    print(f"{'':36}{'DLStudio ms':>13}{'SegStudio ms':>14}{'ratio':>9}")
    for name, (theirs, ours) in rows.items():
        print(f"{name:36}{1000 * theirs:13.1f}{1000 * ours:14.2f}{theirs / ours:8.1f}x")


if __name__ == "__main__":
    main()
