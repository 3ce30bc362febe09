"""The committed bindings are those that gopy generates from package bindings, and _core.pyi describes them."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from goptim import _core

GENERATE = Path(__file__).parents[1] / "bindings" / "generate.py"
PYTHON_TYPES = {"int64_t": "int", "double": "float", "char *": "str"}


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
