"""The command line: python -m SegStudio COMMAND; each command stands in a file of its own."""

import argparse
import sys

from SegStudio import check_network, doctor, grade_losses, grade_models, rerun, show

# Each has add_command(commands).
COMMANDS = (show, grade_losses, check_network, doctor, grade_models, rerun)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m SegStudio", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_command(commands)
    options = parser.parse_args(argv)
    try:
        code = options.run(options)
    except KeyboardInterrupt:
        print(f"\npython -m SegStudio {options.command}: interrupted", file=sys.stderr)
        code = 130  # what a shell expects after Ctrl-C
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
