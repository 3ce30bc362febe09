"""Write the README's first table from the tables of docs/benchmarks.md.

    python benchmarks/summary.py [--from docs/benchmarks.md] [--update README.md]

It measures nothing. `make bench` runs it after the measurements, so that both pages show the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from goptim._bench import pages

ROOT = Path(__file__).parents[1]
MARK = "summary"
STEPS, TRAINING = "goptim bench", "goptim bench --training"

# What the README calls a row; the table that has it, and what its first column and another one say there.
ROWS = {
    "training a small policy (8-64-64-4) with AdamW, per iteration": (
        TRAINING,
        ("policy 8-64-64-4, 64 states", "AdamW"),
    ),
    "AdamW, 1,000 tensors of 64 elements, per step": (STEPS, ("AdamW", "1000 x 64")),
    "Adafactor, ResNet-50, per step": (STEPS, ("Adafactor", "ResNet-50")),
    "SGD, 8 tensors of 2M elements, per step": (STEPS, ("SGD", "8 x 2M")),
}
# The columns of both tables with torch's default and its fused kernel.
COLUMNS = {STEPS: ("speedup over for-loop", "fused"), TRAINING: ("speedup over default", "fused")}


def table(page: Path) -> list[str]:
    """The README's table.

    Raises:
        ValueError: the page lacks one of its rows.
    """
    conditions, threads = "", 0
    lines = ["| speedup of goptim | over torch's default | over its fused kernel |", "|---|--:|--:|"]
    for title, (mark, wanted) in ROWS.items():
        text, start, end = pages.find(page, mark)
        head, _, *rows = [_cells(line) for line in text[start:end].splitlines() if line.startswith("|")]
        found = [row for row in rows if set(wanted) <= set(row)]
        if not found:
            raise ValueError(f"{page}: <!-- {mark} --> has no row of {', '.join(wanted)}")
        row = max(found, key=lambda row: int(row[head.index("threads")]))
        threads = max(threads, int(row[head.index("threads")]))
        # The last column of a name: in the table of training iterations, "fused" is also a share.
        default, fused = (row[len(head) - 1 - head[::-1].index(name)] for name in COLUMNS[mark])
        lines.append(f"| {title} | {default} | {fused or 'torch has none'} |")
        conditions = conditions or text[start:end].partition("; load average")[0]
    machine, *software = conditions.split("; ")
    return [*lines, "", f"{machine}, {threads} threads; {'; '.join(software)}."]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="page", type=Path, default=ROOT / "docs/benchmarks.md", metavar="PAGE")
    parser.add_argument("--update", type=Path, metavar="PAGE", help=f"put the table between its <!-- {MARK} --> marks")
    args = parser.parse_args()
    lines = "\n".join(table(args.page))
    print(lines)
    if args.update:
        pages.put(args.update, MARK, lines)


if __name__ == "__main__":
    main()
