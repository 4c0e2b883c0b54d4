"""Who is let through: no web page, whatever name it comes under, and with a key nobody without it."""

import asyncio

import pytest

from tui.server.failures import openai_error
from tui.server.guard import Guard


def status(headers, *, api_key=None, path="/v1/models"):
    """The status that a request with these headers gets; 200 where it is let through."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    guard = Guard(app, api_key=api_key, refuse=lambda path, failure: openai_error(failure))
    asyncio.run(guard({"type": "http", "path": path, "headers": raw}, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:65535", "[::1]"])
def test_loopback_names_are_let_through(host):
    assert status({"Host": host}) == 200
    assert status({"Host": host, "Origin": f"http://{host}"}) == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.com", "evil.com:8000", "127.0.0.1.evil.com", "localhost.evil.com", "127.0.0.2", "::1", "192.168.1.2"],
)
def test_a_name_that_was_bound_anew_is_refused(host):
    assert status({"Host": host}) == 403
    assert status({"Host": host, "Authorization": "Bearer key"}, api_key="key") == 403


def test_a_request_without_host_is_refused():
    assert status({}) == 403


@pytest.mark.parametrize("origin", ["http://evil.com", "https://localhost.evil.com", "null", "file://", ""])
def test_pages_of_the_web_are_refused(origin):
    assert status({"Host": "localhost", "Origin": origin}) == 403
    assert status({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}) == 403
    assert status({"Host": "localhost", "Sec-Fetch-Site": "none"}) == 200


def test_with_a_key_nobody_without_it_is_answered():
    host = {"Host": "localhost"}
    assert status(host, api_key="kéy") == 401
    for wrong in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic kéy"}, {"X-Api-Key": "kéy2"}):
        assert status({**host, **wrong}, api_key="kéy") == 401
    for right in ({"Authorization": "Bearer key"}, {"Authorization": "bearer key"}, {"X-Api-Key": "key"}):
        assert status({**host, **right}, api_key="key") == 200
    assert status(host, api_key="key", path="/health") == 200
