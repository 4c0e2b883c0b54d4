"""Reads calls that a model writes without the marks of its template: as JSON in a fence, or bare, at an answer's end.

Qwen2.5-Coder often does. Read strictly, since such text may as well be meant for the person: only a tool of the request
can be called like that, with no further key and no further word.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.tokenizer.tool_texts import Call, KnownTools, calls_of_value, json_end

_FENCE = "```"
_OPENING = re.compile(r"```(?:json)?\s*(?=\{)", re.IGNORECASE)
_BEGUN_OPENING = re.compile(r"`{1,2}|```(?:j|js|jso|json)?", re.IGNORECASE)
_ARGUMENTS = ("arguments", "parameters")
_KEYS = tuple({"name", each} for each in _ARGUMENTS)


@dataclass(frozen=True, slots=True)
class UnmarkedCalls:
    """A text of calls, as far as it stands."""

    calls: tuple[Call, ...]
    is_whole: bool
    """Whether it may end here."""


def read_unmarked(text: str, tools: KnownTools) -> UnmarkedCalls | None:
    """Return the calls of a text that begins with a fence or a brace; None once it can no longer be calls alone."""
    calls = list[Call]()
    is_bare, is_inside = text.startswith("{"), False
    while text := text.strip():
        if text.startswith("{") and (is_bare or is_inside):
            end = json_end(text, 0)
            if end is None:
                return UnmarkedCalls(tuple(calls), is_whole=False) if _may_become_call(text, tools) else None
            call = _call(text[:end], tools)
            if call is None:
                return None
            calls.append(call)
        elif is_inside:
            if not text.startswith(_FENCE):
                return UnmarkedCalls(tuple(calls), is_whole=False) if _FENCE.startswith(text) else None
            end, is_inside = len(_FENCE), False
        elif not is_bare and (opening := _OPENING.match(text)) is not None:
            end, is_inside = opening.end(), True
        elif not is_bare and _BEGUN_OPENING.fullmatch(text):
            return UnmarkedCalls(tuple(calls), is_whole=False)
        else:
            return None
        text = text[end:]
    return UnmarkedCalls(tuple(calls), is_whole=bool(calls))


def _call(text: str, tools: KnownTools) -> Call | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = calls_of_value(value, tools) if value.keys() in _KEYS else None
    return found[0] if found and found[0][0] in tools.schemas else None


def _may_become_call(text: str, tools: KnownTools) -> bool:
    """Return whether an object that is still open begins as a call does, white space aside."""
    squeezed = "".join(text.split())
    return any(squeezed.startswith(head) or head.startswith(squeezed) for head in _heads(tools))


def _heads(tools: KnownTools) -> Iterator[str]:
    for key in _ARGUMENTS:
        for begin in ("{", '"'):  # some write the arguments as a text of JSON
            yield f'{{"{key}":{begin}'
            for name in tools.schemas:
                yield f'{{"name":"{name}","{key}":{begin}'
