"""Time to the first token of a conversation that is reopened after a restart, with the prefix cache and without.

One session answers a long prompt and keeps what it has computed. The prompt, its answer and a next question are then
asked in two sessions of their own: one that finds all of it on disk, and one that computes it anew. What was written is
dropped from the page cache before, so that the disk is read; loading is not counted.
"""

import os
import tempfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.config import EngineConfig, SamplingParams
from runtime.engine.loading import OpenSession, open_session
from runtime.engine.prefix_block import SUFFIX
from runtime.errors import OptionError
from runtime.events import Finished, Round
from runtime.prompts.prompt_file import PromptRequest

QUESTION = "\n\nNow say in one sentence what all of this is about:"


@dataclass(frozen=True, slots=True)
class Reopened:
    """How a session came to the first tokens of its answer."""

    first_token_seconds: float
    num_passes: int
    """Until then."""
    num_computed_tokens: int
    """Of the prompt; what was read from disk is not among them."""
    read_bytes_per_second: float | None
    token_ids: tuple[int, ...]
    """Of the answer."""

    def to_record(self) -> dict[str, Any]:
        return {
            "first_token_seconds": self.first_token_seconds,
            "num_passes": self.num_passes,
            "num_computed_tokens": self.num_computed_tokens,
        }


def run_prefix(
    config: EngineConfig, text: str, *, num_tokens: int, max_new_tokens: int = 16
) -> Generator[str, None, dict[str, Any]]:
    """Measure a prompt of `num_tokens` tokens, which `text` is repeated to fill, and its reopening.

    `config` names folders. Raises OptionError if the context does not hold it.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens)
    with tempfile.TemporaryDirectory(prefix="overstory-prefix-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        keeping = replace(config, prefix_cache="auto" if config.prefix_cache == "off" else config.prefix_cache)
        asked = PromptRequest(id="first", prompt=text, params=params)
        with open_session(keeping, state_folder=folder) as opened:
            token_ids, question = _long_prompt(opened, text, num_tokens, max_new_tokens)
            first = _answer(opened, replace(asked, prompt=None, token_ids=token_ids))
            prefixes = opened.session.engine.prefixes
            assert prefixes is not None
            if not prefixes.store.flush(timeout_seconds=600.0):
                raise OptionError("the disk took more than ten minutes for the prefix cache; measure on a faster one")
        yield f"first asked, and kept: {first.first_token_seconds:.2f} s to the first token, {first.num_passes} passes"
        kept_bytes = drop_cached(folder)
        reopened = replace(asked, prompt=None, token_ids=(*token_ids, *first.token_ids, *question))
        runs: dict[str, Reopened] = {}
        for way, each in {"with": keeping, "without": replace(config, prefix_cache="off")}.items():
            with open_session(each, state_folder=folder) as opened:
                runs[way] = _answer(opened, reopened)
            run = runs[way]
            yield f"reopened {way} it: {run.first_token_seconds:.2f} s to the first token, {run.num_passes} passes"
    there, anew = runs["with"], runs["without"]
    return {
        "num_prompt_tokens": len(reopened.token_ids or ()),
        "speedup": anew.first_token_seconds / there.first_token_seconds,
        "with": there.to_record(),
        "without": anew.to_record(),
        "first": first.to_record(),
        "is_same_text": there.token_ids == anew.token_ids,
        "kept_bytes": kept_bytes,
        "read_bytes_per_second": there.read_bytes_per_second,
        "link": config.link,  # None: the real one
    }


def drop_cached(folder: Path) -> int:
    """Let the page cache forget the files below `folder`, where the system can; return their bytes."""
    num_bytes = 0
    for path in (path for path in folder.rglob(f"*{SUFFIX}") if path.is_file()):
        num_bytes += path.stat().st_size
        if hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return num_bytes


def _long_prompt(
    opened: OpenSession, text: str, num_tokens: int, max_new_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of the prompt, and those of the next question."""

    def tokens_of(words: str) -> list[int]:
        return opened.session.format_prompt(PromptRequest(id="text", prompt=words))

    found, question = tokens_of(text), tokens_of(QUESTION)
    needed = num_tokens + 2 * max_new_tokens + len(question) + 1
    if needed > opened.session.engine.context_tokens:
        raise OptionError(
            f"{num_tokens} tokens, two answers and a question need {needed}, and the context holds "
            f"{opened.session.engine.context_tokens}; give a larger --context, or fewer --tokens"
        )
    return tuple((found * (num_tokens // len(found) + 1))[:num_tokens]), tuple(question)


def _answer(opened: OpenSession, request: PromptRequest) -> Reopened:
    """Answer the request, and return how its first tokens came."""
    engine, num_prompt = opened.session.engine, len(request.token_ids or ())
    last_pass, num_passes, is_prompt_read = engine.target.last_pass, 0, False
    with closing(opened.session.generate(request)) as events:
        for event in events:
            if not is_prompt_read and engine.target.last_pass is not last_pass:
                last_pass, num_passes = engine.target.last_pass, num_passes + 1
            is_prompt_read = is_prompt_read or isinstance(event, Round)
    assert isinstance(event, Finished), "the engine's last event is Finished"
    prefixes = engine.prefixes
    return Reopened(
        first_token_seconds=event.statistics.prefill_seconds,
        num_passes=num_passes,
        num_computed_tokens=num_prompt - (0 if prefixes is None else prefixes.num_brought_tokens),
        read_bytes_per_second=None if prefixes is None else prefixes.store.bytes_per_second,
        token_ids=tuple(engine.text[num_prompt:]),
    )
