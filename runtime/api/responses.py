"""Bodies of OpenAI's /v1/responses: what they ask, told as a body of its chat endpoint, and the rest refused.

Source: OpenAI's API reference, "Create a model response". Nothing is stored: a conversation comes whole each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.api.questions import CHAT, LiveTerms, Question, parse_question
from runtime.errors import PromptFileError
from runtime.prompts.json_values import describe, text_value, whole_number
from runtime.prompts.prompt_file import LineDefaults

RESPONSES = "/v1/responses"
_SAMPLING_KEYS = ("temperature", "top_p", "stream", "parallel_tool_calls")
_KEYS = (
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    *_SAMPLING_KEYS,
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "truncation",
    "background",
)
_NOTES = (
    "store",
    "metadata",
    "user",
    "include",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "stream_options",
    "client_metadata",
)
"""What clients say that has no meaning here and changes no text."""
_STORED = ("previous_response_id", "conversation", "prompt")
_ROLES = ("user", "assistant", "system", "developer")
_USUAL_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseQuestion:
    """What a sound body asks, and what of it the answer repeats."""

    question: Question
    echoed: Mapping[str, Any]


def parse_response_question(
    body: Mapping[str, Any], common: LineDefaults, *, request_id: str, usual_seed: int, model: str
) -> ResponseQuestion:
    """Return what a body asks. Raises PromptFileError or OptionError."""
    body = {key: value for key, value in body.items() if value is not None}
    _check_keys(body)
    chat = {
        "messages": _turns(body),
        **{key: body[key] for key in _SAMPLING_KEYS if key in body},
        **_length(body),
        **_tools(body),
        **_reasoning(body),
        **_shape(body.get("text", {})),
    }
    live = LiveTerms(model=model, max_tokens=_USUAL_TOKENS)
    question = parse_question(chat, CHAT, common, request_id=request_id, usual_seed=usual_seed, live=live)
    params = question.requests[0].params
    text = body.get("text", {})
    echoed = {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "model": model,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": body.get("reasoning", {}).get("effort"), "summary": None},
        "store": False,
        "temperature": params.temperature,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": body.get("user"),
    }
    return ResponseQuestion(question=question, echoed=echoed)


def _length(body: Mapping[str, Any]) -> dict[str, Any]:
    key = "max_output_tokens"
    return {"max_completion_tokens": whole_number(body[key], key, least=1)} if key in body else {}


def _check_keys(body: Mapping[str, Any]) -> None:
    for key in body:
        if key in _STORED:
            raise PromptFileError(
                f"{key} names what was stored, and nothing is stored here; send the whole input instead"
            )
        if key not in (*_KEYS, *_NOTES):
            raise PromptFileError(
                f"body has the key {describe(key)}, which is not done here; leave it out (for {RESPONSES} the keys are "
                f"{', '.join(_KEYS)})"
            )
    if body.get("truncation", "disabled") != "disabled":
        raise PromptFileError(
            f"truncation is {describe(body['truncation'])}; it must be 'disabled': no turn is left out"
        )
    if body.get("background", False) is not False:
        raise PromptFileError(f"background is {describe(body['background'])}; it must be false: wait for the answer")


def _turns(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the turns of a chat body."""
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise PromptFileError(f"input is {describe(given)}; it must be text or a list of items")
    turns: list[dict[str, Any]] = []
    if "instructions" in body:
        turns.append({"role": "system", "content": text_value(body["instructions"], "instructions")})
    for number, item in enumerate(given, start=1):
        if not isinstance(item, dict):
            raise PromptFileError(f"item {number} of input is {describe(item)}; it must be an object")
        _add_item(turns, item, f"item {number} of input")
    return [_finished(turn) for turn in turns]


def _add_item(turns: list[dict[str, Any]], item: Mapping[str, Any], name: str) -> None:
    """Add an item to the turns: thinking, text and calls that follow each other are one turn of the assistant."""
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise PromptFileError(f"{name} has the role {describe(role)}; it must be one of {', '.join(_ROLES)}")
        content = _joined(item.get("content"), name)
        if role == "assistant":
            _assistant(turns)["content"] += content
        elif role != "user" and len(turns) == 1 and turns[0]["role"] == "system":
            turns[0]["content"] += "\n\n" + content
        else:
            turns.append({"role": "user" if role == "user" else "system", "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _assistant(turns).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _joined(output, name)
        turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        _assistant(turns)["reasoning_content"] = _joined(parts, name)
    else:
        raise PromptFileError(f"{name} is of type {describe(kind)}, which is not done here; leave it out")


def _assistant(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's turn that is being told, a new one where another turn came last."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _finished(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "reasoning_content" or value}


def _joined(content: object, name: str) -> str:
    """Return the text of an item's parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise PromptFileError(f"the content of {name} is {describe(content)}; it must be text or a list of parts")
    return "".join(_part_text(part, name) for part in content)


def _part_text(part: Mapping[str, Any], name: str) -> str:
    kind = part.get("type")
    if kind == "refusal":
        return text_value(part.get("refusal"), f"the refusal of {name}")
    if kind not in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        raise PromptFileError(f"{name} holds a part of type {describe(kind)}; only text is answered, so leave it out")
    return text_value(part.get("text"), f"the text of {name}")


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if "tools" in body:
        tools = body["tools"]
        if not isinstance(tools, list):
            raise PromptFileError(f"tools is {describe(tools)}; it must be a list of functions")
        told["tools"] = [_tool(tool, f"tool {number}") for number, tool in enumerate(tools, start=1)]
    choice = body.get("tool_choice")
    if choice is not None:
        is_named = isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice
        told["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}} if is_named else choice
    return told


def _tool(tool: object, name: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = describe(tool.get("type")) if isinstance(tool, dict) else describe(tool)
        raise PromptFileError(f"{name} is of type {kind}, which is not done here; only functions are, so leave it out")
    function = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _reasoning(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("reasoning", {})
    known: Sequence[str] = ("effort", "summary", "generate_summary", "context")
    if not isinstance(given, dict) or not given.keys() <= set(known):
        raise PromptFileError(f"reasoning is {describe(given)}; it must be an object with effort or summary")
    effort = given.get("effort")
    return {} if effort is None else {"reasoning_effort": text_value(effort, "effort of reasoning")}


def _shape(text: object) -> dict[str, Any]:
    """Return what a chat body says of the answer's form."""
    if not isinstance(text, dict) or not text.keys() <= {"format", "verbosity"}:
        raise PromptFileError(f"text is {describe(text)}; it must be an object with format")
    shape = text.get("format") or {"type": "text"}
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise PromptFileError(
            f"format of text is {describe(shape)}; it must be an object of type text, json_object or json_schema"
        )
    if kind == "json_schema":
        named = {key: value for key, value in shape.items() if key != "type" and value is not None}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"response_format": shape}
