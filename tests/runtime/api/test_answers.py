"""Bodies that answer; their shapes are tried through batch files, whose lines hold the same bodies."""

from runtime.api.answers import answer_body
from runtime.api.questions import CHAT, COMPLETIONS, Question
from runtime.events import Finished
from runtime.prompts.prompt_file import PromptRequest
from tests.support.answer_fakes import STATISTICS


def body(url, *reasons):
    requests = tuple(PromptRequest(id=reason, prompt="x") for reason in reasons)
    question = Question(url=url, model="any", num_choices=len(reasons), requests=requests)
    return answer_body(question, [Finished(reason, f"text of {reason}", STATISTICS) for reason in reasons])


def test_a_prompt_is_counted_once_however_many_choices_it_has():
    usage = body(CHAT, "stop", "length")["usage"]
    assert usage["prompt_tokens"] == STATISTICS.prompt_tokens
    assert usage["completion_tokens"] == 2 * STATISTICS.new_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_ends_have_the_names_of_the_api():
    found = body(COMPLETIONS, "stop", "length", "context", "stopped")
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", "length", "length", "stop"]
    assert [choice["text"] for choice in found["choices"]][:2] == ["text of stop", "text of length"]
    assert found["object"] == "text_completion" and found["id"].startswith("cmpl-")
