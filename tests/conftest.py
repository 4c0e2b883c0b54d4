"""What every test process needs: one thread, its share of the files, and word of the simulated device."""

import gc
import importlib
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from textual import _wait, screen
from xdist.scheduler import LoadScopeScheduling

from runtime.engine.demo_model import obtain_demo_model
from tests.support.generator_ends import drained
from tests.support.settled_app import let_pilots_wait
from tests.support.sim_checks import SimChecks
from tui.environment import cache_folder

# On two busy cores, torch's own pool makes tiny models many times slower.
torch.set_num_threads(1)
# The same examples in every run, and no bound on their time that a busy machine could break.
settings.register_profile("overstory", deadline=None, derandomize=True)
settings.load_profile("overstory")
# Between two keys, Textual's pilot sleeps until the app computes for less than a twentieth of 20 ms: clocks and cursors
# alone take more, and it gives up after a second. Half of 5 ms says the same sooner, where frames take less than that.
_wait.SLEEP_GRANULARITY, _wait.SLEEP_IDLE, screen.UPDATE_PERIOD = 0.005, 0.0025, 0.004
# A process that only waits for its turn computes no more than that either: then it waits until nothing is due.
let_pilots_wait()
# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run choose how many of the damaged inputs it tries."""
    parser.addoption("--fuzz", type=int, default=10, metavar="N", help="try one in N damaged inputs (default: 10)")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps a file's tests in one worker, and those on the simulated device that share a process in one as well.

    Files whose checks have a process of their own (`SimChecks.is_alone`) are named otherwise, and go to any worker.

    Without marks for groups: xdist 3.8 puts them where pytest 9.2 no longer looks.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((family for family in ("test_on_accelerator", "test_simulated") if family in file), file)


def pytest_configure(config: pytest.Config) -> None:
    """Let workers take files in the order of the collection, not the ones with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole systems: a soak of minutes that comes last would leave the other worker idle."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Replace xdist's own way of giving tests to workers."""
    return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def lasting_objects() -> None:
    """Keep what the libraries made, up to this file, out of the collections in it: each session begins with one."""
    importlib.import_module("transformers.models.llama.modeling_llama")  # the part of transformers that models load
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test logged fit for the pipe to xdist: names of models may hold half a surrogate pair."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="module")
def sim_failures(request: pytest.FixtureRequest) -> dict[str, str]:
    """The traceback of each of the file's CHECKS that failed; they run together with those of files like it."""
    own: SimChecks = request.module.CHECKS
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        if "sim_failures" in item.fixturenames and own.shares_process_with(item.module.CHECKS):
            names = wanted.setdefault(item.module.CHECKS.file, [])
            names.extend(item.callspec.params.values() if hasattr(item, "callspec") else ())
    return own.failures(wanted)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model, fetched once into the user's cache; for tests marked `real`."""
    return drained(obtain_demo_model(cache_folder()))[1]
