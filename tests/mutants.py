"""Change one line of goptim at a time, and check that a test fails.

    python tests/mutants.py [--count 40] [--seed 1] [--log FILE] [--rest]

Lines are drawn at random from kernels, scalars, rows, gather.c, the step, saved states and bindings. After a change of
the code, the same seed still draws the same mutants from most of the unchanged lines. Each mutant is tested in a copy
of the tree, in build/mutants, first with the Go tests of its package and then with the Python tests of its part, until
one fails. The remaining mutants are tested together with the whole core, and the tests that fail are run again with
each of them alone. --rest adds the tests marked full. A test that does not end counts as a failure. A mutant that does
not compile, is in a file that is not compiled here, or affects only speed is skipped.

tests/mutants.txt lists equivalent mutants with a reason, by file, function and text. The exit status is 1 if any other
mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import itertools
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "tests" / "mutants.txt"

# The groups of mutants, with their percentage and their files.
GROUPS = {
    "kernels": (
        22,
        [f"goptim/internal/kernel/{name}" for name in ("f32x8/*.go", "bf16x16/ops.go", "reduce/*.go")],
    ),
    "scalars": (18, ["goptim/*.go", *(f"goptim/internal/{name}/*.go" for name in ("lbfgs", "matmul", "newtonschulz"))]),
    "rows": (
        12,
        ["goptim/internal/engine/*.go", "goptim/table.go", "goptim/groups.go", "goptim/internal/kernel/rows.go"],
    ),
    "gather": (12, ["bindings/_core/gather*.[ch]"]),
    "step": (20, ["python/goptim/*.py"]),
    "states": (
        10,
        [
            "goptim/state.go",
            "goptim/stateful.go",
            "goptim/internal/safetensors/*.go",
            *(f"python/goptim/{name}.py" for name in ("_safetensors", "_state", "_files")),
        ],
    ),
    "bindings": (6, ["bindings/bindings.go", "bindings/internal/*/*.go", "internal/steps/*.go"]),
}
# Files that match a group but belong to another one or to none.
NOT_IN = {
    "scalars": {"state.go", "stateful.go", "table.go", "groups.go", "doc.go"},
    "step": {
        "_safetensors.py",
        "_state.py",
        "_files.py",
        "_modules.py",
        "_explain.py",
        "_run.py",
        "_patch.py",
        "__main__.py",
        "testing.py",
        "__init__.py",
    },
}

# The few tests of a single mutant, by a part of the file's path; the first match counts. A file without a match has the
# tests of its group.
PHASE = ["test_phase_clip.py", "test_phase_averages.py", "test_phase_zero.py"]
NEAREST = [
    ("reduce/", ["test_adafactor.py", "test_hf.py"]),
    ("hfadafactor", ["test_hf.py"]),
    ("hf.py", ["test_hf.py"]),
    ("adafactor", ["test_adafactor.py", "test_hf.py"]),
    ("factored", ["test_adafactor.py"]),
    ("sparse", ["test_sparse.py"]),
    ("lbfgs", ["test_lbfgs.py"]),
    ("muon", ["test_muon.py"]),
    ("matmul", ["test_muon.py"]),
    ("newtonschulz", ["test_muon.py"]),
    (
        "gather",
        ["test_gather.py", *PHASE, "test_phase_step.py", "test_step.py", "test_scalar_errors.py", "test_sparse.py"],
    ),
    ("_zero", ["test_phase_zero.py"]),
    ("around", ["test_phase_step.py"]),
    ("_scaler", ["test_phase_amp.py"]),
    ("amp.py", ["test_phase_amp.py"]),
    ("swa_utils", ["test_phase_swa.py"]),
    ("_functions", ["test_patch.py", "test_phase_swa.py"]),
    ("average", ["test_phase_averages.py"]),
    *((name, PHASE) for name in ("lists", "norm", "clip", "gradient")),
    ("overlap", ["test_aliasing.py"]),
    ("scalar.go", ["test_scalar_errors.py"]),
    ("_layout", ["test_layout.py", "test_gather.py"]),
    ("_dtensor", ["test_distributed.py"]),
    ("_native", ["test_layout.py", "test_processes.py"]),
    ("_numbers", ["test_numbers.py"]),
    ("_originals", ["test_patch.py"]),
    ("_files", ["test_safetensors.py"]),
    ("_state", ["test_safetensors.py", "test_damaged_states.py"]),
    ("safetensors", ["test_safetensors.py", "test_damaged_states.py"]),
    ("state.go", ["test_safetensors.py"]),
    ("stateful.go", ["test_safetensors.py"]),
    ("steps.go", ["test_bindings.py", "test_faults.py"]),
    ("_kinds", ["test_bindings.py", "test_numbers.py", "test_gather.py"]),
    ("_empty", ["test_scalar_errors.py"]),
    ("_fallback", ["test_step.py", "test_dropin.py"]),
    ("_parts", ["test_step.py", "test_explain.py", "test_dropin.py", "test_sparse.py"]),
    ("_eligible", ["test_explain.py", "test_step.py"]),
    ("_step", ["test_step.py", "test_explain.py", "test_dropin.py"]),
]
OF_GROUP = {
    "kernels": ["test_parity.py"],
    "scalars": ["test_parity.py"],
    "rows": ["test_faults.py"],
    "step": ["test_state.py", "test_optim_db.py"],
    "states": ["test_state.py"],
    "bindings": ["test_faults.py", "test_scalar_errors.py"],
}
GO_OF_GROUP = {
    "kernels": ["./goptim/internal/kernel/...", "./goptim"],
    "scalars": ["./goptim/internal/lbfgs", "./goptim/internal/matmul", "./goptim/internal/newtonschulz", "./goptim"],
    "rows": ["./goptim/internal/engine", "./goptim"],
    "states": ["./goptim/internal/safetensors", "./goptim"],
    "bindings": ["./bindings/..."],
}
# Classes with a file of the same name, which -k finds in the names of tests: the elementwise ones, and Adafactor.
SPECIFICATION = re.compile(r'elementwiseSpec\(class\[\w+\]\{\s*name:\s*"(\w+)"')
CLASSES = [name for path in sorted((ROOT / "goptim").glob("*.go")) for name in SPECIFICATION.findall(path.read_text())]
CLASSES.append("Adafactor")


# Changes that affect only speed: lines that prefetch or leave vector code, and such functions of gather.c.
NO_RESULT = re.compile(r"(?i)prefetch|kernel\.Leave\(\)"), {"prefetch_params", "prefetch_tensors"}

# Slow test files.
LAST = {"test_bench.py", "test_compile.py", "test_processes.py", "test_readme.py", "test_run.py", "test_yardstick.py"}


@dataclass(frozen=True)
class Mutant:
    """A replacement of text at one place."""

    group: str
    path: str
    kind: str
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def lines(self, text: str) -> tuple[str, str]:
        """The changed lines, before and after, each joined to one line."""
        first, last = text.rfind("\n", 0, self.start) + 1, text.find("\n", self.end)
        after = text[first : self.start] + self.new + text[self.end : last]
        return " ".join(text[first:last].split()), " ".join(after.split())

    def function(self, text: str) -> str:
        """The enclosing function, which does not change when lines move."""
        pattern = {
            ".py": r"(?m)^ *(?:async )?(?:def|class) (\w+)",
            ".go": r"(?m)^func (?:\([^)]*\) )?(\w+)",
        }.get(Path(self.path).suffix, r"(?m)^\w[^;={]*?\b(\w+)\(")
        return next((m[1] for m in reversed([*re.finditer(pattern, text[: self.start])])), "")


Site = tuple[str, int, int, str]  # kind, start, end, replacement

PAIRS = {"+": "-", "*": "/", "<": "<=", ">": ">=", "==": "!=", "&&": "||"}
SWAP = PAIRS | {b: a for a, b in PAIRS.items()}
METHODS = {"Add": "Sub", "Mul": "Div", "Max": "Min", "Greater": "GreaterEqual", "Less": "LessEqual"}
METHODS |= {b: a for a, b in METHODS.items()}
TOKENS = r"""(?sx) //[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\\n])*" | `[^`]*` | '(?:\\.|[^'\\\n])+' """


