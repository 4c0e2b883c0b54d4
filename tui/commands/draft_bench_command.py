"""`overstory bench draft`: what a draft costs and how often it is right, by the format that its layers are held in."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, with_option_groups
from tui.environment import cache_folder, packaged_prompts
from tui.report import progress_console
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.bench.draft_benchmark import DraftFormatReport


@with_option_groups
def draft(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="four that come with it"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each greedy answer to hold the draft against.")] = 48,
    repeats: Annotated[int, typer.Option(min=1, help="How often each step is timed.")] = 9,
    quiet: Quiet = False,
) -> int:
    """Seconds of a draft step by width, and the acceptance of ranks 1 to 5, by format; ends with one JSON line."""
    config = engine.to_config(drafting)
    params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    requests = read_requests(packaged_prompts("demo.jsonl") if prompts is None else prompts, params)
    console = progress_console(is_quiet=quiet)
    from runtime.bench.draft_benchmark import DraftFormatReport, DraftReport, run_draft_benchmark

    for step in run_draft_benchmark(config, requests, cache_folder=cache_folder(), num_repeats=repeats):
        if isinstance(step, DraftReport):
            sys.stdout.write(json.dumps(step.to_record()) + "\n")
        elif isinstance(step, DraftFormatReport):
            for line in format_lines(step):
                console.print(line, markup=False)
        else:
            console.print(one_line(step), markup=False)
    return 0


def format_lines(report: "DraftFormatReport") -> list[str]:
    """One format for people: its size and steps, then its acceptance."""
    steps = ", ".join(f"{step.width}: {1000 * step.seconds:.0f} ms" for step in report.steps)
    pairs = zip(report.acceptance, report.standard_errors, strict=True)
    acceptance = " ".join(f"{mean:.3f} (±{error:.3f})" for mean, error in pairs)
    return [
        f"{report.held}: layers {report.layer_bytes / 1e6:.0f} MB; step by width {steps}",
        f"{report.held}: acceptance by rank {acceptance} over {report.num_positions} positions",
    ]
