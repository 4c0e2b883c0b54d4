"""`overstory calibrate`: measures this machine and a pair of models, and keeps what it finds in the state folder.

Opens the session as `run` would. Progress goes to stderr with an estimate of the time left, then a table; one JSON line
goes to stdout. Nothing is written before everything is measured. Does not know how anything is measured.
"""

import json
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.calibration_probes import FULL, QUICK, THOROUGH
from profiles.calibrator import CalibrationProgress, CalibrationResult, Calibrator
from profiles.errors import ProfileError
from profiles.pair_profile import PairProfile
from profiles.profile_store import load_pair_profile, save_machine_profile, save_pair_profile
from profiles.steps import finish
from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, with_option_groups
from tui.commands.calibration_report import calibration_lines, calibration_record
from tui.environment import cache_folder, packaged_prompts
from tui.report import progress_console
from tui.session_opening import open_session_in_sight

if TYPE_CHECKING:
    from rich.console import Console

CONTEXT_TOKENS = 2048
"""Context of the session where none is given: enough for texts side by side, and for the planner's contexts."""
QUICK_CONTEXT_TOKENS = 1024
"""The same for --quick."""
THOROUGH_CONTEXT_TOKENS = 6144
"""The same for --thorough: a hundred texts of fifty tokens."""


@with_option_groups
def calibrate(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A .txt or .jsonl file of prompts like those that will be asked.",
            show_default="those that come with it",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="40 seconds instead of three minutes, and rougher.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Ten minutes instead of three: more texts, and tighter acceptance.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Measure this machine and this pair of models, and keep both profiles; ends with one JSON line."""
    began = time.monotonic()
    if quick and thorough:
        raise OptionError("--quick and --thorough exclude each other; give one of them, or neither for three minutes")
    config = engine.to_config(drafting)
    if config.is_plain:
        raise OptionError(
            "--draft none leaves nothing to calibrate, since a profile is of a target with its draft; leave it out, or "
            "use `overstory bench stream` to measure plain streaming"
        )
    requests = read_requests(packaged_prompts("calibration.jsonl") if prompts is None else prompts, SamplingParams())
    scope, context_tokens = FULL, CONTEXT_TOKENS
    if quick:
        scope, context_tokens = QUICK, QUICK_CONTEXT_TOKENS
    elif thorough:
        scope, context_tokens = THOROUGH, THOROUGH_CONTEXT_TOKENS
    if config.context_tokens is None:
        config = replace(config, context_tokens=context_tokens)
    console = progress_console(is_quiet=quiet)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.calibration.probes import SessionProbes

        probes = SessionProbes(opened, requests, state_folder=cache_folder())
        result = _show(Calibrator(probes, scope, clock=time.monotonic, began=began).run(), console)
    kept, notes = _joined(result, is_link_emulated=config.link is not None)
    pair_path = save_pair_profile(cache_folder(), kept)
    machine_path = save_machine_profile(cache_folder(), result.machine)
    if not quiet:
        for line in (*calibration_lines(result), *notes, f"saved {machine_path}", f"saved {pair_path}"):
            sys.stderr.write(line + "\n")
    paths = {"machine_profile": str(machine_path), "pair_profile": str(pair_path)}
    sys.stdout.write(json.dumps(calibration_record(result) | paths) + "\n")
    return 0


def _joined(result: CalibrationResult, *, is_link_emulated: bool) -> tuple[PairProfile, list[str]]:
    """The profile to keep, and what it keeps of the one before, which must be of the same models, formats and driver.

    How much copies and computation slow each other is a fact of the real link, and an acceptance of a few positions is
    worse than an older one of many.
    """
    pair, notes = result.pair, list[str]()
    before: PairProfile | None = None
    with suppress(ProfileError):  # stale or damaged: this is what replaces it
        before = load_pair_profile(
            cache_folder(),
            device=pair.device,
            target=pair.target,
            draft=pair.draft,
            compute_dtype=pair.compute_dtype,
        )
    if is_link_emulated:
        pair = replace(
            pair,
            compute_slowdown=0.0 if before is None else before.compute_slowdown,
            copy_slowdown=0.0 if before is None else before.copy_slowdown,
        )
    if result.doubts and before is not None and _positions(before) > _positions(pair):
        pair = replace(pair, acceptance=before.acceptance)
        notes.append(f"the acceptance of {before.measured_at.isoformat()} saw more positions and is kept")
    return pair, notes


def _positions(pair: PairProfile) -> int:
    return sum(table.num_positions[0] for table in pair.acceptance)


def _show(steps: Generator[CalibrationProgress, None, CalibrationResult], console: "Console") -> CalibrationResult:
    """Run a calibration under a line that says what is measured and how long it will take; return its result."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("calibrating", total=None)

        def show(step: CalibrationProgress) -> None:
            what = f"{step.what}; about {step.left_seconds:.0f} s left"
            total = step.done_seconds + step.left_seconds
            bar.update(task, description=what, completed=step.done_seconds, total=total)

        return finish(steps, show)
