"""Earlier prompts come back in order, and what was being written is not lost on the way."""

from tui.chat.widgets.prompt_history import PromptHistory


def test_older_and_newer_walk_to_both_ends():
    history = PromptHistory(["one", "two"])
    assert [history.older("unsent"), history.older("two"), history.older("one")] == ["two", "one", None]
    assert [history.newer(), history.newer(), history.newer()] == ["two", "unsent", None]


def test_a_prompt_that_is_sent_is_the_newest():
    history = PromptHistory(["one"])
    history.older("")
    history.add("two")
    assert history.older("") == "two"


def test_sending_the_same_prompt_again_keeps_it_once():
    history = PromptHistory(["one"])
    history.add("one")
    assert [history.older(""), history.older("one")] == ["one", None]


def test_an_empty_history_has_no_neighbours():
    history = PromptHistory()
    assert history.older("unsent") is None
    assert history.newer() is None
