"""Which cases of a test are in the core, and which tests one of several processes runs."""

import heapq
import itertools
from collections import Counter
from typing import Any

# Tests that one of several processes runs, because what they share is slow to make: files or functions, and a name.
TOGETHER = {
    "tests/test_bench.py::test_compile": "server",
    "tests/test_bench.py::test_programs": "server",
    "tests/test_compile.py": "compiler",
    "tests/test_distributed.py": "ranks",
    "tests/test_processes.py": "server",
    "tests/test_readme.py": "server",
    "tests/test_run.py": "server",
    "tests/test_yardstick.py": "server",
}
# Those that take minutes. They start first: otherwise one process still runs them when the others have nothing to do.
FIRST = ("server", "compiler", "ranks", "tests/test_limits.py")


def factors(callspec: Any) -> dict[str, str]:
    """A case's parameters, with their values as text. The options of a configuration count as parameters."""
    from configurations import Configuration  # it imports torch's compiler, which xdist's controller does not need

    found = {}
    for name, value in callspec.params.items():
        if not isinstance(value, Configuration):
            found[name] = str(value)
            continue
        found["optimizer of it"] = value.optimizer
        found[name] = value.name if value.unusual else "usual"
        found |= {} if value.unusual else {f"{name}.{k}": str(v) for k, v in value.options.items()}
    return found


def covering(cases: list[dict[str, str]], *what: str | int) -> set[int]:
    """The indices of cases that have all combinations of values that any case has.

    Args:
        cases: their parameters.
        what: the combinations: names of parameters, with spaces between, or a number of parameters, which stands for
            all sets of so many. Without any, all pairs. Each optimizer of a configuration has its own.
    """

    def combinations(case: dict[str, str]) -> set[tuple]:
        names = [name for name in case if name != "optimizer of it"]
        sets: list[tuple[str, ...]] = []
        for words in what or (2,):
            sets += itertools.combinations(names, min(words, len(names))) if isinstance(words, int) else [words.split()]
        return {(case.get("optimizer of it"), *((name, case[name]) for name in chosen)) for chosen in sets}

    each = [combinations(case) for case in cases]
    missing, chosen = set().union(*each), set()
    used: Counter[tuple[str, str]] = Counter()
    # The case with the most missing combinations comes next, and among these one of values that were used the least.
    # Both only get worse, so a case at the head of the queue is first if it stays there.
    queue = [(-len(has), 0, i) for i, has in enumerate(each)]
    heapq.heapify(queue)
    while missing:
        i = queue[0][2]
        now = (-len(each[i] & missing), sum(used[value] for value in cases[i].items()), i)
        if now != queue[0]:
            heapq.heapreplace(queue, now)
            continue
        heapq.heappop(queue)
        chosen.add(i)
        missing -= each[i]
        used.update(cases[i].items())
    return chosen
