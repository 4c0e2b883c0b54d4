"""Placing and single judgements; exactness is in test_lossless.py."""

import numpy as np

from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import logits_to_probs, sample
from runtime.speculation.scheme import Children, Place
from runtime.speculation.top_k_match import TopKMatch

PLACE = Place(SamplingParams(temperature=1.3), 0)


def test_children_are_the_most_likely_tokens_whatever_the_temperature() -> None:
    children = TopKMatch().place(np.float32([0, 3, 1, 3]), 3, PLACE, np.random.default_rng(0))
    assert (children.token_ids.tolist(), children.drawn_token_ids) == ([1, 3, 2], [])


def test_the_token_does_not_depend_on_the_children() -> None:
    row = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    for seed in range(20):
        token = sample(logits_to_probs(row, PLACE.params), np.random.default_rng(seed))
        judged = TopKMatch().judge(Children(np.array([4, 0, 2])), row, PLACE, np.random.default_rng(seed))
        assert judged.token_id == token
        assert judged.child == {4: 0, 0: 1, 2: 2}.get(token)
