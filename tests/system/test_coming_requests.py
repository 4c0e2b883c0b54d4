"""Answers to requests that come while others are answered, and that somebody drops: the others are what they are."""

from collections import deque
from collections.abc import Iterator
from functools import partial

import pytest

from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.events import Finished, PrefillProgress, Round
from runtime.prompts.prompt_file import PromptRequest
from tests.support.session_factory import open_tiny, save_target_and_drafts


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSession]:
    folders = save_target_and_drafts(tmp_path_factory.mktemp("models"))
    settings = {"draft": folders["unrelated"], "tree": "4x3", "num_texts": 2, "num_residents": 0}
    with open_tiny(folders["target"], **settings) as opened:
        yield opened


def asked(name: str, text: str = "the cat", **changes: int) -> PromptRequest:
    params = SamplingParams(**{"max_new_tokens": 40, "banned_tokens": (2,), **changes})
    return PromptRequest(id=name, prompt=text, params=params)


def next_of(waiting: "deque[PromptRequest]") -> PromptRequest | None:
    return waiting.popleft() if waiting else None


def texts_alone(opened: OpenSession, *requests: PromptRequest) -> dict[str, str]:
    return {request.id: list(opened.session.generate(request))[-1].text for request in requests}


def test_a_request_that_comes_late_joins_at_the_next_pass(opened: OpenSession) -> None:
    first, second, third = asked("1"), asked("2", "a dog"), asked("3", "the dog and")
    expected = texts_alone(opened, first, second, third)
    waiting, order, texts = deque([first]), [], {}
    for request, event in opened.session.answer_coming(partial(next_of, waiting)):
        order.append(request.id)
        if isinstance(event, Round) and len(texts) == 0 and len(order) < 9 and not waiting and "2" not in order:
            waiting += [second, third]
        if isinstance(event, Finished):
            texts[request.id] = event.text
    assert texts == expected
    assert order.index("2") < len(order) - 1 - order[::-1].index("1"), "it was begun while the first was under way"
    assert order.index("3") > order.index("2") + 1, "there are two lanes"


def test_one_of_several_that_is_dropped_ends_with_its_pass(opened: OpenSession) -> None:
    first, second, third = asked("1"), asked("2", "a dog"), asked("3", "the dog and")
    expected = texts_alone(opened, first, second, third)
    waiting, ends = deque([first, second, third]), {}
    num_rounds = 0
    for request, event in opened.session.answer_coming(partial(next_of, waiting)):
        num_rounds += isinstance(event, Round) and request.id == "2"
        if num_rounds == 3:
            opened.session.drop("2")
        if isinstance(event, Finished):
            ends[request.id] = event
    assert ends["2"].finish_reason == "stopped"
    assert expected["2"].startswith(ends["2"].text) and ends["2"].text != expected["2"]
    assert {name: ends[name].text for name in ("1", "3")} == {name: expected[name] for name in ("1", "3")}


def test_the_last_one_that_is_dropped_ends_after_a_layer_and_the_next_begins(opened: OpenSession) -> None:
    first, second = asked("1"), asked("2", "a dog")
    expected = texts_alone(opened, second)
    target, computed = opened.session.engine.target, []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: computed.append(index))
        for index, layer in enumerate(target.parts.layers)
    ]
    hooks.append(target.parts.layers[0].register_forward_hook(lambda *_: opened.session.drop("1")))
    waiting, ends, begun = deque([first, second]), {}, []
    try:
        for request, event in opened.session.answer_coming(lambda: next_of(waiting) if ends or not begun else None):
            begun.append(request.id)
            if isinstance(event, Finished):
                ends[request.id] = event
                if request.id == "1":
                    assert len(computed) <= 2, "the pass ended where it was"
    finally:
        for hook in hooks:
            hook.remove()
    assert ends["1"].finish_reason == "stopped" and ends["1"].text == ""
    assert ends["2"].text == expected["2"]


def test_what_is_dropped_before_it_begins_or_after_its_end_is_left_as_it_is(opened: OpenSession) -> None:
    first, second = asked("1", max_new_tokens=4), asked("2", "a dog", max_new_tokens=4)
    expected = texts_alone(opened, first, second)
    opened.session.drop("1")
    waiting, texts = deque([first, second]), {}
    for request, event in opened.session.answer_coming(partial(next_of, waiting)):
        if isinstance(event, PrefillProgress) and request.id == "1":
            opened.session.drop("2")
        if isinstance(event, Finished):
            texts[request.id] = event.text
            opened.session.drop(request.id)
    assert texts == expected
