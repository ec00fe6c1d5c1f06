"""The command line, `stafette`."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="stafette", description=__doc__)
    parser.parse_args(argv)
    parser.print_help(sys.stderr)
    return 2
