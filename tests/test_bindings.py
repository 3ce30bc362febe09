"""The committed bindings are those that gopy generates from package bindings, and _core.pyi describes them."""

import ast
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configurations import CLASSES, ELEMENTWISE, class_of, oracle_of
from rows import CONSTANTS, DESCRIPTION, KINDS, snake_case

from goptim import _core

GENERATE = Path(__file__).parents[1] / "bindings" / "generate.py"
PYTHON_TYPES = {"int64_t": "int", "double": "float", "char *": "str"}


@pytest.mark.full
def test_committed_bindings_are_fresh():
    pytest.importorskip("pybindgen", reason="generating the bindings needs pybindgen (the dev extra)")
    check = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_stub_matches_the_extension():
    stub = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text())
    said = {
        node.name: {a.arg: ast.unparse(a.annotation) for a in [*node.args.posonlyargs, *node.args.args]}
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    functions = {name: f for name, f in vars(_core).items() if callable(f)}
    assert said.keys() == functions.keys()
    for name, f in functions.items():
        assert list(inspect.signature(f).parameters) == list(said[name]), name
        for parameter, c_type in re.findall(r"type: (\w+): (.+)", f.__doc__ or ""):
            assert said[name][parameter] == PYTHON_TYPES[c_type], f"{parameter} of {name}"


def test_layouts_are_those_of_c():
    """Rows and groups are written in C and read in Go."""
    structs = {
        name: {snake_case(field): at for field, at in fields.items()} for name, fields in DESCRIPTION["structs"].items()
    }
    assert _core.layouts() == {"structs": structs, "constants": CONSTANTS}
    assert structs["Row"]["state"][1] >= 6 * 8
    assert structs["Group"]["scalars"][1] >= 16 * 8


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_description_is_of_the_class(name):
    """What Go says of a class is what the class hands over: keys of the group in order, and the states."""
    kind = KINDS[_core.Kind(name)]
    for options in ({}, {"momentum": 0.9}, {"centered": True}, {"amsgrad": True}, {"momentum": -1.0}):
        opt = class_of(name)([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        [group] = opt.param_groups
        if not group.keys() >= options.keys():
            continue
        group |= options
        missing = kind["classes"][name]
        words = []
        read = opt.options(group)
        for scalar in kind["scalars"]:
            key, index = re.fullmatch(r"(\w+)(?:\[(\d)\])?", scalar).groups()
            value = read.get(key, missing.get(key))
            words.append(value if index is None else value[int(index)])
        numbers = opt.kind.numbers(read)
        assert numbers == tuple(words)
        assert len(opt.extra(group)) == len(kind["extra"])
        assert all(type(x) is bool for x, key in zip(numbers, kind["scalars"], strict=True) if key in kind["flags"])
        states = [s for s in kind["states"] if asked(s, group)]
        found = [s for s in opt.kind.states_of(read, opt.extra(group)) if s is not None]
        assert [s["key"] for s in states] == [s.key for s in found]
        assert [s.get("scalar", False) for s in states] == [s.shape in ("scalar", "float") for s in found]
        opt.param_groups[0]["params"][0].grad = torch.ones(1)
        opt.step()
        [state] = opt.state.values() if opt.state else [{}]
        absent = set(getattr(opt, "absent", ())) if state else set()
        assert set(state) == {s.key for s in found} | ({"step"} if kind["counts"] else set()) | absent
        assert [s.get("of") == "float" for s in states] == [type(state[s.key]) is float for s in found]


def asked(state, group):
    value = group[state["when"]] if "when" in state else 1
    return value > 0 if state.get("above") else value != 0


def test_description_of_sparse_steps():
    kinds = {k["name"]: k for k in KINDS}
    for name in ("SGD", "Adagrad"):
        dense, sparse = kinds[name], kinds[f"Sparse{name}"]
        assert sparse["scalars"] == dense["scalars"]
        assert sparse["sums"] == (name == "Adagrad")
        for key in ("momentum", "weight_decay", "lr_decay"):
            opt = class_of(name)([torch.nn.Parameter(torch.ones(1))], lr=0.1)
            group = opt.param_groups[0]
            if key in group:
                group[key] = 0.1
                part = opt.part_class(opt, 0, group, opt._ask(group))
                assert (part.sparse_kind is None) == (key in sparse["zero"])


def test_kinds_have_room():
    for kind in KINDS:
        assert len(kind["scalars"]) + len(kind["extra"]) <= 28  # SCALARS in gather.c
        assert all(_core.Kind(name) == KINDS.index(kind) for name in kind["classes"])


OPTIMIZERS = [k for k in KINDS if k["name"] in CLASSES]
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS, ids=[k["name"] for k in OPTIMIZERS])

# What Go refuses and torch does not.
STRICTER = {
    ("AdamWLegacy", "clipping_threshold"), ("ASGD", "alpha"), ("ASGD", "lambd"), ("BitsandbytesAdEMAMix", "t_alpha"),
    ("BitsandbytesAdEMAMix", "t_beta3"), ("LAMB", "betas"), ("LAMB", "max_grad_norm"), ("NAdamW", "clipping_threshold"),
    ("Prodigy", "beta3"), ("Prodigy", "slice_p"), ("Rprop", "step_sizes"),
}  # fmt: skip
# What Go accepts instead of None.
INFINITE = {("ADOPT", "clip_exp")}
# What Go accepts because a group may have it later.
LATER = {("Prodigy", "lr")}


def torch_optimizer(kind, **options):
    oracle = oracle_of(kind["name"])
    for key, keys in getattr(oracle, "parts", {}).items():
        default = inspect.signature(oracle).parameters[key].default
        options[key] = tuple(options.pop(k, x) for k, x in zip(keys, default, strict=True))
    return oracle([torch.nn.Parameter(torch.ones(1))], **{"lr": 0.1} | options)


@every_optimizer
def test_defaults_are_torchs(kind):
    defaults = oracle_of(kind["name"])([torch.nn.Parameter(torch.ones(1))]).defaults
    for key, text in kind["defaults"].items():
        theirs = defaults[key] if isinstance(defaults[key], tuple) else (defaults[key],)
        assert tuple(map(float, text.split())) == theirs, f"goptim/{kind['name'].lower()}.go: the default of {key}"


@every_optimizer
def test_ranges_are_torchs(kind):
    """torch accepts the ends of a range that are of it, and refuses those that are not, and what is beyond an end."""
    for key, text in kind["ranges"].items():
        intervals = text.split()
        if intervals == ["-"]:
            continue
        usual = torch_optimizer(kind).defaults[key]
        if isinstance(usual, tuple) and len(intervals) == 1:
            intervals *= len(usual)
        for i, interval in enumerate(intervals):
            if interval == "-":  # any number
                continue
            for end, beyond, bracket in zip(
                interval[1:-1].split(","), (-math.inf, math.inf), (interval[0], interval[-1]), strict=True
            ):
                x = float(end)
                refused = [x] * (bracket in "()") + [math.nextafter(x, beyond)] * (not math.isinf(x))
                if bracket in "[]" and (kind["name"], key) not in INFINITE | LATER:
                    torch_optimizer(kind, **with_element(key, usual, i, x))
                for y in refused if (kind["name"], key) not in STRICTER else ():
                    where = f"goptim/{kind['name'].lower()}.go: the range of {key} is {text}"
                    assert not accepts(kind, **with_element(key, usual, i, y)), f"{where}, and torch accepts {y}"


def accepts(kind, **options):
    try:
        torch_optimizer(kind, **options)
    except ValueError as e:
        return re.search(r"nvalid|should be", str(e)) is None
    return True


def with_element(key, usual, i, x):
    if not isinstance(usual, tuple):
        return {key: x}
    return {key: (*usual[:i], x, *usual[i + 1 :])}
