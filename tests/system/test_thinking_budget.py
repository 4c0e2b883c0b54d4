"""Thinking ends where its budget does, and the text is otherwise that without one, whatever proposes it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.config import UNLIMITED_THINKING, SamplingParams
from runtime.engine.loading import OpenSession
from runtime.events import Finished
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.json_models import blank_tokens, save_json_folder
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.thinking_models import BEGIN, END, save_spelling_folder, save_thinking_folder

CHOICES: tuple[dict[str, object], ...] = (
    {"banned_tokens": (2, END)},
    {"banned_tokens": (2,), "temperature": 1.0, "seed": 3, "frequency_penalty": 0.4},
)
"""Greedy, whose thinking never ends by itself, and sampled with a penalty; neither answer ends."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    target = save_thinking_folder(root / "target")
    return {"target": target, "perfect": target, "unrelated": save_thinking_folder(root / "other", "qwen2", seed=9)}


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[list[OpenSession]]:
    """Plain, a chain, and trees of other kinds with good and bad drafts."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_tiny(folders["target"], **settings))
            for settings in (
                {"draft": "none"},
                {"draft": folders["perfect"], "tree": "6x6"},
                {"draft": "substitute", "tree": "9x3"},
                {"draft": folders["unrelated"], "tree": "auto", "lookup": "on"},
                {"draft": folders["perfect"], "tree": "dynamic:16x6"},
                {"draft": folders["perfect"], "tree": "8x4", "num_texts": 3},
            )
        ]


def asked(text: str = "the cat", **params: object) -> PromptRequest:
    """A conversation, whose template begins the answer within thinking."""
    chosen = SamplingParams(**{"max_new_tokens": 20, **params})
    return PromptRequest(id="1", messages=(Message("user", text),), params=chosen)


def written(sessions: list[OpenSession], prompt: PromptRequest) -> list[int]:
    """The answer's tokens, which are the same in all sessions."""
    expected = answer(sessions[0], prompt)[1]
    for opened in sessions[1:]:
        assert answer(opened, prompt)[1] == expected, prompt.params
    return expected


def test_thinking_ends_at_its_budget_and_is_the_same_up_to_there(sessions: list[OpenSession]) -> None:
    for choices in CHOICES:
        free = written(sessions, asked(**choices))
        natural = free.index(END) if END in free else len(free)
        for budget in (0, 1, 2, 5, 11):
            opened = replace(asked(thinking_budget=budget, **choices), thinking=True)  # also where the budget is 0
            found = written(sessions, opened)
            if budget < natural:
                assert found[:budget] == free[:budget] and found[budget] == END
            else:
                assert found == free
            assert len(found) == 20


def test_tokens_of_thinking_are_counted(sessions: list[OpenSession]) -> None:
    for budget in (0, 3, 11):
        raw = replace(asked(thinking_budget=budget, banned_tokens=(2, BEGIN, END)), thinking=True)
        for prompt in (raw, replace(raw, wants_parts=True)):
            for opened in sessions:
                finished, _ = answer(opened, prompt)
                assert finished.statistics.reasoning_tokens == budget
    prompt = replace(asked(banned_tokens=(2, BEGIN, END)), wants_parts=True)
    assert answer(sessions[0], prompt)[0].statistics.reasoning_tokens == 20, "it never ends"
    quiet = replace(prompt, thinking=False)
    assert answer(sessions[0], quiet)[0].statistics.reasoning_tokens == 0


def test_thinking_that_the_model_begins(sessions: list[OpenSession]) -> None:
    for choices in CHOICES:
        begun = {"forced_tokens": (7, BEGIN), **choices}
        prompt = request(**begun, max_new_tokens=20)  # raw: no template begins it
        free = written(sessions, prompt)
        found = written(sessions, replace(prompt, params=replace(prompt.params, thinking_budget=6)))
        if END in free[:8]:
            assert found == free
        else:
            assert found[:8] == free[:8] and found[8] == END


def test_thinking_that_ends_by_itself_is_left_alone(sessions: list[OpenSession]) -> None:
    for choices in CHOICES:
        ended = {**choices, "forced_tokens": (7, 8, END, 9), "banned_tokens": (2, BEGIN)}
        assert written(sessions, asked(**ended, thinking_budget=3)) == written(sessions, asked(**ended))