def sites_of_text(text: str, is_go: bool) -> Iterator[Site]:
    """Mutations of the tokens of Go and C."""
    code = re.sub(TOKENS, lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    for m in re.finditer(r"(?<=[\w)\]])( ?)([+\-*/])\1(?=[\w(])", code):
        yield "arithmetic", m.start(2), m.end(2), SWAP[m[2]]
    for m in re.finditer(r" (<=|>=|==|!=|<|>) ", code):
        yield "comparison", m.start(1), m.end(1), SWAP[m[1]]
    for m in re.finditer(r"&&|\|\|", code):
        yield "logic", m.start(), m.end(), SWAP[m[0]]
    for m in re.finditer(rf"\.({'|'.join(METHODS)})\(", code):
        yield "method", m.start(1), m.end(1), METHODS[m[1]]
    for m in re.finditer(r"(?<![\w.])(\d+)(?![\w.])", code):
        yield "constant", m.start(), m.end(), str(int(m[0], 0 if m[0] == "0" else 10) + 1)
    for m in re.finditer(r"(?m)^\s*(?:\} else )?if (\([^\n;{]+\)|[^\n;{(]+)(?: \{)?$", code):
        yield "condition", m.start(1), m.end(1), ("!(%s)" if is_go else "(!%s)") % text[m.start(1) : m.end(1)]
    statement = r"(?m)^[\t ]+((?:[\w.\[\]*&()>-]+ (?:[-+*|&^]|<<|>>)?= |[\w.>-]+\()[^\n{}]*(?:\)|\w|\]))%s$"
    for m in re.finditer(statement % ("" if is_go else ";"), code):
        if m[1].count("(") == m[1].count(")") and not re.match(r"return|if|for|switch|case|func|else", m[1]):
            yield "statement", m.start(1), m.end(1), ""
    for m in re.finditer(r"(?m)^(?!func).*?\b\w+\(([\w.]+), ([\w.]+)[,)]", code):
        if m[1] != m[2]:
            yield "arguments", m.start(1), m.end(2), f"{m[2]}, {m[1]}"
    for m in re.finditer(r'("[^"\n]*"), ("[^"\n]*")', text):
        if m[1] != m[2]:
            yield "keys", m.start(), m.end(), f"{m[2]}, {m[1]}"


OPERATORS: dict[type, str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and",
}  # fmt: skip


def sites_of_python(text: str) -> Iterator[Site]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines(keepends=True)

    def at(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(kind: str, a: ast.expr, operator: ast.AST, b: ast.expr) -> Iterator[Site]:
        start, end = span(a)[1], span(b)[0]
        m = re.search(r"\*\*|//|[-+*/%]|[<>=!]=|[<>]|is not|not in|\b(?:is|in|and|or)\b", text[start:end])
        if m and type(operator) in OPERATORS:
            yield kind, start + m.start(), start + m.end(), OPERATORS[type(operator)]

    tree = ast.parse(text)
    unordered = [x for node in ast.walk(tree) if isinstance(node, ast.Compare) for x in node.comparators]
    unordered += [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]  # of types
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            yield from between("arithmetic", node.left, node.op, node.right)
        elif isinstance(node, ast.Compare):
            yield from between("comparison", node.left, node.ops[0], node.comparators[0])
        elif isinstance(node, ast.BoolOp):
            yield from between("logic", node.values[0], node.op, node.values[1])
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield "constant", *span(node), str(not node.value if isinstance(node.value, bool) else node.value + 1)
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            (a, b), (c, d) = span(node.args[0]), span(node.args[1])
            if text[a:b] != text[c:d] and not isinstance(node.args[1], ast.Starred):
                yield "arguments", a, d, text[c:d] + text[b:c] + text[a:b]
        elif isinstance(node, (ast.Tuple, ast.List)) and node not in unordered:
            for one, other in itertools.pairwise(node.elts):
                if all(isinstance(x, ast.Constant) and isinstance(x.value, str) for x in (one, other)):
                    (a, b), (c, d) = span(one), span(other)
                    yield "keys", a, d, text[c:d] + text[b:c] + text[a:b]
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            start, end = span(node.test)
            yield "condition", start, end, f"not ({text[start:end]})"
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Raise, ast.Delete)) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            yield "statement", *span(node), "pass"


