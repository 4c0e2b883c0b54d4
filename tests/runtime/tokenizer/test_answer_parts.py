"""An answer's parts are the same however its text is cut, and no character of what is no call is lost."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from runtime.events import AnswerParts, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall
from runtime.tokenizer.answer_forms import CALLS, AnswerForm
from runtime.tokenizer.answer_parts import AnswerSplitter, Part, new_call_id

TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "go", "description": "", "parameters": {"type": "object"}}},
    ]
)
LOOK = '{"name": "look", "arguments": {"at": "cat"}}'


def split(pieces: Sequence[str], *begins: str, **how: Any) -> tuple[list[Part], AnswerParts]:
    number = itertools.count()
    splitter = AnswerSplitter(AnswerForm.named(begins), new_id=lambda: str(next(number)), **{"tools": TOOLS, **how})
    parts = [part for piece in pieces for part in splitter.add(piece)]
    return [*parts, *splitter.finish()], splitter.parts


def whole(text: str, *begins: str, **how: Any) -> AnswerParts:
    """The parts of a text, which are those of its single characters and of any other pieces too."""
    given_parts, expected = split([text], *begins, **how)
    for size in (1, 2, 3, 7):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        parts, same = split(pieces, *begins, **how)
        assert same == expected == joined(parts) == joined(given_parts)
    return expected


def joined(parts: Sequence[Part]) -> AnswerParts:
    thoughts = [part.text for part in parts if isinstance(part, ReasoningDelta)]
    calls = tuple(part.call for part in parts if isinstance(part, ToolCallDelta))
    content = "".join(part.text for part in parts if isinstance(part, TextDelta))
    has_thought = thoughts or None
    return AnswerParts(content, "".join(thoughts) if has_thought else None, calls)


def called(*calls: tuple[str, dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(str(index), name, json.dumps(given)) for index, (name, given) in enumerate(calls))


ONE = called(("look", {"at": "cat"}))
TWO = called(("look", {"at": "cat"}), ("go", {}))


def test_thinking_and_what_is_said_are_told_apart() -> None:
    assert whole("<think>\nwell\n</think>\n\nyes ", "<think>") == AnswerParts("yes ", "well")
    assert whole(" \n<think>well</think>yes", "<think>") == AnswerParts("yes", "well")
    assert whole("[THINK]well[/THINK]yes", "[THINK]") == AnswerParts("yes", "well")
    assert whole("<|channel>thought\nwell\n<channel|>yes", "<|channel>thought") == AnswerParts("yes", "well")
    assert whole("well\n</think>\n\nyes", "<think>", is_thinking=True) == AnswerParts("yes", "well")
    assert whole("<think>\nwell</think>yes", "<think>", is_thinking=True) == AnswerParts("yes", "well")


def test_thinking_that_does_not_end_is_thinking_to_the_end() -> None:
    assert whole("<think>\nwell </thi", "<think>") == AnswerParts("", "well </thi")


def test_an_answer_without_marks_is_what_it_was() -> None:
    for text in ("", " \n", "a <thin b", "a <think> b </think> c", "  yes\n\n", "{}", "<tool_cal"):
        assert whole(text, "<think>", "<tool_call>") == AnswerParts(text)


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        (f"<tool_call>\n{LOOK}\n</tool_call>", "<tool_call>"),
        (f"<tool_call>\n{LOOK}\n", "<tool_call>"),
        ("<tool_call>\n<function=look>\n<parameter=at>\ncat\n</parameter>\n</function>\n</tool_call>", "<tool_call>"),
        ("<function=look><parameter=at>cat</parameter></function>\n</tool_call>", "<function="),
        (
            "<seed:tool_call><function=look><parameter=at>cat</parameter></function></seed:tool_call>",
            "<seed:tool_call>",
        ),
        (f"[TOOL_CALLS][{LOOK}]", "[TOOL_CALLS]"),
        ('[TOOL_CALLS]look[ARGS]{"at": "cat"}', "[TOOL_CALLS]"),
        ('[TOOL_CALLS]look[CALL_ID]abc[ARGS]{"at": "cat"}', "[TOOL_CALLS]"),
        ('<|python_tag|>{"name": "look", "parameters": {"at": "cat"}}', "<|python_tag|>"),
        ('\n{"name": "look", "parameters": {"at": "cat"}}', "<|python_tag|>"),
        ('<|tool_call>call:look{at:<|"|>cat<|"|>}<tool_call|>', "<|tool_call>"),
        (f"<|START_ACTION|>[{LOOK}]<|END_ACTION|>", "<|START_ACTION|>"),
        (f"<TOOLCALL>[{LOOK}]</TOOLCALL>", "<TOOLCALL>"),
        ('<|tools_prefix|>[{"look": {"at": "cat"}}]<|tools_suffix|>', "<|tools_prefix|>"),
        ('```tool_code\nlook(at="cat")\n```', "```tool_code"),
    ],
)
def test_a_call_of_each_family_is_found(text: str, begin: str) -> None:
    assert whole(text, begin) == AnswerParts("", None, ONE)
    if not text.startswith("\n{"):  # bare JSON is a call at the beginning alone
        assert whole(f"I look.\n\n{text}\n", begin) == AnswerParts("I look.", None, ONE)


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        (f'<tool_call>{LOOK}</tool_call>\n<tool_call>{{"name": "go"}}</tool_call>', "<tool_call>"),
        (f'<tool_call>{LOOK}\n{{"name": "go"}}</tool_call>', "<tool_call>"),
        ('[TOOL_CALLS]look[ARGS]{"at": "cat"}[TOOL_CALLS]go[ARGS]{}', "[TOOL_CALLS]"),
        ('{"name": "look", "parameters": {"at": "cat"}}; {"name": "go", "parameters": {}}', "<|python_tag|>"),
        ('<|tool_call>call:look{at:<|"|>cat<|"|>}<tool_call|><|tool_call>call:go{}<tool_call|>', "<|tool_call>"),
    ],
)
def test_several_calls_are_found(text: str, begin: str) -> None:
    assert whole(text, begin) == AnswerParts("", None, TWO)


@pytest.mark.parametrize("begins", [("<tool_call>",), (), ("```tool_code",), ("<|python_tag|>",), ("[TOOL_CALLS]",)])
def test_a_call_without_its_marks_is_found_at_the_end(begins: tuple[str, ...]) -> None:
    """Qwen2.5-Coder writes most of its calls so."""
    go = '{"name": "go", "arguments": {}}'
    for text in (LOOK, f"```json\n{LOOK}\n```", f"\n```\n{LOOK}\n```\n", f"```json\n{LOOK}"):
        assert whole(text, *begins) == AnswerParts("", None, ONE)
    assert whole(f"I look:\n\n```json\n{LOOK}\n```\n", *begins) == AnswerParts("I look:", None, ONE)
    assert whole(f"```json\n{LOOK}\n{go}\n```", *begins) == AnswerParts("", None, TWO)
    assert whole(f"```\n1\n```\nso\n```\n{LOOK}\n```", *begins) == AnswerParts("```\n1\n```\nso", None, ONE)
    assert whole(f"```json\n{LOOK}\n{go}\n```", *begins, has_one_call=True).tool_calls == ONE


def test_a_call_without_its_marks_follows_thinking() -> None:
    text = f"<think>\nwell {LOOK}\n</think>\n\n{LOOK}"
    assert whole(text, "<think>", "<tool_call>") == AnswerParts("", f"well {LOOK}", ONE)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"name": "look", "age": 3}',
        '{"name": "unknown", "arguments": {}}',
        f"{LOOK} says where",
        f"see {LOOK}",
        f"```json\n{LOOK}\n```\nThat is how.",
        f"```python\n{LOOK}\n```",
        '```json\n{"name": "unknown", "arguments": {}}\n```',
        '```json\n{"name": "look", "arguments": {"at": "c',
        "a\n\n```",
        "``",
    ],
)
def test_json_that_is_no_call_of_a_tool_is_said(text: str) -> None:
    assert whole(text, "<tool_call>") == AnswerParts(text)


def test_marks_behind_a_fence_that_is_text_are_found() -> None:
    text = f"```json\n{LOOK}\n```\n<tool_call>{LOOK}</tool_call>"
    assert whole(text, "<tool_call>") == AnswerParts(f"```json\n{LOOK}\n```", None, ONE)


def test_thinking_saying_and_calling_follow_each_other() -> None:
    text = f"<think>\nwell\n</think>\n\nI look.\n<tool_call>\n{LOOK}\n</tool_call>"
    assert whole(text, "<think>", "<tool_call>") == AnswerParts("I look.", "well", ONE)


def test_a_mark_inside_of_an_argument_is_part_of_it() -> None:
    call = {"name": "look", "arguments": {"at": 'a </tool_call> "b" <tool_call>'}}
    found = whole(f"<tool_call>{json.dumps(call)}</tool_call>", "<tool_call>")
    assert found == AnswerParts("", None, called(("look", call["arguments"])))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("see <tool_call>\nno\n</tool_call>\n yes", "<tool_call>"),
        ('a\n\n<tool_call>{"name": "look", "arguments": {"at"', "<tool_call>"),
        ('<tool_call>{"name": "lo</tool_call> b', "<tool_call>"),
        ("<function=look>no</function> b", "<function="),
        ("[TOOL_CALLS]", "[TOOL_CALLS]"),
        ("a [TOOL_CALLS] and so on", "[TOOL_CALLS]"),
        ("[TOOL_CALLS]look[ARGS]{no}", "[TOOL_CALLS]"),
        ('[TOOL_CALLS]look[ARGS]{"at"', "[TOOL_CALLS]"),
        ('<|python_tag|>print("cat")', "<|python_tag|>"),
        ('{"at": {"name": "look"}}', "<|python_tag|>"),
        ('{"name": "unknown", "parameters": {}} b', "<|python_tag|>"),
        ('see {"name": "look", "parameters": {}}', "<|python_tag|>"),
        ("<|tool_call>call:look{at}<tool_call|> b", "<|tool_call>"),
        ("```tool_code\nimport os\n```\nb", "```tool_code"),
    ],
)
def test_what_is_no_call_is_said_as_it_stands(text: str, begin: str) -> None:
    assert whole(text, begin) == AnswerParts(text)


def test_a_whole_call_is_found_behind_one_that_is_none() -> None:
    text = f"<tool_call>no</tool_call>\n<tool_call>{LOOK}</tool_call>"
    assert whole(text, "<tool_call>") == AnswerParts("<tool_call>no</tool_call>", None, ONE)
    text = f'<tool_call>{{"name": "lo</tool_call>\n<tool_call>{LOOK}</tool_call>'
    assert whole(text, "<tool_call>").tool_calls == ONE


def test_without_tools_marks_of_calls_are_text() -> None:
    for text in (f"<tool_call>{LOOK}</tool_call>", LOOK, f"```json\n{LOOK}\n```"):
        assert whole(text, "<tool_call>", tools=None) == AnswerParts(text)


def test_an_answer_held_to_calls_is_read_without_marks() -> None:
    text = f'[{LOOK}, {{"name": "go", "arguments": {{}}}}]'
    assert whole(text, "<tool_call>", is_all_calls=True) == AnswerParts("", None, TWO)
    assert whole(f"well</think>\n{LOOK}", "<think>", is_thinking=True, is_all_calls=True) == AnswerParts(
        "", "well", ONE
    )
    cut = text[:-5]
    assert whole(cut, "<tool_call>", is_all_calls=True) == AnswerParts(cut)


def test_parts_come_as_soon_as_they_are_certain() -> None:
    splitter = AnswerSplitter(AnswerForm.named(["<think>", "<tool_call>"]), tools=TOOLS)
    assert splitter.add("<think>\nwe") == [ReasoningDelta("we")]
    assert splitter.add("ll </thi") == [ReasoningDelta("ll")]
    assert splitter.add("nk> I") == [TextDelta("I")]
    assert splitter.add(" look. <tool") == [TextDelta(" look.")]
    assert splitter.add(f"_call>{LOOK}") == []
    (made,) = splitter.add("</tool_call>")
    assert isinstance(made, ToolCallDelta) and made.index == 0 and made.call.name == "look"
    assert splitter.finish() == []


def test_what_may_be_a_call_is_held_only_until_it_cannot_be_one() -> None:
    splitter = AnswerSplitter(AnswerForm.named(["<tool_call>"]), tools=TOOLS)
    assert splitter.add('{"name": "lo') == []
    assert "".join(part.text for part in splitter.add("g") if isinstance(part, TextDelta)) == '{"name": "log'
    assert splitter.add('", "a": 1}') == [TextDelta('", "a": 1}')]
    assert splitter.add(" see:\n``") == [TextDelta(" see:")]
    assert "".join(part.text for part in splitter.add("`py") if isinstance(part, TextDelta)) == "\n```py"
    assert splitter.add(f"\n```\n```json\n{LOOK}") == [TextDelta("\n```")]
    (made,) = splitter.finish()
    assert isinstance(made, ToolCallDelta) and made.call.name == "look"


def test_every_call_has_an_id_of_its_own() -> None:
    assert new_call_id() != new_call_id() and new_call_id().startswith("call_")


WORDS = ("<think>", "</think>", "[THINK]", "\n", " ", "a", "{", "}", '"', ";", LOOK, '{"name": "go"}', "[ARGS]", "look")
WORDS += ("```", "```json\n", '{"name": "look", "arguments": {"at')
WORDS += tuple(mark for marks in CALLS for mark in marks.tokens)


@settings(max_examples=300, deadline=None)
@given(strategies.data())
def test_any_cut_of_any_text_gives_the_same_parts(data: Any) -> None:
    text = "".join(data.draw(strategies.lists(strategies.sampled_from(WORDS), max_size=12)))
    begins = data.draw(strategies.lists(strategies.sampled_from(["<think>", *(marks.begin for marks in CALLS)])))
    how = {"is_thinking": "<think>" in begins and data.draw(strategies.booleans())}
    places = sorted(data.draw(strategies.lists(strategies.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *places, len(text)])]
    parts, expected = split(pieces, *begins, **how)
    assert expected == split([text], *begins, **how)[1]
    assert joined(parts).content == expected.content and joined(parts).tool_calls == expected.tool_calls


@settings(max_examples=200, deadline=None)
@given(strategies.lists(strategies.sampled_from([word for word in WORDS if "think" not in word.lower()]), max_size=9))
def test_without_a_call_nothing_is_lost(words: list[str]) -> None:
    text = "".join(words)
    _, found = split([text], *(marks.begin for marks in CALLS))
    assert found.tool_calls or found.content == text


@given(
    strategies.lists(
        strategies.sampled_from(["<think>", "</think>", "well", " ", "\n", "yes", "<thi", LOOK, "<tool_call>"])
    ),
    strategies.integers(1, 9),
)
def test_what_is_said_knows_where_in_the_answer_it_stood(words: list[str], size: int) -> None:
    text = "".join(words)
    begun: list[int] = []

    def found(start: int, end: int) -> tuple[tuple[int, int], ...]:
        begun.append(start)
        return ((0, end - start),)

    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    said = [part for part in split(pieces, "<think>", "<tool_call>", guessed=found)[0] if isinstance(part, TextDelta)]
    assert [text[start : start + len(each.text)] for start, each in zip(begun, said, strict=True)] == [
        each.text for each in said
    ]
    assert all(each.guessed == ((0, len(each.text)),) for each in said)
    assert begun == sorted(begun)
