"""Checks that need the simulated device run in a process of their own, once, and report by name.

Registering a backend changes a process for good, so the tests' own process stays without one. A file of checks makes a
`SimChecks`, marks its functions with `check`, and runs them when it is executed itself.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import simulated_device as sim
import torch

ROOT = Path(__file__).resolve().parent.parent

needs_compiler = pytest.mark.skipif(not sim.is_buildable(), reason="no C++ compiler to build the simulated device with")


class SimChecks(dict[str, Callable[[], None]]):
    """The checks of one file, by name."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def check(self, function: Callable[[], None]) -> Callable[[], None]:
        """Name a function as one of the checks that run in the other process."""
        self[function.__name__] = function
        return function

    def run(self, names: Sequence[str] = ()) -> None:
        """Run them (or those named) in this process; the last line of stdout says what went wrong in which."""
        torch.set_num_threads(1)
        sim.load()
        failures, seconds = {}, {}
        for name in names or self:
            began = time.perf_counter()
            try:
                self[name]()
            except (Exception, pytest.fail.Exception):
                failures[name] = traceback.format_exc()
            seconds[name] = round(time.perf_counter() - began, 2)
        print(json.dumps({"num_checks": len(seconds), "failures": failures, "seconds": seconds}))

    def failures(self) -> dict[str, str]:
        """Run the file in another process; the traceback of every check that failed there."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", self._file],
            cwd=ROOT / "tests",
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=290,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["num_checks"] == len(self)
        found: dict[str, str] = result["failures"]
        return found
