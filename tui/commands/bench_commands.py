"""The commands `bench stream` and `bench round`: how close passes come to the link, and rounds to their prediction.

Progress goes to stderr, one JSON line to stdout. Does not know how anything is measured.
"""

import json
import sys
from dataclasses import replace
from typing import Annotated

import typer

from runtime.errors import OptionError
from runtime.sampling_params import SamplingParams
from tui.command_options import DraftOptions, EngineOptions, Quiet, with_option_groups
from tui.report import measurement_table, progress_console
from tui.session_opening import open_session_in_sight

STREAM_BENCHMARK_TOKENS = 32
"""Context of `bench stream`: more would only reserve memory that it never touches."""
ROUND_BENCHMARK_TOKENS = 512
"""Context of `bench round`."""


@with_option_groups
def stream(engine: EngineOptions, *, quiet: Quiet = False) -> int:
    """Bytes per second of whole passes beside the raw link, measured in one run; ends with one JSON line.

    Without --device-memory no layer stays resident, so that the whole model crosses the link in every pass.
    """
    console = progress_console(is_quiet=quiet)
    config = engine.to_config()
    if config.device_memory_bytes is None:
        config = replace(config, device_memory_bytes=0)
    if config.context_tokens is None:
        config = replace(config, context_tokens=STREAM_BENCHMARK_TOKENS)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.stream_benchmark import StreamReport, run_stream_benchmark

        for measured in run_stream_benchmark(opened):
            if isinstance(measured, StreamReport):
                console.print(measurement_table(measured.to_record(), title="streaming"))
                sys.stdout.write(json.dumps(measured.to_record()) + "\n")
            else:
                console.print(
                    f"turn: {100 * measured.ratio:.1f} % of the raw link, "
                    f"{measured.seconds_over_free_overlap:.3f} of a free overlap's time"
                )
    return 0


@with_option_groups
def round_(
    engine: EngineOptions,
    drafting: DraftOptions,
    *,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 12,
    temperature: Annotated[float, typer.Option(help="Of draft and target; 0 is greedy.", min=0)] = 0.0,
    verification: Annotated[str, typer.Option(help="How sampled tokens are verified, as for `run`.")] = "auto",
    quiet: Quiet = False,
) -> int:
    """Whole rounds beside what the pipeline recurrence gives for their parts, measured apart; ends with one JSON line.

    Without --tree a tree of 64 nodes and 10 levels is verified in every round.
    """
    console = progress_console(is_quiet=quiet)
    config = engine.to_config(drafting)
    if config.tree in ("auto", "static") and not config.is_plain:
        config = replace(config, tree="64x10")
    if config.tree_kind == "dynamic":
        raise OptionError(f"tree is {config.tree}; all rounds need the same one here: give nodes x levels as in 64x10")
    if config.context_tokens is None:
        config = replace(config, context_tokens=ROUND_BENCHMARK_TOKENS)
    with open_session_in_sight(config, [], console) as opened:
        from runtime.bench.round_benchmark import RoundReport, run_round_benchmark

        params = SamplingParams(temperature=temperature, verification=verification)
        for measured in run_round_benchmark(opened, num_rounds=rounds, params=params):
            if isinstance(measured, RoundReport):
                console.print(measurement_table(measured.to_record(), title="rounds"))
                sys.stdout.write(json.dumps(measured.to_record()) + "\n")
            else:
                console.print(measured.describe(), markup=False)
    return 0
