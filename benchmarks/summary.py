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
STEPS, TRAINING, PHASE = "goptim bench", "goptim bench --training", "goptim bench --phase"
BFLOAT16 = "goptim bench --dtype bfloat16"

# What the README calls a row; the table that has it, and what its first column and another one say there.
ROWS = {
    "training a small policy (8-64-64-4) with AdamW, whole iteration": (
        TRAINING,
        ("policy 8-64-64-4, 64 states", "AdamW"),
    ),
    "clipping, AdamW step, moving average and zero_grad, 14 tensors of a policy": (
        PHASE,
        ("AdamW", "policy of 14 tensors"),
    ),
    "the same for 1,000 tensors of 64 elements": (PHASE, ("AdamW", "1000 x 64")),
    "the AdamW step alone, 1,000 tensors of 64 elements": (STEPS, ("AdamW", "1000 x 64")),
    "Adafactor step, ResNet-50": (STEPS, ("Adafactor", "ResNet-50")),
    "SGD step, 8 tensors of 2M elements": (STEPS, ("SGD", "8 x 2M")),
    "AdamW step, 8 tensors of 2M bfloat16 elements": (BFLOAT16, ("AdamW", "8 x 2M")),
}
# The column of each table with torch's default. The column of its fused kernel is the next one that is called so.
DEFAULT = {
    STEPS: "speedup over for-loop",
    TRAINING: "speedup over default",
    PHASE: "speedup over default",
    BFLOAT16: "speedup over for-loop",
}


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
        column = head.index(DEFAULT[mark])
        default, fused = row[column], row[head.index("fused", column)]
        lines.append(f"| {title} | {default} | {fused or 'torch has none'} |")
        conditions = conditions or text[start:end].partition("; load average")[0]
    machine, *software = conditions.split("; ")
    return [*lines, "", f"{machine}, {threads} threads; {'; '.join(software)} unless noted."]


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
