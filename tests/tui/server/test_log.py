"""Lines of what a server did: what a person wants to see in its terminal, and nothing of what was asked."""

import socket
import threading
from dataclasses import replace
from typing import Any

import pytest

from profiles.errors import OverstoryError
from runtime.errors import OptionError, QueueFullError
from runtime.serving.dispatcher import AnswerOver, LoadFailed, ModelLoaded, ModelUnloaded, News
from tests.support.answer_fakes import STATISTICS
from tests.support.served import get, post, served, tiny_load
from tui.server.failures import Failure, failure_of
from tui.server.log import ServerLog, WaitingLines

OVER = AnswerOver(
    asked_by="/v1/responses", how="stop", waiting_seconds=0.04, seconds=3.5, statistics=STATISTICS, error=None
)


def lines_of(*happened: News | Failure) -> list[str]:
    lines: list[str] = []
    log = ServerLog(lines.append, now=lambda: "12:00:00")
    for each in happened:
        if isinstance(each, Failure):
            log.refuse("/v1/responses", each)
        else:
            log.tell(each)
    assert all(line.startswith("12:00:00 ") for line in lines)
    return [line.removeprefix("12:00:00 ") for line in lines]


def line_of(**how: Any) -> str:
    (line,) = lines_of(replace(OVER, **how))
    return line.removeprefix("/v1/responses: ")


def test_an_answer_says_what_it_took() -> None:
    assert lines_of(OVER) == ["/v1/responses: 5 prompt tokens, 8 new tokens, 3.5 s, 2.0 tok/s, complete"]
    costs = replace(STATISTICS, cached_tokens=4, reasoning_tokens=3, decode_tokens=0)
    assert line_of(statistics=costs, waiting_seconds=2.0, how="length") == (
        "5 prompt tokens (4 cached), 8 new tokens (3 of thinking), 3.5 s, waited 2.0 s, cut at its limit of tokens"
    )
    assert line_of(how="context").endswith("cut at the end of the context")
    assert line_of(how="length", statistics=replace(STATISTICS, new_tokens=0, decode_tokens=0)).endswith("scored")


def test_a_client_that_goes_away_is_told() -> None:
    assert line_of(how="dropped", waiting_seconds=1.0) == "the client went away after 4.5 s and 8 new tokens"
    assert line_of(how="dropped", seconds=0.0, waiting_seconds=1.0, statistics=None) == (
        "the client went away after 1.0 s"
    )


def test_an_error_shows_nothing_of_the_prompt() -> None:
    secret = OptionError("the prompt holds SECRET, which is not done here")
    refused = "no answer (status 400, and the client was told why)"
    assert line_of(how="error", statistics=None, error=secret) == f"{refused}, after 3.5 s"
    full = QueueFullError("64 answers wait already", retry_seconds=2)
    assert lines_of(failure_of(secret), failure_of(full)) == [
        f"/v1/responses: {refused}",
        "/v1/responses: no answer (status 429): 64 answers wait already",
    ]
    fault = line_of(how="error", statistics=None, error=OverstoryError("out of\nmemory"))
    assert fault == "no answer (status 500): out of memory, after 3.5 s"


def test_the_model_s_comings_and_goings_are_told() -> None:
    assert lines_of(
        ModelLoaded(seconds=2.25, num_lanes=1, context_tokens=128),
        ModelLoaded(seconds=2.25, num_lanes=4, context_tokens=128),
        ModelUnloaded(idle_seconds=600.0),
        ModelUnloaded(idle_seconds=None),
        LoadFailed(error=OverstoryError("the file is gone")),
    ) == [
        "the model is loaded (2.2 s): one answer at a time, 128 tokens of prompt and answer together",
        "the model is loaded (2.2 s): up to 4 answers share each pass, 128 tokens of prompt and answer together",
        "the model is unloaded after 600 s without a request; the next request loads it",
        "the model is unloaded after an unexpected error; the next request loads it",
        "the model cannot be loaded: the file is gone",
    ]


