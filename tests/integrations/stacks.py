"""Other packages, and the recipes for them."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


def load(name):
    """Import a module of another package. A test file is skipped if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages warn about each other at import
        return pytest.importorskip(name, reason=f"needs {name.partition('.')[0]}: `make test-integrations` installs it")


def snippets(page):
    """The Python snippets of a recipe, as parameters of a test."""
    found = re.findall(r"(?ms)^```python\n(.*?)^```", (RECIPES / page).read_text())
    assert found
    return pytest.mark.parametrize("code", found, ids=[f"snippet{i}" for i in range(len(found))])


def execute(code, optim, **names):
    """Run a snippet with the classes of torch.optim or of goptim; returns its names."""
    assert "import goptim\n" in code
    names |= {"goptim": optim}
    exec(code.replace("import goptim\n", ""), names)
    return SimpleNamespace(**names)
