"""Pages of the Go packages, from their documentation (the program in godoc)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDERS = ("goptim", "goptim/schedule", "goptim/gonumopt")


def read(root: Path) -> list[dict[str, Any]]:
    """What the program in godoc prints."""
    go = Path(sys.prefix, "bin", "go")
    command = [str(go) if go.exists() else "go", "run", "./docs/site/godoc", *FOLDERS]
    out: list[dict[str, Any]] = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    return out


def pages(go: list[dict[str, Any]]) -> dict[str, str]:
    """A page per package, and an index."""
    index = ["# Go packages\n", "| package | |", "|---|---|"]
    found = {}
    for package in go:
        first = package["Doc"].partition(". ")[0].replace("\n", " ").strip().removesuffix(".")
        name = package["Name"]
        index.append(f"| [`{package['Path']}`]({name}.md) | {first.replace('](#', f']({name}.md#')}. |")
        found[f"go/{name}.md"] = page(package)
    toc = "\n".join(package["Name"] for package in go)
    index.append(f"\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n")
    return found | {"go/index.md": "\n".join(index)}


def page(package: dict[str, Any]) -> str:
    lines = [f"# Package {package['Name']}\n", f'```go\nimport "{package["Path"]}"\n```\n', package["Doc"]]
    lines += [examples(package["Examples"])]
    name = package["Name"]
    if package["Funcs"]:
        lines += ["\n## Functions\n", *(item(name, f, 3) for f in package["Funcs"])]
    if package["Types"]:
        lines.append("\n## Types\n")
        for t in package["Types"]:
            lines += [item(name, t, 3), *(item(name, v, 0) for v in t["Values"] or ())]
            lines += [item(name, f, 4) for f in [*(t["Funcs"] or ()), *(t["Methods"] or ())]]
    if package["Values"]:
        lines += ["\n## Constants and variables\n", *(item(name, v, 0) for v in package["Values"])]
    return "\n".join(lines) + "\n"


def item(package: str, x: dict[str, Any], level: int) -> str:
    """A function, method or type, or with level 0 a group of values."""
    names = [x["Name"]] if level else x["Names"]
    heading = "\n".join(f"(go.{package}.{name})=" for name in names if name != "_")
    heading += f"\n{'#' * level} {x['Name']}\n" if level else ""
    return f"{heading}\n```go\n{x['Decl']}\n```\n\n{x['Doc']}\n{examples(x['Examples'] or ())}"


def examples(all_of_them: Any) -> str:
    found = ""
    for x in all_of_them:
        title = f"Example: {x['Suffix']}" if x["Suffix"] else "Example"
        found += f"\n:::{{dropdown}} {title}\n{x['Doc']}\n```go\n{x['Code']}\n```\n:::\n"
    return found
