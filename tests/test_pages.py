"""The pages of docs: their snippets run, and each page with snippets has a test that runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import goptim

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
START = "site/pages/index.md"
# Programs: each snippet is one.
PROGRAMS = ("recipes/distributed.md", "recipes/go.md", "recipes/gonum.md")


def snippets(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", (DOCS / page).read_text())


def test_start(capsys) -> None:
    """What the start page says is one program, with the README's lines where it includes them."""
    page = (DOCS / START).read_text()
    use = re.findall(r"(?s)<!-- use -->\n(.*?)<!-- end", (ROOT / "README.md").read_text())[0]
    code = re.findall(r"(?ms)^```python\n(.*?)^```", page.replace("<!-- include README.md@use -->\n", use))
    assert len(code) == 4
    names: dict[str, object] = {}
    exec("\n".join(code), names)
    assert type(names["optimizer"]) is goptim.AdamW
    out = capsys.readouterr().out
    assert re.search(r"loss \d\.\d{3}\n", out)
    assert re.search(r"(?m)^0\.0 .* go\b", out)


@pytest.mark.parametrize("code", snippets("numerics.md"))
def test_numerics(code: str, threads, capsys) -> None:
    """PyPI's builds of torch have what the page says about them, on a machine with AVX."""
    torch.manual_seed(0)
    exec(code, {})
    printed = re.findall(r"^[\d.]+", capsys.readouterr().out)
    avx, mkl = torch.backends.cpu.get_cpu_capability().startswith("AVX"), torch.backends.mkl.is_available()
    if "of 7 elements" in code and avx:
        assert int(printed[0]) > 0
    if "square roots" in code and mkl:
        assert float(printed[0]) < 25


def test_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 2)
    optimizer = goptim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    [code] = snippets("state.md")
    exec(code, {"goptim": goptim, "model": model, "optimizer": optimizer})


@pytest.mark.full
@pytest.mark.parametrize("code", snippets("recipes/distributed.md"))
def test_distributed(code: str, tmp_path: Path) -> None:
    if "fully_shard" in code:
        pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2").__dict__["fully_shard"]
    (tmp_path / "train.py").write_text(code)
    [command] = [c.strip() for c in snippets("recipes/distributed.md", "sh")]
    word, *words = command.split()
    assert word == "torchrun"
    start = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*start, *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.parametrize("page", ["recipes/go.md", "recipes/gonum.md"])
def test_go(page: str) -> None:
    """The programs print what their comments say."""
    folder = ROOT / "build" / f"_{Path(page).stem}"  # inside the module, but excluded from ./...
    folder.mkdir(parents=True, exist_ok=True)
    for code in snippets(page, "go"):
        (folder / "main.go").write_text(code)
        go = [Path(sys.executable).with_name("go"), "run", folder / "main.go"]
        out = subprocess.run(go, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout
        assert out.splitlines() == re.findall(r"(?m)\) // (.*)$", code)


def test_every_page_with_snippets_is_tested() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for path in DOCS.rglob("*.md"):
        page = path.relative_to(DOCS)
        if re.search(r"(?m)^```(python|go)$", path.read_text()):
            named = rf'snippets(_of)?\("{page}"|snippets\("{page.name}"\)|"docs/{page}"|"docs" / "{page}"'
            assert re.search(named, tests) or str(page) in (START, *PROGRAMS), f"docs/{page}: no test runs its snippets"
