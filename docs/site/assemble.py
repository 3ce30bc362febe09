"""Write the source of the documentation's site, which Sphinx then builds: ``make docs``.

    python docs/site/assemble.py build/docs/source

Pages are copied from this folder, from docs and from the root of the repository. Links between them become links within
the site, and links to other files go to the repository. The pages of optimizers are generated from goptim's classes,
and those of the Go packages from their documentation.

A line ``<!-- include README.md#Heading -->`` in a page stands for the section of that heading, without the heading, and
``<!-- include README.md@mark -->`` for the text between ``<!-- mark -->`` and the next ``<!-- end … -->``. With
``include-with-heading``, the heading is kept, and a section that does not exist is left out.
``<!-- generate name -->`` stands for the result of a function of this module.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests"), str(ROOT / "python")]

import optimizers  # noqa: E402
import packages  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]

# Pages of the repository by their place in the site. All others of docs keep theirs.
MOVED = {"CHANGELOG.md": "changelog.md"}
# The page of the site that stands for a file as a whole.
INSTEAD = {"README.md": "index.md"}
# The page that stands for a section of it.
SECTIONS = {("README.md", "optimizers"): "optimizers/index.md"}


def sources() -> dict[str, str]:
    """The pages of the site, each with its file in the repository."""
    pages = {str(path.relative_to(HERE / "pages")): path for path in sorted((HERE / "pages").rglob("*.md"))}
    docs = [path for path in sorted((ROOT / "docs").rglob("*.md")) if HERE not in path.parents]
    pages |= {str(path.relative_to(ROOT / "docs")): path for path in docs}
    pages |= {place: ROOT / name for name, place in MOVED.items()}
    return {place: path.relative_to(ROOT).as_posix() for place, path in pages.items()}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def has_section(name: str, heading: str) -> bool:
    return f"\n## {heading}\n" in (ROOT / name).read_text()


def section(name: str, heading: str) -> str:
    """The text of a file below a heading, up to the next one of the same level.

    Raises:
        ValueError: there is no such heading.
    """
    fenced, level, found = False, 0, None
    for line in (ROOT / name).read_text().splitlines():
        fenced ^= line.startswith("```")
        match = None if fenced else re.match(r"(#+) (.*)", line)
        if match and found is not None and len(match[1]) <= level:
            break
        if found is not None:
            # The page has another heading above it: a level less.
            found.append(line)
        elif match and match[2] == heading:
            found, level = [], len(match[1])
    if found is None:
        raise ValueError(f"{name}: expected a heading {heading!r}")
    return "\n".join(found).strip()


def marked(name: str, mark: str) -> str:
    """The text of a file between two comments.

    Raises:
        ValueError: there are no such comments.
    """
    _, start, rest = (ROOT / name).read_text().partition(f"<!-- {mark} -->\n")
    text, end, _ = rest.partition("<!-- end")
    if not start or not end:
        raise ValueError(f"{name}: expected <!-- {mark} --> and <!-- end -->")
    return text.strip()


INCLUDE = re.compile(r"(?m)^<!-- include(-with-heading)? (\S+?)([#@])(.+?) -->$")
GENERATE = re.compile(r"(?m)^<!-- generate (\w+) -->$")
LINK = re.compile(r"(!?\[(?:[^][]|\[[^][]*\])*\])\(([^)\s]+)\)")


class Site:
    """Where everything is."""

    def __init__(self) -> None:
        self.pages = sources()
        self.place_of = {name: place for place, name in self.pages.items()} | INSTEAD
        # The page that shows a section of a file which is no page itself.
        self.shown: dict[tuple[str, str], str] = {}
        for place, name in self.pages.items():
            for optional, source, kind, what in INCLUDE.findall((ROOT / name).read_text()):
                if kind == "#" and (not optional or has_section(source, what)):
                    self.shown[source, slug(what)] = place
                    for inner in re.findall(r"(?m)^#+ (.*)$", section(source, what)):
                        self.shown[source, slug(inner)] = place
        self.files: set[str] = set()

    def page(self, place: str) -> str:
        """The content of a page, with includes and with links as they are in the site."""
        name = self.pages[place]
        text = self._linked((ROOT / name).read_text(), name, place)

        def include(match: re.Match[str]) -> str:
            heading, source, kind, what = match.groups()
            if heading and not has_section(source, what):
                return ""
            found = section(source, what) if kind == "#" else marked(source, what)
            return (f"## {what}\n\n" if heading else "") + self._linked(found, source, place)

        text = INCLUDE.sub(include, text)
        return GENERATE.sub(lambda m: GENERATED[m[1]](), text)

    def _linked(self, text: str, name: str, place: str) -> str:
        """A text of a file, with the links that it has in a page of the site."""
        parts = re.split(r"(?ms)(^```.*?^```)", text)  # not in code
        return "".join(p if i % 2 else LINK.sub(lambda m: self._link(m, name, place), p) for i, p in enumerate(parts))

    def _link(self, match: re.Match[str], name: str, place: str) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:", target) or (ROOT / name).is_relative_to(HERE):
            return match[0]  # pages of the site have their links within it
        path, _, anchor = target.partition("#")
        file = os.path.normpath(PurePosixPath(name).parent / path) if path else name
        if not (ROOT / file).exists():
            raise ValueError(f"{name}: a link to {target}, which does not exist")
        there = self.shown.get((file, anchor)) if anchor else None
        if (file, anchor) in SECTIONS:
            there, anchor = SECTIONS[file, anchor], ""
        there = there or self.place_of.get(file)
        if there is None and (ROOT / file).suffix == ".png":
            there = str(PurePosixPath(file).relative_to("docs"))
            self.files.add(there)
        if there is None:
            kind = "tree" if (ROOT / file).is_dir() else "blob"
            return f"{text}({REPOSITORY}/{kind}/main/{file}{'#' + anchor if anchor else ''})"
        if there == place and anchor:
            return f"{text}(#{anchor})"
        relative = os.path.relpath(there, PurePosixPath(place).parent)
        return f"{text}({relative}{'#' + anchor if anchor else ''})"


def versions() -> str:
    """A table of the supported versions, from pyproject.toml and the Makefile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = re.findall(r"torch==(\d+\.\d+)\.\d+ numpy pytest", (ROOT / "Makefile").read_text())[0]
    [torch] = [need.removeprefix("torch>=") for need in project["dependencies"] if need.startswith("torch")]
    prefix = "Programming Language :: Python :: 3."
    pythons = [f"3.{c.removeprefix(prefix)}" for c in project["classifiers"] if re.fullmatch(prefix + r"\d+", c)]
    newest = re.findall(r"torch (\d+\.\d+)", (ROOT / "docs/benchmarks.md").read_text())[0]
    go = re.findall(r"(?m)^go (\S+)", (ROOT / "go.mod").read_text())[0]
    rows = [
        ("Python", f"{pythons[0]} to {pythons[-1]}; one wheel with the stable ABI"),
        ("torch", f"{torch} and later; tested with {oldest} and {newest}"),
        ("Go, to build", f"{go}, which pip downloads if it is missing"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {which} |" for what, which in rows)])


GENERATED: dict[str, Callable[[], str]] = {
    "optimizers": optimizers.overview,
    "functions": optimizers.functions,
    "versions": versions,
}


def main() -> None:
    target = Path(sys.argv[1])
    for path in target.iterdir() if target.exists() else ():
        if path.name != "gallery":  # plots are drawn again only if their program has changed
            path.unlink() if path.is_file() else shutil.rmtree(path)
    go = packages.read(ROOT)
    site = Site()
    texts = {place: site.page(place) for place in site.pages}
    texts |= optimizers.pages(go) | packages.pages(go)
    for place, text in texts.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text)
    for name in sorted(site.files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "docs" / name, target / name)
    for name in ("conf.py", "mathml.py"):
        shutil.copyfile(HERE / name, target / name)
    shutil.copytree(HERE / "static", target / "_static")


if __name__ == "__main__":
    main()
