"""Answers end exactly where plain decoding would end, also inside an accepted path; their text comes as it is made."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, open_session
from runtime.engine.session import Session, format_prompt
from runtime.errors import OptionError
from runtime.events import AnswerParts, Event, Finished, ReasoningDelta, Round, TextDelta, ToolCallDelta
from runtime.planner.prefill import PrefillPlanner
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer.answer_text import AnswerText
from runtime.tokenizer.box import BoxedAnswer
from tests.support.calling_models import CALL, save_calling_folder, saying, tools_json
from tests.support.model_factory import build_tokenizer
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder, save_with_tokens_beyond

SEED = 37
"""A random model whose greedy answer is varied and meets no end token for 100 tokens."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSession]:
    """A target that drafts for itself: every path is accepted to its end, so ends fall inside of it."""
    folder = save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=SEED)
    with open_tiny(folder, draft=folder, tree="8x8") as opened:
        yield opened


def answer_tokens(opened: OpenSession) -> list[int]:
    return answer(opened, request())[1]


def test_the_token_limit_cuts_an_accepted_path(opened: OpenSession) -> None:
    whole = answer_tokens(opened)
    for limit in range(1, 20):
        finished, tokens = answer(opened, request(max_new_tokens=limit))
        assert tokens == whole[:limit]
        assert finished.finish_reason == "length"
        assert finished.statistics.new_tokens == limit


def test_an_end_token_ends_the_answer_and_is_not_part_of_the_text(opened: OpenSession) -> None:
    whole = answer_tokens(opened)
    session = Session(opened.session.engine, opened.session._tokenizer, end_token_ids=[whole[10]])
    first = whole.index(whole[10])
    *_, finished = session.generate(request())
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "stop"
    assert finished.statistics.new_tokens == first + 1  # the end token counts, it cost a step
    assert session.engine.text[finished.statistics.prompt_tokens :] == whole[:first]


def test_a_stop_string_ends_the_answer_before_it(opened: OpenSession) -> None:
    text = answer(opened, request())[0].text
    stop = text[7:10]
    finished, _ = answer(opened, request(stop=(stop,)))
    assert finished.text == text[: text.index(stop)]
    assert finished.finish_reason == "stop"


def test_the_context_ends_the_answer(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "target", seed=SEED)
    with open_tiny(folder, draft=folder, tree="8x8", context_tokens=30) as small:
        finished, tokens = answer(small, request(max_new_tokens=100))
    assert finished.finish_reason == "context"
    assert len(tokens) + finished.statistics.prompt_tokens == 30


def test_a_prompt_longer_than_the_context_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "target", seed=SEED)
    with open_tiny(folder, context_tokens=8) as small, pytest.raises(OptionError, match="--context"):
        list(small.session.generate(request("a prompt that is far too long for this")))


def test_text_deltas_join_to_the_text(opened: OpenSession) -> None:
    events = list(opened.session.generate(request(stop=("zz",))))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == finished.text


def guessed_text(events: list[Event]) -> tuple[str, str]:
    """The text that came, and the same with a dot for each character that was guessed."""
    text, marked = "", ""
    for event in events:
        if isinstance(event, TextDelta):
            assert event.guessed is not None
            dots = list(event.text)
            for start, end in event.guessed:
                dots[start:end] = "•" * (end - start)
            text, marked = text + event.text, marked + "".join(dots)
    return text, marked


