"""Shared noise over single rows; whole texts are in test_text_of_a_seed.py."""

from collections import Counter

import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.coupled import Coupled
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.scheme import Children, Place
from tests.support.chi_square import chi_square_p_value

UNUSED = np.random.default_rng(0)
CHOICES = [
    SamplingParams(temperature=1),
    SamplingParams(temperature=0.5, top_p=0.8),
    SamplingParams(temperature=1.6, top_k=4),
    SamplingParams(temperature=2, top_k=5, top_p=0.9),
]


def row_of(seed: int, num_tokens: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_tokens) * 1.5).astype(np.float32)


@pytest.mark.parametrize("params", CHOICES, ids=str)
def test_what_is_emitted_has_the_targets_distribution_over_positions(params: SamplingParams) -> None:
    """One seed, 6,000 positions, p > 0.001."""
    row, scheme = row_of(1), Coupled(11)
    counts = Counter(
        scheme.judge(Children(np.array([0])), row, Place(params, at), UNUSED).token_id for at in range(6000)
    )
    probs = logits_to_probs(row, params)
    assert set(counts) <= set(np.flatnonzero(probs).tolist())
    assert chi_square_p_value([counts[token] for token in range(6)], 6000 * probs) > 1e-3


def test_it_has_it_over_seeds_too() -> None:
    """One position, 4,000 seeds, p > 0.001."""
    row, place = row_of(2), Place(CHOICES[0], 17)
    counts = Counter(Coupled(seed).judge(Children(np.array([0])), row, place, UNUSED).token_id for seed in range(4000))
    assert chi_square_p_value([counts[token] for token in range(6)], 4000 * logits_to_probs(row, CHOICES[0])) > 1e-3


def test_children_are_draws_without_replacement_in_order() -> None:
    """The law of the first two of three. Seed 12, 6,000 positions, p > 0.001."""
    probs = np.float32([0.5, 0.3, 0.2])
    scheme, row = Coupled(12), np.log(probs)
    pairs = Counter(tuple(scheme.place(row, 2, Place(CHOICES[0], at), UNUSED).token_ids.tolist()) for at in range(6000))
    outcomes = [(a, b) for a in range(3) for b in range(3) if a != b]
    expected = [6000 * float(probs[a] * probs[b] / (1 - probs[a])) for a, b in outcomes]
    assert chi_square_p_value([pairs[outcome] for outcome in outcomes], expected) > 1e-3


@pytest.mark.parametrize("params", CHOICES, ids=str)
def test_equal_rows_agree_on_the_first_child(params: SamplingParams) -> None:
    scheme, row = Coupled(13), row_of(3, 2000)
    for at in range(50):
        place = Place(params, at)
        children = scheme.place(row, 3, place, UNUSED)
        assert scheme.judge(children, row, place, UNUSED).child == 0


def test_the_token_depends_on_neither_children_nor_generator_nor_what_came_before() -> None:
    row, place = row_of(4, 500), Place(CHOICES[0], 9)
    expected = Coupled(14).judge(Children(np.array([1, 2])), row, place, UNUSED)
    scheme = Coupled(14)
    for at in range(100):
        scheme.place(row_of(at, 500), 4, Place(CHOICES[0], at), UNUSED)
    judged = scheme.judge(Children(np.array([7, expected.token_id])), row, place, np.random.default_rng(8))
    assert (judged.token_id, judged.child) == (expected.token_id, 1)


def test_padding_of_the_vocabulary_changes_nothing() -> None:
    row = row_of(5, 300)
    padded = np.append(row, np.full(20, -np.inf, dtype=np.float32))
    place = Place(CHOICES[0], 2)
    for seed in range(20):
        assert Coupled(seed).judge(Children(np.array([0])), row, place, UNUSED) == Coupled(seed).judge(
            Children(np.array([0])), padded, place, UNUSED
        )


def test_where_the_draft_keeps_too_few_tokens_its_most_likely_others_follow() -> None:
    place = Place(SamplingParams(temperature=1, top_k=2), 0)
    children = Coupled(0).place(np.float32([1, 9, 3, 9, -np.inf]), 5, place, UNUSED)
    assert sorted(children.token_ids[:2].tolist()) == [1, 3]
    assert children.token_ids[2:].tolist() == [2, 0, 4]
    assert children.drawn_token_ids == []


@pytest.mark.parametrize("temperature", [1e-300, 1e-30])
def test_a_tiny_temperature_is_the_argmax(temperature: float) -> None:
    place = Place(SamplingParams(temperature=temperature), 0)
    for seed in range(10):
        assert Coupled(seed).judge(Children(np.array([2])), np.float32([1, 1.5, 2]), place, UNUSED).token_id == 2
