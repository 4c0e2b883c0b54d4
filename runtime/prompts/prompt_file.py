"""Prompt files: .txt with one prompt a line, or .jsonl with one JSON object a line.

A line that cannot be used becomes a `BadLine`, so that one typo costs one answer; a file that cannot be used as a
whole raises PromptFileError. Whether the tokenizer has a chat template is for the session to say.
"""

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from profiles.files import parse_json_text
from runtime.config import SamplingParams, options_of
from runtime.errors import OptionError, PromptFileError
from runtime.prompts.json_values import describe, encodable, option_value, text_value, whole_number

ROLES = ("system", "user", "assistant", "tool")
MOST_TOP_LOGPROBS = 20
_PARAMS_OPTIONS = options_of(SamplingParams)
_LINE_KEYS = ("prompt", "messages", "id", "system", "tools", "thinking", "top_logprobs", *_PARAMS_OPTIONS)
_TURN_KEYS: Mapping[str, tuple[str, ...]] = {
    "system": (),
    "user": (),
    "assistant": ("tool_calls", "reasoning_content"),
    "tool": ("tool_call_id", "name"),
}
"""Beside role and content."""
_TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What an assistant wants done by a tool, whose result follows in a turn of the tool."""

    id: str
    name: str
    arguments: str
    """A JSON object as text."""

    def to_record(self) -> dict[str, Any]:
        """Return it in the shape of OpenAI's API."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of ROLES."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's turn calls, behind its content."""
    reasoning_content: str | None = None
    """What an assistant thought before it said `content`; most templates leave it out of later turns."""
    tool_call_id: str | None = None
    """Of a tool's turn: the call that it answers."""
    name: str | None = None
    """Of a tool's turn: the tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """One prompt to answer; exactly one of `messages`, `prompt` and `token_ids` is set."""

    id: str
    """Unique in its file; the line number where the line gives none."""
    messages: tuple[Message, ...] | None = None
    """A conversation; the tokenizer's chat template is applied to it. It ends with the user's turn or a tool's, or if
    it `is_continued` with the assistant's."""
    prompt: str | None = None
    """Raw text, tokenised as it stands."""
    token_ids: tuple[int, ...] | None = None
    """Tokens as they are, at least one."""
    params: SamplingParams = field(default_factory=SamplingParams)
    unchosen: frozenset[str] = frozenset()
    """Fields of `params` that nobody chose, so that the model's own generation settings may fill them."""
    top_logprobs: int | None = None
    """Likeliest tokens to list beside each token of the answer with their log-probabilities, 0: its own alone; None
    lists nothing."""
    response_schema: str | None = None
    """JSON schema that the answer is held to, as text; None leaves it free."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to the logit of each before anything else."""
    is_continued: bool = False
    """Whether the answer writes on where the last message, the assistant's, ends."""
    tools: str | None = None
    """Tools that the answer may call, as `parse_tools` gives them; only with `messages`."""
    thinking: bool | None = None
    """Whether the answer begins with thinking, as far as the chat template leaves a choice; None: as it does of
    itself."""
    reasoning_effort: str | None = None
    """How much is thought, in the template's own words ("none", "low", "high"); ignored where it knows of none."""
    wants_parts: bool = False
    """Whether thinking, what is said and calls of tools come apart from each other; otherwise all is one text."""
    wants_guesses: bool = False
    """Whether to tell which text trees had proposed, and which the target chose after them."""
    is_all_calls: bool = False
    """Whether `response_schema` is that of calls of tools, which the answer then is made of."""
    has_one_call: bool = False
    """Whether the answer ends with its first call, if it `wants_parts`."""
    line_number: int = 1
    """Line of the prompt file, from 1."""

    def __post_init__(self) -> None:
        given = (self.messages, self.prompt, self.token_ids)
        assert given.count(None) == 2, "a request has messages, a raw prompt or tokens"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of the prompt file that cannot be used."""

    line_number: int
    """From 1."""
    id: str
    """The line's own id where it is readable and unique, otherwise its line number."""
    error: str
    """One sentence that names the file, the line and what to change."""


def read_requests(path: str | Path, params: SamplingParams) -> list[PromptRequest]:
    """Read every prompt of a file as `read_prompts` does, but raise PromptFileError at the first bad line.

    For files that are measured with, where no line may be missing.
    """
    requests = []
    for item in read_prompts(path, params):
        if isinstance(item, BadLine):
            raise PromptFileError(item.error)
        requests.append(item)
    return requests


