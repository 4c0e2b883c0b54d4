"""Exactness by enumeration: draw and verify over a whole round emit exactly the target's chain.

The enumeration drives the shipped `verify` through every outcome: each draw of children, each accept or reject and
each final token becomes a choice with its exact probability, and all branches are summed. A round emits a prefix of
varying length; continued with the target's own chain up to a fixed horizon it must be the target's chain.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from chi_square import chi_square_p_value

from runtime.sampling_params import SamplingParams
from runtime.speculation import verifier
from runtime.speculation.sampling import draw_without_replacement, logits_to_probs, top_tokens
from runtime.speculation.token_tree import TokenTree, TreeTopology

Choose = Callable[[Sequence[float]], int]
Distribution = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Pair:
    """A draft and a target whose logits are fixed functions of the tokens so far."""

    kind: str
    num_tokens: int

    def target(self, prefix: tuple[int, ...]) -> np.ndarray:
        return logits_after(prefix, self, is_target=True)

    def draft(self, prefix: tuple[int, ...]) -> np.ndarray:
        return logits_after(prefix, self, is_target=self.kind == "equal")


@cache
def logits_after(prefix: tuple[int, ...], pair: Pair, *, is_target: bool) -> np.ndarray:
    rng = np.random.default_rng([pair.num_tokens, is_target, len(prefix), *prefix])
    scale = {"peaked": 6.0, "flat": 0.0 if is_target else 0.3}.get(pair.kind, 1.5)
    logits = (rng.standard_normal(pair.num_tokens) * scale).astype(np.float32)
    if pair.kind == "disjoint":
        logits[0 if is_target else slice(1, None)] = -np.inf
    if pair.kind == "with zeros":
        logits[rng.permutation(pair.num_tokens)[: pair.num_tokens // 2]] = -np.inf
    return logits


KINDS = ["peaked", "flat", "moderate", "disjoint", "with zeros", "equal"]


def enumerate_choices(play: Callable[[Choose], tuple[int, ...]]) -> Distribution:
    """The exact distribution of what `play` returns, over all sequences of choices it can make."""
    totals: Counter[tuple[int, ...]] = Counter()
    script: list[tuple[list[tuple[int, float]], int]] = []  # the open options of each choice, and the one taken

    while True:
        position = 0

        def choose(probabilities: Sequence[float]) -> int:
            nonlocal position
            if position == len(script):
                script.append(([(i, float(p)) for i, p in enumerate(probabilities) if p > 0], 0))
            options, taken = script[position]
            position += 1
            return options[taken][0]

        outcome = play(choose)
        totals[outcome] += float(np.prod([options[taken][1] for options, taken in script]))
        while script and script[-1][1] + 1 == len(script[-1][0]):
            script.pop()
        if not script:
            return totals
        script[-1] = (script[-1][0], script[-1][1] + 1)


def ordered_draws(probs: np.ndarray, num_draws: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """Every ordered draw without replacement with its probability; uniform over the rest once no mass is left."""
    draws, weights = [], []
    for draw in itertools.permutations(range(len(probs)), num_draws):
        left, weight = probs.tolist(), 1.0
        for num_drawn, token in enumerate(draw):
            mass = sum(left)
            weight *= left[token] / mass if mass > 0 else 1 / (len(probs) - num_drawn)
            left[token] = 0.0
        draws.append(draw)
        weights.append(weight)
    return draws, weights


def independent_draws(probs: np.ndarray, num_draws: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """Draws with replacement: not what the verifier assumes."""
    draws = list(itertools.product(range(len(probs)), repeat=num_draws))
    return draws, [float(np.prod(probs[list(draw)], dtype=np.float64)) for draw in draws]


def emitted_by_enumeration(
    pair: Pair, topology: TreeTopology, params: SamplingParams, *, draw_law: Callable = ordered_draws
) -> Distribution:
    """The exact distribution of the tokens that one round of the shipped `verify` emits."""

    def play(choose: Choose) -> tuple[int, ...]:
        tree = TokenTree.rooted(topology, root_token_id=0)

        def target_row(node: int) -> np.ndarray:
            # Children are drawn when the walk reaches their parent: draws it never reaches cannot matter.
            prefix = tuple(tree.path_token_ids(node)[1:].tolist())
            num_children = len(topology.children(node))
            if num_children:
                row = logits_to_probs(pair.draft(prefix), params, dtype=np.float32)
                draws, weights = draw_law(row, num_children)
                tree.set_children(node, token_ids=draws[choose(weights)], draft_probs=row)
            return pair.target(prefix)

        def decide(target_probs: np.ndarray, draft_probs: np.ndarray, token: int) -> float:
            accepted = accept_probability(target_probs, draft_probs, token)
            return float(choose([1 - accepted, accepted]))  # 1 is always above a uniform number, 0 never

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verifier, "accept_probability", decide)
            patch.setattr(verifier, "sample", lambda probs, rng: choose(probs.tolist()))
            verdict = verifier.verify(tree, target_row, params, np.random.default_rng(0))
        return tuple(verdict.emitted_token_ids(tree))

    accept_probability = verifier.accept_probability
    return enumerate_choices(play)


def real_round(pair: Pair, topology: TreeTopology, params: SamplingParams, rng: np.random.Generator) -> tuple[int, ...]:
    """The tokens of one round as the product plays it: the whole tree is drawn, then verified."""
    tree = TokenTree.rooted(topology, root_token_id=0)

    def prefix(node: int) -> tuple[int, ...]:
        return tuple(tree.path_token_ids(node)[1:].tolist())

    for node in topology.expanded_nodes.tolist():
        num_children = len(topology.children(node))
        if params.is_greedy:
            tree.set_children(node, token_ids=top_tokens(pair.draft(prefix(node)), num_children))
        else:
            row = logits_to_probs(pair.draft(prefix(node)), params, dtype=np.float32)
            drawn = draw_without_replacement(row, num_children, rng)
            tree.set_children(node, token_ids=drawn, draft_probs=row)
    verdict = verifier.verify(tree, lambda node: pair.target(prefix(node)), params, rng)
    return tuple(verdict.emitted_token_ids(tree))


@cache
def target_probability(pair: Pair, params: SamplingParams, prefix: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    """The probability that the target alone continues `prefix` with `tokens`."""
    if not tokens:
        return 1.0
    probability = float(logits_to_probs(pair.target(prefix), params)[tokens[0]])
    return probability * target_probability(pair, params, (*prefix, tokens[0]), tokens[1:])


def largest_error(pair: Pair, params: SamplingParams, emitted: Distribution) -> float:
    """How far the emitted tokens, continued by the target up to the longest round, are from the target's chain."""
    horizon = max(map(len, emitted))
    errors = []
    for tokens in itertools.product(range(pair.num_tokens), repeat=horizon):
        starts = [(length, emitted.get(tokens[:length], 0.0)) for length in range(1, horizon + 1)]
        found = sum(p and p * target_probability(pair, params, tokens[:n], tokens[n:]) for n, p in starts)
        errors.append(abs(found - target_probability(pair, params, (), tokens)))
    return max(errors)


