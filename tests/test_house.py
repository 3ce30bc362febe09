"""Every optimizer is complete: a message names each part that is missing, and the file it belongs in.

The optimizers are those in Describe() of Go and in goptim.__all__. This file lists only exceptions, with the reason.
"""

import functools
import importlib
import json
import re
from pathlib import Path

import configurations
import derive
import golden
import imports
import pytest
import soak
import torch

import goptim
import goptim.hf
from goptim import _for_loop, _originals, _state
from goptim._bench import subjects
from goptim._step import GoStep

ROOT = Path(__file__).parents[1]
KINDS = json.loads(importlib.import_module("goptim._core").Describe())["kinds"]
SPECIFIED = {name: kind for kind in KINDS for name in kind["classes"]}

EXPORTED = [
    name
    for name in dict.fromkeys([*goptim.__all__, *_originals.CLASSES])
    if isinstance(c := getattr(goptim, name, None), type)
    and issubclass(c, torch.optim.Optimizer)
    and name != "Optimizer"
]

# Optimizers with their own test file instead of a row in tests/configurations.py. Their Go constructors have other
# signatures.
OWN_TESTS = {"LBFGS": "test_lbfgs.py", "Muon": "test_muon.py", "SparseAdam": "test_sparse.py"}
# `python -m goptim bench` does not measure these: it uses dense gradients and no closures. AMSGrad is `AdamW amsgrad`.
NOT_MEASURED = ("LBFGS", "SparseAdam", "AMSGrad")
# Gonum's Minimize supports only dense gradients.
NOT_GONUMS = ("SparseAdam",)
# Their New functions have other arguments than those of elementwise optimizers, or are used in another way.
OTHER_FUNCTIONS = ("Adafactor", "LBFGS", "Muon", "SparseAdam")


@functools.cache
def text(*patterns: str) -> str:
    """The concatenated text of the files that match some patterns."""
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def specification_of(name: str) -> str:
    """The name of a class in Go's description, which is the name of its torch class."""
    twin = getattr(getattr(goptim, name), "twin", None)
    return twin.__name__ if twin else name


def missing(name: str) -> list[str]:
    """The missing parts of an optimizer, each with the file it belongs in."""
    file, cls = name.lower(), getattr(goptim, name)
    found: list[str] = []

    def expect(there: object, where: str, what: str) -> None:
        if not there:
            found.append(f"{where}: {what}")

    def expect_text(pattern: str, what: str, where: str, *files: str) -> None:
        expect(re.search(pattern, text(*(files or [where]))), where, what)

    described = specification_of(name)
    if issubclass(cls, GoStep):
        there = described in SPECIFIED or described in HALVES.values()
        expect(there, f"goptim/{file}.go", f"no specification of {described}")
    expect_text(rf"(?m)^func New{name}\[", f"no function New{name}", f"goptim/{file}.go", "goptim/*.go")
    if name in OTHER_FUNCTIONS:
        where = "goptim/example_test.go"
        expect_text(rf"(?m)^func ExampleNew{name}\(", f"no ExampleNew{name}", where, "goptim/*_test.go")
        expect_text(rf"\[New{name}\]", f"no [New{name}] in its list", "goptim/doc.go")
    if name in OTHER_FUNCTIONS and name not in NOT_GONUMS:
        expect_text(
            rf"(?m)^func {name}\(|^type {name} ", f"no {name}", "goptim/gonumopt/methods.go", "goptim/gonumopt/*.go"
        )
    if name in _for_loop.CLASSES:
        python, keys = f"python/goptim/{file}.py", _for_loop.CLASSES[name].states
        there = tuple(s["key"] for s in SPECIFIED.get(described, {"states": []})["states"])
        expect(keys == there, python, f"states of {name}ForLoop are {keys}, and those in Go are {there}")
        expect(_for_loop.CLASSES[name].reference, python, f"no reference in {name}ForLoop")
        expect("https://" in (cls.__doc__ or ""), python, f"no link to a paper in the docstring of {name}")

    if cls is not getattr(torch.optim, name, None):
        expect_text(rf"import.*\b{name} as {name}\b", f"{name} is not imported", "python/goptim/__init__.py")
    else:
        expect(None, "python/goptim/__init__.py", f"{name} is torch's: no class of goptim is imported")
    if hasattr(torch.optim, name):
        expect(name in _originals.CLASSES, "python/goptim/_originals.py", f"no {name} among its names")
        expect(_state._states(name) or name == "LBFGS", "python/goptim/_state.py", f"no states of {name} in _STATES")
    if name not in NOT_MEASURED:
        measured = [title for title, subject in subjects.OPTIMIZERS.items() if subject.cls == name]
        expect(measured, "python/goptim/_bench/subjects.py", f"no {name} in OPTIMIZERS")
        for title in measured if hasattr(torch.optim, name) else ():  # others have rows after the next `make bench`
            expect_text(rf"(?m)^\| {title} \|", f"no rows of {title}: run `make bench`", "docs/benchmarks.md")

    if name in OWN_TESTS:
        expect((ROOT / "tests" / OWN_TESTS[name]).exists(), f"tests/{OWN_TESTS[name]}", "is not there")
    else:
        expect(name in configurations.ROWS, "tests/configurations.py", f"no {name} in ROWS")
        cases = json.loads(golden.PATH.read_text())["cases"]
        there = any(case["optimizer"] == name for case in cases)
        expect(there, "goptim/testdata/golden.json", f"no case of {name}: run `make golden`")
    if name in OWN_TESTS:
        expect(name in golden.RUNS, "tests/golden.py", f"no {name} in RUNS")
    for folder in ("torch", "go"):
        path = f"goptim/testdata/{folder}/{name}-float32.safetensors"
        expect((ROOT / path).exists(), path, "is not there: run `make golden`")
    if name in soak.OPTIMIZERS:
        for option in {word.partition("[")[0] for word in SPECIFIED.get(described, {"scalars": []})["scalars"]}:
            expect(option in soak.VALUES | soak.FLAGS, "tests/soak.py", f"no values of {option} in VALUES or FLAGS")
    if name not in _for_loop.CLASSES:
        expect_text(rf'"goptim\.{name}"', f"no Stop of {name} in TOUR", "examples/tour.py")

    for page in ("README.md", "CHANGELOG.md"):
        expect_text(rf"`{name}`", f"no `{name}`", page)
    return found


