"""The line under an answer says how it ended and what it took, and nothing that was not measured."""

from tests.support.conversation_factory import message
from tui.chat.widgets.turn_caption import turn_caption


def answer(content, *, state="complete", **statistics):
    return message("assistant", content, state=state, statistics=statistics)


def test_a_complete_answer_shows_its_figures():
    measured = {"num_new_tokens": 30, "num_rounds": 10, "seconds_per_token": 0.2, "prefill_seconds": 1.25}
    ended = answer("text", finish_reason="stop", **measured)
    assert turn_caption(ended) == "30 tokens · 5 tok/s · 3.0 tokens a pass · first after 1.2 s"


def test_one_token_is_one_token():
    assert turn_caption(answer("a", finish_reason="length", num_new_tokens=1)) == "reached the most tokens · 1 token"


def test_a_stopped_answer_says_so():
    assert turn_caption(answer("text", state="stopped", finish_reason="stopped")) == "stopped"
    assert turn_caption(answer("", state="stopped")) == "stopped, nothing came"


def test_a_full_context_is_not_called_a_stop():
    assert turn_caption(answer("text", state="stopped", finish_reason="context")) == "the context is full"


def test_a_failure_says_why_without_executing_it():
    ended = answer("", state="failed", error="no room for \x1b[31mtiny\n")
    assert turn_caption(ended) == "failed: no room for tiny"


def test_an_answer_that_streams_has_no_caption():
    assert turn_caption(answer("text", state="streaming")) == ""
