"""What a draft costs and how often it is right: seconds per step by width, and the acceptance vector, by format.

The target answers the prompts greedily once; each draft then reads those texts, and the rank of every token of the
target in the draft's own order is a position of the acceptance vector (Sequoia, section 4.1, for greedy decoding).
A step is what the drafter runs for a level: a pass over its nodes behind some context, and the head. Prints nothing.
"""

import statistics
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offload.copying.copy_engine import CopyEngine
from offload.copying.host_engine import HostCopyEngine
from offload.formats.draft_weight import HeldFormat, draft_policy
from offload.formats.weight_format import DRAFT_WIDTHS
from profiles.steps import finish
from runtime.calibration.part_timing import time_draft_step
from runtime.engine.assembly import open_session
from runtime.engine.model_folders import locate_models
from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.model.model_loader import ComputePlan, EmptyModel, ModelFiles, read_others
from runtime.model.streamed_model import StreamedModel, chain_input
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.acceptance import AcceptanceEstimator

NUM_RANKS = 5
STEP_CONTEXT_TOKENS = 64
"""Tokens that a timed step attends to."""
_FORMATS: tuple[HeldFormat, ...] = ("int8", "nf4", "stored")


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A text of the target's own."""

    token_ids: tuple[int, ...]
    """Prompt and greedy answer."""
    num_prompt: int
    """How many of them are the prompt."""


@dataclass(frozen=True, slots=True)
class DraftStep:
    """A draft forward of one width."""

    width: int
    """Nodes of the level."""
    seconds: float
    """Median over the repeats."""
    fastest_seconds: float
    """The fastest of them: what the step takes where nothing else runs."""


@dataclass(frozen=True, slots=True)
class DraftFormatReport:
    """One draft in one format."""

    held: HeldFormat
    """How its layers are held."""
    layer_bytes: int
    """What they take."""
    steps: tuple[DraftStep, ...]
    """By width."""
    acceptance: tuple[float, ...]
    """By rank, the likeliest first: how often the target's greedy token has this rank in the draft's order."""
    standard_errors: tuple[float, ...]
    """Of the acceptance."""
    num_positions: int
    """Tokens of answers that were looked at."""


@dataclass(frozen=True, slots=True)
class DraftReport:
    """What `overstory bench draft` shows."""

    target: str
    """Name of the target's folder."""
    draft: str
    """Name of the draft's folder, or `substitute`."""
    compute_dtype: str
    """Type of the activations."""
    formats: tuple[DraftFormatReport, ...]
    """In the order measured."""

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)


def run_draft_benchmark(
    config: EngineConfig, requests: Sequence[PromptRequest], *, cache_folder: Path, num_repeats: int = 9
) -> Iterator[str | DraftFormatReport | DraftReport]:
    """Yield sentences of progress, each format's report as it is there, and last the whole.

    `draft_format` `auto` measures every format. Raises OptionError without a draft or without prompts.
    """
    if config.is_plain:
        raise OptionError("--draft none leaves nothing to measure; leave it out, or name a draft")
    if not requests:
        raise OptionError("there is no prompt to answer; give a prompt file with at least one")
    target, draft = yield from locate_models(config, cache_folder=cache_folder)
    answered, compute = yield from _answer(config, requests, target=target, draft=draft)
    files = ModelFiles.open(draft or target)
    formats = []
    with HostCopyEngine(num_threads=config.num_reader_threads) as engine:
        for held in _formats_of(config, files, compute, is_substitute=draft is None):
            yield f"measuring the draft as {held}"
            capacity = max(max(len(text.token_ids) for text in answered), STEP_CONTEXT_TOKENS) + max(DRAFT_WIDTHS)
            model = _load(files, held, compute, engine, capacity=capacity, is_substitute=draft is None)
            formats.append(_measure(model, files, held, answered, num_repeats=num_repeats))
            del model  # before the next is read
            yield formats[-1]
    name = "substitute" if draft is None else draft.name
    yield DraftReport(target.name, name, str(compute.dtype).removeprefix("torch."), tuple(formats))


