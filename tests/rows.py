"""Rows and groups as Go reads them, for tests that call Step without gather.c, and the layouts of their structs."""

import ctypes
import json
import re

from goptim import _core

DESCRIPTION = json.loads(_core.Describe())
KINDS = DESCRIPTION["kinds"]
CONSTANTS = DESCRIPTION["constants"]


def snake_case(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def structure(name):
    """The ctypes structure of a Go struct. Scalars are float64, types are bytes, other arrays are 64-bit words."""
    at, fields = 0, []
    for field, (offset, size) in sorted(DESCRIPTION["structs"][name].items(), key=lambda item: item[1][0]):
        if not field:
            continue
        if offset > at:
            fields.append((f"padding{at}", ctypes.c_uint8 * (offset - at)))
        one = ctypes.c_double if field == "Scalars" else ctypes.c_uint8 if field.endswith("Type") else None
        one = one or {4: ctypes.c_uint32}.get(size, ctypes.c_uint64)
        length = size // ctypes.sizeof(one)
        fields.append((snake_case(field), one * length if length > 1 else one))
        at = offset + size
    whole = type(name, (ctypes.Structure,), {"_fields_": fields})
    assert ctypes.sizeof(whole) == DESCRIPTION["structs"][name][""][1]
    return whole


Row, Group = structure("Row"), structure("Group")


def kind_named(name):
    return KINDS[_core.Kind(name)]


def scalar_states(name):
    """The number of scalar states of a class; they come first."""
    return sum(s.get("scalar", False) for s in kind_named(name)["states"])


def float32_states(name):
    """The states of a class that are float32 for 16-bit parameters too."""
    kinds = [kind for kind in KINDS if name in kind["classes"]]
    return {s["key"] for kind in kinds for s in kind["states"] if s.get("narrow") == "float32"}


def counts(name):
    return kind_named(name)["counts"]


def row(n, param, grad, step=0, states=(), scalars=0, rows=0, cols=0):
    """A float32 row in which the first ``scalars`` states are scalar."""
    r = Row(n=n, param=param, grad=grad, step=step, rows=rows, cols=cols)
    r.param_type = r.grad_type = CONSTANTS["float32"]
    r.step_type = CONSTANTS["float32"] if step else CONSTANTS["none"]
    for k, address in enumerate(states):
        r.state[k], r.state_type[k] = address, CONSTANTS["float32"]
        if k < scalars:
            r.flags |= CONSTANTS["FirstScalar"] << k
    return r


def table(*rows):
    return (Row * len(rows))(*rows)


def call_groups(name, tables, scalars, threads=2):
    """Step groups with the same scalars in Go. A table is an address and the number of rows."""
    groups, at = [], 0
    for address, rows in reversed(tables):
        group = Group(next=at, table=address, rows=rows, count=len(scalars))
        group.scalars[: len(scalars)] = scalars
        at = ctypes.addressof(group)
        groups.append(group)
    return _core.Step(_core.Kind(name), at, threads)
