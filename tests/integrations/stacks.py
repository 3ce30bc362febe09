"""Other packages, and the recipes for them."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def load(name):
    """Import a module of another package. A test file is skipped if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages warn about each other at import
        return pytest.importorskip(name, reason=f"needs {name.partition('.')[0]}: `make test-integrations` installs it")


def state_of(optimizer):
    """The state_dict, with the keys of its groups in a fixed order, which differs between packages."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [dict(sorted(group.items())) for group in state["param_groups"]]}


def snippets_of(page):
    """The Python snippets of a page in docs."""
    found = re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / page).read_text())
    assert found
    return found


def snippets(page):
    """The Python snippets of a recipe, as parameters of a test."""
    found = snippets_of(f"recipes/{page}")
    return pytest.mark.parametrize("code", found, ids=[f"snippet{i}" for i in range(len(found))])


def execute(code, optim, **names):
    """Run a snippet with the classes of torch.optim or of goptim; returns its names."""
    assert "import goptim\n" in code
    names |= {"goptim": optim}
    exec(code.replace("import goptim\n", ""), names)
    return SimpleNamespace(**names)
