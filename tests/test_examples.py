"""The tour trains with every optimizer, prints a row for each, plots, and reports bad arguments."""

import importlib
import re
import types
from pathlib import Path

import pytest
import torch
from configurations import BEYOND

import goptim

ROOT = Path(__file__).parents[1]
CELL = r" +(\d+|-)"


@pytest.fixture
def tour(monkeypatch: pytest.MonkeyPatch, threads: object) -> types.ModuleType:
    """The program, imported as a module."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("tour")


def run(tour: types.ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["tour.py", *map(str, arguments)])
    tour.main()


ROW = rf"(?m)^([\w.]+) +(\d\.\d{{4}}) +(bits|\d\.\de-\d+|-){CELL}{CELL}{CELL} +(\d+)$"


@pytest.mark.filterwarnings("ignore:No artists with labels")  # in the panels of other families
def test_a_tour_of_one(tour, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(tour, "TOUR", [stop for stop in tour.TOUR if stop.title == "NAdam"])
    run(tour, monkeypatch, "--steps", 5, "--out", tmp_path / "tour.png")
    [(name, _, equal, *_)] = re.findall(ROW, capsys.readouterr().out)
    assert (name, equal) == ("NAdam", "bits")
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
def test_tour(tour, monkeypatch, capsys, tmp_path: Path) -> None:
    run(tour, monkeypatch, "--steps", 22, "--out", tmp_path / "tour.png")
    out = capsys.readouterr().out
    rows = re.findall(ROW, out)
    of = {name: row for name, *row in rows}
    named = {name: getattr(goptim, name) for name in goptim.__all__}
    classes = {name for name, cls in named.items() if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)}
    classes -= {"Optimizer"}
    assert classes <= of.keys()
    assert of.keys() - classes <= {"hf.Adafactor"}
    tolerant = {"LBFGS"}
    assert {row[1] for name, row in of.items() if name not in tolerant} == {"bits"}, out
    for name, (accuracy, _, for_loop, foreach, fused, _) in of.items():
        twin = getattr(torch.optim, "Adam" if name == "AMSGrad" else name, None)
        assert (for_loop != "-") == (twin is not None or name in BEYOND) or name == "hf.Adafactor"
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
def test_tour_with_bad_arguments(tour, monkeypatch, capsys, arguments: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as e:
        run(tour, monkeypatch, *arguments)
    assert e.value.code == 2
    assert says in capsys.readouterr().err