def test_what_trees_proposed_is_told_apart_from_what_the_target_chose(opened: OpenSession) -> None:
    """Whatever holds text back: each character is guessed as its token was, and none is added or lost."""
    plain = answer(opened, request())[0]
    assert plain.num_guessed_tokens is None
    for params in ({}, {"stop": ("zz",)}, {"max_new_tokens": 7}, {"stop": (plain.text[7:10],)}):
        *events, finished = opened.session.generate(replace(request(**params), wants_guesses=True))
        assert isinstance(finished, Finished)
        lengths, kept = AnswerText(build_tokenizer(), has_ends=True), list[bool]()
        for done in events:
            if isinstance(done, Round):
                lengths.add(done.token_ids)
                kept += [True] * (len(done.token_ids) - 1) + [False]
        expected = "".join(
            ("•" if is_guessed else "x") * (end - start)
            for start, end, is_guessed in zip([0, *lengths.ends], lengths.ends, kept, strict=False)
        )
        text, marked = guessed_text(events)
        assert text == finished.text == plain.text[: len(text)]
        assert "".join("•" if sign == "•" else "x" for sign in marked) == expected[: len(text)]
        assert finished.num_guessed_tokens == sum(kept[: finished.statistics.new_tokens])
        assert 0 < finished.num_guessed_tokens <= finished.statistics.new_tokens


def test_without_a_draft_nothing_is_guessed(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path, seed=SEED)) as plain:
        *events, finished = plain.session.generate(replace(request(), wants_guesses=True))
        text, marked = guessed_text(events)
    assert isinstance(finished, Finished) and finished.num_guessed_tokens == 0
    assert text == marked == finished.text


def test_caches_are_consistent_after_every_kind_of_end(opened: OpenSession) -> None:
    """The next answer is what a fresh session gives."""
    expected = answer_tokens(opened)
    text = answer(opened, request())[0].text
    for params in ({"max_new_tokens": 5}, {"stop": (text[7:10],)}, {"max_new_tokens": 1}):
        answer(opened, request(**params))
        assert answer_tokens(opened) == expected


def test_closing_an_answer_early_leaves_the_session_ready(opened: OpenSession) -> None:
    expected = answer_tokens(opened)
    events = opened.session.generate(request())
    while not isinstance(next(events), Round):
        pass
    events.close()
    assert answer_tokens(opened) == expected


def test_statistics_add_up(opened: OpenSession) -> None:
    statistics = answer(opened, request(max_new_tokens=20))[0].statistics
    assert statistics.rounds == 3
    assert statistics.decode_tokens == 12
    assert statistics.prefill_seconds > 0
    assert statistics.decode_seconds >= statistics.draft_seconds + statistics.verify_seconds > 0
    assert statistics.tokens_per_round == pytest.approx(20 / 3)


def test_tokens_that_were_held_are_counted(opened: OpenSession) -> None:
    opened.session.engine.truncate(0)
    first, _ = answer(opened, request(max_new_tokens=2))
    again, _ = answer(opened, request(max_new_tokens=2))
    other, _ = answer(opened, request("the cat and the bird", max_new_tokens=2))
    num_prompt = first.statistics.prompt_tokens
    assert [each.statistics.cached_tokens for each in (first, again)] == [0, num_prompt - 1]
    assert 0 < other.statistics.cached_tokens < num_prompt - 1


def test_tokens_that_another_prompt_has_too_are_counted_once(tmp_path: Path) -> None:
    """Also where both are computed in one pass, or where a long prompt waits for what the other reads."""
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=0, num_texts=3) as opened:
        engine, begin = opened.session.engine, "the cat and the dog and a cat and the dog and a bird "
        asked = [replace(request(begin + end, max_new_tokens=2), id=end) for end in ("the cat", "a dog", "and")]
        for most_tokens in (64, 8):
            for lane in range(3):
                engine.truncate(0, lane=lane)
            engine.prefill = PrefillPlanner(
                slice_tokens=4, most_tokens=most_tokens, first_tokens=most_tokens, is_streamed=True
            )
            events = opened.session.generate_all(asked)
            found = {each.id: event.statistics for each, event in events if isinstance(event, Finished)}
            prompts = [opened.session.format_prompt(each) for each in asked]
            num_shared = sum(
                1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*prompts, strict=False))
            )
            assert found["the cat"].cached_tokens == 0
            assert num_shared <= found["a dog"].cached_tokens < found["a dog"].prompt_tokens
            assert num_shared <= found["and"].cached_tokens < found["and"].prompt_tokens


