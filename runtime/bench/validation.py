"""The checks that the method itself calls for: are the tokens, the seconds and the choice what was predicted?

On each link a session is calibrated, then real rounds of a dozen trees, the planner's own choice among them, are timed
in turn, so that a slow minute falls on all of them alike, and each is held against the prediction with the copies timed
around it. Tokens per pass are counted on greedy answers to prompts that no acceptance comes from: that is the stored
profile's, if this pair has one, else the first calibration's.
"""

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offload.layer_streamer import ResidentLayer
from profiles.calibration_probes import CalibrationScope
from profiles.calibrator import CalibrationResult, Calibrator
from profiles.pair_profile import PairProfile
from profiles.steps import relabel
from runtime.bench.figures import Report
from runtime.bench.rounds import TimedRound, time_rounds
from runtime.bench.stream import check_streaming
from runtime.bench.trees import write_text
from runtime.bench.yields import Prediction, Ranks, YieldReport, check_yields, count_yields
from runtime.calibration.probes import SessionProbes
from runtime.config import EngineConfig
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.model.streamed_model import StreamedModel, chain_input
from runtime.planner.costs import RoundCosts
from runtime.planner.initial_plan import find_profiles
from runtime.planner.profile_costs import acceptance_of, acceptance_range, costs_from_profiles
from runtime.planner.tree_choice import choose_tree
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first_by_levels, expected_tokens

SHAPES = (
    *((1, 1), (4, 4), (8, 8), (16, 5), (16, 16), (32, 6)),
    *((32, 12), (64, 6), (64, 12), (64, 24), (128, 8), (128, 16)),
)
"""Nodes and levels of the trees that are timed beside the planner's choice."""
MAX_LEVELS = 64
YIELD_LEVELS = 33
"""Levels of the trees whose yields are counted for every size."""
TEXT_SCOPE = CalibrationScope(budget_seconds=150.0, temperatures=(0.0,), contexts=(128,), texts_share=0.5)
"""The first link's calibration: costs, and the acceptance that all links use."""
COST_SCOPE = CalibrationScope(
    budget_seconds=75.0, temperatures=(0.0,), contexts=(128,), texts_share=0.02, max_texts=1, overlap_share=0.35
)
"""The others': costs alone, on the link at hand."""
_CHUNK_ROWS = 64  # of logits at a time: 64 of 152,000 entries are 39 MB


@dataclass(frozen=True, slots=True)
class TreeCheck:
    """One tree: predicted and measured."""

    num_nodes: int
    num_levels: int
    predicted_seconds: float
    """Of a round; median over its rounds, each with the copies timed around it."""
    measured_seconds: float
    """Of a round; median."""
    num_rounds: int
    predicted_tokens: float
    """Tokens per pass by the acceptance."""
    measured_tokens: float
    """Tokens per pass, counted on texts that the acceptance does not come from."""

    @property
    def round_error(self) -> float:
        """Return |predicted / measured - 1| of the seconds per round."""
        return abs(self.predicted_seconds / self.measured_seconds - 1)

    @property
    def predicted_seconds_per_token(self) -> float:
        """Return the seconds per token as the planner would have them."""
        return self.predicted_seconds / self.predicted_tokens

    @property
    def measured_seconds_per_token(self) -> float:
        """Return measured seconds over counted tokens."""
        return self.measured_seconds / self.measured_tokens

    @property
    def token_error(self) -> float:
        """Return |predicted / measured - 1| of the seconds per token."""
        return abs(self.predicted_seconds_per_token / self.measured_seconds_per_token - 1)


