"""The tour trains with every optimizer, prints a row for each, plots, and reports bad arguments."""

import importlib
import re
import types
from pathlib import Path

import pytest
import torch
from configurations import BEYOND

import goptim
from goptim import _for_loop

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
    classes -= {"Optimizer", *_for_loop.OTHERS}
    assert classes <= of.keys()
    beyond = {_for_loop.name_in_goptim(name) for name in BEYOND}
    assert of.keys() - classes <= {"hf.Adafactor", *beyond}
    tolerant = {"LBFGS"}
    assert {row[1] for name, row in of.items() if name not in tolerant} == {"bits"}, out
    for name, (accuracy, _, for_loop, foreach, fused, _) in of.items():
        torch_class = getattr(torch.optim, "Adam" if name == "AMSGrad" else name, None)
        assert (for_loop != "-") == (torch_class is not None or name in beyond) or name == "hf.Adafactor"
        if name in ("Adam", "SGD"):
            assert "-" not in (foreach, fused)
        if name in ("SparseAdam", "LBFGS", "Muon"):
            assert (foreach, fused) == ("-", "-")
        assert 0 <= float(accuracy) <= 1
    assert max(float(row[0]) for row in of.values()) > 0.5
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
def test_bfloat16(monkeypatch, capsys, threads, tmp_path: Path) -> None:
    """A row for each way of rounding, with the memory that follows from the types of weights and states."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    program = importlib.import_module("bf16")
    page, plot = tmp_path / "page.md", tmp_path / "bf16.png"
    page.write_text("<!-- bf16 -->\nold\n<!-- end -->\n")
    run(program, monkeypatch, "--quick", "--threads", 1, "--plot", plot, "--update", page)
    out = capsys.readouterr().out
    rows = {
        cells[0]: list(map(float, (c.rstrip("%") for c in cells[1:])))
        for line in re.findall(r"(?m)^\| (.*) \|$", out)[1:]
        if not (cells := line.split(" | "))[0].startswith("-")
    }
    assert rows.keys() == program.WAYS.keys()
    assert {title: tuple(row[:3]) for title, row in rows.items()} == {
        "float32": (4, 8, 12),
        "bfloat16, nearest": (2, 4, 6),
        "bfloat16, stochastic": (2, 4, 6),
        "bfloat16, Kahan": (2, 6, 8),
        "bfloat16, master weights": (2, 8, 10),
        "bfloat16, master weights, float32 states": (2, 12, 14),
    }
    assert all(loss < 5.8 for row in rows.values() for loss in row[3:5])
    assert rows["float32"][5] == 100 > rows["bfloat16, nearest"][5]
    assert out.partition("\n\nlosses")[0] in page.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_which_has_every_optimizer(monkeypatch, threads) -> None:
    """Those that it leaves out have a reason."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    program = importlib.import_module("which")
    named = {name: getattr(goptim, name) for name in goptim.__all__}
    classes = {name for name, cls in named.items() if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)}
    assert program.optimizers().keys() | (program.LEFT_OUT.keys() & named.keys()) == classes
    assert program.SPECIAL.keys() <= classes
    run = program.Run(0.1, [3.0, 2.0, float("nan")])
    assert run.reached == float("inf")
    assert program.Run(0.1, [float(100 - i) for i in range(100)]).first_below(50.0) == 76


@pytest.mark.full
def test_which(monkeypatch, capsys, threads, tmp_path: Path) -> None:
    """A row for each optimizer and task, on the page too."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    program = importlib.import_module("which")
    page, plot = tmp_path / "page.md", tmp_path / "which.png"
    page.write_text("<!-- which -->\nold\n<!-- end -->\n")
    names = ["AdamW", "MuonWithAuxAdam", "SAM", "Lookahead", "SGDScheduleFree"]
    run(program, monkeypatch, "--quick", "--threads", 1, "--plot", plot, "--update", page, "--only", *names)
    out = capsys.readouterr().out
    titles = {program.optimizers()[name][0] for name in names}
    rows = [line.split(" | ") for line in re.findall(r"(?m)^\| (.*) \|$", out)]
    assert sorted(row[0] for row in rows if row[0] != "optimizer") == sorted([*titles, *titles])
    assert {len(row) for row in rows} == {7, 8}
    assert out.partition("\n\nlosses")[0] in page.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


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
