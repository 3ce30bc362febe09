"""Measure the CPU seconds of a command relative to a fixed loop, and compare the ratio with the recorded one.

    python tests/cost.py [--record] COMMAND [ARGUMENT ...]

The ratio does not depend on the speed of the machine, so it shows whether the tests have become slower. The program
fails if the command fails, or if the ratio is more than 1.5 times the one in tests/cost.json. --record writes the ratio
there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

RECORD = Path(__file__).with_suffix(".json")
GROWN = 1.5

# Similar to the tests: mostly Python, with small and large arrays in C.
LOOP = """
import time
import numpy as np
begin = time.process_time()
counts = {}
for i in range(8_000_000):
    counts[i & 1023] = counts.get(i & 511, 0) ^ i
small, large = np.ones(16, np.float32), np.arange(1 << 20, dtype=np.float32)
for i in range(1_000_000):
    small = np.maximum(small, 0.5)
for i in range(500):
    large = np.sqrt(large * large + 1)
print(time.process_time() - begin)
"""


def calibrate() -> float:
    """The CPU seconds of the loop, the minimum of three runs."""
    command = [sys.executable, "-c", LOOP]
    return min(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3))


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the ratio into tests/cost.json")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    before = calibrate()
    used, began = cpu_seconds_of_children(), time.monotonic()
    code = subprocess.call(options.command)
    used, wall = cpu_seconds_of_children() - used, time.monotonic() - began
    if code:
        sys.exit(code)
    loop = min(before, calibrate())
    ratio = used / loop
    print(f"the core: {used:.0f} CPU seconds in {wall:.0f} s; the calibration loop: {loop:.2f}; ratio {ratio:.1f}")
    if options.record:
        how = f"{' '.join(options.command)}; {os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f} at the end"
        found = {"ratio": round(ratio, 1), "cpu_seconds": round(used), "loop_seconds": round(loop, 2), "measured": how}
        RECORD.write_text(json.dumps(found, indent=2) + "\n")
        return
    if not RECORD.exists():
        sys.exit("no ratio is recorded to compare with: make record-cost, on an idle machine")
    recorded = json.loads(RECORD.read_text())["ratio"]
    if ratio > GROWN * recorded:
        sys.exit(f"the core has grown: recorded was {recorded}, and up to {GROWN * recorded:.1f} is accepted")


if __name__ == "__main__":
    main()
