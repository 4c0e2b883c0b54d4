"""Calls of tools are read as each family writes them; anything else is no call."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies

from runtime.tokenizer.tool_texts import (
    Call,
    KnownTools,
    calls_of_gemma,
    calls_of_json,
    calls_of_json_or_xml,
    calls_of_python,
    calls_of_xml,
    is_open,
    json_end,
    texts_of,
)

PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}, "count": {"type": "integer"}}}
TOOLS = KnownTools.of(json.dumps([{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}]))
LOOK = ("look", {"at": "5", "count": 2})


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (calls_of_json, '\n{"name": "look", "arguments": {"at": "5", "count": 2}}\n'),
        (calls_of_json, '{"name": "look", "parameters": {"at": "5", "count": 2}}'),
        (calls_of_json, '{"type": "function", "function": {"name": "look", "arguments": {"at": "5", "count": 2}}}'),
        (calls_of_json, '{"name": "look", "arguments": "{\\"at\\": \\"5\\", \\"count\\": 2}"}'),
        (calls_of_json, '[{"tool_call_id": "0", "tool_name": "look", "parameters": {"at": "5", "count": 2}}]'),
        (calls_of_json, '[{"look": {"at": "5", "count": 2}}]'),
        (calls_of_json_or_xml, '{"name": "look", "arguments": {"at": "5", "count": 2}}'),
        (
            calls_of_json_or_xml,
            "\n<function=look>\n<parameter=at>\n5\n</parameter>\n<parameter=count>\n2\n</parameter>\n</function>",
        ),
        (calls_of_xml, "<function=look><parameter=at>5</parameter><parameter=count>2</parameter></function>\n"),
        (calls_of_xml, '<function=look>{"at": "5", "count": 2}</function>'),
        (calls_of_gemma, 'call:look{at:<|"|>5<|"|>,count:2}'),
        (calls_of_python, 'look(at="5", count=2)'),
        (calls_of_python, 'print(look("5", 2))'),
        (calls_of_python, '{"name": "look", "arguments": {"at": "5", "count": 2}}'),
    ],
)
def test_a_call_is_read_in_every_form(read: Callable[[str, KnownTools], list[Call] | None], text: str) -> None:
    assert read(text, TOOLS) == [LOOK]


def test_several_calls_stand_one_behind_the_other() -> None:
    one = '{"name": "a", "arguments": {}}'
    assert calls_of_json(f"{one}\n{one}", TOOLS) == calls_of_json(f"[{one}, {one}]", TOOLS) == [("a", {}), ("a", {})]
    assert calls_of_json(f"{one}; {one}", TOOLS) == [("a", {}), ("a", {})]
    assert calls_of_xml("<function=a></function>\n<function=b>\n</function>", TOOLS) == [("a", {}), ("b", {})]
    assert calls_of_python("a()\nb(x=[1])", TOOLS) == [("a", {}), ("b", {"x": [1]})]
    assert calls_of_json('{"name": "a"}', TOOLS) == [("a", {})]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (calls_of_json, ""),
        (calls_of_json, "look"),
        (calls_of_json, '{"name": "look", "arguments": {"at": "5"'),
        (calls_of_json, '{"name": "look", "arguments": [5]}'),
        (calls_of_json, '{"name": "look", "arguments": "5"}'),
        (calls_of_json, '{"name": "look", "arguments": "no"}'),
        (calls_of_json, '{"name": 5, "arguments": {}}'),
        (calls_of_json, '{"other": {"at": "5"}}'),
        (calls_of_json, '[{"name": "look"}, 5]'),
        (calls_of_json, "[]"),
        (calls_of_json, '{"name": "look"} and so on'),
        (calls_of_json, "[" * 100_000),
        (calls_of_xml, "<function=look><parameter=at>5</function>"),
        (calls_of_xml, "<function=look>5</function>"),
        (calls_of_xml, "<function=look>{5}</function>"),
        (calls_of_xml, "<function=look></function> and so on"),
        (calls_of_xml, "look"),
        (calls_of_gemma, "call:look"),
        (calls_of_gemma, "call:look{at:5"),
        (calls_of_gemma, "call:look{at:five}"),
        (calls_of_gemma, "call:look{at}"),
        (calls_of_gemma, 'call:look{at:<|"|>5}'),
        (calls_of_gemma, "call:look{at:5 count:2}"),
        (calls_of_gemma, "call:look{at:5} and so on"),
        (calls_of_gemma, "call:look{a:" + "[" * 100_000),
        (calls_of_python, ""),
        (calls_of_python, "look(5, 2, 3)"),
        (calls_of_python, "look(at=cat)"),
        (calls_of_python, "look(at={1})"),
        (calls_of_python, "look(**cat)"),
        (calls_of_python, "import os"),
        (calls_of_python, "look("),
        (calls_of_python, "\0"),
    ],
)
def test_what_is_no_whole_call_is_none(read: Callable[[str, KnownTools], list[Call] | None], text: str) -> None:
    assert read(text, TOOLS) is None


def test_a_value_between_tags_is_text_where_its_parameter_is() -> None:
    """Qwen3-Coder writes values bare: a text of digits must stay text, and code keeps its lines."""
    text = "<function=look><parameter=at>\n\n  12\n\n</parameter><parameter=new>\n[1]\n</parameter></function>"
    assert calls_of_xml(text, TOOLS) == [("look", {"at": "\n  12\n", "new": [1]})]


def test_gemmas_values_are_read() -> None:
    text = 'call:f{a:{b:[1,-2.5e1,true],c:null},<|"|>d<|"|>:<|"|>x: {y}, "z"<|"|>,e:[],g:{}}'
    expected = {"a": {"b": [1, -25.0, True], "c": None}, "d": 'x: {y}, "z"', "e": [], "g": {}}
    assert calls_of_gemma(text, TOOLS) == [("f", expected)]


VALUES: Any = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = strategies.dictionaries(strategies.text(), VALUES, max_size=3)


@given(OBJECTS)
def test_arguments_come_back_as_they_were_written(arguments: dict[str, Any]) -> None:
    text = json.dumps({"name": "f", "arguments": arguments})
    calls = calls_of_json(text, TOOLS)
    assert calls == [("f", arguments)]
    ((name, written),) = texts_of(calls)
    assert name == "f" and json.loads(written) == arguments


@given(OBJECTS, strategies.text())
def test_the_end_of_an_object_is_found_and_no_sooner(value: dict[str, Any], behind: str) -> None:
    text = json.dumps(value)
    assert json_end(text + behind, 0) == len(text)
    assert all(json_end(text[:end], 0) is None for end in range(len(text)))


def test_a_mark_inside_of_a_text_is_part_of_it() -> None:
    assert is_open('{"name": "a", "arguments": {"b": "see ')
    assert is_open('{"name": "a\\"')
    assert not is_open('{"name": "a"')
    assert not is_open('say "')
    assert is_open("<function=a><parameter=b>see ") and not is_open("<function=a></function>")
