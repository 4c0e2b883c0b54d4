"""Paths and methods that there are, and what is said of others."""

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


def test_no_page_and_nobody_without_the_key_is_answered(folder):
    with served(tiny_load(folder), api_key="secret") as running:
        assert get(running, "/v1/models").status_code == 401
        assert get(running, "/health").status_code in (200, 503)
        assert get(running, "/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
        headers = {"Authorization": "Bearer secret", "Origin": "http://evil.com"}
        assert post(running, "/v1/completions", headers=headers, json={"prompt": "a"}).status_code == 403
        assert [model.id for model in running.client(api_key="secret").models.list()] == ["tiny"]
