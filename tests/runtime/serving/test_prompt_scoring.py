"""Tokens of prompts and their log-probabilities are those of answers that are forced to write them."""

import math
from collections.abc import Iterator

import pytest

from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import PromptTooLongError
from runtime.events import Finished, PromptScored
from runtime.prompts.prompt_file import PromptRequest
from runtime.serving.answer import Wanted
from runtime.serving.prompt_scoring import score_prompts
from tests.support.session_factory import open_tiny, save_tiny_folder

ONE_GREEDY = SamplingParams(max_new_tokens=1)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSession]:
    with open_tiny(save_tiny_folder(tmp_path_factory.mktemp("model") / "target"), num_texts=2) as opened:
        yield opened


def asked(*token_ids: int, is_answered: bool = True, **changes: object) -> Wanted:
    options = {"params": ONE_GREEDY, "top_logprobs": 2, **changes}
    request = PromptRequest(id=str(token_ids), token_ids=token_ids, **options)
    return Wanted(request=request, is_scored=True, is_answered=is_answered)


def scored(opened: OpenSession, *wanted: Wanted) -> list[list[object]]:
    found: list[list[object]] = [[] for _ in wanted]
    for index, event in score_prompts(opened, wanted, is_wanted=lambda index: True):
        found[index].append(event)
    return found


def forced(opened: OpenSession, token_ids: tuple[int, ...]) -> Finished:
    """An answer behind the first token that is forced to be the others, and one more."""
    params = SamplingParams(max_new_tokens=len(token_ids), forced_tokens=token_ids[1:])
    request = PromptRequest(id="1", token_ids=token_ids[:1], params=params, top_logprobs=2)
    *_, finished = opened.session.generate(request)
    return finished


def test_tokens_are_as_likely_as_in_an_answer_that_must_write_them(opened: OpenSession) -> None:
    prompts = [(8, 9, 10, 11, 12), (8, 9, 12), (20, 8), (30,)]
    for token_ids, (prompt, finished) in zip(prompts, scored(opened, *(asked(*ids) for ids in prompts)), strict=True):
        assert isinstance(prompt, PromptScored) and isinstance(finished, Finished)
        assert [each.chosen.token_id for each in prompt.logprobs] == list(token_ids)
        assert math.isnan(prompt.logprobs[0].chosen.logprob) and prompt.logprobs[0].likeliest == ()
        expected = forced(opened, token_ids).logprobs
        found = [*prompt.logprobs[1:], *finished.logprobs]
        for own, wanted in zip(found, expected, strict=False):
            assert own.chosen.token_id == wanted.chosen.token_id and own.chosen.text == wanted.chosen.text
            assert own.chosen.logprob == pytest.approx(wanted.chosen.logprob, abs=1e-4)
            for mine, theirs in zip(own.likeliest, wanted.likeliest, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert len(found) == len(token_ids)
        assert finished.statistics.usage["total_tokens"] == len(token_ids) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"params": SamplingParams(max_new_tokens=2)},
        {"params": SamplingParams(max_new_tokens=1, temperature=1.0)},
        {"params": SamplingParams(max_new_tokens=1, banned_tokens=(9,))},
        {"params": SamplingParams(max_new_tokens=1, stop=("a",))},
        {"logit_bias": ((9, 1.0),)},
        {"response_schema": "{}"},
    ],
)
def test_an_answer_that_more_decides_is_left_to_be_written(opened: OpenSession, changes: dict[str, object]) -> None:
    ((only,),) = scored(opened, asked(8, 9, **changes))
    assert isinstance(only, PromptScored)


def test_a_prompt_alone_ends_with_itself(opened: OpenSession) -> None:
    ((prompt, finished),) = scored(opened, asked(8, 9, 10, is_answered=False, top_logprobs=None))
    assert (finished.text, finished.finish_reason, finished.logprobs) == ("", "length", ())
    assert prompt.text == "".join(each.chosen.text for each in prompt.logprobs)


def test_an_error_is_that_of_its_own_prompt(opened: OpenSession) -> None:
    (error,), (prompt, finished), (other,) = scored(opened, asked(*[8] * 200), asked(8, 9), asked(10**6, 9))
    assert isinstance(error, PromptTooLongError) and "no" not in str(finished.finish_reason)
    assert isinstance(prompt, PromptScored) and "1000000" in str(other)
    ((too_long,),) = scored(opened, asked(*[8] * 200))
    assert isinstance(too_long, PromptTooLongError)


def test_nothing_is_computed_for_nobody(opened: OpenSession) -> None:
    wanted = [asked(*range(8 + number, 60)) for number in range(40)]
    events = score_prompts(opened, wanted, is_wanted=lambda index: False)
    assert len({index for index, _ in events}) < 40
