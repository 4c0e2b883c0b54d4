"""The checks that the method itself calls for: are the tokens, the seconds and the choice what was predicted?

On each link a session is calibrated, then real rounds of a dozen trees are timed and held against the prediction, the
planner's own choice among them. Tokens per pass are counted on greedy answers to prompts that no acceptance comes from:
that is the stored profile's, if this pair has one, else the first calibration's. Prints nothing.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.layer_streamer import ResidentLayer
from profiles.calibration_probes import CalibrationScope
from profiles.calibrator import CalibrationResult, Calibrator
from profiles.pair_profile import PairProfile
from profiles.steps import relabel
from runtime.bench.round_check import LinkCheck, check_link, time_shapes
from runtime.bench.text_ranks import rank_tokens
from runtime.bench.tree_yield import Ranks, count_yield
from runtime.bench.yield_check import Prediction, YieldReport, check_yields
from runtime.calibration.probes import SessionProbes
from runtime.engine.loading import OpenSession, open_session
from runtime.engine.model_folders import locate_models, said
from runtime.engine_config import EngineConfig
from runtime.errors import OptionError
from runtime.events import Finished
from runtime.planner.costs import RoundCosts
from runtime.planner.initial_plan import find_profiles
from runtime.planner.profile_costs import acceptance_of, acceptance_range, costs_from_profiles
from runtime.planner.tree_choice import TreeChoice, choose_tree
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first_by_levels, expected_tokens

SHAPES = (
    (1, 1),
    (4, 4),
    (8, 8),
    (16, 5),
    (16, 16),
    (32, 6),
    (32, 12),
    (64, 6),
    (64, 12),
    (64, 24),
    (128, 8),
    (128, 16),
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


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What `overstory bench validate` shows."""

    target: str
    """Name of the target's folder."""
    draft: str
    """Name of the draft's folder, or `substitute`."""
    yields: YieldReport
    """Tokens: G(n), log n, and chains."""
    links: tuple[LinkCheck, ...]
    """Seconds, on each link."""

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "target": self.target,
            "draft": self.draft,
            "yields": self.yields.to_record(),
            "links": [link.to_record() for link in self.links],
        }


