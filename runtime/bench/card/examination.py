"""Runs the probes of a card one after the other and keeps what each says, or why it said nothing.

Each probe has a process of its own: a kernel that reads where it must not takes the whole context of its process along,
and a driver that hangs can be left behind. The child writes one JSON line; what its libraries print is quoted if it
fails.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from offload.device import select_device
from offload.units import format_bytes
from profiles.child_process import child_command, child_environment, ending_words, finish_child
from runtime.bench.card.child import PROBES, Probe
from runtime.errors import OptionError

_QUOTED_SIGNS = 300

Command = Callable[[Sequence[str]], Sequence[str]]
"""From the arguments of a probe's process to its whole command."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What one probe found, or why it found nothing."""

    name: str
    settles: str
    """The question, for a person."""
    seconds: float
    says: tuple[str, ...] = ()
    """Its findings, a sentence each."""
    figures: dict[str, Any] | None = None
    """Everything that it measured; None if it failed."""
    failure: str | None = None


def probe_command(arguments: Sequence[str]) -> Sequence[str]:
    """Return the command of a probe's process."""
    return child_command("runtime.bench.card.child", *arguments)


def run_card(
    wanted: str,
    *,
    names: Sequence[str] = (),
    is_small: bool = False,
    seed: int = 0,
    command: Command = probe_command,
    folder: Path | None = None,
) -> Generator[str, None, dict[str, Any]]:
    """Run the named probes (all of them where none is named) on the `wanted` device; yield progress, return the record.

    `is_small` takes sizes for a simulated device. Files are written below `folder`, which is the system's for temporary
    files unless given, and removed. Raises BadInputError for a device that is not there or has nothing to find out, and
    for a name that no probe has.
    """
    device = select_device(wanted)
    if device.type == "cpu":
        raise OptionError(
            "the device is cpu, but these probes are for an accelerator; name one with --device, and if there should "
            "be one, `overstory doctor` says why torch does not find it"
        )
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise OptionError(f"there is no probe {unknown[0]!r:.80}; known are {', '.join(PROBES)}")
    began, reports = time.perf_counter(), []
    for name in names or PROBES:
        probe = PROBES[name]
        yield f"{name}: {probe.settles}"
        report = _run_probe(
            name, probe, device, arguments=("small" if is_small else "full", str(seed)), command=command, folder=folder
        )
        reports.append(report)
        yield from (f"  {sentence}" for sentence in report.says)
        if report.failure is not None:
            yield f"  failed: {report.failure}"
    return {
        "device": str(device),
        "is_small": is_small,
        "seconds": time.perf_counter() - began,
        "num_failed": sum(report.failure is not None for report in reports),
        "probes": [asdict(report) for report in reports],
    }


def _run_probe(
    name: str, probe: Probe, device: torch.device, *, arguments: Sequence[str], command: Command, folder: Path | None
) -> ProbeReport:
    began = time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix="overstory-card-", dir=folder))
    try:
        if probe.file_bytes and shutil.disk_usage(scratch).free < probe.file_bytes and arguments[0] == "full":
            free = format_bytes(shutil.disk_usage(scratch).free)
            failure = f"{scratch.parent} has {free} free of the {format_bytes(probe.file_bytes)} that its model takes"
            return ProbeReport(name, probe.settles, 0.0, failure=f"{failure}; set TMPDIR to a larger disk")
        found, failure = _answer_of(command((name, str(device), *arguments, str(scratch))), probe.limit_seconds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.perf_counter() - began
    if found is None:
        return ProbeReport(name, probe.settles, seconds, failure=failure)
    return ProbeReport(name, probe.settles, seconds, tuple(found["says"]), found["figures"])


def _answer_of(command: Sequence[str], limit_seconds: float) -> tuple[dict[str, Any] | None, str]:
    """Return what the child wrote, or None and what became of it."""
    child = finish_child(command, limit_seconds=limit_seconds, environment=child_environment())
    if child.exit_code is None:
        return None, f"it took more than {limit_seconds:g} s"
    lines = child.output.strip().splitlines()
    if child.exit_code == 0 and lines:
        try:
            answer: dict[str, Any] = json.loads(lines[-1])
        except ValueError:
            return None, f"its answer was none: {lines[-1][:_QUOTED_SIGNS]}"
        return (None, str(answer["failure"])) if "failure" in answer else (answer, "")
    last_words = " ".join(child.complaints.split())[-_QUOTED_SIGNS:] or "it said nothing"
    return None, f"its process ended {ending_words(child.exit_code)}: {last_words}"
