"""How a server does, for people and for Prometheus."""

from tests.support.served import get
from tui.server.status_routes import ROUTES


def counts(running):
    lines = get(running, "/metrics").text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_health_says_what_is_loaded_and_who_waits(tiny):
    tiny.wait(lambda state: state.phase == "ready")
    answer = get(tiny, "/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "model": "tiny",
        "loaded": None,
        "running": 0,
        "waiting": 0,
        "max_queue": 64,
        "lanes": 4,
        "context_tokens": 128,
    }
    assert [route.path for route in ROUTES] == ["/health", "/metrics"]


def test_metrics_count_what_was_answered(tiny):
    before = counts(tiny)
    answer = tiny.client().completions.create(model="any", prompt="the cat", max_tokens=6, logit_bias={"2": -100})
    after = counts(tiny)

    def more(name):
        return float(after[name]) - float(before.get(name, 0))

    assert more('overstory_answers_total{end="length"}') == 1
    assert more("overstory_new_tokens_total") == answer.usage.completion_tokens == 6
    assert more("overstory_prompt_tokens_total") == answer.usage.prompt_tokens
    assert more("overstory_cached_tokens_total") == answer.usage.prompt_tokens_details.cached_tokens
    assert more("overstory_passes_total") == more("overstory_rounds_total") == 6
    assert more("overstory_answer_seconds_count") == 1 and more("overstory_answer_seconds_sum") > 0
    assert after["overstory_model_loaded"] == "1"
    described = [line.split()[2] for line in get(tiny, "/metrics").text.splitlines() if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
