"""The checks that the method itself calls for: are the tokens, the seconds and the choice what was predicted?

On each link a session is calibrated, then real rounds of a dozen trees, the planner's own choice among them, are timed
in turn, so that a slow minute falls on all of them alike, and each is held against the prediction with the copies timed
around it. Tokens per pass are counted on greedy answers to prompts that no acceptance comes from: that is the stored
profile's, if this pair has one, else the first calibration's.
"""

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offload.formats.stored_sizes import COLUMN_MULTIPLE
from offload.layer_streamer import ResidentLayer
from profiles.acceptance import error_between
from profiles.calibration_probes import CalibrationScope
from profiles.calibrator import CalibrationResult, Calibrator
from profiles.pair_profile import PairProfile
from profiles.steps import relabel
from runtime.bench.rounds import TimedRound, check_streaming, time_rounds
from runtime.bench.trees import WrittenText, write_texts
from runtime.calibration.probes import SessionProbes
from runtime.config import MAX_TREE_LEVELS, EngineConfig
from runtime.engine.loading import OpenSession, open_session
from runtime.errors import OptionError
from runtime.model.streamed_model import StreamedModel, chain_input
from runtime.planner.costs import RoundCosts, costs_from_profiles
from runtime.planner.initial_plan import find_profiles
from runtime.planner.tree_choice import choose_tree
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.acceptance import acceptance_of, acceptance_range
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first, expected_tokens, node_worths

SHAPES = (
    *((1, 1), (4, 4), (8, 8), (16, 5), (16, 16), (32, 6)),
    *((32, 12), (64, 6), (64, 12), (64, 24), (128, 8), (128, 16)),
)
"""Nodes and levels of the trees that are timed beside the planner's choice."""
YIELD_LEVELS = 33
"""Levels of the trees whose yields are counted for every size."""
TEXT_SCOPE = CalibrationScope(budget_seconds=150.0, temperatures=(0.0,), contexts=(128,), texts_share=0.5)
"""The first link's calibration: costs, and the acceptance that all links use."""
COST_SCOPE = CalibrationScope(
    budget_seconds=75.0, temperatures=(0.0,), contexts=(128,), texts_share=0.02, max_texts=1, overlap_share=0.35
)
"""The others': costs alone, on the link at hand."""
CHAIN_LENGTHS = (2, 4, 8, 16, 24, 32)
LOG_FIT_FROM = 8
"""Smallest tree of the fit: below, a tree is mostly the draft's first choice."""
_CHUNK_ROWS = 64  # of logits at a time: 64 of 152,000 entries are 39 MB

Ranks = NDArray[np.int64]
"""(A,) rank of each token of an answer in the draft's order behind the text before it, from 1; 0 if it has none."""


