"""Tables as Markdown, and pages that show them between marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from goptim._bench import training
from goptim._bench.contenders import TITLES
from goptim._bench.steps import Row


def find(page: Path, mark: str) -> tuple[str, int, int]:
    """A page, and where in it begins and ends what stands between ``<!-- mark -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    found = re.search(rf"(?s)<!-- {re.escape(mark)} -->\n(.*?)<!-- end -->", text)
    if not found:
        raise ValueError(f"{page} has no <!-- {mark} --> with an <!-- end --> behind it")
    return text, found.start(1), found.end(1)


def put(page: Path, mark: str, table: str) -> None:
    """Replace what a page has between the marks: see :func:`find`."""
    text, start, end = find(page, mark)
    page.write_text(f"{text[:start]}{table.strip()}\n{text[end:]}")


def head(against: Sequence[str], bound: bool) -> list[str]:
    """The heading of a table of steps, and the line below it."""
    first, *others = [TITLES[path] for path in against] or [""]
    columns = ["optimizer", "tensors", "threads", "a step, µs", *([f"against {first}"] if first else []), *others]
    columns += [TITLES["bound"]] if bound else []
    return [_line(columns), _line(["---", "---", *["--:"] * (len(columns) - 2)]).replace(" ", "")]


def line(row: Row, against: Sequence[str], bound: bool) -> str:
    """A row: ratios of the best times, above 1 where goptim's is the shorter."""
    ratios = [row.ratio(path) for path in [*against, *(["bound"] if bound else [])]]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return _line([row.optimizer, row.shapes.title, str(row.threads), f"{row.best('goptim') * 1e6:.0f}", *cells])


def training_head() -> list[str]:
    """The heading of a table of training iterations, and the line below it."""
    columns = ["model", "parameters", "optimizer", "threads", "the step's share: default", "fused", "goptim"]
    columns += ["an iteration, ms", "against default", "fused"]
    return [_line(columns), _line(["---", "--:", "---", *["--:"] * (len(columns) - 3)]).replace(" ", "")]


def training_line(row: training.Row) -> str:
    """A row: the step's share of an iteration, and how many times as many iterations goptim has in the same time."""
    shares = [f"{row.share(path):.0%}" if path in row.times else "" for path in ("default", "fused", "goptim")]
    gains = [f"{row.gain(path):.2f}" if path in row.times else "" for path in ("default", "fused")]
    size = f"{row.parameters / 1e6:.1f}M" if row.parameters >= 1e6 else f"{row.parameters / 1e3:.1f}k"
    milliseconds = row.iteration("goptim") * 1e3
    iteration = f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.2g}"
    return _line([row.model.title, size, row.optimizer, str(row.threads), *shares, iteration, *gains])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
