"""Whether rounds take as long as predicted: many trees, taken in turn, on one session over one link.

Each tree's real rounds are timed on text that the session writes; between them the copies alone are timed again, since
a disk is never twice the same, and each round is predicted with the copies timed around it. The tree changes from round
to round, so that a slow minute falls on all of them alike. Prints nothing.
"""

import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from runtime.bench.round_parts import time_copies
from runtime.engine.engine import Engine
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round, TokensAccepted
from runtime.planner.costs import RoundCosts
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.token_tree import TreeTopology


@dataclass(frozen=True, slots=True)
class ShapeCheck:
    """One tree: predicted and measured."""

    num_nodes: int
    """Nodes, root included."""
    num_levels: int
    """Levels, root included."""
    predicted_seconds: float
    """Of a round; median over its rounds, each with the copies timed around it."""
    measured_seconds: float
    """Of a round; median."""
    num_rounds: int
    """Rounds measured."""
    predicted_tokens: float
    """Tokens per pass by the acceptance."""
    measured_tokens: float
    """Tokens per pass, counted on texts that the acceptance does not come from."""

    @property
    def round_error(self) -> float:
        """|predicted / measured - 1| of the seconds per round."""
        return abs(self.predicted_seconds / self.measured_seconds - 1)

    @property
    def predicted_seconds_per_token(self) -> float:
        """As the planner would have it."""
        return self.predicted_seconds / self.predicted_tokens

    @property
    def measured_seconds_per_token(self) -> float:
        """Measured seconds over counted tokens."""
        return self.measured_seconds / self.measured_tokens

    @property
    def token_error(self) -> float:
        """|predicted / measured - 1| of the seconds per token."""
        return abs(self.predicted_seconds_per_token / self.measured_seconds_per_token - 1)


@dataclass(frozen=True, slots=True)
class LinkCheck:
    """All trees over one link; the first one is the planner's choice."""

    link: str
    """The emulated link, or `disk`."""
    copy_seconds: float
    """All copies of a pass alone; median of the looks."""
    shapes: tuple[ShapeCheck, ...]
    """The planner's choice, then the others."""

    @property
    def choice_over_best(self) -> float:
        """Measured seconds per token of the planner's choice over the best measured; 1 if nothing was better."""
        best = min(shape.measured_seconds_per_token for shape in self.shapes)
        return self.shapes[0].measured_seconds_per_token / best

    def to_record(self) -> dict[str, Any]:
        """The check as a JSON object."""
        round_errors = [shape.round_error for shape in self.shapes]
        token_errors = [shape.token_error for shape in self.shapes]
        return {
            "link": self.link,
            "copy_seconds": self.copy_seconds,
            "median_round_error": statistics.median(round_errors),
            "worst_round_error": max(round_errors),
            "median_token_error": statistics.median(token_errors),
            "worst_token_error": max(token_errors),
            "choice": f"{self.shapes[0].num_nodes}x{self.shapes[0].num_levels}",
            "choice_over_best": self.choice_over_best,
            "shapes": [
                asdict(shape)
                | {
                    "round_error": shape.round_error,
                    "predicted_seconds_per_token": shape.predicted_seconds_per_token,
                    "measured_seconds_per_token": shape.measured_seconds_per_token,
                    "token_error": shape.token_error,
                }
                for shape in self.shapes
            ],
        }


@dataclass(frozen=True, slots=True)
class TimedRound:
    """One real round of one tree."""

    shape_index: int
    """Which tree."""
    seconds: float
    """From being asked for to its tokens."""
    copy_seconds: float
    """All copies of a pass alone, mean of the looks before and after."""


class TreesInTurn:
    """Stands in for the planner: the trees one after another, whatever they cost."""

    choice = None
    kind = "static"

    def __init__(self, topologies: Sequence[TreeTopology]) -> None:
        """At least one tree."""
        self._topologies = tuple(topologies)
        self.next_index = 0
        """Which tree the next round gets."""

    def topology(self, *, max_levels: int) -> TreeTopology:
        """The next round's tree, whole: the caller leaves room for all levels."""
        return self._topologies[self.next_index]

    def shape(self, *, max_levels: int) -> TreeTopology:
        """The same: its shape is known beforehand."""
        return self.topology(max_levels=max_levels)

    def use_temperature(self, temperature: float, *, can_grow_in_context: bool = False) -> None:
        """All temperatures get the same trees."""

    def observe(self, done: Round) -> None:
        """Nothing is learned."""


