"""Files of texts to score: JSON lines with a context and its continuation, and what becomes of each line.

A line that cannot be used becomes a `BadLine`, so that one typo costs one score. Imports no torch.
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import PromptFileError
from runtime.prompts.headless import PromptResult
from runtime.prompts.json_values import describe, text_value
from runtime.prompts.prompt_file import BadLine, PromptLines, own_id, parse_object, unused_id

_KEYS = ("context", "continuation", "id")
_EXPECTED = 'a line is {"context": "...", "continuation": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """A continuation to score."""

    id: str
    """Unique in its file; the line number where the line gives none."""
    context: str
    """What stands before it; may be empty."""
    continuation: str
    line_number: int = 1
    """From 1."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the model says of a continuation."""

    log_likelihood: float
    """Sum of log P(token | all tokens before it), natural."""
    is_greedy: bool
    """Whether greedy decoding would give it."""
    num_tokens: int
    """Of the continuation."""
    num_context_tokens: int
    """That the model saw before it."""
    num_truncated: int
    """Tokens at the beginning of the context that it did not see, because the whole is too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult(PromptResult):
    """What became of one line; it is kept as answers are."""

    score: Score | None = None
    """None where `error` is set."""

    def to_record(self) -> dict[str, Any]:
        """Return a JSON object; every result has the same keys, and `error` is null when all is well."""
        score = self.score
        return {
            "id": self.id,
            "line": self.line_number,
            "log_likelihood": score and score.log_likelihood,
            "is_greedy": None if score is None else score.is_greedy,
            "tokens": score and score.num_tokens,
            "context_tokens": score and score.num_context_tokens,
            "truncated_tokens": None if score is None else score.num_truncated,
            "error": self.error,
        }


def read_score_requests(path: str | Path) -> list[ScoreRequest | BadLine]:
    """Read every line of a file, or of standard input for `-`, in order.

    Raises:
        PromptFileError: the file is missing, unreadable, or holds nothing.
    """
    file = PromptLines("standard input" if str(path) == "-" else str(path), is_jsonl=True, lines=())
    items: list[ScoreRequest | BadLine] = []
    line_number_of_id: dict[str, int] = {}
    for line_number, line in enumerate(_content(path, file.name).split(b"\n"), start=1):
        if not line.strip():
            continue
        item_id = str(line_number)
        try:
            fields = parse_object(_decoded(line))
            item_id = unused_id(own_id(fields, line_number), line_number, line_number_of_id=line_number_of_id)
            items.append(_request(fields, item_id, line_number))
        except PromptFileError as error:
            items.append(file.bad_line(line_number, item_id, error))
    if not items:
        raise PromptFileError(f"{file.name} holds nothing to score; {_EXPECTED}")
    return items


def _content(path: str | Path, name: str) -> bytes:
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise PromptFileError(f"{name} cannot be read: {error.strerror or error}; give a readable file") from error
    return content.removeprefix(codecs.BOM_UTF8)  # editors on Windows open a file with it


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PromptFileError(f"not UTF-8: it holds the byte 0x{line[error.start]:02x}; save it as UTF-8") from error


def _request(fields: dict[str, Any], item_id: str, line_number: int) -> ScoreRequest:
    for key in fields:
        if key not in _KEYS:
            raise PromptFileError(f"unknown key {describe(key)}; the keys are {', '.join(_KEYS)}")
    for key in ("context", "continuation"):
        if key not in fields:
            raise PromptFileError(f"{key} is missing; {_EXPECTED}")
    context = text_value(fields["context"], "context")
    continuation = text_value(fields["continuation"], "continuation")
    if not continuation:
        raise PromptFileError("continuation is empty; give it some text")
    return ScoreRequest(id=item_id, context=context, continuation=continuation, line_number=line_number)
