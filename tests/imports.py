"""Draw the imports between modules of python/goptim, for docs/contributing.md: ``python tests/imports.py``."""

import ast
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "python"

# The times at which a module imports another.
FIRST, LATER, NEVER = "as it is imported", "in functions", "for type checkers alone"


def modules() -> dict[str, Path]:
    """The files of the package, by module name."""
    paths = sorted((ROOT / "goptim").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(text: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """The known modules that a module imports, and when it imports each."""

    def names(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            full = [(f"{node.module}.{alias.name}", node.module or "") for alias in node.names]
            return [name if name in known else module for name, module in full]
        return []

    def walk(node: ast.AST, when: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            yield from ((name, when) for name in names(child) if name in known)
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, LATER)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, NEVER)
            else:
                yield from walk(child, when)

    yield from walk(ast.parse(text), FIRST)


def graph(when: str) -> dict[str, set[str]]:
    """The modules that each module imports at the given time, such as FIRST."""
    files = modules()
    return {name: {to for to, at in imports(path.read_text(), {*files}) if at == when} for name, path in files.items()}


def layers(edges: dict[str, set[str]]) -> tuple[list[list[str]], list[str]]:
    """Layers of modules, the lowest first, each importing only lower ones; and an import cycle if there is one."""
    left, done = dict(edges), []
    while left:
        layer = sorted(name for name, to in left.items() if not to & left.keys())
        if not layer:
            way = [min(left)]
            while way[-1] not in way[:-1]:
                way.append(min(left[way[-1]] & left.keys()))
            return done, way[way.index(way[-1]) :]
        done.append(layer)
        left = {name: to for name, to in left.items() if name not in layer}
    return done, []


def short(name: str) -> str:
    return name.removeprefix("goptim.")


def drawing() -> str:
    """The layers, the highest first, then the imports in functions and for type checkers."""
    done, circle = layers(graph(FIRST))
    lines = []
    for layer in reversed(done):
        lines += textwrap.wrap("  ".join(map(short, layer)), 110, break_on_hyphens=False)
        lines.append("    ↓")
    lines[-1:] = [f"a circle: {' → '.join(map(short, circle))}"] if circle else []
    for when in (LATER, NEVER):
        pairs = itertools.chain.from_iterable(((name, to) for to in sorted(all_)) for name, all_ in graph(when).items())
        lines += ["", f"{when}: " + ", ".join(f"{short(name)} → {short(to)}" for name, to in pairs)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawing())
