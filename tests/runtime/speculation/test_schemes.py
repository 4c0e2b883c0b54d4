"""Schemes over single rows: placing and judging. Exactness is in test_lossless.py, texts in test_text_of_a_seed.py."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from runtime.config import VERIFICATIONS, SamplingParams
from runtime.speculation import schemes
from runtime.speculation.sampling import logits_to_probs, sample
from runtime.speculation.schemes import (
    SCHEMES,
    AdjustedRows,
    Children,
    Coupled,
    Greedy,
    Place,
    Row,
    Sequoia,
    SpecInfer,
    TopKMatch,
    _end_of_node,
    _gumbel,
    _target_distribution,
    fill_up,
    position_noise,
    scheme_for,
)
from runtime.speculation.token_tree import TokenTree
from tests.support.chi_square import chi_square_p_value
from tests.support.trees import tree_of_counts

PARAMS = SamplingParams(temperature=1)
PLACE = Place(PARAMS, 0)
UNUSED = np.random.default_rng(0)
"""For schemes that use no chance."""
CHOICES = [
    SamplingParams(temperature=1),
    SamplingParams(temperature=0.5, top_p=0.8),
    SamplingParams(temperature=1.6, top_k=4),
    SamplingParams(temperature=2, top_k=5, top_p=0.9),
]


def tree() -> TokenTree:
    """Root 9 at position 20 with children 4 and 5; 6 below 5."""
    grown = TokenTree.rooted(tree_of_counts([2, 0, 1, 0]), root_token_id=9, root_position=20)
    grown.set_children(0, token_ids=[4, 5], draft_probs=np.float32([0.5, 0.5]), drawn=range(1))
    grown.set_children(2, token_ids=[6])
    return grown


def logits_of(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.float32(probs))


def row_of(seed: int, num_tokens: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_tokens) * 1.5).astype(np.float32)


def test_a_place_below_a_node_has_the_next_position_and_the_path_behind_the_text() -> None:
    assert Place.below(tree(), 0, PARAMS) == Place(PARAMS, 21)
    assert Place.below(tree(), 3, PARAMS) == Place(PARAMS, 23, (5, 6))


def test_a_trees_children_know_which_of_them_are_drawn() -> None:
    below = Children.below(tree(), 0)
    assert (below.token_ids.tolist(), below.drawn) == ([4, 5], range(1))
    assert below.draft_probs is not None
    below = Children.below(tree(), 2)
    assert (below.token_ids.tolist(), below.drawn, below.draft_probs) == ([6], range(0), None)
    assert len(Children.below(tree(), 1).token_ids) == 0


def test_a_token_is_found_at_its_first_child() -> None:
    children = Children(np.array([3, 5, 5]))
    assert [children.index_of(token) for token in (3, 5, 4)] == [0, 1, None]


def test_missing_children_are_the_most_likely_other_tokens() -> None:
    row = np.float32([1, 5, 4, 3, -np.inf])
    assert fill_up([2], row, 1).tolist() == [2]
    assert fill_up([2], row, 3).tolist() == [2, 1, 3]
    assert fill_up([], row, 5).tolist() == [1, 2, 3, 0, 4]
    with pytest.raises(ValueError, match="vocabulary of 5"):
        fill_up([2], row, 6)


@pytest.mark.parametrize("verification", ["sequoia", "coupled", "specinfer", "top-k"])
def test_adjusted_rows_reach_placing_and_judging_with_the_nodes_own_path(verification: str) -> None:
    """A ban of the path's last token: neither model's row may get past it."""

    class BanLast:
        def adjusted(self, row: Row, path_token_ids: Sequence[int] = ()) -> Row:
            changed = row.copy()
            changed[path_token_ids[-1]] = -np.inf
            return changed

        def changes(self, paths: Sequence[Sequence[int]]) -> None:
            raise AssertionError("no device is asked")

    params = SamplingParams(temperature=1, verification=verification)
    scheme = AdjustedRows(scheme_for(params), BanLast())
    row, rng, place = np.float32([0, 9, 0, 0]), np.random.default_rng(0), Place(params, 5, (0, 1))
    for _ in range(20):
        assert 1 not in scheme.place(row, 3, place, rng).token_ids
        assert scheme.judge(Children(np.array([1])), row, place, rng).token_id != 1
    assert row.tolist() == [0, 9, 0, 0]


def test_a_node_ends_with_a_token_of_the_target_and_the_first_child_that_has_it() -> None:
    rng = np.random.default_rng(0)
    judged = _end_of_node(Children(np.array([3, 2, 2])), np.array([0, 0, 1.0, 0]), rng)
    assert (judged.token_id, judged.child) == (2, 1)
    judged = _end_of_node(Children(np.array([3, 1])), np.array([0, 0, 1.0, 0]), rng)
    assert (judged.token_id, judged.child) == (2, None)


def test_what_was_drawn_from_is_normalised_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(schemes, "accept_probability", lambda target, draft, token: seen.append(draft) or 1.0)
    drawn = Children(np.array([0]), range(1), np.float32([0.2, 0.2, 0]))
    Sequoia().judge(drawn, np.float32([0, 0, 0]), PLACE, np.random.default_rng(0))
    assert [(probs.dtype, probs.tolist()) for probs in seen] == [(np.float64, [0.5, 0.5, 0])]


def test_the_target_has_the_distribution_that_plain_decoding_draws_from() -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9)
    row = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    np.testing.assert_array_equal(_target_distribution(row, Place(params, 3)), logits_to_probs(row, params))


KINDS = {"greedy": Greedy, "sequoia": Sequoia, "coupled": Coupled, "specinfer": SpecInfer, "top-k": TopKMatch}


def test_every_name_that_can_be_asked_for_is_a_scheme_of_that_name() -> None:
    """Two lists of names would drift apart."""
    assert {*SCHEMES} == {*VERIFICATIONS, "greedy"} - {"auto"}
    assert {name: type(make(SamplingParams())) for name, make in SCHEMES.items()} == KINDS


@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_at_temperature_zero_all_are_greedy(verification: str) -> None:
    assert isinstance(scheme_for(SamplingParams(verification=verification)), Greedy)


def test_above_it_the_scheme_is_what_was_asked_for() -> None:
    for verification in VERIFICATIONS[1:]:
        scheme = scheme_for(SamplingParams(temperature=0.5, verification=verification))
        assert isinstance(scheme, KINDS[verification])


def test_a_scheme_serves_one_answer() -> None:
    params = SamplingParams(temperature=1, verification="coupled")
    assert scheme_for(params) is not scheme_for(params)


def test_the_most_likely_tokens_are_placed_in_order() -> None:
    children = Greedy().place(np.float32([0, 3, 1, 3]), 3, PLACE, UNUSED)
    assert (children.token_ids.tolist(), children.drawn) == ([1, 3, 2], range(0))


def test_the_targets_most_likely_token_is_followed_if_a_child_has_it() -> None:
    row = np.float32([0, 2, 2, 1])
    judged = Greedy().judge(Children(np.array([3, 1])), row, PLACE, UNUSED)
    assert (judged.token_id, judged.child) == (1, 1)
    judged = Greedy().judge(Children(np.array([3, 2])), row, PLACE, UNUSED)
    assert (judged.token_id, judged.child) == (1, None)


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
    assert sorted(children.token_ids[list(children.drawn)]) == [1, 3]
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


def test_top_k_match_places_the_most_likely_tokens_whatever_the_temperature() -> None:
    children = TopKMatch().place(np.float32([0, 3, 1, 3]), 3, PLACE, np.random.default_rng(0))
    assert (children.token_ids.tolist(), children.drawn) == ([1, 3, 2], range(0))


def test_the_token_of_top_k_match_does_not_depend_on_the_children() -> None:
    hot = Place(SamplingParams(temperature=1.3), 0)
    row = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    for seed in range(20):
        token = sample(logits_to_probs(row, hot.params), np.random.default_rng(seed))
        judged = TopKMatch().judge(Children(np.array([4, 0, 2])), row, hot, np.random.default_rng(seed))
        assert judged.token_id == token
        assert judged.child == {4: 0, 0: 1, 2: 2}.get(token)


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
    assert children.drawn == range(0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30])
def test_a_tiny_temperature_is_the_argmax(temperature: float) -> None:
    place = Place(SamplingParams(temperature=temperature), 0)
    for seed in range(10):
        assert Coupled(seed).judge(Children(np.array([2])), np.float32([1, 1.5, 2]), place, UNUSED).token_id == 2


def test_the_values_are_these_on_every_machine() -> None:
    """Pinned: an answer with a seed should come out the same next year. Only the logarithm's last bit may differ."""
    expected = [0.44661611, 0.34942427, -1.2310883, -0.33714238]
    np.testing.assert_allclose(position_noise(7, 100, 4), expected, rtol=1e-6)


