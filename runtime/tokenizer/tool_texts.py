"""Calls of tools as families of models write them: each reader takes what stands between two marks, and is strict.

Sources: the chat templates of the models, which show them how to write a call.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Call = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "args")
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>(?=\s*(?:<function=|$))", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=|$))", re.DOTALL)
_QUOTE = '<|"|>'
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True, slots=True)
class KnownTools:
    """The tools of a request, by name the JSON schemas of their parameters."""

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: str | None) -> "KnownTools":
        """Read them from a request's `tools`."""
        functions = [tool["function"] for tool in json.loads(tools or "[]")]
        return cls({function["name"]: function["parameters"] for function in functions})

    def properties(self, name: str) -> Mapping[str, Any]:
        """Return the schemas of a tool's parameters, in their order; none where the tool is unknown."""
        found = self.schemas.get(name, {}).get("properties", {})
        return found if isinstance(found, dict) else {}


def calls_of_json(text: str, tools: KnownTools) -> list[Call] | None:
    """Return the calls of JSON values that stand one behind the other, each a call or a list of calls; None if not."""
    decoder, position, calls = json.JSONDecoder(), 0, list[Call]()
    text = text.strip()
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return None
        found = calls_of_value(value, tools)
        if found is None:
            return None
        calls += found
        position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,;"))
    return calls or None


def calls_of_value(value: Any, tools: KnownTools) -> list[Call] | None:
    """Return the calls that a JSON value is; None if it is none."""
    if isinstance(value, list):
        each = [calls_of_value(item, tools) for item in value]
        return None if None in each or not each else [call for calls in each for call in calls or ()]
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    if name is None:
        (only,) = value if len(value) == 1 else ("",)
        return [(only, value[only])] if only in tools.schemas and isinstance(value[only], dict) else None
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    return [(name, arguments)] if isinstance(arguments, dict) and name else None


def calls_of_xml(text: str, tools: KnownTools) -> list[Call] | None:
    """Return calls as Qwen3-Coder, Qwen 3.5 and Seed-OSS write them: `<function=F><parameter=P>`, values as they are.

    A value is JSON unless its parameter is known to be text, or it is no JSON.
    """
    calls, end = list[Call](), 0
    for function in _FUNCTION.finditer(text):
        name, inner = function[1].strip(), function[2].strip()
        if inner.startswith("{"):  # JSON within, as Functionary writes it
            given = calls_of_json(f'{{"name": {json.dumps(name)}, "arguments": {inner}}}', tools)
            if given is None:
                return None
            calls, end = [*calls, *given], function.end()
            continue
        matches = list(_PARAMETER.finditer(inner))
        if text[end : function.start()].strip() or "".join(_PARAMETER.split(inner)[::3]).strip():
            return None
        properties = tools.properties(name)
        found = {match[1].strip(): _value(match[2], properties.get(match[1].strip())) for match in matches}
        calls.append((name, found))
        end = function.end()
    return calls if calls and not text[end:].strip() else None


def _value(text: str, schema: Any) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def calls_of_json_or_xml(text: str, tools: KnownTools) -> list[Call] | None:
    """Return calls in either form: models that share a mark differ in what they write behind it."""
    return (calls_of_xml if text.lstrip().startswith("<function=") else calls_of_json)(text, tools)


def calls_of_python(text: str, tools: KnownTools) -> list[Call] | None:
    """Return calls as Gemma 3 writes them: Python's, of literal arguments, perhaps printed; or JSON."""
    text = text.strip()
    if text.startswith(("{", "[")) and (calls := calls_of_json(text, tools)) is not None:
        return calls
    try:
        statements = ast.parse(text).body
        return [_python_call(statement, tools) for statement in statements] or None
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _python_call(statement: ast.stmt, tools: KnownTools) -> Call:
    """Return a call. Raises ValueError for any other statement."""
    value = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "print" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, ast.Call):
        raise ValueError("no call")
    name = ast.unparse(value.func)
    names = list(tools.properties(name))
    if len(value.args) > len(names) or any(keyword.arg is None for keyword in value.keywords):
        raise ValueError("arguments without a name")
    arguments = {name: ast.literal_eval(given) for name, given in zip(names, value.args, strict=False)}
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in value.keywords}
    json.dumps(arguments)
    return name, arguments