@pytest.mark.parametrize("name", EXPORTED)
def test_an_optimizer_has_its_pieces(name: str) -> None:
    assert missing(name) == [], "\n".join([f"{name} lacks", *missing(name)])


# Kinds of steps that together are the step of one class.
HALVES = {"MuonMomentum": "Muon", "MuonUpdate": "Muon"}


@pytest.mark.parametrize("name", SPECIFIED)
def test_what_go_describes_has_a_class(name: str) -> None:
    classes = {specification_of(n) for n in EXPORTED} | {goptim.hf.Adafactor.twin.__name__}
    wanted = name if name in classes else HALVES.get(name, name.removeprefix("Sparse"))
    if wanted == "Muon" and not hasattr(torch.optim, "Muon"):
        return
    where = f"python/goptim/{wanted.lower()}.py and python/goptim/__init__.py"
    assert wanted in classes, f"{where}: no class of what Go describes as {name}"
    if name.startswith("Sparse"):
        assert re.search(rf"(?m)^func New{name}\[", text("goptim/*.go")), f"goptim/sparse.go: no function New{name}"
        assert name in golden.RUNS, f"tests/golden.py: no {name} in RUNS"
        constructors = text("goptim/registry_test.go")
        assert re.search(rf'entry\("{name}"', constructors), f"goptim/registry_test.go: no entry of {name}"


@pytest.mark.parametrize("name", derive.files())
def test_derived_text_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == derive.files()[name], f"{name}: run `make generate`"


def test_every_class_of_torch_is_known() -> None:
    names = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)]
    unknown = {*names} - {*_originals.CLASSES} - {"Optimizer"}
    assert not unknown, f"python/goptim/_originals.py: no {', '.join(unknown)}"


def test_imports_have_no_circle() -> None:
    _, circle = imports.layers(imports.graph(imports.FIRST))
    assert not circle, f"python/goptim: {' imports '.join(circle)}"


def test_what_imports_are() -> None:
    module = """
import goptim.a
from goptim import b, nothing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from goptim.c import C
def f():
    if True:
        from goptim import d
"""
    known = {"goptim", *(f"goptim.{x}" for x in "abcd")}
    found = list(imports.imports(module, known))
    assert found == [
        ("goptim.a", imports.FIRST),
        ("goptim.b", imports.FIRST),
        ("goptim", imports.FIRST),
        ("goptim.c", imports.NEVER),
        ("goptim.d", imports.LATER),
    ]
    assert imports.layers({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ([], ["b", "c", "b"])
    assert imports.layers({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ([["c"], ["b"], ["a"]], [])