def test_it_is_gumbel_noise() -> None:
    """Twenty cells of equal probability. Seed 1, 200,000 values, p > 0.001."""
    noise = np.concatenate([position_noise(1, position, 40_000) for position in range(5)]).astype(float)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    shares = np.exp(-np.exp(-noise))
    counts, _ = np.histogram(shares, np.linspace(0, 1, 21))
    assert chi_square_p_value(counts, np.full(20, 10_000)) > 1e-3


def test_the_upper_tail_is_that_of_gumbel_noise() -> None:
    """Large noise makes unlikely tokens win: half-precision noise has none. Seed 2, 4,000,000 values, p > 0.001."""
    noise = np.concatenate([position_noise(2, position, 200_000) for position in range(20)]).astype(float)
    edges = np.array([8, 9, 10, 11, 12, np.inf])
    cumulative = 1 - np.exp(-np.exp(-edges))
    counts, _ = np.histogram(noise, edges)
    expected = 4_000_000 * -np.diff(cumulative)
    assert chi_square_p_value([*counts, 4_000_000 - counts.sum()], [*expected, 4_000_000 - expected.sum()]) > 1e-3


def test_a_smaller_vocabulary_has_the_beginning_of_a_larger_ones_noise() -> None:
    """Draft and target differ by padding. Either may ask first."""
    larger = position_noise(3, 5, 20_011)
    for num_tokens in (1, 7, 8192, 8193, 20_011, 3):
        np.testing.assert_array_equal(position_noise(3, 5, num_tokens), larger[:num_tokens])


