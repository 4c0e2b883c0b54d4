"""`overstory bench validate`: were the tokens, the seconds and the choice what was predicted?"""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import OptionError
from runtime.prompts.prompt_file import read_requests
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, ValidationPrompts, with_option_groups
from tui.environment import cache_folder, packaged_prompts
from tui.report import progress_console
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.bench.round_check import LinkCheck
    from runtime.bench.yield_check import YieldReport

_SHOWN_SIZES = (16, 64, 256, 512)
CONTEXT_TOKENS = 512
"""Context where none is given: prompt and answer, and room for the deepest tree."""


@with_option_groups
def validate(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    prompts: ValidationPrompts = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Other prompts, which the acceptance comes from if this pair has no profile.",
            show_default="those that come with it",
        ),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            help="A link to validate on: `real`, or a speed to emulate; may be given again.",
            show_default="real, 0.5GB/s and 2GB/s",
        ),
    ] = None,
    turns: Annotated[int, typer.Option(help="Rounds of each tree on each link.", min=1)] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of each answer that yields are counted on.", min=2)] = 96,
    quiet: Quiet = False,
) -> int:
    """Predicted against measured: tokens per pass, seconds per round on three links, the choice; ends with JSON.

    Without --device-memory no layer stays resident.
    """
    if engine.emulate_link is not None or drafting.tree != "auto":
        raise OptionError("--emulate-link and --tree are what this command goes through; give --link instead")
    config = engine.to_config(drafting)
    if config.device_memory_bytes is None:
        config = replace(config, device_memory_bytes=0)
    if config.context_tokens is None:
        config = replace(config, context_tokens=CONTEXT_TOKENS)
    links = [None if name == "real" else name for name in link or ("real", "0.5GB/s", "2GB/s")]
    params = SamplingParams(max_new_tokens=max_new_tokens)
    requests = read_requests(packaged_prompts("validation.jsonl") if prompts is None else prompts, params)
    others = read_requests(packaged_prompts("calibration.jsonl") if calibration is None else calibration, params)
    console = progress_console(is_quiet=quiet)
    from runtime.bench.round_check import LinkCheck
    from runtime.bench.validation import ValidationReport, run_validation

    steps = run_validation(
        config, requests, calibration_requests=others, links=links, cache_folder=cache_folder(), num_turns=turns
    )
    for step in steps:
        if isinstance(step, ValidationReport):
            for line in yield_lines(step.yields):
                console.print(line, markup=False)
            sys.stdout.write(json.dumps(step.to_record()) + "\n")
        elif isinstance(step, LinkCheck):
            for line in link_lines(step):
                console.print(line, markup=False)
        else:
            console.print(one_line(step), markup=False)
    return 0


def link_lines(check: "LinkCheck") -> list[str]:
    """One link for people: a line a tree, and what they come to."""
    record = check.to_record()
    lines = [
        f"{check.link}: {shape.num_nodes}x{shape.num_levels} round {shape.predicted_seconds:.3f} s predicted, "
        f"{shape.measured_seconds:.3f} measured; {shape.predicted_tokens:.2f} tokens predicted, "
        f"{shape.measured_tokens:.2f} counted"
        for shape in check.shapes
    ]
    return [
        *lines,
        f"{check.link}: seconds per round off by {100 * record['median_round_error']:.1f} % in the median, "
        f"{100 * record['worst_round_error']:.1f} % at worst; per token {100 * record['median_token_error']:.1f} and "
        f"{100 * record['worst_token_error']:.1f} %; the planner's {record['choice']} takes "
        f"{check.choice_over_best:.3f} of the best measured",
    ]


def yield_lines(yields: "YieldReport") -> list[str]:
    """Tokens for people."""
    curve = yields.curve
    places = [size - 1 for size in _SHOWN_SIZES if size in yields.shown_sizes]
    trees = [
        f"trees of {place + 1} nodes: {_figure(curve.measured[place], curve.measured_errors[place])} tokens counted, "
        f"{curve.by_rank[place]:.2f} by rank, {_figure(curve.by_depth[place], curve.by_depth_errors[place])} by depth"
        for place in places
    ]
    chains = [
        f"a chain of {chain.num_nodes}: {_figure(chain.measured, chain.standard_error)} tokens counted, "
        f"{chain.by_rank:.2f} by rank, {_figure(chain.by_depth, chain.by_depth_error)} by depth"
        for chain in yields.chains
    ]
    return [
        f"G(n) = {curve.log_intercept:.2f} + {curve.log_slope:.2f} ln n explains {100 * curve.log_r_squared:.1f} % of "
        f"the variance over {curve.num_positions} positions; by rank it is off by up to "
        f"{100 * curve.worst_error_by_rank:.0f} %, by depth by up to {100 * curve.worst_error_by_depth:.0f} %",
        f"predictions rest on {yields.num_predicted_positions} positions of {yields.num_predicted_texts} texts; "
        "standard errors are between texts",
        *trees,
        *chains,
    ]


def _figure(value: float, error: float | None) -> str:
    return f"{value:.2f}" if error is None else f"{value:.2f} (±{error:.2f})"
