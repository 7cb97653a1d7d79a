"""Draws an archive in the format of PurdueShapes5MultiObject, as training or test data.

    python Datasets/make_purdue_shapes.py --out PurdueShapes5MultiObject-10000-train.gz

Without --num-images, the name gives the number of images. Without --seed, the seed is 1 for a name
that ends in -test.gz, else 0, so that no test image is a training image. Datasets/README.md
describes the format; draw_shapes in SegStudio/backstage.py draws an image.
"""

import argparse
import sys
from pathlib import Path

from SegStudio import SegStudio


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the archive to write (.gz)")
    parser.add_argument("--num-images", type=int, help="how many (default: as the name says)")
    parser.add_argument("--seed", type=int, help="default: 1 for -test.gz, else 0")
    args = parser.parse_args()
    dataset_class = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset
    try:
        counts = [int(part) for part in args.out.stem.split("-") if part.isdigit()]
        if args.num_images is None and len(counts) != 1:
            raise ValueError(f"say --num-images, since the name {args.out.name} does not")
        num_images = counts[0] if args.num_images is None else args.num_images
        seed = int(args.out.stem.endswith("-test")) if args.seed is None else args.seed
        path = dataset_class.generate(args.out, num_images, seed)
    except (OSError, ValueError) as error:
        sys.exit(f"make_purdue_shapes.py: {error}")
    size = path.stat().st_size / 1e6
    print(f"Drew {num_images} images (seed {seed}) into {path}, {size:.1f} MB.")


if __name__ == "__main__":
    main()
