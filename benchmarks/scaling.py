"""Simulate how a step of AdamW scales with cores, memory channels and NUMA nodes.

    python benchmarks/scaling.py [--rounds 200] [--no-measure] [--update docs/performance.md]

Workers wake up and take chunks of the rows' concatenated elements. A chunk takes the time of its arithmetic or of its
share of the memory bandwidth, whichever is longer. The memory of another node is slower. The first table compares the
predictions for one and two threads with measurements on this machine, which also provide the inputs. --no-measure uses
the inputs of the machine on which the program was written.
"""

from __future__ import annotations

import argparse
import ctypes
import heapq
import math
import random
import statistics
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
BYTES = 28  # of memory traffic per element of AdamW: four tensors read, three written
STATES = 16 / 28  # the states' share of the traffic


@dataclass(frozen=True)
class Machine:
    compute: float = 0.42  # ns per element in cache
    core: float = 55.0  # GB/s of one core
    node: float = 70.0  # GB/s of all channels of a node
    cache: float = 150.0  # GB/s of one core if everything is in the last-level cache
    cache_size: float = 32e6  # bytes per eight cores
    nodes: int = 1
    remote: float = 0.6  # relative bandwidth of another node's memory
    wake: float = 8e3  # ns to wake a sleeping worker (futex); 1.5e3 for a spinning OpenMP thread
    call: float = 0.5e3  # ns that the caller spends per worker that it wakes
    take: float = 60.0  # ns per chunk, and as much again per 8 workers that share a counter
    row: float = 120.0  # ns per part of a row


def module(name: str) -> ModuleType:
    """Import another program of this folder."""
    path = FOLDER / name / "__main__.py" if (FOLDER / name).is_dir() else FOLDER / f"{name}.py"
    spec = util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec
    assert spec.loader
    found = util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look the module up here
    spec.loader.exec_module(found)
    return found


def workloads() -> dict[str, list[int]]:
    from goptim._bench.subjects import SHAPES

    names = ("big", "resnet50", "gpt2", "small")
    return {SHAPES[name].title: [math.prod(shape) for shape in SHAPES[name].shapes] for name in names}


