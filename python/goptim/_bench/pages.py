"""Tables in Markdown, and the pages that contain them between marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from goptim._bench import phase, training
from goptim._bench.contenders import TITLES
from goptim._bench.steps import Row


def find(page: Path, mark: str) -> tuple[str, int, int]:
    """The text of a page, and the start and end of what is between ``<!-- mark -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    found = re.search(rf"(?s)<!-- {re.escape(mark)} -->\n(.*?)<!-- end -->", text)
    if not found:
        raise ValueError(f"{page} has no <!-- {mark} --> followed by <!-- end -->")
    return text, found.start(1), found.end(1)


def put(page: Path, mark: str, table: str) -> None:
    """Replace the text between the marks of a page: see :func:`find`."""
    text, start, end = find(page, mark)
    page.write_text(f"{text[:start]}{table.strip()}\n{text[end:]}")


def head(against: Sequence[str], bound: bool) -> list[str]:
    """The header of a table of steps, and its delimiter row."""
    first, *others = [TITLES[path] for path in against] or [""]
    columns = ["optimizer", "tensors", "threads", "µs per step", *([f"speedup over {first}"] if first else []), *others]
    columns += [TITLES["bound"]] if bound else []
    return [_line(columns), _line(["---", "---", *["--:"] * (len(columns) - 2)]).replace(" ", "")]


def line(row: Row, against: Sequence[str], bound: bool) -> str:
    """A row with ratios of the best times. Above 1, goptim is faster."""
    ratios = [row.ratio(path) for path in [*against, *(["bound"] if bound else [])]]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return _line([row.optimizer, row.shapes.title, str(row.threads), f"{row.best('goptim') * 1e6:.0f}", *cells])


def phase_head() -> list[str]:
    """The header of a table of what surrounds a step, and its delimiter row."""
    columns = [
        "optimizer",
        "tensors",
        "threads",
        *(f"µs: {name}" if i == 0 else name for i, name in enumerate(phase.PARTS)),
    ]
    columns += ["together", "in one call", "speedup over default", "fused", "one call over default", "fused"]
    return [_line(columns), _line(["---", "---", *["--:"] * (len(columns) - 2)]).replace(" ", "")]


def phase_line(row: phase.Row) -> str:
    """A row with goptim's times, and ratios of the best times of all parts together. Above 1, goptim is faster."""
    times = [*(row.part("goptim", name) for name in phase.PARTS), row.best("goptim"), row.best(phase.ONE_CALL)]
    ratios = [row.ratio(path, ours) for ours in ("goptim", phase.ONE_CALL) for path in ("default", "fused")]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return _line([row.optimizer, row.shapes.title, str(row.threads), *(f"{x * 1e6:.0f}" for x in times), *cells])


def training_head() -> list[str]:
    """The header of a table of training iterations, and its delimiter row."""
    columns = ["model", "parameters", "optimizer", "threads", "step's share: default", "fused", "goptim"]
    columns += ["ms per iteration", "speedup over default", "fused"]
    return [_line(columns), _line(["---", "--:", "---", *["--:"] * (len(columns) - 3)]).replace(" ", "")]


def training_line(row: training.Row) -> str:
    """A row with the step's share of an iteration, and the speedup of the iteration."""
    shares = [f"{row.share(path):.0%}" if path in row.times else "" for path in ("default", "fused", "goptim")]
    gains = [f"{row.gain(path):.2f}" if path in row.times else "" for path in ("default", "fused")]
    size = f"{row.parameters / 1e6:.1f}M" if row.parameters >= 1e6 else f"{row.parameters / 1e3:.1f}k"
    milliseconds = row.iteration("goptim") * 1e3
    iteration = f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.2g}"
    return _line([row.model.title, size, row.optimizer, str(row.threads), *shares, iteration, *gains])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
