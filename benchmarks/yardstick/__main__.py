"""Compare goptim's kernels with the same steps written by hand in C (kernels.c) and with the memory bound.

    python benchmarks/yardstick [--optimizer AdamW …] [--elements 4096 …] [--seconds 2] [--update docs/performance.md]
    python benchmarks/yardstick --memory [--elements 4194304] [--seconds 20] [--update docs/performance.md]

First the results of the C kernels must be bit-for-bit those of goptim. Then both step the same tensors in turn on one
thread. A figure is the best of all rounds, in CPU time, which excludes other processes. The overhead of calling Go is
measured and subtracted; each call takes enough steps to make it small. The memory bound is a pass over the same bytes
without arithmetic, as in `python -m goptim bench`. Compare ratios within one run, not times of two runs. The program
needs a C compiler, and a CPU with AVX2 and FMA.

--memory measures other techniques for large tensors: prefetches and non-temporal stores, in C, and large pages.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from goptim import _core
from goptim._bench import contenders, pages

FOLDER = Path(__file__).parent
BOUND = Path(contenders.__file__).with_name("bound.c")
ELEMENTS = [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 20, 1 << 21, 1 << 24]
LARGE = 1 << 20  # elements from which memory bandwidth is the limit
BETA1, BETA2, EPS, LR, DECAY = 0.9, 0.999, 1e-8, 1e-3, 0.01


LAYOUTS = json.loads(_core.Describe())


def packed(name: str, values: Sequence[dict[str, Sequence[float]]]) -> ctypes.Array[ctypes.c_char]:
    """Memory with structs that Go reads: for each, the values of its fields. Types are bytes, others 64-bit words."""
    fields = LAYOUTS["structs"][name]
    size = fields[""][1]
    memory = ctypes.create_string_buffer(size * len(values))
    for i, of in enumerate(values):
        for field, words in of.items():
            form = "d" if field == "Scalars" else "B" if field.endswith("Type") else "q"
            struct.pack_into(f"={len(words)}{form}", memory, i * size + fields[field][0], *words)
    return memory


def f32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def adamw(t: int) -> list[float]:
    root = f32((1 - BETA2**t) ** 0.5)
    return [1 - LR * DECAY, 1 - BETA1, BETA2, 1 - BETA2, -(LR / (1 - BETA1**t)), root, 1 / root, EPS]


@dataclass
class Kernel:
    """The step of one optimizer in goptim and in C."""

    ours: str  # the kind's name in goptim
    options: tuple[float, ...]  # of goptim
    c: str
    scalars: Callable[[int], list[float]]  # of the C kernel in step t
    states: int


KERNELS = {
    "AdamW": Kernel("AdamW", (LR, BETA1, BETA2, EPS, DECAY, 0, 0, 1), "adamw", adamw, 2),
    "RMSprop": Kernel("RMSprop", (LR, 0.99, EPS, 0.0, 0.0, 0, 0), "rmsprop", lambda t: [0.99, 1 - 0.99, EPS, -LR], 1),
    "RMSprop momentum, centered": Kernel(
        "RMSprop",
        (LR, 0.99, EPS, 0.0, 0.9, 1, 0),
        "rmsprop_momentum_centered",
        lambda t: [0.99, 1 - 0.99, EPS, -LR, 0.9],
        3,
    ),
    "Rprop": Kernel("Rprop", (LR, 0.5, 1.2, 1e-6, 50.0, 0), "rprop", lambda t: [0.5, 1.2, 1e-6, 50.0], 2),
}


def compile_c(source: Path, *flags: str) -> ctypes.CDLL:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("yardstick needs a C compiler: set CC, or install gcc or clang")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.so")
        options = ["-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", *flags]
        subprocess.run([*compiler.split(), *options, "-o", out, source], check=True)
        return ctypes.CDLL(str(out))


def on_pages(n: int, advice: int) -> torch.Tensor:
    """A tensor in memory with the given madvise."""
    memory = mmap.mmap(-1, n * 4 + (1 << 21))
    memory.madvise(advice)
    at = torch.frombuffer(memory, dtype=torch.float32)
    skip = -at.data_ptr() // 4 % (1 << 19)  # to the start of a large page
    return at[skip : skip + n]


class Columns:
    """A parameter, its gradient and states, allocated by torch, and the functions that step them."""

    def __init__(
        self,
        kernel: Kernel,
        n: int,
        library: ctypes.CDLL,
        bound: ctypes.CDLL | None = None,
        advice: int | None = None,
    ) -> None:
        self.kernel, self.n = kernel, n
        self.tensors = [torch.empty(n) if advice is None else on_pages(n, advice) for _ in range(2 + kernel.states)]
        self.steps = array("f")
        self.library, self.bound = library, bound
        self.c_step = getattr(library, kernel.c)
        self.addresses = [t.data_ptr() for t in self.tensors] + [0] * (3 - kernel.states)
        self.fill()

    def fill(self) -> None:
        torch.manual_seed(0)
        for t in self.tensors[:2]:
            t.normal_()
        for t in self.tensors[2:]:
            t.normal_().square_()

    def table(self, steps: int) -> ctypes.Array[ctypes.c_char]:
        """A table with one row per step of the same parameter, each with its own step count."""
        self.steps = array("f", [0] * steps)
        at, size = self.steps.buffer_info()[0], self.steps.itemsize
        p, g, *states = self.addresses
        float32 = LAYOUTS["constants"]["float32"]
        types = {name: [float32] for name in ("ParamType", "GradType", "StepType")}
        types["StateType"] = [float32] * len(states)
        return packed(
            "Row",
            [
                {"N": [self.n], "Param": [p], "Grad": [g], "Step": [at + i * size], "State": states, **types}
                for i in range(steps)
            ],
        )

    def ours(self, steps: int) -> Callable[[], object]:
        table = self.table(steps)
        options = self.kernel.options
        values = {"Table": [ctypes.addressof(table)], "Rows": [steps], "Count": [len(options)], "Scalars": options}
        group = packed("Group", [values])
        address, kind = ctypes.addressof(group), _core.Kind(self.kernel.ours)

        def run(keep: object = (table, group)) -> None:
            _core.Step(kind, address, 1)

        return run

    def in_c(self, steps: int, t: int = 1) -> Callable[[], object]:
        h = self.kernel.scalars(t)
        scalars = (ctypes.c_float * len(h))(*h)
        arguments = (*map(ctypes.c_void_p, self.addresses), ctypes.c_ssize_t(self.n), ctypes.c_int64(steps), scalars)
        step = self.c_step
        return lambda: step(*arguments)

    def passes(self, steps: int) -> Callable[[], object]:
        """The pass without arithmetic. An even number of passes restores the values."""
        assert self.bound
        unused = [0] * (contenders.COLUMNS - len(self.addresses))
        columns = array("Q", (self.addresses + unused) * steps)
        words = array("q", [self.n] * steps)
        arguments = (
            ctypes.c_void_p(columns.buffer_info()[0]), ctypes.c_void_p(words.buffer_info()[0]), ctypes.c_int64(steps),
            ctypes.c_int(len(self.tensors)), ctypes.c_int(1), ctypes.c_int(0),
        )  # fmt: skip

        def run(keep: object = (columns, words)) -> None:
            self.bound.bound(*arguments)

        return run


def check_bits(kernel: Kernel, library: ctypes.CDLL, n: int, steps: int = 5) -> None:
    """Check that both have bit-for-bit the same results after each of some steps, with special values too."""
    mine, other = (Columns(kernel, n, library) for _ in range(2))
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 1e38, 1e-25, 1e-6, 50.0])
    for columns in (mine, other):
        torch.manual_seed(1)
        for i, t in enumerate(columns.tensors):
            chosen = special[torch.randint(len(special), (n,))]
            t.copy_(torch.where(torch.rand(n) < 0.5, chosen if i < 2 else chosen.abs(), t))
    run = mine.ours(1)
    for t in range(1, steps + 1):
        for columns in (mine, other):
            g = columns.tensors[1]
            g.copy_(g.roll(7).neg_() if t % 2 else g.roll(3))
        run()
        other.in_c(1, t)()
        for i, (a, b) in enumerate(zip(mine.tensors, other.tensors, strict=True)):
            same = (a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())
            if not same.all():
                at = int((~same).nonzero()[0])
                raise SystemExit(
                    f"{kernel.c}: step {t}, tensor {i}, element {at}: goptim {a[at]:.9g}, C {b[at]:.9g}; "
                    f"{int((~same).sum())} of {n} differ"
                )


def best_of(
    contenders: dict[Any, Callable[[], object]], seconds: float, clock: Callable[[], float] = time.thread_time
) -> dict[Any, float]:
    """The best time of each contender. They take turns for the given seconds, at least three rounds.

    Each round has another order, since a contender is faster after one that used the same memory.
    """
    best = dict.fromkeys(contenders, math.inf)
    order, shuffle = list(contenders.items()), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        shuffle(order)
        for name, run in order:
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
        rounds += 1
    return best


def measure(kernel: Kernel, n: int, seconds: float, library: ctypes.CDLL, bound: ctypes.CDLL) -> dict[str, float]:
    """Nanoseconds per element of goptim, C and the memory bound, and ``row``, the subtracted overhead per row."""
    steps = (
        max(2, (1 << 17) // n & ~1) if n < LARGE else 2
    )  # about 50 µs in cache, short enough to be rarely interrupted
    columns, tiny = Columns(kernel, n, library, bound), Columns(kernel, library.lanes(), library, bound)
    runs = {
        "ours": columns.ours(steps),
        "c": columns.in_c(steps),
        "bound": columns.passes(steps),
        "row": tiny.ours(steps),
    }
    best = best_of(runs, seconds)
    row = best.pop("row")
    best["ours"] -= row
    return {name: seconds / steps / n * 1e9 for name, seconds in best.items()} | {"row": row / steps * 1e9}


def rows(names: Sequence[str], elements: Sequence[int], seconds: float) -> Iterator[str]:
    library, bound = compile_c(FOLDER / "kernels.c"), compile_c(BOUND)
    with open("/proc/cpuinfo") as f:
        cpu = next((line.partition(":")[2].strip() for line in f if "model name" in line), "CPU")
    yield (
        f"{cpu}, one of {os.cpu_count()} cores; {_core.Version()}, C with {32 * library.lanes()} bits; "
        f"load average {os.getloadavg()[0]:.1f} at the start."
    )
    columns = "optimizer | elements | KiB | goptim, ns per element | C | memory bound | goptim / C | share of bandwidth"
    yield f"\n| {columns} |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for name in names:
        kernel = KERNELS[name]
        check_bits(kernel, library, 4096)
        for n in elements:
            t = measure(kernel, n, seconds, library, bound)
            share = f"{t['bound'] / t['ours']:.2f}" if n >= LARGE else ""
            yield (
                f"| {name} | {n} | {n * 4 * (2 + kernel.states) // 1024} | {t['ours']:.3f} | {t['c']:.3f} "
                f"| {t['bound']:.3f} | {t['ours'] / t['c']:.2f} | {share} |"
            )


VARIANTS = {
    "as above": (),
    "prefetch 512 bytes ahead": ("-DAHEAD=512",),
    "prefetch 2 KiB ahead": ("-DAHEAD=2048",),
    "non-temporal stores": ("-DSTREAM",),
}


def memory_rows(names: Sequence[str], elements: Sequence[int], seconds: float) -> Iterator[str]:
    libraries = {name: compile_c(FOLDER / "kernels.c", *flags) for name, flags in VARIANTS.items()}
    bound = compile_c(BOUND)
    yield f"Load average {os.getloadavg()[0]:.1f} at the start.\n"
    yield "| optimizer | elements | | 4 KiB pages, ns per element | 2 MiB pages |\n|---|--:|---|--:|--:|"
    for name in names:
        for n in elements:
            runs = {}
            for size in ("NOHUGEPAGE", "HUGEPAGE"):
                columns = Columns(KERNELS[name], n, libraries["as above"], bound, getattr(mmap, f"MADV_{size}"))
                runs["goptim", size] = columns.ours(2)
                for variant, library in libraries.items():
                    columns.c_step = getattr(library, columns.kernel.c)
                    runs[f"C, {variant}", size] = columns.in_c(2)
                runs["memory bound", size] = columns.passes(2)
            # Non-temporal stores leave the caches empty for what runs next, so they are measured alone.
            alone = {key: run for key, run in runs.items() if key[0] == "C, non-temporal stores"}
            others = {key: run for key, run in runs.items() if key not in alone}
            times = {**best_of(others, seconds), **best_of(alone, 0)}
            best = {what: time / 2 / n * 1e9 for what, time in times.items()}
            for what, size in runs:
                if size == "HUGEPAGE":
                    yield f"| {name} | {n} | {what} | {best[what, 'NOHUGEPAGE']:.3f} | {best[what, size]:.3f} |"


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(prog="yardstick", description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", choices=KERNELS, help="default: all")
    parser.add_argument("--elements", nargs="+", type=int, help="per tensor, multiples of 16")
    parser.add_argument("--seconds", type=float, help="per row; with --memory per size")
    parser.add_argument("--memory", action="store_true", help="measure prefetches, non-temporal stores and large pages")
    parser.add_argument("--update", type=Path, help="the page to put the table in")
    args = parser.parse_args(arguments)
    if any(n < 16 or n % 16 for n in args.elements or []):
        parser.error("argument --elements: expected multiples of 16")
    if args.memory:
        table = memory_rows(args.optimizer or ["AdamW"], args.elements or [1 << 22], args.seconds or 20)
    else:
        table = rows(args.optimizer or list(KERNELS), args.elements or ELEMENTS, args.seconds or 2)
    lines = []
    for line in table:
        print(line, flush=True)
        lines.append(line)
    if args.update:
        pages.put(args.update, "yardstick --memory" if args.memory else "yardstick", "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
