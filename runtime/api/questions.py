"""Bodies of OpenAI's /v1/chat/completions and /v1/completions: what they ask, or a sentence of what cannot be done.

Source: OpenAI's API reference, the bodies of the two endpoints. What a body asks for is done or refused in a sentence;
nothing is passed over. One that says nothing of temperature is sampled as the API samples, at 1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.api.tools import parse_tool_terms
from runtime.config import SamplingParams, options_of
from runtime.errors import OptionError, PromptFileError
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
MAX_CHOICES, MAX_PROMPTS = 128, 1024
_SAMPLING_KEYS = ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
_SHARED_KEYS = ("model", *_SAMPLING_KEYS, "logit_bias", "max_tokens", "n", "logprobs", "stream")
_TOOL_KEYS = ("tools", "tool_choice", "parallel_tool_calls")
_THINKING_KEYS = ("reasoning_effort", "chat_template_kwargs", "thinking_budget")
"""The last is not OpenAI's, nor is the one before, in which clients of Qwen and others set `enable_thinking`."""
_THINKING_SWITCHES = ("enable_thinking", "thinking")
BODY_KEYS: Mapping[str, tuple[str, ...]] = {
    CHAT: (
        "messages",
        *_SHARED_KEYS,
        "max_completion_tokens",
        "top_logprobs",
        "response_format",
        *_TOOL_KEYS,
        *_THINKING_KEYS,
    ),
    COMPLETIONS: ("prompt", *_SHARED_KEYS),
}
"""What a body may say, by path of the endpoint."""
_OWN_SAMPLING_KEYS = ("top_k", "min_p", "repetition_penalty")
"""Not OpenAI's, but sent by many clients of other servers."""
_NOTES = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""What clients say that has no meaning here and changes no text."""
_LIVE_KEYS: Mapping[str, tuple[str, ...]] = {
    CHAT: ("stream_options", *_OWN_SAMPLING_KEYS, *_NOTES),
    COMPLETIONS: ("echo", "best_of", "stream_options", *_OWN_SAMPLING_KEYS, *_NOTES),
}
"""What one may say besides that comes over a connection."""
_MOST_BIAS = 100.0
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
    """Of each prompt."""
    requests: tuple[PromptRequest, ...]
    """One for each choice of each prompt, those of a prompt together; until `with_all_choices` the first of each.

    Where all choices of a prompt are one text, one stands for all of them.
    """
    num_copies: int = 1
    """Choices that each answer is given as."""
    is_streamed: bool = False
    has_usage: bool = False
    """Whether a stream ends with the tokens that it took."""
    is_echoed: bool = False
    """Whether each prompt stands before its answer, in text and log-probabilities."""
    is_answered: bool = True
    """Whether anything is to be written behind the prompts; else only they are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTerms:
    """What holds for bodies that come over a connection."""

    model: str
    """The model that answers, whatever a body calls it."""
    max_tokens: int
    """Where nobody chose a limit."""


def parse_question(
    body: Mapping[str, Any],
    url: str,
    common: LineDefaults,
    *,
    request_id: str,
    usual_seed: int,
    line_number: int = 1,
    live: LiveTerms | None = None,
) -> Question:
    """Return what a body asks; `common` holds where it says nothing, and `usual_seed` where nobody chose one.

    `live`: of one that came over a connection; None: it stands in a file. Raises PromptFileError or OptionError.
    """
    body = _known_keys(body, url, (*BODY_KEYS[url], *(() if live is None else _LIVE_KEYS[url])))
    is_echoed = _switch(body, "echo")
    usual = {"seed": usual_seed} if live is None else {"seed": usual_seed, "max_new_tokens": live.max_tokens}
    least = 0 if is_echoed else 1
    shared: dict[str, Any] = {
        "top_logprobs": _top_logprobs(body, url),
        "response_schema": _response_schema(body),
        "logit_bias": _logit_bias(body),
        "line_number": line_number,
        **_choices_of_text(body, usual, common, least_tokens=least),
    }
    if url == CHAT:
        prompts: list[dict[str, Any]] = [{"messages": _messages(body, common)}]
    else:
        prompts = _prompts(body)
    ids = [request_id] if len(prompts) == 1 else [f"{request_id} ({index})" for index in range(len(prompts))]
    if url == CHAT:
        shared |= {"wants_parts": True, **_thinking(body), **_tools(body, shared["response_schema"])}
    if shared["response_schema"] is not None:
        _check_schema(shared["response_schema"], is_of_calls=shared.get("is_all_calls", False))
    num_choices = whole_number(body.get("n", 1), "n", least=1, most=MAX_CHOICES)
    if body.get("best_of", num_choices) != num_choices:
        raise PromptFileError(
            f"best_of is {describe(body['best_of'])}; it must be as n, {num_choices}: none is rejected"
        )
    return Question(
        url=url,
        model=text_value(body.get("model"), "model") if live is None else live.model,
        num_choices=num_choices,
        requests=tuple(PromptRequest(id=each, **prompt, **shared) for each, prompt in zip(ids, prompts, strict=True)),
        is_streamed=_switch(body, "stream"),
        has_usage=_has_usage(body),
        is_echoed=is_echoed,
        is_answered=body.get("max_tokens") != 0,
    )


def _known_keys(body: Mapping[str, Any], url: str, known: Sequence[str]) -> dict[str, Any]:
    """Return what the body says; null is as if it were not there."""
    for key in body:
        if key not in known:
            raise PromptFileError(
                f"body has the key {describe(key)}, which is not done here; leave it out (for {url} the keys are "
                f"{', '.join(known)})"
            )
    return {key: value for key, value in body.items() if value is not None}


