"""Log-probabilities of an answer's tokens as JSON, in the two shapes of OpenAI's API.

Source: OpenAI's API reference, `logprobs` of a choice of a chat completion and of a (legacy) completion. It says
nothing of the second one's offsets and of its parts of characters: these are as its server gives them.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.events import TokenLogprob, TokenLogprobs

LEAST_LOGPROB = -9999.0
"""What stands for a token that cannot come: JSON has no infinity."""


def content_logprobs(logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Return an object of each token of a chat's answer: `token`, `logprob`, `bytes` and `top_logprobs`.

    `bytes` of all tokens joined are those of the text. Parts of characters stand in `token` as `\\xf0`.
    """
    return [
        {**_content_record(each.chosen), "top_logprobs": [_content_record(token) for token in each.likeliest]}
        for each in logprobs
    ]


def _content_record(token: TokenLogprob) -> dict[str, Any]:
    content = None if token.content is None else list(token.content)
    return {"token": token.text, "logprob": _number(token), "bytes": content}


def completion_logprobs(logprobs: Sequence[TokenLogprobs], *, num_before: int) -> dict[str, Any]:
    """Return the lists of a completion: `tokens`, `token_logprobs`, `top_logprobs` and `text_offset`.

    `top_logprobs` has the likeliest tokens of each place by their texts, and the chosen one too, so that it may be one
    more. An offset is that of the character in which a token begins, counted from the prompt's first: `num_before` are
    the prompt's. A token with parts of characters has the text `bytes:\\xf0`, and one that stands behind nothing null
    for its log-probabilities.
    """
    return {
        "tokens": [_completion_text(each.chosen) for each in logprobs],
        "token_logprobs": [None if _is_first(each) else _number(each.chosen) for each in logprobs],
        "top_logprobs": [None if _is_first(each) else _by_text([*each.likeliest, each.chosen]) for each in logprobs],
        "text_offset": list(_offsets(logprobs, num_before)),
    }


def _is_first(each: TokenLogprobs) -> bool:
    return math.isnan(each.chosen.logprob)


def _by_text(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """Return the log-probabilities by text, of two tokens with the same text the first one's."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_completion_text(token), _number(token))
    return found


def _completion_text(token: TokenLogprob) -> str:
    return token.text if token.content is None or _is_text(token.content) else f"bytes:{token.text}"


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _offsets(logprobs: Sequence[TokenLogprobs], num_before: int) -> Iterator[int]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for each in logprobs:
        yield num_before
        num_before += len(decoder.decode(each.chosen.content or b""))


def _number(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST_LOGPROB)
