"""What is told of a request that gets no answer: an HTTP status and a sentence, in the shape of OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profiles.errors import BadInputError, OverstoryError
from runtime.errors import PromptTooLongError, QueueFullError, ShuttingDownError

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error"}
_TYPES |= {429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gets no answer."""

    status: int
    """Of HTTP, 400 or more."""
    sentence: str
    code: str | None = None
    """What programs may look at, in OpenAI's words."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return what OpenAI's and Anthropic's APIs call the type of such an error."""
        return _TYPES.get(self.status, "server_error")


class RefusedError(Exception):
    """Ends a request whose failure is known already."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


def failure_of(error: OverstoryError) -> Failure:
    """Return what a client is told of an error of ours."""
    if isinstance(error, QueueFullError):
        return Failure(429, str(error), "rate_limit_exceeded", {"Retry-After": str(error.retry_seconds)})
    if isinstance(error, ShuttingDownError):
        return Failure(503, str(error))
    if isinstance(error, BadInputError):
        return Failure(400, str(error), "context_length_exceeded" if isinstance(error, PromptTooLongError) else None)
    return Failure(500, str(error))


def openai_error(failure: Failure) -> dict[str, Any]:
    """Return the body that OpenAI's API gives for a failure."""
    return {"error": {"message": failure.sentence, "type": failure.kind, "param": None, "code": failure.code}}