def chunks_of(rows: list[int], workers: int) -> list[tuple[int, int]]:
    """The number of elements and of row parts in each chunk, as package engine divides them."""
    total = sum(rows)
    size = max(1 << 14, (total // (workers * 32) + 63) & ~63)
    ends, end = [], 0
    for n in rows:
        end += n
        ends.append(end)
    chunks, row = [], 0
    for at in range(0, total, size):
        stop, parts = min(at + size, total), 1
        while ends[row] < stop:
            row, parts = row + 1, parts + 1
        if ends[row] == stop and row + 1 < len(ends):
            row += 1
        chunks.append((stop - at, parts))
    return chunks


STRATEGIES = ("one queue", "static shares", "static, then stealing")


def step(m: Machine, rows: list[int], workers: int, strategy: str, slow: float = 1.0, seed: int = 0) -> float:
    """The nanoseconds of a step. ``slow`` is the relative speed of worker 1."""
    chunks, rng = chunks_of(rows, workers), random.Random(seed)
    cached = sum(rows) * BYTES * 16 / 28 < m.cache_size * max(1, workers / 8)
    per_node = min(workers, max(1, workers / m.nodes))
    local = m.cache if cached else min(m.core, m.node / per_node)

    def cost(worker: int, chunk: tuple[int, int], home: bool) -> float:
        """``home``: whether the states are on the worker's node. Parameters and gradients are spread over all nodes."""
        n, parts = chunk
        far = 0.0 if cached else (m.nodes - 1) / m.nodes
        away = far * (1 - STATES) + (0.0 if home else far * STATES)
        bytes_ns = n * BYTES / local * (1 - away + away / m.remote)
        queue = m.take * (1 + workers / 8 * (strategy == "one queue"))
        return (max(n * m.compute, bytes_ns) + queue + parts * m.row) / (slow if worker == 1 else 1)

    if workers == 1:
        return sum(cost(0, chunk, True) for chunk in chunks)
    ready = [
        ((workers - 1) * m.call if k == 0 else k * m.call + m.wake * rng.uniform(0.5, 1.5), k) for k in range(workers)
    ]
    if strategy == "one queue":
        heapq.heapify(ready)
        for chunk in chunks:
            at, k = heapq.heappop(ready)
            heapq.heappush(ready, (at + cost(k, chunk, False), k))
        return max(at for at, k in ready)
    bounds = [len(chunks) * k // workers for k in range(workers + 1)]
    shares = [chunks[bounds[k] : bounds[k + 1]] for k in range(workers)]
    if strategy == "static shares":
        return max(at + sum(cost(k, chunk, True) for chunk in shares[k]) for at, k in ready)
    heapq.heapify(ready)
    end = 0.0
    while ready:
        at, k = heapq.heappop(ready)
        victim = k if shares[k] else max(range(workers), key=lambda v: len(shares[v]))
        if not shares[victim]:
            end = max(end, at)
            continue
        chunk = shares[victim].pop(0 if victim == k else -1)
        heapq.heappush(ready, (at + cost(k, chunk, victim == k), k))
    return end


def typical(*arguments: object, slow: float = 1.0) -> float:
    return statistics.median(step(*arguments, slow=slow, seed=seed) for seed in range(7))  # type: ignore[arg-type]


def measured(rounds: int) -> tuple[Machine, list[str]]:
    """The inputs measured on this machine, and a table of predictions and measurements."""
    import torch

    import goptim

    yardstick = module("yardstick")
    library, bound = yardstick.compile_c(FOLDER / "yardstick/kernels.c"), yardstick.compile_c(yardstick.BOUND)
    kernel = yardstick.KERNELS["AdamW"]
    small = yardstick.measure(kernel, 1 << 14, 1, library, bound)
    n = 1 << 22
    columns = yardstick.Columns(kernel, n, library, bound)
    addresses, words = array("Q", columns.addresses), array("q", [n])
    passes = {
        threads: lambda threads=threads: bound.bound(
            ctypes.c_void_p(addresses.buffer_info()[0]), ctypes.c_void_p(words.buffer_info()[0]), ctypes.c_int64(1),
            ctypes.c_int(4), ctypes.c_int(threads),
        )
        for threads in (1, 2)
    }  # fmt: skip
    clocks = {1: time.thread_time, 2: time.perf_counter}  # CPU time excludes other processes
    best = {n: yardstick.best_of({n: run}, rounds * 0.02, clocks[n])[n] for n, run in passes.items()}
    m = Machine(
        compute=small["ours"],
        core=BYTES * n / best[1] / 1e9,
        node=BYTES * n / min(best.values()) / 1e9,
        cache=BYTES / small["bound"],
    )
    lines = ["| tensors | threads | predicted, µs | measured, µs | predicted / measured |", "|---|--:|--:|--:|--:|"]
    for name, rows in workloads().items():
        parameters = [torch.randn(n, requires_grad=True) for n in rows]
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer = goptim.AdamW(parameters)
        optimizer.step()
        tiny = [
            torch.zeros(16, requires_grad=True) for _ in rows
        ]  # as many tensors, to measure the per-tensor overhead
        for p in tiny:
            p.grad = torch.ones_like(p)
        empty = goptim.AdamW(tiny)
        empty.step()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = yardstick.best_of({"step": optimizer.step, "overhead": empty.step}, rounds * 0.02, clocks[threads])
            one_thread = sum(rows) < 1 << 19  # the limit of package engine
            predicted = (
                step(m, rows, 1 if one_thread else threads, "one queue") + times["overhead"] * 1e9 - m.row * len(rows)
            )
            lines.append(
                f"| {name} | {threads} | {predicted / 1e3:.0f} | {times['step'] * 1e6:.0f} "
                f"| {predicted / 1e9 / times['step']:.2f} |"
            )
    return m, lines


def table(m: Machine, rounds: int) -> Iterator[str]:
    """A table of speedups over one core of the same machine."""
    big = replace(m, node=307.0, core=min(m.core, 40.0), nodes=1)  # eight channels of DDR5-4800
    yield (
        f"Inputs: {m.compute:.2f} ns per element of arithmetic; {big.core:.0f} GB/s per core, 307 GB/s for eight "
        f"channels; memory of another node at {m.remote:.0%}; {m.wake / 1e3:.0f} µs to wake a worker.\n"
    )
    yield (
        "| tensors | scheduling | 2 cores | 8 | 16 | 64 | 64 on 2 nodes | on 4 "
        "| share of the bound | one core at half speed | spinning threads |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, rows in workloads().items():
        one = typical(big, rows, 1, "one queue")
        for strategy in STRATEGIES:
            cells = [one / typical(big, rows, cores, strategy) for cores in (2, 8, 16, 64)]
            for nodes in (2, 4):
                cells.append(one / typical(replace(big, nodes=nodes, node=307 / nodes), rows, 64, strategy))
            four = replace(big, nodes=4, node=307 / 4)
            share = sum(rows) * max(BYTES / 307, big.compute / 64) * cells[-1] / one
            reached = f"{share:.2f}" if share < 1 else ""
            yield (
                f"| {name} | {strategy} | {' | '.join(f'{x:.1f}' for x in cells)} | {reached} "
                f"| {one / typical(four, rows, 64, strategy, slow=0.5):.1f} "
                f"| {one / typical(replace(four, wake=1.5e3, call=50.0), rows, 64, strategy):.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="of measurements, 50 per second")
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("--update", type=Path, help="the page to put the tables in")
    args = parser.parse_args()
    machine, lines = (Machine(), []) if args.no_measure else measured(args.rounds)
    lines = [*lines, "", *table(machine, args.rounds)] if lines else list(table(machine, args.rounds))
    print("\n".join(lines))
    if args.update:
        from goptim._bench import pages

        pages.put(args.update, "scaling", "\n".join(lines))


if __name__ == "__main__":
    main()
