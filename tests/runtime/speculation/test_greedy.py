import numpy as np

from runtime.sampling_params import SamplingParams
from runtime.speculation.greedy import Greedy
from runtime.speculation.scheme import Children, Place

PLACE, RNG = Place(SamplingParams(), 0), np.random.default_rng(0)


def test_the_most_likely_tokens_are_placed_in_order() -> None:
    children = Greedy().place(np.float32([0, 3, 1, 3]), 3, PLACE, RNG)
    assert (children.token_ids.tolist(), children.drawn_token_ids) == ([1, 3, 2], [])


def test_the_targets_most_likely_token_is_followed_if_a_child_has_it() -> None:
    row = np.float32([0, 2, 2, 1])
    judged = Greedy().judge(Children(np.array([3, 1])), row, PLACE, RNG)
    assert (judged.token_id, judged.child) == (1, 1)
    judged = Greedy().judge(Children(np.array([3, 2])), row, PLACE, RNG)
    assert (judged.token_id, judged.child) == (1, None)