def test_what_a_prompt_will_take_is_expected_once_one_was_read(tmp_path: Path) -> None:
    """By the first answer; and what a second one has in common with it is not read again."""
    with open_tiny(save_tiny_folder(tmp_path / "model"), num_residents=0) as opened:
        engine = opened.session.engine
        engine.prefill = PrefillPlanner(slice_tokens=4, most_tokens=64, first_tokens=8, is_streamed=True)
        asked = request("the cat and the dog and a cat and a dog", max_new_tokens=2)
        first, _ = answer(opened, asked)
        assert first.expected_prefill_seconds is None
        engine.truncate(0)
        start = opened.session.prefill_start(asked)
        second, _ = answer(opened, asked)
        assert second.expected_prefill_seconds == start.expected_seconds > 0
        assert 0 < start.num_pass_tokens <= start.num_prompt_tokens
        assert opened.session.prefill_start(asked).expected_seconds < start.expected_seconds


PICKY = "{% for m in messages %}{{ 1 / (m['content'].count('!') - 1) and '' }}{{ m['content'] }}{% endfor %}"
"""Divides by zero where a conversation has one exclamation mark."""


def test_a_prompt_that_the_template_fails_on_costs_its_own_answer(tmp_path: Path) -> None:
    """It ended the load already, where prompts are counted to size the caches."""
    folder = save_tiny_folder(tmp_path / "model", seed=SEED)
    (folder / "chat_template.jinja").write_text(PICKY)
    good, bad = (PromptRequest(id=text, messages=(Message("user", text),)) for text in ("the cat", "the cat!"))
    with open_session(EngineConfig(target=str(folder), device="cpu"), requests=[bad, good]) as opened:
        with pytest.raises(OptionError, match=r"chat template fails on .*division by zero"):
            list(opened.session.generate(bad))
        assert answer(opened, good)[0].text
        assert format_prompt(opened.session._tokenizer, request("the cat"))


def test_conversations_without_any_template_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", seed=SEED)
    (folder / "chat_template.jinja").unlink()
    chat = PromptRequest(id="1", messages=(Message("user", "the cat"),))
    with pytest.raises(OptionError, match="no chat template"):
        LoadPlan.build(EngineConfig(target=str(folder), device="cpu"), requests=[chat])


def test_an_answer_whose_text_breaks_a_limit_leaves_the_session_ready(
    opened: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(opened, request())[0].text

    def fail(self: BoxedAnswer, token_ids: list[int]) -> str:
        raise OptionError("too much")

    with monkeypatch.context() as patched:
        patched.setattr(BoxedAnswer, "add", fail)
        with pytest.raises(OptionError, match="too much"):
            list(opened.session.generate(request()))
    assert answer(opened, request())[0].text == whole


BEYOND = "the prompt holds the token .*, id 9[678], and the model has none beyond 95; leave it out"


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.3, "presence_penalty": 0.5}, {"temperature": 0.8}])
@pytest.mark.parametrize("tree", ["auto", "8x4"])
def test_a_token_without_a_row_costs_its_own_answer(tmp_path: Path, tree: str, params: dict[str, float]) -> None:
    folder = save_with_tokens_beyond(tmp_path)
    with open_tiny(folder, draft="none" if tree == "auto" else "substitute", tree=tree, lookup="on") as opened:
        before = answer(opened, request(**params))
        for text in ("see <image> here", "<audio>", "a catdog and the catdog and the catdog"):
            with pytest.raises(OptionError, match=BEYOND):
                answer(opened, request(text, **params))
            with pytest.raises(OptionError, match=BEYOND):
                opened.session.prefill_start(request(text, **params))
        said = PromptRequest(id="1", messages=(Message("user", "what is <image>?"),), params=request(**params).params)
        with pytest.raises(OptionError, match=BEYOND):
            answer(opened, said)
        assert answer(opened, request(**params))[1] == before[1]