def run_validation(
    config: EngineConfig,
    requests: Sequence[PromptRequest],
    *,
    calibration_requests: Sequence[PromptRequest],
    links: Sequence[str | None],
    cache_folder: Path,
    num_turns: int = 3,
) -> Generator[str, None, dict[str, Any]]:
    """Check every link: emulated ones, or None for the real one; return what was found of tokens and of each link.

    `config` names folders and a draft. Tokens are counted on greedy answers to `requests`; acceptance comes from this
    pair's profile in `cache_folder`, or else from answers to `calibration_requests`. Raises OptionError if no layer
    streams, or if the answers are too short to count on.
    """
    pair: PairProfile | None = None  # whose acceptance tokens are predicted from
    ranks: list[Ranks] = []
    checks = []
    for link in links:
        with open_session(replace(config, link=link, tree="auto"), requests=requests) as opened:
            check_streaming(opened)
            name = link or "disk"
            if pair is None and (pair := _stored_pair(opened, cache_folder)) is not None:
                yield f"predicting tokens from the profile of {pair.measured_at.isoformat()}"
            scope = TEXT_SCOPE if pair is None else COST_SCOPE
            result = yield from _calibrate(opened, name, calibration_requests, scope, cache_folder)
            pair = pair or result.pair
            by_depth = acceptance_of(pair, 0.0)
            ranks = ranks or (yield from _rank_texts(opened, requests))
            # Deeper trees would reach past the end of too many rounds to be counted.
            max_levels = min(MAX_TREE_LEVELS, max(map(len, ranks), default=0) // 2)
            if max_levels < 2:
                raise OptionError("the answers are too short to count on; give a larger --max-new-tokens")
            costs = _session_costs(opened, result)
            trees = _choose_trees(opened, costs, by_depth, max_levels=max_levels)
            timed: dict[TreeTopology, list[TimedRound]] = {tree: [] for tree in trees}
            prompts = [opened.session.format_prompt(request) for request in requests]
            rounds = time_rounds(opened, prompts, [trees] * num_turns, params=requests[0].params)
            for tree, each in zip(cycle(trees), rounds, strict=False):
                timed[tree].append(each)
                yield f"{name}: a round of {tree.num_nodes}x{tree.num_levels} took {each.done.seconds:.2f} s"
            shapes = []
            for tree, of_tree in timed.items():
                shape = check_tree(tree, of_tree, costs, by_depth=by_depth, ranks=ranks)
                shapes.append(shape)
                yield (
                    f"{name}: {tree.num_nodes}x{tree.num_levels} {shape['predicted_seconds']:.3f} s predicted, "
                    f"{shape['measured_seconds']:.3f} measured; {shape['predicted_tokens']:.2f} tokens expected, "
                    f"{shape['measured_tokens']:.2f} counted"
                )
            copy_seconds = statistics.median(each.copy_seconds for rounds in timed.values() for each in rounds)
            checks.append(check_link(name, shapes, copy_seconds))
    assert pair is not None, "there is at least one link"
    yields = check_yields(ranks, pair, max_levels=min(max_levels, YIELD_LEVELS))
    names = {"target": opened.plan.target_name, "draft": opened.plan.draft_name}
    return {**names, "yields": yields, "links": checks}


def _stored_pair(opened: OpenSession, cache_folder: Path) -> PairProfile | None:
    """Return what a calibration kept of this pair on this device, if it saw enough greedy positions to plan from."""
    profile = find_profiles(opened.plan, cache_folder).profile
    table = None if profile is None else profile.acceptance_near(0.0)
    return None if table is None or table.is_rough or table.temperature != 0 else profile


def _calibrate(
    opened: OpenSession, name: str, requests: Sequence[PromptRequest], scope: CalibrationScope, cache_folder: Path
) -> Generator[str, None, CalibrationResult]:
    probes = SessionProbes(opened, requests, state_folder=cache_folder)
    calibrator = Calibrator(probes, scope, clock=monotonic, began=monotonic())
    result = yield from relabel(calibrator.run(), lambda step: f"{name}: calibrating, {step}")
    opened.session.engine.truncate(0)
    return result


def _rank_texts(opened: OpenSession, requests: Sequence[PromptRequest]) -> Generator[str, None, list[Ranks]]:
    """Let the target answer greedily, and return each token's rank in the draft's order."""
    drafter = opened.session.engine.drafter
    if drafter is None:
        raise OptionError("no draft was loaded, so there is none to rank; name one with --draft, or substitute")
    greedy = [replace(request, params=replace(request.params, temperature=0.0)) for request in requests]
    texts = yield from write_texts(opened, greedy)
    return [rank_tokens(drafter.model, text) for text in texts if len(text.token_ids) > text.num_prompt]


def rank_tokens(model: StreamedModel, text: WrittenText) -> Ranks:
    """Return the rank (A,), from 1, of each token of the answer in the model's order behind the tokens before it.

    It is 0 for a token that the model has no row for. The cache is empty afterwards.
    """
    inputs = np.minimum(text.token_ids[:-1], model.vocab_size - 1).tolist()
    model.cache.truncate(0)
    hidden = model.run_pass(chain_input(inputs, num_cached=0))[text.num_prompt - 1 :]  # (A, E)
    model.cache.truncate(0)
    wanted = torch.tensor(text.token_ids[text.num_prompt :], device=hidden.device)
    ranks = []
    for rows, chunk in zip(torch.split(hidden, _CHUNK_ROWS), torch.split(wanted, _CHUNK_ROWS), strict=True):
        logits = model.logits(rows)  # (C, V)
        own = logits.gather(1, chunk.clamp(max=logits.shape[1] - 1)[:, None])
        ranks.append((1 + (logits > own).sum(dim=1)) * (chunk < logits.shape[1]))
    return torch.cat(ranks).numpy(force=True)


def _choose_trees(
    opened: OpenSession, costs: RoundCosts, acceptance: NDArray[np.float64], *, max_levels: int
) -> list[TreeTopology]:
    """Return the planner's choice, then the best trees of SHAPES, as far as session and answers have room for them."""
    max_nodes = opened.plan.need.max_nodes
    chosen = choose_tree(costs, acceptance, max_nodes=max_nodes, max_levels=max_levels).best.shape()
    assert isinstance(chosen, TreeTopology), "choose_tree ranks static trees"
    shapes = [(nodes, levels) for nodes, levels in SHAPES if nodes <= max_nodes and levels <= max_levels]
    return list(dict.fromkeys([chosen, *(best_first(acceptance, *shape).topology(shape[0]) for shape in shapes)]))


def _session_costs(opened: OpenSession, result: CalibrationResult) -> RoundCosts:
    """Return a round's costs on this session, copies as the calibration timed them on its link."""
    if result.overlap.copy_seconds is None:
        raise OptionError("the link was not measured; give more time, or a smaller --device-memory")
    streamed = [None if isinstance(layer, ResidentLayer) else layer.payload_bytes for layer in opened.streamer.layers]
    rate = opened.placement.streamed_bytes / result.overlap.copy_seconds
    return costs_from_profiles(
        result.pair,
        copy_seconds=[None if size is None else size / rate for size in streamed],
        num_slots=len(opened.streamer.slots),
        context_tokens=opened.plan.need.context_tokens // 2,
    ).with_token_multiple(COLUMN_MULTIPLE if opened.plan.is_host else 1)


def check_tree(
    tree: TreeTopology,
    rounds: Sequence[TimedRound],
    costs: RoundCosts,
    *,
    by_depth: NDArray[np.float64],
    ranks: Sequence[Ranks],
) -> dict[str, float]:
    """Hold a tree's rounds against `costs` with the copies timed around each, and its tokens against counted ones.

    Tokens are predicted from the acceptance `by_depth`, and counted on texts that it does not come from.
    """
    predicted_seconds = statistics.median(predict_seconds(tree, costs, each.copy_seconds) for each in rounds)
    measured_seconds = statistics.median(each.done.seconds for each in rounds)
    predicted_tokens, measured_tokens = expected_tokens(tree, by_depth), float(count_yields(tree, ranks)[0][-1])
    predicted, measured = predicted_seconds / predicted_tokens, measured_seconds / measured_tokens
    return {
        "round_error": abs(predicted_seconds / measured_seconds - 1),
        "predicted_seconds_per_token": predicted,
        "measured_seconds_per_token": measured,
        "token_error": abs(predicted / measured - 1),
        "num_nodes": tree.num_nodes,
        "num_levels": tree.num_levels,
        "predicted_seconds": predicted_seconds,
        "measured_seconds": measured_seconds,
        "num_rounds": len(rounds),
        "predicted_tokens": predicted_tokens,
        "measured_tokens": measured_tokens,
    }


def check_link(link: str, shapes: Sequence[Mapping[str, float]], copy_seconds: float) -> dict[str, Any]:
    """Return the errors of all trees, and what the first one, the planner's choice, is worth beside the best."""
    round_errors, token_errors = ([shape[name] for shape in shapes] for name in ("round_error", "token_error"))
    choice, best = shapes[0], min(shape["measured_seconds_per_token"] for shape in shapes)
    return {
        "median_round_error": statistics.median(round_errors),
        "worst_round_error": max(round_errors),
        "median_token_error": statistics.median(token_errors),
        "worst_token_error": max(token_errors),
        "choice": f"{choice['num_nodes']}x{choice['num_levels']}",
        "choice_over_best": choice["measured_seconds_per_token"] / best,
        "link": link,
        "copy_seconds": copy_seconds,  # of a pass, alone; median of the looks
        "shapes": shapes,
    }


def predict_seconds(tree: TreeTopology, costs: RoundCosts, copy_seconds: float) -> float:
    """Return the seconds of a round with this tree, where a pass's copies alone take `copy_seconds` in all."""
    assert costs.draft_step_seconds is not None, "the pair has a draft"
    scale = copy_seconds / sum(filter(None, costs.copy_seconds))
    scaled = tuple(None if seconds is None else seconds * scale for seconds in costs.copy_seconds)
    widths = np.bincount(tree.depths[tree.num_children > 0])  # of the draft's steps, one for each level with children
    draft_seconds = float(costs.draft_step_seconds(widths).sum())
    return float(replace(costs, copy_seconds=scaled).round_seconds([tree.num_nodes], [draft_seconds])[0])


def check_yields(
    texts: Sequence[Ranks], pair: PairProfile, *, max_nodes: int = 512, max_levels: int = 33
) -> dict[str, Any]:
    """Hold G(n), n = 1 .. max_nodes, and chains, where the model errs most, against what is counted on `texts`.

    Three questions of Sequoia (arXiv 2402.12374): is the G(n) that the positional model predicts what is measured, does
    it grow with log n, and how far off is the model where trees are deep. Both sides rest on few texts: only a gap that
    is large beside their standard errors speaks against the model. The pair's acceptance must come from other texts.
    Raises ValueError if no text is as long as the deepest tree.
    """
    search = best_first(acceptance_of(pair, 0.0, by_depth=False), max_nodes, max_levels)
    horizon = int(search.depths.max())
    num_positions = sum(max(0, len(ranks) - horizon) for ranks in texts)
    if num_positions < 2:
        raise ValueError(f"no answer is longer than the {horizon} tokens that the deepest tree reaches")
    found = _compare(search, texts, pair)
    measured, table = found["measured"], pair.acceptance_near(0.0)
    sizes = [1 << power for power in range(len(measured).bit_length())]
    intercept, slope, r_squared = _fit_log(sizes, measured)
    longest = max(map(len, texts))
    chains = {length: best_first([1.0], length, length) for length in CHAIN_LENGTHS if length <= longest}
    return {
        "trees": [_of_size(size, found) for size in sizes],
        "chains": [_of_size(length, _compare(chain, texts, pair)) for length, chain in chains.items()],
        "num_positions": num_positions,  # that trees were counted at
        "log_intercept": intercept,  # a of measured = a + b ln n, n >= LOG_FIT_FROM
        "log_slope": slope,  # b
        "log_r_squared": r_squared,  # share of the variance that the fit explains
        # Largest |predicted / measured - 1| over all n.
        "worst_error_by_rank": float(np.abs(found["by_rank"] / measured - 1).max()),
        "worst_error_by_depth": float(np.abs(found["by_depth"] / measured - 1).max()),
        "num_predicted_positions": table.num_positions[0],
        "num_predicted_texts": table.num_texts,
    }


def count_yields(
    tree: BestFirst | TreeTopology, texts: Sequence[Ranks]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the tokens per pass of the tree's first 1, 2, ... M nodes (M,), and their standard errors (M,).

    The rank of each token settles what any tree would emit there. A round starts at every position from which the tree
    cannot run past the text's end, the same for all sizes. Without such a position means are nan and errors infinite.
    See `error_between`.
    """
    horizon = int(tree.depths.max())
    children = {
        (int(parent), int(rank)): node for node, (parent, rank) in enumerate(zip(tree.parents, tree.ranks, strict=True))
    }
    long_enough = [ranks for ranks in texts if len(ranks) > horizon]
    visits = np.zeros((len(long_enough), len(tree.parents)))  # (k, M) rounds of a text that come through each node
    counts = np.array([len(ranks) - horizon for ranks in long_enough], dtype=np.int64)  # (k,) rounds of each text
    visits[:, 0] = counts  # the root
    for row, ranks in zip(visits, long_enough, strict=True):
        for start in range(len(ranks) - horizon):
            node = 0
            for rank in ranks[start : start + horizon].tolist():
                if (child := children.get((node, rank))) is None:
                    break
                node = child
                row[node] += 1
    sums = np.cumsum(visits, axis=1)  # (k, M): every tree that has a node emits one more where a round comes through it
    means = sums.sum(axis=0) / counts.sum() if len(counts) else np.full(sums.shape[1], np.nan)
    return means, error_between(sums, counts)


def _compare(search: BestFirst, texts: Sequence[Ranks], pair: PairProfile) -> dict[str, NDArray[np.float64]]:
    """Return the tokens per pass of the search's trees of 1 .. M nodes, (M,) each; nan where an error is not known."""
    measured, errors = count_yields(search, texts)
    by_depth = np.cumsum(node_worths(search, acceptance_of(pair, 0.0)))
    by_depth_error = np.full(len(by_depth), np.nan)
    if (around := acceptance_range(pair, 0.0)) is not None:
        low, high = (np.cumsum(node_worths(search, acceptance)) for acceptance in around)
        by_depth_error = (high - low) / 2
    return {
        "measured": measured,
        "standard_error": errors,  # of `measured`, between texts; infinite for a single text
        "by_rank": np.cumsum(node_worths(search, acceptance_of(pair, 0.0, by_depth=False))),
        "by_depth": by_depth,
        "by_depth_error": by_depth_error,
    }


def _of_size(num_nodes: int, found: Mapping[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """Return what was found for one size; None for an error that is not known."""
    values = {name: float(by_size[num_nodes - 1]) for name, by_size in found.items()}
    return {"num_nodes": num_nodes, **{name: value if math.isfinite(value) else None for name, value in values.items()}}


def _fit_log(sizes: Sequence[int], measured: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (a, b, R^2) of measured = a + b ln n by least squares, every doubling with the same weight."""
    kept = [size for size in sizes if size >= min(LOG_FIT_FROM, len(measured) // 2)]
    logs, values = np.log(kept), measured[np.array(kept) - 1]
    slope, intercept = np.polyfit(logs, values, 1)
    rest, total = np.var(values - intercept - slope * logs), np.var(values)
    return float(intercept), float(slope), float(1 - rest / total) if total > 0 else 1.0
