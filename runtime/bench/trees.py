"""Tokens per pass of static and of dynamic trees at equal size, counted on the target's own texts.

The target writes each text once, greedily or with the noise of its seed. What it would emit along that text is then
known, whatever is proposed: rounds are played through with the draft alone, each tree walked along the text, so that a
round costs no pass of the target and emits exactly what it would.
"""

import itertools
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from profiles.acceptance import error_between
from profiles.steps import finish
from runtime.config import PREFILL_CHUNK_TOKENS, SamplingParams
from runtime.engine.drafter import Drafter
from runtime.engine.growing_tree import WantedTree
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.planner.growth import growth_limits
from runtime.planner.tree_choice import TreeShape
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.schemes import scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.tree_search import best_first

_WRITING_SHAPE = (32, 10)
"""Nodes and levels of the trees that help to write the texts: little to verify."""


@dataclass(frozen=True, slots=True)
class WrittenText:
    """What the target wrote, by these parameters."""

    token_ids: list[int]
    """Prompt and answer."""
    num_prompt: int
    """How many of them are the prompt."""
    params: SamplingParams


def run_trees(
    opened: OpenSession,
    requests: Sequence[PromptRequest],
    *,
    temperatures: Sequence[float],
    sizes: Sequence[int],
    num_levels: int,
) -> Generator[str, None, dict[str, Any]]:
    """Count both kinds of trees of each size at each temperature; return them with what context gains.

    A round starts only where the text goes on for `num_levels` tokens, so that no tree is cut short. Raises OptionError
    if every answer is shorter, or if the session holds no tree so large.
    """
    engine, most = opened.session.engine, opened.plan.need.max_nodes
    drafter, planner = engine.drafter, engine.planner
    assert drafter is not None, "the configuration names a draft"
    if max(sizes) > most:
        raise OptionError(f"{max(sizes)} nodes are more than the {most} that this session has room for; give --tree")
    counted, gains = list[dict[str, Any]](), list[tuple[float, int, float]]()
    for temperature in temperatures:
        asked = [
            replace(request, params=replace(request.params, temperature=temperature, seed=seed, verification="coupled"))
            for seed, request in enumerate(requests, start=1)
        ]
        written = yield from write_texts(opened, asked)
        texts = [text for text in written if len(text.token_ids) - text.num_prompt > num_levels]
        if not texts:
            raise OptionError(
                f"no answer has more than {num_levels} tokens at temperature {temperature:g}; "
                "give more --max-new-tokens, or fewer --levels"
            )
        planner.use_temperature(temperature)
        for size in sizes:
            search = best_first(planner.acceptance, size, num_levels)  # by what is known of this pair
            shapes = (search.topology(len(search.depths)), growth_limits(size, num_levels))
            pair = [
                _count(drafter, shape, texts, size=size, num_levels=num_levels, spread=planner.spread)
                for shape in shapes
            ]
            static, grown = (tree["tokens_per_pass"] for tree in pair)
            counted += pair
            gains.append((temperature, size, grown / static))
            yield f"temperature {temperature:g}, {size} nodes: {static:.2f} tokens per pass, {grown:.2f} with context"
    return {
        "gains": gains,  # (temperature, nodes, tokens per pass of the dynamic tree over those of the static one)
        "target": opened.plan.target_name,
        "draft": opened.plan.draft_name,
        "num_texts": len(texts),
        "trees": counted,
    }


def write_texts(opened: OpenSession, requests: Sequence[PromptRequest]) -> Generator[str, None, list[WrittenText]]:
    """Let the target write; whatever tree helps, the texts are the same, so a small one does.

    The session is empty afterwards.
    """
    engine, texts = opened.session.engine, []
    engine.planner.held_tree = best_first(engine.planner.acceptance, *_WRITING_SHAPE).topology(_WRITING_SHAPE[0])
    try:
        for number, request in enumerate(requests, start=1):
            yield f"text {number} of {len(requests)} at temperature {request.params.temperature:g}"
            with closing(opened.session.generate(request)) as events:
                *_, finished = events
            assert isinstance(finished, Finished), "the engine's last event is Finished"
            texts.append(WrittenText(list(engine.text), finished.statistics.prompt_tokens, request.params))
    finally:
        engine.planner.held_tree = None
        engine.truncate(0)
    return texts


def _count(
    drafter: Drafter, shape: TreeShape, texts: Sequence[WrittenText], *, size: int, num_levels: int, spread: float
) -> dict[str, Any]:
    played = [list(_rounds(drafter, shape, text, num_levels=num_levels, spread=spread)) for text in texts]
    emitted = [sum(num_tokens for num_tokens, _, _ in rounds) for rounds in played]
    counts = [len(rounds) for rounds in played]
    (error,) = error_between(np.array(emitted, dtype=np.float64)[:, None], np.array(counts))
    _, seconds, steps = zip(*itertools.chain.from_iterable(played), strict=True)
    return {
        "temperature": texts[0].params.temperature,
        "kind": "static" if isinstance(shape, TreeTopology) else "dynamic",
        "num_nodes": size,  # the most that a tree may have, as the levels
        "num_levels": num_levels,
        "tokens_per_pass": sum(emitted) / sum(counts),
        "standard_error": float(error),  # of tokens_per_pass, between texts
        "num_rounds": sum(counts),
        "draft_seconds": statistics.median(seconds),  # of growing one tree
        "draft_steps": statistics.mean(steps),
    }


def _rounds(
    drafter: Drafter, shape: TreeShape, text: WrittenText, *, num_levels: int, spread: float
) -> Iterator[tuple[int, float, int]]:
    """Yield (tokens emitted, seconds of growing the tree, draft forwards of it) for each round along a text."""
    drafter.roll_back(0)
    params, scheme = text.params, scheme_for(text.params)
    end = text.num_prompt
    while end + num_levels <= len(text.token_ids):
        known = text.token_ids[:end]
        drafter.follow(known, chunk_tokens=PREFILL_CHUNK_TOKENS)
        begun = time.perf_counter()
        rng = np.random.default_rng(params.seed)
        wanted = WantedTree(text=known, shape=shape, params=params, scheme=scheme, rng=rng, spread=spread)
        (tree,) = finish(drafter.grow([wanted]))
        grow_seconds, num_steps = time.perf_counter() - begun, len(drafter.step_seconds)
        path = _walk(tree, text.token_ids[end:])
        drafter.commit(path)
        yield len(path), grow_seconds, num_steps
        end += len(path)
    drafter.roll_back(0)


def _walk(tree: TokenTree, following: Sequence[int]) -> list[int]:
    """Return the nodes that a text goes through, from the root; as many tokens are emitted, the last by the target."""
    path = [0]
    for token_id in following:
        children = tree.topology.children(path[-1])
        found = np.flatnonzero(tree.token_ids[children.start : children.stop] == token_id)
        if not len(found):
            break
        path.append(children[int(found[0])])
    return path
