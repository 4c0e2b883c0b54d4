"""OpenAI's batch format, in and out: lines for /v1/chat/completions and /v1/completions, and what answers them.

Source: OpenAI's API reference, "Batch" (the request input object and the request output object), and the bodies of the
two endpoints. What a body asks for is done or refused in a sentence that costs this line alone; nothing is passed over.
A line that says nothing of temperature is sampled as the API samples, at 1, and one without seed has one of its own,
made of its `custom_id`: lines with the same prompt differ, and each is the same text in every run.
"""

import json
import time
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.config import SamplingParams, options_of
from runtime.errors import OptionError, PromptFileError
from runtime.events import Finished, GenerationStatistics, TokenLogprobs
from runtime.prompts.headless import PromptItem, PromptResult
from runtime.prompts.json_values import describe, encodable, option_value, text_value, whole_number
from runtime.prompts.prompt_file import (
    MOST_TOP_LOGPROBS,
    LineDefaults,
    Message,
    PromptLines,
    PromptRequest,
    parse_messages,
    parse_object,
    parse_prompts,
    unused_id,
    with_system,
)
from runtime.prompts.result_format import OPENAI, OWN_FORMAT, ResultFormat
from runtime.prompts.token_records import completion_logprobs, content_logprobs
from runtime.tokenizer.json_schema import ANY_OBJECT, grammar_of, json_library

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_CHOICES = 128
_LINE_KEYS = ("custom_id", "method", "url", "body")
_SAMPLING_KEYS = ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
_SHARED_KEYS = ("model", *_SAMPLING_KEYS, "max_tokens", "n", "logprobs", "stream")
_BODY_KEYS: Mapping[str, tuple[str, ...]] = {
    CHAT: ("messages", *_SHARED_KEYS, "max_completion_tokens", "top_logprobs", "response_format"),
    COMPLETIONS: ("prompt", *_SHARED_KEYS),
}
_MOST_LOGPROBS: Mapping[str, int] = {CHAT: MOST_TOP_LOGPROBS, COMPLETIONS: 5}
_SCHEMA_KEYS = ("name", "description", "schema", "strict")
_OPENAI_TEMPERATURE = 1.0
_FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length", "stopped": "stop"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What a sound line asks."""

    url: str
    model: str
    num_choices: int
    requests: tuple[PromptRequest, ...]
    """One for each choice; until ids are given, the first alone, with the line's `custom_id` as its id."""


def read_prompts_or_batch(
    path: str | Path,
    defaults: SamplingParams,
    *,
    system: str | None = None,
    is_raw: bool = False,
    unchosen: Collection[str] = (),
) -> tuple[list[PromptItem], ResultFormat]:
    """Read a prompt file as `read_prompts` does, or a .jsonl file in OpenAI's batch format; return how it is answered.

    Which of the two it is, is what its first JSON object says. Raises PromptFileError as `read_prompts` does.
    """
    common = LineDefaults(params=defaults, unchosen=frozenset(unchosen), system=system, is_raw=is_raw)
    file = PromptLines.read(path)
    if file.is_jsonl and _is_batch(file):
        return _parse_batch(file, common)
    return [*parse_prompts(file, common)], OWN_FORMAT


def _is_batch(file: PromptLines) -> bool:
    for _, line in file.lines:
        try:
            fields = parse_object(line)
        except PromptFileError:
            continue
        return "custom_id" in fields or "body" in fields
    return False


def _parse_batch(file: PromptLines, common: LineDefaults) -> tuple[list[PromptItem], ResultFormat]:
    custom_ids: dict[int, str] = {}
    line_number_of_id: dict[str, int] = {}
    found: dict[int, _Question | PromptItem] = {}
    for number, line in file.lines:
        try:
            fields = parse_object(line)
            custom_ids[number] = unused_id(_custom_id(fields), number, line_number_of_id=line_number_of_id)
            found[number] = _question(fields, custom_ids[number], number, common)
        except (PromptFileError, OptionError) as error:
            found[number] = file.bad_line(number, custom_ids.get(number, str(number)), error)
    taken = set(line_number_of_id)
    items: list[PromptItem] = []
    questions: dict[int, _Question] = {}
    for number, question in found.items():
        if isinstance(question, _Question):
            questions[number] = _with_all_choices(question, taken)
            items += questions[number].requests
        else:
            items.append(question)
    return items, OpenAiFormat(questions, custom_ids)


def _custom_id(fields: Mapping[str, Any]) -> str:
    if "custom_id" not in fields:
        raise PromptFileError(f"custom_id is missing; a line of a batch has the keys {', '.join(_LINE_KEYS)}")
    value = fields["custom_id"]
    if not isinstance(value, str) or not value:
        raise PromptFileError(f"custom_id is {describe(value)}; it must be text that is not empty")
    return encodable(value, "custom_id")


