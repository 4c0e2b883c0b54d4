"""Whole rounds beside what the pipeline recurrence gives for their parts, each measured apart in the same run.

The parts: a copy of every layer with nothing computing, a pass of the same tree over layers of zeros that are already
there, the drafting of the tree alone, and head, walk and compaction alone. The recurrence turns them into the seconds
of a round. Real rounds, text and all, are then timed on the same session; before and after every few of them the copies
are timed again, since a disk is never twice the same, and each round is held against the prediction from those.
"""

import statistics
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.staged_engine import StagedCopyEngine
from offload.layer_streamer import ResidentLayer
from offload.pipeline_model import round_periods
from profiles.steps import finish
from runtime.bench.stream import check_streaming, free_overlap_seconds
from runtime.calibration.probes import layers_of_zeros, median_seconds, run_copies
from runtime.config import SamplingParams
from runtime.engine.engine import Engine, verify_input
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round
from runtime.model.streamed_model import LazyLogits
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import verify

PROMPT_TOKENS = tuple(range(1, 33))
"""Any tokens do: what they cost does not depend on what they mean."""
NUM_REPEATS = 5
ROUNDS_PER_LOOK = 2
"""Measured rounds between two looks at the copies alone."""
GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class RoundParts:
    """What a round is made of, each part measured with the rest at rest; seconds."""

    link_seconds: float
    """All copies of a pass over the link, one after the other."""
    disk_seconds: float
    """All reads of a pass from a disk behind the link; 0 without one."""
    compute_seconds: float
    """All layers of a pass over the tree."""
    head_seconds: float
    """Head, walk and compaction."""
    free_overlap_seconds: float
    """Copies and layers of a pass at once, neither waiting for the other: no pass that shares cores can be shorter."""
    draft_seconds: float
    """Growing the tree."""


@dataclass(frozen=True, slots=True)
class TimedRound:
    """A real round beside the copies that were timed before and after it."""

    done: Round
    link_seconds: float
    """All copies of a pass with nothing computing, mean of the looks before and after."""
    disk_seconds: float = 0.0
    """The same for reads from a disk behind the link; 0 without one."""

    @property
    def copy_seconds(self) -> float:
        """Return what copies and reads take one after the other."""
        return self.link_seconds + self.disk_seconds

    @property
    def link_utilization(self) -> float:
        """Return the share of the round in which the link carried bytes."""
        return self.done.pass_statistics.link_busy_seconds / self.done.seconds


def run_rounds(
    opened: OpenSession, *, num_rounds: int = 12, num_repeats: int = NUM_REPEATS, params: SamplingParams = GREEDY
) -> Generator[str, None, dict[str, Any]]:
    """Measure the parts, real rounds with the session's own tree, and the parts again; return all figures.

    Raises OptionError if nothing streams, or if the context has no room for two such trees.
    """
    check_streaming(opened)
    planner = opened.session.engine.planner
    planner.use_temperature(params.temperature)
    tree = planner.topology(max_levels=1 << 20)
    yield f"measuring the parts of a round with {tree.num_nodes} nodes and {tree.num_levels} levels"
    before = measure_parts(opened, tree, num_repeats, params=params)
    rounds = []
    turns = [[tree] * min(ROUNDS_PER_LOOK, num_rounds - done) for done in range(0, num_rounds, ROUNDS_PER_LOOK)]
    for timed in time_rounds(opened, [PROMPT_TOKENS], turns, params=params):
        rounds.append(timed)
        yield f"round {len(rounds)} of {num_rounds}: {timed.done.seconds:.3f} s for {timed.done.num_emitted} tokens"
    yield "measuring the parts again"
    after = measure_parts(opened, tree, num_repeats, params=params)
    parts = RoundParts(*map(statistics.mean, zip(astuple(before), astuple(after), strict=True)))
    predictions = [
        predict_round(opened, replace(parts, link_seconds=timed.link_seconds, disk_seconds=timed.disk_seconds))
        for timed in rounds
    ]
    return {
        **summarize_rounds(parts, rounds, predictions),
        "num_nodes": tree.num_nodes,
        "num_levels": tree.num_levels,
        "bytes_per_pass": opened.placement.streamed_bytes,
    }


