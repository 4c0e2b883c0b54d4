"""Exactness by enumeration: draw and verify over a whole round emit exactly the target's chain, with every scheme.

The enumeration drives the shipped placing and judging through every outcome: each draw of a token and each accept or
reject becomes a choice with its exact probability, and all branches are summed. A round emits a prefix of varying
length; continued with the target's own chain up to a fixed horizon it must be the target's chain.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from chi_square import chi_square_p_value

from runtime.sampling_params import VERIFICATIONS, SamplingParams
from runtime.speculation import fixed_and_drawn, sequoia, specinfer
from runtime.speculation.rejection import residual_step
from runtime.speculation.sampling import _BlockedWeights, draw_with_replacement, logits_to_probs
from runtime.speculation.scheme import Children, Place, Scheme
from runtime.speculation.scheme_choice import scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import verify

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


class Chance(float):
    """A uniform random number of which only a comparison is known."""

    choose: Choose

    def __lt__(self, probability: float) -> bool:
        return self.choose([1 - probability, probability]) == 1


class ChoosingGenerator:
    """A generator whose numbers become choices."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose

    def random(self) -> Chance:
        chance = Chance(0.5)
        chance.choose = self._choose
        return chance


def choosing_pick(weights: _BlockedWeights, rng: ChoosingGenerator) -> int:
    """In the place of the one function through which every token is drawn."""
    every = weights._blocks.ravel()
    return rng._choose((every / every.sum()).tolist())


@pytest.fixture(autouse=True)
def real_pick() -> Iterator[None]:
    """Draws become choices where the generator is a ChoosingGenerator."""
    pick = _BlockedWeights.pick
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _BlockedWeights,
            "pick",
            lambda weights, rng: (choosing_pick if isinstance(rng, ChoosingGenerator) else pick)(weights, rng),
        )
        yield


def grafts_at(prefix: tuple[int, ...], pair: Pair, num_grafts: int) -> list[int]:
    """Tokens put behind the drawn ones, a function of the prefix; they may repeat those and each other."""
    rng = np.random.default_rng([pair.num_tokens, 7, len(prefix), *prefix])
    return rng.integers(pair.num_tokens, size=num_grafts).tolist()


@dataclass(frozen=True)
class Round:
    """What is drawn and verified."""

    pair: Pair
    topology: TreeTopology
    params: SamplingParams
    num_grafts: int = 0
    """So many of each node's children, or all of them if it has fewer, are grafts."""

    def place(self, scheme: Scheme, tree: TokenTree, node: int, rng: object) -> None:
        prefix = prefix_of(tree, node)
        num_children = int(self.topology.num_children[node])
        num_grafts = min(self.num_grafts, num_children)
        placed = Children(np.empty(0, dtype=np.int64))
        if num_children > num_grafts:
            place = Place.below(tree, node, self.params)
            placed = scheme.place(self.pair.draft(prefix), num_children - num_grafts, place, rng)
        token_ids = [*placed.token_ids.tolist(), *grafts_at(prefix, self.pair, num_grafts)]
        tree.set_children(node, token_ids=token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)

    def play_lazily(self, rng: object) -> tuple[int, ...]:
        """Children are placed when the walk reaches their parent: what it never reaches cannot matter."""
        tree, scheme = TokenTree.rooted(self.topology, root_token_id=0), scheme_for(self.params)

        def target_row(node: int) -> np.ndarray:
            if self.topology.num_children[node]:
                self.place(scheme, tree, node, rng)
            return self.pair.target(prefix_of(tree, node))

        return tuple(verify(tree, target_row, self.params, rng, scheme=scheme).emitted_token_ids(tree))

    def play(self, rng: np.random.Generator) -> tuple[int, ...]:
        """As the product does it: the whole tree is grown, then verified."""
        tree, scheme = TokenTree.rooted(self.topology, root_token_id=0), scheme_for(self.params)
        for node in self.topology.expanded_nodes.tolist():
            self.place(scheme, tree, node, rng)
        verdict = verify(tree, lambda node: self.pair.target(prefix_of(tree, node)), self.params, rng, scheme=scheme)
        return tuple(verdict.emitted_token_ids(tree))

    def emitted(self) -> Distribution:
        """The exact distribution of the tokens that the shipped placing and judging emit."""
        return enumerate_choices(lambda choose: self.play_lazily(ChoosingGenerator(choose)))


def prefix_of(tree: TokenTree, node: int) -> tuple[int, ...]:
    return tuple(tree.path_token_ids(node)[1:].tolist())


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


def assert_lossless(pair: Pair, child_counts: list[int], params: SamplingParams, *, num_grafts: int = 0) -> None:
    emitted = Round(pair, TreeTopology.from_child_counts(child_counts), params, num_grafts).emitted()
    assert sum(emitted.values()) == pytest.approx(1, abs=1e-12)
    assert largest_error(pair, params, emitted) < 1e-12


PLAIN = SamplingParams(temperature=1)
CHAIN = [1, 1, 1, 0]
STAR = [3, 0, 0, 0]
BINARY = [2, 2, 2, 0, 0, 0, 0]
UNEVEN = [3, 1, 1, 0, 1, 0, 0]
DRAWING = ["sequoia", "specinfer", "hybrid", "top-k"]
"""The schemes that a generator decides; `coupled` is a function of noise, see test_coupled.py."""


