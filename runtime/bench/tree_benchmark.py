"""Tokens per pass of static and of dynamic trees at equal size, counted on the target's own texts.

The target writes each text once, greedily or with the noise of its seed. What it would emit along that text is then
known, whatever is proposed: rounds are played through with the draft alone, each tree walked along the text, so that a
round costs no pass of the target and emits exactly what it would. Prints nothing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from profiles.steps import finish
from runtime.bench.round_check import TreesInTurn
from runtime.bench.tree_yield import error_between
from runtime.engine.drafter import Drafter
from runtime.engine.loading import OpenSession
from runtime.engine_config import PREFILL_CHUNK_TOKENS
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.planner.growth import growth_limits
from runtime.planner.tree_choice import TreeShape
from runtime.prompts.prompt_file import PromptRequest
from runtime.sampling_params import SamplingParams
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.schemes import RankingScheme, Scheme, scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.tree_search import best_first

_WRITING_SHAPE = (32, 10)
"""Of the trees that help to write the texts: little to verify."""


@dataclass(frozen=True, slots=True)
class CountedTree:
    """One kind of tree of one size at one temperature."""

    temperature: float
    """Of target and draft."""
    kind: str
    """`static` or `dynamic`."""
    num_nodes: int
    """Most nodes of a tree, the root counted."""
    num_levels: int
    """Most levels."""
    tokens_per_pass: float
    """Accepted drafts and the target's own token after them."""
    standard_error: float
    """Between texts."""
    num_rounds: int
    """Rounds that were played."""
    draft_seconds: float
    """Median seconds of growing one tree."""
    draft_steps: float
    """Mean draft forwards of one tree."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What `overstory bench trees` shows."""

    target: str
    """Name of the target's folder."""
    draft: str
    """Name of the draft's folder, or `substitute`."""
    num_texts: int
    """Texts at each temperature."""
    trees: tuple[CountedTree, ...]
    """By temperature, size and kind."""

    def gains(self) -> list[tuple[float, int, float]]:
        """(temperature, nodes, tokens per pass of the dynamic tree over those of the static one)."""
        static = {(tree.temperature, tree.num_nodes): tree for tree in self.trees if tree.kind == "static"}
        return [
            (
                tree.temperature,
                tree.num_nodes,
                tree.tokens_per_pass / static[tree.temperature, tree.num_nodes].tokens_per_pass,
            )
            for tree in self.trees
            if tree.kind == "dynamic"
        ]

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {**asdict(self), "gains": self.gains()}


@dataclass(frozen=True, slots=True)
class _Text:
    token_ids: list[int]
    """Prompt and answer."""
    num_prompt: int
    params: SamplingParams


def run_tree_benchmark(
    opened: OpenSession,
    requests: Sequence[PromptRequest],
    *,
    temperatures: Sequence[float],
    sizes: Sequence[int],
    num_levels: int,
) -> Iterator[str | CountedTree | TreeReport]:
    """Yield sentences of progress, each tree's figures, and last the whole.

    A round starts only where the text goes on for `num_levels` tokens, so that no tree is cut short. Raises OptionError
    if every answer is shorter, or if the session holds no tree so large.
    """
    drafter, most = opened.session.engine.drafter, opened.plan.max_nodes
    assert drafter is not None, "the configuration names a draft"
    if max(sizes) > most:
        raise OptionError(f"{max(sizes)} nodes are more than the {most} that this session has room for; give --tree")
    counted: list[CountedTree] = []
    num_texts = 0
    for temperature in temperatures:
        texts = []
        for number, request in enumerate(requests, start=1):
            yield f"temperature {temperature:g}: text {number} of {len(requests)}"
            text = _write(opened, request, temperature, seed=number)
            if len(text.token_ids) - text.num_prompt > num_levels:
                texts.append(text)
        if not texts:
            raise OptionError(
                f"no answer has more than {num_levels} tokens at temperature {temperature:g}; "
                "give more --max-new-tokens, or fewer --levels"
            )
        num_texts = len(texts)
        for size, shape in _shapes(opened, temperature, sizes, num_levels):
            play = _Play(drafter, shape, num_levels, spread=opened.session.engine.planner.spread)
            counted.append(_count(play, texts, size=size))
            yield counted[-1]
    yield TreeReport(opened.plan.target_name, opened.plan.draft_name, num_texts, tuple(counted))


