"""Calls without marks are found where a text is nothing else; text that cannot become one is not waited for."""

import json

import pytest
from hypothesis import given, strategies

from runtime.tokenizer.tool_texts import KnownTools
from runtime.tokenizer.unmarked_calls import UnmarkedCalls, read_unmarked

TOOLS = KnownTools({"look": {}, "look_up": {}, "go": {}})
LOOK = '{"name": "look", "arguments": {"at": "cat"}}'
GO = '{\n  "parameters": {},\n  "name": "go"\n}'
ONE, BOTH = (("look", {"at": "cat"}),), (("look", {"at": "cat"}), ("go", {}))
OPEN = UnmarkedCalls((), is_whole=False)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (LOOK, ONE),
        (f"{LOOK}\n\n", ONE),
        (f"{LOOK}\n{GO}", BOTH),
        (f"```json\n{LOOK}\n```", ONE),
        (f"```\n{LOOK}\n```\n", ONE),
        (f"```JSON {LOOK}```", ONE),
        (f"```json\n{LOOK}", ONE),
        (f"```json\n{LOOK}\n{GO}\n```", BOTH),
        (f"```json\n{LOOK}\n```\n\n```\n{GO}\n```", BOTH),
        ('{"name": "look", "arguments": "{\\"at\\": \\"cat\\"}"}', ONE),
        ('{"name": "look", "arguments": {"at": "``` } {"}}', (("look", {"at": "``` } {"}),)),
    ],
)
def test_a_text_of_calls_alone_is_read(text: str, calls: object) -> None:
    assert read_unmarked(text, TOOLS) == UnmarkedCalls(calls, is_whole=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{'name'",
        '{"at"',
        '{"name": 1',
        '{"name": "loo"',
        '{"name": "look_at',
        '{"name": "fly", "arguments": {}}',
        '{"name": "look"}',
        '{"name": "look", "at"',
        '{"name": "look", "arguments": []}',
        '{"name": "look", "arguments": {}, "id": 1}',
        '{"name": "look", "arguments": {}, "parameters": {}}',
        '{"name": "look", "arguments": {"at": cat}}',
        '{"name": "look", "arguments": "cat"}',
        '{"look": {"at": "cat"}}',
        f"{LOOK} is how",
        f"{LOOK}\n```",
        f"{LOOK},",
        f"```python\n{LOOK}",
        "```js\n{",
        "```x",
        "````",
        f"```json\n[{LOOK}]",
        "```json\n```",
        f"```json\n{LOOK}\n``` is",
        f"```json\n{LOOK}\nis",
        f"```json\n{LOOK}\n```\n{LOOK}",
    ],
)
def test_what_is_no_call_is_known_at_once(text: str) -> None:
    assert read_unmarked(text, TOOLS) is None


def test_what_may_become_a_call_is_waited_for() -> None:
    for text in (
        "{",
        '{ "na',
        '{"name" : "look',
        '{"name": "look",',
        '{"parameters":',
        "`",
        "``",
        "```",
        "```js",
        "```\n",
    ):
        assert read_unmarked(text, TOOLS) == OPEN, text
    assert read_unmarked(LOOK[:-1], TOOLS) == OPEN
    for text in (f"```json\n{LOOK}\n``", f"{LOOK}\n{{", f"```json\n{LOOK}\n```\n``"):
        assert read_unmarked(text, TOOLS) == UnmarkedCalls(ONE, is_whole=False), text  # type: ignore[arg-type]


def test_deep_json_is_no_call() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert read_unmarked(f'{{"name": "look", "arguments": {{"at": {deep}}}}}', TOOLS) is None


VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=9),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    strategies.sampled_from(sorted(TOOLS.schemas)),
    strategies.dictionaries(strategies.text(max_size=5), VALUES, max_size=3),
    strategies.sampled_from([None, 2]),
    strategies.booleans(),
)
def test_no_beginning_of_a_call_is_taken_for_text(
    name: str, arguments: dict[str, object], indent: int | None, is_fenced: bool
) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent)
    text = f"```json\n{text}\n```\n" if is_fenced else text
    assert all(read_unmarked(text[:size], TOOLS) is not None for size in range(1, len(text)))
    assert read_unmarked(text, TOOLS) == UnmarkedCalls(((name, arguments),), is_whole=True)
