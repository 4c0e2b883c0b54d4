"""The marks of thinking are found in templates and vocabularies, as the tokens that models write."""

import pytest

from runtime.tokenizer.chat_template import REASONING
from runtime.tokenizer.thinking_marks import thinking_marks
from tests.support.json_models import json_tokenizer
from tests.support.model_factory import build_tokenizer


@pytest.mark.parametrize(("begin", "end"), [(marks.begin, marks.end) for marks in REASONING])
def test_marks_that_are_tokens(begin: str, end: str) -> None:
    tokenizer = build_tokenizer()
    assert thinking_marks(tokenizer) is None
    tokenizer.add_tokens([begin, end])
    found = thinking_marks(tokenizer)
    assert found is not None
    assert (found.begin_text, found.end_text, found.has_switch) == (begin, end, False)
    assert (found.begin, found.end) == (((96,),), ((97,),))


def test_marks_that_the_template_spells() -> None:
    tokenizer = json_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'].split('</think>')[-1] }}"
    found = thinking_marks(tokenizer)
    assert found is not None
    assert tokenizer.decode([place[0] for place in found.end]) == "</think>"
    assert tokenizer.decode([place[0] for place in found.begin]) == "<think>"
    assert len(found.end) == len("</think>")


def test_a_spelled_mark_may_have_grown_together_with_what_stands_around_it() -> None:
    tokenizer = json_tokenizer()
    tokenizer.add_tokens(["a<", ">b", ">>"])
    tokenizer.chat_template = "</think>"
    found = thinking_marks(tokenizer)
    assert found is not None
    strings = [set(tokenizer.convert_ids_to_tokens(place)) for place in found.end]
    assert strings[0] == {"<", "a<"} and strings[-1] == {">", ">b", ">>"}
    assert found.end[0][0] == tokenizer.convert_tokens_to_ids("<")
    assert all(len(place) == 1 for place in found.end[1:-1])


def test_a_template_may_take_the_choice() -> None:
    tokenizer = json_tokenizer()
    tokenizer.chat_template = "{% if enable_thinking %}<think>{% endif %}"
    found = thinking_marks(tokenizer)
    assert found is not None and found.has_switch