def summarize_rounds(parts: RoundParts, rounds: Sequence[TimedRound], predictions: Sequence[float]) -> dict[str, Any]:
    """Return medians over the rounds, and all figures; `predictions` are the seconds of each round."""
    median, done = statistics.median, [timed.done for timed in rounds]
    return {
        "ratio": median(each.seconds / predicted for each, predicted in zip(done, predictions, strict=True)),
        "round_seconds": median(each.seconds for each in done),
        "predicted_seconds": median(predictions),
        # Children are chosen and judged: neither a forward nor a copy.
        "verification_share": median((each.placing_seconds + each.walk_seconds) / each.seconds for each in done),
        "pass_over_free_overlap": median(each.pass_statistics.seconds for each in done) / parts.free_overlap_seconds,
        "link_utilization": median(timed.link_utilization for timed in rounds),
        "tokens_per_round": statistics.mean(each.num_emitted for each in done),
        "parts": asdict(parts),
        "rounds": list(map(_figures, rounds)),
        "predictions": list(predictions),
    }


def _figures(timed: TimedRound) -> dict[str, Any]:
    derived = ("num_nodes", "num_emitted", "seconds", "overhead_seconds")
    done = asdict(timed.done) | {name: getattr(timed.done, name) for name in derived}
    copies = {"copy_seconds": timed.copy_seconds, "link_utilization": timed.link_utilization}
    return asdict(timed) | {"done": done, "seconds": timed.done.seconds} | copies


def time_rounds(
    opened: OpenSession,
    prompts: Sequence[Sequence[int]],
    turns: Sequence[Sequence[TreeTopology]],
    *,
    params: SamplingParams = GREEDY,
) -> Iterator[TimedRound]:
    """Yield a real round with each tree of each turn, on texts behind the prompts, which are taken again and again.

    The copies alone are timed between turns. Raises OptionError if no prompt leaves room for two of the deepest trees.
    """
    engine = opened.session.engine
    num_levels = max(tree.num_levels for trees in turns for tree in trees)
    usable = [prompt for prompt in prompts if len(prompt) + 2 * (num_levels + 1) < engine.context_tokens]
    if not usable:
        raise OptionError(f"no prompt leaves room for two trees of {num_levels} levels; give a larger --context")
    try:
        rounds = _endless_rounds(engine, usable, params, room=num_levels + 1)
        copies_after = time_copies(opened)
        for trees in turns:
            copies_before, done = copies_after, list[Round]()
            engine.planner.held_tree = trees[0]
            next(rounds)  # starts from a ring that the look has filled, and leaves one as a round finds it
            for tree in trees:
                engine.planner.held_tree = tree
                done.append(next(rounds))
            copies_after = time_copies(opened)
            link_seconds, disk_seconds = map(statistics.mean, zip(copies_before, copies_after, strict=True))
            yield from (TimedRound(each, link_seconds, disk_seconds) for each in done)
        rounds.close()
    finally:
        engine.planner.held_tree = None


def _endless_rounds(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, *, room: int
) -> Generator[Round, None, None]:
    """Yield every round but a prompt's first, without end; go to the next prompt with less than `room` tokens left."""
    for prompt in cycle(prompts):
        with closing(engine.generate(prompt, params, np.random.default_rng(params.seed))) as events:
            rounds = (event for event in events if isinstance(event, Round))
            next(rounds)
            while len(engine.text) + room < engine.context_tokens:
                yield next(rounds)


def time_copies(opened: OpenSession) -> tuple[float, float]:
    """Return the seconds of a pass's copies, and of the reads from a disk behind the link, with nothing computing."""
    timed = [run_copies(opened) for _ in range(3)][1:]  # the first began with slots that had been filled earlier
    if isinstance(opened.link, StagedCopyEngine):
        link_seconds = statistics.mean(item.link_busy_seconds for item in timed)
        return link_seconds, statistics.mean(item.disk_busy_seconds for item in timed)
    return statistics.mean(item.seconds for item in timed), 0.0


