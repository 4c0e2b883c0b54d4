"""Paths and methods that there are, and what is said of others."""

import pytest

from tests.support.served import get, post, served, tiny_load
from tui.server.app import ROUTES


def test_what_is_not_there_is_said_in_the_words_of_the_api(tiny):
    answer = get(tiny, "/v1/nothing")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
    assert "GET /v1/models/{name}," in answer.json()["error"]["message"], "as a person writes it"
    answer = get(tiny, "/v1/chat/completions")
    assert answer.status_code == 405 and "GET /v1/chat/completions" in answer.json()["error"]["message"]
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


TURNS = {"messages": [{"role": "user", "content": "a"}]}
BODIES = {
    "/v1/chat/completions": TURNS,
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {**TURNS, "max_tokens": 3},
    "/v1/messages/count_tokens": TURNS,
}
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")
LENGTHS = {"/v1/responses": "max_output_tokens"}


@pytest.mark.parametrize("path", BODIES)
def test_a_value_out_of_range_is_refused_by_its_name_in_the_words_of_the_api(tiny, path):
    """Temperature 9000 was answered, with noise."""
    most = 1 if path in ANTHROPIC else 2
    wrong = [("temperature", 9000, f"to {most}"), ("temperature", most + 0.01, f"to {most}")]
    wrong += [("temperature", -1, "from 0"), ("top_p", 1.5, "from 0"), ("top_p", -0.1, "from 0")]
    wrong += [(LENGTHS.get(path, "max_tokens"), 0, "1 or more")]
    if "completions" in path:
        for name in ("presence_penalty", "frequency_penalty"):
            wrong += [(name, -2.1, "from -2 to 2"), (name, 2.1, "from -2 to 2")]
        wrong += [("n", 0, "from 1 to 128"), ("n", 129, "from 1 to 128")]
        listed = "top_logprobs" if "chat" in path else "logprobs"
        wrong += [(listed, -1, "from 0 to"), (listed, 21, "from 0 to")]
    for name, value, expected in wrong:
        answer = post(tiny, path, json={**BODIES[path], name: value})
        body = answer.json()
        assert answer.status_code == 400 and body["error"]["type"] == "invalid_request_error", (name, value)
        assert body.get("type") == ("error" if path in ANTHROPIC else None)
        message = body["error"]["message"]
        assert message.startswith(f"{name} is {value}; it must be ") and expected in message


@pytest.mark.parametrize("path", BODIES)
def test_the_ends_of_the_ranges_are_answered(tiny, path):
    """Of top_p 0 is one, which clients send who want the likeliest token."""
    most = 1 if path in ANTHROPIC else 2
    length = {} if "count" in path else {LENGTHS.get(path, "max_tokens"): 1}
    for choices in ({"temperature": 0, "top_p": 1}, {"temperature": most, "top_p": 0}):
        answer = post(tiny, path, json={**BODIES[path], **length, **choices})
        assert answer.status_code == 200, answer.text


def test_no_page_and_nobody_without_the_key_is_answered(folder):
    with served(tiny_load(folder), api_key="secret") as running:
        assert get(running, "/v1/models").status_code == 401
        assert get(running, "/health").status_code in (200, 503)
        assert get(running, "/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
        headers = {"Authorization": "Bearer secret", "Origin": "http://evil.com"}
        assert post(running, "/v1/completions", headers=headers, json={"prompt": "a"}).status_code == 403
        assert [model.id for model in running.client(api_key="secret").models.list()] == ["tiny"]
