"""Bodies that answer; their shapes are tried through batch files, whose lines hold the same bodies."""

import math
from dataclasses import replace

from runtime.api.answers import AnswerPieces, answer_body
from runtime.api.questions import CHAT, COMPLETIONS, Question
from runtime.events import Finished, PromptScored, TokenLogprob, TokenLogprobs
from runtime.prompts.prompt_file import PromptRequest
from tests.support.answer_fakes import STATISTICS


def body(url, *reasons):
    requests = tuple(PromptRequest(id=reason, prompt="x") for reason in reasons)
    question = Question(url=url, model="any", num_choices=len(reasons), requests=requests)
    costs = replace(STATISTICS, cached_tokens=4, reasoning_tokens=3)
    return answer_body(question, [Finished(reason, f"text of {reason}", costs) for reason in reasons])


def test_a_prompt_is_counted_once_however_many_choices_it_has():
    usage = body(CHAT, "stop", "length")["usage"]
    assert usage["prompt_tokens"] == STATISTICS.prompt_tokens
    assert usage["completion_tokens"] == 2 * STATISTICS.new_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}


def test_an_answer_that_is_all_choices_is_given_as_each_of_them():
    requests = (PromptRequest(id="a", prompt="x"), PromptRequest(id="b", prompt="longer"))
    question = Question(url=COMPLETIONS, model="any", num_choices=2, num_copies=2, requests=requests)
    finished = [Finished("length", text, STATISTICS, logprobs=(token(text, -1.0),)) for text in ("one", "two")]
    body = answer_body(question, finished)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["one", "one", "two", "two"]
    assert [choice["logprobs"]["text_offset"] for choice in body["choices"]] == [[1], [1], [6], [6]]
    assert body["usage"]["prompt_tokens"] == 2 * STATISTICS.prompt_tokens
    assert body["usage"]["completion_tokens"] == 4 * STATISTICS.new_tokens
    pieces = AnswerPieces(question)
    assert [list(pieces.choices_of(index)) for index in (0, 1)] == [[0, 1], [2, 3]]
    assert pieces.usage(finished)["usage"] == body["usage"]
    assert pieces.end(3, finished[1])["choices"][0]["logprobs"]["text_offset"] == [6]


def test_ends_have_the_names_of_the_api():
    found = body(COMPLETIONS, "stop", "length", "context", "stopped")
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", "length", "length", "stop"]
    assert [choice["text"] for choice in found["choices"]][:2] == ["text of stop", "text of length"]
    assert found["object"] == "text_completion" and found["id"].startswith("cmpl-")


def chat_question(**changes):
    requests = (PromptRequest(id="a", prompt="x"), PromptRequest(id="b", prompt="x"))
    return replace(Question(url=CHAT, model="any", num_choices=2, requests=requests, is_streamed=True), **changes)


def test_pieces_of_a_chat_join_to_its_message():
    question = chat_question(has_usage=True)
    pieces = AnswerPieces(question)
    finished = Finished("stop", "Hi there", STATISTICS)
    bodies = [pieces.begin(1), pieces.more(1, "Hi"), pieces.more(1, " there"), pieces.end(1, finished)]
    assert {body["object"] for body in bodies} == {"chat.completion.chunk"}
    assert len({body["id"] for body in bodies}) == 1
    choices = [choice for body in bodies for choice in body["choices"]]
    assert [choice["index"] for choice in choices] == [1] * 4
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, None, None]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == finished.text
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert all(body["usage"] is None for body in bodies)
    last = pieces.usage([finished, finished])
    assert last["choices"] == [] and last["usage"] == answer_body(question, [finished, finished])["usage"]
    assert "usage" not in AnswerPieces(chat_question()).begin(0)


def token(text, logprob):
    return TokenLogprobs(TokenLogprob(1, logprob, text, text.encode()), (TokenLogprob(2, -0.5, "x", b"x"),))


def test_an_echoed_prompt_stands_before_its_answer_in_text_and_log_probabilities():
    requests = (PromptRequest(id="a", token_ids=(1, 2)),)
    question = Question(url=COMPLETIONS, model="any", num_choices=1, requests=requests, is_echoed=True)
    prompt = PromptScored("the cat", (token("the", math.nan), token(" cat", -1.5)))
    finished = Finished("length", " sat", STATISTICS, logprobs=(token(" sat", -2.5),))
    (choice,) = answer_body(question, [finished], [prompt])["choices"]
    assert choice["text"] == "the cat sat"
    assert choice["logprobs"] == {
        "tokens": ["the", " cat", " sat"],
        "token_logprobs": [None, -1.5, -2.5],
        "top_logprobs": [None, {"x": -0.5, " cat": -1.5}, {"x": -0.5, " sat": -2.5}],
        "text_offset": [0, 3, 7],
    }
    pieces = AnswerPieces(question)
    assert pieces.begin(0, prompt)["choices"][0]["text"] == "the cat"
    assert pieces.more(0, " sat")["choices"][0]["text"] == " sat"
    assert pieces.end(0, finished, prompt)["choices"][0]["logprobs"] == choice["logprobs"]
    assert AnswerPieces(replace(question, is_echoed=False)).begin(0) is None
