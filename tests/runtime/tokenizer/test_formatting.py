"""Prompts become the ids that transformers makes of them, and whatever goes wrong on the way is one sentence."""

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from runtime.errors import OptionError
from runtime.prompts.prompt_file import Message, ToolCall
from runtime.tokenizer.formatting import encode_conversation, encode_pair, encode_text
from tests.support.calling_models import ALTERNATING, calling_tokenizer
from tests.support.model_factory import build_tokenizer

TURNS = [Message("user", "the cat"), Message("assistant", "the dog"), Message("user", "a <b> & 'c'")]


def with_template(template: Any) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def refusal(template: Any, turns: list[Message] = TURNS, *, is_continued: bool = False) -> str:
    with pytest.raises(OptionError) as caught:
        encode_conversation(with_template(template), turns, is_continued=is_continued)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    return message


def test_the_chat_template_is_applied_to_turns_and_not_to_text() -> None:
    tokenizer = build_tokenizer()
    ids = encode_conversation(tokenizer, TURNS[:1], is_continued=False)
    assert tokenizer.decode(ids) == "<|user|>the cat</s><|assistant|>"
    assert tokenizer.decode(encode_text(tokenizer, "the cat")) == "the cat"


def beginning_with_bos() -> Any:
    """As Llama's: every text gets `<s>` before it."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize(
    ("context", "continuation", "split"),
    [
        ("the cat", " sat", ("the cat", " sat")),
        ("the cat ", "sat", ("the cat", " sat")),
        ("the cat\n ", "sat", ("the cat", "\n sat")),
        ("", "the cat", ("<s>", "the cat")),
        ("  ", "the cat", ("<s>", "  the cat")),
        ("", "<s>the cat", ("<s>", "the cat")),
        ("", "<s>", ("<s>", "<s>")),
        ("t", "he cat", ("t", " cat")),
        (None, "the cat ", ("<s>", "the cat ")),
    ],
)
def test_a_context_and_its_continuation_are_split_as_lm_eval_does(
    context: str | None, continuation: str, split: tuple[str, str]
) -> None:
    """Where both are merged over their border, the continuation is what is left, or the whole begins with less."""
    tokenizer = build_tokenizer()
    pair = encode_pair(tokenizer, context, continuation)
    assert tuple(map(tokenizer.decode, pair)) == split


def test_the_special_tokens_of_a_text_stand_once() -> None:
    tokenizer = beginning_with_bos()
    assert tuple(map(tokenizer.decode, encode_pair(tokenizer, "the cat", " sat"))) == ("<s>the cat", " sat")
    assert tuple(map(tokenizer.decode, encode_pair(tokenizer, "<s>the cat", " sat"))) == ("<s>the cat", " sat")
    assert tuple(map(tokenizer.decode, encode_pair(tokenizer, "", "sat"))) == ("<s>", "sat")
    assert tuple(map(tokenizer.decode, encode_pair(tokenizer, None, "sat"))) == ("<s>", "<s>sat")


def test_a_context_of_nothing_is_the_token_that_begins_or_else_ends_a_text() -> None:
    tokenizer = build_tokenizer()
    tokenizer.bos_token = None
    assert encode_pair(tokenizer, "", "the cat")[0] == [2]
    tokenizer.eos_token = None
    with pytest.raises(OptionError, match="there is no context, and the tokenizer has no token that begins or ends"):
        encode_pair(tokenizer, " ", "the cat")


def test_a_continuation_without_a_token_of_its_own_is_refused() -> None:
    with pytest.raises(OptionError, match="the continuation adds no token"):
        encode_pair(build_tokenizer(), "the cat", "")
    with pytest.raises(OptionError, match="the continuation adds no token"):
        encode_pair(build_tokenizer(), "th", "e")


def test_a_prompt_without_a_token_and_a_tokenizer_without_a_template_are_refused() -> None:
    with pytest.raises(OptionError, match="no token"):
        encode_text(build_tokenizer(), "")
    assert "no token" in refusal("{% for m in messages %}{% endfor %}")
    assert "--raw" in refusal(None)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{{ raise_exception('a\\n\\x1b[2J') }}", "refuses the conversation: a"),
        ("{{ raise_exception('\\x1b' * 99999) }}", r"'\x1b"),
        ("{{ raise_exception(3) }}", "refuses the conversation: 3"),
        ("{% if %}", "Expected an expression"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages + 'x' }}", "TypeError"),
        ("{{ none | length }}", "TypeError"),
        ("{{ range(10**9) | list }}", "OverflowError"),
        ("{% include 'x' %}", "no loader for this environment"),
        ("{% import 'x' as y %}", "no loader for this environment"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", "RecursionError"),
        ("{{ " + "(" * 99999 + "1" + ")" * 99999 + " }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ({"tools": "a", "other": "b"}, "ValueError"),
        (["a"], "TypeError"),
        (3, "TypeError"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: Any, reason: str) -> None:
    assert reason in refusal(template)


CALLED = [
    Message("user", "the cat"),
    Message("assistant", "", tool_calls=(ToolCall("1", "look", "{}"),)),
    Message("tool", "refused", tool_call_id="1", name="look"),
]


def test_a_prompt_behind_what_a_tool_said_has_an_answer_before_it_where_the_template_wants_one() -> None:
    """After a call that was stopped or refused a person asks something else, which such templates refused."""
    strict, other = calling_tokenizer(), calling_tokenizer()
    strict.chat_template = ALTERNATING
    other.chat_template = ALTERNATING.replace("raise_exception", "''.format")
    turns = [*CALLED, Message("user", "the dog")]
    assert strict.decode(encode_conversation(strict, turns, is_continued=False)) == (
        "<the cat>look<><refused><(no answer)><the dog>"
    )
    assert other.decode(encode_conversation(other, turns, is_continued=False)) == ("<the cat>look<><refused><the dog>")
    assert strict.decode(encode_conversation(strict, CALLED, is_continued=False)) == "<the cat>look<><refused>"


def test_what_no_answer_mends_is_refused_for_what_was_asked() -> None:
    turns = [*CALLED, Message("user", "the dog"), Message("user", "a")]
    assert "refuses the conversation: roles must alternate" in refusal(ALTERNATING, turns)
    assert "refuses the conversation: 4 turns" in refusal(
        "{{ raise_exception(messages | length ~ ' turns') }}", turns[:4]
    )


def test_a_template_of_several_uses_the_one_called_default() -> None:
    several = with_template({"default": "{{ messages[0]['content'] }}", "tools": "{{ 1 / 0 }}"})
    assert several.decode(encode_conversation(several, TURNS, is_continued=False)) == "the cat"


def test_a_conversation_that_is_continued_is_open_at_its_end() -> None:
    tokenizer = build_tokenizer()
    ids = encode_conversation(tokenizer, TURNS[:2], is_continued=True)
    assert tokenizer.decode(ids) == "<|user|>the cat</s><|assistant|>the dog"
    begun = encode_conversation(tokenizer, TURNS[:1], is_continued=False)
    assert encode_conversation(tokenizer, [TURNS[0], Message("assistant", " ")], is_continued=True) == begun


def test_a_template_that_cannot_be_continued_says_so() -> None:
    cutting = "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}"
    assert "cannot be continued" in refusal(cutting, TURNS[:2], is_continued=True)


class Panicking:
    """As the library below a tokenizer may be, whose panics are no Exceptions."""

    chat_template = "x"

    def __call__(self, text: str) -> Any:
        raise BaseException("index out of range\nat line 3")

    def apply_chat_template(self, conversation: Any, **how: Any) -> Any:
        return self("")


def test_a_panic_of_the_library_is_a_sentence_too() -> None:
    with pytest.raises(OptionError, match=r"fails on the prompt \(BaseException: index out of range\)"):
        encode_text(Panicking(), "the cat")
    with pytest.raises(OptionError, match=r"fails on the prompt \(BaseException: index out of range\)"):
        encode_conversation(Panicking(), TURNS, is_continued=False)


CALLING = """{% for tool in tools %}[{{ tool.function.name }}: {{ tool.function.description }}]{% endfor %}
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments | items | list }}){% endfor %}
{%- if m.role == "tool" %} for {{ m.name }} {{ m.tool_call_id }}{% endif %}{% endfor %}
{%- if enable_thinking is defined %} thinking {{ enable_thinking }}{% endif %}"""
TOOLS = '[{"type": "function", "function": {"name": "look", "description": "Look up.", "parameters": {}}}]'
TOOL_TURNS = [
    Message("user", "where"),
    Message("assistant", "", (ToolCall("c1", "look", '{"at": "cat"}'),)),
    Message("tool", "in the end", tool_call_id="c1", name="look"),
]


def test_tools_their_calls_and_what_they_said_reach_the_template() -> None:
    tokenizer = with_template(CALLING)
    ids = encode_conversation(tokenizer, TOOL_TURNS, is_continued=False, tools=TOOLS, thinking=False)
    for expected in ("look: Look up.", "(('at', 'cat'))", "<tool>in the end for look c1", " thinking False"):
        for sign in "[]_<>":
            expected = expected.replace(sign, "")
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        assert expected.replace("((", "(").replace("))", ")") in shown.replace("<unk>", "")


def test_a_template_that_knows_no_tools_says_so() -> None:
    plain = build_tokenizer()
    with pytest.raises(OptionError, match="knows no tools; leave tools out"):
        encode_conversation(plain, TURNS[:1], is_continued=False, tools=TOOLS)
    with pytest.raises(OptionError, match="leaves calls of tools out of the conversation"):
        encode_conversation(plain, TOOL_TURNS, is_continued=False)
    deaf = with_template("{% for m in messages if m.role != 'tool' %}{{ m.content }}look{% endfor %}")
    with pytest.raises(OptionError, match="leaves what tools said out of the conversation"):
        encode_conversation(deaf, TOOL_TURNS, is_continued=False)


def test_what_a_tool_said_may_stand_there_as_json() -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.content | tojson }}look{% endfor %}")
    turns = [*TOOL_TURNS[:2], Message("tool", "say '\"quoted\"'", tool_call_id="c1", name="look")]
    assert encode_conversation(tokenizer, turns, is_continued=False)


def test_the_template_for_tools_is_taken_where_there_are_several() -> None:
    several = with_template({"default": "{{ 1 / 0 }}", "tool_use": "{{ tools[0].function.name }}"})
    assert several.decode(encode_conversation(several, TURNS[:1], is_continued=False, tools=TOOLS)) == "look"
