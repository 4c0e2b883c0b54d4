"""`overstory run --dry-run`: what a run would answer, what is wrong with its lines, and how long it would take."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from runtime.config import EngineConfig
from runtime.prompts.headless import PromptItem
from runtime.prompts.prompt_file import BadLine, PromptRequest
from tui.commands.plan import print_rows, tiers_text, tree_text
from tui.environment import cache_folder
from tui.printing import announce
from tui.terminal_text import clock_text, counted, one_line, seconds_text

if TYPE_CHECKING:
    from runtime.engine.forecast import Forecast

_WIDTH = 100
_MOST_NAMED = 100
"""Lines without an answer that are named; of others there is the number."""


def show_dry_run(config: EngineConfig, items: Sequence[PromptItem], console: Console, *, num_done: int) -> None:
    """Print the forecast of answering `items`, beside which the file has `num_done` that are answered.

    What is measured goes to `console`. Raises BadInputError where a load would.
    """
    out = Console(file=sys.stdout, highlight=False, emoji=False)
    out.width = min(out.width, _WIDTH)
    bad = [(item.id, item.error) for item in items if isinstance(item, BadLine)]
    requests = [item for item in items if isinstance(item, PromptRequest)]
    forecast = None
    if requests:
        from runtime.engine.forecast import forecast_run, locate_here
        from runtime.fit.startup import check_startup

        config = locate_here(config, cache_folder=cache_folder())
        check_startup(None, is_measuring=True)
        forecast = announce(forecast_run(config, requests, cache_folder=cache_folder()), console)
        bad += [(request.id, sentence) for request, sentence in forecast.refused]
    rows = [("prompts", _prompts_text(len(items), num_bad=len(bad), num_done=num_done))]
    print_rows(out, [*rows, *(() if forecast is None else forecast_rows(forecast))])
    if forecast is not None:
        _print_basis(out, forecast)
    if bad:
        out.print(Text("\ncannot be answered", "bold"))
        print_rows(out, bad[:_MOST_NAMED])
        if len(bad) > _MOST_NAMED:
            out.print(f"  and {len(bad) - _MOST_NAMED} more")


def _prompts_text(num_items: int, *, num_bad: int, num_done: int) -> str:
    words = [f"{counted(num_items - num_bad, 'prompt')} to answer"]
    words += [f"{num_done:,} answered already"] if num_done else []
    words += [f"{num_bad:,} cannot be answered"] if num_bad else []
    return ", ".join(words)


def forecast_rows(forecast: "Forecast") -> Iterator[tuple[str, str]]:
    """Yield (what, words) for models, tokens, passes and time."""
    plan, report, schedule = forecast.plan, forecast.report, forecast.schedule
    draft = plan.draft_name if plan.config.is_plain else f"{plan.draft_name} ({plan.draft_held})"
    yield "models", f"{plan.target_name} ({plan.target.stored_name}), draft {draft}"
    yield (
        "tokens",
        f"{forecast.prompt_tokens:,} of prompts, at most {forecast.most_new_tokens:,} of answers; "
        f"context {plan.need.context_tokens:,}",
    )
    if report is None or schedule is None:
        yield "time", f"not predicted: {forecast.problem}"
        return
    main, number = report.main, forecast.num_together
    together = "one prompt a pass" if number == 1 else f"{number} prompts share a pass"
    yield "together", f"{together}: {report.all_tokens_per_second:.3g} tokens/s while all of them write"
    yield "layers", tiers_text(main)
    yield "tree", tree_text(main) + (" for each prompt" if number > 1 else "")
    round_tokens = main.tree.expected_tokens * number
    yield "round", f"{seconds_text(main.tree.round_seconds)}, {round_tokens:.3g} tokens, bound by {main.bound}"
    yield "passes", f"at most {schedule.num_passes:,}"
    reading = f", {clock_text(schedule.reading_seconds)} of it to read prompts" if schedule.reading_seconds >= 1 else ""
    yield "time", f"at most {clock_text(schedule.seconds)} (hours:minutes:seconds){reading}, loading aside"


def _print_basis(out: Console, forecast: "Forecast") -> None:
    report = forecast.report
    if report is None:
        return
    out.print(Text("\nwhat this rests on", "bold"))
    print_rows(out, ((what, f"{basis}: {words}") for what, basis, words in report.basis_lines))
    notes = ["answers that end by themselves take less"]
    if report.main.measured_at is None:
        notes.append(
            "this pair of models was not measured here, and rounds on a processor may take up to three times as long "
            "as single products foretell; overstory calibrate makes the figures surer"
        )
    if forecast.plan.config.num_graft_nodes:
        notes.append("continuations that the text itself holds are not counted; they make it faster")
    for note in (forecast.plan.draft_note, *report.notes, *notes):
        if note is not None:
            out.print(Text(one_line(f"note: {note}"), "dim"))