@dataclass(slots=True)
class _Findings:
    """What the first link settles for all of them."""

    prediction: Prediction
    ranks: list[Ranks]

    @property
    def max_levels(self) -> int:
        """Deeper trees would reach past the end of too many rounds to be counted."""
        return min(MAX_LEVELS, max(map(len, self.ranks), default=0) // 2)


def run_validation(
    config: EngineConfig,
    requests: Sequence[PromptRequest],
    *,
    calibration_requests: Sequence[PromptRequest],
    links: Sequence[str | None],
    cache_folder: Path,
    num_turns: int = 3,
) -> Iterator[str | LinkCheck | ValidationReport]:
    """Yield sentences of progress, each link's check as it is there, and last the whole.

    `links`: emulated ones, or None for the real one. Tokens are counted on greedy answers to `requests`; acceptance
    comes from this pair's profile in `cache_folder`, or else from answers to `calibration_requests`. Raises OptionError
    without a draft, prompts, or a layer that streams.
    """
    if config.is_plain:
        raise OptionError("--draft none leaves nothing to validate; leave it out, or name a draft")
    if not requests or not calibration_requests:
        raise OptionError("there is no prompt to answer; give prompt files with at least one")
    config = yield from relabel(locate_models(config, cache_folder=cache_folder), said)
    findings: _Findings | None = None
    checks = []
    for link in links:
        with open_session(replace(config, link=link, tree="auto"), requests=requests) as opened:
            if opened.streamer.num_streamed_layers == 0:
                raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")
            name = link or "disk"
            stored = None
            if findings is None and (stored := _stored_pair(opened, cache_folder)) is not None:
                yield f"predicting tokens from the profile of {stored.measured_at.isoformat()}"
            scope = TEXT_SCOPE if findings is None and stored is None else COST_SCOPE
            result = yield from _calibrate(opened, name, calibration_requests, scope, cache_folder)
            if findings is None:
                ranks = yield from _write_texts(opened, requests)
                findings = _Findings(_prediction(stored or result.pair), ranks)
                if findings.max_levels < 2:
                    raise OptionError("the answers are too short to count on; give a larger --max-new-tokens")
            checks.append((yield from _check(opened, name, result, findings, requests, num_turns)))
            yield checks[-1]
    assert findings is not None, "there is at least one link"
    yields = check_yields(findings.ranks, findings.prediction, max_levels=min(findings.max_levels, YIELD_LEVELS))
    yield ValidationReport(opened.plan.target_name, opened.plan.draft_name, yields, tuple(checks))


def _stored_pair(opened: OpenSession, cache_folder: Path) -> PairProfile | None:
    """What a calibration kept of this pair on this device, if it saw enough greedy positions to plan from."""
    profile = find_profiles(opened.plan, cache_folder).profile
    if profile is None:
        return None
    table = profile.acceptance_near(0.0)
    return None if table.is_rough or table.temperature != 0 else profile


def _prediction(pair: PairProfile) -> Prediction:
    table, around = pair.acceptance_near(0.0), acceptance_range(pair, 0.0)
    low, high = (None, None) if around is None else around
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
    calibrator = Calibrator(probes, scope, clock=time.monotonic, began=time.monotonic())
    result = yield from relabel(
        calibrator.run(), lambda step: f"{name}: calibrating, {step.what}; about {step.left_seconds:.0f} s left"
    )
    opened.session.engine.truncate(0)
    return result


def _write_texts(opened: OpenSession, requests: Sequence[PromptRequest]) -> Generator[str, None, list[Ranks]]:
    """Greedy answers of the target, each token as the draft ranks it."""
    engine = opened.session.engine
    assert engine.drafter is not None, "the configuration names a draft"
    ranks = []
    for number, request in enumerate(requests, start=1):
        yield f"answering prompt {number} of {len(requests)}"
        greedy = replace(request, params=replace(request.params, temperature=0.0))
        with closing(opened.session.generate(greedy)) as events:
            *_, finished = events
        assert isinstance(finished, Finished), "the engine's last event is Finished"
        text, num_prompt = list(engine.text), finished.statistics.prompt_tokens
        engine.truncate(0)
        if len(text) > num_prompt:
            ranks.append(rank_tokens(engine.drafter.model, text, num_prompt=num_prompt))
    return ranks


def _check(
    opened: OpenSession,
    name: str,
    result: CalibrationResult,
    findings: _Findings,
    requests: Sequence[PromptRequest],
    num_turns: int,
) -> Generator[str, None, LinkCheck]:
    costs = session_costs(opened, result)
    max_nodes, max_levels = opened.plan.max_nodes, findings.max_levels
    by_depth = findings.prediction.by_depth
    ranking = choose_tree(costs, by_depth, max_nodes=max_nodes, max_levels=max_levels)
    choice = ranking.best
    yield f"{name}: the planner chose {choice.num_nodes}x{choice.num_levels}, {choice.seconds_per_token:.3f} s/token"
    topologies = [_static(choice), *_topologies(by_depth, max_nodes, max_levels)]
    topologies = list(dict.fromkeys(topologies))
    timed = []
    for item in time_shapes(opened, requests, topologies, num_turns=num_turns):
        timed.append(item)
        tree = topologies[item.shape_index]
        yield f"{name}: a round of {tree.num_nodes}x{tree.num_levels} took {item.seconds:.2f} s"
    return check_link(
        name,
        timed,
        topologies,
        costs,
        predicted_tokens=[expected_tokens(tree, by_depth) for tree in topologies],
        measured_tokens=[count_yield(tree, findings.ranks).mean for tree in topologies],
    )


def _static(choice: TreeChoice) -> TreeTopology:
    """The shape of a static tree."""
    shape = choice.shape()
    assert isinstance(shape, TreeTopology), "choose_tree ranks static trees"
    return shape


def session_costs(opened: OpenSession, result: CalibrationResult) -> RoundCosts:
    """A round's costs on this session, copies as the calibration timed them on its link."""
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


def _topologies(acceptance: NDArray[np.float64], max_nodes: int, max_levels: int) -> list[TreeTopology]:
    """The best trees of the sizes that are timed, as far as session and answers have room for them."""
    shapes = [(nodes, levels) for nodes, levels in SHAPES if nodes <= max_nodes and levels <= max_levels]
    searches = best_first_by_levels(acceptance, max(nodes for nodes, _ in shapes), max(levels for _, levels in shapes))
    return [searches[levels - 1].topology(nodes) for nodes, levels in shapes]