def assert_lossless(pair: Pair, child_counts: list[int], params: SamplingParams) -> None:
    emitted = emitted_by_enumeration(pair, TreeTopology.from_child_counts(child_counts), params)
    assert sum(emitted.values()) == pytest.approx(1, abs=1e-12)
    assert largest_error(pair, params, emitted) < 1e-12


PLAIN = SamplingParams(temperature=1)
CHAIN = [1, 1, 1, 0]
STAR = [3, 0, 0, 0]
BINARY = [2, 2, 2, 0, 0, 0, 0]
UNEVEN = [3, 1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("child_counts", [[0], CHAIN, STAR, BINARY, UNEVEN], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_emits_the_targets_chain(kind: str, child_counts: list[int]) -> None:
    assert_lossless(Pair(kind, 3), child_counts, PLAIN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1, top_p=0.7),
        SamplingParams(temperature=0.4),
        SamplingParams(temperature=1.7, top_p=0.9),
        SamplingParams(temperature=1, top_k=2),
        SamplingParams(temperature=0.8, top_k=3, top_p=0.6),
    ],
    ids=lambda params: f"T{params.temperature}-k{params.top_k}-p{params.top_p}",
)
def test_a_round_emits_the_targets_chain_whatever_the_params(kind: str, params: SamplingParams) -> None:
    assert_lossless(Pair(kind, 4), [2, 1, 0, 1, 0], params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("child_counts", [STAR, [4, 0, 0, 0, 0], [3, 1, 0, 1, 1, 0, 0]], ids=str)
def test_a_round_emits_the_targets_chain_over_larger_vocabularies(kind: str, child_counts: list[int]) -> None:
    """Four children of four tokens included: the draft's mass and then its fallback run out."""
    assert_lossless(Pair(kind, 4), child_counts, PLAIN)


@pytest.mark.parametrize(("kind", "top_p"), [("moderate", 1.0), ("with zeros", 1.0), ("disjoint", 1.0), ("flat", 0.5)])
def test_a_round_over_five_tokens_and_seven_nodes_emits_the_targets_chain(kind: str, top_p: float) -> None:
    assert_lossless(Pair(kind, 5), [3, 2, 0, 1, 0, 0, 0], SamplingParams(temperature=1, top_p=top_p))


@pytest.mark.parametrize("child_counts", [CHAIN, STAR, UNEVEN], ids=str)
def test_greedy_rounds_emit_the_targets_argmax_chain(child_counts: list[int]) -> None:
    params, topology = SamplingParams(temperature=0), TreeTopology.from_child_counts(child_counts)
    for kind in KINDS:
        pair = Pair(kind, 5)
        emitted = real_round(pair, topology, params, np.random.default_rng(0))
        for length, token in enumerate(emitted):
            assert token == int(np.argmax(pair.target(emitted[:length])))


def keep_draft(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: the draft keeps the rejected token."""
    return residual_step(target_probs, draft_probs, rejected)[0], draft_probs


def zero_without_renormalising(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: the draft loses the rejected token but does not sum to 1."""
    draft_left = draft_probs.copy()
    draft_left[rejected[-1]] = 0
    return residual_step(target_probs, draft_probs, rejected)[0], draft_left


def keep_target(target_probs: np.ndarray, draft_probs: np.ndarray, rejected: Sequence[int]) -> tuple:
    """Broken: no residual."""
    return target_probs, residual_step(target_probs, draft_probs, rejected)[1]


residual_step = verifier.residual_step


@pytest.mark.parametrize("broken", [keep_draft, zero_without_renormalising, keep_target])
def test_the_enumeration_catches_a_broken_rule(broken: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, topology = Pair("moderate", 4), TreeTopology.from_child_counts(STAR)
    monkeypatch.setattr(verifier, "residual_step", broken)
    assert largest_error(pair, PLAIN, emitted_by_enumeration(pair, topology, PLAIN)) > 1e-3


def test_the_enumeration_catches_draws_with_replacement() -> None:
    pair, topology = Pair("moderate", 4), TreeTopology.from_child_counts(STAR)

    def safe_ratio(target_probs: np.ndarray, draft_probs: np.ndarray, token: int) -> float:
        return min(1.0, float(target_probs[token] / draft_probs[token])) if draft_probs[token] else 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier, "accept_probability", safe_ratio)  # a second draw of a token has no mass left
        emitted = emitted_by_enumeration(pair, topology, PLAIN, draw_law=independent_draws)
    assert largest_error(pair, PLAIN, emitted) > 1e-3


@pytest.mark.parametrize(
    ("kind", "params"),
    [("moderate", PLAIN), ("with zeros", PLAIN), ("moderate", SamplingParams(temperature=1.3, top_p=0.8))],
    ids=["moderate", "with zeros", "top-p"],
)
def test_real_rounds_are_distributed_as_enumerated(kind: str, params: SamplingParams) -> None:
    """The shipped draws and random numbers. Seed 7, 4,000 rounds, p > 0.001."""
    pair, topology = Pair(kind, 4), TreeTopology.from_child_counts([2, 2, 1, 0, 0, 0])
    rng, num_rounds = np.random.default_rng(7), 4000
    counts = Counter(real_round(pair, topology, params, rng) for _ in range(num_rounds))
    emitted = emitted_by_enumeration(pair, topology, params)
    assert set(counts) <= set(emitted)
    outcomes = list(emitted)
    expected = [num_rounds * emitted[outcome] for outcome in outcomes]
    assert chi_square_p_value([counts[outcome] for outcome in outcomes], expected) > 1e-3
