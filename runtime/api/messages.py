"""Bodies of Anthropic's /v1/messages: what they ask, told as a body of OpenAI's chat endpoint, and the rest refused.

Source: Anthropic's API reference, "Create a Message" and "Count tokens". As there, an answer thinks only where a body
asks for it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.api.questions import CHAT, LiveTerms, Question, parse_question
from runtime.config import UNLIMITED_THINKING
from runtime.errors import PromptFileError
from runtime.prompts.json_values import describe, number_value, option_value, text_value, whole_number
from runtime.prompts.prompt_file import LineDefaults, Message

MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "stream")
_KEYS = (
    "model",
    "messages",
    "max_tokens",
    "system",
    "stop_sequences",
    *_SAMPLING_KEYS,
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
)
_NOTES = ("metadata", "service_tier", "inference_geo", "context_management", "cache_control")
"""What clients say that has no meaning here: all of a conversation is kept while it fits."""
_MAX_TEMPERATURE = 1.0
_BILLING_LINE = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n?", re.IGNORECASE)
"""Some agents begin the system prompt with it. It differs in each request, so nothing behind it could be reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTerms:
    """What holds for a body that came over a connection."""

    common: LineDefaults
    request_id: str
    usual_seed: int
    model: str
    is_counted: bool = False
    """Whether only the tokens of its prompt are asked for."""


def parse_message_question(body: Mapping[str, Any], terms: MessageTerms) -> Question:
    """Return what a body asks. Raises PromptFileError or OptionError."""
    for key in body:
        if key not in (*_KEYS, *_NOTES):
            raise PromptFileError(
                f"body has the key {describe(key)}, which is not done here; leave it out (for {MESSAGES} the keys are "
                f"{', '.join(_KEYS)})"
            )
    body = {key: value for key, value in body.items() if value is not None}
    if not terms.is_counted and "max_tokens" not in body:
        raise PromptFileError("max_tokens is missing; give the most tokens that the answer may have")
    messages = _turns(body)
    begun = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    chat = {
        "messages": messages,
        **({"max_tokens": whole_number(body["max_tokens"], "max_tokens", least=1)} if "max_tokens" in body else {}),
        **_sampling(body),
        **_tools(body),
        **_thinking(body, terms.common),
        **_output(body),
    }
    question = parse_question(
        chat,
        CHAT,
        terms.common,
        request_id=terms.request_id,
        usual_seed=terms.usual_seed,
        live=LiveTerms(model=terms.model, max_tokens=1),
    )
    return question if begun is None else _continued(question, begun)


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chat body says of sampling; the range of the temperature is this API's own."""
    told = {key: body[key] for key in _SAMPLING_KEYS if key in body}
    if "temperature" in told:
        number_value(told["temperature"], "temperature", least=0, most=_MAX_TEMPERATURE)
    if body.get("stop_sequences"):
        told["stop"] = list(option_value(tuple[str, ...], body["stop_sequences"], "stop_sequences"))
        if not all(told["stop"]):
            raise PromptFileError("stop_sequences holds an empty text; leave it out")
    return told


def _continued(question: Question, begun: str) -> Question:
    """Return a question whose answer writes on where its last turn ends."""
    (request,) = question.requests
    assert request.messages is not None
    if request.is_all_calls or request.response_schema is not None:
        raise PromptFileError(
            "the last turn is the assistant's, which cannot be continued as JSON; end with a user turn"
        )
    messages = (*request.messages, Message("assistant", begun))
    return replace(question, requests=(replace(request, messages=messages, is_continued=True),))