def _formats_of(
    config: EngineConfig, files: ModelFiles, compute: ComputePlan, *, is_substitute: bool
) -> list[HeldFormat]:
    wanted: tuple[HeldFormat, ...] = _FORMATS if config.draft_format == "auto" else (config.draft_format,)
    return list(dict.fromkeys(files.held_format(held, compute, is_substitute=is_substitute) for held in wanted))


def _answer(
    config: EngineConfig, requests: Sequence[PromptRequest], *, target: Path, draft: Path | None
) -> Generator[str, None, tuple[list[AnsweredPrompt], ComputePlan]]:
    """The target's own answers, which the draft only makes quicker, and how a draft multiplies in that session."""
    answered = []
    with open_session(config, target=target, draft=draft, requests=requests) as opened:
        for number, request in enumerate(requests, start=1):
            yield f"answering prompt {number} of {len(requests)}"
            greedy = replace(request, params=replace(request.params, temperature=0.0))
            *_, finished = opened.session.generate(greedy)
            assert isinstance(finished, Finished)
            answered.append(AnsweredPrompt(tuple(opened.session.engine.text), finished.statistics.prompt_tokens))
        dtype, device = opened.plan.dtype, opened.plan.device
    return answered, ComputePlan(dtype, draft_policy(dtype, device), device)


def _load(
    files: ModelFiles,
    held: HeldFormat,
    compute: ComputePlan,
    engine: CopyEngine,
    *,
    capacity: int,
    is_substitute: bool,
) -> StreamedModel:
    """The draft as a session would hold it."""
    empty = EmptyModel.build(files, compute, others=read_others(files, engine, device=compute.device))
    loading = empty.as_draft(held, files, engine, capacity=capacity, is_substitute=is_substitute)
    return finish(loading)


def _measure(
    model: StreamedModel,
    files: ModelFiles,
    held: HeldFormat,
    answered: Sequence[AnsweredPrompt],
    *,
    num_repeats: int,
) -> DraftFormatReport:
    estimator = AcceptanceEstimator(num_ranks=NUM_RANKS)
    for text in answered:
        for hits in greedy_hits(model, text, num_ranks=NUM_RANKS):
            estimator.add(hits, depth=0)
    estimate = estimator.by_rank()
    return DraftFormatReport(
        held=held,
        layer_bytes=sum(files.draft_layer_bytes(held)),
        steps=tuple(_time_step(model, width, num_repeats=num_repeats) for width in DRAFT_WIDTHS),
        acceptance=tuple(round(float(mean), 5) for mean in estimate.means),
        standard_errors=tuple(round(float(error), 5) for error in estimate.standard_errors),
        num_positions=int(estimate.num_positions[0]),
    )


def greedy_hits(model: StreamedModel, text: AnsweredPrompt, *, num_ranks: int) -> Iterator[np.ndarray]:
    """Per token of the answer, (R,): which of the draft's R likeliest tokens it is, if any."""
    model.cache.truncate(0)
    last_token = model.vocab_size - 1
    inputs = [min(token, last_token) for token in text.token_ids[:-1]]
    hidden = model.run_pass(chain_input(inputs, num_cached=0))[text.num_prompt - 1 :]  # (A, E)
    best = model.logits(hidden).topk(num_ranks, dim=-1).indices.numpy(force=True)  # (A, R)
    yield from best == np.asarray(text.token_ids[text.num_prompt :])[:, None]


def _time_step(model: StreamedModel, width: int, *, num_repeats: int) -> DraftStep:
    token_ids = [1 + index % 7 for index in range(STEP_CONTEXT_TOKENS + width)]
    model.cache.truncate(0)
    model.run_pass(chain_input(token_ids[:STEP_CONTEXT_TOKENS], num_cached=0))
    inputs = chain_input(token_ids[STEP_CONTEXT_TOKENS:], num_cached=STEP_CONTEXT_TOKENS)
    seconds = []
    for _ in range(num_repeats + 1):  # the first warms up
        seconds.append(time_draft_step(model, inputs))
        model.cache.truncate(STEP_CONTEXT_TOKENS)
    return DraftStep(width, statistics.median(seconds[1:]), min(seconds[1:]))
