"""Whole texts of several sequoia rounds have the target's distribution, by 200,000 samples.

One round's law is enumerated exactly in test_lossless.py; what only shows over rounds, such as noise that is used
twice, is seen here. The samples are played by a twin of the scheme that handles all of them at once, and that writes
the tokens of the shipped placing and judging if both get the same random numbers.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.schemes import Place, Sequoia
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify
from tests.support.chi_square import chi_square_p_value
from tests.support.trees import tree_of_counts

VOCABULARY, HORIZON, NUM_SAMPLES = 5, 4, 200_000
PARAMS = SamplingParams(temperature=1, verification="sequoia")
TOPOLOGY = tree_of_counts([2, 2, 0, 0, 0])
NUM_UNIFORMS = 9
"""Most random numbers of a round: four draws, two judgements on each of two levels, one last token."""


def random_logits() -> tuple[np.ndarray, np.ndarray]:
    """(S, V) of a target and of a draft that is like it; what follows depends on the last two tokens, the state."""
    rng = np.random.default_rng(5)
    target = rng.standard_normal((VOCABULARY**2, VOCABULARY)) * 1.2
    draft = 0.6 * target + 0.8 * rng.standard_normal(target.shape)
    return target.astype(np.float32), draft.astype(np.float32)


TARGET, DRAFT = random_logits()


def next_state(state, token):
    """Of one text or of many."""
    return state % VOCABULARY * VOCABULARY + token


class Scripted:
    """A generator that hands out numbers which are there already."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers: Iterator[float] = iter(numbers.tolist())

    def random(self) -> float:
        return next(self._numbers)


def shipped_text(uniforms: np.ndarray) -> list[int]:
    """What the shipped scheme writes in rounds with these numbers (rounds, NUM_UNIFORMS), cut at the horizon."""
    scheme, text, state = Sequoia(), list[int](), 0
    for numbers in uniforms:
        if len(text) >= HORIZON:
            break
        rng, tree, states = Scripted(numbers), TokenTree.rooted(TOPOLOGY, root_token_id=0), {0: state}
        for node in np.flatnonzero(TOPOLOGY.num_children).tolist():
            placed = scheme.place(DRAFT[states[node]], 2, Place(PARAMS, 0), rng)
            tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)
            for child in TOPOLOGY.children(node):
                states[child] = next_state(states[node], int(tree.token_ids[child]))
        verdict = verify(tree, lambda node, states=states: TARGET[states[node]], PARAMS, rng, scheme=scheme)
        for token in verdict.emitted_token_ids(tree):
            text.append(token)
            state = next_state(state, token)
    return text[:HORIZON]


