"""What a line of results holds, answers in our own format or in OpenAI's or scores, and how it is known on resume."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

from runtime.prompts.headless import PromptResult

ResultKind = Literal["results in overstory's own format", "results in OpenAI's batch format", "scores"]
"""In words."""
OWN: ResultKind = "results in overstory's own format"
OPENAI: ResultKind = "results in OpenAI's batch format"
SCORES: ResultKind = "scores"
_OWN_KEYS: Mapping[ResultKind, set[str]] = {OWN: {"id", "text", "error"}, SCORES: {"id", "log_likelihood", "error"}}
_OPENAI_KEYS = {"custom_id", "response", "error"}
# Both begin so, which is how a half-written line is known: a record's first key is its id, and that is text.
LINE_START = b'{"id": "'


class ResultFormat(Protocol):
    """Makes lines of results; lives as long as a run."""

    kind: ResultKind

    def record(self, result: PromptResult) -> dict[str, Any] | None:
        """Return the JSON object of a line that is complete with this result, None where others are missing to it.

        Its first key is `id`, whose value is text.
        """

    def ids_answered_by(self, record: Mapping[str, Any]) -> Collection[str]:
        """Return the ids of requests that need no answer where a file holds this answer already."""


class OwnFormat:
    """One line for each result, as the result says it."""

    def __init__(self, kind: ResultKind) -> None:
        self.kind = kind

    def record(self, result: PromptResult) -> dict[str, Any]:
        return result.to_record()

    def ids_answered_by(self, record: Mapping[str, Any]) -> Collection[str]:
        return (record["id"],)


OWN_FORMAT, SCORE_FORMAT = OwnFormat(OWN), OwnFormat(SCORES)


def kind_of(record: object) -> ResultKind | None:
    """Return what kind of result a line's JSON is; None for anything else."""
    if not isinstance(record, dict):
        return None
    if record.keys() >= _OPENAI_KEYS and _is_openai(record["custom_id"], record["response"], record["error"]):
        return OPENAI
    if not isinstance(record.get("id"), str):
        return None
    return next((kind for kind, keys in _OWN_KEYS.items() if record.keys() >= keys), None)


def is_answer(record: Mapping[str, Any]) -> bool:
    """Return whether a result is one that stays on resume; what failed is tried again."""
    return record["error"] is None and (kind_of(record) != OPENAI or record["response"]["status_code"] == 200)


def _is_openai(custom_id: object, response: object, error: object) -> bool:
    if response is None:
        return isinstance(error, dict) and isinstance(custom_id, str | None)
    return isinstance(response, dict) and {"status_code", "body"} <= response.keys() and isinstance(custom_id, str)
