"""Exactness by enumeration: draw and verify over a whole round emit exactly the target's chain, with every scheme.

Each case adds something that the others have not: a shape, a kind of pair, fixed tokens, grafts, filtered rows.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from runtime.config import VERIFICATIONS, SamplingParams
from tests.support.chi_square import chi_square_p_value
from tests.support.round_enumeration import DRAWING, KINDS, PLAIN, STAR, Pair, Round, largest_error
from tests.support.trees import tree_of_counts

CHAIN = [1, 1, 1, 0]
BINARY = [2, 2, 2, 0, 0, 0, 0]
UNEVEN = [3, 1, 1, 0, 1, 0, 0]


def assert_lossless(pair: Pair, child_counts: list[int], params: SamplingParams, *, num_grafts: int = 0) -> None:
    emitted = Round(pair, tree_of_counts(child_counts), params, num_grafts).emitted()
    assert sum(emitted.values()) == pytest.approx(1, abs=1e-12)
    assert largest_error(pair, params, emitted) < 1e-12


@pytest.mark.parametrize("child_counts", [[0], BINARY, UNEVEN], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_emits_the_targets_chain(kind: str, child_counts: list[int]) -> None:
    assert_lossless(Pair(kind, 3), child_counts, PLAIN)


@pytest.mark.parametrize("child_counts", [CHAIN, [3, 1, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verification", DRAWING[1:])
def test_so_it_does_with_every_other_scheme(verification: str, kind: str, child_counts: list[int]) -> None:
    assert_lossless(Pair(kind, 3), child_counts, replace(PLAIN, verification=verification))


@pytest.mark.parametrize("num_grafts", [1, 2])
@pytest.mark.parametrize("kind", ["moderate", "disjoint", "with zeros"])
@pytest.mark.parametrize("verification", DRAWING)
def test_grafted_children_do_not_change_what_is_emitted(verification: str, kind: str, num_grafts: int) -> None:
    """Grafts beside draws, and alone, the same as a draw, and twice the same."""
    params = replace(PLAIN, verification=verification)
    assert_lossless(Pair(kind, 4), [3, 2, 0, 0, 0, 0], params, num_grafts=num_grafts)


@pytest.mark.parametrize("verification", DRAWING)
@pytest.mark.parametrize("kind", ["moderate", "flat", "with zeros"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.4, verification="sequoia"),
        SamplingParams(temperature=1.7, top_p=0.9, verification="sequoia"),
        SamplingParams(temperature=0.8, top_k=3, top_p=0.6, verification="sequoia"),
    ],
    ids=lambda params: f"T{params.temperature}-k{params.top_k}-p{params.top_p}",
)
def test_a_round_emits_the_targets_chain_whatever_the_params(
    kind: str, params: SamplingParams, verification: str
) -> None:
    assert_lossless(Pair(kind, 4), [2, 0, 0], replace(params, verification=verification))


@pytest.mark.parametrize("kind", KINDS)
def test_the_drafts_mass_runs_out_and_fixed_tokens_follow(kind: str) -> None:
    assert_lossless(Pair(kind, 4), [4, 0, 0, 0, 0], PLAIN)


@pytest.mark.parametrize(("kind", "top_p"), [("with zeros", 1.0), ("flat", 0.5)])
def test_a_round_over_five_tokens_and_seven_nodes_emits_the_targets_chain(kind: str, top_p: float) -> None:
    assert_lossless(
        Pair(kind, 5), [3, 2, 0, 1, 0, 0, 0], SamplingParams(temperature=1, top_p=top_p, verification="sequoia")
    )


@pytest.mark.parametrize("child_counts", [CHAIN, STAR, UNEVEN], ids=str)
@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_greedy_rounds_emit_the_targets_argmax_chain(verification: str, child_counts: list[int]) -> None:
    params, topology = SamplingParams(verification=verification), tree_of_counts(child_counts)
    for kind in KINDS:
        pair = Pair(kind, 5)
        emitted = Round(pair, topology, params).play(np.random.default_rng(0))
        for length, token in enumerate(emitted):
            assert token == int(np.argmax(pair.target(emitted[:length])))


@pytest.mark.parametrize("verification", DRAWING)
def test_real_rounds_are_distributed_as_enumerated(verification: str) -> None:
    """The shipped random numbers. Seed 7, 1,500 rounds, p > 0.001."""
    params = SamplingParams(temperature=1.3, top_p=0.8, verification=verification)
    played = Round(Pair("moderate", 4), tree_of_counts([2, 2, 1, 0, 0, 0]), params)
    rng, num_rounds = np.random.default_rng(7), 1500
    counts = Counter(played.play(rng) for _ in range(num_rounds))
    emitted = played.emitted()
    assert set(counts) <= set(emitted)
    outcomes = list(emitted)
    expected = [num_rounds * emitted[outcome] for outcome in outcomes]
    assert chi_square_p_value([counts[outcome] for outcome in outcomes], expected) > 1e-3