def _write(opened: OpenSession, request: PromptRequest, temperature: float, *, seed: int) -> _Text:
    """The target's answer; whatever tree helped to write it, it is the same, so a small one does."""
    engine = opened.session.engine
    params = replace(request.params, temperature=temperature, seed=seed, verification="coupled")
    own_planner = engine.planner
    engine.planner = TreesInTurn([best_first(own_planner.acceptance, *_WRITING_SHAPE).topology(_WRITING_SHAPE[0])])  # type: ignore[assignment]
    try:
        *_, finished = opened.session.generate(replace(request, params=params))
        text = list(engine.text)
    finally:
        engine.planner = own_planner
        engine.truncate(0)
    assert isinstance(finished, Finished), "the engine's last event is Finished"
    return _Text(text, finished.statistics.prompt_tokens, params)


def _shapes(
    opened: OpenSession, temperature: float, sizes: Sequence[int], num_levels: int
) -> Iterator[tuple[int, TreeShape]]:
    """For each size the static tree that is best by what is known of this pair, and the limits of a dynamic one."""
    planner = opened.session.engine.planner
    planner.use_temperature(temperature)
    for size in sizes:
        search = best_first(planner.acceptance, size, num_levels)
        yield size, search.topology(len(search.depths))
        yield size, growth_limits(size, num_levels)


@dataclass(frozen=True, slots=True)
class _Play:
    """Plays rounds with one kind of tree."""

    drafter: Drafter
    shape: TreeShape
    num_levels: int
    spread: float

    def rounds(self, text: _Text) -> Iterator[tuple[int, float]]:
        """(tokens emitted, seconds of growing the tree) of each round along a text."""
        self.drafter.roll_back(0)
        end, scheme = text.num_prompt, scheme_for(text.params)
        while end + self.num_levels <= len(text.token_ids):
            known = text.token_ids[:end]
            self.drafter.follow(known, chunk_tokens=PREFILL_CHUNK_TOKENS)
            begun = time.perf_counter()
            tree = self._grow(known, text.params, scheme)
            grow_seconds = time.perf_counter() - begun
            path = _walk(tree, text.token_ids[end:])
            self.drafter.commit(path)
            yield len(path), grow_seconds
            end += len(path)
        self.drafter.roll_back(0)

    def _grow(self, known: Sequence[int], params: SamplingParams, scheme: Scheme) -> TokenTree:
        if isinstance(self.shape, GrowthLimits):
            assert isinstance(scheme, RankingScheme), "texts are greedy or coupled"
            return finish(
                self.drafter.grow_in_context(known, self.shape, params=params, scheme=scheme, spread=self.spread)
            )
        rng = np.random.default_rng(params.seed)
        return finish(self.drafter.grow(known, self.shape, params=params, rng=rng, scheme=scheme))


def _count(play: _Play, texts: Sequence[_Text], *, size: int) -> CountedTree:
    sums, counts, seconds, steps = list[float](), list[int](), list[float](), list[int]()
    for text in texts:
        emitted = []
        for num_tokens, grow_seconds in play.rounds(text):
            emitted.append(num_tokens)
            seconds.append(grow_seconds)
            steps.append(len(play.drafter.step_seconds))
        sums.append(float(sum(emitted)))
        counts.append(len(emitted))
    error = error_between(np.array(sums)[:, None], np.array(counts))
    return CountedTree(
        temperature=texts[0].params.temperature,
        kind="static" if isinstance(play.shape, TreeTopology) else "dynamic",
        num_nodes=size,
        num_levels=play.num_levels,
        tokens_per_pass=sum(sums) / sum(counts),
        standard_error=float(error[0]),
        num_rounds=sum(counts),
        draft_seconds=float(np.median(seconds)),
        draft_steps=float(np.mean(steps)),
    )


def _walk(tree: TokenTree, following: Sequence[int]) -> list[int]:
    """The nodes, the root first, that a text goes through; it emits as many tokens, the last one by the target."""
    path = [0]
    for token_id in following:
        children = tree.topology.children(path[-1])
        found = np.flatnonzero(tree.token_ids[children.start : children.stop] == token_id)
        if not len(found):
            break
        path.append(children[int(found[0])])
    return path