def calls_of_gemma(text: str, tools: KnownTools) -> list[Call] | None:
    """Return the call that Gemma 4 writes: `call:NAME{key:value,...}`, texts between `<|"|>`."""
    match = re.match(r"\s*call:([\w.:/-]+)(?=\{)", text)
    if match is None:
        return None
    try:
        value, end = _gemma_value(text, match.end())
    except (ValueError, RecursionError):
        return None
    return [(match[1], value)] if not text[end:].strip() else None


def _gemma_value(text: str, position: int) -> tuple[Any, int]:
    """Return the value at a position, and where it ends. Raises ValueError."""
    if text.startswith(_QUOTE, position):
        end = text.index(_QUOTE, position + len(_QUOTE))
        return text[position + len(_QUOTE) : end], end + len(_QUOTE)
    if text[position : position + 1] == "{":
        items = list(_gemma_items(text, position + 1, "}"))
        return {key: value for key, value, _ in items[:-1]}, items[-1][2]
    if text[position : position + 1] == "[":
        items = list(_gemma_items(text, position + 1, "]"))
        return [value for _, value, _ in items[:-1]], items[-1][2]
    if (number := _NUMBER.match(text, position)) is not None:
        return json.loads(number[0]), number.end()
    word = re.compile(r"\w+").match(text, position)
    if word is None or word[0].lower() not in _WORDS:
        raise ValueError("no value")
    return _WORDS[word[0].lower()], word.end()


def _gemma_items(text: str, position: int, closing: str) -> Iterator[tuple[str, Any, int]]:
    """Yield key, value and end of each item of an object or a list (without keys), and last where that ends."""
    while not text.startswith(closing, position):
        key = ""
        if closing == "}":
            is_quoted = text.startswith(_QUOTE, position)
            end = text.index(_QUOTE, position + 1) + len(_QUOTE) if is_quoted else text.index(":", position)
            key, position = text[position:end].replace(_QUOTE, ""), end
            if not text.startswith(":", position):
                raise ValueError("no value behind a key")
            position += 1
        value, position = _gemma_value(text, position)
        yield key.strip(), value, position
        if text.startswith(",", position):
            position += 1
        elif not text.startswith(closing, position):
            raise ValueError("neither a further item nor the end")
    yield "", None, position + 1


def json_end(text: str, position: int) -> int | None:
    """Return where the object or list at a position ends, by its brackets and quotes; None while it is open."""
    depth, is_text, is_escaped = 0, False, False
    for index in range(position, len(text)):
        sign = text[index]
        if is_text:
            is_escaped, is_text = (not is_escaped and sign == "\\"), is_escaped or sign != '"'
        elif sign == '"':
            is_text = True
        elif sign in "{[":
            depth += 1
        elif sign in "}]":
            depth -= 1
            if depth <= 0:
                return index + 1
    return None


def is_open(text: str) -> bool:
    """Return whether a call, as far as it stands here, ends inside of a text, so that a mark there is part of it."""
    stripped = text.strip()
    if stripped.startswith("<function="):
        return "</function>" not in stripped or stripped.count("<parameter=") > stripped.count("</parameter>")
    is_text = is_escaped = False
    for sign in stripped:
        if is_text:
            is_escaped, is_text = (not is_escaped and sign == "\\"), is_escaped or sign != '"'
        else:
            is_text = sign == '"'
    return is_text and stripped.startswith(("{", "["))


def texts_of(calls: Sequence[Call]) -> Iterator[tuple[str, str]]:
    """Yield name and arguments of each call, these as JSON text."""
    for name, arguments in calls:
        yield name, json.dumps(arguments, ensure_ascii=False)
