"""The built extension's symbols, the sdist's files and, with the marker `packaging`, whole installations."""

import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from goptim import _core, _native

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
LOADERS = ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")
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
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", *LOADERS}


def test_extension_has_the_stable_abi():
    assert Path(_core.__file__).name == "_core.abi3.so"


@pytest.mark.parametrize("path", [ROOT / "setup.py", Path(_native.__file__)], ids=["setup.py", "import"])
def test_free_threaded_builds_of_python_are_refused(path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    with pytest.raises((SystemExit, ImportError), match="does not support free-threaded builds of Python"):
        runpy.run_path(str(path))


def test_windows_is_refused_by_setup(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "win-amd64")
    with pytest.raises(SystemExit, match="does not support Windows"):
        runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("platform", "go", "zig"),
    [
        ("linux-x86_64", {"GOOS": "linux", "GOARCH": "amd64"}, "x86_64-linux-gnu.2.28"),
        ("linux-aarch64", {"GOOS": "linux", "GOARCH": "arm64"}, "aarch64-linux-gnu.2.28"),
        ("linux-riscv64", {"GOOS": "linux"}, "riscv64-linux-gnu.2.28"),
        ("macosx-10.9-universal2", {"GOOS": "darwin", "GOARCH": "arm64"}, "aarch64-macos.13.0"),
        ("macosx-14.0-x86_64", {"GOOS": "darwin", "GOARCH": "amd64"}, "x86_64-macos.13.0"),
    ],
)
def test_names_of_platforms(platform, go, zig, monkeypatch):
    backend = runpy.run_path(str(ROOT / "bindings" / "backend.py"))
    monkeypatch.setattr(sysconfig, "get_platform", lambda: platform)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert (backend["go_target"](), backend["zig_target"]()) == (go, zig)


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


CROSS = {"linux-aarch64": "aarch64-linux-gnu.2.28", "macosx-13.0-arm64": "aarch64-macos.13.0"}


@pytest.fixture(scope="session")
def cross_built(sdist, tmp_path_factory):
    """Builds the extension for another platform, from an sdist in a new folder."""

    def build(platform):
        folder = tmp_path_factory.mktemp("cross built")
        with tarfile.open(sdist) as tar:
            tar.extractall(folder)
        [tree] = folder.iterdir()
        zig = f"{sys.executable} -m ziglang cc -target {CROSS[platform]}"
        env = os.environ | {"_PYTHON_HOST_PLATFORM": platform, "CC": zig}
        run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder / "lib", cwd=tree, env=env)
        return (folder / "lib" / "goptim" / "_core.abi3.so").read_bytes(), folder

    return build


@pytest.mark.packaging
@pytest.mark.parametrize("platform", CROSS)
def test_cross_built_extensions_are_reproducible(platform, cross_built):
    pytest.importorskip("ziglang")
    (first, folder), (second, _) = cross_built(platform), cross_built(platform)
    assert first == second
    for path in (folder, ROOT, Path.home(), Path(sys.prefix), sysconfig.get_path("include")):
        assert os.fsencode(path) not in first


@pytest.mark.packaging
def test_extension_for_macos(cross_built):
    """Its symbols are those of Python's limited API and libSystem. It exports its init function.

    zig's linker ignores the list of exported symbols, so that parts of Go's runtime are exported too.
    """
    ziglang = pytest.importorskip("ziglang")
    abi3info = pytest.importorskip("abi3info")
    libraries, undefined, exported, minimum = macho(cross_built("macosx-13.0-arm64")[0])
    assert libraries == ["/usr/lib/libSystem.B.dylib", "/usr/lib/libresolv.9.dylib"]
    assert minimum == 13 << 16
    assert exported - {"__mh_dylib_header", "___dso_handle"} <= {
        *("_PyInit__core", "_crosscall1", "_crosscall2", "__cgo_panic", "__cgo_topofstack")
    }
    assert "_PyInit__core" in exported
    api = {f"_{symbol.name}" for symbol in (*abi3info.FUNCTIONS, *abi3info.DATAS)}
    system = (Path(ziglang.__file__).parent / "lib/libc/darwin/libSystem.tbd").read_text()
    for name, library in undefined.items():
        assert name in api if library == 0 else library == 1 and re.search(rf"\b{name}\b", system), name


def macho(file):
    """A Mach-O file's libraries, the library of each undefined symbol, the exported symbols, and the macOS version.

    Libraries count from 1, and 0 is any that is loaded.
    """
    assert file[:8] == bytes.fromhex("cffaedfe0c000001")  # 64 bits, arm64
    libraries, symbols, minimum, at = [], None, 0, 32
    for _ in range(struct.unpack_from("<I", file, 16)[0]):
        command, size, *words = struct.unpack_from("<6I", file, at)
        if command == 0xC:  # LC_LOAD_DYLIB
            libraries.append(_text(file, at + words[0]))
        elif command == 0x2:  # LC_SYMTAB
            symbols = words
        elif command == 0x32:  # LC_BUILD_VERSION
            minimum = words[1]
        at += size
    table, count, strings, _ = symbols
    undefined, exported = {}, set()
    for i in range(count):
        name, kind, _, description, _ = struct.unpack_from("<IBBHQ", file, table + 16 * i)
        if kind & 0xE1 == 1 and not kind & 0xE:  # external and undefined
            undefined[_text(file, strings + name)] = description >> 8
        elif kind & 0x11 == 1:  # external and not private
            exported.add(_text(file, strings + name))
    return libraries, undefined, exported, minimum


def _text(file, at):
    return file[at : file.index(0, at)].decode()


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
