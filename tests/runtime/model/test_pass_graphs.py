"""Recorded passes against passes as they come; the recorder here repeats the work on whatever its inputs now hold."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.model import pass_graphs, streamed_model
from runtime.model.layer_binding import ComputePlan, HostEmbedding
from runtime.model.pass_graphs import (
    MAX_WIDTH,
    USES_BEFORE_RECORDING,
    PassGraphs,
    Recorder,
    Replay,
    bucket_of,
    recorder_for,
)
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.trees import tree_of_counts

PROMPT = [5, 17, 40, 8, 33, 62, 9, 71, 20, 14]


class RepeatingRecorder:
    """Keeps the first run's output tensor, and fills it anew at each replay, as a graph does."""

    def __init__(self) -> None:
        self.num_replays = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> Replay:
        work()
        output = work()

        def replay() -> torch.Tensor:
            self.num_replays += 1
            with torch.inference_mode():
                output.copy_(work())
            return output

        return replay


class RefusingRecorder:
    def __call__(self, work: Callable[[], torch.Tensor]) -> Replay:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


def drafts(folder: Path, *recorders: Recorder | None) -> list[StreamedModel]:
    """The same resident model once for each recorder; their weights outlive the sessions that loaded them."""
    models = []
    for recorder in recorders:
        with open_tiny(folder, draft=folder) as opened:
            drafter = opened.session.engine.drafter
            assert drafter is not None
            model = drafter.model
        if recorder is not None:
            model._graphs = PassGraphs(recorder, model._forward_full, model.cache, dtype=torch.float32)
        models.append(model)
    return models


def tree_input(rng: np.random.Generator, num_cached: int, num_nodes: int) -> PassInput:
    """A random tree's nodes behind `num_cached` tokens."""
    counts = [0] * num_nodes
    for node in range(1, num_nodes):
        counts[int(rng.integers(0, node))] += 1
    try:
        topology = tree_of_counts(counts)
    except ValueError:
        topology = tree_of_counts([num_nodes - 1] + [0] * (num_nodes - 1))
    positions = np.concatenate([np.arange(num_cached), num_cached + topology.depths]).astype(np.int64)
    visible = np.ones((num_nodes, num_cached + num_nodes), dtype=np.bool_)
    visible[:, num_cached:] = topology.ancestor_mask
    return PassInput(rng.integers(3, 90, num_nodes), positions[num_cached:], positions, visible)


