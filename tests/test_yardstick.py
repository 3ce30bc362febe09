"""The yardstick detects different results, the programs update pages between marks, and the model is plausible."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pythons import Done, Server

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="needs a C compiler")


@pytest.fixture
def run(server: Server) -> Callable[..., Done]:
    return server.run


def page_with(tmp_path: Path, mark: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n<!-- {mark} -->\nold\n<!-- end -->\nAfter.\n")
    return page


def test_yardstick(run: Callable[..., Done], tmp_path: Path) -> None:
    page = page_with(tmp_path, "yardstick")
    done = run("benchmarks/yardstick", "--elements", 32, "--seconds", 0.01, "--update", page)
    assert done.returncode == 0, done.stderr
    assert all(f"| {name} | 32 |" in done.stdout for name in ("AdamW", "RMSprop", "Rprop"))
    assert page.read_text() == page.read_text().replace("old", "")
    assert done.stdout.strip() in page.read_text()


@pytest.mark.parametrize("optimizer", ["AdamW", "RMSprop", "Rprop"])
def test_yardstick_detects_different_results(optimizer: str, tmp_path: Path) -> None:
    yardstick = runpy.run_path(str(ROOT / "benchmarks/yardstick/__main__.py"), run_name="yardstick")
    kernel = yardstick["KERNELS"][optimizer]
    source = ROOT / "benchmarks/yardstick/kernels.c"
    yardstick["check_bits"](kernel, yardstick["compile_c"](source), 1024)
    with pytest.raises(
        SystemExit, match=rf"{kernel.c}: step 1, tensor \d, element \d+: goptim .*, C .* of 1024 differ"
    ):
        yardstick["check_bits"](kernel, yardstick["compile_c"](source, "-DBREAK=1"), 1024)


def test_memory(run: Callable[..., Done], tmp_path: Path) -> None:
    page = page_with(tmp_path, "yardstick --memory")
    done = run("benchmarks/yardstick", "--memory", "--elements", 64, "--seconds", 0.01, "--update", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in page.read_text()


def test_yardstick_with_bad_arguments(run: Callable[..., Done]) -> None:
    done = run("benchmarks/yardstick", "--elements", 17)
    assert done.returncode == 2
    assert "argument --elements: expected multiples of 16" in done.stderr


def test_overhead(run: Callable[..., Done], tmp_path: Path) -> None:
    page = page_with(tmp_path, "overhead")
    done = run("benchmarks/overhead.py", "--tensors", 1, 3, "--seconds", 0.001, "--update", page)
    assert done.returncode == 0, done.stderr
    assert "| µs | 1 x 64 | 3 x 64 |" in done.stdout
    assert done.stdout.strip() in page.read_text()


def test_scaling(run: Callable[..., Done], tmp_path: Path) -> None:
    page = page_with(tmp_path, "scaling")
    done = run("benchmarks/scaling.py", "--no-measure", "--update", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in page.read_text()


def test_scaling_model() -> None:
    model = runpy.run_path(str(ROOT / "benchmarks/scaling.py"), run_name="scaling")
    machine, step, rows = model["Machine"](nodes=4), model["step"], [1 << 21] * 8
    assert sum(n for n, _ in model["chunks_of"]([5, 100_000, 7], 2)) == 100_012
    queue, static, stealing = (step(machine, rows, 16, strategy) for strategy in model["STRATEGIES"])
    assert stealing <= static < queue
    slow_static, slow_stealing = (step(machine, rows, 16, strategy, slow=0.5) for strategy in model["STRATEGIES"][1:])
    assert slow_stealing < slow_static
    assert step(machine, rows, 1, "one queue") > step(machine, rows, 2, "one queue")
