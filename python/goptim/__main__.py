"""``python -m goptim`` and its subcommands. Each has a function that adds a parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import goptim
from goptim import _bench, _native, _run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: the command line by default.
    """
    parser = argparse.ArgumentParser(prog="python -m goptim", description="torch.optim, computed in Go.")
    parser.add_argument("--version", action="store_true", help="print the version and the platform")
    commands = parser.add_subparsers(metavar="command")
    for add in (_run.add_command, _bench.add_command):
        add(commands)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.version:
        print(f"goptim {goptim.__version__}: {_native.platform_line()}")
    elif hasattr(options, "call"):
        options.call(options)
    else:
        parser.error("a command is required")


if __name__ == "__main__":
    main()
