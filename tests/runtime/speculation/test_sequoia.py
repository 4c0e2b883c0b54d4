"""Placing and single judgements; exactness is in test_lossless.py."""

import numpy as np

from runtime.sampling_params import SamplingParams
from runtime.speculation.scheme import Children, Place
from runtime.speculation.sequoia import Sequoia

PLACE = Place(SamplingParams(temperature=1), 0)


def logits_of(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.float32(probs))


def test_children_are_different_draws_and_their_row_is_kept() -> None:
    row = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    children = Sequoia().place(row, 8, PLACE, np.random.default_rng(0))
    assert children.drawn == range(8)
    assert len(set(children.token_ids.tolist())) == 8
    assert children.draft_probs is not None
    assert children.draft_probs.dtype == np.float32


def test_tokens_that_the_draft_cannot_draw_stand_behind_as_the_most_likely_ones() -> None:
    """A narrow nucleus of the draft need not be the target's: likely tokens stand a chance, random ones none."""
    place = Place(SamplingParams(temperature=1, top_k=2), 0)
    children = Sequoia().place(np.float32([1, 9, 3, 9, 2]), 4, place, np.random.default_rng(0))
    assert sorted(children.drawn_token_ids) == [1, 3]
    assert children.token_ids[2:].tolist() == [2, 4]


def test_equal_distributions_accept_the_first_child_whatever_the_chance() -> None:
    children = Children(np.array([2, 0]), range(2), np.float32([0.5, 0.3, 0.2]))
    for seed in range(20):
        judged = Sequoia().judge(children, logits_of([0.5, 0.3, 0.2]), PLACE, np.random.default_rng(seed))
        assert (judged.token_id, judged.child) == (2, 0)


def test_a_child_that_the_target_excludes_is_rejected() -> None:
    children = Children(np.array([2, 0]), range(2), np.float32([0.5, 0.3, 0.2]))
    judged = Sequoia().judge(children, logits_of([1, 0, 0]), PLACE, np.random.default_rng(0))
    assert (judged.token_id, judged.child) == (0, 1)


def test_a_graft_is_met_by_what_the_rejections_leave() -> None:
    children = Children(np.array([2, 1]), range(1), np.float32([0, 0, 1]))
    judged = Sequoia().judge(children, logits_of([0, 1, 0]), PLACE, np.random.default_rng(0))
    assert (judged.token_id, judged.child) == (1, 1)


def test_grafts_alone_need_no_distribution_of_the_draft() -> None:
    judged = Sequoia().judge(Children(np.array([1])), logits_of([0, 1, 0]), PLACE, np.random.default_rng(0))
    assert (judged.token_id, judged.child) == (1, 0)
