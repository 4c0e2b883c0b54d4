"""`overstory bench ratio`: how much a tree gains where a pass costs hundreds of draft steps."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, with_option_groups
from tui.environment import cache_folder, packaged_prompts
from tui.report import progress_console
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.bench.ratio_benchmark import RatioRun


@with_option_groups
def ratio(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="four that come with it"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 96,
    steps_per_pass: Annotated[
        float, typer.Option(help="Draft steps that a pass over the emulated link takes.", min=1)
    ] = 220,
    quiet: Quiet = False,
) -> int:
    """Speedup over plain streaming on a link where a pass costs 220 draft steps; ends with one JSON line.

    Without --device-memory no layer stays resident. The paper had 9.5 at temperature 0 and 9.3 at 0.6.
    """
    if engine.emulate_link is not None:
        raise OptionError("--emulate-link is what this command chooses; give --steps-per-pass instead")
    config = engine.to_config(drafting)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = read_requests(packaged_prompts("demo.jsonl") if prompts is None else prompts, params)
    console = progress_console(is_quiet=quiet)
    from runtime.bench.ratio_benchmark import RatioReport, RatioRun, run_ratio_benchmark

    steps = run_ratio_benchmark(config, requests, cache_folder=cache_folder(), steps_per_pass=steps_per_pass)
    for step in steps:
        if isinstance(step, RatioReport):
            sys.stdout.write(json.dumps(step.to_record()) + "\n")
        elif isinstance(step, RatioRun):
            console.print(run_line(step), markup=False)
        else:
            console.print(one_line(step), markup=False)
    return 0


def run_line(run: "RatioRun") -> str:
    """One temperature for people."""
    published = "" if run.published_speedup is None else f" (published: {run.published_speedup:g}x)"
    return (
        f"temperature {run.temperature:g}: {run.speedup:.2f}x as fast as plain streaming{published}, "
        f"{run.seconds_per_token:.3f} s/token, {run.tokens_per_round:.1f} tokens per pass, last tree {run.tree}; "
        f"link {100 * run.link_utilization:.0f} %, computing {100 * run.compute_share:.0f} %, drafting "
        f"{100 * run.draft_share:.0f} % of the time: bound by the {run.bound}"
    )
