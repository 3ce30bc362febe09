"""``python -m goptim`` and its subcommands. Each has a function that adds a parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from goptim import _bench, _run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: the command line by default.
    """
    parser = argparse.ArgumentParser(prog="python -m goptim", description="torch.optim, computed in Go.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (_run.add_command, _bench.add_command):
        add(commands)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    options.call(options)


if __name__ == "__main__":
    main()
