"""Print what a step costs: goptim beside torch.optim's for-loop, foreach and fused steps, and the memory bound.

    python benchmarks/step.py [--optimizer AdamW …] [--shapes big …] [--threads 1 2] [--dtype float32] [--rounds 40]

All are timed in one process, in turn, with gradients freshly allocated before every step; a figure is the best of all
rounds. The memory bound is a pass over the same bytes that does no arithmetic (bound.c), so it needs a C compiler.
Ratios of one run can be compared; times of two runs cannot.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

import goptim

OPTIMIZERS = {
    "SGD": ("SGD", {"lr": 1e-3}),
    "SGD momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "Adam": ("Adam", {}),
    "AdamW": ("AdamW", {}),
    "AdamW amsgrad": ("AdamW", {"amsgrad": True}),
    "Adagrad": ("Adagrad", {}),
    "Adadelta": ("Adadelta", {}),
    "Adamax": ("Adamax", {}),
    "NAdam": ("NAdam", {}),
    "RAdam": ("RAdam", {}),
    "RMSprop": ("RMSprop", {}),
    "RMSprop momentum, centered": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "Rprop": ("Rprop", {}),
    "ASGD": ("ASGD", {}),
    "Adafactor": ("Adafactor", {}),
    "Muon": ("Muon", {}),
}


def resnet50() -> list[tuple[int, ...]]:
    """The parameters of torchvision's ResNet-50, in order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for kernel in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [kernel, kernel[:1], kernel[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SHAPES = {
    "8 x 2M": [(1 << 21,)] * 8,
    "1000 x 1024": [(1024,)] * 1000,
    "1000 x 64": [(64,)] * 1000,
    "20 x 64": [(64,)] * 20,
    "8 x 1024 x 1024": [(1024, 1024)] * 8,
    "100 x 64 x 64": [(64, 64)] * 100,
    "ResNet-50": resnet50(),
}
# How many rounds a figure is the best of, as a multiple of --rounds: a step of Muon's large matrices takes a second.
ROUNDS = {"8 x 2M": 1, "8 x 1024 x 1024": 1 / 8, "100 x 64 x 64": 1, "ResNet-50": 1 / 4}
EVERY_SHAPE = ("SGD", "SGD momentum", "AdamW", "AdamW amsgrad")


def shapes_of(name: str) -> list[str]:
    """What an optimizer is measured on: many sizes for the most used, a large and a small one for others."""
    if name == "Muon":
        return ["8 x 1024 x 1024", "100 x 64 x 64"]
    if name == "Adafactor":
        return ["ResNet-50", "8 x 1024 x 1024", "1000 x 1024"]
    sizes = ["8 x 2M", "1000 x 1024"]
    return [*sizes, "1000 x 64", "20 x 64"] if name in EVERY_SHAPE else sizes


PATHS: dict[str, dict[str, bool]] = {
    "for": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def compile_bound() -> ctypes.CDLL | None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    out = Path(tempfile.mkdtemp()) / "bound.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", out, Path(__file__).with_name("bound.c")], check=True)
    return ctypes.CDLL(str(out))


