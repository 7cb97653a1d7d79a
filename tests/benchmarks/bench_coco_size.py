"""What COCO images of 256x256 cost against 64x64: one network, one training iteration, measured.

    python tests/benchmarks/bench_coco_size.py          # about a minute

mUnet is fully convolutional: the same 7M parameters take any size, at 16 times the arithmetic. Each
size runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time


def measure(size, batch_size, iterations):
    import torch

    from SegStudio import SegStudio

    torch.manual_seed(0)
    net = SegStudio.SemanticSegmentation.mUnet(out_channels=1)
    criterion = SegStudio.SemanticSegmentation.SegmentationLossMAE()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    images = torch.rand(batch_size, 3, size, size) * 255
    masks = (torch.rand(batch_size, 1, size, size) > 0.7).float() * 255
    seconds = []
    for _ in range(iterations):
        start = time.perf_counter()
        optimizer.zero_grad()
        criterion(net(images), masks).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(statistics.median(seconds[2:]), peak, sum(p.numel() for p in net.parameters()))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one-size", type=int, help="measure this size here (used internally)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=10)
    args = parser.parse_args()
    if args.one_size:
        measure(args.one_size, args.batch_size, args.iterations)
        return
    rows = {}
    for size in (64, 256):
        command = [sys.executable, __file__, "--one-size", str(size)]
        command += ["--batch-size", str(args.batch_size), "--iterations", str(args.iterations)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[size] = [float(word) for word in done.stdout.split()]
    print(f"{platform.processor() or platform.machine()}, batch {args.batch_size}, fp32")
    print(f"{'image size':12}{'parameters':>12}{'s/iteration':>13}{'peak memory':>13}")
    for size, (seconds, peak, parameters) in rows.items():
        print(f"{size}x{size:<9}{parameters:12,.0f}{seconds:13.3f}{peak:9.0f} MiB")
    ratios = [b / a for a, b in zip(rows[64], rows[256], strict=True)]
    print(f"{'ratio':12}{ratios[2]:12.1f}{ratios[0]:13.1f}{ratios[1]:11.1f}")


if __name__ == "__main__":
    main()
