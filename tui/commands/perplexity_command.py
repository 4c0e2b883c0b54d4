"""The command `bench perplexity`: how well a model predicts a fixed text, streamed and as transformers loads it.

Progress goes to stderr, one JSON line to stdout. Does not know how anything is computed.
"""

import json
import sys
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from tui.command_options import EngineOptions, Quiet, with_option_groups
from tui.environment import cache_folder, packaged_prompts
from tui.report import measurement_table, progress_console, show_load

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.bench.perplexity import Perplexity, PerplexityProgress


@with_option_groups
def perplexity(
    engine: EngineOptions,
    *,
    text: Annotated[
        Path | None,
        typer.Option(help="The text to predict, UTF-8.", show_default="one that comes with it"),
    ] = None,
    beside_transformers: Annotated[
        bool, typer.Option("--beside-transformers", help="Also load the model whole with transformers, and compare.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Perplexity of a fixed text through streamed passes; ends with one JSON line."""
    console = progress_console(is_quiet=quiet)
    path = packaged_prompts("perplexity.txt") if text is None else text
    content = _read_text(path)
    from runtime.engine.model_folders import locate_models

    config = show_load(locate_models(engine.to_config(), cache_folder=cache_folder()), console)
    record = _measure(config, content, console, is_compared=beside_transformers)
    console.print(measurement_table(record, title="perplexity"))
    sys.stdout.write(json.dumps({**record, "target": config.target, "text": str(path)}) + "\n")
    return 0


def _measure(config: EngineConfig, content: str, console: "Console", *, is_compared: bool) -> dict[str, Any]:
    """One after the other, so that both models are never in memory at the same time."""
    from runtime.bench.perplexity import streamed_perplexity, text_request, tokenize_text, transformers_perplexity
    from runtime.engine.loading import open_session

    with open_session(config, requests=[text_request(content)]) as opened:
        token_ids = tokenize_text(opened, content)
        streamed = _finish(streamed_perplexity(opened, token_ids), console, "streamed")
    record: dict[str, Any] = asdict(streamed)
    if is_compared:
        whole = _finish(
            transformers_perplexity(opened.plan.target.checkpoint.folder, token_ids), console, "transformers"
        )
        record["transformers_perplexity"] = whole.perplexity
        record["transformers_seconds"] = whole.seconds
        record["relative_difference"] = streamed.perplexity / whole.perplexity - 1
    return record


def _finish(
    steps: "Generator[PerplexityProgress | Perplexity, None, None]", console: "Console", name: str
) -> "Perplexity":
    from runtime.bench.perplexity import Perplexity

    result: Perplexity | None = None
    for event in steps:
        if isinstance(event, Perplexity):
            result = event
        else:
            console.print(f"{name}: {event.num_done_tokens} of {event.num_tokens} tokens", markup=False)
    assert result is not None, "a measurement ends with its result"
    return result


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(f"the text {path} cannot be read: {reason}; give a text file with --text") from error
