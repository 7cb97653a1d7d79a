"""The command line of SegStudio.

show NAME     prints a class as a file that runs
rerun RUN     repeats a run and says whether the result is the same
"""

import argparse
import sys

from SegStudio import rerun
from SegStudio.show import show_class


def add_show(commands):
    show = commands.add_parser("show", help="print a class, ready to copy into a file of your own")
    show.add_argument("name", help="such as mUnet or SegmentationLossDice")
    show.set_defaults(call=lambda options: print(show_class(options.name), end=""))


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m SegStudio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_show, rerun.add_command):
        add(commands)
    options = parser.parse_args(argv)
    try:
        return options.call(options) or 0
    except (OSError, ValueError) as error:
        sys.exit(f"python -m SegStudio: {error}")


if __name__ == "__main__":
    sys.exit(main())
