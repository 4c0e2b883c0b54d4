"""Bodies, clients that go away, and queues that are full: what is told over HTTP, and what ends."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import openai
import pytest

from tests.support.served import Served, get, post, served, tiny_load
from tui.server import exchange

BODY = {"messages": [{"role": "user", "content": "the cat"}], "logit_bias": {"2": -100}}


@pytest.fixture(scope="module")
def slow(long_folder):
    """One answer at a time, each of thousands of passes."""
    load = tiny_load(long_folder, num_texts=1, context_tokens=8000)
    with served(load, most_waiting=1) as running:
        running.wait(lambda state: state.phase == "ready")
        yield running


STREAMED = {**BODY, "stream": True}


def is_idle(state):
    return state.num_running == state.num_waiting == 0


def num_dropped(running: Served) -> int:
    return running.dispatcher.state.tally.num_ended.get("dropped", 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"{", "not valid JSON"), (b"[1]", "must be a JSON object"), (b'{"a": NaN}', "JSON"), (b"[" * 9999, "JSON")],
)
def test_what_is_no_body_is_named(tiny, content, sentence):
    answer = post(tiny, "/v1/chat/completions", content=content)
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]


def test_a_body_that_is_too_long_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(exchange, "MOST_BODY_BYTES", 1000)
    answer = post(tiny, "/v1/chat/completions", json={**BODY, "user": "x" * 1000})
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "invalid_request_error"
    assert post(tiny, "/v1/chat/completions", json={**BODY, "max_tokens": 1}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(tiny, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.05)
    host, port = tiny.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@contextmanager
def asking(running: Served, *, is_streamed: bool = False) -> Iterator[socket.socket]:
    """A client that has asked, and goes away at the end."""
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({**BODY, "stream": is_streamed}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        yield connection


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_ends_its_answer(slow, is_streamed):
    before = num_dropped(slow)
    with asking(slow, is_streamed=is_streamed) as connection:
        if is_streamed:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        slow.wait(lambda state: state.num_running == 1)
    slow.wait(is_idle)
    assert num_dropped(slow) == before + 1


def test_one_that_waits_is_forgotten_with_its_client(slow):
    before = num_dropped(slow)
    with slow.client().chat.completions.create(model="any", stream=True, **BODY) as first:
        next(iter(first))
        with asking(slow):
            slow.wait(lambda state: state.num_waiting == 1)
        slow.wait(lambda state: state.num_waiting == 0 and state.num_running == 1)
    slow.wait(is_idle)
    assert num_dropped(slow) == before + 2


def test_a_full_queue_is_429_and_a_time_to_retry(slow):
    with slow.client().chat.completions.create(model="any", stream=True, **BODY) as first:
        next(iter(first))
        with httpx2.stream(
            "POST", f"{slow.url}/v1/chat/completions", json={**BODY, "stream": True}, timeout=30
        ) as second:
            lines = second.iter_lines()
            assert next(lines).startswith(": "), "a comment says what is waited for"
            slow.wait(lambda state: state.num_waiting == 1)
            with pytest.raises(openai.RateLimitError, match="1 answers wait already") as refused:
                slow.client().chat.completions.create(model="any", **BODY)
            assert int(refused.value.response.headers["Retry-After"]) >= 1
    slow.wait(is_idle)


def test_an_idle_model_is_unloaded_and_loaded_again(folder):
    with served(tiny_load(folder), idle_seconds=0.1) as running:
        client = running.client()
        first = client.chat.completions.create(model="any", max_tokens=8, temperature=0, messages=BODY["messages"])
        state = running.wait(lambda state: state.phase == "unloaded")
        assert get(running, "/health").json()["status"] == "unloaded"
        again = client.chat.completions.create(model="any", max_tokens=8, temperature=0, messages=BODY["messages"])
        assert again.choices[0].message.content == first.choices[0].message.content
        assert running.dispatcher.state.tally.num_loads == state.tally.num_loads + 1


def test_the_end_of_the_server_is_told_to_a_stream(long_folder):
    with served(tiny_load(long_folder, context_tokens=8000)) as running:
        stream = running.client().chat.completions.create(model="any", stream=True, **BODY)
        next(iter(stream))
        running.dispatcher.end()
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            running.client().chat.completions.create(model="any", **BODY)


def test_the_first_load_that_fails_ends_the_server(tmp_path):
    begun = time.monotonic()
    with pytest.raises(Exception, match="nothing"), served(tiny_load(tmp_path / "nothing")) as running:
        running.wait(lambda state: state.phase == "ended")
    assert time.monotonic() - begun < 30
