"""Bodies of OpenAI's /v1/chat/completions and /v1/completions: what they ask, or a sentence of what cannot be done.

Source: OpenAI's API reference, the bodies of the two endpoints. What a body asks for is done or refused in a sentence;
nothing is passed over. One that says nothing of temperature is sampled as the API samples, at 1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.config import SamplingParams, options_of
from runtime.errors import PromptFileError
from runtime.prompts.json_values import describe, option_value, text_value, whole_number
from runtime.prompts.prompt_file import (
    MOST_TOP_LOGPROBS,
    LineDefaults,
    Message,
    PromptRequest,
    parse_messages,
    with_system,
)
from runtime.tokenizer.json_schema import ANY_OBJECT, grammar_of, json_library

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_CHOICES = 128
_SAMPLING_KEYS = ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
_SHARED_KEYS = ("model", *_SAMPLING_KEYS, "max_tokens", "n", "logprobs", "stream")
BODY_KEYS: Mapping[str, tuple[str, ...]] = {
    CHAT: ("messages", *_SHARED_KEYS, "max_completion_tokens", "top_logprobs", "response_format"),
    COMPLETIONS: ("prompt", *_SHARED_KEYS),
}
"""What a body may say, by path of the endpoint."""
_MOST_LOGPROBS: Mapping[str, int] = {CHAT: MOST_TOP_LOGPROBS, COMPLETIONS: 5}
_SCHEMA_KEYS = ("name", "description", "schema", "strict")
_OPENAI_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a sound body asks."""

    url: str
    """Path of the endpoint, one of BODY_KEYS."""
    model: str
    num_choices: int
    requests: tuple[PromptRequest, ...]
    """One for each choice; until `with_all_choices` the first alone."""


def parse_question(
    body: Mapping[str, Any], url: str, common: LineDefaults, *, request_id: str, usual_seed: int, line_number: int = 1
) -> Question:
    """Return what a body asks; `common` holds where it says nothing, and `usual_seed` where nobody chose one.

    Raises PromptFileError or OptionError.
    """
    body = _known_keys(body, url)
    request = PromptRequest(
        id=request_id,
        messages=_messages(body, common) if url == CHAT else None,
        prompt=_prompt(body) if url == COMPLETIONS else None,
        top_logprobs=_top_logprobs(body, url),
        response_schema=_response_schema(body),
        line_number=line_number,
        **_choices_of_text(body, usual_seed, common),
    )
    if request.response_schema is not None:
        json_library()
        grammar_of(request.response_schema)
    return Question(
        url=url,
        model=text_value(body.get("model"), "model"),
        num_choices=whole_number(body.get("n", 1), "n", least=1, most=MAX_CHOICES),
        requests=(request,),
    )


def _known_keys(body: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return what the body says; null is as if it were not there."""
    known = BODY_KEYS[url]
    for key in body:
        if key not in known:
            raise PromptFileError(
                f"body has the key {describe(key)}, which is not done here; leave it out (for {url} the keys are "
                f"{', '.join(known)})"
            )
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


def _choices_of_text(body: Mapping[str, Any], usual_seed: int, common: LineDefaults) -> dict[str, Any]:
    """Return `params` and `unchosen` of a request."""
    kinds = options_of(SamplingParams)
    chosen = {key: option_value(kinds[key].kind, body[key], key) for key in _SAMPLING_KEYS if key in body}
    lengths = [key for key in ("max_tokens", "max_completion_tokens") if key in body]
    if len(lengths) > 1:
        raise PromptFileError("max_tokens stands beside max_completion_tokens; keep one")
    for key in lengths:
        chosen["max_new_tokens"] = whole_number(body[key], key, least=1)
    usual = {"temperature": _OPENAI_TEMPERATURE, "seed": usual_seed}
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


def with_all_choices(question: Question, taken: set[str]) -> Question:
    """Return the question with a request for each choice, of an id that no other has, and the next seed.

    `taken` are the ids that are in use already, and takes these.
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
