"""Candidates of many rows at once against each row's own, as the scheme ranks it."""

import numpy as np
import pytest
import torch

from runtime.engine.candidate_ranking import is_ranked_on_device, rank_on_device, rank_row_by_row
from runtime.sampling_params import SamplingParams
from runtime.speculation.logit_processors import LogitProcessor
from runtime.speculation.schemes import AdjustedRows, Coupled, Greedy, Place, RankingScheme, Sequoia

GREEDY = SamplingParams()
CHOICES = [
    GREEDY,
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=9),
    SamplingParams(temperature=1e-4),
    SamplingParams(temperature=0.8, top_p=0.7, min_p=0.02),
]


def scheme_of(params: SamplingParams) -> RankingScheme:
    return Greedy() if params.is_greedy else Coupled(5)


def rows_of(num_rows: int, vocab_size: int = 600) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("params", CHOICES, ids=str)
def test_each_row_has_the_candidates_that_its_scheme_gives_it(params: SamplingParams) -> None:
    """Nodes of one level stand at one position, those of a tree in context at several."""
    scheme, logits = scheme_of(params), rows_of(5)
    positions = [30, 31, 30, 33, 31]
    places = [Place(params, position) for position in positions]
    if is_ranked_on_device(scheme, params):
        ranked = rank_on_device(scheme, logits, positions, params=params, num_candidates=7)
    else:
        ranked = rank_row_by_row(scheme, logits, places, num_candidates=7)
    for row, place, tokens, scores in zip(logits, places, ranked.token_ids, ranked.scores, strict=True):
        own = scheme.rank(row.numpy(), 7, place)
        is_kept = np.isfinite(own.scores)
        assert tokens[is_kept].tolist() == own.token_ids[is_kept].tolist()
        assert np.isfinite(scores).tolist() == is_kept.tolist()
        gaps, own_gaps = scores[0] - scores[is_kept], own.scores[0] - own.scores[is_kept]
        assert gaps == pytest.approx(own_gaps, abs=1e-4)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=0.7)], ids=str)
def test_a_penalty_is_evaluated_on_each_nodes_own_path(params: SamplingParams) -> None:
    processor = LogitProcessor(SamplingParams(presence_penalty=2.0), prompt=[1], vocab_size=600)
    scheme, logits = AdjustedRows(scheme_of(params), processor.adjusted), rows_of(2)
    best = scheme.rank(logits[0].numpy(), 1, Place(params, 30)).token_ids[0]
    places = [Place(params, 30), Place(params, 31, (int(best),))]
    ranked = rank_row_by_row(scheme, logits[[0, 0]], places, num_candidates=4)
    own = [scheme.rank(logits[0].numpy(), 4, place).scores for place in places]
    assert np.array_equal(ranked.scores, np.stack(own))
    assert not np.array_equal(own[0], own[1])


def test_a_small_vocabulary_has_no_more_candidates_than_tokens() -> None:
    ranked = rank_on_device(Greedy(), rows_of(2, 3), [1, 1], params=GREEDY, num_candidates=32)
    assert ranked.token_ids.shape == ranked.scores.shape == (2, 3)


def test_only_sums_and_maxima_stay_on_the_device() -> None:
    plain, filtered = SamplingParams(temperature=1), SamplingParams(temperature=1, top_p=0.9)
    assert is_ranked_on_device(Greedy(), GREEDY)
    assert is_ranked_on_device(Coupled(0), plain)
    assert not is_ranked_on_device(Coupled(0), filtered)
    assert not is_ranked_on_device(Sequoia(), plain)
