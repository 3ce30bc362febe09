"""Every optimizer is complete: a message names each part that is missing, and the file it belongs in.

The optimizers are those in Describe() of Go and in goptim.__all__. This file lists only exceptions, with the reason.
"""

import functools
import importlib
import itertools
import json
import re
from pathlib import Path

import configurations
import core
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
    and name not in _for_loop.OTHERS
]
# The classes with the arguments and results of another package's, which are in a module of its name.
IN_MODULES = [name for name in _for_loop.CLASSES if _for_loop.name_in_goptim(name) != name]

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
    torch_class = getattr(configurations.class_of(name), "torch_class", None)
    return configurations.name_of(torch_class) if torch_class else name


def missing(name: str) -> list[str]:
    """The missing parts of an optimizer, each with the file it belongs in."""
    file, cls, title = name.lower(), configurations.class_of(name), _for_loop.name_in_goptim(name)
    module = title.rpartition(".")[0]
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
        python, keys = f"python/goptim/{module or file}.py", _for_loop.CLASSES[name].states
        specified = SPECIFIED.get(described, {"states": [], "counts": False})
        there = ("step",) * specified["counts"] + tuple(s["key"] for s in specified["states"])
        expect(keys == there, python, f"states of {name}ForLoop are {keys}, and those in Go are {there}")
        expect(_for_loop.CLASSES[name].reference, python, f"no reference in {name}ForLoop")
        expect("https://" in (cls.__doc__ or ""), python, f"no link to a paper in the docstring of {name}")

    if module:
        expect_text(rf"\b{module} as {module}\b", f"{module} is not imported", "python/goptim/__init__.py")
        exported = importlib.import_module(f"goptim.{module}").__all__
        expect(cls.__name__ in exported, f"python/goptim/{module}.py", f"no {cls.__name__} in __all__")
        expect(name == name_of(title), f"python/goptim/{module}.py", f"{title} is {name}, expected {name_of(title)}")
    elif cls is not getattr(torch.optim, name, None):
        expect_text(rf"\b{name} as {name}\b", f"{name} is not imported", "python/goptim/__init__.py")
    else:
        expect(None, "python/goptim/__init__.py", f"{name} is torch's: no class of goptim is imported")
    if hasattr(torch.optim, name):
        expect(name in _originals.CLASSES, "python/goptim/_originals.py", f"no {name} among its names")
        expect(_state._states(name) or name == "LBFGS", "python/goptim/_state.py", f"no states of {name} in _STATES")
    if name not in NOT_MEASURED:
        measured = [of for of, subject in subjects.OPTIMIZERS.items() if subject.cls == name]
        expect(measured, "python/goptim/_bench/subjects.py", f"no {name} in OPTIMIZERS")
        for subject in measured if hasattr(torch.optim, name) else ():  # others have rows after the next `make bench`
            expect_text(rf"(?m)^\| {subject} \|", f"no rows of {subject}: run `make bench`", "docs/benchmarks.md")

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
        expect_text(rf"`{title}`", f"no `{title}`", page)
    return found


def name_of(title: str) -> str:
    """The name in Go of a class in a module: TimmLion of timm.Lion."""
    module, _, name = title.rpartition(".")
    return "".join(word.capitalize() for word in module.split("_")) + name


@pytest.mark.parametrize("name", [*EXPORTED, *IN_MODULES])
def test_an_optimizer_has_its_pieces(name: str) -> None:
    assert missing(name) == [], "\n".join([f"{name} lacks", *missing(name)])


@pytest.mark.parametrize("name", _for_loop.OTHERS)
def test_a_class_with_other_arguments_has_its_pieces(name: str) -> None:
    """These have tests of their own: what they share with optimizers of parameters alone."""
    cls = getattr(goptim, name)
    assert name in goptim.__all__
    assert issubclass(cls, torch.optim.Optimizer)
    assert "https://" in cls.__doc__, f"no link to a paper in the docstring of {name}"
    for page in ("README.md", "CHANGELOG.md"):
        assert f"`{name}`" in text(page), f"{page}: no `{name}`"
    assert f"`{cls.reference}`" in text("README.md"), "README.md: run `make generate`"
    for where in ("tests/test_*.py", "tests/integrations/test_*.py"):
        assert f"goptim.{name}" in text(where), f"{where}: no test of {name}"


# Kinds of steps that together are the step of one class, or another method of classes.
HALVES = {
    "MuonMomentum": "Muon",
    "MuonUpdate": "Muon",
    "AuxAdam": "MuonWithAuxAdam",
    "ScheduleFreeSwitch": "AdamWScheduleFree",
}


@pytest.mark.parametrize("name", SPECIFIED)
def test_what_go_describes_has_a_class(name: str) -> None:
    classes = {specification_of(n) for n in (*EXPORTED, *IN_MODULES)} | {goptim.hf.Adafactor.torch_class.__name__}
    classes |= {*_for_loop.OTHERS}
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


def test_derived_text_is_current() -> None:
    for name, text in derive.files().items():
        assert (ROOT / name).read_text() == text, f"{name}: run `make generate`"


def test_the_changelog_has_the_version() -> None:
    versions = re.findall(r"(?m)^## (\d\S*) - \d{4}-\d{2}-\d{2}$", text("CHANGELOG.md"))
    assert versions[:1] == [goptim.__version__], (
        "CHANGELOG.md: the first version is not that of python/goptim/__init__.py"
    )


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


def test_what_is_listed_to_run_together_exists() -> None:
    for name in core.TOGETHER:
        path, _, function = name.partition("::")
        assert not function or f"\ndef {function}(" in (ROOT / path).read_text(), f"tests/core.py: {name}"
        assert (ROOT / path).exists(), f"tests/core.py: {name}"


def test_cases_of_the_core_have_all_pairs() -> None:
    cases = [dict(zip("abc", map(str, x), strict=True)) for x in itertools.product(range(4), range(3), range(2))]
    for what, size, n in (((), 2, 12), ((1,), 1, 4), ((3,), 3, 24), (("a c", "b"), 1, 8)):
        chosen = [cases[i] for i in core.covering(cases, *what)]
        assert len(chosen) == n
        for names in itertools.combinations("abc", size):
            assert {tuple(c[x] for x in names) for c in chosen} == {tuple(c[x] for x in names) for c in cases}
