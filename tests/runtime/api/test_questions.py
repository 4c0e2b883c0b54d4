"""What a body asks; what each of its keys means is tried through lines of batch files, which are read by the same."""

from dataclasses import replace

import pytest

from runtime.api.questions import CHAT, COMPLETIONS, LiveTerms, parse_question, with_all_choices
from runtime.config import SamplingParams, options_of
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import LineDefaults, Message

COMMON = LineDefaults(params=SamplingParams(), unchosen=frozenset(options_of(SamplingParams)))


def ask(body, url=CHAT, **options):
    return parse_question({"model": "any", **body}, url, COMMON, request_id="a", usual_seed=7, **options)


def chat(**body):
    return {"messages": [{"role": "user", "content": "Hi"}], **body}


def test_a_seed_that_nobody_chose_is_the_usual_one():
    (request,) = ask(chat()).requests
    assert (request.params.seed, request.messages) == (7, (Message("user", "Hi"),))
    assert ask(chat(seed=3)).requests[0].params.seed == 3
    assert ask({"prompt": "Hi"}, COMPLETIONS).requests[0].prompt == "Hi"


def test_choices_have_ids_and_seeds_of_their_own():
    question = with_all_choices(ask(chat(n=3)), taken := {"a", "a [1]"})
    assert [request.id for request in question.requests] == ["a [0]", "a [1]'", "a [2]"]
    assert [request.params.seed for request in question.requests] == [7, 8, 9]
    assert taken == {"a", "a [0]", "a [1]", "a [1]'", "a [2]"}
    (first,) = ask(chat()).requests
    assert replace(question.requests[0], id="a") == first


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_a_key_that_is_not_done_is_named(url):
    with pytest.raises(PromptFileError, match="colour"):
        ask({"colour": "red"}, url)


LIVE = LiveTerms(model="ours", max_tokens=1000)


def live(body, url=CHAT):
    return ask(body, url, live=LIVE)


def test_a_body_over_a_connection_says_how_it_is_answered_and_needs_no_model():
    question = parse_question(
        {**chat(stream=True, stream_options={"include_usage": True}, user="me", top_k=5)},
        CHAT,
        COMMON,
        request_id="a",
        usual_seed=7,
        live=LIVE,
    )
    assert (question.model, question.is_streamed, question.has_usage) == ("ours", True, True)
    (request,) = question.requests
    assert (request.params.max_new_tokens, request.params.top_k) == (1000, 5)
    assert not live(chat()).is_streamed and not live(chat(stream_options={})).has_usage


def test_a_limit_that_the_server_was_given_holds_where_the_body_has_none():
    common = replace(COMMON, params=SamplingParams(max_new_tokens=9), unchosen=COMMON.unchosen - {"max_new_tokens"})
    (request,) = parse_question({"prompt": "x"}, COMPLETIONS, common, request_id="a", usual_seed=0, live=LIVE).requests
    assert request.params.max_new_tokens == 9


def test_prompts_are_texts_or_tokens_one_or_many():
    def prompts(value):
        found = live({"prompt": value}, COMPLETIONS).requests
        return [each.prompt if each.token_ids is None else each.token_ids for each in found]

    assert prompts("a") == ["a"] and prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [(1, 2)] and prompts([[1, 2], [3]]) == [(1, 2), (3,)]
    question = with_all_choices(live({"prompt": ["a", "b"], "n": 2}, COMPLETIONS), set())
    assert [each.prompt for each in question.requests] == ["a", "a", "b", "b"]
    assert len({each.id for each in question.requests}) == 4
    for value in ([], [[]], [-1], [1.5], ["a", 1], [" "], {}, None, ["a"] * 1025):
        with pytest.raises(PromptFileError, match="prompt"):
            prompts(value)


def test_a_prompt_alone_may_be_asked_for():
    question = live({"prompt": [1, 2], "echo": True, "max_tokens": 0, "logprobs": 1}, COMPLETIONS)
    assert (question.is_echoed, question.is_answered, question.requests[0].top_logprobs) == (True, False, 1)
    assert live({"prompt": [1, 2], "echo": True, "max_tokens": 1}, COMPLETIONS).is_answered
    with pytest.raises(PromptFileError, match="max_tokens is 0"):
        live({"prompt": "a", "max_tokens": 0}, COMPLETIONS)
    with pytest.raises(PromptFileError, match="echo"):
        ask({"prompt": "a", "echo": True}, COMPLETIONS)


def test_a_bias_names_tokens_and_numbers():
    assert live(chat(logit_bias={"5": -100, "7": 1.5})).requests[0].logit_bias == ((5, -100.0), (7, 1.5))
    for wrong in ([], {"x": 1}, {"5": "1"}, {"5": True}, {"5": 101}, {"-5": 1}):
        with pytest.raises(PromptFileError, match="logit_bias"):
            live(chat(logit_bias=wrong))


@pytest.mark.parametrize(
    "wrong", [{"stream": "yes"}, {"stream_options": 1}, {"stream_options": {"x": 1}}, {"best_of": 2}, {"echo": 1}]
)
def test_what_a_connection_asks_wrongly_is_named(wrong):
    with pytest.raises(PromptFileError, match=next(iter(wrong))):
        live({"prompt": "a", **wrong}, COMPLETIONS)


def test_choices_at_temperature_0_are_one_request():
    greedy = with_all_choices(live({"prompt": ["a", "b"], "n": 3, "temperature": 0}, COMPLETIONS), set())
    assert [each.prompt for each in greedy.requests] == ["a", "b"]
    assert (greedy.num_choices, greedy.num_copies) == (3, 3)
    warm = with_all_choices(live({"prompt": "a", "n": 3, "temperature": 0.1}, COMPLETIONS), set())
    assert (len(warm.requests), warm.num_copies) == (3, 1)
