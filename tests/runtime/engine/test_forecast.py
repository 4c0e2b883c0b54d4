"""What a run is predicted to take: its prompts in tokens, its passes one by one, and what cannot be answered."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offload.errors import CheckpointError
from profiles.steps import finish
from runtime.config import EngineConfig, SamplingParams
from runtime.engine import forecast as forecasting
from runtime.engine.forecast import Asked, Forecast, forecast_run, locate_here, run_through
from runtime.fit import probes
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.model_factory import build_tokenizer
from tests.support.plan_fakes import processor
from tests.support.session_factory import save_tiny_folder


class Rounds:
    """A round brings each text 2.5 tokens and takes 0.1 s longer for each; a token that is read takes 0.01 s."""

    def of(self, num_texts: int) -> Any:
        return SimpleNamespace(tree=SimpleNamespace(expected_tokens=2.5, round_seconds=1 + 0.1 * num_texts))

    def chunk(self, num_unread: int) -> int:
        return min(num_unread, 8)

    def more_seconds(self, num_tokens: int, num_texts: int) -> float:
        return 0.01 * num_tokens


def passes_one_by_one(lengths: list[int], num_together: int) -> tuple[int, float]:
    """The same run, pass by pass, of prompts that are read already."""
    coming, live, num_passes, seconds = list(lengths), [], 0, 0.0
    while coming or live:
        while coming and len(live) < num_together:
            live.append(float(coming.pop(0)))
        seconds += 1 + 0.1 * len(live)
        num_passes += 1
        live = [left for left in (left - 2.5 for left in live) if left > 0]
    return num_passes, seconds


@pytest.mark.parametrize("num_together", [1, 2, 4])
def test_passes_are_those_of_a_run_pass_by_pass(num_together: int) -> None:
    for lengths in ([10], [1, 1, 1], [10, 3, 25, 25, 7, 1], [40] * 9, list(range(1, 30))):
        asked = [Asked(5, 0, length) for length in lengths]
        found = run_through(asked, num_together, Rounds())  # type: ignore[arg-type]
        num_passes, seconds = passes_one_by_one(lengths, num_together)
        assert found.num_passes == num_passes
        assert math.isclose(found.seconds, seconds)
        assert found.reading_seconds == 0


def test_long_prompts_are_read_in_passes_that_bring_no_round() -> None:
    short = run_through([Asked(4, 4, 10)], 1, Rounds())  # type: ignore[arg-type]
    long = run_through([Asked(40, 40, 10)], 1, Rounds())  # type: ignore[arg-type]
    assert (short.num_passes, math.isclose(short.reading_seconds, 0.04)) == (4, True)
    assert (long.num_passes, math.isclose(long.reading_seconds, 0.4)) == (4 + 4, True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(device: str, **_: Any) -> Iterator[str]:
        yield "measuring"
        return processor()  # type: ignore[return-value]

    monkeypatch.setattr(probes, "this_machine", measure)


def raw(text: str, number: int, **params: Any) -> PromptRequest:
    return PromptRequest(
        id=f"p{number}", prompt=text, params=SamplingParams(**{"max_new_tokens": 16} | params), line_number=number
    )


def predict(folder: Path, requests: list[PromptRequest], tmp_path: Path, **settings: Any) -> Forecast:
    config = EngineConfig(**{"target": str(folder), "draft": "none", "num_texts": None} | settings)
    return finish(forecast_run(config, requests, cache_folder=tmp_path))


def test_tokens_are_counted_by_the_tokenizer_and_a_shared_beginning_once(folder: Path, tmp_path: Path) -> None:
    text = "the cat and the dog and the bird and the fish and the cow and the horse"
    found = predict(folder, [raw(text, 1), raw(text, 2, max_new_tokens=5)], tmp_path, num_texts=2)
    num_tokens = len(build_tokenizer()(text)["input_ids"])
    assert found.asked[0] == Asked(num_tokens, num_tokens, 16)
    assert found.asked[1] == Asked(num_tokens, 1, 5)
    assert (found.prompt_tokens, found.most_new_tokens, found.num_together) == (2 * num_tokens, 21, 2)


def test_without_a_draft_every_pass_brings_a_token(folder: Path, tmp_path: Path) -> None:
    found = predict(folder, [raw("the cat", number) for number in (1, 2, 3)], tmp_path, num_texts=4)
    assert found.report is not None and found.schedule is not None and found.problem is None
    assert (found.num_together, found.schedule.num_passes) == (3, 16)
    assert found.report.question.request.num_prompts == 3
    assert found.schedule.seconds >= 16 * found.report.main.tree.round_seconds
    alone = predict(folder, [raw("the cat", number) for number in (1, 2, 3)], tmp_path, num_texts=1)
    assert alone.schedule is not None and alone.schedule.num_passes == 48
    assert alone.schedule.seconds > found.schedule.seconds


def test_a_draft_brings_more_tokens_a_pass(folder: Path, tmp_path: Path) -> None:
    requests = [raw("the cat", number) for number in (1, 2)]
    found = predict(folder, requests, tmp_path, draft="substitute", tree="4x3")
    assert found.report is not None and found.schedule is not None
    tree = found.report.main.tree
    assert (tree.num_nodes, tree.num_levels) == (4, 3)
    assert found.schedule.num_passes == math.ceil(16 / tree.expected_tokens) < 16


def test_what_a_run_would_refuse_is_named(folder: Path, tmp_path: Path) -> None:
    requests = [
        raw("the cat", 1),
        raw("the cat and the dog " * 20, 2),
        PromptRequest(id="p3", messages=(Message("user", "hi"),), line_number=3),
    ]
    found = predict(folder, requests, tmp_path, context_tokens=32)
    assert [request.id for request, _ in found.refused][:1] == ["p2"]
    assert "the context holds 32" in found.refused[0][1]
    assert len(found.asked) + len(found.refused) == 3
    none = predict(folder, requests[1:2], tmp_path, context_tokens=32)
    assert (none.report, none.schedule, none.problem) == (None, None, "no prompt can be answered")


def test_a_model_that_no_plan_can_be_made_for_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("nobody knows its shape")

    monkeypatch.setattr(forecasting, "question_beside", refuse)
    found = predict(folder, [raw("the cat", 1)], tmp_path)
    assert (found.report, found.problem) == (None, "nobody knows its shape")
    assert found.prompt_tokens > 0


def test_a_dry_run_downloads_nothing(folder: Path, tmp_path: Path) -> None:
    here = locate_here(EngineConfig(target=str(folder), draft=str(folder)), cache_folder=tmp_path)
    assert (here.target, here.draft) == (str(folder), str(folder))
    for config in (
        EngineConfig(),
        EngineConfig(target="nobody/nothing"),
        EngineConfig(target=str(folder), draft="a/b"),
    ):
        with pytest.raises(CheckpointError, match="is not on this machine, and a dry run downloads nothing"):
            locate_here(config, cache_folder=tmp_path)