def _turns(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the turns of a chat body: the system turn, if there is one, and those of the conversation."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise PromptFileError(f"messages is {describe(given)}; it must be a list of turns with role and content")
    turns: list[dict[str, Any]] = []
    system = _system(body.get("system", ""))
    if system:
        turns.append({"role": "system", "content": system})
    for number, turn in enumerate(given, start=1):
        name = f"turn {number} of messages"
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
            raise PromptFileError(f"{name} must be an object with content and the role user or assistant")
        blocks = _blocks(turn.get("content"), name)
        told = _said_by_user(blocks, name) if turn["role"] == "user" else [_said_by_assistant(blocks, name)]
        for each in told:
            if turns and turns[-1]["role"] == each["role"] == "user":
                turns[-1]["content"] += "\n" + each["content"]  # as the API joins turns of one role
            else:
                turns.append(each)
    return turns


def _system(value: object) -> str:
    """Return the system prompt without the line that differs each time."""
    blocks = _blocks(value, "system") if value != "" else []
    texts = [_text(block, "system") for block in blocks]
    if texts:
        texts[0] = _BILLING_LINE.sub("", texts[0], count=1) if _BILLING_LINE.match(texts[0]) else texts[0]
    return "\n".join(text for text in texts if text)


def _blocks(content: object, name: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise PromptFileError(f"the content of {name} is {describe(content)}; it must be text or a list of blocks")
    return content


def _text(block: Mapping[str, Any], name: str) -> str:
    kind = block.get("type")
    if kind != "text":
        raise PromptFileError(f"{name} holds a block of type {describe(kind)}; only text is answered, so leave it out")
    return text_value(block.get("text"), f"the text of {name}")


def _said_by_user(blocks: Sequence[Mapping[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Yield the results of tools, each a turn, and what the user said besides."""
    texts = []
    for block in blocks:
        if block.get("type") == "tool_result":
            inner = _blocks(block.get("content", ""), f"a tool_result of {name}")
            content = "\n".join(_text(each, f"a tool_result of {name}") for each in inner)
            call_id = text_value(block.get("tool_use_id"), f"tool_use_id of {name}")
            yield {"role": "tool", "tool_call_id": call_id, "content": content}
        else:
            texts.append(_text(block, name))
    if texts:
        yield {"role": "user", "content": "\n".join(texts)}


def _said_by_assistant(blocks: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(text_value(block.get("thinking"), f"the thinking of {name}"))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input", {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            texts.append(_text(block, name))
    turn["content"] = "\n".join(texts)
    if calls:
        turn["tool_calls"] = calls
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    return turn


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chat body says of tools."""
    told: dict[str, Any] = {}
    if "tools" in body:
        tools = body["tools"]
        if not isinstance(tools, list):
            raise PromptFileError(f"tools is {describe(tools)}; it must be a list of tools")
        told["tools"] = [_tool(tool, f"tool {number}") for number, tool in enumerate(tools, start=1)]
    if "tool_choice" in body:
        told |= _choice(body["tool_choice"])
    return told


def _tool(tool: object, name: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        kind = f" of type {describe(tool['type'])}" if isinstance(tool, dict) and "type" in tool else ""
        raise PromptFileError(
            f"{name}{kind} is not done here; give name, description and input_schema, or leave it out"
        )
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _choice(choice: object) -> dict[str, Any]:
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(kind, str) or kind not in (*kinds, "tool"):
        raise PromptFileError(
            f"tool_choice is {describe(choice)}; it must be an object of type {', '.join(kinds)} or tool"
        )
    told: dict[str, Any] = {"tool_choice": kinds.get(kind)}
    if kind == "tool":
        function = {"name": text_value(choice.get("name"), "the name of tool_choice")}
        told["tool_choice"] = {"type": "function", "function": function}
    if choice.get("disable_parallel_tool_use") is not None:
        told["parallel_tool_calls"] = choice["disable_parallel_tool_use"] is not True
    return told


def _thinking(body: Mapping[str, Any], common: LineDefaults) -> dict[str, Any]:
    """Return what a chat body says of thinking: none, unless this body or whoever started the server asks for it."""
    given = body.get("thinking")
    if given is None:
        return {"thinking_budget": 0} if "thinking_budget" in common.unchosen else {}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "enabled":
        return {"thinking_budget": whole_number(given.get("budget_tokens"), "budget_tokens of thinking", least=1)}
    if kind not in ("disabled", "adaptive"):
        raise PromptFileError(
            f"thinking is {describe(given)}; it must be an object of type enabled, adaptive or disabled"
        )
    return {"thinking_budget": 0 if kind == "disabled" else UNLIMITED_THINKING}


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    config = body.get("output_config", {})
    if not isinstance(config, dict) or not config.keys() <= {"effort", "format"}:
        raise PromptFileError(f"output_config is {describe(config)}; it must be an object with effort or format")
    told: dict[str, Any] = {}
    if config.get("effort") is not None and body.get("thinking", {}).get("type") in ("enabled", "adaptive"):
        told["reasoning_effort"] = text_value(config["effort"], "effort of output_config")
    if (shape := config.get("format")) is not None:
        schema = shape.get("schema") if isinstance(shape, dict) and shape.get("type") == "json_schema" else None
        if not isinstance(schema, dict):
            raise PromptFileError(
                f"format is {describe(shape)}; it must be an object of type json_schema with a schema"
            )
        told["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return told


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call as an object."""
    found: dict[str, Any] = json.loads(text)
    return found
