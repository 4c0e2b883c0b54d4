"""Placing and single judgements; exactness is in test_lossless.py."""

from collections import Counter

import numpy as np

from runtime.sampling_params import SamplingParams
from runtime.speculation.scheme import Children, Place
from runtime.speculation.specinfer import SpecInfer
from tests.support.chi_square import chi_square_p_value

PLACE = Place(SamplingParams(temperature=1), 0)


def test_children_are_independent_draws() -> None:
    """Pairs over three tokens. Seed 0, 4,000 nodes, p > 0.001."""
    rng, probs = np.random.default_rng(0), np.float32([0.5, 0.3, 0.2])
    counts = Counter(tuple(SpecInfer().place(np.log(probs), 2, PLACE, rng).token_ids.tolist()) for _ in range(4000))
    pairs = [(a, b) for a in range(3) for b in range(3)]
    expected = [4000 * float(probs[a] * probs[b]) for a, b in pairs]
    assert chi_square_p_value([counts[pair] for pair in pairs], expected) > 1e-3


def test_more_children_than_tokens_are_no_problem() -> None:
    children = SpecInfer().place(np.float32([0, 0]), 5, PLACE, np.random.default_rng(0))
    assert (len(children.token_ids), children.drawn) == (5, range(5))


def test_a_second_draw_of_a_rejected_token_is_rejected_too() -> None:
    children = Children(np.array([0, 0, 1]), range(3), np.float32([0.9, 0.1]))
    with np.errstate(divide="ignore"):
        judged = SpecInfer().judge(children, np.log(np.float32([0, 1])), PLACE, np.random.default_rng(0))
    assert (judged.token_id, judged.child) == (1, 2)