@pytest.mark.parametrize("child_counts", [[0], CHAIN, STAR, BINARY, UNEVEN], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_emits_the_targets_chain(kind: str, child_counts: list[int]) -> None:
    assert_lossless(Pair(kind, 3), child_counts, PLAIN)


@pytest.mark.parametrize("child_counts", [CHAIN, STAR, [2, 1, 0, 0]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verification", DRAWING[1:])
def test_so_it_does_with_every_other_scheme(verification: str, kind: str, child_counts: list[int]) -> None:
    assert_lossless(Pair(kind, 3), child_counts, replace(PLAIN, verification=verification))


@pytest.mark.parametrize("num_grafts", [1, 2])
@pytest.mark.parametrize("child_counts", [CHAIN, STAR, [3, 2, 0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verification", DRAWING)
def test_grafted_children_do_not_change_what_is_emitted(
    verification: str, kind: str, child_counts: list[int], num_grafts: int
) -> None:
    """Grafts alone, beside draws, the same as a draw, and twice the same."""
    assert_lossless(Pair(kind, 4), child_counts, replace(PLAIN, verification=verification), num_grafts=num_grafts)


@pytest.mark.parametrize(
    ("verification", "child_counts"), [("sequoia", [2, 1, 0, 1, 0])] + [(name, [2, 0, 0]) for name in DRAWING[1:]]
)
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
def test_a_round_emits_the_targets_chain_whatever_the_params(
    kind: str, params: SamplingParams, verification: str, child_counts: list[int]
) -> None:
    assert_lossless(Pair(kind, 4), child_counts, replace(params, verification=verification))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("child_counts", [STAR, [4, 0, 0, 0, 0], [3, 1, 0, 1, 1, 0, 0]], ids=str)
def test_a_round_emits_the_targets_chain_over_larger_vocabularies(kind: str, child_counts: list[int]) -> None:
    """Four children of four tokens included: the draft's mass runs out, and fixed tokens follow."""
    assert_lossless(Pair(kind, 4), child_counts, PLAIN)


@pytest.mark.parametrize(("kind", "top_p"), [("moderate", 1.0), ("with zeros", 1.0), ("disjoint", 1.0), ("flat", 0.5)])
def test_a_round_over_five_tokens_and_seven_nodes_emits_the_targets_chain(kind: str, top_p: float) -> None:
    assert_lossless(Pair(kind, 5), [3, 2, 0, 1, 0, 0, 0], SamplingParams(temperature=1, top_p=top_p))


@pytest.mark.parametrize("child_counts", [CHAIN, STAR, UNEVEN], ids=str)
@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_greedy_rounds_emit_the_targets_argmax_chain(verification: str, child_counts: list[int]) -> None:
    params, topology = SamplingParams(verification=verification), TreeTopology.from_child_counts(child_counts)
    for kind in KINDS:
        pair = Pair(kind, 5)
        emitted = Round(pair, topology, params).play(np.random.default_rng(0))
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


def error_over_four_tokens(verification: str = "sequoia", *, num_grafts: int = 0) -> float:
    pair, params = Pair("moderate", 4), replace(PLAIN, verification=verification)
    return largest_error(pair, params, Round(pair, TreeTopology.from_child_counts(STAR), params, num_grafts).emitted())


@pytest.mark.parametrize("broken", [keep_draft, zero_without_renormalising, keep_target])
def test_the_enumeration_catches_a_broken_rule(broken: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequoia, "residual_step", broken)
    assert error_over_four_tokens() > 1e-3


@pytest.mark.parametrize("scheme", [specinfer, fixed_and_drawn])
def test_the_enumeration_catches_a_target_that_is_kept(scheme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheme, "target_residual", lambda target_probs, draft_probs: target_probs)
    name = {specinfer: "specinfer", fixed_and_drawn: "hybrid"}[scheme]
    assert error_over_four_tokens(name) > 1e-3


def safe_ratio(target_probs: np.ndarray, draft_probs: np.ndarray, token: int) -> float:
    """A token that was rejected before has no mass left."""
    return min(1.0, float(target_probs[token] / draft_probs[token])) if draft_probs[token] else 0.0


def test_the_enumeration_catches_draws_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequoia, "accept_probability", safe_ratio)
    monkeypatch.setattr(sequoia, "draw_while_mass", draw_with_replacement)
    assert error_over_four_tokens() > 1e-3


def test_the_enumeration_catches_a_graft_that_is_taken_for_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequoia, "accept_probability", safe_ratio)
    assert error_over_four_tokens(num_grafts=1) < 1e-12
    monkeypatch.setattr(Children, "drawn_token_ids", property(lambda children: children.token_ids.tolist()))
    monkeypatch.setattr(sequoia, "zip", lambda drawn, tokens, strict: enumerate(tokens), raising=False)
    assert error_over_four_tokens(num_grafts=1) > 1e-3


@pytest.mark.parametrize("verification", DRAWING)
@pytest.mark.parametrize(
    ("kind", "params"),
    [("moderate", PLAIN), ("with zeros", PLAIN), ("moderate", SamplingParams(temperature=1.3, top_p=0.8))],
    ids=["moderate", "with zeros", "top-p"],
)
def test_real_rounds_are_distributed_as_enumerated(kind: str, params: SamplingParams, verification: str) -> None:
    """The shipped random numbers. Seed 7, 3,000 rounds, p > 0.001."""
    topology, params = TreeTopology.from_child_counts([2, 2, 1, 0, 0, 0]), replace(params, verification=verification)
    played = Round(Pair(kind, 4), topology, params)
    rng, num_rounds = np.random.default_rng(7), 3000
    counts = Counter(played.play(rng) for _ in range(num_rounds))
    emitted = played.emitted()
    assert set(counts) <= set(emitted)
    outcomes = list(emitted)
    expected = [num_rounds * emitted[outcome] for outcome in outcomes]
    assert chi_square_p_value([counts[outcome] for outcome in outcomes], expected) > 1e-3
