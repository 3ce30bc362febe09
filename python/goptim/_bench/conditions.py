"""The machine that a benchmark ran on, and whether it was quiet enough to trust the figures."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import goptim
from goptim import _native

# Above these limits a machine is busy. Quiet machines stayed an order of magnitude below the first two.
OTHERS = 0.05  # share of all cores' time used by other processes
STOLEN = 0.02  # share of all cores' time used by other virtual machines
SPREAD = 1.5  # median time of a pass over memory, divided by the best
ENOUGH = 1.0  # seconds; /proc/stat counts in hundredths, which is too coarse for less
LOAD = 0.5  # load average in excess of the benchmark's threads, if there is no /proc/stat


def conditions() -> dict[str, Any]:
    """The machine, the versions, and the load average now."""
    core = _native.core()
    go, _, bits = (core.Version() if core else "").partition(" simd=")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()} {platform.system()}",
        "torch_vectors": torch.backends.cpu.get_cpu_capability(),
        "go_vector_bits": int(bits or 0),
        "go": go.partition("-")[0],
        "goptim": goptim.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        # These variables change the cost of torch's temporaries.
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_") or k in _ALLOCATORS},
        "load_before": load_average(),
    }


_ALLOCATORS = ("GLIBC_TUNABLES", "LD_PRELOAD")


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_average() -> float:
    """The load average of the last minute; -1 if the system does not provide it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def sentence(found: dict[str, Any], dtype: torch.dtype) -> str:
    """The line of conditions above a table, as Markdown."""
    allocator = "".join(f"; {k}={v}" for k, v in found["allocator"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['machine']}, {found['torch_vectors']}; "
        f"torch {found['torch']}; goptim {found['goptim']} with {found['go']} "
        f"and vectors of {found['go_vector_bits']} bits; "
        f"{str(dtype).removeprefix('torch.')}{allocator}; load average {found['load_before']:.1f} at the start."
    )


@dataclass
class Watch:
    """CPU seconds used by others during all ``with watch():`` blocks."""

    seconds: float = 0.0
    others: float = 0.0  # other processes
    stolen: float = 0.0  # other virtual machines
    known: bool = True  # whether the system provides them

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        start, before = time.perf_counter(), _cpu_times()
        yield
        self.seconds += time.perf_counter() - start
        after = _cpu_times()
        if before and after:
            busy, ours, stolen = (a - b for a, b in zip(after, before, strict=True))
            self.others += busy - ours
            self.stolen += stolen
        else:
            self.known = False


def _cpu_times() -> tuple[float, float, float] | None:
    """CPU seconds since boot: of all processes, of this process, and stolen by other virtual machines."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _wait, interrupts, soft, stolen = (
            int(x) / os.sysconf("SC_CLK_TCK") for x in fields[:8]
        )
    except (OSError, ValueError):
        return None
    return user + nice + system + interrupts + soft, sum(os.times()[:4]), stolen


def reasons_busy(watch: Watch, cores: int, threads: int, load_after: float, spreads: Sequence[float] = ()) -> list[str]:
    """The reasons not to trust the figures; empty if the machine was quiet.

    Args:
        watch: the CPU time during the measurement.
        cores: the machine's number of cores.
        threads: the benchmark's largest number of threads.
        load_after: the load average at the end, used if the system does not provide CPU times.
        spreads: for each row of large tensors, the memory bound's median time divided by its best.
    """
    reasons = []
    if not watch.known:
        if load_after > threads + LOAD:
            reasons.append(f"the load average was {load_after:.1f} at the end, and the benchmark had {threads} threads")
    elif watch.seconds >= ENOUGH:
        everything = cores * watch.seconds
        if watch.others > OTHERS * everything:
            taken = watch.others / watch.seconds
            reasons.append(f"other processes used {taken:.2f} of {cores} cores (the limit is {OTHERS:.0%})")
        if watch.stolen > STOLEN * everything:
            share = watch.stolen / everything
            reasons.append(f"other virtual machines used {share:.1%} of the cores' time (the limit is {STOLEN:.0%})")
    wide = sum(spread > SPREAD for spread in spreads)
    if 3 * wide > len(spreads):
        reasons.append(
            f"the memory bandwidth varied: in {wide} of {len(spreads)} rows of large tensors, the median pass took "
            f"more than {SPREAD} times the best pass"
        )
    return reasons


def judged(watch: Watch, found: dict[str, Any], threads: int, spreads: Sequence[float] = ()) -> str:
    """Complete the conditions at the end of a run, and return the line below the table."""
    found["load_after"] = load_average()
    found["busy"] = reasons_busy(watch, found["cores"] or 1, threads, found["load_after"], spreads)
    return f"{verdict(found['busy'], watch)} Load average {found['load_after']:.1f} at the end."


def verdict(reasons: list[str], watch: Watch) -> str:
    """The sentence below a table about the machine."""
    if reasons:
        return f"**The machine was too busy to trust these figures**: {'; '.join(reasons)}."
    if not watch.known:
        return "The system does not provide the CPU time of other processes; the load average was low."
    if watch.seconds < ENOUGH:
        return f"The measurement was too short to tell whether the machine was busy: {watch.seconds:.1f} s."
    others, stolen = max(0.0, watch.others) / watch.seconds, watch.stolen / watch.seconds
    return f"The machine was quiet: other processes used {others:.2f} cores, other virtual machines {stolen:.2f}."
