"""``python -m goptim bench``: the time of a step on this machine, compared with torch and the memory bound."""

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
        help="measure the time of a step, compared with torch",
        description="Measure the time of a step of goptim on this machine, compared with torch's implementations and a "
        "pass over the same memory without arithmetic. All take turns in one process, with gradients freshly allocated "
        "before every step. A figure is the best of all rounds; above 1, goptim is faster. The last line says whether "
        "the machine was quiet enough.",
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="measure training iterations instead: the share that the step takes, and the speedup",
    )
    parser.add_argument(
        "--phase",
        action="store_true",
        help="measure what surrounds a step too: clipping, the step, an average of the parameters, clearing of the "
        "gradients, and goptim's one call for all of them; default: AdamW",
    )
    parser.add_argument("--optimizer", nargs="+", choices=subjects.OPTIMIZERS, metavar="NAME", help=_optimizers())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_listed(subjects.shapes_of),
        action=_Flat,
        metavar="NAME",
        help=f"of {', '.join(subjects.SHAPES)}, or package.module:attribute, which is a torch.nn.Module, a function or "
        "class that returns one, or a list of shapes; the default depends on the optimizer",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=_listed(_at_least(1)),
        action=_Flat,
        metavar="N",
        help="default: 1, and torch's number of threads",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=_listed(_one_of(AGAINST)),
        action=_Flat,
        metavar="PATH",
        help=f"of {', '.join(AGAINST)}; default: {','.join(USUAL)}. Compilation time is not part of a step",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        default=30,
        metavar="N",
        help="for 16M elements; up to four times more for small tensors",
    )
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds per row and implementation; one whose step takes longer is left out; default: 10",
    )
    parser.add_argument(
        "--scale",
        type=_share,
        default=1.0,
        metavar="X",
        help="shrink all shapes, for a quick check that everything works: 0.001",
    )
    parser.add_argument("--json", type=_file(".json"), metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--plot", type=_file(".png", ".svg", ".pdf"), metavar="FILE", help="plot the speedups; needs matplotlib"
    )
    parser.add_argument(
        "--update",
        nargs="+",
        type=_page,
        default=[],
        metavar="PAGE#MARK",
        help="put the table in a page, between <!-- MARK --> and <!-- end -->; if MARK ends in 'brief', only the rows "
        "of large tensors on all threads",
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
    """Joins the lists of comma-separated arguments into one."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, [value for part in values for value in part])


def _listed(parse: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    """A parser of comma-separated values."""

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
