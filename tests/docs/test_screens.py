"""The site in a browser: light and dark, on a wide and a narrow screen. The pictures are in build/docs/screens."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from conftest import HTML, ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
SCREENS = ROOT / "build/docs/screens"
PAGES = [
    "index",
    "for-me",
    "optimizers/index",
    "optimizers/adamw",
    "optimizers/muonwithauxadam",
    "gallery/plot_rounding",
    "numerics",
    "go/goptim",
]
# An iframe has the width of a phone, which the window of a browser cannot have.
NARROW = '<!doctype html><body style="margin:0"><iframe src="{}" style="border:0;width:390px;height:{}px"></iframe>'
OVERFLOW = """<!doctype html><body><pre id="out"></pre><script>
const pages = {pages}, found = {{}};
(async () => {{
  for (const page of pages) {{
    const frame = document.createElement("iframe");
    frame.style = "border:0;width:390px;height:800px";
    const loaded = new Promise(resolve => frame.onload = resolve);
    frame.src = "/" + page;
    document.body.append(frame);
    await loaded;
    const wide = frame.contentDocument.documentElement.scrollWidth;
    if (wide > 390) found[page] = wide;
    frame.remove();
  }}
  document.getElementById("out").textContent = JSON.stringify({{measured: pages.length, found}});
}})();
</script>"""


def chromium(*arguments: str) -> str:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def extra():
    """Writes a page to the site for the time of a test, and returns its name."""
    written: list[Path] = []

    def write(name: str, text: str) -> str:
        written.append(HTML / name)
        written[-1].write_text(text)
        return name

    yield write
    for path in written:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_screens(width: str, scheme: str, address: str, extra) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    height = 1600
    for page in PAGES:
        name = f"{page}.html"
        if width == "narrow":
            name = extra("_narrow.html", NARROW.format(f"/{page}.html", height))
        picture = SCREENS / f"{page.replace('/', '-')}-{width}-{scheme}.png"
        chromium(
            f"--screenshot={picture}",
            f"--window-size={1400 if width == 'wide' else 500},{height}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            "--virtual-time-budget=3000",
            f"{address}/{name}",
        )
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_page_is_wider_than_a_phone(address: str, extra) -> None:
    """Wide tables and code scroll on their own."""
    pages = [path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if not path.name.startswith("_")]
    name = extra("_overflow.html", OVERFLOW.format(pages=json.dumps(pages)))
    dom = chromium("--virtual-time-budget=120000", "--timeout=100000", "--dump-dom", f"{address}/{name}")
    result = json.loads(unescape(re.findall(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[0]))
    assert result == {"measured": len(pages), "found": {}}
