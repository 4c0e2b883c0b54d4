"""Checks that need the simulated device run in a process of their own, once, and report by name.

Registering a backend changes a process for good, so the tests' own process stays without one. A file of checks makes a
`SimChecks` by the name of CHECKS, marks its functions with `check`, and makes tests of them with `as_test`. Such a
process takes seconds to start, so the files of one test run that ask for the same surroundings share one, which runs
the checks that were asked for. A file that is executed itself runs its own checks, or those named.
"""

import faulthandler
import functools
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from tests.support import simulated_device as sim
from tests.support.paths import ROOT

PROGRAM = "import json, sys; from tests.support import sim_checks; sim_checks.run_files(json.loads(sys.argv[1]))"

needs_compiler = pytest.mark.skipif(not sim.is_buildable(), reason="no C++ compiler to build the simulated device with")


class SimChecks(dict[str, Callable[[], None]]):
    """The checks of one file, by name."""

    def __init__(
        self,
        file: str,
        surroundings: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        is_alone: bool = False,
    ) -> None:
        super().__init__()
        self.file = ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
        self.surroundings = surroundings
        """What is set up, once, around all the checks of a process."""
        self.is_alone = is_alone
        """Whether they have a process of their own: what other checks leave in the allocator would be found there."""
        self.slow: set[str] = set()
        """Names of those that only the full run asks for."""
        self.tested: tuple[str, ...] = ()
        """Names of those that are tests."""

    def check(self, function: Callable[[], None]) -> Callable[[], None]:
        """Name a function as one of the checks that run in the other process."""
        self[function.__name__] = function
        return function

    def shares_process_with(self, other: "SimChecks") -> bool:
        """Whether both files' checks run in one process."""
        return self is other or (self.surroundings is other.surroundings and not self.is_alone and not other.is_alone)

    def as_test(self) -> Callable[[str, dict[str, str]], None]:
        """One test for each check; ask for it when all of them are named."""
        self.tested = tuple(self)
        names = [pytest.param(name, marks=[pytest.mark.slow] if name in self.slow else []) for name in self]

        @needs_compiler
        @pytest.mark.parametrize("name", names)
        def test(name: str, sim_failures: dict[str, str]) -> None:
            assert name not in sim_failures, sim_failures[name]

        return test

    def run(self, names: Sequence[str] = ()) -> None:
        """Run them (or those named) in this process; the last line of stdout says what went wrong in which."""
        run_together([(self, names or tuple(self))])

    def failures(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """The traceback of every check that failed, where all the wanted, by file, ran in one process."""
        assert self.tested == tuple(self), "a check was named after as_test, so that none would ask for it"
        done = finished(json.dumps(wanted))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])[self.file]
        assert result["num_checks"] == len(wanted[self.file])
        found: dict[str, str] = result["failures"]
        return found


@functools.cache
def finished(wanted: str) -> subprocess.CompletedProcess[str]:
    """Run the wanted checks in another process; asked again, tell how it went."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM, wanted],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )


def run_files(wanted: Mapping[str, Sequence[str]]) -> None:
    """Run the named checks of these files, which ask for the same surroundings, in this process."""
    run_together([(importlib.import_module(file).CHECKS, names) for file, names in wanted.items()])


def run_together(wanted: Sequence[tuple[SimChecks, Sequence[str]]]) -> None:
    """Run the named checks in this process; the last line of stdout says how they went, by file."""
    faulthandler.dump_traceback_later(260, exit=True)
    torch.set_num_threads(1)
    sim.load()
    sim.load()  # which must change nothing
    results = {}
    with wanted[0][0].surroundings():
        for checks, names in wanted:
            failures, seconds = {}, {}
            for name in names:
                began = time.perf_counter()
                try:
                    checks[name]()
                except (Exception, pytest.fail.Exception):
                    failures[name] = traceback.format_exc()
                seconds[name] = round(time.perf_counter() - began, 2)
            results[checks.file] = {"num_checks": len(seconds), "failures": failures, "seconds": seconds}
    print(json.dumps(results))
