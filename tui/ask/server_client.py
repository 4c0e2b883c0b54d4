"""A client of our own server, or of any other that speaks OpenAI's chat completions, over http.client."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from profiles.errors import OverstoryError, quote
from profiles.files import parse_json_text
from runtime.errors import OptionError
from runtime.events import Usage
from tui.ask.pieces import Ended, Pieces, Said, Waits
from tui.server.running import RunningServer
from tui.terminal_text import one_line

CONNECT_SECONDS = 2.0
"""A server on this machine that does not answer within it is as good as none."""
MAX_LINE_BYTES, MAX_REPLY_BYTES = 1 << 20, 1 << 20
_BUSY_STATES = (429, 503)
_LONGEST_PAUSE_SECONDS = 10.0
_REFUSED = range(400, 500)


class ServerFailedError(OverstoryError):
    """A server did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class ServerClient:
    """Asks one server."""

    server: RunningServer
    pause: Callable[[float], None] = time.sleep

    def has_model(self) -> bool:
        """Return whether the server answers, with the model that it was begun for."""
        try:
            with closing(self._connection()) as connection:
                connection.request("GET", "/v1/models", headers=self._headers())
                response = connection.getresponse()
                found = parse_json_text(response.read(MAX_REPLY_BYTES))
                return response.status == 200 and self.server.model in [model["id"] for model in found["data"]]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return False

    def ask(self, body: Mapping[str, Any]) -> Pieces:
        """Yield the answer to a body of /v1/chat/completions as it comes; closing ends it.

        A server that is busy is asked again. Raises OptionError for what it refuses, ServerFailedError for the rest.
        """
        asked = {"model": self.server.model, "stream": True, "stream_options": {"include_usage": True}, **body}
        try:
            while True:
                with closing(self._connection()) as connection:
                    headers = {**self._headers(), "Content-Type": "application/json", "Accept": "text/event-stream"}
                    connection.request("POST", "/v1/chat/completions", json.dumps(asked).encode(), headers)
                    if connection.sock is not None:
                        connection.sock.settimeout(None)  # a long prompt takes its time
                    yield Waits(f"{self.server.base_url} reads the prompt")
                    response = connection.getresponse()
                    if response.status == 200:
                        yield from _pieces(response)
                        return
                    reason = _reason(response)
                    if response.status not in _BUSY_STATES:
                        kind = OptionError if response.status in _REFUSED else ServerFailedError
                        raise kind(f"the server at {self.server.base_url} says: {reason}")
                    seconds = _retry_seconds(response)
                yield Waits(f"{self.server.base_url} is busy ({reason}); asking again in {seconds:g} s")
                self.pause(seconds)
        except (OSError, HTTPException) as error:
            raise ServerFailedError(
                f"the server at {self.server.base_url} ended the answer ({error or type(error).__name__}); see what it "
                "says in its terminal, or add --no-server to load the model here"
            ) from error

    def _connection(self) -> HTTPConnection:
        return HTTPConnection(self.server.host, self.server.port, timeout=CONNECT_SECONDS)

    def _headers(self) -> dict[str, str]:
        key = self.server.api_key
        return {} if key is None else {"Authorization": f"Bearer {key}"}


def _pieces(response: HTTPResponse) -> Pieces:
    """Yield what a stream of server-sent events says, until it is done."""
    finish_reason, usage = "", Usage()
    for record in _records(response):
        if "error" in record:
            raise ServerFailedError(f"the server broke the answer off: {_message(record)}")
        if isinstance(found := record.get("usage"), dict):
            usage = _usage(found)
        for choice in record.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                yield Said(str(thought), is_thinking=True)
            if text := delta.get("content"):
                yield Said(str(text))
            finish_reason = choice.get("finish_reason") or finish_reason
    if not finish_reason:
        raise HTTPException("it stopped in the middle")
    yield Ended(finish_reason=finish_reason, usage=usage)


def _usage(found: Mapping[str, Any]) -> Usage:
    """Return the counts of a record, whatever else a server says."""
    parts = {name: _counts(value) for name, value in found.items() if isinstance(value, dict)}
    return {**_counts(found), **parts}


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in found.items() if isinstance(value, int)}


def _records(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := response.readline(MAX_LINE_BYTES + 1):
        if not line.startswith(b"data:"):
            continue  # blank lines between events, comments that keep the connection open
        content = line.removeprefix(b"data:").strip()
        if content == b"[DONE]":
            return
        try:
            record = parse_json_text(content)
        except ValueError as error:
            raise HTTPException(f"it sent {quote(content)}") from error
        if isinstance(record, dict):
            yield record


def _reason(response: HTTPResponse) -> str:
    """Return what an error of the server says."""
    content = response.read(MAX_REPLY_BYTES)
    try:
        record = parse_json_text(content)
    except ValueError:
        record = None
    return _message(record) if isinstance(record, dict) else f"{response.status} {one_line(response.reason)}"


def _message(record: Mapping[str, Any]) -> str:
    error = record.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return one_line(str(message or record.get("detail") or "no reason is given"))


def _retry_seconds(response: HTTPResponse) -> float:
    try:
        return max(0.1, min(float(response.getheader("Retry-After", "1")), _LONGEST_PAUSE_SECONDS))
    except ValueError:
        return 1.0
