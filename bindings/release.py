"""Build the sdist and the wheels of a release twice, compare them byte for byte, and check them: ``make release``.

    python bindings/release.py linux/x86_64 linux/aarch64 …

The second build has an empty build cache. Both have the time stamp of the last commit. Nothing is uploaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"


def run(*command: object, **variables: str) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    if subprocess.run(words, cwd=ROOT, env=os.environ | variables).returncode:
        sys.exit(f"release: {' '.join(words)} failed")


def make(target: str, folder: Path, *arguments: str, **variables: str) -> None:
    """Make a target that writes one file to dist, and move the file to a folder."""
    shutil.rmtree(DIST, ignore_errors=True)
    run("make", "--no-print-directory", target, *arguments, **variables)
    [path] = DIST.iterdir()
    shutil.move(path, folder / path.name)
    print(f"  {path.name}: {hashlib.sha256((folder / path.name).read_bytes()).hexdigest()}", flush=True)


def build(folder: Path, platforms: list[str], **variables: str) -> None:
    folder.mkdir()
    make("sdist", folder, **variables)
    for platform in platforms:
        system, machine = platform.split("/")
        before = set(folder.iterdir())
        make("wheel", folder, f"OS={system}", f"ARCH={machine}", **variables)
        [wheel] = set(folder.iterdir()) - before or [None]
        expected = ("macosx_" if system == "macos" else "manylinux_", f"_{machine}.whl")
        if wheel is None or not all(part in wheel.name for part in expected):
            sys.exit(f"release: the wheel for {platform} is {wheel and wheel.name}, expected {'…'.join(expected)}")


def version() -> str:
    [found] = re.findall(r'(?m)^__version__ = "(.*)"$', (ROOT / "python/goptim/__init__.py").read_text())
    return str(found)


def main() -> None:
    platforms = sys.argv[1:]
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    if changed:
        print(f"release: there are changes that are not committed:\n{changed}", file=sys.stderr)
    epoch = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    variables = {"SOURCE_DATE_EPOCH": epoch.stdout.strip()}
    with tempfile.TemporaryDirectory() as temporary:
        first, second = Path(temporary, "first"), Path(temporary, "second")
        build(first, platforms, **variables)
        build(second, platforms, **variables, GOCACHE=f"{temporary}/cache", ZIG_GLOBAL_CACHE_DIR=f"{temporary}/zig")
        names = sorted(path.name for path in first.iterdir())
        other = sorted(path.name for path in second.iterdir())
        if names != other:
            sys.exit(f"release: the builds have {names} and {other}")
        different = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
        if different:
            sys.exit(f"release: the builds of {', '.join(different)} differ")
        misnamed = [name for name in names if not name.startswith(f"goptim-{version()}")]
        if misnamed:
            sys.exit(f"release: {', '.join(misnamed)}: expected version {version()}")
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for name in names:
            shutil.copy2(first / name, DIST / name)
    files = sorted(DIST.iterdir())
    wheels = [path for path in files if path.suffix == ".whl"]
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    run(sys.executable, "-m", "abi3audit", "--strict", *wheels)
    for wheel in wheels:
        if "manylinux" in wheel.name:
            run(sys.executable, "-m", "auditwheel", "show", wheel)
    print(f"\n{len(files)} files of goptim {version()} in dist, equal in both builds:")
    for path in files:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
