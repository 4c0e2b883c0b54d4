"""Which tools an answer may call, must call or may not, as a request says it, whatever the API."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import PromptFileError
from runtime.prompts.json_values import describe
from runtime.prompts.prompt_file import parse_tools

_WORDS = ("none", "auto", "required")
_SHARED = ("$defs", "definitions")
"""Where schemas keep what they refer to, from their root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTerms:
    """What of tools a request is to have."""

    tools: str | None = None
    """As `parse_tools` gives them; None where none may be called."""
    schema: str | None = None
    """The JSON schema of calls that the whole answer is held to; None where it may say something else."""
    has_one_call: bool = False
    """Whether the answer ends with its first call."""


def parse_tool_terms(body: Mapping[str, Any]) -> ToolTerms:
    """Return what `tools`, `tool_choice` and `parallel_tool_calls` of a chat body say. Raises PromptFileError."""
    tools = parse_tools(body["tools"]) if "tools" in body else None
    is_parallel = body.get("parallel_tool_calls", True)
    if not isinstance(is_parallel, bool):
        raise PromptFileError(f"parallel_tool_calls is {describe(is_parallel)}; it must be true or false")
    choice = body.get("tool_choice", "auto")
    name = _named(choice)
    if name is None and choice not in _WORDS:
        raise PromptFileError(
            f"tool_choice is {describe(choice)}; it must be one of {', '.join(_WORDS)}, or an object naming a function"
        )
    if tools is None:
        if name is not None or choice == "required":
            raise PromptFileError("tool_choice asks for a call and there are no tools; give tools, or leave it out")
        return ToolTerms()
    if choice == "none":
        return ToolTerms()
    functions = [tool["function"] for tool in json.loads(tools)]
    if name is not None:
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise PromptFileError(f"tool_choice names {describe(name)}, which is none of the tools; name one of them")
    is_one = name is not None or not is_parallel
    schema = _schema_of_calls(functions, is_one=is_one) if name is not None or choice == "required" else None
    return ToolTerms(tools=tools, schema=schema, has_one_call=is_one)


def _named(choice: object) -> str | None:
    """Return the name of the function that must be called, if one must."""
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _schema_of_calls(functions: Sequence[Mapping[str, Any]], *, is_one: bool) -> str:
    """Return the schema of one call, or of a list of at least one; what parameters refer to moves to its root."""
    shared: dict[str, dict[str, Any]] = {}
    calls = []
    for function in functions:
        parameters = dict(function["parameters"])
        for key in _SHARED:
            for name, schema in parameters.pop(key, {}).items():
                if shared.setdefault(key, {}).setdefault(name, schema) != schema:
                    raise PromptFileError(
                        f"two tools have a schema {describe(name)} in {key}, and they differ; give them other names, "
                        "so that a call can be demanded"
                    )
        properties = {"name": {"const": function["name"]}, "arguments": {"type": "object", **parameters}}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = one if is_one else {"type": "array", "minItems": 1, "items": one}
    return json.dumps({**schema, **shared})
