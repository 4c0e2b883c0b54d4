"""What a body asks; what each of its keys means is tried through lines of batch files, which are read by the same."""

from dataclasses import replace

import pytest

from runtime.api.questions import CHAT, COMPLETIONS, parse_question, with_all_choices
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
