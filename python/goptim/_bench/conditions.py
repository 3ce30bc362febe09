"""What a benchmark ran on, and whether the machine was quiet enough for its figures to be trusted."""

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

# From where on a machine is called busy. Quiet ones stayed an order of magnitude below the first two.
OTHERS = 0.05  # of all cores' time, taken by other processes
STOLEN = 0.02  # of all cores' time, taken by other virtual machines
SPREAD = 1.5  # of a pass over memory, the median's time to the best one's
ENOUGH = 1.0  # seconds; /proc/stat counts in hundredths, so of less nothing can be said
LOAD = 0.5  # processes beyond our threads, where there is no /proc/stat


def conditions() -> dict[str, Any]:
    """The machine, the versions, and the load average now."""
    core = _native.core()
    go, _, bits = (core.Version() if core else "").partition(" simd=")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch_vectors": torch.backends.cpu.get_cpu_capability(),
        "go_vector_bits": int(bits or 0),
        "go": go.partition("-")[0],
        "goptim": goptim.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        # What changes the cost of torch's temporaries.
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
    """Of the last minute; -1 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def sentence(found: dict[str, Any], dtype: torch.dtype) -> str:
    """The conditions in a line above a table, as Markdown."""
    allocator = "".join(f"; {k}={v}" for k, v in found["allocator"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['torch_vectors']}; torch {found['torch']}; "
        f"goptim {found['goptim']} with {found['go']} and vectors of {found['go_vector_bits']} bits; "
        f"{str(dtype).removeprefix('torch.')}{allocator}; load average {found['load_before']:.1f} when it began."
    )


@dataclass
class Watch:
    """What the CPUs did in all blocks of ``with watch():`` together, in seconds."""

    seconds: float = 0.0
    others: float = 0.0  # of other processes
    stolen: float = 0.0  # of other virtual machines
    known: bool = True  # whether the system tells

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
    """Seconds of all processes, of this one, and stolen, since ever."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _wait, interrupts, soft, stolen = (
            int(x) / os.sysconf("SC_CLK_TCK") for x in fields[:8]
        )
    except (OSError, ValueError):
        return None
    return user + nice + system + interrupts + soft, sum(os.times()[:4]), stolen


def why_busy(watch: Watch, cores: int, threads: int, load_after: float, spreads: Sequence[float] = ()) -> list[str]:
    """Why the figures are not to be trusted; empty if the machine was quiet.

    Args:
        watch: what the CPUs did while it measured.
        cores: how many the machine has.
        threads: the most that were asked for.
        load_after: the load average at the end, judged where the system does not tell what the CPUs did.
        spreads: for each row of large tensors, how many times its best time the memory bound's median took.
    """
    reasons = []
    if not watch.known:
        if load_after > threads + LOAD:
            reasons.append(f"the load average was {load_after:.1f} at the end, with {threads} threads of its own")
    elif watch.seconds >= ENOUGH:
        everything = cores * watch.seconds
        if watch.others > OTHERS * everything:
            taken = watch.others / watch.seconds
            reasons.append(f"other processes took {taken:.2f} of {cores} cores ({OTHERS:.0%} of all are tolerated)")
        if watch.stolen > STOLEN * everything:
            share = watch.stolen / everything
            reasons.append(f"other virtual machines took {share:.1%} of the cores' time ({STOLEN:.0%} is tolerated)")
    wide = sum(spread > SPREAD for spread in spreads)
    if 3 * wide > len(spreads):
        reasons.append(
            f"memory's own speed changed: in {wide} of {len(spreads)} rows of large tensors, a median pass took more "
            f"than {SPREAD} times the best one"
        )
    return reasons


def judged(watch: Watch, found: dict[str, Any], threads: int, spreads: Sequence[float] = ()) -> str:
    """Note the end of a run in its conditions, and say whether the machine was quiet."""
    found["load_after"] = load_average()
    found["busy"] = why_busy(watch, found["cores"] or 1, threads, found["load_after"], spreads)
    return f"{verdict(found['busy'], watch)} Load average {found['load_after']:.1f} when it ended."


def verdict(reasons: list[str], watch: Watch) -> str:
    """What to say below a table about the machine."""
    if reasons:
        return f"**The machine was too busy to trust these figures**: {'; '.join(reasons)}."
    if not watch.known:
        return "The system does not tell what other processes did; the load average was low."
    if watch.seconds < ENOUGH:
        return f"Too short to say whether the machine was busy: {watch.seconds:.1f} s."
    others, stolen = max(0.0, watch.others) / watch.seconds, watch.stolen / watch.seconds
    return f"The machine was quiet: other processes took {others:.2f} cores, other virtual machines {stolen:.2f}."
