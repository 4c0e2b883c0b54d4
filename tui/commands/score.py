"""`overstory score` says how likely a model finds continuations that are given, many to a pass."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

from runtime.config import (
    ACCELERATOR_MAX_PREFILL_TOKENS,
    ACCELERATOR_SLICE_TOKENS,
    MAX_PREFILL_TOKENS,
    EngineConfig,
    SamplingParams,
)
from runtime.prompts.headless import pending_items
from runtime.prompts.prompt_file import BadLine, PromptRequest
from runtime.prompts.result_format import SCORE_FORMAT
from runtime.prompts.result_order import InputOrder
from runtime.scoring.score_file import ScoreRequest, ScoreResult, read_score_requests
from tui.commands.run import check_resumable, open_results
from tui.options import PlainConfig, Quiet, with_option_groups
from tui.printing import LineProgress, open_session_in_sight, progress_console

_NUM_STRETCHES = ACCELERATOR_MAX_PREFILL_TOKENS // ACCELERATOR_SLICE_TOKENS
"""Of texts that are computed in one pass: a layer computes so many of their tokens at once that these fill one."""

if TYPE_CHECKING:
    from rich.console import Console


@with_option_groups
def score(
    texts: Annotated[
        str,
        typer.Argument(
            metavar="TEXTS", help="A file of JSON lines with context, continuation and optionally id, or - for stdin."
        ),
    ],
    config: PlainConfig,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Append results to this file.", show_default="stdout")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip ids that --output already has.")] = False,
    quiet: Quiet = False,
) -> int:
    """Score continuations: log-likelihood given the context, and whether greedy decoding would write them.

    Results are JSON lines, in the order of the texts, but in --output as they come: log_likelihood (natural, of all
    tokens of the continuation together), is_greedy, tokens, context_tokens, truncated_tokens, error.

    Many texts share each pass over the model, and what they begin with alike is computed once, as the choices of a
    question or the examples before all questions.

    Context and continuation are split into tokens as lm-evaluation-harness does: spaces that end the context belong to
    the continuation, and an empty context is the token that begins a text. What is longer than --context (unless given,
    the longest text, at most what the model allows) loses its beginning, as truncated_tokens says.
    """
    check_resumable(output, is_resumed=resume)
    items = read_score_requests(texts)
    console = progress_console(is_quiet=quiet)
    num_errors = 0
    with ExitStack() as stack:
        results = open_results(stack, output, SCORE_FORMAT, is_resumed=resume)
        items = pending_items(items, results.finished_ids)
        written = results if output is not None else InputOrder(results, items)
        for result in _scored(config, items, console):
            written.append(result)
            num_errors += result.error is not None
    if num_errors:
        sys.stderr.write(f"overstory: error: {num_errors} of {len(items)} texts have no score; see `error` there\n")
    return int(num_errors > 0 or results.kept_in is not None)


def _scored(config: EngineConfig, items: Sequence[ScoreRequest | BadLine], console: "Console") -> Iterator[ScoreResult]:
    """Yield the result of every line, bad ones first; where no other is left, no model is opened."""
    requests = [item for item in items if isinstance(item, ScoreRequest)]
    for item in items:
        if isinstance(item, BadLine):
            yield ScoreResult(id=item.id, line_number=item.line_number, error=item.error)
    if not requests:
        return
    config = replace(config, num_texts=None)
    with open_session_in_sight(config, _sizing(requests), console) as opened:
        from runtime.scoring.scorer import Scorer

        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
        with LineProgress(console, *columns) as progress:
            task = progress.add_task("", total=len(requests))
            for event in Scorer(opened.session.engine, opened.plan.tokenizer).run(requests):
                if isinstance(event, ScoreResult):
                    progress.advance(task)
                    yield event


def _sizing(requests: Sequence[ScoreRequest]) -> list[PromptRequest]:
    """Return prompts for which a session has the room that texts need, and so many stretches of them as fill a pass.

    A text has no more tokens than bytes, so that only long ones must be counted.
    """
    long = [text for each in requests if len((text := each.context + each.continuation).encode()) > MAX_PREFILL_TOKENS]
    short = [("a", MAX_PREFILL_TOKENS)] * _NUM_STRETCHES
    return [
        PromptRequest(id="", prompt=text, params=SamplingParams(max_new_tokens=num_more))
        for text, num_more in (*((text, 1) for text in long), *short)
    ]
