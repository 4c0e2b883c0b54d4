"""Where thinking is and where it has to end, against a search through the whole text."""

import numpy as np
import pytest

from runtime.speculation.thinking import AnswerThinking, Mark, ThinkingRules, num_opening, num_thinking, num_thought

NUM_TOKENS = 4
"""So few that marks, and beginnings of marks, come by chance."""


def mark(*token_ids: int) -> Mark:
    return tuple((token_id,) for token_id in token_ids)


def text_of(token_ids: object) -> str:
    return "".join("abcdefgh"[token_id] for token_id in token_ids)  # type: ignore[attr-defined]


def searched(answer: str, rules: ThinkingRules) -> tuple[bool, int, int]:
    """Whether the place behind an answer is in thinking, how much of it came before, and where the last mark ended."""
    begin, end = (text_of(place[0] for place in each) for each in (rules.begin, rules.end))
    is_inside, num_tokens, place = rules.num_begun is not None, rules.num_begun or 0, 0
    while True:
        wanted = end if is_inside else begin
        found = answer.find(wanted, place)
        if found < 0:
            return is_inside, num_tokens + is_inside * (len(answer) - place), place
        num_tokens += is_inside * (found - place)
        is_inside, place = not is_inside, found + len(wanted)


def expected_token(answer: str, rules: ThinkingRules) -> int | None:
    is_inside, num_tokens, place = searched(answer, rules)
    assert rules.budget is not None
    if not is_inside or num_tokens < rules.budget:
        return None
    end, since = text_of(each[0] for each in rules.end), answer[place:]
    num_matched = max(length for length in range(len(end)) if since.endswith(end[:length]))
    return rules.end[num_matched][0]


@pytest.mark.parametrize("num_begun", [None, 0, 3])
def test_any_path_is_judged_as_if_it_were_text(num_begun: int | None) -> None:
    num_forced = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        begin, end = (tuple(rng.integers(0, NUM_TOKENS, size=rng.integers(1, 4)).tolist()) for _ in range(2))
        budget = int(rng.integers(0, 7))
        rules = ThinkingRules(begin=mark(*begin), end=mark(*end), budget=budget, num_begun=num_begun)
        thinking, tokens = AnswerThinking(rules), rng.integers(0, NUM_TOKENS, size=16).tolist()
        num_accepted = 0
        while num_accepted < len(tokens):
            for length in range(4):
                path = tokens[num_accepted : num_accepted + length]
                forced = expected_token(text_of(tokens[: num_accepted + len(path)]), rules)
                assert thinking.forced(path) == forced, (seed, num_accepted, path)
                num_forced += forced is not None
            num_round = int(rng.integers(1, 4))
            thinking.accept(tokens[num_accepted : num_accepted + num_round])
            num_accepted += num_round
    assert num_forced > 400


@pytest.mark.parametrize("num_begun", [None, 3])
def test_the_first_thinking_of_an_answer_is_counted(num_begun: int | None) -> None:
    begin, end = (1, 2), (3, 0, 3)
    rules = ThinkingRules(begin=mark(*begin), end=mark(*end), budget=5, num_begun=num_begun)
    said, opened = (4, 5), () if num_begun is not None else begin
    for answer, num_tokens in (
        ((), 0),
        ((*opened, 6, 7, 6), 3),
        ((*opened, 6, 7, *end), 2),
        ((*opened, *end), 0),
        ((*opened, 6, *end, *said, *begin, 7, 7), 1),
        ((*opened, 3, *end, *said), 1),
    ):
        assert num_thinking(answer, rules) == num_tokens, answer
    assert num_thinking(said, rules) == (0 if num_begun is None else 2)


def written(rules: ThinkingRules, wishes: list[int], *, num_tokens: int) -> list[int]:
    """What is written by a model that wants to write `wishes`, and nothing else where these end."""
    thinking, answer = AnswerThinking(rules), list[int]()
    while len(answer) < num_tokens:
        forced = thinking.forced()
        answer.append(wishes[len(answer)] if forced is None else forced)
        thinking.accept(answer[-1:])
    return answer


def test_a_mark_of_several_tokens_is_forced_in_their_order_and_once() -> None:
    rules = ThinkingRules(begin=mark(4), end=mark(5, 6, 7), budget=2, num_begun=0)
    assert written(rules, [1] * 8, num_tokens=8) == [1, 1, 5, 6, 7, 1, 1, 1]


def test_a_mark_that_was_begun_is_completed() -> None:
    rules = ThinkingRules(begin=mark(4), end=mark(5, 6, 7), budget=3, num_begun=0)
    assert written(rules, [1, 5, 6, 1, 1, 1], num_tokens=6) == [1, 5, 6, 7, 1, 1]


def test_thinking_that_begins_again_has_what_is_left_of_the_budget() -> None:
    rules = ThinkingRules(begin=mark(4), end=mark(5), budget=3)
    assert written(rules, [4, 1, 5, 1, 4, 1, 1, 1, 1], num_tokens=9) == [4, 1, 5, 1, 4, 1, 1, 5, 1]


def test_no_budget_forces_nothing_and_none_at_all_ends_thinking_at_once() -> None:
    for num_begun in (None, 0):
        rules = ThinkingRules(begin=mark(4), end=mark(5), budget=None, num_begun=num_begun)
        assert not AnswerThinking(rules).has_budget
        assert written(rules, [4, *[1] * 7], num_tokens=8) == [4, *[1] * 7]
    assert AnswerThinking(ThinkingRules(begin=mark(4), end=mark(5), budget=0, num_begun=0)).forced() == 5


def test_a_mark_grown_together_with_its_neighbours_is_one() -> None:
    """`.</` and `>\\n` where the mark alone would be `</`, `think`, `>`."""
    rules = ThinkingRules(begin=mark(4), end=((5, 15), (6,), (7, 17)), budget=4, num_begun=0)
    assert written(rules, [1, 15, 6, 17, 1, 1, 1], num_tokens=7) == [1, 15, 6, 17, 1, 1, 1]


def test_what_stands_behind_the_thinking_that_the_prompt_began() -> None:
    thinking = AnswerThinking(ThinkingRules(begin=mark(4), end=mark(5, 6), budget=None, num_begun=2))
    assert thinking.behind([1, 2]) is None
    assert thinking.behind([1, 5, 6]) == []
    assert thinking.behind([1, 5, 6, 2, 4]) == [2, 4]
    thinking.accept([1, 5])
    assert thinking.behind([6, 3]) == [3]
    thinking.accept([6, 3])
    assert thinking.behind([4, 1]) == [4, 1], "only that of the prompt"
    assert AnswerThinking(ThinkingRules(begin=mark(4), end=mark(5), budget=1)).behind([4]) == [4]


def test_how_far_a_text_is_in_its_thinking() -> None:
    marks = {"begin": mark(4, 4), "end": mark(5)}
    for text, expected in (
        ([], None),
        ([1, 2], None),
        ([4], None),
        ([4, 4], 0),
        ([4, 4, 5, 1], None),
        ([4, 4, 5, 4, 4, 1, 2], 2),
    ):
        assert num_thought(text, **marks) == expected, text


def test_how_much_of_a_prompt_begins_the_thinking() -> None:
    begin: Mark = ((5,), (6, 7))
    for text, expected in (([1, 2], 0), ([5], 0), ([1, 5, 7], 2), ([1, 5, 6, 3, 4], 4), ([5, 6, 1, 5, 7, 2], 3)):
        assert num_opening(text, begin=begin) == expected, text