def test_neither_order_nor_a_full_cache_changes_a_vector() -> None:
    positions = range(2 * schemes.MAX_CACHED_POSITIONS)
    first = [position_noise(4, position, 9).tolist() for position in positions]
    assert [position_noise(4, position, 9).tolist() for position in reversed(positions)] == first[::-1]


def test_a_position_that_is_asked_for_again_is_not_computed_again() -> None:
    """As many as a round with the deepest tree asks for stay."""
    position_noise.cache_clear()
    for _ in range(2):
        for position in range(schemes.MAX_CACHED_POSITIONS):
            position_noise(5, position, 8)
    assert position_noise.cache_info().misses == schemes.MAX_CACHED_POSITIONS


def test_seeds_and_positions_are_independent() -> None:
    """Correlation of 100,000 values: below 4.5 standard errors."""
    vectors = [position_noise(seed, position, 100_000) for seed, position in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    vectors.append(np.roll(vectors[0], 1))
    correlations = np.corrcoef(np.array(vectors, dtype=float))
    assert abs(correlations[~np.eye(5, dtype=bool)]).max() < 4.5 / np.sqrt(100_000)


@pytest.mark.parametrize("seed", [0, 2**63, 2**128 + 1, 10**50])
def test_any_seed_and_any_position_will_do(seed: int) -> None:
    assert np.isfinite(position_noise(seed, 2**40, 16)).all()


def test_the_most_extreme_bits_are_finite() -> None:
    noise = _gumbel(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert noise.tolist() == pytest.approx([-np.log(53 * np.log(2)), 53 * np.log(2)])


def test_a_vector_is_float32_and_cannot_be_written_to() -> None:
    vector = position_noise(6, 0, 10)
    assert vector.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1
