"""What a client is told of an error: a status, a sentence, and what its library makes its own error of."""

import pytest

from offload.errors import LinkError
from runtime.errors import OptionError, PromptFileError, PromptTooLongError, QueueFullError, ShuttingDownError
from tui.server.failures import Failure, failure_of, openai_error


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (OptionError("no"), 400, "invalid_request_error", None),
        (PromptFileError("no"), 400, "invalid_request_error", None),
        (PromptTooLongError("no"), 400, "invalid_request_error", "context_length_exceeded"),
        (QueueFullError("no", retry_seconds=3), 429, "rate_limit_error", "rate_limit_exceeded"),
        (ShuttingDownError("no"), 503, "server_error", None),
        (LinkError("no"), 500, "server_error", None),
    ],
)
def test_errors_have_the_status_of_what_they_are(error, status, kind, code):
    failure = failure_of(error)
    assert (failure.status, failure.sentence) == (status, "no")
    assert openai_error(failure) == {"error": {"message": "no", "type": kind, "param": None, "code": code}}
    assert failure.headers == ({"Retry-After": "3"} if status == 429 else {})


def test_what_stands_in_no_table_is_the_server_s():
    assert Failure(507, "full").kind == "server_error"
