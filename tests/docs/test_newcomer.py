"""A new user's way: install the wheel, and copy the start page's commands and code, in its order."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT


def run(*command: object, cwd: Path, **variables: str) -> str:
    words = [str(word) for word in command]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_start_page(site, tmp_path: Path) -> None:
    """In an environment with nothing but pip, torch and NumPy, which are those of this one: they take gigabytes."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    wheels = sorted((ROOT / "dist").glob("goptim-*-manylinux*_x86_64.whl"))
    if not wheels:  # `make release` has not been run: build one for this machine
        builder = ROOT / ".venv/bin/python"
        run(
            builder, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, ROOT, cwd=tmp_path
        )
        wheels = sorted(tmp_path.glob("goptim-*.whl"))
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # torch's environment is after the new one, so that goptim is the wheel's.
    (Path(packages) / "over.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    # That environment has goptim too, of the same version, so pip would have nothing to do.
    options = ["-q", "--no-deps", "--ignore-installed"]

    code, ran = [], []
    for language, text in site["index.html"].code:
        if language == "python":
            code.append(text)
            continue
        assert language == "sh", (language, text)
        for command in text.strip().splitlines():
            if command == "pip install .":  # in a checkout: the wheel is what this builds
                run(python, "-m", "pip", "install", *options, wheels[-1], cwd=tmp_path)
            elif command == "python -m goptim run train.py":
                program = "\n".join(code).replace("import goptim as optim", "import torch.optim as optim")
                (tmp_path / "train.py").write_text(program.partition("print(optim.explain")[0])
                out = run(python, *command.split()[1:], cwd=tmp_path)
                assert re.search(r"goptim: AdamW: 1 optimizer, 100 steps; in Go: 4 parameters", out), out
            else:
                pytest.fail(f"the start page has another command: {command}")
            ran.append(command)
    assert ran == ["pip install .", "python -m goptim run train.py"]
    (tmp_path / "first.py").write_text("\n".join([*code, "print(optim.__file__)"]))
    out = run(python, "first.py", cwd=tmp_path)
    assert str(tmp_path / "venv") in out.splitlines()[-1]
    assert re.search(r"(?m)^loss \d\.\d{3}$", out)
    assert len(re.findall(r"(?m)^0\.\d .* go\b", out)) == 4, out
