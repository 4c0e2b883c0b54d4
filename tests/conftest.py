"""What every test process needs: one thread, and word of what happened on the simulated device."""

from pathlib import Path

import pytest
import torch

from runtime.engine.demo_model import obtain_demo_model
from tests.support.generator_ends import drained
from tests.support.sim_checks import SimChecks
from tui.locations import cache_folder

# On two busy cores, torch's own pool makes tiny models many times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sim_failures(request: pytest.FixtureRequest) -> dict[str, str]:
    """The traceback of each of the file's CHECKS that failed; they run together with those of files like it."""
    own: SimChecks = request.module.CHECKS
    files = [item.module.CHECKS for item in request.session.items if "sim_failures" in item.fixturenames]
    return own.failures(list(dict.fromkeys(each.file for each in files if each.surroundings is own.surroundings)))


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model, fetched once into the user's cache; for tests marked `real`."""
    return drained(obtain_demo_model(cache_folder()))[1]
