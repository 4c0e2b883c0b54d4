"""Which marks a model writes is found in its template, or else among its tokens."""

from typing import Any

import pytest
from tokenizers import AddedToken

from runtime.tokenizer.answer_forms import CALLS, AnswerForm, answer_form
from runtime.tokenizer.chat_template import REASONING
from tests.support.model_factory import build_tokenizer


def of(template: Any, *tokens: str) -> AnswerForm:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return answer_form(tokenizer)


@pytest.mark.parametrize("marks", REASONING)
def test_thinking_is_found_in_the_template(marks: Any) -> None:
    form = of("{{ " + repr(f"a{marks.begin}\nb{marks.end}") + " }}")
    assert form.reasoning == marks and form.calls == ()


@pytest.mark.parametrize("marks", CALLS)
def test_calls_are_found_in_the_template(marks: Any) -> None:
    assert of(f"write {marks.begin}").calls == (marks,)


def test_tokens_count_where_the_template_says_nothing() -> None:
    """Llama 3.2's template does not name the mark that the model may write all the same."""
    form = of("plain", "<|python_tag|>", "<think>", "</think>")
    assert form.begins == ["<think>", "<|python_tag|>"]
    assert of("write <tool_call>", "<|python_tag|>").begins == ["<tool_call>"]
    assert of("plain", "<think>").begins == []
    assert of(None).begins == []


def test_a_form_survives_being_named() -> None:
    form = of("<think></think><tool_call>[TOOL_CALLS]")
    assert AnswerForm.named(form.begins) == form
    assert AnswerForm.named(["<nonsense>"]) == AnswerForm()


def test_tokens_of_calls_are_kept_for_requests_with_tools_alone() -> None:
    form = of("<|channel>thought <channel|><|tool_call>")
    assert form.tokens(has_tools=False) == ("<|channel>", "<channel|>")
    assert set(form.tokens(has_tools=True)) == {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'}


def test_an_answer_begins_inside_of_thinking_where_the_prompt_opens_it() -> None:
    form = of("<think></think>")
    assert form.is_thinking("<|assistant|><think>\n")
    assert not form.is_thinking("<think>\n\n</think>\n\n") and not form.is_thinking("<|assistant|>")
    assert form.is_thinking("<think>\nwell", is_continued=True)
    assert not form.is_thinking("<think>\nwell</think>so", is_continued=True)
    assert not AnswerForm().is_thinking("<think>")