def _question(fields: Mapping[str, Any], custom_id: str, line_number: int, common: LineDefaults) -> _Question:
    for key in fields:
        if key not in _LINE_KEYS:
            raise PromptFileError(f"unknown key {describe(key)}; a batch's keys are {', '.join(_LINE_KEYS)}")
    if fields.get("method") != "POST":
        raise PromptFileError(f"method is {describe(fields.get('method'))}; it must be 'POST'")
    url = fields.get("url")
    if not isinstance(url, str) or url not in _BODY_KEYS:
        raise PromptFileError(f"url is {describe(url)}; it must be one of {', '.join(_BODY_KEYS)}")
    if not isinstance(fields.get("body"), dict):
        raise PromptFileError(f"body is {describe(fields.get('body'))}; it must be an object")
    body = _known_keys(fields["body"], url)
    request = PromptRequest(
        id=custom_id,
        messages=_messages(body, common) if url == CHAT else None,
        prompt=_prompt(body) if url == COMPLETIONS else None,
        top_logprobs=_top_logprobs(body, url),
        response_schema=_response_schema(body),
        line_number=line_number,
        **_choices_of_text(body, custom_id, common),
    )
    if request.response_schema is not None:
        json_library()
        grammar_of(request.response_schema)
    return _Question(
        url=url,
        model=text_value(body.get("model"), "model"),
        num_choices=whole_number(body.get("n", 1), "n", least=1, most=MAX_CHOICES),
        requests=(request,),
    )