def test_sampled_schemes_end_it_there_too(sessions: list[OpenSession]) -> None:
    for verification in ("sequoia", "specinfer", "top-k"):
        banned = (2, BEGIN, END)
        choices = {"temperature": 1.0, "verification": verification, "banned_tokens": banned, "thinking_budget": 4}
        for opened in sessions:
            if opened.session.engine.planner.kind == "dynamic":
                continue
            for seed in range(3):
                found = answer(opened, asked(**choices, seed=seed))[1]
                assert found.count(END) == 1 and found[4] == END


def test_texts_that_share_passes_have_budgets_of_their_own(sessions: list[OpenSession]) -> None:
    prompts = [
        replace(asked("the dog", banned_tokens=(2, END), thinking_budget=budget), id=str(budget), thinking=True)
        for budget in (None, 2, 7, 0, 4)
    ]
    events = sessions[-1].session.generate_all(prompts)
    found = {each.id: event.text for each, event in events if isinstance(event, Finished)}
    for each in prompts:
        *_, alone = sessions[0].session.generate(each)
        assert isinstance(alone, Finished)
        assert found[each.id] == alone.text
        assert ("</think>" in alone.text) is (each.params.thinking_budget is not None)


def test_an_answer_that_is_written_on_goes_on_thinking(sessions: list[OpenSession]) -> None:
    """What was thought before counts; and a mark in a question begins nothing."""
    choices = {"banned_tokens": (2, END)}
    for said, num_left in (("a <think>the cat", 3), ("<think>the</think> cat", None), ("the cat", None)):
        messages = (Message("user", "what is <think>"), Message("assistant", said))
        prompt = replace(asked(**choices, thinking_budget=6), messages=messages, is_continued=True)
        found = written(sessions, prompt)
        thought = len(sessions[0].session._tokenizer.encode("the cat"))
        assert (found.index(END) if END in found else None) == (None if num_left is None else 6 - thought)


def test_the_template_is_told_whether_there_is_thinking(sessions: list[OpenSession]) -> None:
    session = sessions[0].session
    open_by_itself, on, off, limited = (
        session.format_prompt(asked(thinking_budget=budget)) for budget in (None, UNLIMITED_THINKING, 0, 9)
    )
    assert open_by_itself == on == limited and BEGIN in on
    assert off == on[: on.index(BEGIN)]
    chosen = replace(asked(thinking_budget=9), thinking=False)
    assert session.format_prompt(chosen) == off, "who chose more precisely is believed"
    free = written(sessions, asked(banned_tokens=(2, END)))
    assert written(sessions, asked(banned_tokens=(2, END), thinking_budget=UNLIMITED_THINKING)) == free


def test_a_mark_of_many_tokens(tmp_path: Path) -> None:
    folder = save_spelling_folder(tmp_path / "target")
    prompt = asked("the cat", thinking_budget=5, max_new_tokens=40, banned_tokens=(2,))
    texts = []
    for settings in ({"draft": "none"}, {"draft": "substitute", "tree": "12x6"}):
        with open_tiny(folder, **settings) as opened:
            free = answer(opened, replace(prompt, params=replace(prompt.params, thinking_budget=None)))[1]
            finished, found = answer(opened, prompt)
            assert found[:5] == free[:5]
            texts.append(finished.text)
    assert texts[0] == texts[1]
    assert texts[0].count("</think>") == 1


def test_json_is_held_to_its_schema_behind_the_thinking(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    folder = save_spelling_folder(tmp_path / "target", seed=3)
    schema = json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3})
    params = {"thinking_budget": 6, "max_new_tokens": 80, "banned_tokens": blank_tokens()}
    texts = set()
    for settings in ({"draft": "none"}, {"draft": "substitute", "tree": "12x6"}):
        with open_tiny(folder, **settings) as opened:
            finished, _ = answer(opened, replace(asked(**params), response_schema=schema))
            assert finished.finish_reason == "stop"
            thought, _, said = finished.text.partition("</think>")
            assert thought and set(json.loads(said)) <= {1, 2}
            texts.add(finished.text)
    assert len(texts) == 1


def test_a_model_that_marks_no_thinking_writes_as_ever(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "target")) as opened:
        assert answer(opened, request(thinking_budget=0))[1] == answer(opened, request())[1]
        with open_tiny(save_json_folder(tmp_path / "other")) as other:
            assert other.session._tokenizer.thinking_marks is None