def draw(seed: int) -> Iterator[Mutant]:
    """All mutants in random order: a group by its percentage, a file by its number of places, a kind, a place.

    Each place has a random number from its line, so that changes of other lines do not change the order.
    """
    sites: dict[str, dict[str, dict[str, list[Site]]]] = {}
    texts = {}
    for group, (_, patterns) in GROUPS.items():
        for path in sorted({p for pattern in patterns for p in ROOT.glob(pattern)}):
            if path.name.endswith("_test.go") or path.name in NOT_IN.get(group, ()):
                continue
            text, of = path.read_text(), {}
            if "Code generated" in text[:200]:
                continue
            for site in sites_of_python(text) if path.suffix == ".py" else sites_of_text(text, path.suffix == ".go"):
                of.setdefault(site[0], []).append(site)
            if of:
                name = str(path.relative_to(ROOT))
                texts[name] = text
                sites.setdefault(group, {})[name] = of
    order = []
    for group, files in sites.items():
        places = {path: sum(map(len, of.values())) for path, of in files.items()}
        for path, of in files.items():
            same: dict[tuple[str, str], int] = {}
            for site in (site for kind in sorted(of) for site in of[kind]):
                mutant = Mutant(group, path, *site)
                lines = mutant.lines(texts[path])
                same[lines] = same.get(lines, 0) + 1
                share = GROUPS[group][0] * places[path] / sum(places.values()) / len(of) / len(of[site[0]])
                number = random.Random(repr((seed, path, site[0], lines, same[lines]))).random()
                order.append((-math.log(1 - number) / share, len(order), mutant))
    for _, _, mutant in sorted(order):
        text = texts[mutant.path]
        if not NO_RESULT[0].search(mutant.lines(text)[0]) and mutant.function(text) not in NO_RESULT[1]:
            yield mutant


