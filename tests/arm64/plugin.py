"""A plugin of pytest for emulated processes. Of programs that tests start, only the server of pythons.py runs.

Another Python would import torch again, which takes a minute.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.executable = os.environ["GOPTIM_PYTHON"]
NOW = Path(os.environ["GOPTIM_NOW"])


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note a test that starts: a signal can end the process."""
    NOW.write_text(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show a failure in the log when it happens: the whole run takes long."""
    if report.failed:
        print(f"\nFAILED {report.nodeid}", flush=True)


class Popen(subprocess.Popen[Any]):
    def __init__(self, command: Any, *words: Any, **options: Any) -> None:
        if type(command) is not str and command[0] == sys.executable and not str(command[1]).endswith("pythons.py"):
            pytest.skip("it starts another Python")
        if options.get("env"):
            options["env"] |= {"PYTHONPATH": os.environ["PYTHONPATH"]}
        super().__init__(command, *words, **options)


subprocess.Popen = Popen  # type: ignore[misc]