@dataclass(frozen=True, slots=True)
class LinkCheck(Report):
    """All trees over one link; the first one is the planner's choice."""

    link: str
    """The emulated link, or `disk`."""
    copy_seconds: float
    """All copies of a pass alone; median of the looks."""
    shapes: tuple[TreeCheck, ...]
    """The planner's choice, then the others."""

    def to_record(self) -> dict[str, Any]:
        """Return the errors in the median and at worst, the choice beside the best measured, and all figures."""
        round_errors = [shape.round_error for shape in self.shapes]
        token_errors = [shape.token_error for shape in self.shapes]
        choice, best = self.shapes[0], min(shape.measured_seconds_per_token for shape in self.shapes)
        return {
            "median_round_error": statistics.median(round_errors),
            "worst_round_error": max(round_errors),
            "median_token_error": statistics.median(token_errors),
            "worst_token_error": max(token_errors),
            "choice": f"{choice.num_nodes}x{choice.num_levels}",
            "choice_over_best": choice.measured_seconds_per_token / best,
            **Report.to_record(self),
        }

    def lines(self) -> list[str]:
        record = self.to_record()
        trees = [
            f"{self.link}: {shape.num_nodes}x{shape.num_levels} round {shape.predicted_seconds:.3f} s predicted, "
            f"{shape.measured_seconds:.3f} measured; {shape.predicted_tokens:.2f} tokens predicted, "
            f"{shape.measured_tokens:.2f} counted"
            for shape in self.shapes
        ]
        return [
            *trees,
            f"{self.link}: seconds per round off by {100 * record['median_round_error']:.1f} % in the median, "
            f"{100 * record['worst_round_error']:.1f} % at worst; per token {100 * record['median_token_error']:.1f} "
            f"and {100 * record['worst_token_error']:.1f} %; the planner's {record['choice']} takes "
            f"{record['choice_over_best']:.3f} of the best measured",
        ]


@dataclass(frozen=True, slots=True)
class ValidationReport(Report):
    """What `overstory bench validate` ends with."""

    target: str
    draft: str
    """Name of the draft's folder, or `substitute`."""
    yields: YieldReport
    """Tokens: G(n), log n, and chains."""
    links: tuple[LinkCheck, ...]
    """Seconds, on each link."""

    def lines(self) -> list[str]:
        """Return the tokens; those of each link were shown when it was done."""
        return self.yields.lines()


