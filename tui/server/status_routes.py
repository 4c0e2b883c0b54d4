"""How the server does: /health for people and service managers, /metrics for Prometheus."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from runtime.serving.dispatcher import ServerState
from tui.server.exchange import ApiRoute, Service

_COUNTERS = {
    "prompt_tokens": "Tokens of prompts that were answered.",
    "cached_tokens": "Of these, that were held already and not computed.",
    "new_tokens": "Tokens of answers.",
    "reasoning_tokens": "Of these, of thinking.",
    "scored_tokens": "Tokens of prompts whose own probabilities were asked for.",
    "rounds": "Trees verified, one of each text in a pass.",
    "passes": "Passes over the model that verified trees.",
    "accepted_tokens": "Tokens that these passes emitted; by passes, tokens a pass.",
    "loads": "Times the model was loaded.",
    "unloads": "Times the model was unloaded.",
}
"""What is told of each count of a tally."""


async def health(service: Service, request: Request) -> Response:
    """Say whether answers can be had, and how many wait; 503 while the model loads, though requests wait for it."""
    state = service.dispatcher.state
    loaded = None
    if state.progress is not None:
        loaded = round(state.progress.num_done_bytes / max(1, state.progress.num_bytes), 3)
    body = {
        "status": state.phase,
        "model": service.model,
        "loaded": loaded,
        "running": state.num_running,
        "waiting": state.num_waiting,
        "max_queue": state.most_waiting,
        "lanes": state.num_lanes,
        "context_tokens": state.context_tokens,
    }
    return JSONResponse(body, 503 if state.phase == "loading" else 200)


async def metrics(service: Service, request: Request) -> Response:
    """Say the same and all counts in Prometheus' text format."""
    text = "".join(f"{line}\n" for line in _metrics(service.dispatcher.state))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _metrics(state: ServerState) -> Iterator[str]:
    tally = state.tally
    yield from _described("answers_total", "counter", "Answers by how they ended.")
    for how, number in sorted(tally.num_ended.items()):
        yield f'overstory_answers_total{{end="{how}"}} {number}'
    counts = {"accepted_tokens": tally.num_accepted_tokens, "passes": round(tally.num_passes, 6)}
    for name, help_text in _COUNTERS.items():
        yield from _described(f"{name}_total", "counter", help_text)
        yield f"overstory_{name}_total {counts.get(name, getattr(tally, f'num_{name}'))}"
    for name, total, number, help_text in (
        (
            "answer_seconds",
            tally.answer_seconds,
            sum(tally.num_ended.values()),
            "From an answer's beginning to its end.",
        ),
        ("waiting_seconds", tally.waiting_seconds, tally.num_begun, "Before an answer began."),
    ):
        yield from _described(name, "summary", help_text)
        yield f"overstory_{name}_sum {total:.6f}"
        yield f"overstory_{name}_count {number}"
    gauges = {
        "answers_waiting": (state.num_waiting, "Answers that wait."),
        "answers_running": (state.num_running, "Answers under way."),
        "model_loaded": (int(state.phase == "ready"), "1 while the model is in memory."),
    }
    for name, (value, help_text) in gauges.items():
        yield from _described(name, "gauge", help_text)
        yield f"overstory_{name} {value}"


def _described(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP overstory_{name} {help_text}"
    yield f"# TYPE overstory_{name} {kind}"


ROUTES = (ApiRoute("GET", "/health", health), ApiRoute("GET", "/metrics", metrics))
