"""Counts the rows that a step passes to Go."""

import contextlib

from goptim import _core


@contextlib.contextmanager
def rows_per_call():
    """The number of rows of each step in Go, which runs as usual."""
    calls = []
    step_groups = _core.step_groups

    def counted(*args):
        done = step_groups(*args)
        if args[-1] > 0 and type(done) is int and done > 0:  # not only asked or checked
            calls.append(done)
        return done

    _core.step_groups = counted
    try:
        yield calls
    finally:
        _core.step_groups = step_groups
