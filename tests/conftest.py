"""What every test process needs: one thread, and word of what happened on the simulated device."""

import pytest
import torch
from sim_checks import SimChecks

# On two busy cores, torch's own pool makes tiny models many times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sim_failures(request: pytest.FixtureRequest) -> dict[str, str]:
    """The traceback of each of the file's CHECKS that failed; they run together with those of files like it."""
    own: SimChecks = request.module.CHECKS
    files = [item.module.CHECKS for item in request.session.items if "sim_failures" in item.fixturenames]
    return own.failures(list(dict.fromkeys(each.file for each in files if each.surroundings is own.surroundings)))
