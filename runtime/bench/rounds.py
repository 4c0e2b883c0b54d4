"""Whole rounds beside what the pipeline recurrence gives for their parts, each measured apart in the same run.

The parts: a copy of every layer with nothing computing, a pass of the same tree over layers of zeros that are already
there, the drafting of the tree alone, and head, walk and compaction alone. The recurrence turns them into the seconds
of a round. Real rounds, text and all, are then timed on the same session; before and after every few of them the copies
are timed again, since a disk is never twice the same, and each round is held against the prediction from those.
"""

import statistics
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from offload.copying.copy_engine import DiskSource
from offload.copying.staged_engine import StagedCopyEngine
from offload.layer_streamer import ResidentLayer
from profiles.steps import finish
from runtime.bench.figures import Report
from runtime.bench.stream import check_streaming, free_overlap_seconds
from runtime.calibration.probes import layers_of_zeros, median_seconds, run_copies
from runtime.config import SamplingParams
from runtime.engine.engine import Engine, verify_input
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round, TokensAccepted
from runtime.model.streamed_model import LazyLogits
from runtime.planner.costs import CostTable, RoundCosts
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
    seconds: float
    """From being asked for to its tokens."""
    link_seconds: float = 0.0
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
        return self.done.pass_statistics.link_busy_seconds / self.seconds

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"round: {self.seconds:.3f} s for {self.done.num_emitted} tokens, pass "
            f"{self.done.pass_statistics.seconds:.3f} s, draft {self.done.draft_seconds:.3f} s, "
            f"link {100 * self.link_utilization:.0f} % busy"
        )


@dataclass(frozen=True, slots=True)
class RoundReport(Report):
    """What `overstory bench round` ends with."""

    num_nodes: int
    num_levels: int
    bytes_per_pass: int
    """Weights that cross the link in every pass."""
    parts: RoundParts
    """Measured apart, before the rounds and after them; the mean of both."""
    rounds: tuple[TimedRound, ...]
    predictions: tuple[float, ...]
    """Seconds of each round by the recurrence, from the parts and the copies timed around it."""

    def to_record(self) -> dict[str, Any]:
        """Return medians over the rounds, and all figures."""
        median, rounds = statistics.median, self.rounds
        choosing = [done.placing_seconds + done.walk_seconds for done in (timed.done for timed in rounds)]
        pass_seconds = median(timed.done.pass_statistics.seconds for timed in rounds)
        return {
            "ratio": _median_ratio([timed.seconds for timed in rounds], self.predictions),
            "round_seconds": median(timed.seconds for timed in rounds),
            "predicted_seconds": median(self.predictions),
            # Children are chosen and judged: neither a forward nor a copy.
            "verification_share": _median_ratio(choosing, [timed.seconds for timed in rounds]),
            "pass_over_free_overlap": pass_seconds / self.parts.free_overlap_seconds,
            "link_utilization": median(timed.link_utilization for timed in rounds),
            "tokens_per_round": statistics.mean(timed.done.num_emitted for timed in rounds),
            **Report.to_record(self),
        }


def run_rounds(
    opened: OpenSession, *, num_rounds: int = 12, num_repeats: int = NUM_REPEATS, params: SamplingParams = GREEDY
) -> Generator[str, None, RoundReport]:
    """Measure the parts, real rounds with the session's own tree, and the parts again.

    Raises OptionError if nothing streams, or if the context has no room for two such trees.
    """
    check_streaming(opened)
    planner = opened.session.engine.planner
    planner.use_temperature(params.temperature)
    tree = planner.topology(max_levels=1 << 20)
    before = measure_parts(opened, tree, num_repeats, params=params)
    yield _describe_parts(opened, before)
    rounds = []
    turns = [[tree] * min(ROUNDS_PER_LOOK, num_rounds - done) for done in range(0, num_rounds, ROUNDS_PER_LOOK)]
    for measured in time_rounds(opened, [PROMPT_TOKENS], turns, params=params):
        rounds.append(measured)
        yield measured.describe()
    after = measure_parts(opened, tree, num_repeats, params=params)
    yield _describe_parts(opened, after)
    names = [field.name for field in fields(RoundParts)]
    parts = RoundParts(*((getattr(before, name) + getattr(after, name)) / 2 for name in names))
    near = [replace(parts, link_seconds=item.link_seconds, disk_seconds=item.disk_seconds) for item in rounds]
    return RoundReport(
        num_nodes=tree.num_nodes,
        num_levels=tree.num_levels,
        bytes_per_pass=opened.placement.streamed_bytes,
        parts=parts,
        rounds=tuple(rounds),
        predictions=tuple(predict_round(opened, measured) for measured in near),
    )


def time_rounds(
    opened: OpenSession,
    prompts: Sequence[Sequence[int]],
    turns: Iterable[Sequence[TreeTopology]],
    *,
    params: SamplingParams = GREEDY,
) -> Iterator[TimedRound]:
    """Yield a real round with each tree of each turn, on texts behind the prompts, which are taken again and again.

    The copies alone are timed between turns. Raises OptionError if no prompt leaves room for two of the deepest trees.
    """
    turns, engine = list(turns), opened.session.engine
    num_levels = max(tree.num_levels for trees in turns for tree in trees)
    usable = [prompt for prompt in prompts if len(prompt) + 2 * (num_levels + 1) < engine.context_tokens]
    if not usable:
        raise OptionError(f"no prompt leaves room for two trees of {num_levels} levels; give a larger --context")
    try:
        rounds = _endless_rounds(engine, usable, params, room=num_levels + 1)
        copies_after = time_copies(opened)
        for trees in turns:
            copies_before, timed = copies_after, list[TimedRound]()
            engine.planner.held_tree = trees[0]
            next(rounds)  # starts from a ring that the look has filled, and leaves one as a round finds it
            for tree in trees:
                engine.planner.held_tree = tree
                timed.append(next(rounds))
            copies_after = time_copies(opened)
            link_seconds, disk_seconds = map(statistics.mean, zip(copies_before, copies_after, strict=True))
            for done in timed:
                yield replace(done, link_seconds=link_seconds, disk_seconds=disk_seconds)
        rounds.close()
    finally:
        engine.planner.held_tree = None


