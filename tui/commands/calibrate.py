"""`overstory calibrate`: measures this machine and a pair of models, and keeps what it finds in the state folder.

Opens the session as `run` would. Progress goes to stderr with an estimate of the time left, then a table; one JSON line
goes to stdout. Nothing is written before everything is measured. What needs numpy is imported when it is asked for.
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import ProfileError
from profiles.pair_profile import AcceptanceTable, PairProfile
from profiles.profile_store import load_pair_profile, save_profile
from profiles.steps import finish
from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from tui.environment import cache_folder, packaged_prompts
from tui.options import DraftingConfig, Quiet, with_option_groups
from tui.printing import measurement_tables, open_session_in_sight, progress_console, settle_draft_in_sight

if TYPE_CHECKING:
    from rich.console import Console

    from profiles.calibrator import CalibrationResult, Calibrator

_SHOWN_RANKS = 8


@with_option_groups
def calibrate(
    config: DraftingConfig,
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
    """Measure this machine and this pair of models, and keep both profiles; ends with one JSON line.

    Unless you name a draft, it is the one that `run` takes where layers stream, also where none does.
    """
    began = time.monotonic()
    if quick and thorough:
        raise OptionError("--quick and --thorough exclude each other; give one of them, or neither for three minutes")
    if config.is_plain:
        raise OptionError(
            "--draft none leaves nothing to calibrate, since a profile is of a target with its draft; leave it out, or "
            "use `overstory bench stream` to measure plain streaming"
        )
    requests = read_requests(packaged_prompts("calibration.jsonl") if prompts is None else prompts, SamplingParams())
    from profiles.calibration_probes import FULL, QUICK, THOROUGH
    from profiles.calibrator import Calibrator

    scope = QUICK if quick else THOROUGH if thorough else FULL
    if config.context_tokens is None:
        config = replace(config, context_tokens=scope.session_context_tokens)
    console = progress_console(is_quiet=quiet)
    config = settle_draft_in_sight(config, [], console)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.calibration.probes import SessionProbes

        probes = SessionProbes(opened, requests, state_folder=cache_folder())
        result = _show(Calibrator(probes, scope, clock=time.monotonic, began=began), console)
    kept, notes = _joined(result, is_link_emulated=config.link is not None)
    pair_path = save_profile(cache_folder(), kept)
    machine_path = save_profile(cache_folder(), result.machine)
    record = calibration_record(result)
    console.print(*measurement_tables(record, title="calibrated"))
    if not quiet:
        sentences = (*map(acceptance_line, result.pair.acceptance), *result.doubts, *notes)
        for line in (*sentences, f"saved {machine_path}", f"saved {pair_path}"):
            sys.stderr.write(line + "\n")
    paths = {"machine_profile": str(machine_path), "pair_profile": str(pair_path)}
    sys.stdout.write(json.dumps(record | paths) + "\n")
    return 0


def _joined(result: "CalibrationResult", *, is_link_emulated: bool) -> tuple[PairProfile, list[str]]:
    """Return the profile to keep, and what it keeps of the one before, of the same models, formats and driver.

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
        compute, copy = (0.0, 0.0) if before is None else (before.compute_slowdown, before.copy_slowdown)
        pair = replace(pair, compute_slowdown=compute, copy_slowdown=copy)
    if result.doubts and before is not None and _positions(before) > _positions(pair):
        pair = replace(pair, acceptance=before.acceptance)
        notes.append(f"the acceptance of {before.measured_at.isoformat()} saw more positions and is kept")
    return pair, notes


def _positions(pair: PairProfile) -> int:
    return sum(table.num_positions[0] for table in pair.acceptance)


def _show(calibrator: "Calibrator", console: "Console") -> "CalibrationResult":
    """Run a calibration under a line that says what is measured and how long it will take; return its result."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("calibrating", total=calibrator.scope.budget_seconds)

        def show(step: str) -> None:
            bar.update(task, description=step, completed=time.monotonic() - calibrator.began)

        return finish(calibrator.run(), show)


def calibration_record(result: "CalibrationResult") -> dict[str, Any]:
    """Return the calibration's main figures as a JSON object; the profiles hold all of them."""
    pair, machine = result.pair, result.machine
    return {
        "seconds": round(result.seconds, 2),
        "target": f"{pair.target.name} ({pair.target.held}, {pair.target.content_digest[:12]})",
        "draft": f"{pair.draft.name} ({pair.draft.held}, {pair.draft.content_digest[:12]})",
        "device": str(machine.device),
        "link_bytes_per_second": machine.link_bytes_per_second,
        "disk_bytes_per_second": machine.disk_bytes_per_second,
        "draft_step_seconds": {step.width: step.seconds for step in pair.draft_steps},
        "num_measured_passes": sum(not cost.is_fitted for cost in pair.pass_costs),
        "num_fitted_passes": sum(cost.is_fitted for cost in pair.pass_costs),
        **asdict(result.overlap),
        "num_texts": sum(table.num_texts for table in pair.acceptance),
        "doubts": result.doubts,
        "acceptance": [
            {
                "temperature": table.temperature,
                "num_positions": max(table.num_positions),
                "num_texts": table.num_texts,
                "by_rank": table.by_rank,
                "by_rank_errors": table.by_rank_errors,
                "first_by_depth": [row[0] for row in table.by_depth],
                "positions_by_depth": table.by_depth_positions,
            }
            for table in pair.acceptance
        ],
    }


def acceptance_line(table: AcceptanceTable) -> str:
    """Say for people what is accepted at a temperature; the profile holds it by depth and by confidence too."""
    ranks = [
        f"{mean:.3f}" + ("" if error is None else f" (±{error:.3f})")
        for mean, error in zip(table.by_rank[:_SHOWN_RANKS], table.by_rank_errors, strict=False)
    ]
    return (
        f"temperature {table.temperature:g}: acceptance by rank {' '.join(ranks)}, any {sum(table.by_rank):.3f}, "
        f"over {max(table.num_positions)} positions of {table.num_texts} texts"
    )