def time_shapes(
    opened: OpenSession, requests: Sequence[PromptRequest], topologies: Sequence[TreeTopology], *, num_turns: int
) -> Iterator[TimedRound]:
    """Yield `num_turns` rounds of each tree, in turn, on answers to the requests, taken again and again.

    The session's own planner is back afterwards. Raises OptionError if no request leaves room for the deepest tree.
    """
    engine = opened.session.engine
    own_planner, trees = engine.planner, TreesInTurn(topologies)
    room = max(topology.num_levels for topology in topologies) + 1
    prompts = [opened.session.format_prompt(request) for request in requests]
    usable = [prompt for prompt in prompts if len(prompt) + 2 * room < engine.context_tokens]
    if not usable:
        raise OptionError(f"no prompt leaves room for two trees of {room - 1} levels; give a larger --context")
    engine.planner = trees  # type: ignore[assignment]
    try:
        rounds = _rounds_on(engine, usable, requests[0], room=room)
        copies_after = sum(time_copies(opened))
        for _ in range(num_turns):
            turn = []
            copies_before = copies_after
            trees.next_index = 0
            next(rounds)  # starts from a ring that the look has filled
            for index in range(len(topologies)):
                trees.next_index = index
                turn.append((index, next(rounds)))
            copies_after = sum(time_copies(opened))
            for index, seconds in turn:
                yield TimedRound(index, seconds, (copies_before + copies_after) / 2)
        rounds.close()
    finally:
        engine.planner = own_planner
        engine.truncate(0)


def _rounds_on(
    engine: Engine, prompts: Sequence[list[int]], request: PromptRequest, *, room: int
) -> Generator[float, None, None]:
    """Seconds of each round but a prompt's first, without end; another prompt where the context is nearly full."""
    while True:
        for prompt in prompts:
            with closing(engine.generate(prompt, request.params, np.random.default_rng(0))) as events:
                is_first, begun = True, time.perf_counter()
                for event in events:
                    if not isinstance(event, TokensAccepted):
                        continue
                    seconds = time.perf_counter() - begun
                    if not is_first:
                        yield seconds
                    is_first = False
                    if len(engine.text) + room >= engine.context_tokens:
                        break
                    begun = time.perf_counter()


def check_link(
    link: str,
    timed: Sequence[TimedRound],
    topologies: Sequence[TreeTopology],
    costs: RoundCosts,
    *,
    predicted_tokens: Sequence[float],
    measured_tokens: Sequence[float],
) -> LinkCheck:
    """Hold every tree's rounds against `costs` with the copies timed around each; the first tree is the choice."""
    shapes = []
    for index, topology in enumerate(topologies):
        own = [item for item in timed if item.shape_index == index]
        shapes.append(
            ShapeCheck(
                num_nodes=topology.num_nodes,
                num_levels=topology.num_levels,
                predicted_seconds=statistics.median(predict(topology, costs, item.copy_seconds) for item in own),
                measured_seconds=statistics.median(item.seconds for item in own),
                num_rounds=len(own),
                predicted_tokens=predicted_tokens[index],
                measured_tokens=measured_tokens[index],
            )
        )
    return LinkCheck(link, statistics.median(item.copy_seconds for item in timed), tuple(shapes))


def predict(topology: TreeTopology, costs: RoundCosts, copy_seconds: float) -> float:
    """Seconds of a round with this tree, where a pass's copies alone take `copy_seconds` in all."""
    known = sum(seconds or 0.0 for seconds in costs.copy_seconds)
    scale = copy_seconds / known if known else 1.0
    scaled = replace(
        costs, copy_seconds=tuple(None if seconds is None else seconds * scale for seconds in costs.copy_seconds)
    )
    draft_seconds = 0.0
    if costs.draft_step_seconds is not None and topology.num_nodes > 1:
        expanded = topology.num_children > 0
        widths = [int(expanded[start:stop].sum()) for start, stop in topology.level_slices]
        draft_seconds = float(costs.draft_step_seconds([width for width in widths if width]).sum())
    return float(scaled.round_seconds([topology.num_nodes], [draft_seconds])[0])
