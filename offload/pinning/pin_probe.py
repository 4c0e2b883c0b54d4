"""Find out how much host memory the driver pins, in a process of its own: one refusal poisons the process that met it.

The child pins 256 MiB after 256 MiB and reports each step in a line, so that even its death tells what it had been
granted; the parent keeps four fifths of that. `python -m offload.pinning.pin_probe` is the child, and of no use to
people.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from offload.errors import LinkError
from offload.free_memory import free_memory_bytes
from offload.pinning.pinned_memory import HostPinner, open_pinner
from offload.units import PAGE_BYTES, format_bytes
from profiles.child_process import EndedChild, finish_child
from profiles.machine_profile import PinBudgetSource

logger = logging.getLogger(__name__)

STEP_BYTES = 256 << 20
"""Small against the budgets that are found in practice, 0.5 GB and more."""
RESERVE_BYTES = 2 << 30
"""Of free host memory, left alone: the child's own libraries, and everybody else."""
_KEPT_PERCENT = 80
_TIMEOUT_SECONDS = 180.0
_CHILD = "offload.pinning.pin_probe"
_STEP = re.compile(r"^pinned (\d+) bytes(?:: (granted|refused))?$", re.MULTILINE)
"""A line of the child's; what a driver prints, and what a crash cut off, is none."""


@dataclass(frozen=True, slots=True)
class PinBudget:
    """How much host memory may be pinned, and how that is known."""

    num_bytes: int | None
    """In all; None where the platform sets no limit."""
    source: PinBudgetSource

    def explain(self) -> str:
        """Say it in one sentence, without its full stop."""
        if self.num_bytes is None:
            return "this system limits pinned host memory only by what the machine has"
        amount = format_bytes(self.num_bytes)
        if self.source is PinBudgetSource.GRANTED:
            return f"{amount} of host memory can be pinned: all that was asked for"
        endings = {
            PinBudgetSource.REFUSED: "the driver refused more",
            PinBudgetSource.CRASHED: "the driver crashed at more",
            PinBudgetSource.TIMED_OUT: "the driver did not answer in time at more",
        }
        return f"{amount} of host memory can be pinned: four fifths of what was granted before {endings[self.source]}"


def probe_pin_budget(device: torch.device) -> PinBudget:
    """Let a child pin what it can without driving others out of memory; return all of it, or four fifths if it failed.

    Raises LinkError if the child did not even begin, so that nothing is known; what it said is quoted.
    """
    limit_bytes = max(0, free_memory_bytes() - RESERVE_BYTES)
    # The child finds modules where this process does, and not in whatever folder the user happens to be.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}  # noqa: PTH100
    return _read_report(
        finish_child(
            (sys.executable, "-P", "-m", _CHILD, str(device), str(limit_bytes)),
            limit_seconds=_TIMEOUT_SECONDS,
            environment=environment,
        )
    )


def _read_report(child: EndedChild) -> PinBudget:
    """Return what the child's last whole line says."""
    exit_code, steps = child.exit_code, _STEP.findall(child.output)
    if not steps:
        last_words = child.complaints.strip().splitlines()[-1:] or ["it said nothing"]
        what = "took too long" if exit_code is None else f"ended with {exit_code}"
        raise LinkError(
            f"The driver could not be asked how much host memory it pins: the probe {what} before its first step "
            f"({last_words[0][:200]}); check that the device works."
        )
    granted_bytes, ending = int(steps[-1][0]), steps[-1][1]
    if exit_code is None:
        source = PinBudgetSource.TIMED_OUT
    elif exit_code != 0 or not ending:
        source = PinBudgetSource.CRASHED
    else:
        source = PinBudgetSource(ending)
    logger.debug("the pin probe was granted %d bytes: %s", granted_bytes, source)
    is_all = source is PinBudgetSource.GRANTED
    return PinBudget(granted_bytes if is_all else granted_bytes * _KEPT_PERCENT // 100, source)


def _steps(pinner: HostPinner, limit_bytes: int) -> Iterator[str]:
    """Yield the child's report, beginning with a line that says that the driver is there; what was granted is kept."""
    granted_bytes = 0
    ending = PinBudgetSource.GRANTED
    while (num_bytes := min(STEP_BYTES, limit_bytes - granted_bytes) // PAGE_BYTES * PAGE_BYTES) > 0:
        yield f"pinned {granted_bytes} bytes"
        slab = pinner.allocate(num_bytes)
        slab[::PAGE_BYTES] = 1
        pinner.filled(slab)
        pinner.finish()
        if pinner.refused is not None:
            ending = PinBudgetSource.REFUSED
            break
        granted_bytes += num_bytes
    yield f"pinned {granted_bytes} bytes: {ending.value}"


def run_child() -> None:
    """Be the child: pin as much for the device as the command line says, a step a line."""
    device, limit_bytes = sys.argv[1:]
    with contextlib.suppress(OSError):  # only Linux has it: this process is to go if memory runs short after all
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    pinner = open_pinner(torch.device(device), None, patience_seconds=None)  # the parent has the patience
    for step in _steps(pinner, int(limit_bytes)):
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()
    # No clean-up: unregistering gigabytes takes seconds, and the driver lets go of them with the process.
    os._exit(0)


if __name__ == "__main__":
    run_child()
