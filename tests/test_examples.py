"""The tour takes every optimizer, prints a row for each, and draws; and says what it expects of its arguments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import goptim

ROOT = Path(__file__).parents[1]
CELL = r" +(\d+|-)"


def tour(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/tour.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_tour(tmp_path: Path) -> None:
    done = tour("--steps", 22, "--out", tmp_path / "tour.png")
    assert done.returncode == 0, done.stderr
    rows = re.findall(rf"(?m)^([\w.]+) +(\d\.\d{{4}}) +(bits|\d\.\de-\d+|-){CELL}{CELL}{CELL} +(\d+)$", done.stdout)
    of = {name: row for name, *row in rows}
    classes = {name for name in goptim.__all__ if isinstance(getattr(goptim, name), type)} - {"Optimizer"}
    assert classes <= of.keys()
    assert of.keys() - classes <= {"hf.Adafactor"}
    tolerant = {"LBFGS"}
    assert {row[1] for name, row in of.items() if name not in tolerant} == {"bits"}, done.stdout
    for name, (accuracy, _, for_loop, foreach, fused, _) in of.items():
        twin = getattr(torch.optim, "Adam" if name == "AMSGrad" else name, None)
        assert (for_loop != "-") == (twin is not None) or name == "hf.Adafactor"
        if name in ("Adam", "SGD"):
            assert "-" not in (foreach, fused)
        if name in ("SparseAdam", "LBFGS", "Muon"):
            assert (foreach, fused) == ("-", "-")
        assert 0 <= float(accuracy) <= 1
    assert max(float(row[0]) for row in of.values()) > 0.5
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "0"], "argument --steps: expected a whole number, at least 1, got '0'"),
        (["--steps", "many"], "argument --steps: expected a whole number, at least 1, got 'many'"),
        (["--threads", "-1"], "argument --threads: expected a whole number, at least 1, got '-1'"),
        (
            ["--out", "tour.jpg"],
            "argument --out: expected the name of a .png file in a folder that exists, got 'tour.jpg'",
        ),
        (["--out", "/nowhere/tour.png"], "in a folder that exists, got '/nowhere/tour.png'"),
    ],
    ids=str,
)
def test_tour_says_what_it_expects(arguments: list[str], says: str) -> None:
    done = tour(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
