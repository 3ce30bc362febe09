"""Runs tests with torch for arm64, in emulation: `make test-arm64`.

Nothing is installed. Debian's Python comes with apt, which has a private root here, and is unpacked with dpkg; qemu is
that on PATH, or comes in the same way. torch and what the tests need come from PyPI, with the hashes in this folder.
The extension is cross-built with zig. All of it stays in .venv-arm64.

Each version of torch has one process, which runs a few cases of each test (`--thin`): in emulation, an import takes
half a minute, and so does the first step, which imports torch's compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CACHE = ROOT / ".venv-arm64"
RELEASE, PYTHON = "bookworm", "python3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# The oldest supported version, and the last one whose wheel for arm64 on PyPI is for the CPU alone.
VERSIONS = ("2.6.0", "2.10.0")
UNAVAILABLE = 75  # the exit status if something could not be fetched: sysexits.h's EX_TEMPFAIL
OFFLINE = re.compile(
    "Temporary failure resolving|Could not resolve|Could not connect|Connection failed|connection timed out"
    "|Unable to connect|NewConnectionError|Max retries|ReadTimeout|ConnectTimeout|NameResolutionError"
    "|ConnectionResetError",
    re.IGNORECASE,
)

TESTS = [
    *("parity", "state", "safetensors", "adafactor", "lbfgs", "muon", "lion", "schedule_free", "sparse", "flush"),
    *("phase_clip", "phase_averages", "phase_zero", "phase_swa", "half", "half_kinds", "half_phase", "storage"),
    *("gather", "layout", "faults", "aliasing", "scalar_states"),
]
# Tests of Python's part of a step, which has many cases and is the same on every machine.
LEFT_OUT = ["stock_for_loop", "path_flags", "steps_counted", "learning_rate_schedules", "gradients_come_and_go"]
LEFT_OUT += ["read_as_debugger"]  # qemu does not have process_vm_readv
OLDEST = ["parity", "adafactor", "phase_clip", "half_phase", "lbfgs", "layout"]  # with the oldest torch, these alone
FORKS = ["forked_child_steps", "every_class_continues_in_a_forked_child"]
# What CI runs, in ten minutes: what depends most on the architecture, without the slowest tests.
BRIEF = ["parity", "state", "adafactor", "phase_clip", "phase_averages", "half", "sparse", "layout", "gather", "faults"]
SLOW = ["long_sums", "test_shapes", "special_values and Adafactor"]


class Unavailable(Exception):
    """Something cannot be fetched on this machine now."""


def call(*command: object, env: dict[str, str] | None = None) -> None:
    """Run a command, and show what it prints only if it fails."""
    words = [*map(str, command)]
    done = subprocess.run(words, cwd=CACHE, env=os.environ | (env or {}), capture_output=True, text=True)
    if done.returncode:
        said = f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        raise Unavailable(said) if OFFLINE.search(said) else RuntimeError(said)


@contextlib.contextmanager
def unless_done(path: Path, content: str):
    """A folder that is complete if it exists: it is created under another name first.

    Yields None if it exists and has that content, which is kept in a file next to it.
    """
    note = path.with_name(f"{path.name}.txt")
    if path.exists() and note.exists() and note.read_text() == content:
        yield None
        return
    fresh = path.with_name(f"{path.name}.new")
    for folder in (fresh, path):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    note.write_text(content)
    fresh.rename(path)


def fetch(versions: list[str]) -> None:
    """Fetch what is not there yet."""
    CACHE.mkdir(exist_ok=True)
    wanted = {"root": ("arm64", PYTHON, "libstdc++6"), "qemu": ("amd64", "qemu-user-static")}
    if shutil.which("qemu-aarch64"):
        del wanted["qemu"]
    for name, (architecture, *packages) in wanted.items():
        with unless_done(CACHE / name, " ".join([RELEASE, architecture, *packages])) as root:
            if root:
                unpack(root, architecture, *packages)
    for name in ("requirements", *(f"torch-{version}" for version in versions)):
        requirements = HERE / f"{name}.txt"
        with unless_done(CACHE / name, requirements.read_text()) as site:
            if site:
                install(site, requirements)


def unpack(root: Path, architecture: str, *packages: str) -> None:
    """Download Debian packages and what they depend on, and unpack them to a folder."""
    missing = [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]
    if missing or not KEYRING.exists():
        raise Unavailable(f"{' and '.join(missing) or KEYRING} not found: this needs Debian's apt")
    apt = CACHE / f"apt-{architecture}"
    shutil.rmtree(apt, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
        (apt / folder).mkdir(parents=True)
    (apt / "state/status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {RELEASE} main\n")
    (apt / "apt.conf").write_text(
        f'APT {{ Architecture "{architecture}"; Architectures {{ "{architecture}"; }}; Update::Error-Mode "any"; }};\n'
        f'Dir {{ State "{apt}/state"; State::status "{apt}/state/status"; Cache "{apt}/cache"; }};\n'
        f'Dir::Etc {{ main "-"; parts "{apt}/parts"; sourcelist "{apt}/sources.list"; sourceparts "{apt}/parts";'
        f' preferences "-"; preferencesparts "{apt}/parts"; }};\n'
        'Acquire { Languages "none"; Retries "2"; };\n'
        f'APT::Sandbox::User "{"root" if os.getuid() == 0 else ""}";\n'
    )
    env = {"APT_CONFIG": f"{apt}/apt.conf"}
    call("apt-get", "-q", "update", env=env)
    call("apt-get", "-qy", "--no-install-recommends", "--download-only", "install", *packages, env=env)
    for package in sorted(apt.glob("cache/archives/*.deb")):
        call("dpkg", "-x", package, root)
    shutil.rmtree(apt)


def install(site: Path, requirements: Path) -> None:
    """Install wheels for arm64, whose hashes pip checks."""
    platforms = [f"--platform=manylinux{x}_aarch64" for x in ("_2_28", "_2_27", "_2_17", "2014")]
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    call(sys.executable, "-m", "pip", "install", "-q", "--target", site, *options, *platforms, "-r", requirements)


def build() -> Path:
    """Cross-build the extension, and return a folder with the package, whose other files are symbolic links."""
    package = CACHE / "package"
    zig = f"{sys.executable} -m ziglang cc -target aarch64-linux-gnu.2.28"
    env = {"_PYTHON_HOST_PLATFORM": "linux-aarch64", "CC": zig}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", package, "--build-temp", CACHE / "build"]
    subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | env, check=True)
    folder = package / "goptim"
    for link in folder.iterdir():
        if link.is_symlink():
            link.unlink()
    for file in (ROOT / "python/goptim").iterdir():
        if file.suffix != ".so" and file.name != "__pycache__":
            (folder / file.name).symlink_to(file)
    return package


def python(version: str, package: Path, *words: object) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of an emulated Python with a version of torch."""
    qemu = shutil.which("qemu-aarch64") or str(CACHE / "qemu/usr/bin/qemu-aarch64-static")
    sites = [package, CACHE / f"torch-{version}", CACHE / "requirements", ROOT / "tests"]
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH" and not k.startswith("PYTHON")}
    env |= {
        "PYTHONPATH": os.pathsep.join(map(str, sites)),
        "PYTHONPYCACHEPREFIX": str(CACHE / "pycache"),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",  # the log has what a process wrote before a signal ended it
        "OMP_NUM_THREADS": "2",
    }
    command = [qemu, "-L", str(CACHE / "root"), str(CACHE / "root/usr/bin" / PYTHON)]
    script = CACHE / f"python-{version}"  # for the plugin: an emulated program can start scripts of this machine alone
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    return [*command, *map(str, words)], env | {"GOPTIM_PYTHON": str(script), "GOPTIM_NOW": str(now(version))}