def bound_of(library: ctypes.CDLL, optimizer: torch.optim.Optimizer, threads: int) -> Callable[[], None]:
    """The pass over what the optimizer's next step reads and writes, for where pages lie makes a tenth of a time.

    Adafactor's states are left out: most have a number for a row or column.
    """
    columns, words, n_columns = array("Q"), array("q"), 0
    for p in optimizer.param_groups[0]["params"]:
        state = [s for s in optimizer.state[p].values() if s.dim()] if p in optimizer.state else []
        state = [] if isinstance(optimizer, goptim.Adafactor) else state
        tensors = [p, p.grad, *state]
        n_columns = len(tensors)
        columns.extend([t.data_ptr() for t in tensors] + [0] * (5 - n_columns))
        words.append(p.numel() * p.element_size() // 4)
    arguments = (
        ctypes.c_void_p(columns.buffer_info()[0]),
        ctypes.c_void_p(words.buffer_info()[0]),
        ctypes.c_int64(len(words)),
        ctypes.c_int(n_columns),
        ctypes.c_int(threads),
    )

    def run(keep: object = (columns, words)) -> None:
        library.bound(*arguments)

    return run


def measure(
    name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, threads: int, rounds: int, bound: ctypes.CDLL | None
) -> dict[str, float]:
    """The best time in seconds of a step of every contender."""
    torch.set_num_threads(threads)
    class_name, options = OPTIMIZERS[name]
    torchs = getattr(torch.optim, class_name)
    contenders = {"goptim": getattr(goptim, class_name)(parameters(shapes, dtype), **options)}
    for path, flags in PATHS.items():
        known = {flag: on for flag, on in flags.items() if flag in inspect.signature(torchs).parameters}
        if any(known.values()) or path == "for":
            contenders[path] = torchs(parameters(shapes, dtype), **options, **known)
    best: dict[str, float] = {}
    for i in tqdm(range(rounds), desc=f"{name}, {threads} threads", leave=False, disable=None):
        for path in [*contenders, "bound"] if bound else contenders:
            if path in ("for", "foreach") and i >= max(5, rounds // 4):
                continue  # the slow ones vary less
            optimizer = contenders.get(path, contenders["goptim"])
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad.clone()
            step = bound_of(bound, optimizer, threads) if path == "bound" else optimizer.step
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
            if path == "bound":
                step()  # the second time restores the values
            if i > 0:
                best[path] = min(best.get(path, seconds), seconds)
    return best


def conditions(dtype: torch.dtype) -> str:
    with open("/proc/cpuinfo") as f:
        cpu = next((line.partition(":")[2].strip() for line in f if "model name" in line), platform.processor())
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}; "
        f"{dtype}; load average {os.getloadavg()[0]:.1f} when it began"
    )


def update(path: Path, head: list[str], rows: dict[tuple[str, str, int], str]) -> None:
    """Put the table between two marks in a page. A brief one has the large tensors alone, on all threads."""
    marks = re.compile(r"(<!-- benchmarks/step\.py --update \S+?(, brief)? -->\n).*?(<!-- end -->)", re.DOTALL)
    text = path.read_text()
    found = marks.search(text)
    if not found:
        raise SystemExit(f"{path} has no marks for the table")
    if found[2]:
        most = max(threads for _, _, threads in rows)
        rows = {k: row for k, row in rows.items() if k[2] == most and k[1] == shapes_of(k[0])[0]}
    table = "\n".join([*head, *rows.values()]) + "\n"
    path.write_text(text[: found.end(1)] + table + text[found.start(3) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="for all optimizers; else each has its own")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--rounds", type=int, default=40, help="of 8 x 2M; smaller tensors take more")
    parser.add_argument("--update", type=Path, nargs="+", default=[], help="pages to put the table in")
    args = parser.parse_args()
    dtype, bound = getattr(torch, args.dtype), compile_bound()
    if "Muon" in args.optimizer and not hasattr(torch.optim, "Muon"):
        args.optimizer.remove("Muon")
    if "Muon" in args.optimizer and any(len(SHAPES[shape][0]) != 2 for shape in args.shapes or []):
        parser.error(f"Muon takes matrices: --shapes {' or '.join(repr(shape) for shape in shapes_of('Muon'))}")

    head = [
        f"{conditions(dtype)}.",
        "",
        "| optimizer | tensors | threads | a step, µs | against for-loop | foreach | fused | memory's speed |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    rows: dict[tuple[str, str, int], str] = {}
    print("\n".join(head))
    for name in args.optimizer:
        for shape in args.shapes or shapes_of(name):
            for threads in args.threads:
                rounds = max(2, int(args.rounds * ROUNDS.get(shape, 4)))
                memory = None if name == "Muon" else bound  # matrix products are not bound by it
                best = measure(name, SHAPES[shape], dtype, threads, rounds, memory)
                ratios = [f"{best[path] / best['goptim']:.2f}" if path in best else "" for path in [*PATHS, "bound"]]
                row = f"| {name} | {shape} | {threads} | {best['goptim'] * 1e6:.0f} | {' | '.join(ratios)} |"
                rows[name, shape, threads] = row
                print(row, flush=True)
    for page in args.update:
        update(page, head, rows)


if __name__ == "__main__":
    main()
