"""A bar plot of the speedups. No other module imports matplotlib."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goptim._bench.contenders import TITLES
from goptim._bench.steps import Row

# Okabe & Ito's palette, which is safe for colour-blind readers.
COLOURS = {"for": "#0072B2", "foreach": "#56B4E9", "fused": "#E69F00", "compile": "#CC79A7", "deepspeed": "#009E73"}
MEMORY, INK, PALE, GRID, BAND = "#D55E00", "#24292f", "#57606a", "#d0d7de", "#f3f5f7"
BAR = 0.125  # inches


def draw(out: Path, rows: Sequence[Row], against: Sequence[str], subtitle: str, by_shapes: bool, busy: bool) -> None:
    """Plot the rows with the most threads: a panel of large and one of small tensors, or one panel per list of shapes.

    Args:
        out: the file to write.
        rows: the measured rows.
        against: the other implementations, in order.
        subtitle: the machine.
        by_shapes: whether each list of shapes has a panel; otherwise an optimizer has one row per panel.
        busy: whether to add a warning that the figures are unreliable.
    """
    importlib.import_module("matplotlib").use("agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    threads = max(row.threads for row in rows)
    panels = _panels([row for row in rows if row.threads == threads], by_shapes)
    names = list(dict.fromkeys(row.optimizer for row in rows))
    shown = [path for path in against if any(path in row.seconds for panel in panels.values() for row in panel)]
    labels = [textwrap.fill(name, 16) for name in names]
    left = 0.25 + 0.08 * max(len(line) for label in labels for line in label.splitlines())
    width, height, top = left + 3.75 * max(2, len(panels)), 1.65 + len(names) * (BAR * max(2, len(shown)) + 0.1), 1.28
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure, grid = plt.subplots(1, len(panels), figsize=(width, height), sharey=True, squeeze=False)
        edges = {"left": left / width, "right": 1 - 0.1 / width, "bottom": 0.37 / height, "top": 1 - top / height}
        figure.subplots_adjust(**edges, wspace=0.06)
        for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
            _draw_panel(axes, title, {names.index(row.optimizer): row for row in panel}, shown)
        grid[0][0].set_yticks(range(len(names)), labels)
        grid[0][0].set_ylim(len(names) - 0.5, -0.5)
        many = f"{threads} threads" if threads > 1 else "1 thread"
        dtype = rows[0].json()["dtype"]
        x, title = 0.12 / width, "Time per step, relative to goptim"
        figure.text(x, 1 - 0.3 / height, title, fontsize=14, fontweight="bold")
        figure.text(x, 1 - 0.54 / height, f"{subtitle}; {dtype}, {many}", fontsize=9, color=PALE)
        if busy:
            warning = "the machine was too busy to trust these figures"
            style = {"fontsize": 9, "fontweight": "bold", "color": "#cf222e", "ha": "right"}
            figure.text(1 - 0.12 / width, 1 - 0.3 / height, warning, **style)
        handles = {label: h for axes in grid[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        place = {"loc": "center left", "bbox_to_anchor": (x, 1 - 0.82 / height), "borderaxespad": 0, "borderpad": 0}
        figure.legend(
            handles.values(),
            handles.keys(),
            ncols=len(handles),
            frameon=False,
            handlelength=1.4,
            columnspacing=1.4,
            **place,
        )
        figure.savefig(out, dpi=160, facecolor="white")
        plt.close(figure)


def _panels(rows: Sequence[Row], by_shapes: bool) -> dict[str, list[Row]]:
    """The rows of each panel, keyed by its title."""
    panels: dict[str, list[Row]] = {}
    if by_shapes:
        for row in rows:
            panels.setdefault(row.shapes.title, []).append(row)
        return panels
    for large in (True, False):
        chosen: dict[str, Row] = {}
        for row in rows:
            other = chosen.get(row.optimizer)
            if row.shapes.large == large and (other is None or other.shapes.elements < row.shapes.elements):
                chosen[row.optimizer] = row
        if chosen:
            titles = [row.shapes.title for row in chosen.values()]
            kind = "Large tensors" if large else "Many small tensors"
            panels[f"{kind}: {max(titles, key=titles.count)}"] = list(chosen.values())
    return panels


def _draw_panel(axes: Any, title: str, rows: dict[int, Row], shown: Sequence[str]) -> None:
    """Draw bars that start at 1, and lines at the memory bound. ``rows`` maps positions to rows."""
    ratios = [ratio for row in rows.values() for path in (*shown, "bound") if (ratio := row.ratio(path)) is not None]
    low, high = min([0.6, *ratios]) * 0.85, max([2.0, *ratios])
    high *= (high / low) ** 0.12  # space for the figures after the bars
    axes.set(xscale="log", xlim=(low, high))
    axes.set_title(title, fontsize=10.5, fontweight="bold", loc="left")
    slot = 0.84 / max(2, len(shown))
    common = title.rpartition(": ")[2]
    bound_x: list[float] = []
    bound_y: list[float] = []
    for y, row in rows.items():
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
        found = [(path, ratio) for path in shown if (ratio := row.ratio(path)) is not None]
        for k, (path, ratio) in enumerate(found):
            place = y + (k - (len(found) - 1) / 2) * slot
            axes.barh(place, ratio - 1, slot * 0.9, left=1, color=COLOURS[path], zorder=3)
            text = f"{ratio:.{0 if ratio >= 99.5 else 1 if ratio >= 1.95 else 2}f}"
            style = {"fontsize": 7.5, "va": "center_baseline", "zorder": 5}
            axes.annotate(text, (max(1, ratio), place), (3, -0.3), textcoords="offset points", **style)
        if row.shapes.title != common:
            style = {"fontsize": 8, "color": PALE, "ha": "right", "va": "center_baseline"}
            least = min([1, *(ratio for _, ratio in found)])
            axes.annotate(row.shapes.title, (least, y), (-5, 0), textcoords="offset points", **style)
        if (bound := row.ratio("bound")) is not None:
            bound_x += [bound, bound, float("nan")]
            bound_y += [y - 0.5, y + 0.5, float("nan")]
    for path in shown:
        axes.barh(float("nan"), 1, color=COLOURS[path], label=TITLES[path])
    axes.axvline(1, color=INK, linewidth=1.3, zorder=4, label="goptim")
    if bound_x:
        axes.plot(
            bound_x,
            bound_y,
            color=MEMORY,
            linewidth=2,
            solid_capstyle="butt",
            zorder=4,
            label="memory bound",
        )
    steps = (1, 2, 5) if high < 500 * low else (1,)
    ticks = [t for power in range(-4, 5) for step in steps if low <= (t := step * 10.0**power) <= high]
    axes.set_xticks(ticks, [f"{t:g}\N{MULTIPLICATION SIGN}" for t in ticks], fontsize=9)
    axes.minorticks_off()
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
