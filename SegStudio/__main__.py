"""The command line: `python -m SegStudio show NAME` prints a class as a file that runs."""

import argparse
import sys

from SegStudio.show import show_class


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m SegStudio", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a class, ready to copy into a file of your own")
    show.add_argument("name", help="such as mUnet or SegmentationLossDice")
    options = parser.parse_args(argv)
    try:
        print(show_class(options.name), end="")
    except ValueError as error:
        sys.exit(f"python -m SegStudio: {error}")


if __name__ == "__main__":
    main()
