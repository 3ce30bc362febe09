"""Tracked text avoids phrases that have a standard term: docs/contributing.md asks for plain English."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (".py", ".pyi", ".go", ".c", ".s", ".md", ".toml", ".txt", "Makefile", "run")

# A phrase to avoid, as a pattern, and the standard term. A space stands for any whitespace and comment marks.
PHRASES = {
    r"(?:what )?Go takes|takes to Go|goes to Go": "is supported, runs in Go",
    r"(?:what )?torch takes": "falls back to torch",
    r"memory's (?:own )?speed|(?:pass over )?memory alone": "memory bandwidth, the memory bound",
    r"the (?:quick )?way to (?:a |so )?small (?:a )?tensors?": "per-tensor overhead",
    r"what this process has of": "the local shard of",
    r"(?:hold|holds|held|holding) (?:\w+ ){0,3}against": "compare with, test against",
    r"(?:points|two|trajectories) part\b": "the trajectories diverge",
    r"(?:lie|lies|laid out) (?:alike|otherwise)": "same layout, different strides",
    r"(?:asks|asked) for (?:rows|cache lines|into)": "prefetches",
    r"what is left of (?:a|the) column": "the tail",
    r"(?:of|is|are) one number": "scalar",
    r"dear": "expensive",
    r"nothing reminds you": "no test catches",
    r"treats every element alike": "elementwise",
    r"(?:the|torch's|equal|same|other|have its) bits of torch|with torch's bits|have torch's bits": "exact",
    r"nobody wants to edit": "that cannot be edited",
}

# Files that are not rewritten yet. Keep it empty.
PENDING: set[str] = set()


ANY = re.compile(rf"\b(?:{'|'.join(f'({phrase.lower()})' for phrase in PHRASES)})\b".replace(" ", r"(?:\s|[#*]|//)+"))


def found(text: str) -> list[tuple[int, str, str]]:
    """The line, the wording and the standard term of each phrase in a text."""
    terms = list(PHRASES.values())
    lower = text.lower()
    return [
        (lower.count("\n", 0, m.start()) + 1, " ".join(m[0].split()), terms[m.lastindex - 1])
        for m in ANY.finditer(lower)
        if m.lastindex
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("What Go takes,\nand what torch takes", [1, 2]),
        ("// a pass over memory\n// alone", [1]),
        ("\n# held\n    # against", [2]),
        ("a dear step\nmy Dear", [1, 2]),
        ("Memory bandwidth; endear; a step that falls back to torch", []),
    ],
)
def test_phrases_are_found(text: str, lines: list[int]) -> None:
    assert [line for line, _, _ in found(text)] == lines


def test_phrases() -> None:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    paths = [ROOT / name for name in names if name.endswith(TEXT) and (ROOT / name).is_file()]
    assert len(paths) >= 100
    assert all((ROOT / name).is_file() for name in PENDING)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {wording!r}: write {term!r}"
        for path in paths
        if str(path.relative_to(ROOT)) not in PENDING and path != Path(__file__)
        for line, wording, term in found(path.read_text())
    ]
    assert not wrong, "\n" + "\n".join(wrong)