def read_prompts(
    path: str | Path,
    defaults: SamplingParams,
    *,
    system: str | None = None,
    is_raw: bool = False,
    unchosen: Collection[str] = (),
) -> list[PromptRequest | BadLine]:
    """Read every prompt of a .txt or .jsonl file, in order; `-` (standard input) and pipes read as .txt.

    `defaults` and `system` hold for lines that do not say otherwise; `is_raw` skips the chat template. `unchosen` are
    the fields of `defaults` that nobody chose.

    Raises:
        PromptFileError: the file is missing, unreadable, not UTF-8, of another kind, or holds no prompt.
    """
    common = LineDefaults(params=defaults, unchosen=frozenset(unchosen), system=system, is_raw=is_raw)
    return parse_prompts(PromptLines.read(path), common)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDefaults:
    """What holds for lines that do not say otherwise; raises PromptFileError for a system turn that is not UTF-8."""

    params: SamplingParams
    unchosen: frozenset[str] = frozenset()
    """Fields of `params` that nobody chose."""
    system: str | None = None
    is_raw: bool = False
    """Whether prompts go without chat template."""

    def __post_init__(self) -> None:
        if self.system is not None:
            encodable(self.system, "--system")


@dataclass(frozen=True, slots=True)
class PromptLines:
    """The lines of a prompt file that are not blank."""

    name: str
    """What sentences call the file."""
    is_jsonl: bool
    lines: tuple[tuple[int, str], ...]
    """Each with its number, from 1."""

    @classmethod
    def read(cls, path: str | Path) -> "PromptLines":
        """Read a file, standard input for `-`. Raises PromptFileError as `read_prompts` does."""
        name = "standard input" if str(path) == "-" else str(path)
        is_jsonl = _is_jsonl(path)
        numbered = enumerate(read_text(path, name).split("\n"), start=1)
        lines = tuple((number, line) for number, line in numbered if line.strip())
        if not lines:
            raise PromptFileError(f"{name} holds no prompt; write one prompt on each line")
        return cls(name, is_jsonl, lines)

    def bad_line(self, number: int, item_id: str, error: Exception) -> BadLine:
        """Return what is said of a line that cannot be used."""
        return BadLine(number, item_id, f"{self.name} line {number}: {_shortened(str(error))}")


def parse_prompts(file: PromptLines, common: LineDefaults) -> list[PromptRequest | BadLine]:
    """Return what the lines ask, in order."""
    items: list[PromptRequest | BadLine] = []
    line_number_of_id: dict[str, int] = {}
    for line_number, line in file.lines:
        item_id = str(line_number)
        try:
            fields = _parse_fields(line) if file.is_jsonl else {"prompt": line.removesuffix("\r")}
            item_id = unused_id(own_id(fields, line_number), line_number, line_number_of_id=line_number_of_id)
            messages = _conversation(fields, system=common.system, is_raw=common.is_raw)
            prompt = fields["prompt"] if messages is None else None
            given = {key: fields[key] for key in _PARAMS_OPTIONS if key in fields}
            chosen = {key: option_value(_PARAMS_OPTIONS[key].kind, value, key) for key, value in given.items()}
            thinking = _thinking(fields, is_raw=messages is None)
            if thinking and common.params.thinking_budget == 0:
                chosen = {"thinking_budget": None, **chosen}
            items.append(
                PromptRequest(
                    id=item_id,
                    messages=messages,
                    prompt=prompt,
                    params=replace(common.params, **chosen),
                    unchosen=common.unchosen.difference(chosen),
                    tools=_tools(fields, is_raw=messages is None),
                    thinking=thinking,
                    top_logprobs=_top_logprobs(fields),
                    line_number=line_number,
                )
            )
        except (PromptFileError, OptionError) as error:
            items.append(file.bad_line(line_number, item_id, error))
    return items


def _is_jsonl(path: str | Path) -> bool:
    suffix = Path(path).suffix.lower()
    if suffix not in (".txt", ".jsonl") and Path(path).is_file():  # a pipe has no name to go by
        raise PromptFileError(
            f"{path} is neither .txt (one prompt a line) nor .jsonl (one JSON object a line); rename it"
        )
    return suffix == ".jsonl"


