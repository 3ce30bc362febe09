"""``python -m goptim bench``: what a step costs on this machine, beside torch's paths and the memory's own speed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from goptim._bench import subjects

USUAL = ("for", "foreach", "fused")
AGAINST = (*USUAL, "compile", "deepspeed")
DTYPES = ("float32", "float64", "bfloat16", "float16")
_T = TypeVar("_T")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bench`` to the subcommands of ``python -m goptim``."""
    parser = commands.add_parser(
        "bench",
        help="measure what a step costs here, beside torch's",
        description="Measure what a step of goptim costs on this machine, beside torch's paths and a pass over the "
        "same memory without arithmetic. All take turns in one process, with gradients freshly allocated before every "
        "step; a figure is the best of all rounds, a ratio above 1 says that goptim is faster. At the end it says "
        "whether the machine was quiet enough.",
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="measure instead what share of a training iteration the step takes, and what goptim gains of it",
    )
    parser.add_argument("--optimizer", nargs="+", choices=subjects.OPTIMIZERS, metavar="NAME", help=_optimizers())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_listed(subjects.shapes_of),
        action=_Flat,
        metavar="NAME",
        help=f"of {', '.join(subjects.SHAPES)}, or package.module:attribute, which is a torch.nn.Module, what returns "
        "one, or a list of shapes; by default each optimizer has its own",
    )
    parser.add_argument(
        "--threads", nargs="+", type=_listed(_at_least(1)), action=_Flat, metavar="N", help="default: 1 and torch's own"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=_listed(_one_of(AGAINST)),
        action=_Flat,
        metavar="PATH",
        help=f"of {', '.join(AGAINST)}; default: {','.join(USUAL)}. What compiling took is not part of a step",
    )
    parser.add_argument(
        "--rounds", type=_at_least(1), default=30, metavar="N", help="of 16M elements, of small tensors four times more"
    )
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds of a row for each contender: one whose step takes longer is left out; default: 10",
    )
    parser.add_argument(
        "--scale", type=_share, default=1.0, metavar="X", help="shrink all shapes, as 0.001, to see whether it works"
    )
    parser.add_argument("--json", type=_file(".json"), metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--plot", type=_file(".png", ".svg", ".pdf"), metavar="FILE", help="draw the ratios; needs matplotlib"
    )
    parser.add_argument(
        "--update",
        nargs="+",
        type=_page,
        default=[],
        metavar="PAGE#MARK",
        help="put the table in a page, between <!-- MARK --> and <!-- end -->; MARK ending in 'brief' has the large "
        "tensors alone, on all threads",
    )
    parser.set_defaults(call=lambda options: _bench(parser, options))


def _bench(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from goptim._bench import command

    try:
        command.run(options)
    except command.Refused as e:
        parser.error(str(e))


def _optimizers() -> str:
    return "of " + ", ".join(repr(name) if " " in name else name for name in subjects.OPTIMIZERS)


class _Flat(argparse.Action):
    """Makes one list of the lists that arguments with commas give."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, [value for part in values for value in part])


def _listed(parse: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    """Parses what stands between commas."""

    def parts(text: str) -> list[_T]:
        try:
            return [parse(part) for part in text.split(",")]
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None

    return parts


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")
        return int(text)

    return number


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return name


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return share


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return seconds


def _file(*suffixes: str) -> Callable[[str], Path]:
    def path(text: str) -> Path:
        found = Path(text)
        if found.suffix not in suffixes or not found.absolute().parent.is_dir():
            kinds = " or ".join(suffixes)
            raise argparse.ArgumentTypeError(
                f"expected the name of a {kinds} file in a folder that exists, got {text!r}"
            )
        return found

    return path


def _page(text: str) -> tuple[Path, str]:
    name, hash_, mark = text.partition("#")
    if not hash_ or not mark or not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"expected page.md#mark with a page that exists, got {text!r}")
    return Path(name), mark
