"""What is ranked on a device against each row's own scheme: the same candidates with the same scores."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from runtime.config import SamplingParams
from runtime.engine.row_ranking import is_ranked_on_device, rank_on_device, rank_row_by_row
from runtime.speculation.logit_processors import LogitProcessor, TextRules
from runtime.speculation.schemes import AdjustedRows, Candidates, Coupled, Greedy, Place, RankingScheme, Sequoia

GREEDY = SamplingParams()
CHOICES = [
    GREEDY,
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=9),
    SamplingParams(temperature=1e-4),
    SamplingParams(temperature=0.8, top_p=0.7, min_p=0.02),
]


ACCELERATOR = torch.device("meta")
"""What chooses the way that an accelerator's rows take; the rows themselves are a processor's here."""
FILTERS = [
    SamplingParams(temperature=0.7, top_p=0.95),
    SamplingParams(temperature=0.6, top_p=0.9),
    SamplingParams(temperature=0.7, top_p=0.8, top_k=20),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=1.2, top_k=50, top_p=0.9, min_p=0.02),
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
    for device in (torch.device("cpu"), ACCELERATOR):
        if is_ranked_on_device(scheme, params, device):
            ranked = rank_on_device(scheme, logits, positions, lambda: places, params=params, num_candidates=7)
        else:
            ranked = rank_row_by_row(scheme, logits, places, num_candidates=7)
        assert_own_candidates(ranked, scheme, logits, places)


def assert_own_candidates(
    ranked: Candidates, scheme: RankingScheme, logits: torch.Tensor, places: Sequence[Place]
) -> None:
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
    scheme, logits = AdjustedRows(scheme_of(params), processor), rows_of(2)
    best = scheme.rank(logits[0].numpy(), 1, Place(params, 30)).token_ids[0]
    places = [Place(params, 30), Place(params, 31, (int(best),))]
    ranked = rank_row_by_row(scheme, logits[[0, 0]], places, num_candidates=4)
    own = [scheme.rank(logits[0].numpy(), 4, place).scores for place in places]
    assert np.array_equal(ranked.scores, np.stack(own))
    assert not np.array_equal(own[0], own[1])


RULES = TextRules(
    no_repeat_ngram_size=2,
    banned_sequences=((7, 8), (5, 6, 4)),
    banned_tokens=(11, 12),
    banned_first_tokens=(13,),
    min_new_tokens=2,
    end_token_ids=(2, 3),
)


@pytest.mark.parametrize("rules", [TextRules(), RULES], ids=["no rules", "rules"])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.05},
        {"repetition_penalty": 1.3, "presence_penalty": 1.5, "frequency_penalty": 0.4},
        {"banned_tokens": (7, 500), "presence_penalty": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=0.7), FILTERS[2]], ids=str)
def test_penalties_and_bans_change_the_rows_on_the_device_as_the_scheme_does(
    params: SamplingParams, penalties: dict, rules: TextRules
) -> None:
    """Of a prompt, an answer and paths of several lengths, an empty one among them: the root of a tree in context."""
    generator = np.random.default_rng(1)
    prompt = [int(token) for token in generator.integers(0, 600, 300)]
    likely = rows_of(5).argsort(-1, descending=True)[:, :3]
    for answer in ([], [5, 6, 8], [int(token) for token in likely[:, 0]]):
        processor = LogitProcessor(SamplingParams(**penalties), prompt=prompt, vocab_size=600, rules=rules)
        processor.accept(answer)
        scheme, logits = AdjustedRows(scheme_of(params), processor), rows_of(5)
        paths = [(), (7,), (5, 6), (int(likely[3, 0]), int(likely[3, 1])), (int(likely[4, 0]), 7, 9)]
        places = [Place(params, 30 + len(path), path) for path in paths]
        ranked = rank_on_device(
            scheme,
            logits,
            [place.position for place in places],
            lambda places=places: places,
            params=params,
            num_candidates=7,
        )
        assert_own_candidates(ranked, scheme, logits, places)


def test_a_row_in_which_nothing_may_follow_is_left_alone_and_a_forced_token_is_the_only_candidate() -> None:
    logits, places = rows_of(2, 3), [Place(GREEDY, 5), Place(GREEDY, 6, (0,))]
    rules = TextRules(no_repeat_ngram_size=1)
    nothing_left = AdjustedRows(Greedy(), LogitProcessor(GREEDY, prompt=[1, 2], vocab_size=3, rules=rules))
    ranked = rank_on_device(nothing_left, logits, [5, 6], lambda places=places: places, params=GREEDY, num_candidates=2)
    assert ranked.token_ids[0, 0] == 0 and np.isinf(ranked.scores[0, 1])
    assert ranked.token_ids[1].tolist() == logits[1].topk(2).indices.tolist()
    forced = LogitProcessor(SamplingParams(forced_tokens=(2,)), prompt=[1], vocab_size=3)
    ranked = rank_on_device(
        AdjustedRows(Greedy(), forced), logits, [5, 6], lambda: places, params=GREEDY, num_candidates=2
    )
    assert ranked.token_ids[0, 0] == 2 and np.isfinite(ranked.scores).sum(1).tolist() == [1, 2]


def test_a_small_vocabulary_has_no_more_candidates_than_tokens() -> None:
    ranked = rank_on_device(Greedy(), rows_of(2, 3), [1, 1], list, params=GREEDY, num_candidates=32)
    assert ranked.token_ids.shape == ranked.scores.shape == (2, 3)


def test_what_filters_keep_of_a_large_vocabulary_is_what_the_scheme_keeps() -> None:
    """As the draft's rows are: the likeliest 1,024 tokens hold any nucleus of use; the noise decides among them."""
    logits = rows_of(6, 20_000) * torch.linspace(0.8, 2.5, 6)[:, None]
    for params in FILTERS:
        positions = [30, 31, 30, 33, 31, 35]
        ranked = rank_on_device(Coupled(5), logits, positions, list, params=params, num_candidates=7)
        places = [Place(params, position) for position in positions]
        assert_own_candidates(ranked, Coupled(5), logits, places)