def read_text(path: str | Path, name: str) -> str:
    """Return the text of a UTF-8 file, or of stdin for `-`. Raises PromptFileError, which calls the file `name`."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise PromptFileError(
            f"{name} cannot be read: {error.strerror or error}; give a readable prompt file"
        ) from error
    try:
        return content.decode("utf-8-sig")  # editors on Windows open a file with a byte order mark
    except UnicodeDecodeError as error:
        line_number = content.count(b"\n", 0, error.start) + 1
        raise PromptFileError(
            f"{name} is not UTF-8: line {line_number} holds the byte 0x{content[error.start]:02x}; save it as UTF-8"
        ) from error


def parse_object(line: str) -> dict[str, Any]:
    """Return the JSON object of a line. Raises PromptFileError."""
    try:
        fields = parse_json_text(line.encode())
    except ValueError as error:  # also a number with thousands of digits
        raise PromptFileError(f"not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PromptFileError('expected a JSON object such as {"prompt": "..."}')
    return fields


def _top_logprobs(fields: Mapping[str, Any]) -> int | None:
    key = "top_logprobs"
    return whole_number(fields[key], key, least=0, most=MOST_TOP_LOGPROBS) if key in fields else None


def _tools(fields: Mapping[str, Any], *, is_raw: bool) -> str | None:
    if is_raw and "tools" in fields:
        raise PromptFileError("a raw prompt has no chat template, and so no tools; leave tools out, or drop --raw")
    return parse_tools(fields["tools"]) if "tools" in fields else None


def _thinking(fields: Mapping[str, Any], *, is_raw: bool) -> bool | None:
    if "thinking" not in fields:
        return None
    thinking = fields["thinking"]
    if is_raw:
        raise PromptFileError("a raw prompt has no chat template, which thinking is for; leave it out, or drop --raw")
    if not isinstance(thinking, bool):
        raise PromptFileError(f"thinking is {describe(thinking)}; it must be true or false")
    return thinking


def _parse_fields(line: str) -> dict[str, Any]:
    fields = parse_object(line)
    for key in fields:
        if key not in _LINE_KEYS:
            raise PromptFileError(f"unknown key {describe(key)}; the keys are {', '.join(_LINE_KEYS)}")
    return fields


def own_id(fields: Mapping[str, Any], line_number: int) -> str:
    """Return the id that a line gives itself, else its number. Raises PromptFileError."""
    value = fields.get("id", line_number)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise PromptFileError(f"id is {describe(value)}; it must be text or a whole number")
    return encodable(str(value), "id")


def unused_id(item_id: str, line_number: int, *, line_number_of_id: dict[str, int]) -> str:
    """Return the line's id, and record it. Raises PromptFileError where an earlier line has it."""
    if item_id in line_number_of_id:
        raise PromptFileError(
            f"the id {describe(item_id)} is already that of line {line_number_of_id[item_id]}; ids must differ"
        )
    line_number_of_id[item_id] = line_number
    return item_id