def now(version: str) -> Path:
    """The file with the name of the test that runs, which the plugin writes."""
    return CACHE / f"now-{version}"


def ending(version: str, code: int) -> str:
    """How a process ended, and if pytest did not end it, in which test."""
    how = f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    if code in (0, 1) or not now(version).exists():  # pytest's, if all tests pass or some fail
        return how
    return f"{how}; the last test was {now(version).read_text()}"


def tests_of(version: str, brief: bool) -> list[str]:
    names, forks = (OLDEST, FORKS[:0]) if version == VERSIONS[0] else (TESTS, FORKS)
    if brief:
        names, forks = BRIEF, FORKS[:1]
    left_out = [f"({words})" for words in LEFT_OUT + SLOW * brief]
    files = [f"tests/test_{name}.py" for name in names]
    return ["-k", f"not ({' or '.join(left_out)})", *files, *(f"tests/test_processes.py::test_{x}" for x in forks)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fetch", action="store_true", help=f"only fetch; exit status {UNAVAILABLE} if offline")
    parser.add_argument("--brief", action="store_true", help=f"fewer tests, with torch {VERSIONS[-1]} alone")
    parser.add_argument("--optional", action="store_true", help="succeed if what the tests need cannot be fetched")
    parser.add_argument("--torch", action="append", choices=VERSIONS, help="a version of torch, instead of all")
    parser.add_argument("--python", nargs=argparse.REMAINDER, help="run Python with these arguments instead of tests")
    parser.add_argument("arguments", nargs="*", help="arguments of pytest instead of all tests")
    asked = parser.parse_args()
    versions = asked.torch or [*(VERSIONS[-1:] if asked.brief else VERSIONS)]
    try:
        fetch(versions)
    except Unavailable as e:
        print(f"{e}\nNOT TESTED: what the tests for arm64 need cannot be fetched, see above", file=sys.stderr)
        return 0 if asked.optional else UNAVAILABLE
    if asked.fetch:
        return 0
    package = build()
    runs = []
    for version in versions:
        tests = asked.arguments or tests_of(version, asked.brief)
        options = ["-q", "--thin", "--durations=15", "-p", "no:cacheprovider", "-p", "arm64.plugin"]
        command, env = python(version, package, *(asked.python or ["-m", "pytest", *options, *tests]))
        log = CACHE / f"torch-{version}.log"
        now(version).unlink(missing_ok=True)
        with log.open("w") as f:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=f, stderr=subprocess.STDOUT)
        runs.append((version, log, process, time.monotonic()))
    codes = []
    for version, log, process, start in runs:
        codes.append(process.wait())
        took = time.monotonic() - start
        print(f"torch {version} for arm64, {took:.0f} s:\n{log.read_text()}{ending(version, codes[-1])}", flush=True)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
