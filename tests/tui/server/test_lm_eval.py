"""lm-evaluation-harness's own `local-completions` asks the server, and finds what our model finds in its process.

Its packages take 600 MB, so that they are set up for `make test-all` alone (extra `eval`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.scoring.test_harness import NUM_ITEMS, TASKS, evaluate, tasks
from tests.support.served import Served, served, tiny_load

__all__ = ["evaluate", "tasks"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def over_http(running: Served, folder: Path) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{running.url}/v1/completions",
        model="any",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=128,
        batch_size=16,
        num_concurrent=2,
    )


def test_scores_over_http_are_those_of_the_model(folder: Path, evaluate: Callable[[Any, int], dict[str, Any]]) -> None:
    from runtime.scoring.harness import OverstoryLM

    with OverstoryLM(str(folder), draft="none", device="cpu") as model:
        ours = evaluate(model, NUM_ITEMS)
    with served(tiny_load(folder, num_texts=8, device_memory_bytes=None), most_waiting=10**6) as running:
        running.wait(lambda state: state.phase == "ready")
        theirs = evaluate(over_http(running, folder), NUM_ITEMS)
        tally = running.dispatcher.state.tally
    for name in TASKS:
        for found, wanted in zip(theirs["samples"][name], ours["samples"][name], strict=True):
            assert found["doc_id"] == wanted["doc_id"]
            for response, expected in zip(found["resps"], wanted["resps"], strict=True):
                is_text = isinstance(expected[0], str)
                assert response[0] == (expected[0] if is_text else pytest.approx(expected[0], abs=1e-4)), name
        for metric, value in ours["results"][name].items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert theirs["results"][name][metric] == expected, (name, metric)
    assert tally.num_scored_tokens > 0 and set(tally.num_ended) <= {"length", "stop"}
    assert sum(tally.num_ended.values()) >= 5 * NUM_ITEMS
