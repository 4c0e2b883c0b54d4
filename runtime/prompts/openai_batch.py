"""OpenAI's batch format, in and out: lines for /v1/chat/completions and /v1/completions, and what answers them.

Source: OpenAI's API reference, "Batch" (the request input object and the request output object); what the bodies say is
read by `runtime.api`. A sentence about one costs its line alone. A line without seed has one of its own, made of its
`custom_id`: lines with the same prompt differ, and each is the same text in every run.
"""

import uuid
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from runtime.api.answers import answer_body
from runtime.api.questions import BODY_KEYS, Question, parse_question, with_all_choices
from runtime.config import SamplingParams
from runtime.errors import OptionError, PromptFileError
from runtime.prompts.headless import PromptItem, PromptResult
from runtime.prompts.json_values import describe, encodable
from runtime.prompts.prompt_file import LineDefaults, PromptLines, parse_object, parse_prompts, unused_id
from runtime.prompts.result_format import OPENAI, OWN_FORMAT, ResultFormat

_LINE_KEYS = ("custom_id", "method", "url", "body")


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
    found: dict[int, Question | PromptItem] = {}
    for number, line in file.lines:
        try:
            fields = parse_object(line)
            custom_ids[number] = unused_id(_custom_id(fields), number, line_number_of_id=line_number_of_id)
            found[number] = _question(fields, custom_ids[number], number, common)
        except (PromptFileError, OptionError) as error:
            found[number] = file.bad_line(number, custom_ids.get(number, str(number)), error)
    taken = set(line_number_of_id)
    items: list[PromptItem] = []
    questions: dict[int, Question] = {}
    for number, question in found.items():
        if isinstance(question, Question):
            questions[number] = with_all_choices(question, taken)
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


def _question(fields: Mapping[str, Any], custom_id: str, line_number: int, common: LineDefaults) -> Question:
    for key in fields:
        if key not in _LINE_KEYS:
            raise PromptFileError(f"unknown key {describe(key)}; a batch's keys are {', '.join(_LINE_KEYS)}")
    if fields.get("method") != "POST":
        raise PromptFileError(f"method is {describe(fields.get('method'))}; it must be 'POST'")
    url = fields.get("url")
    if not isinstance(url, str) or url not in BODY_KEYS:
        raise PromptFileError(f"url is {describe(url)}; it must be one of {', '.join(BODY_KEYS)}")
    if not isinstance(fields.get("body"), dict):
        raise PromptFileError(f"body is {describe(fields.get('body'))}; it must be an object")
    body = fields["body"]
    stream = body.get("stream")
    if stream is not None and stream is not False:
        raise PromptFileError(f"stream is {describe(stream)}; a batch is answered whole, so leave it out")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and (len(prompt) != 1 or not isinstance(prompt[0], str)):
        raise PromptFileError("prompt is a list; it must hold one text, so write a line for each prompt")
    usual_seed = zlib.crc32(custom_id.encode())
    return parse_question(body, url, common, request_id=custom_id, usual_seed=usual_seed, line_number=line_number)


class OpenAiFormat:
    """One line of OpenAI's batch output for each line of its input, once all of its choices are there."""

    kind = OPENAI

    def __init__(self, questions: Mapping[int, Question], custom_ids: Mapping[int, str]) -> None:
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
        response = {"status_code": 200, "request_id": uuid.uuid4().hex, "body": answer_body(question, answers)}
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