def test_behind_what_a_filter_keeps_come_the_likeliest_others() -> None:
    """A static tree has a place for each child, however few tokens a filter leaves."""
    params, logits = SamplingParams(temperature=0.7, top_k=3, top_p=0.9), rows_of(3, 2000)
    ranked = rank_on_device(Coupled(5), logits, [30, 31, 30], list, params=params, num_candidates=12)
    for row, position, tokens in zip(logits.numpy(), (30, 31, 30), ranked.token_ids, strict=True):
        own = Coupled(5).place(row, 12, Place(params, position), np.random.default_rng(0))
        assert tokens.tolist() == own.token_ids.tolist()


def test_of_a_flat_row_the_likeliest_tokens_can_be_proposed() -> None:
    """Its nucleus has 18,000 tokens: what lies behind the first 1,024 is left out, and nothing else happens."""
    params, logits = SamplingParams(temperature=1, top_p=0.95), rows_of(1, 20_000) * 1e-3
    ranked = rank_on_device(Coupled(5), logits, [3], list, params=params, num_candidates=32)
    assert set(ranked.token_ids[0].tolist()) <= set(logits[0].topk(1024).indices.tolist())
    assert np.isfinite(ranked.scores).all() and (np.diff(ranked.scores) <= 0).all()


def test_only_sums_and_maxima_stay_on_a_processor_and_filters_on_an_accelerator() -> None:
    plain, filtered = SamplingParams(temperature=1), SamplingParams(temperature=1, top_p=0.9)
    for device in (torch.device("cpu"), ACCELERATOR):
        assert is_ranked_on_device(Greedy(), GREEDY, device)
        assert is_ranked_on_device(Coupled(0), plain, device)
        assert is_ranked_on_device(Coupled(0), filtered, device) == (device == ACCELERATOR)
        assert not is_ranked_on_device(Sequoia(), filtered, device)
        adjusted = AdjustedRows(Greedy(), LogitProcessor(GREEDY, prompt=[1], vocab_size=3))
        assert is_ranked_on_device(adjusted, GREEDY, device) == (device == ACCELERATOR)
        assert not is_ranked_on_device(Coupled(0), SamplingParams(temperature=1e-4), device)