def _conversation(fields: Mapping[str, Any], *, system: str | None, is_raw: bool) -> tuple[Message, ...] | None:
    """Return the line's turns, system turn first; None when the prompt is raw text."""
    if ("prompt" in fields) == ("messages" in fields):
        raise PromptFileError("expected either prompt or messages, and only one of them")
    own_system = text_value(fields["system"], "system") if "system" in fields else None
    if is_raw and ("messages" in fields or own_system is not None):
        raise PromptFileError(
            "a raw prompt has no chat template; use prompt without messages and system, or drop --raw"
        )
    if "prompt" in fields:
        prompt = text_value(fields["prompt"], "prompt")
        if not prompt.strip():
            raise PromptFileError("prompt is empty; write something to answer")
        if is_raw:
            return None
        messages: tuple[Message, ...] = (Message("user", prompt),)
    else:
        messages = parse_messages(fields["messages"])
    if messages[0].role == "system" and own_system is not None:
        raise PromptFileError("system stands beside messages that already open with a system turn; keep one")
    return with_system(messages, system if own_system is None else own_system)


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return the turns behind a system turn, if there is one to set before them and they do not open with theirs."""
    return messages if messages[0].role == "system" or system is None else (Message("system", system), *messages)


def parse_messages(value: object) -> tuple[Message, ...]:
    """Return the turns of a conversation that waits for an answer. Raises PromptFileError."""
    if not isinstance(value, list) or not value:
        raise PromptFileError(f"messages is {describe(value)}; it must be a list of turns with role and content")
    messages = _with_names([_message(turn, position) for position, turn in enumerate(value, start=1)])
    if any(message.role == "system" for message in messages[1:]):
        raise PromptFileError("messages has a system turn after its first turn; move it to the front")
    if messages[-1].role not in ("user", "tool"):
        raise PromptFileError(
            f"the last turn of messages is of the role {messages[-1].role}; it must end with a user turn, or a tool's"
        )
    return messages


def _message(turn: object, position: int) -> Message:
    name = f"turn {position} of messages"
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise PromptFileError(f"{name} must be an object with the keys role and content")
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise PromptFileError(f"{name} has the role {describe(role)}; it must be one of {', '.join(ROLES)}")
    if unknown := turn.keys() - {"role", "content", *_TURN_KEYS[role]}:
        known = ", ".join(("role", "content", *_TURN_KEYS[role]))
        raise PromptFileError(f"{name} has the key {describe(min(unknown))}; it may have {known}, and no other")
    if (kind := _other_part(turn["content"])) is not None:
        raise PromptFileError(f"{name} holds a part of type {describe(kind)}; only text is answered, so leave it out")
    calls = _tool_calls(turn.get("tool_calls"), name)
    content = "" if turn["content"] is None and calls else text_value(turn["content"], f"the content of {name}")
    reasoning, call_id, tool_name = (
        text_value(turn[key], f"{key} of {name}") if turn.get(key) is not None else None
        for key in ("reasoning_content", "tool_call_id", "name")
    )
    return Message(role, content, calls, reasoning_content=reasoning, tool_call_id=call_id, name=tool_name)


def _tool_calls(value: object, turn_name: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise PromptFileError(f"tool_calls of {turn_name} is {describe(value)}; it must be a list of calls")
    return tuple(_tool_call(call, f"call {position} of {turn_name}") for position, call in enumerate(value, start=1))


def _tool_call(call: object, name: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        raise PromptFileError(
            f'{name} must be an object like {{"id": "1", "type": "function", "function": {{"name": ..., "arguments": '
            "...}}"
        )
    arguments = function.get("arguments", "")
    text = json.dumps(arguments) if isinstance(arguments, dict) else text_value(arguments, f"arguments of {name}")
    try:
        is_object = isinstance(parse_json_text((text or "{}").encode()), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise PromptFileError(f"arguments of {name} is {describe(arguments)}; it must be a JSON object, as text")
    tool_name = text_value(function.get("name"), f"the function's name of {name}")
    return ToolCall(text_value(call.get("id"), f"id of {name}"), tool_name, text or "{}")


def _with_names(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the turns, those of tools with the name of the tool whose call they answer."""
    name_of_call: dict[str, str] = {}
    named = []
    for position, message in enumerate(messages, start=1):
        name_of_call |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            if message.tool_call_id not in name_of_call:
                raise PromptFileError(
                    f"turn {position} of messages answers the tool call {describe(message.tool_call_id)}, which no "
                    "turn before it made; give the tool_call_id of one"
                )
            message = replace(message, name=message.name or name_of_call[message.tool_call_id])
        named.append(message)
    return tuple(named)


def parse_tools(value: object) -> str | None:
    """Return tools in OpenAI's shape as JSON text, in the form that chat templates expect; None where there is none.

    Each has a name, a description and parameters (a JSON schema), empty where it was given without. Raises
    PromptFileError.
    """
    if not isinstance(value, list):
        raise PromptFileError(f"tools is {describe(value)}; it must be a list of functions")
    tools = [_tool(tool, f"tool {position}") for position, tool in enumerate(value, start=1)]
    names = [tool["name"] for tool in tools]
    if (repeated := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise PromptFileError(f"two tools are called {describe(repeated)}; names must differ")
    shaped = [{"type": "function", "function": tool} for tool in tools]
    return encodable(json.dumps(shaped, ensure_ascii=False), "tools") if tools else None


def _tool(value: object, name: str) -> dict[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(function, dict):
        raise PromptFileError(
            f'{name} must be an object like {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        )
    tool_name = function.get("name")
    if not isinstance(tool_name, str) or not _TOOL_NAME.fullmatch(tool_name):
        raise PromptFileError(
            f"{name} is called {describe(tool_name)}; a name is 1 to 128 letters, digits and signs of _ . : / -"
        )
    description = text_value(function.get("description") or "", f"the description of {name}")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise PromptFileError(f"parameters of {name} is {describe(parameters)}; it must be a JSON schema")
    return {"name": tool_name, "description": description, "parameters": parameters}


def _other_part(content: object) -> object:
    """Return the type of the first part of a turn that is an image, sound or the like; None if there is none."""
    parts = content if isinstance(content, list) else []
    kinds = (part.get("type", "text") for part in parts if isinstance(part, dict))
    return next((kind for kind in kinds if kind != "text"), None)


def _shortened(sentence: str) -> str:
    """Return the sentence without the middle of what somebody wrote into the file, if it is long."""
    return sentence if len(sentence) <= 500 else f"{sentence[:250]} ... {sentence[-200:]}"
