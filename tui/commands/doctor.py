"""`overstory doctor`: what this machine can do, what would stop a 70B model here, and what to do about it.

Only asks and shows. Exit code 0 where every model asked about runs in some format, however slowly; 1 where one does
not; 2 for a --target or --draft that cannot be used. torch is imported when the command runs.
"""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from offload.units import format_bytes
from runtime.config import EngineConfig
from tui.environment import cache_folder
from tui.options import Quiet
from tui.printing import announce, print_grid, progress_console
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.advice import Advice
    from runtime.fit.doctor import DoctorReport, ModelOutlook

_WIDTH = 80
_VERDICTS = {"fits": "green", "slow": "yellow", "no": "red"}


def doctor(
    target: Annotated[
        str | None, typer.Option(help="A model folder, GGUF file or cached hub name to ask about.", show_default="none")
    ] = None,
    draft: Annotated[
        str, typer.Option(help="What would draft for it: auto, substitute, none, or a model as for the target.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, or TYPE[:INDEX] as in cuda:0.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    quiet: Quiet = False,
) -> int:
    """Say what this machine can do, what would stop a 70B model here, and what to do about it."""
    from runtime.fit.startup import check_startup

    check_startup(None, is_measuring=True)
    from runtime.fit.doctor import check_up

    config = EngineConfig(target=target, draft=draft, device=device)
    report = announce(check_up(config, cache_folder=cache_folder()), progress_console(is_quiet=quiet))
    if as_json:
        sys.stdout.write(json.dumps(report.to_record()) + "\n")
    else:
        print_report(report, Console(file=sys.stdout, highlight=False, emoji=False))
    return 0 if report.can_run else 1


def print_report(report: "DoctorReport", out: Console) -> None:
    """Write the report for a person, at most 80 columns wide."""
    out.width = min(out.width, _WIDTH)
    print_grid(_rows(report), out)
    for model in report.models:
        title = f"{model.name}, {model.need.context_tokens} tokens of context, draft: {model.draft}"
        out.print()
        out.print(Text(one_line(title), "bold"))
        for note in (model.draft_note, model.packing_note, report.elsewhere_note(model)):
            if note is not None:
                out.print(Text(one_line(note)))
        print_grid(_model_rows(model, report), out)
        if any(change.kind in ("format", "combined") for fit in model.fits for change in fit.changes):
            out.print(Text("  int8, nf4: overstory prepare MODEL --format int8|nf4 --output DIR", "dim"))
    if not report.models:
        out.print()
        out.print(Text("Without the memory above, nothing can be said about models.", style="red"))


def _rows(report: "DoctorReport") -> Iterator[tuple[Text, Text]]:
    for row in report.rows.values():
        for index, text in enumerate(row.texts):
            yield Text("" if index else row.label, "bold"), Text(one_line(text), "" if row.problem is None else "red")


def _model_rows(model: "ModelOutlook", report: "DoctorReport") -> Iterator[tuple[Text, Text, Text]]:
    for fit in model.fits:
        verdict = "fits" if fit.placement.runs_well else "slow" if fit.placement.can_run else "no"
        first, *others = *_fit_lines(fit, report), *_first_token_lines(model, fit, report)
        yield Text(f"  {fit.placement.format_name}"), Text(verdict, _VERDICTS[verdict]), Text(first)
        yield from ((Text(), Text(), Text(line)) for line in others)


def _fit_lines(fit: "Advice", report: "DoctorReport") -> list[str]:
    """Return what fits or what to do, then where the layers would lie and what a pass would cost."""
    placement = fit.placement
    sentence = fit.sentence.removeprefix("fits: ")  # the verdict beside it says so
    if not placement.can_run or placement.streamed_bytes == 0:
        return [sentence]
    is_cpu = report.machine is not None and report.machine.is_cpu
    tiers = (
        (placement.num_resident_layers, "stay in memory" if is_cpu else "stay on the device"),
        (placement.num_host_layers, "wait in host memory"),
        (placement.num_disk_layers, "are read from disk"),
    )
    seconds = report.seconds_per_pass(placement)
    cost = "; how fast was not measured" if seconds is None else f" in {_seconds(seconds)} or more"
    moved = format_bytes(placement.usual_pass_bytes)
    if placement.travelling_bytes:
        rows = format_bytes(placement.usual_pass_bytes - placement.streamed_bytes)
        moved += f" ({rows} of it keys and values, with the context half full)"
    cost = f"a pass moves {moved}{cost}"
    counted = ", ".join(f"{number} {where}" for number, where in tiers if number)
    return [sentence, cost if placement.runs_well else f"layers: {counted}; {cost}"]


def _first_token_lines(model: "ModelOutlook", fit: "Advice", report: "DoctorReport") -> Iterator[str]:
    found = [f"{one.prompt_tokens} tokens {_seconds(one.seconds)}" for one in report.first_tokens(model, fit)]
    if found:
        yield f"until an answer begins, a draft's part aside: a prompt of {', '.join(found)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
