"""Estimates how well models on this machine would fit, before one is loaded: for the model picker.

The planner needs torch and measures the machine for a second or two, so a short-lived process asks it; estimates come
as they are made. Reads no weights and nothing from the network.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offload.errors import BudgetError
from offload.units import format_bytes
from profiles.errors import OverstoryError
from profiles.steps import finish
from runtime.config import EngineConfig, parse_speed
from tui.chat.engine.child_process import child_command, child_environment, lines_of, own_streams, step_back, write_line
from tui.environment import cache_folder, quieten_libraries
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.machine import Machine
    from runtime.fit.plan_report import PlanReport

Fit = Literal["resident", "streams", "does not fit", "unusable", "unknown"]


@dataclass(frozen=True, slots=True)
class FitEstimate:
    """What to expect of one model on this machine."""

    folder: str
    fit: Fit
    """Every layer stays on the device; some cross a link in every pass; too large; no model for us; not known."""
    seconds_per_token: float | None
    """Predicted by the plan; None where it does not run."""
    sentence: str
    """All of it in words."""


async def estimate_fits(
    folders: Sequence[str | Path],
    config: EngineConfig,
    *,
    command: Sequence[str] = child_command("tui.chat.fit_estimates"),
) -> AsyncGenerator[FitEstimate, None]:
    """Yield an estimate for each folder as it is made, in order; the target of `config` is not looked at.

    Closing the iteration ends the process that makes them. Every folder gets an estimate, if only an unknown one.
    """
    waiting = [str(folder) for folder in folders]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(HF_HUB_OFFLINE="1"),
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps((waiting, asdict(config))).encode() + b"\n")
        async for line in process.stdout:
            estimate = FitEstimate(**json.loads(line))
            waiting.remove(estimate.folder)
            yield estimate
    finally:
        process.stdin.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    for folder in waiting:
        yield FitEstimate(folder, "unknown", None, "no estimate: the planner ended early")


def make_estimates(folders: Sequence[str], config: EngineConfig) -> Iterator[FitEstimate]:
    """Plan for each folder, in the child; the machine is measured once, with the first that is a model."""
    from runtime.fit.plan import plan_with_profiles
    from runtime.fit.plan_question import find_machine, resolve_question
    from runtime.fit.request import MachineRequest, PlanRequest

    machine: Machine | None = None
    limits = MachineRequest(
        device=config.device,
        device_memory_bytes=config.device_memory_bytes,
        host_memory_bytes=config.host_memory_bytes,
        link=None if config.link is None else parse_speed(config.link, "link"),
        disk=None if config.disk_link is None else parse_speed(config.disk_link, "disk_link"),
    )
    for folder in folders:
        try:
            request = PlanRequest(
                target=folder,
                draft=config.draft,
                draft_format=config.draft_format,
                context_tokens=config.context_tokens,
                tree="auto" if config.is_plain else config.tree,
            )
            question = resolve_question(request)
            if machine is None:
                machine = finish(find_machine(limits, cache_folder=cache_folder(), model_folder=Path(folder)))
            yield estimate_of(folder, plan_with_profiles(question, machine, cache_folder=cache_folder()))
        except BudgetError as error:
            yield FitEstimate(folder, "does not fit", None, one_line(str(error)))
        except OverstoryError as error:
            yield FitEstimate(folder, "unusable", None, one_line(str(error)))


def estimate_of(folder: str, report: "PlanReport") -> FitEstimate:
    """Return what the picker shows of a plan."""
    plan, placed = report.main, report.main.placement
    seconds = plan.seconds_per_token
    if not plan.streams:
        sentence = f"stays in memory whole ({format_bytes(placed.device_bytes)}), about {1 / seconds:.3g} tokens/s"
        return FitEstimate(folder, "resident", seconds, sentence)
    source = ", from disk," if placed.disk_bytes else ""
    sentence = f"streams {format_bytes(placed.streamed_bytes)}{source} in every pass, about {seconds:.3g} s/token"
    return FitEstimate(folder, "streams", seconds, sentence)


def main() -> None:
    """Run the child: one line with the question comes, one line goes for each folder."""
    requests, reports = own_streams()
    step_back()
    quieten_libraries()
    folders, config = json.loads(next(lines_of(requests)))
    for estimate in make_estimates(folders, EngineConfig(**config)):
        write_line(reports, json.dumps(asdict(estimate)).encode() + b"\n")
    os._exit(0)  # the system takes all memory back at once


if __name__ == "__main__":
    main()