def run_validation(
    config: EngineConfig,
    requests: Sequence[PromptRequest],
    *,
    calibration_requests: Sequence[PromptRequest],
    links: Sequence[str | None],
    cache_folder: Path,
    num_turns: int = 3,
) -> Generator[str, None, ValidationReport]:
    """Check every link: emulated ones, or None for the real one.

    `config` names folders and a draft. Tokens are counted on greedy answers to `requests`; acceptance comes from this
    pair's profile in `cache_folder`, or else from answers to `calibration_requests`. Raises OptionError if no layer
    streams, or if the answers are too short to count on.
    """
    prediction: Prediction | None = None
    ranks: list[Ranks] = []
    checks = []
    for link in links:
        with open_session(replace(config, link=link, tree="auto"), requests=requests) as opened:
            check_streaming(opened)
            name = link or "disk"
            if prediction is None and (stored := _stored_pair(opened, cache_folder)) is not None:
                yield f"predicting tokens from the profile of {stored.measured_at.isoformat()}"
                prediction = _prediction(stored)
            scope = TEXT_SCOPE if prediction is None else COST_SCOPE
            result = yield from _calibrate(opened, name, calibration_requests, scope, cache_folder)
            prediction = prediction or _prediction(result.pair)
            ranks = ranks or (yield from _rank_texts(opened, requests))
            # Deeper trees would reach past the end of too many rounds to be counted.
            max_levels = min(MAX_LEVELS, max(map(len, ranks), default=0) // 2)
            if max_levels < 2:
                raise OptionError("the answers are too short to count on; give a larger --max-new-tokens")
            costs = _session_costs(opened, result)
            trees = yield from _choose_trees(opened, name, costs, prediction.by_depth, max_levels=max_levels)
            timed = yield from _time_trees(opened, name, trees, requests, num_turns=num_turns)
            predicted = [expected_tokens(tree, prediction.by_depth) for tree in trees]
            counted = [float(count_yields(tree, ranks)[0][-1]) for tree in trees]
            checks.append(check_link(name, timed, costs, predicted_tokens=predicted, measured_tokens=counted))
            yield from checks[-1].lines()
    assert prediction is not None, "there is at least one link"
    yields = check_yields(ranks, prediction, max_levels=min(max_levels, YIELD_LEVELS))
    return ValidationReport(opened.plan.target_name, opened.plan.draft_name, yields, tuple(checks))


def _stored_pair(opened: OpenSession, cache_folder: Path) -> PairProfile | None:
    """Return what a calibration kept of this pair on this device, if it saw enough greedy positions to plan from."""
    profile = find_profiles(opened.plan, cache_folder).profile
    if profile is None:
        return None
    table = profile.acceptance_near(0.0)
    return None if table.is_rough or table.temperature != 0 else profile


def _prediction(pair: PairProfile) -> Prediction:
    table, (low, high) = pair.acceptance_near(0.0), acceptance_range(pair, 0.0) or (None, None)
    return Prediction(
        by_rank=acceptance_of(pair, 0.0, by_depth=False),
        by_depth=acceptance_of(pair, 0.0),
        low=low,
        high=high,
        num_positions=table.num_positions[0],
        num_texts=table.num_texts,
    )


def _calibrate(
    opened: OpenSession, name: str, requests: Sequence[PromptRequest], scope: CalibrationScope, cache_folder: Path
) -> Generator[str, None, CalibrationResult]:
    probes = SessionProbes(opened, requests, state_folder=cache_folder)
    calibrator = Calibrator(probes, scope, clock=monotonic, began=monotonic())
    result = yield from relabel(
        calibrator.run(), lambda step: f"{name}: calibrating, {step.what}; about {step.left_seconds:.0f} s left"
    )
    opened.session.engine.truncate(0)
    return result


def _rank_texts(opened: OpenSession, requests: Sequence[PromptRequest]) -> Generator[str, None, list[Ranks]]:
    """Let the target answer greedily, and return each token's rank in the draft's order."""
    drafter = opened.session.engine.drafter
    assert drafter is not None, "the configuration names a draft"
    ranks = []
    for number, request in enumerate(requests, start=1):
        yield f"answering prompt {number} of {len(requests)}"
        text = write_text(opened, replace(request, params=replace(request.params, temperature=0.0)))
        if len(text.token_ids) > text.num_prompt:
            ranks.append(rank_tokens(drafter.model, text.token_ids, num_prompt=text.num_prompt))
    return ranks


def rank_tokens(model: StreamedModel, token_ids: Sequence[int], *, num_prompt: int) -> Ranks:
    """Return the rank (A,), from 1, of each token behind the prompt in the model's order behind the tokens before it.

    It is 0 for a token that the model has no row for. `num_prompt` is 1 or more. The cache is empty afterwards.
    """
    wanted = np.asarray(token_ids[num_prompt:], dtype=np.int64)
    last_token = model.vocab_size - 1
    inputs = [min(token, last_token) for token in token_ids[:-1]]
    model.cache.truncate(0)
    hidden = model.run_pass(chain_input(inputs, num_cached=0))[num_prompt - 1 :]  # (A, E)
    model.cache.truncate(0)
    ranks = np.zeros(len(wanted), dtype=np.int64)
    for start in range(0, len(wanted), _CHUNK_ROWS):
        logits = model.logits(hidden[start : start + _CHUNK_ROWS])  # (C, V)
        chunk = torch.as_tensor(wanted[start : start + _CHUNK_ROWS], device=logits.device)
        own = logits.gather(1, chunk.clamp(max=logits.shape[1] - 1)[:, None])
        ranks[start : start + _CHUNK_ROWS] = 1 + (logits > own).sum(dim=1).numpy(force=True)
        ranks[start : start + _CHUNK_ROWS][wanted[start : start + _CHUNK_ROWS] >= logits.shape[1]] = 0
    return ranks


def _choose_trees(
    opened: OpenSession, name: str, costs: RoundCosts, acceptance: NDArray[np.float64], *, max_levels: int
) -> Generator[str, None, list[TreeTopology]]:
    """Return the planner's choice, then the best trees of SHAPES, as far as session and answers have room for them."""
    max_nodes = opened.plan.max_nodes
    choice = choose_tree(costs, acceptance, max_nodes=max_nodes, max_levels=max_levels).best
    yield f"{name}: the planner chose {choice.num_nodes}x{choice.num_levels}, {choice.seconds_per_token:.3f} s/token"
    chosen = choice.shape()
    assert isinstance(chosen, TreeTopology), "choose_tree ranks static trees"
    shapes = [(nodes, levels) for nodes, levels in SHAPES if nodes <= max_nodes and levels <= max_levels]
    searches = best_first_by_levels(acceptance, max(nodes for nodes, _ in shapes), max(levels for _, levels in shapes))
    return list(dict.fromkeys([chosen, *(searches[levels - 1].topology(nodes) for nodes, levels in shapes)]))


def _time_trees(
    opened: OpenSession, name: str, trees: Sequence[TreeTopology], requests: Sequence[PromptRequest], *, num_turns: int
) -> Generator[str, None, dict[TreeTopology, list[TimedRound]]]:
    prompts = [opened.session.format_prompt(request) for request in requests]
    timed: dict[TreeTopology, list[TimedRound]] = {tree: [] for tree in trees}
    rounds = time_rounds(opened, prompts, [trees] * num_turns, params=requests[0].params)
    for tree, done in zip(cycle(trees), rounds, strict=False):
        timed[tree].append(done)
        yield f"{name}: a round of {tree.num_nodes}x{tree.num_levels} took {done.seconds:.2f} s"
    return timed


def _session_costs(opened: OpenSession, result: CalibrationResult) -> RoundCosts:
    """Return a round's costs on this session, copies as the calibration timed them on its link."""
    if result.overlap is None:
        raise OptionError("the link was not measured; give more time, or a smaller --device-memory")
    streamed = [None if isinstance(layer, ResidentLayer) else layer.payload_bytes for layer in opened.streamer.layers]
    rate = opened.placement.streamed_bytes / result.overlap.copy_seconds
    return costs_from_profiles(
        result.pair,
        copy_seconds=[None if size is None else size / rate for size in streamed],
        num_slots=len(opened.streamer.slots),
        context_tokens=opened.plan.context_tokens // 2,
    )


def check_link(
    link: str,
    timed: dict[TreeTopology, list[TimedRound]],
    costs: RoundCosts,
    *,
    predicted_tokens: Sequence[float],
    measured_tokens: Sequence[float],
) -> LinkCheck:
    """Hold every tree's rounds against `costs` with the copies timed around each; the first tree is the choice."""
    shapes = []
    for (tree, rounds), predicted, measured in zip(timed.items(), predicted_tokens, measured_tokens, strict=True):
        shapes.append(
            TreeCheck(
                num_nodes=tree.num_nodes,
                num_levels=tree.num_levels,
                predicted_seconds=statistics.median(predict_seconds(tree, costs, done.copy_seconds) for done in rounds),
                measured_seconds=statistics.median(done.seconds for done in rounds),
                num_rounds=len(rounds),
                predicted_tokens=predicted,
                measured_tokens=measured,
            )
        )
    copy_seconds = statistics.median(done.copy_seconds for rounds in timed.values() for done in rounds)
    return LinkCheck(link, copy_seconds, tuple(shapes))


def predict_seconds(topology: TreeTopology, costs: RoundCosts, copy_seconds: float) -> float:
    """Return the seconds of a round with this tree, where a pass's copies alone take `copy_seconds` in all."""
    known = sum(seconds or 0.0 for seconds in costs.copy_seconds)
    scale = copy_seconds / known if known else 1.0
    scaled = tuple(None if seconds is None else seconds * scale for seconds in costs.copy_seconds)
    draft_seconds = 0.0
    if costs.draft_step_seconds is not None and topology.num_nodes > 1:
        expanded = topology.num_children > 0
        widths = [int(expanded[start:stop].sum()) for start, stop in topology.level_slices]
        draft_seconds = float(costs.draft_step_seconds([width for width in widths if width]).sum())
    return float(replace(costs, copy_seconds=scaled).round_seconds([topology.num_nodes], [draft_seconds])[0])
