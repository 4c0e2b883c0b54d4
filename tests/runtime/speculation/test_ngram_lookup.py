"""Lookups against brute force over the whole text, with any history of appending and cutting."""

from collections.abc import Sequence

import numpy as np
import pytest

from runtime.speculation.ngram_lookup import Continuation, NgramIndex


def index_of(text: Sequence[int], **limits: int) -> NgramIndex:
    index = NgramIndex(**limits)
    index.extend(text)
    return index


def by_brute_force(
    text: list[int],
    path: list[int],
    *,
    max_tokens: int,
    max_branches: int,
    min_match: int,
    max_match: int,
    max_candidates: int,
) -> list[Continuation]:
    """Compare the tail with every place of the text, then copy token by token."""
    whole = text + path
    found = []
    for end in range(len(text) if path else len(text) - 1, 0, -1):
        num_matched = 0
        while num_matched < min(end, max_match) and text[end - 1 - num_matched] == whole[-1 - num_matched]:
            num_matched += 1
        if num_matched < min_match:
            continue
        grown = list(whole)
        for offset in range(max_tokens):
            grown.append(grown[end + offset])
        found.append(Continuation(tuple(grown[len(whole) :]), num_matched))
    kept: list[Continuation] = []
    for continuation in sorted(found[:max_candidates], key=lambda found: -found.num_matched):
        if continuation.token_ids not in [other.token_ids for other in kept]:
            kept.append(continuation)
    return kept[:max_branches]


@pytest.mark.parametrize("num_tokens", [2, 3, 6])
@pytest.mark.parametrize(("min_match", "max_match", "max_candidates"), [(1, 1, 9), (2, 4, 64), (3, 8, 2), (2, 16, 5)])
def test_lookups_are_those_of_brute_force(num_tokens: int, min_match: int, max_match: int, max_candidates: int) -> None:
    """Few different tokens give many matches, many of them give few."""
    rng = np.random.default_rng([num_tokens, min_match, max_candidates])
    limits = {"min_match": min_match, "max_match": max_match, "max_candidates": max_candidates}
    num_found = 0
    for _ in range(60):
        text = rng.integers(num_tokens, size=rng.integers(1, 50)).tolist()
        path = rng.integers(num_tokens, size=rng.integers(4)).tolist()
        asked = {"max_tokens": int(rng.integers(1, 20)), "max_branches": int(rng.integers(1, 5))}
        found = index_of(text, **limits).continuations(path, **asked)
        assert found == by_brute_force(text, path, **asked, **limits)
        num_found += len(found)
    assert num_found > 0


def test_appending_and_cutting_leave_the_index_of_the_text() -> None:
    rng = np.random.default_rng(0)
    index, text = NgramIndex(min_match=2), []
    for step in range(400):
        added = rng.integers(4, size=rng.integers(6)).tolist()
        text += added
        index.extend(added)
        if step % 3 == 2:
            num_kept = int(rng.integers(max(0, len(text) - 15), len(text) + 3))
            del text[num_kept:]
            index.truncate(num_kept)
        assert len(index) == len(text)
        fresh = index_of(text, min_match=2)
        assert index.continuations(max_tokens=5, max_branches=3) == fresh.continuations(max_tokens=5, max_branches=3)
    index.truncate(0)
    assert len(index) == 0
    assert index.continuations([1, 1, 1], max_tokens=3) == []


def test_memory_grows_by_the_text_and_shrinks_with_it() -> None:
    rng = np.random.default_rng(1)
    index = index_of(rng.integers(50, size=3000).tolist(), min_match=2)
    assert len(index._newest_end) <= 3000
    assert len(index._older_end) == 3001
    index.truncate(0)
    assert (len(index._newest_end), len(index._older_end)) == (0, 1)


def test_following_another_text_keeps_the_common_front() -> None:
    index = index_of([1, 2, 3, 4, 1, 2, 9, 1, 2], min_match=2)
    index.follow([1, 2, 3, 4, 1, 2])
    assert index.continuations(max_tokens=2) == [Continuation((3, 4), 2)]
    index.follow([7, 8, 5, 7, 8])
    assert index.continuations(max_tokens=1) == [Continuation((5,), 2)]
    index.follow([7, 8, 5, 7, 8])
    assert len(index) == 5


def test_the_longest_match_comes_first_and_then_the_newest() -> None:
    #                 longest        older       newest      end
    index = index_of([5, 1, 2, 30, 6, 1, 2, 40, 7, 1, 2, 50, 5, 1, 2], min_match=2)
    found = index.continuations(max_tokens=1, max_branches=9)
    assert [(c.token_ids[0], c.num_matched) for c in found] == [(30, 3), (50, 2), (40, 2)]


def test_equal_continuations_count_once() -> None:
    index = index_of([1, 2, 3, 4, 0, 1, 2, 3, 9, 5, 1, 2, 3, 4, 7, 1, 2], min_match=2)
    assert [c.token_ids for c in index.continuations(max_tokens=2, max_branches=9)] == [(3, 4), (3, 9)]


def test_a_text_that_repeats_itself_is_continued_in_its_period() -> None:
    index = index_of([9, 9, 1, 2, 3, 1, 2, 3, 1, 2], min_match=2)
    assert index.continuations(max_tokens=8)[0].token_ids == (3, 1, 2, 3, 1, 2, 3, 1)


def test_a_path_is_looked_up_as_if_it_were_text() -> None:
    text = [1, 2, 3, 4, 5, 8, 2]
    assert index_of(text).continuations(max_tokens=2) == []
    assert index_of(text, min_match=2).continuations([3], max_tokens=2) == [Continuation((4, 5), 2)]
    assert index_of(text).continuations([3, 4], max_tokens=3) == [Continuation((5, 8, 2), 3)]
    assert index_of(text).continuations([3, 7], max_tokens=2) == []


@pytest.mark.parametrize("limits", [{"min_match": 0}, {"min_match": 5, "max_match": 4}, {"max_candidates": 0}])
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= min_match <= max_match"):
        NgramIndex(**limits)