def _known_keys(body: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return what the body says; null is as if it were not there."""
    known = _BODY_KEYS[url]
    for key in body:
        if key not in known:
            raise PromptFileError(
                f"body has the key {describe(key)}, which is not done here; leave it out (for {url} the keys are "
                f"{', '.join(known)})"
            )
    stream = body.get("stream")
    if stream is not None and stream is not False:
        raise PromptFileError(f"stream is {describe(stream)}; a batch is answered whole, so leave it out")
    return {key: value for key, value in body.items() if value is not None}


def _messages(body: Mapping[str, Any], common: LineDefaults) -> tuple[Message, ...]:
    if common.is_raw:
        raise PromptFileError(f"a raw prompt has no chat template; use {COMPLETIONS}, or drop --raw")
    value = body.get("messages")
    turns = [_plain_turn(turn) for turn in value] if isinstance(value, list) else value
    return with_system(parse_messages(turns), common.system)


def _plain_turn(turn: object) -> object:
    """Return a turn in our words: text parts as one text, as chat templates join them, and a developer as system."""
    if not isinstance(turn, dict):
        return turn
    if turn.get("role") == "developer":
        turn = {**turn, "role": "system"}
    parts = turn.get("content")
    if isinstance(parts, list) and parts and all(map(_is_text_part, parts)):
        turn = {**turn, "content": "".join(part["text"] for part in parts)}
    return turn


def _is_text_part(part: object) -> bool:
    is_text = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
    return is_text and isinstance(part["text"], str)  # type: ignore[index]


def _prompt(body: Mapping[str, Any]) -> str:
    value = body.get("prompt")
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], str):
            raise PromptFileError("prompt is a list; it must hold one text, so write a line for each prompt")
        (value,) = value
    prompt = text_value(value, "prompt")
    if not prompt.strip():
        raise PromptFileError("prompt is empty; write something to write on from")
    return prompt


def _choices_of_text(body: Mapping[str, Any], custom_id: str, common: LineDefaults) -> dict[str, Any]:
    """Return `params` and `unchosen` of a request."""
    kinds = options_of(SamplingParams)
    chosen = {key: option_value(kinds[key].kind, body[key], key) for key in _SAMPLING_KEYS if key in body}
    lengths = [key for key in ("max_tokens", "max_completion_tokens") if key in body]
    if len(lengths) > 1:
        raise PromptFileError("max_tokens stands beside max_completion_tokens; keep one")
    for key in lengths:
        chosen["max_new_tokens"] = whole_number(body[key], key, least=1)
    usual = {"temperature": _OPENAI_TEMPERATURE, "seed": zlib.crc32(custom_id.encode())}
    usual = {key: value for key, value in usual.items() if key in common.unchosen}
    params = replace(common.params, **{**usual, **chosen})
    return {"params": params, "unchosen": common.unchosen.difference(chosen)}


def _top_logprobs(body: Mapping[str, Any], url: str) -> int | None:
    """Return how many likeliest tokens are to be listed, 0 for the answer's own alone; None where none are."""
    most = _MOST_LOGPROBS[url]
    if url == COMPLETIONS:
        return whole_number(body["logprobs"], "logprobs", least=0, most=most) if "logprobs" in body else None
    is_wanted = body.get("logprobs", False)
    if not isinstance(is_wanted, bool):
        raise PromptFileError(f"logprobs is {describe(is_wanted)}; it must be true or false")
    num_listed = whole_number(body.get("top_logprobs", 0), "top_logprobs", least=0, most=most)
    if "top_logprobs" in body and not is_wanted:
        raise PromptFileError("top_logprobs stands without logprobs; set logprobs to true, or leave both out")
    return num_listed if is_wanted else None


def _response_schema(body: Mapping[str, Any]) -> str | None:
    """Return the JSON schema that is asked for, `{}` for any object; None where the answer is text."""
    wanted = body.get("response_format", {"type": "text"})
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    named = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if kind in ("text", "json_object") and wanted.keys() == {"type"}:
        return None if kind == "text" else ANY_OBJECT
    if kind == "json_schema" and wanted.keys() == {"type", "json_schema"} and isinstance(named, dict):
        return _schema(named)
    raise PromptFileError(
        f"response_format is {describe(wanted)}; it must be an object of type text, json_object or json_schema"
    )


def _schema(named: Mapping[str, Any]) -> str:
    for key in named:
        if key not in _SCHEMA_KEYS:
            raise PromptFileError(f"json_schema has the key {describe(key)}; its keys are {', '.join(_SCHEMA_KEYS)}")
    text_value(named.get("name"), "the name of json_schema")
    if not isinstance(named.get("strict"), bool | None):
        raise PromptFileError(f"strict is {describe(named['strict'])}; it must be true or false")
    schema = named.get("schema", {})
    if not isinstance(schema, dict):
        raise PromptFileError(f"schema is {describe(schema)}; it must be an object")
    return json.dumps(schema)


def _with_all_choices(question: _Question, taken: set[str]) -> _Question:
    """Return the question with a request for each choice, of an id that no other of the file has, and the next seed.

    `taken` are the ids of the file's lines, and takes these.
    """
    if question.num_choices == 1:
        return question
    (first,) = question.requests
    requests = []
    for index in range(question.num_choices):
        choice_id = f"{first.id} [{index}]"
        while choice_id in taken:
            choice_id += "'"
        taken.add(choice_id)
        params = replace(first.params, seed=first.params.seed + index)
        requests.append(replace(first, id=choice_id, params=params))
    return replace(question, requests=tuple(requests))


class OpenAiFormat:
    """One line of OpenAI's batch output for each line of its input, once all of its choices are there."""

    kind = OPENAI

    def __init__(self, questions: Mapping[int, _Question], custom_ids: Mapping[int, str]) -> None:
        """Both by line number; `custom_ids` of every line that has one of its own."""
        self._questions = questions
        self._custom_ids = custom_ids
        self._line_number_of_id = {custom_id: number for number, custom_id in custom_ids.items()}
        self._gathered: dict[int, dict[str, PromptResult]] = {}

    def record(self, result: PromptResult) -> dict[str, Any] | None:
        number = result.line_number
        question = self._questions.get(number)
        if question is None:
            return self._failure(number, "invalid_request", result.error or "")
        gathered = self._gathered.setdefault(number, {})
        gathered[result.id] = result
        if len(gathered) < len(question.requests):
            return None
        results = [self._gathered[number][request.id] for request in question.requests]
        del self._gathered[number]
        answers = [each.finished for each in results if each.finished is not None]
        if len(answers) < len(results):
            return self._failure(number, "server_error", next(each.error for each in results if each.error) or "")
        response = {"status_code": 200, "request_id": uuid.uuid4().hex, "body": _body(question, answers)}
        return self._line(number, response, None)

    def ids_answered_by(self, record: Mapping[str, Any]) -> Collection[str]:
        question = self._questions.get(self._line_number_of_id.get(record["custom_id"], 0))
        return () if question is None else [request.id for request in question.requests]

    def _failure(self, number: int, code: str, message: str) -> dict[str, Any]:
        return self._line(number, None, {"code": code, "message": message})

    def _line(self, number: int, response: Any, error: Any) -> dict[str, Any]:
        custom_id = self._custom_ids.get(number)
        return {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }


def _body(question: _Question, answers: Sequence[Finished]) -> dict[str, Any]:
    is_chat = question.url == CHAT
    costs = GenerationStatistics.total(answer.statistics for answer in answers)
    once = replace(costs, prompt_tokens=answers[0].statistics.prompt_tokens)  # however many choices it has
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": question.model,
        "choices": list(_choices(question, answers)),
        "usage": once.usage,
    }


def _choices(question: _Question, answers: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    for index, answer in enumerate(answers):
        if question.url == CHAT:
            content: dict[str, Any] = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        else:
            content = {"text": answer.text}
        yield {
            "index": index,
            **content,
            "logprobs": None if answer.logprobs is None else _logprobs(question, answer.logprobs),
            "finish_reason": _FINISH_REASONS[answer.finish_reason],
        }


def _logprobs(question: _Question, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    if question.url == CHAT:
        return {"content": content_logprobs(logprobs), "refusal": None}
    return completion_logprobs(logprobs, num_before=len(question.requests[0].prompt or ""))