def _tools(body: Mapping[str, Any], response_schema: str | None) -> dict[str, Any]:
    """Return what a request has of tools."""
    terms = parse_tool_terms(body)
    if terms.schema is not None and response_schema is not None:
        raise PromptFileError("tool_choice demands a call and response_format a text; leave one of them out")
    return {
        "tools": terms.tools,
        "has_one_call": terms.has_one_call,
        "is_all_calls": terms.schema is not None,
        "response_schema": terms.schema or response_schema,
    }


def _thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request has of thinking."""
    effort = text_value(body["reasoning_effort"], "reasoning_effort") if "reasoning_effort" in body else None
    switches = body.get("chat_template_kwargs", {})
    if not isinstance(switches, dict) or not switches.keys() <= set(_THINKING_SWITCHES):
        raise PromptFileError(
            f"chat_template_kwargs is {describe(switches)}; it must be an object with "
            f"{' or '.join(_THINKING_SWITCHES)}, and no other key"
        )
    given = [_switch(switches, key) for key in switches]
    return {"reasoning_effort": effort, "thinking": given[0] if given else None}


def _check_schema(schema: str, *, is_of_calls: bool) -> None:
    try:
        json_library()
    except OptionError as error:
        if not is_of_calls:
            raise
        sentence = "tool_choice that demands a call needs llguidance; install it with: pip install 'overstory[json]'"
        raise OptionError(sentence) from error
    grammar_of(schema)


def _switch(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise PromptFileError(f"{key} is {describe(value)}; it must be true or false")
    return value


def _has_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise PromptFileError(f"stream_options is {describe(options)}; it must be an object with include_usage")
    return _switch(options, "include_usage")


def _logit_bias(body: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Return what is added to the logit of each token that the body names."""
    found = body.get("logit_bias", {})
    if not isinstance(found, dict):
        raise PromptFileError(f"logit_bias is {describe(found)}; it must be an object of token ids and numbers")
    for key, value in found.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise PromptFileError(f"logit_bias has the key {describe(key)}; its keys are token ids")
        if not is_number or not -_MOST_BIAS <= value <= _MOST_BIAS:
            raise PromptFileError(f"logit_bias of token {key} is {describe(value)}; it must be from -100 to 100")
    return tuple((int(key), float(value)) for key, value in found.items())


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
    said = (item for item in turn.items() if item[0] == "content" or item[1] is not None)
    turn = {key: value for key, value in said if key != "annotations"}  # as OpenAI's client gives back what it was told
    if turn.get("tool_calls"):
        turn.setdefault("content", None)
    if turn.get("role") == "developer":
        turn = {**turn, "role": "system"}
    parts = turn.get("content")
    if isinstance(parts, list) and parts and all(map(_is_text_part, parts)):
        turn = {**turn, "content": "".join(part["text"] for part in parts)}
    return turn


def _is_text_part(part: object) -> bool:
    is_text = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
    return is_text and isinstance(part["text"], str)  # type: ignore[index]


def _prompts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each prompt, a text or a list of token ids, as a part of a request."""
    value = body.get("prompt")
    is_many = isinstance(value, list) and bool(value) and all(isinstance(each, str | list) for each in value)
    many: list[Any] = value if is_many else [value]  # type: ignore[assignment]
    if len(many) > MAX_PROMPTS:
        raise PromptFileError(f"prompt holds {len(many)} prompts; it may hold {MAX_PROMPTS}, so send several requests")
    return [_prompt(each) for each in many]


def _prompt(value: object) -> dict[str, Any]:
    if isinstance(value, list):
        if not value:
            raise PromptFileError("prompt is a list without tokens; give at least one")
        return {"token_ids": tuple(whole_number(each, "a token of prompt", least=0, most=2**31) for each in value)}
    prompt = text_value(value, "prompt")
    if not prompt.strip():
        raise PromptFileError("prompt is empty; write something to write on from")
    return {"prompt": prompt}


def _choices_of_text(
    body: Mapping[str, Any], usual: Mapping[str, Any], common: LineDefaults, *, least_tokens: int
) -> dict[str, Any]:
    """Return `params` and `unchosen` of a request."""
    kinds = options_of(SamplingParams)
    chosen = {
        key: option_value(kinds[key].kind, body[key], key)
        for key in (*_SAMPLING_KEYS, *_OWN_SAMPLING_KEYS, "thinking_budget")
        if key in body
    }
    lengths = [key for key in ("max_tokens", "max_completion_tokens") if key in body]
    if len(lengths) > 1:
        raise PromptFileError("max_tokens stands beside max_completion_tokens; keep one")
    for key in lengths:
        chosen["max_new_tokens"] = max(1, whole_number(body[key], key, least=least_tokens))
    taken = {"temperature": _OPENAI_TEMPERATURE, **usual}
    taken = {key: value for key, value in taken.items() if key in common.unchosen}
    params = replace(common.params, **{**taken, **chosen})
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

    At temperature 0 a prompt's choices are one text, which is computed once. `taken` are the ids that are in use
    already, and takes these.
    """
    if question.num_choices == 1:
        return question
    if all(each.params.is_greedy for each in question.requests):
        return replace(question, num_copies=question.num_choices)
    requests = []
    for first in question.requests:
        for index in range(question.num_choices):
            choice_id = f"{first.id} [{index}]"
            while choice_id in taken:
                choice_id += "'"
            taken.add(choice_id)
            params = replace(first.params, seed=first.params.seed + index)
            requests.append(replace(first, id=choice_id, params=params))
    return replace(question, requests=tuple(requests))