def measure_parts(
    opened: OpenSession, topology: TreeTopology, num_repeats: int, *, params: SamplingParams = GREEDY
) -> RoundParts:
    """Measure every part of a round with this tree, on the text that the session holds, its tokens by `params`."""
    engine = opened.session.engine
    target = engine.target
    if not engine.text:
        engine.set_text(PROMPT_TOKENS)
    tree, draft_seconds = _time_draft(engine, topology, num_repeats, params)
    link_seconds, disk_seconds = time_copies(opened)
    num_committed = target.cache.num_cached
    inputs = verify_input(engine.text[: num_committed + 1], tree, num_cached=num_committed)
    hidden = torch.empty(0)

    def run_pass() -> None:
        nonlocal hidden
        target.cache.truncate(num_committed)
        hidden = target.run_pass(inputs)

    def walk() -> None:
        logits = LazyLogits(target, hidden[-topology.num_nodes :], topology)
        verdict = verify(tree, logits.row, params, np.random.default_rng(0))
        target.cache.compact(num_committed, [num_committed + node for node in verdict.path])

    with layers_of_zeros(opened):
        compute_seconds = median_seconds(run_pass, num_repeats + 1)
        head_seconds = median_seconds(walk, num_repeats, before=run_pass)
        overlap_seconds = statistics.median(free_overlap_seconds(opened, run_pass) for _ in range(num_repeats))
    target.cache.truncate(num_committed)
    if opened.link is not opened.reader:  # nothing is shared
        overlap_seconds = max(link_seconds, disk_seconds, compute_seconds)
    return RoundParts(link_seconds, disk_seconds, compute_seconds, head_seconds, overlap_seconds, draft_seconds)


def predict_round(opened: OpenSession, parts: RoundParts) -> float:
    """Return the seconds of a round by the recurrence, from these parts.

    Copies and computation slow each other as much as they did in the free overlap: the longer of the two takes as long.
    """
    streamer = opened.streamer
    link_seconds, compute_seconds = parts.link_seconds, parts.compute_seconds
    if compute_seconds >= link_seconds:
        compute_seconds = max(compute_seconds, parts.free_overlap_seconds)
    else:
        link_seconds = max(link_seconds, parts.free_overlap_seconds)
    copy_seconds = link_seconds / streamer.num_streamed_layers
    num_stages = opened.link.num_stages if isinstance(opened.link, StagedCopyEngine) else 0
    is_read = [isinstance(layer, LayerLayout) and num_stages > 0 for layer in streamer.layers]
    read_seconds = parts.disk_seconds / max(sum(is_read), 1)
    periods = round_periods(
        [[compute_seconds / streamer.num_layers] * streamer.num_layers],
        [None if isinstance(layer, ResidentLayer) else copy_seconds for layer in streamer.layers],
        num_slots=len(streamer.slots),
        read_seconds=[read_seconds if is_staged else None for is_staged in is_read],
        num_stages=num_stages,
    )
    return float(periods([parts.draft_seconds + parts.head_seconds])[0])


def _time_draft(
    engine: Engine, topology: TreeTopology, num_repeats: int, params: SamplingParams
) -> tuple[TokenTree, float]:
    """Return a tree on the present text, and the median seconds of growing it with the link at rest."""
    if engine.drafter is None:
        return TokenTree.rooted(topology, root_token_id=engine.text[-1]), 0.0
    drafter, rng = engine.drafter, np.random.default_rng(0)
    trees: list[TokenTree] = []

    def grow() -> None:
        trees.append(finish(drafter.grow(engine.text, topology, params=params, rng=rng)))

    seconds = median_seconds(grow, num_repeats + 1, after=lambda: drafter.roll_back(len(engine.text) - 1))
    return trees[-1], seconds
