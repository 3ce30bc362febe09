"""Tests the commands, snippets and figures of the README."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pythons import Server

import goptim

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", README)


def run(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_python_snippets_run() -> None:
    model = torch.nn.Linear(3, 2)
    assert snippets("python")
    for code in snippets("python"):
        names: dict[str, object] = {"model": model}
        exec(code, names)
        optimizer = names["optimizer"]
        assert isinstance(optimizer, goptim.AdamW)
        model(torch.ones(3)).sum().backward()
        optimizer.step()


def test_go_snippets_compile(tmp_path: Path) -> None:
    assert snippets("go")
    for code in snippets("go"):
        program = (
            'package main\n\nimport "github.com/goptim/goptim/goptim"\n\nfunc main() {\n'
            f"weights := []float32{{1, 2}}\n{code}\nif err != nil {{\npanic(err)\n}}\n}}\n"
        )
        folder = ROOT / "build" / "_readme"  # inside the module, but excluded from ./...
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.go").write_text(program)
        run(Path(sys.executable).with_name("go"), "run", folder / "main.go")


def test_commands_are_tested() -> None:
    """test_packaging tests pip install, test_examples make tour, and test_demo make demo, make docs
    itself the site. Other targets must exist."""
    commands = [line for block in snippets("sh") for line in block.splitlines()]
    assert sorted(commands) == ["make demo", "make docs", "make test", "make tour", "pip install ."]
    for target in re.findall(r"`make ([a-z0-9-]+)", README):
        run("make", "-n", target)


def test_first_table_is_current() -> None:
    """`make bench` derives it from docs/benchmarks.md, and the first sentence repeats its figures."""
    table = runpy.run_path(str(ROOT / "benchmarks/summary.py"))["table"](ROOT / "docs/benchmarks.md")
    assert f"<!-- summary -->\n{chr(10).join(table)}\n<!-- end -->" in README
    steps = (ROOT / "docs/benchmarks.md").read_text().partition("<!-- goptim bench -->")[2].splitlines()
    speedups = {
        shapes: max(steps_of(steps, f"| AdamW | {shapes} |"), key=lambda cells: int(cells[2]))[4]
        for shapes in ("8 x 2M", "1000 x 64")
    }
    large, small = re.findall(r"(\d+) times", " ".join(README.partition("```")[0].split()))
    assert (int(large), int(small)) == (int(float(speedups["8 x 2M"])), int(float(speedups["1000 x 64"])))


def steps_of(lines: list[str], start: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(start)]


def test_make_prints_every_target() -> None:
    printed = {line.split()[0] for line in run("make", "--no-print-directory").splitlines()}
    assert printed == set(re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text()))


@pytest.mark.parametrize(
    "optimizer", [*(pytest.param(name, marks=pytest.mark.full) for name in ("SGD", "Adam")), "AdamW"]
)
def test_demo(optimizer: str, tmp_path: Path, server: Server) -> None:
    plot = tmp_path / "digits.png"
    done = server.run("examples/digits.py", "--epochs", 1, "--optimizer", optimizer, "--plot", plot)
    assert re.search(r"bit for bit.*: yes", done.stdout), done
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_bench_commands_are_understood(page: str, server: Server) -> None:
    """The options in a page exist. test_bench.py runs the commands."""
    text = (ROOT / page).read_text()
    commands = set(re.findall(r"python -m goptim bench([^`\n]*)", text))
    assert commands
    known = set(re.findall(r"--[a-z]+", server.run("-m", "goptim", "bench", "--help").stdout))
    options = set(re.findall(r"--[a-z]+", " ".join(commands))) | set(re.findall(r"(?m)^\| `(--[a-z]+)", text))
    assert options <= known


def test_bench_prints_a_table(server: Server) -> None:
    arguments = ["--optimizer", "AdamW", "--shapes", "few", "--threads", 1, "--rounds", 2]
    out = server.run("-m", "goptim", "bench", *arguments).stdout
    assert re.search(r"(?m)^\| AdamW \| 20 x 64 \| 1 \| \d+ \|( \d+\.\d\d \|){3,4}$", out), out
