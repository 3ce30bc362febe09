"""The site that `make docs` has built."""

import contextlib
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in tests/conftest.py

import pytest

ROOT = Path(__file__).parents[2]
HTML = ROOT / "build/docs/html"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.docs)


class Page(HTMLParser):
    """A page's links, anchors and code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.code: list[tuple[str, str]] = []  # languages and texts
        self._open: list[str] = []
        self._in: str | None = None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key) is not None and tag != "base"]
        if tag not in VOID:
            self._open.append(given.get("class") or "")
        if tag == "pre":
            languages = [
                c.removeprefix("highlight-") for c in " ".join(self._open).split() if c.startswith("highlight-")
            ]
            self._in = languages[-1] if languages else ""
            self.code.append((self._in, ""))

    def handle_endtag(self, tag):
        if tag not in VOID and self._open:
            self._open.pop()
        if tag == "pre":
            self._in = None

    def handle_data(self, data):
        if self._in is not None:
            language, text = self.code[-1]
            self.code[-1] = (language, text + data)


@pytest.fixture(scope="session")
def site() -> dict[str, Page]:
    """The pages by their paths."""
    assert (HTML / "index.html").exists(), "there is no site: `make docs` builds it"
    return {path.relative_to(HTML).as_posix(): Page(path) for path in sorted(HTML.rglob("*.html"))}


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a server of the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            yield f"http://127.0.0.1:{server.server_port}"
