"""How long a prompt takes until the first tokens of its answer: every pass over it, and the draft's reading along.

A pass takes as long as its stream or its computation, whichever is longer; before the next one the draft reads what it
computed, and before the last one it grows a tree, while the ring fills.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offload.errors import BudgetError
from runtime.config import PREFILL_CHUNK_TOKENS
from runtime.fit.machine import DeviceSpeed
from runtime.fit.place import MemoryNeed
from runtime.fit.reference_costs import draft_seconds, pass_seconds
from runtime.fit.shapes import ModelShape
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.prefill import PassWidths, PrefillPlanner, stream_seconds_of
from runtime.planner.tree_choice import TreeChoice

PROMPT_TOKENS = (512, 4096, 16384)
"""Lengths of a question, of a long paste or a conversation that is taken up again, and of a document."""
ANSWER_TOKENS = 256
"""Room in the context for what follows the prompt."""
SecondsOf = Callable[[int, int], float]
"""Seconds that so many tokens compute, behind so many others."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What a prompt of one length takes before its answer begins."""

    prompt_tokens: int
    context_tokens: int
    """Of the session that it is predicted for: as asked, or as much as prompt and answer take."""
    pass_tokens: tuple[int, ...]
    """Prompt tokens of each pass; the last one also carries the first tree."""
    stream_seconds: float
    """Of all passes' streams alone."""
    compute_seconds: float
    """Of all passes' computation alone."""
    draft_seconds: float
    """In which the draft reads the prompt and grows the first tree, and no pass computes."""
    seconds: float
    """From the request to the first tokens."""

    def to_record(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "context_tokens": self.context_tokens,
            "passes": len(self.pass_tokens),
            "pass_tokens": list(self.pass_tokens),
            "stream_seconds": self.stream_seconds,
            "compute_seconds": self.compute_seconds,
            "draft_seconds": self.draft_seconds,
            "seconds": self.seconds,
        }


def context_for(prompt_tokens: int, context_tokens: int, target: ModelShape) -> int:
    """Return the context that a session needs for a prompt and its answer, at least `context_tokens`.

    Raises BudgetError where the model has no positions for them.
    """
    wanted = max(context_tokens, prompt_tokens + ANSWER_TOKENS)
    limit = target.max_context_tokens
    if limit is not None and wanted > max(limit, context_tokens):
        raise BudgetError(f"{target.name} has {limit} positions")
    return wanted


def seconds_by_speed(
    target: ModelShape, format_name: str, draft: tuple[ModelShape, str] | None, speed: DeviceSpeed
) -> tuple[SecondsOf, SecondsOf | None]:
    """Return what the layers of target and draft compute, by the speed of a device; see `reference_costs`."""

    def target_seconds(tokens: int, context: int) -> float:
        sizes = np.array([float(tokens)])
        return float(pass_seconds(target, sizes, context, format_name=format_name, device=speed)[0])

    def reading_seconds(tokens: int, context: int) -> float:
        assert draft is not None
        return float(draft_seconds(*draft, np.array([float(tokens)]), context, speed)[0])

    return target_seconds, None if draft is None else reading_seconds


def predict_first_token(
    prompt_tokens: int,
    need: MemoryNeed,
    costs: RoundCosts,
    tree: TreeChoice,
    *,
    target_seconds: SecondsOf,
    reading_seconds: SecondsOf | None,
) -> FirstToken:
    """Return what a session of this need takes for a prompt whose first round has this tree.

    `target_seconds` are those of the layers of the target, computed at once, `reading_seconds` those of the draft's,
    None without one.
    """
    is_streamed = any(seconds is not None for seconds in costs.copy_seconds)
    most_tokens = min(need.prefill_tokens, need.context_tokens) if is_streamed else need.slice_width
    cut = PrefillPlanner(
        slice_tokens=need.slice_width, most_tokens=most_tokens, first_tokens=most_tokens, is_streamed=is_streamed
    )
    widths = PassWidths(need.slice_width, need.pass_tokens)
    passes: list[int] = []
    total = computing = drafting = 0.0
    num_done = num_read = 0
    while num_done < prompt_tokens:
        num_tokens = cut.next_tokens(prompt_tokens - num_done, costs)
        is_last = num_done + num_tokens == prompt_tokens
        num_wanted = tree.num_nodes if is_last else 1
        bounds = widths.bounds(num_tokens + num_wanted - 1, num_wanted=num_wanted)
        compute = sum(target_seconds(stop - start, num_done + start) for start, stop in bounds)
        passes.append(num_tokens)
        num_done += num_tokens
        # The draft has read as far as the passes before; what the last one computes it reads before it grows the tree.
        reading = 0.0
        while reading_seconds is not None and (num_new := (num_done if is_last else num_done - num_tokens) - num_read):
            chunk = min(PREFILL_CHUNK_TOKENS, num_new)
            reading += reading_seconds(chunk, num_read)
            num_read += chunk
        between = reading + (tree.draft_seconds if is_last else 0.0)
        total += pass_between(costs, compute, between)
        computing, drafting = computing + compute, drafting + between
    return FirstToken(
        prompt_tokens=prompt_tokens,
        context_tokens=need.context_tokens,
        pass_tokens=tuple(passes),
        stream_seconds=len(passes) * stream_seconds_of(costs),
        compute_seconds=computing,
        draft_seconds=drafting,
        seconds=total + float(costs.walk_seconds(tree.num_nodes)),
    )


def pass_between(costs: RoundCosts, compute_seconds: float, between_seconds: float) -> float:
    """Return what one more pass takes that computes for so long, after so long without one."""
    passes = replace(
        costs,
        pass_seconds=CostTable((1.0,), (compute_seconds,)),
        walk_seconds=CostTable((1.0,), (0.0,)),
    )
    return float(passes.round_seconds(1, between_seconds)[0])