def test_without_a_writer_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    ServerLog().tell(OVER)
    assert capsys.readouterr() == ("", "")


def test_every_request_has_one_line(folder: Any) -> None:
    lines: list[str] = []
    with served(tiny_load(folder), log=ServerLog(lines.append, now=lambda: "now")) as running:
        for body in ({"prompt": "the cat", "max_tokens": 3}, {"prompt": "the cat", "nonsense": "SECRET"}):
            post(running, "/v1/completions", json=body)
        post(running, "/v1/completions", json={"prompt": "the cat " * 100, "stream": True})
        get(running, "/health")
    assert lines[0].startswith("now the model is loaded (")
    assert lines[1].startswith("now /v1/completions: ") and "prompt tokens, " in lines[1]
    assert [line.split("(")[1][:10] for line in lines[2:]] == ["status 400"] * 2, "each once"
    assert not any("cat" in line or "SECRET" in line for line in lines)


def test_refusals_at_the_door_have_a_line_too(folder: Any) -> None:
    """A client with a wrong key, or with a wrong base URL, was nowhere to be seen."""
    lines: list[str] = []
    log = ServerLog(lines.append, now=lambda: "now")
    key = {"Authorization": "Bearer secret"}
    with served(tiny_load(folder), log=log, api_key="secret") as running:
        running.wait(lambda _: lines)  # the model's, which is told a moment after it is there
        get(running, "/v1/models")
        get(running, "/v1/models", headers={**key, "Origin": "http://evil.com"})
        get(running, "/v1/v1/models", headers=key)
        get(running, "/v1/completions", headers=key)
        get(running, f"/%1b[2J\u202e{'x' * 200}", headers=key)
    told = "and the client was told why)"
    assert lines[1].startswith("now /v1/models: no answer (status 401): the API key is missing or wrong")
    assert lines[2].startswith("now /v1/models: no answer (status 403): the request comes from a web page")
    assert lines[3] == f"now /v1/v1/models: no answer (status 404, {told}"
    assert lines[4] == f"now /v1/completions: no answer (status 405, {told}"
    assert len(lines) == 6 and lines[5].isprintable() and f"...: no answer (status 404, {told}" in lines[5]
    assert len(lines[5]) < 200 and "secret" not in "".join(lines)


def test_what_is_no_http_has_a_line(folder: Any) -> None:
    lines: list[str] = []
    log = ServerLog(lines.append, now=lambda: "now")
    with log.with_the_library(), served(tiny_load(folder), log=log) as running:
        running.wait(lambda _: lines)  # the model's, which is told a moment after it is there
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert lines[1:] == ["now Invalid HTTP request received."]


class Reader:
    """Who reads lines, or does not."""

    def __init__(self) -> None:
        self.goes_on, self.has_begun = threading.Event(), threading.Event()
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.has_begun.set()
        assert self.goes_on.wait(30)
        self.lines.append(line)


def test_lines_that_nobody_reads_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.server.log._CLOSE_SECONDS", 30)
    reader = Reader()
    with WaitingLines(reader.write, most_waiting=3) as lines:
        lines.add("first")
        assert reader.has_begun.wait(30)
        for number in range(8):
            lines.add(f"line {number}")
        reader.goes_on.set()
    assert reader.lines == ["first", "line 0", "line 1", "line 2", "5 lines left out here, as nobody read them"]


def test_all_lines_are_written_where_somebody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.server.log._CLOSE_SECONDS", 30)
    reader = Reader()
    reader.goes_on.set()
    with WaitingLines(reader.write) as lines:
        for number in range(100):
            lines.add(str(number))
    assert reader.lines == [str(number) for number in range(100)]


def test_a_reader_that_has_stopped_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.server.log._CLOSE_SECONDS", 0.01)
    reader = Reader()
    with WaitingLines(reader.write) as lines:
        lines.add("first")
        lines.add("second")
    assert reader.lines == []
    reader.goes_on.set()