def known_mutants() -> dict[tuple[str, ...], str]:
    """The reasons of equivalent mutants, by file, function, line and mutated line."""
    known = {}
    for block in re.split(r"\n\n+", KNOWN.read_text()) if KNOWN.exists() else ():
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            where, before, after, *reason = lines
            path, _, function = where.partition(":")
            known[path, function.strip(), before.removeprefix("- "), after.removeprefix("+ ")] = " ".join(reason)
    return known


def limit(seconds: int) -> None:
    """Limit the CPU time and the memory of this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))


class Tree:
    """A copy of the tree for the mutants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = Path(sys.executable)
        self.go = self.python.with_name("go")
        self.env = os.environ | {
            "GOTOOLCHAIN": "local",
            "GOEXPERIMENT": "simd",
            "PYTHONPATH": str(path / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",  # mutants may have the same size and modification time
        }
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        shutil.rmtree(path, ignore_errors=True)
        for name in names:
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        self.run([self.python, "setup.py", "-q", "build_ext", "--inplace"], check=True)
        [self.library] = (path / "python/goptim").glob("_core*.so")
        self.original = self.library.read_bytes()
        self.stale = False  # the library is not what the files say
        self.compiled = self.files_compiled()

    def run(self, command: list[object], seconds: int = 300, check: bool = False, **env: str) -> tuple[bool, str]:
        """Whether a command succeeds, and its output. ``seconds`` limits the CPU time of each process."""
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.path, env=self.env | env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            preexec_fn=lambda: limit(seconds),
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=10 * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out = process.communicate()[0] + "\nit does not end"
        if check and process.returncode:
            raise SystemExit(out)
        return process.returncode == 0, out

    def files_compiled(self) -> set[str]:
        """The Go files that are compiled here, with vectors or without."""
        found = set()
        for experiment in ("simd", ""):
            _, out = self.run(
                [self.go, "list", "-f", '{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\\n"}}{{end}}'
                 '{{range .CgoFiles}}{{$d}}/{{.}}{{"\\n"}}{{end}}', "./..."], GOEXPERIMENT=experiment,
            )  # fmt: skip
            found |= {os.path.relpath(line, self.path) for line in out.splitlines() if line.endswith(".go")}
        return found

    @contextlib.contextmanager
    def mutated(self, mutants: list[Mutant]) -> Iterator[str]:
        """Apply mutants. Return a reason if they should not be tested."""
        changed: dict[Path, str] = {}
        ordered = sorted(mutants, key=lambda m: (m.path, m.start))
        if any(a.path == b.path and a.end > b.start for a, b in itertools.pairwise(ordered)):
            yield "they overlap"
            return
        for mutant in sorted(mutants, key=lambda m: -m.start):  # from the end, so that earlier positions stay valid
            file = self.path / mutant.path
            text = file.read_text()
            changed.setdefault(file, text)
            file.write_text(mutant.apply(text))
        try:
            none = self.prepare(changed)
            self.stale = any(file.suffix != ".py" for file in changed)
            yield none
        finally:
            for path, text in changed.items():
                path.write_text(text)
            self.library.write_bytes(self.original)
            self.stale = False

    def prepare(self, changed: dict[Path, str]) -> str:
        """Generate the copies of kernels, add them to the changed files, and compile everything."""
        for path in changed:
            if path.suffix == ".py":
                try:
                    compile(path.read_text(), path, "exec")
                except SyntaxError:
                    return "it does not compile"
        kernels = self.path / "goptim/internal/kernel"
        if any(kernels in path.parents for path in changed):
            before = {p: p.read_text() for p in kernels.rglob("*.go")}
            done, _ = self.run(["sh", "-c", f"cd {kernels} && {self.go} run ./generate"])
            changed |= {p: text for p, text in before.items() if p not in changed and p.read_text() != text}
            if not done:
                return "no copies can be made"
        go = [path for path in changed if path.suffix == ".go"]
        if go and not any(str(path.relative_to(self.path)) in self.compiled for path in go):
            return "it is not compiled here"
        if go and not self.run([self.go, "build", "./goptim/...", "./bindings/internal/...", "./bindings"])[0]:
            return "it does not compile"
        return ""

    def build(self) -> bool:
        done, _ = self.run([self.python, "setup.py", "-q", "build_ext", "--inplace"])
        self.stale = not done
        return done

    def test_go(
        self, packages: list[str], only: Sequence[str] = (), short: bool = True, most: int = 1, **env: str
    ) -> list[str]:
        """The failing Go tests, of all or of ``only``: the first in each package, or up to ``most``."""
        words = [
            self.go,
            "test",
            "-vet=off",
            *(["-failfast"] if most == 1 else []),
            *(["-short"] if short else []),
            *(["-count=1"] if env else []),
            *(["-run", f"^({'|'.join(only)})$"] if only else []),
            *packages,
        ]
        passed, out = self.run(words, 120, **env)
        if passed:
            return []
        return re.findall(r"(?m)^--- FAIL: (\w+)", out) or [f"go test {' '.join(packages)} {env or ''}: {out[-80:]!r}"]

    def test_python(self, words: list[str], only: Sequence[str] = (), seconds: int = 600, most: int = 1) -> list[str]:
        """The failing Python tests, of all or of ``only``. They run in a fork of a process that has imported torch."""
        if self.stale and not self.build():
            return ["the build"]
        output = self.path / "build/pytest.log"
        child = os.fork()
        if child == 0:
            os.setsid()
            limit(seconds)
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.chdir(self.path)
            os.environ.update(self.env)
            sys.dont_write_bytecode = True
            sys.path[0] = str(self.path / "python")
            import pytest

            try:
                options = [f"--maxfail={most}", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
                code = pytest.main([*options, *(only or words)])
            except BaseException:
                code = 9
            sys.stdout.flush()
            os._exit(code)
        status, end = None, time.monotonic() + 5 * seconds
        while status is None:
            pid, how = os.waitpid(child, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(how)
            elif time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                end = float("inf")
            else:
                time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # left behind by the test
        text = output.read_text(errors="replace")
        if status in (0, 5) or (status == 4 and "ERROR: not found: " in text):
            return []
        failed = re.findall(r"(?m)^(?:FAILED|ERROR) (tests/\S+.*?)(?: - |$)", text)
        return failed or [f"pytest {' '.join(words)} ends with {status}"]


class Tests(Protocol):
    """Tests that run, all or some, and say which of them fail."""

    def __call__(self, *, only: Sequence[str] = ()) -> list[str]: ...


Stage = tuple[str, Tests]  # a name, and its tests


def nearest(tree: Tree, mutant: Mutant) -> Iterator[Stage]:
    """The tests that are most likely to fail: Go tests of the package, and Python tests of the class or the part."""
    is_go = mutant.path.endswith(".go")
    if is_go:
        for package in GO_OF_GROUP.get(mutant.group, ()):
            yield package, functools.partial(tree.test_go, [package])
    of_class = next((c for c in CLASSES if c.lower() == Path(mutant.path).stem), None)
    files = next((tests for part, tests in NEAREST if part in mutant.path), OF_GROUP.get(mutant.group, []))
    words = [f"{of_class} and not widths and not stock"] if of_class else ["not widths and not stock"]
    if of_class:
        files = ["test_parity.py", "test_state.py", *(f for f in files if f not in OF_GROUP[mutant.group])]
        files += ["test_scalar_errors.py"] if mutant.group == "scalars" else []
    for file in files:
        yield file, functools.partial(tree.test_python, [f"tests/{file}", "-k", *words], seconds=120)


def others(tree: Tree, rest: bool) -> Iterator[Stage]:
    """The core, and then all other tests."""
    lane = functools.partial(tree.test_go, ["./goptim", "./goptim/internal/..."], most=20, GOEXPERIMENT="")
    yield "go test, GOEXPERIMENT=", lane
    for bits in ("0", "+128", "+256"):
        yield (
            f"go test, simd={bits}",
            functools.partial(tree.test_go, ["./goptim/internal/..."], most=20, GODEBUG=f"simd={bits}"),
        )
    yield "go test ./...", functools.partial(tree.test_go, ["./..."], short=False, most=20)
    files = [
        f"tests/{f.name}" for f in sorted((tree.path / "tests").glob("test_*.py"), key=lambda f: (f.name in LAST, f))
    ]
    yield "the core", functools.partial(tree.test_python, files, most=20, seconds=3600)
    if rest:
        full = ["-m", "full and not packaging and not integrations"]
        yield "full", functools.partial(tree.test_python, ["tests", *full], most=20, seconds=3600)


def run_with(tree: Tree, mutants: list[Mutant], test: Tests, only: Sequence[str] = ()) -> list[str]:
    """The tests that fail with these mutants, or the reason why the mutants cannot be tested together."""
    with tree.mutated(mutants) as none:
        return [none] if none else test(only=only)


def meet(tree: Tree, mutants: list[Mutant], rest: bool) -> dict[Mutant, str]:
    """Run all tests with all mutants, and failing tests with each alone. Return each killed mutant and its test."""
    killed: dict[Mutant, str] = {}
    for stage, test in others(tree, rest):
        while left := [m for m in mutants if m not in killed]:
            failed = run_with(tree, left, test)
            if not failed:
                break
            if len(left) == 1:
                found = {left[0]: failed}
            elif all("::" in name or name.isidentifier() for name in failed):
                found = {m: by for m in left if (by := run_with(tree, [m], test, failed))}
            else:  # the tests have ended early
                found = {}
            if not found:
                half = len(left) // 2
                return killed | meet(tree, left[:half], rest) | meet(tree, left[half:], rest)
            killed |= {mutant: f"{stage}: {by[0]}" for mutant, by in found.items()}
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="draw no other after so many")
    parser.add_argument("--rest", action="store_true", help="survivors meet the tests marked full too")
    parser.add_argument("--nearest", action="store_true", help="survivors meet no other tests than the nearest")
    parser.add_argument("--log", type=argparse.FileType("a"), default=sys.stdout, help="a line for every mutant")
    parser.add_argument("--tree", type=Path, default=ROOT / "build" / "mutants", help="where to copy the tree")
    options = parser.parse_args()

    known, texts = known_mutants(), {}
    tree = Tree(options.tree.absolute())
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in conftest.py
    import pytest  # noqa: F401
    import torch

    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()  # it imports torch's compiler

    def say(line: str) -> None:
        print(line, file=options.log, flush=True)

    def key(mutant: Mutant) -> tuple[str, ...]:
        text = texts[mutant.path]
        return (mutant.path, mutant.function(text), *mutant.lines(text))

    def what(mutant: Mutant) -> str:
        path, function, before, after = key(mutant)
        return f"{mutant.group:8} {mutant.kind:10} {path}: {function}: {before!r} -> {after!r}"

    killed: dict[str, int] = {}
    left: list[Mutant] = []
    n = equivalent = 0
    began = time.monotonic()
    for mutant in draw(options.seed):
        if n == options.count or time.monotonic() - began > 60 * options.minutes:
            break
        texts.setdefault(mutant.path, (tree.path / mutant.path).read_text())
        if key(mutant) in known:
            n, equivalent = n + 1, equivalent + 1
            say(f"{n:4} equivalent        {what(mutant)}: {known[key(mutant)]}")
            continue
        start = time.monotonic()
        by = met = ""
        with tree.mutated([mutant]) as none:
            if none:
                continue
            n += 1
            for stage, test in nearest(tree, mutant):
                by, met = next(iter(test()), ""), stage
                if by:
                    break
        took = time.monotonic() - start
        if by:
            killed[met] = killed.get(met, 0) + 1
            say(f"{n:4} killed   {took:6.1f} s {what(mutant)}: by {by}")
        else:
            left.append(mutant)
            say(f"{n:4} left     {took:6.1f} s {what(mutant)}")
    by_others = {} if options.nearest else meet(tree, left, options.rest)
    for mutant, by in by_others.items():
        killed[by.partition(":")[0]] = killed.get(by.partition(":")[0], 0) + 1
        say(f"     killed            {what(mutant)}: by {by}")
    survived = [mutant for mutant in left if mutant not in by_others]
    for mutant in survived:
        say("     SURVIVED\n" + "{}: {}\n- {}\n+ {}".format(*key(mutant)))
    say(f"{n} mutants: {sum(killed.values())} killed, {equivalent} known to be equivalent, {len(survived)} survived")
    say("killed by " + ", ".join(f"{stage}: {count}" for stage, count in killed.items()))
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