def test_recorded_passes_equal_passes_as_they_come(tmp_path: Path) -> None:
    recorder = RepeatingRecorder()
    recorded, plain = drafts(save_tiny_folder(tmp_path / "m"), recorder, None)
    rng = np.random.default_rng(0)
    for model in (recorded, plain):
        model.run_pass(chain_input(PROMPT, num_cached=0))
    for _ in range(40):
        inputs = tree_input(rng, plain.cache.num_cached, int(rng.integers(1, 9)))
        found, expected = recorded.run_pass(inputs), plain.run_pass(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        start = plain.cache.num_cached - len(inputs.token_ids)
        kept = [start, start + len(inputs.token_ids) - 1][: int(rng.integers(0, 3))]
        for model in (recorded, plain):
            model.cache.compact(start, sorted(set(kept)))
            model.cache.truncate(min(model.cache.num_cached, 60))
        assert recorded.cache.num_cached == plain.cache.num_cached
    assert recorder.num_replays > 20
    assert recorded._graphs is not None
    assert len(recorded._graphs._passes) <= 4  # widths 1, 2, 4, 8


def test_rows_from_host_memory_are_gathered_outside_of_the_recording(tmp_path: Path) -> None:
    """They are inputs like the tokens: what is recorded only looks at them."""
    recorder, table = RepeatingRecorder(), torch.randn(96, 32)
    recorded, plain = drafts(save_tiny_folder(tmp_path / "m"), recorder, None)
    for model in (recorded, plain):
        inputs = model.parts.model.get_input_embeddings()
        model._embedding = HostEmbedding(inputs, table, ComputePlan(torch.float32))
    assert recorded._graphs is not None
    recorded._graphs._embedding = recorded._embedding
    for step in range(8):
        inputs = chain_input([5 + step, 90 - step, 40][: 1 + step % 3], num_cached=plain.cache.num_cached)
        torch.testing.assert_close(recorded.run_pass(inputs), plain.run_pass(inputs), rtol=1e-5, atol=1e-5)
    assert recorder.num_replays > 0


def test_what_a_replay_returned_outlives_the_next_one(tmp_path: Path) -> None:
    (recorded,) = drafts(save_tiny_folder(tmp_path / "m"), RepeatingRecorder())
    recorded.run_pass(chain_input(PROMPT, num_cached=0))
    for _ in range(USES_BEFORE_RECORDING):
        recorded.run_pass(chain_input([7], num_cached=recorded.cache.num_cached))
    first = recorded.run_pass(chain_input([8], num_cached=recorded.cache.num_cached))
    before = first.clone()
    recorded.run_pass(chain_input([9], num_cached=recorded.cache.num_cached))
    assert torch.equal(first, before)


def test_a_shape_is_recorded_after_it_came_twice_and_wide_ones_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RepeatingRecorder()
    (recorded,) = drafts(save_tiny_folder(tmp_path / "m"), recorder)
    graphs = recorded._graphs
    assert graphs is not None
    recorded.run_pass(chain_input(PROMPT, num_cached=0))
    for _ in range(USES_BEFORE_RECORDING):
        recorded.run_pass(chain_input([7], num_cached=recorded.cache.num_cached))
        assert len(graphs._passes) == 0
    recorded.run_pass(chain_input([7], num_cached=recorded.cache.num_cached))
    assert (len(graphs._passes), recorder.num_replays) == (1, 1)
    monkeypatch.setattr(pass_graphs, "MAX_WIDTH", 4)
    for _ in range(USES_BEFORE_RECORDING + 1):
        recorded.run_pass(chain_input([7] * 5, num_cached=recorded.cache.num_cached))
    assert len(graphs._passes) == 1


def test_where_nothing_can_be_recorded_passes_run_as_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused, plain = drafts(save_tiny_folder(tmp_path / "m"), RefusingRecorder(), None)
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            inputs = chain_input([7 + step], num_cached=plain.cache.num_cached)
            torch.testing.assert_close(refused.run_pass(inputs), plain.run_pass(inputs))
    assert [record.message for record in caplog.records] == [
        "draft passes are not recorded, which makes them slower: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(("kind", "is_recorded"), [("llama", True), ("mistral", False)])
def test_only_models_without_windows_are_recorded(
    kind: str, is_recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RepeatingRecorder()
    monkeypatch.setattr(streamed_model, "recorder_for", lambda device: recorder)
    (model,) = drafts(save_tiny_folder(tmp_path / "m", kind), None)
    model.run_pass(chain_input(PROMPT, num_cached=0))
    for _ in range(USES_BEFORE_RECORDING + 1):
        model.run_pass(chain_input([7], num_cached=model.cache.num_cached))
    assert recorder.num_replays == is_recorded


def test_a_recorded_draft_writes_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = (save_tiny_folder(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    asked = request(max_new_tokens=48)
    with open_tiny(folder) as opened:
        expected = answer(opened, asked)[1]
    recorder = RepeatingRecorder()
    monkeypatch.setattr(streamed_model, "recorder_for", lambda device: recorder)
    with open_tiny(folder, draft=other, tree="12x4") as opened:
        assert answer(opened, asked)[1] == expected
    assert recorder.num_replays > 0


def test_a_processor_has_no_recorder() -> None:
    assert recorder_for(torch.device("cpu")) is None


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_of(count, 1) for count in (1, 2, 3, 4, 5, 255, 256)] == [1, 2, 4, 4, 8, 256, 256]
    assert bucket_of(3, 256) == 256
    assert bucket_of(257, 256) == 512
    assert bucket_of(MAX_WIDTH, 1) == MAX_WIDTH
