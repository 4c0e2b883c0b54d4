"""A prompt file answered many prompts at a time, beside one at a time: tokens per second of all of it.

Each way has a session of its own, with trees and without. One at a time goes through the first few prompts only, since
all of them would take hours; loading is not counted, reading the prompts is.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from profiles.errors import OverstoryError
from runtime.bench.ratio import link_of_steps, shares_of
from runtime.config import EngineConfig
from runtime.engine.loading import open_session
from runtime.errors import OptionError
from runtime.events import Finished, Round
from runtime.prompts.prompt_file import PromptRequest


@dataclass(slots=True)
class Run:
    """What answering some prompts took; a pass counts once, however many texts share it."""

    num_texts: int
    """Lanes that there were."""
    tree: str
    """Of the last rounds."""
    num_prompts: int = 0
    num_tokens: int = 0
    num_passes: int = 0
    seconds: float = 0.0
    link_seconds: float = 0.0
    compute_seconds: float = 0.0
    draft_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    def to_record(self) -> dict[str, Any]:
        return {
            "num_texts": self.num_texts,
            "num_prompts": self.num_prompts,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_pass": self.num_tokens / max(1, self.num_passes),
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "tree": self.tree,
            **shares_of(self.seconds, link=self.link_seconds, compute=self.compute_seconds, draft=self.draft_seconds),
        }


def run_headless(
    config: EngineConfig,
    requests: Sequence[PromptRequest],
    *,
    counts: Sequence[int],
    num_alone: int = 2,
    plain_tokens: int | None = None,
    steps_per_pass: float | None = None,
) -> Generator[str, None, dict[str, Any]]:
    """Answer the first `counts` of the requests together, and the first `num_alone` one at a time; compare the rates.

    `config` names a draft; its `num_texts` are the most at a time, None as many as `run` would take. Without trees an
    answer has at most `plain_tokens`, where given: each pass brings a text one token there: fewer tell the rate. With
    `steps_per_pass` over a link on which a pass takes so many draft steps. Raises OptionError if there are fewer
    requests than the largest count.
    """
    if len(requests) < max(counts):
        raise OptionError(
            f"{max(counts)} prompts are wanted and the file has {len(requests)}; give fewer, or more prompts"
        )
    if steps_per_pass is not None:
        config = replace(config, pack="on" if config.pack == "on" else "off")
        link, *_ = yield from link_of_steps(replace(config, num_texts=1), requests, steps_per_pass)
        config = replace(config, link=link)
    alone: dict[str, Run] = {}
    together: dict[str, dict[str, Run]] = {}
    ways = {
        "tree": (config, requests),
        "plain": (
            replace(config, draft="none", tree="auto", draft_format="auto", share_layers=False),
            requests if plain_tokens is None else [_shortened(request, plain_tokens) for request in requests],
        ),
    }
    for name, (way, texts) in ways.items():
        alone[name] = _answer_all(replace(way, num_texts=1), texts[:num_alone])
        yield f"{name}, one at a time: {alone[name].tokens_per_second:.3f} tokens/s"
    for count in counts:
        together[str(count)] = {}
        for name, (way, texts) in ways.items():
            run = together[str(count)][name] = _answer_all(way, texts[:count])
            ratio = run.tokens_per_second / alone[name].tokens_per_second
            yield f"{name}, {count} prompts together: {run.tokens_per_second:.3f} tokens/s, {ratio:.2f} times"
    best = {name: max(runs.values(), key=lambda run: run.tokens_per_second) for name, runs in together.items()}
    best_alone = max(alone.values(), key=lambda run: run.tokens_per_second)
    return {
        "link": config.link,  # None: the real one
        "alone": {name: run.to_record() for name, run in alone.items()},
        "together": {count: {name: run.to_record() for name, run in runs.items()} for count, runs in together.items()},
        # the best way together over the best one at a time
        "speedup": {count: run.tokens_per_second / best_alone.tokens_per_second for count, run in best.items()},
    }


def _shortened(request: PromptRequest, most_tokens: int) -> PromptRequest:
    params = request.params
    return replace(request, params=replace(params, max_new_tokens=min(params.max_new_tokens, most_tokens)))


def _answer_all(config: EngineConfig, requests: Sequence[PromptRequest]) -> Run:
    """Answer the requests in a session of their own, whose load is not counted."""
    with open_session(config, requests=requests) as opened:
        engine = opened.session.engine
        run = Run(engine.target.cache.num_lanes, "")
        begun, last_pass = time.perf_counter(), None
        with closing(opened.session.generate_all(requests)) as events:
            for _, event in events:
                if isinstance(event, OverstoryError):
                    raise event
                if isinstance(event, Round) and event.pass_statistics is not last_pass:  # one for all texts
                    last_pass = event.pass_statistics
                    run.num_passes += 1
                    run.link_seconds += last_pass.link_busy_seconds
                    run.compute_seconds += last_pass.compute_seconds
                    run.draft_seconds += event.draft_seconds
                if isinstance(event, Finished):
                    run.num_prompts += 1
                    run.num_tokens += event.statistics.new_tokens
        run.seconds, run.tree = time.perf_counter() - begun, engine.planner.tree_name
    return run