@dataclass
class ManyTexts:
    """The same for S texts at once; `keeps_draft` breaks the rule: rejected tokens stay in the draft."""

    uniforms: np.ndarray
    """(rounds, S, NUM_UNIFORMS)"""
    keeps_draft: bool = False

    def play(self) -> np.ndarray:
        """(S, HORIZON) tokens."""
        num_texts = self.uniforms.shape[1]
        self._texts = np.zeros((num_texts, 3 * HORIZON), dtype=np.int64)
        self._lengths = np.zeros(num_texts, dtype=np.int64)
        self._states = np.zeros(num_texts, dtype=np.int64)
        for numbers in self.uniforms:
            self._numbers, self._num_used = numbers, np.zeros(num_texts, dtype=np.int64)
            self._play_round()
        return self._texts[:, :HORIZON]

    def _play_round(self) -> None:
        everyone = np.arange(len(self._texts))
        tokens = np.zeros((len(everyone), TOPOLOGY.num_nodes), dtype=np.int64)
        states = np.repeat(self._states[:, None], TOPOLOGY.num_nodes, axis=1)
        for node in np.flatnonzero(TOPOLOGY.num_children).tolist():
            weights = logits_to_probs(DRAFT, PARAMS, dtype=np.float32).astype(np.float64)[states[:, node]]
            for child in TOPOLOGY.children(node):
                tokens[:, child] = self._draw(weights, everyone)
                weights[everyone, tokens[:, child]] = 0
                states[:, child] = next_state(states[:, node], tokens[:, child])
        at = np.zeros(len(everyone), dtype=np.int64)
        for node in range(TOPOLOGY.num_nodes):
            here = np.flatnonzero(at == node)
            target = logits_to_probs(TARGET, PARAMS)[self._states[here]]
            draft = logits_to_probs(DRAFT, PARAMS, dtype=np.float32).astype(np.float64)[self._states[here]]
            draft /= draft.sum(axis=1, keepdims=True)
            for child in TOPOLOGY.children(node):
                rows, found = np.arange(len(here)), tokens[here, child]
                is_accepted = self._next_number(here) < target[rows, found] / draft[rows, found]
                at[here[is_accepted]] = child
                self._emit(here[is_accepted], found[is_accepted])
                here, found = here[~is_accepted], found[~is_accepted]
                target, draft = target[~is_accepted], draft[~is_accepted]
                target = np.maximum(target - draft, 0)
                target /= target.sum(axis=1, keepdims=True)
                if not self.keeps_draft:
                    draft[np.arange(len(here)), found] = 0
                    draft /= draft.sum(axis=1, keepdims=True)
            at[here] = -1
            self._emit(here, self._draw(target, here))

    def _next_number(self, texts: np.ndarray) -> np.ndarray:
        numbers = self._numbers[texts, self._num_used[texts]]
        self._num_used[texts] += 1
        return numbers

    def _draw(self, weights: np.ndarray, texts: np.ndarray) -> np.ndarray:
        ends = np.cumsum(weights, axis=1)
        return (ends <= (self._next_number(texts) * ends[:, -1])[:, None]).sum(axis=1)

    def _emit(self, texts: np.ndarray, tokens: np.ndarray) -> None:
        self._texts[texts, self._lengths[texts]] = tokens
        self._lengths[texts] += 1
        self._states[texts] = next_state(self._states[texts], tokens)


def p_value(texts: np.ndarray) -> float:
    """Of the counts of all continuations against the target's own chain."""
    probs = logits_to_probs(TARGET, PARAMS)
    expected = []
    for tokens in itertools.product(range(VOCABULARY), repeat=HORIZON):
        state, probability = 0, 1.0
        for token in tokens:
            probability *= float(probs[state, token])
            state = next_state(state, token)
        expected.append(len(texts) * probability)
    numbers = texts @ VOCABULARY ** np.arange(HORIZON)[::-1]
    return chi_square_p_value(np.bincount(numbers, minlength=len(expected)), expected)


@pytest.fixture(scope="module")
def uniforms() -> np.ndarray:
    """Seed 21."""
    return np.random.default_rng(21).random((HORIZON, NUM_SAMPLES, NUM_UNIFORMS))


def test_the_twin_writes_what_the_shipped_scheme_writes() -> None:
    """1,000 texts, token by token."""
    numbers = np.random.default_rng(22).random((HORIZON, 1000, NUM_UNIFORMS))
    texts = ManyTexts(numbers).play()
    assert texts.tolist() == [shipped_text(numbers[:, index]) for index in range(1000)]


def test_continuations_of_several_rounds_have_the_targets_distribution(uniforms: np.ndarray) -> None:
    """Seed 21, 200,000 samples of four tokens, p > 0.001."""
    assert p_value(ManyTexts(uniforms).play()) > 1e-3


def test_a_draft_that_keeps_rejected_tokens_is_seen(uniforms: np.ndarray) -> None:
    assert p_value(ManyTexts(uniforms, keeps_draft=True).play()) < 1e-9


def test_noise_that_is_used_again_in_the_next_round_is_seen(uniforms: np.ndarray) -> None:
    """Each round is as exact as before: only whole continuations show it."""
    assert p_value(ManyTexts(np.repeat(uniforms[:1], HORIZON, axis=0)).play()) < 1e-9
