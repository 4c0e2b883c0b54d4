"""What a template takes is found in the template, and a choice that it cannot keep is refused."""

from typing import Any

import pytest

from runtime.errors import OptionError
from runtime.tokenizer.chat_template import ChatTemplate, chat_template
from tests.support.model_factory import build_tokenizer


def of(source: Any, *, has_tools: bool = False) -> ChatTemplate:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = source
    return chat_template(tokenizer, has_tools=has_tools)


SWITCHED = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>' }}{% endif %}"
ALWAYS = "{{ messages }}{% generation %}<think>\n{{ '</think>' }}{% endgeneration %}"


def test_variables_and_texts_of_a_template_are_read_without_running_it() -> None:
    template = of("{% set a = tools %}{{ a }}{{ b or '</think>' }}{% for x in y %}{% break %}{% endfor %}")
    assert template.variables == {"tools", "b", "y"}
    assert template.knows_tools and template.knows_thinking
    assert of(ALWAYS).knows_thinking and not of(ALWAYS).knows_tools
    assert not of("{{ 1").knows_tools and not of(3).knows_thinking


def test_of_several_templates_the_one_that_is_applied_is_read() -> None:
    several = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert of(several, has_tools=True).knows_tools and not of(several).knows_tools


@pytest.mark.parametrize(
    ("source", "thinking", "effort", "expected"),
    [
        (SWITCHED, None, None, {}),
        (SWITCHED, True, None, {"enable_thinking": True}),
        (SWITCHED, None, "none", {"enable_thinking": False}),
        (SWITCHED, None, "low", {"enable_thinking": True}),
        (SWITCHED, False, "high", {"enable_thinking": False}),
        ("{{ thinking }}{{ enable_thinking }}", False, None, {"thinking": False, "enable_thinking": False}),
        ("{{ reasoning_effort }}", None, "low", {"reasoning_effort": "low"}),
        ("{{ reasoning_effort }}", False, None, {"reasoning_effort": "none"}),
        ("{{ reasoning_strength }}", True, None, {"reasoning_strength": "high"}),
        ("{{ thinking_budget }}</seed:think>", False, None, {"thinking_budget": 0}),
        ("{{ thinking_budget }}</seed:think>", True, None, {}),
        ("plain", None, "high", {}),
        ("plain", False, None, {}),
        (ALWAYS, True, None, {}),
        (ALWAYS, None, "none", {}),
    ],
)
def test_choices_of_thinking_have_the_templates_own_names(
    source: str, thinking: bool | None, effort: str | None, expected: dict[str, Any]
) -> None:
    assert of(source).choices(thinking, effort) == expected


def test_a_choice_that_the_template_does_not_leave_is_refused() -> None:
    with pytest.raises(OptionError, match="knows no thinking; leave"):
        of("plain").choices(True, None)
    with pytest.raises(OptionError, match="has no switch for thinking"):
        of(ALWAYS).choices(False, None)


def test_ids_of_calls_are_made_short_where_the_template_wants_them_so() -> None:
    """Mistral's templates raise for ids of another length, whoever made them."""
    strict = of("{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}")
    assert strict.call_id("call_1") == strict.call_id("call_1") != strict.call_id("call_2")
    assert len(strict.call_id("call_1")) == 9 and strict.call_id("call_1").isalnum()
    assert strict.call_id("abcdefghi") == "abcdefghi"
    assert of("plain").call_id("call_1") == "call_1"
