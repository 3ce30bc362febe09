"""The built extension's symbols, the sdist's files and, with the marker `packaging`, whole installations."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from goptim import _core

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LOAD = """
import importlib.util, pathlib, sysconfig
[path] = pathlib.Path(sysconfig.get_path("platlib"), "goptim").glob("_core.abi3.so")
spec = importlib.util.spec_from_file_location("goptim._core", path)
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
print(core.Version())
"""  # `import goptim` would require torch


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def elf():
    elffile = pytest.importorskip("elftools.elf.elffile", reason="reading the extension needs pyelftools")
    with open(_core.__file__, "rb") as f:
        yield elffile.ELFFile(f)


def test_extension_exports_only_its_init_function(elf):
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    assert [s.name for s in symbols if s.name and s["st_shndx"] != "SHN_UNDEF"] == ["PyInit__core"]


def test_extension_links_only_the_c_library(elf):
    needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}


def test_extension_has_the_stable_abi():
    assert Path(_core.__file__).name == "_core.abi3.so"


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """An sdist of the working tree, built in a copy because setuptools leaves files behind."""
    tree = tmp_path_factory.mktemp("sdist") / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    run(sys.executable, "setup.py", "-q", "sdist", cwd=tree)
    [path] = (tree / "dist").iterdir()
    return path


def test_sdist_is_complete(sdist):
    with tarfile.open(sdist) as tar:
        has = {name.partition("/")[2] for name in tar.getnames()}
    suffixes = {".go", ".s", ".c", ".h", ".map", ".py", ".pyi"}
    sources = (path for folder in ("goptim", "internal", "bindings", "python") for path in (ROOT / folder).rglob("*"))
    needs = {str(path.relative_to(ROOT)) for path in sources if path.suffix in suffixes}
    needs |= {"go.mod", "go.sum", "setup.py", "pyproject.toml", "README.md", "LICENSE", "python/goptim/py.typed"}
    assert not needs - has
    assert not [name for name in has if name.endswith((".so", ".pyc"))]


def make_venv(path, python=sys.executable):
    run(python, "-m", "venv", path)
    return path / "bin" / "python"


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    """A wheel of the sdist, built without Go and a C compiler: pip installs them as build requirements."""
    folder = tmp_path_factory.mktemp("wheel")
    bare = {k: v for k, v in os.environ.items() if k not in ("GOPTIM_GO", "CC", "PYTHONPATH")} | {"PATH": ""}
    python = make_venv(folder / "venv")
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist, env=bare)
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.packaging
def test_sdist_builds_a_stable_abi_wheel_without_go_or_a_compiler(wheel):
    assert "-cp310-abi3-" in wheel.name


@pytest.mark.packaging
def test_wheel_has_the_benchmark(wheel):
    with zipfile.ZipFile(wheel) as file:
        assert {"goptim/_bench/__init__.py", "goptim/_bench/bound.c", "goptim/py.typed"} <= set(file.namelist())


@pytest.mark.packaging
@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_loads(wheel, version, tmp_path):
    installed = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    works = [p for p in installed if p and subprocess.run([p, "-c", ""], capture_output=True).returncode == 0]
    if not works:
        pytest.skip(f"no Python {version} on this machine")
    python = make_venv(tmp_path / "venv", works[0])
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    assert run(python, "-X", "dev", "-W", "error", "-c", LOAD, env={"PATH": ""}).startswith("go1.27")
