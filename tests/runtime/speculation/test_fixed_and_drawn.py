"""Placing and single judgements; exactness is in test_lossless.py."""

from collections import Counter

import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.fixed_and_drawn import FixedAndDrawn
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.scheme import Place
from tests.support.chi_square import chi_square_p_value

PLACE = Place(SamplingParams(temperature=1), 0)


def test_the_last_child_is_drawn_from_what_the_fixed_ones_leave() -> None:
    """Seed 0, 2,000 draws, p > 0.001."""
    rng, row = np.random.default_rng(0), np.log(np.float32([0.1, 0.4, 0.2, 0.3]))
    placed = [FixedAndDrawn().place(row, 3, PLACE, rng) for _ in range(2000)]
    assert {tuple(children.token_ids[:2].tolist()) for children in placed} == {(1, 3)}
    assert {children.drawn for children in placed} == {range(2, 3)}
    counts = Counter(children.drawn_token_ids[0] for children in placed)
    assert chi_square_p_value([counts[0], counts[2]], [2000 / 3, 4000 / 3]) > 1e-3


def test_nothing_is_drawn_where_the_fixed_children_have_all_of_the_mass() -> None:
    place = Place(SamplingParams(temperature=1, top_k=2), 0)
    children = FixedAndDrawn().place(np.float32([1, 9, 3, 9, 2]), 3, place, np.random.default_rng(0))
    assert (children.token_ids.tolist(), children.drawn_token_ids) == ([1, 3, 2], [])


def test_one_child_is_a_draw() -> None:
    children = FixedAndDrawn().place(np.float32([0, 1]), 1, PLACE, np.random.default_rng(0))
    assert children.drawn == range(1)


@pytest.mark.parametrize("num_children", [1, 2, 4])
def test_a_child_is_followed_as_often_as_the_paper_says(num_children: int) -> None:
    """P(S) + sum of min(P, Q'), over draws and chance. Seed 5, 4,000 nodes, within 4 standard errors."""
    generator = np.random.default_rng(5)
    draft_row, target_row = (generator.standard_normal((2, 6)) * 1.5).astype(np.float32)
    draft_probs, target_probs = (logits_to_probs(row, PLACE.params) for row in (draft_row, target_row))
    fixed = np.argsort(-draft_probs)[: num_children - 1]
    rest = draft_probs.copy()
    rest[fixed] = 0
    share = float(target_probs[fixed].sum() + np.minimum(target_probs, rest / rest.sum()).sum())
    scheme, hits = FixedAndDrawn(), 0
    for _ in range(4000):
        children = scheme.place(draft_row, num_children, PLACE, generator)
        hits += scheme.judge(children, target_row, PLACE, generator).child is not None
    assert hits / 4000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