@pytest.mark.parametrize(
    "params",
    [
        {"stop": ("<image>", "catdog")},
        {"banned_tokens": (96,)},
        {"forced_tokens": (5, 10**6)},
        {"banned_tokens": (-1,)},
    ],
)
def test_options_that_name_what_the_model_has_not_are_a_sentence_or_change_nothing(
    tmp_path: Path, params: dict[str, tuple[object, ...]]
) -> None:
    with open_tiny(save_with_tokens_beyond(tmp_path), draft="substitute", tree="8x4") as opened:
        if "stop" in params:
            assert answer(opened, request(**params))[1] == answer(opened, request())[1]
        else:
            with pytest.raises(OptionError, match=r"the model's ids are 0 to 95|must be token ids"):
                answer(opened, request(**params))
        assert answer(opened, request())[1]


def test_end_tokens_and_a_draft_may_lie_beyond_the_embedding(tmp_path: Path) -> None:
    """The draft has fewer rows than the target, and one end token has none in either."""
    target, draft = tmp_path / "target", tmp_path / "draft"
    save_with_tokens_beyond(target, vocab_size=104, eos_token_id=[2, 103, 500])
    save_with_tokens_beyond(draft, vocab_size=97, seed=3)
    with open_tiny(target) as opened:
        expected = answer(opened, request("see <image> <audio> catdog"))
        assert 500 in opened.session.end_token_ids
    with open_tiny(target, draft=draft, tree="8x4", lookup="on") as opened:
        assert answer(opened, request("see <image> <audio> catdog"))[1] == expected[1]
        assert answer(opened, request("see <image> <audio> catdog", repetition_penalty=1.2))[1]


def parts_of(opened: OpenSession, text: str, **how: Any) -> tuple[list[Event], Finished]:
    """What comes where a model is made to say a text; the last event apart."""
    asked = PromptRequest(
        id="1",
        params=saying(text),
        **{"messages": (Message("user", "where"),), "tools": tools_json(), "wants_parts": True, **how},
    )
    *events, finished = opened.session.generate(asked)
    assert isinstance(finished, Finished)
    return [event for event in events if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta)], finished


@pytest.mark.parametrize("are_special", [True, False])
def test_thinking_and_calls_come_apart_where_a_request_wants_that(tmp_path: Path, are_special: bool) -> None:
    """Marks are special tokens in some families, which leave no text otherwise."""
    folder = save_calling_folder(tmp_path, are_special=are_special)
    said = f"<think>\nwell\n</think>\n\nI look. {CALL}"
    with open_tiny(folder, context_tokens=512) as opened:
        events, finished = parts_of(opened, said)
        parts = finished.parts
        assert parts is not None and finished.text == said and finished.finish_reason == "stop"
        assert (parts.content, parts.reasoning_content) == ("I look.", "well")
        assert [(call.name, call.arguments) for call in parts.tool_calls] == [("look", '{"at": "cat"}')]
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "I look."
        # How much comes at once is not the same twice: the tree follows what passes take.
        told = [event for event in parts_of(opened, said, wants_guesses=True)[0] if isinstance(event, TextDelta)]
        assert "".join(event.text for event in told) == "I look."
        assert all(event.guessed is not None for event in told)
        assert [event.call for event in events if isinstance(event, ToolCallDelta)] == list(parts.tool_calls)
        whole = parts_of(opened, said, wants_parts=False)[1]
        assert whole.parts is None and (whole.text == said) is not are_special
        opened_in_prompt = parts_of(opened, "well</think>yes", thinking=True)[1].parts
        assert opened_in_prompt == AnswerParts("yes", "well")
        unmarked = parts_of(opened, CALL, tools=None)[1].parts
        assert unmarked is not None and unmarked.tool_calls == () and "look" in unmarked.content


def test_an_answer_that_is_continued_is_still_thinking_or_not(tmp_path: Path) -> None:
    with open_tiny(save_calling_folder(tmp_path), context_tokens=512) as opened:
        for begun, expected in (
            ("<think>we", AnswerParts("yes", "ll")),
            ("<think>a</think>b", AnswerParts("ll</think>yes")),
        ):
            messages = (Message("user", "where"), Message("assistant", begun))
            found = parts_of(opened, "ll</think>yes", messages=messages, is_continued=True)[1]
            assert found.parts == expected
