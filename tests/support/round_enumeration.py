"""What draw and verify emit over a whole round, exactly: every outcome of the shipped placing and judging, summed.

Each draw of a token and each accept or reject becomes a choice with its exact probability. A round emits a prefix of
varying length; continued with the target's own chain up to a fixed horizon it must be the target's chain.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.speculation.sampling import _BlockedWeights, logits_to_probs
from runtime.speculation.schemes import Children, Place, Scheme, scheme_for
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


@contextmanager
def choosing_draws() -> Iterator[None]:
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
        for node in np.flatnonzero(self.topology.num_children).tolist():
            self.place(scheme, tree, node, rng)
        verdict = verify(tree, lambda node: self.pair.target(prefix_of(tree, node)), self.params, rng, scheme=scheme)
        return tuple(verdict.emitted_token_ids(tree))

    def emitted(self) -> Distribution:
        """The exact distribution of the tokens that the shipped placing and judging emit."""
        with choosing_draws():
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


PLAIN = SamplingParams(temperature=1, verification="sequoia")
STAR = [3, 0, 0, 0]
DRAWING = ["sequoia", "specinfer", "top-k"]
"""The schemes that a generator decides; `coupled` is a function of noise, see test_schemes.py."""