def _endless_rounds(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, *, room: int
) -> Generator[TimedRound, None, None]:
    """Yield every round but a prompt's first, without end; go to the next prompt with less than `room` tokens left."""
    while True:
        for prompt in prompts:
            with closing(engine.generate(prompt, params, np.random.default_rng(params.seed))) as events:
                is_first, begun = True, time.perf_counter()
                for event in events:
                    if isinstance(event, Round):
                        done = event
                    if not isinstance(event, TokensAccepted):
                        continue
                    seconds = time.perf_counter() - begun
                    if not is_first:
                        yield TimedRound(done, seconds)
                    is_first = False
                    if len(engine.text) + room >= engine.context_tokens:
                        break
                    begun = time.perf_counter()


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
    if not engine.text:
        engine.set_text(PROMPT_TOKENS)
    tree, draft_seconds = _time_draft(engine, topology, num_repeats, params)
    parts = RoundParts(*time_copies(opened), *_time_compute(opened, tree, num_repeats, params), draft_seconds)
    if opened.link is opened.reader:
        return parts
    longest = max(parts.link_seconds, parts.disk_seconds, parts.compute_seconds)  # nothing is shared
    return replace(parts, free_overlap_seconds=longest)


def predict_round(opened: OpenSession, parts: RoundParts) -> float:
    """Return the seconds of a round by the recurrence, from these parts.

    Copies and computation slow each other as much as they did in the free overlap: what that takes beyond the longer
    part is a charge on it, in proportion to the other.
    """
    streamer = opened.streamer
    num_stages = opened.link.num_stages if isinstance(opened.link, StagedCopyEngine) else 0
    is_read = [isinstance(layer, DiskSource) and num_stages > 0 for layer in streamer.layers]
    copy_seconds = parts.link_seconds / streamer.num_streamed_layers
    read_seconds = parts.disk_seconds / max(sum(is_read), 1)
    longer = max(parts.link_seconds, parts.compute_seconds)
    surplus = max(0.0, parts.free_overlap_seconds - longer)
    is_compute_longer = parts.compute_seconds >= parts.link_seconds
    # A layer's share of the computation goes with every layer, its share of the surplus with every streamed one.
    streamed_share = streamer.num_streamed_layers / streamer.num_layers
    costs = RoundCosts(
        copy_seconds=tuple(None if isinstance(layer, ResidentLayer) else copy_seconds for layer in streamer.layers),
        pass_seconds=CostTable((1,), (parts.compute_seconds,)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1,), (parts.head_seconds,)),
        num_slots=len(streamer.slots),
        read_seconds=tuple(read_seconds if is_staged else None for is_staged in is_read),
        num_stages=num_stages,
        compute_slowdown=surplus / parts.link_seconds if is_compute_longer else 0.0,
        copy_slowdown=0.0 if is_compute_longer else surplus / (parts.compute_seconds * streamed_share),
    )
    return float(costs.round_seconds(1, parts.draft_seconds)[0])


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


def _time_compute(
    opened: OpenSession, tree: TokenTree, num_repeats: int, params: SamplingParams
) -> tuple[float, float, float]:
    """Return the seconds of a pass over layers of zeros, of head, walk and compaction, and of the free overlap."""
    engine = opened.session.engine
    target = engine.target
    num_committed = target.cache.num_cached
    text = engine.text[: num_committed + 1]
    hidden = torch.empty(0)

    def run_pass() -> None:
        nonlocal hidden
        target.cache.truncate(num_committed)
        hidden = target.run_pass(verify_input(text, tree, num_cached=num_committed))

    def walk() -> None:
        logits = LazyLogits(target, hidden[-tree.topology.num_nodes :], tree.topology)
        verdict = verify(tree, logits.row, params, np.random.default_rng(0))
        target.cache.compact(num_committed, [num_committed + node for node in verdict.path])

    with layers_of_zeros(opened):
        compute_seconds = median_seconds(run_pass, num_repeats + 1)
        head_seconds = median_seconds(walk, num_repeats, before=run_pass)
        overlap_seconds = statistics.median(free_overlap_seconds(opened, run_pass) for _ in range(num_repeats))
    target.cache.truncate(num_committed)
    return compute_seconds, head_seconds, overlap_seconds


def _describe_parts(opened: OpenSession, parts: RoundParts) -> str:
    return (
        f"apart: link {parts.link_seconds:.3f} s, disk {parts.disk_seconds:.3f} s, compute "
        f"{parts.compute_seconds:.3f} s, both at once {parts.free_overlap_seconds:.3f} s, draft "
        f"{parts.draft_seconds:.3f} s, head {parts.head_seconds:.3f} s; together a round should take "
        f"{predict_round(opened, parts):.3f} s"
    )


def _median_ratio(measured: Sequence[float], expected: Sequence[float]) -> float:
    return statistics.median(value / other for value, other in zip(measured, expected, strict=True))
