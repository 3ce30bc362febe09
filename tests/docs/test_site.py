"""The built site: its links, the pages of optimizers and their programs."""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch
from conftest import HTML, ROOT

sys.path[:0] = [str(ROOT / "docs/site"), str(ROOT / "tests")]
optimizers = importlib.import_module("optimizers")
packages = importlib.import_module("packages")

GO = packages.read(ROOT)


def test_links_within_the_site(site) -> None:
    wrong = []
    for name, page in site.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = urllib.parse.unquote(parts.path)
            target = Path(os.path.normpath(HTML / Path(name).parent / path)) if path else HTML / name
            target = target / "index.html" if target.is_dir() else target
            place = target.relative_to(HTML).as_posix() if target.is_relative_to(HTML) else None
            if place is None or not target.exists():
                wrong.append(f"{name}: {link} does not exist")
            elif parts.fragment and place in site:
                anchor = urllib.parse.unquote(parts.fragment)
                if anchor not in site[place].anchors:
                    wrong.append(f"{name}: {link} has no such anchor")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_nothing_is_loaded_from_elsewhere(site) -> None:
    """A page needs no other server: external addresses are links to follow, and well-formed. They are not fetched."""
    for name, page in site.items():
        text = page.path.read_text()
        loaded = re.findall(
            r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="((?:https?:)?//[^"]*)"', text
        )
        assert not loaded, f"{name} loads {loaded}"
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            assert parts.scheme in ("", "https", "data"), f"{name}: {link}"
            assert parts.scheme != "https" or re.fullmatch(r"[\w.-]+\.\w+", parts.netloc), f"{name}: {link}"


def test_every_optimizer_has_a_page(site) -> None:
    index = site["optimizers/index.html"]
    for name in optimizers.classes():
        place = f"{optimizers.place(name)}.html"
        assert f"optimizers/{place}" in site
        assert place in index.links


def test_states_are_those_of_the_description() -> None:
    """The memory of AdamW, which is known, and of optimizers whose states depend on options."""
    assert optimizers.total("AdamW") == "8"
    assert optimizers.total("SGD") == "0"
    assert any(
        "`momentum_buffer` | that of the parameter | 4 | 2 | with `momentum=0.9`" in x for x in optimizers.memory("SGD")
    )
    assert any("`max_exp_avg_sq`" in line and "`amsgrad=True`" in line for line in optimizers.memory("Adam"))
    assert any("one per row" in line for line in optimizers.memory("Adafactor"))


def test_square_roots_are_found() -> None:
    known = {
        "SGD": False,
        "Adamax": False,
        "ASGD": False,
        "Rprop": False,
        "Adafactor": False,
        "AdamW": True,
        "RAdam": True,
    }
    assert {name: optimizers.has_roots(name) for name in known} == known


@pytest.mark.parametrize("name", optimizers.classes())
def test_python_programs(name: str) -> None:
    text, expected = optimizers.python_program(name, optimizers.go_program(name, GO))
    torch.manual_seed(0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(text, {})
    assert out.getvalue().strip() == expected


def test_go_programs() -> None:
    """Programs that are not examples of `go test` compile and run."""
    programs = {name: program for name in optimizers.classes() if (program := optimizers.go_program(name, GO))}
    texts = {name: text for name, (text, _) in programs.items() if text.startswith("package ")}
    folder = ROOT / "build/_optimizers"  # inside the module, but excluded from ./...
    for name, text in texts.items():
        (folder / name.lower()).mkdir(parents=True, exist_ok=True)
        (folder / name.lower() / "main.go").write_text(text + "\n")
    command = ["go", "vet", *(f"./build/_optimizers/{name.lower()}" for name in texts)]
    subprocess.run(command, cwd=ROOT, check=True)
    for name, text in texts.items():
        if "// Output:" not in text:
            subprocess.run(
                ["go", "run", f"./build/_optimizers/{name.lower()}"], cwd=ROOT, check=True, stdout=subprocess.PIPE
            )
            break


def test_code_has_a_language(site) -> None:
    for name, page in site.items():
        for language, text in page.code:
            assert language or not text.strip(), f"{name}: {text}"
