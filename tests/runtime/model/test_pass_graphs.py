"""Recorded passes against passes as they come; the recorder here repeats the work on whatever its inputs now hold."""

import contextlib
import logging
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.model import pass_graphs, streamed_model
from runtime.model.layer_binding import ComputePlan, HostEmbedding
from runtime.model.pass_graphs import (
    USES_BEFORE_RECORDING,
    CudaRecorder,
    PassGraphs,
    Recorder,
    Replay,
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
    return PassInput(rng.integers(3, 90, num_nodes), positions[num_cached:], positions, topology.ancestor_mask.copy())


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
    assert len(recorded._graphs._passes) <= 5  # widths 1, 2, 4, 8, and the largest


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
    monkeypatch.setattr(pass_graphs, "RECORDED_WIDTH", 4)
    (recorded,) = drafts(save_tiny_folder(tmp_path / "m"), recorder)
    graphs = recorded._graphs
    assert graphs is not None
    recorded.run_pass(chain_input(PROMPT, num_cached=0))
    for _ in range(USES_BEFORE_RECORDING):
        recorded.run_pass(chain_input([7], num_cached=recorded.cache.num_cached))
        assert len(graphs._passes) == 0
    recorded.run_pass(chain_input([7], num_cached=recorded.cache.num_cached))
    assert [width for width, _ in graphs._passes] == [4, 1], "the largest first"
    assert recorder.num_replays == 1
    for _ in range(USES_BEFORE_RECORDING + 1):
        recorded.run_pass(chain_input([7] * 5, num_cached=recorded.cache.num_cached))
    assert len(graphs._passes) == 2


def test_pieces_of_a_prompt_are_never_recorded(tmp_path: Path) -> None:
    recorder = RepeatingRecorder()
    (recorded,) = drafts(save_tiny_folder(tmp_path / "m"), recorder)
    for _ in range(USES_BEFORE_RECORDING + 2):
        recorded.run_pass(chain_input([7, 8], num_cached=recorded.cache.num_cached), is_prefill=True)
    assert recorded._graphs is not None and not recorded._graphs._passes and not recorded._graphs._uses


class ShortRecorder(RepeatingRecorder):
    """Runs out of memory a number of times before there is some."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures

    def __call__(self, work: Callable[[], torch.Tensor]) -> Replay:
        if self.num_failures:
            self.num_failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")
        return super().__call__(work)


def test_where_memory_was_short_recording_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_graphs, "PASSES_BEFORE_RETRY", 5)
    recorder = ShortRecorder(1)
    short, plain = drafts(save_tiny_folder(tmp_path / "m"), recorder, None)
    notices = []
    for step in range(14):
        inputs = chain_input([7 + step], num_cached=plain.cache.num_cached)
        torch.testing.assert_close(short.run_pass(inputs), plain.run_pass(inputs))
        notices.append(len(short.notices))
    assert notices == [0, 0, 0] + [1] * 6 + [0] * 5, "two uses, a failure, and five passes that run as they come"
    assert recorder.num_replays == 5


def test_where_nothing_can_be_recorded_passes_run_as_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused, plain = drafts(save_tiny_folder(tmp_path / "m"), RefusingRecorder(), None)
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            inputs = chain_input([7 + step], num_cached=plain.cache.num_cached)
            torch.testing.assert_close(refused.run_pass(inputs), plain.run_pass(inputs))
    sentence = (
        "draft passes are not recorded, which makes them slower: operation not permitted when stream is capturing"
    )
    assert [record.message for record in caplog.records] == [sentence]
    assert refused.notices == (sentence,) and plain.notices == ()


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


class FakeCuda:
    """What CudaRecorder calls of torch.cuda, written down in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.pools: list[object] = []
        self.num_streams = 0
        for name, value in {
            "Stream": self._stream,
            "stream": lambda stream: self._entered(stream),
            "current_stream": lambda device: self._named("usual"),
            "graph_pool_handle": object,
            "empty_cache": lambda: self.calls.append("empty cache"),
            "CUDAGraph": self._graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _stream(self, device: torch.device) -> types.SimpleNamespace:
        self.num_streams += 1
        return self._named("side")

    def _named(self, name: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            name=name, wait_stream=lambda other: self.calls.append(f"{name} waits for {other.name}")
        )

    def _entered(self, stream: types.SimpleNamespace) -> contextlib.AbstractContextManager[None]:
        self.calls.append(f"on {stream.name}")
        return contextlib.nullcontext()

    def _graph(self) -> types.SimpleNamespace:
        def begin(*, pool: object, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            self.pools.append(pool)
            self.calls.append("begin")

        return types.SimpleNamespace(
            capture_begin=begin,
            capture_end=lambda: self.calls.append("end"),
            replay=lambda: self.calls.append("replay"),
        )


RECORDING = ["side waits for usual", "on side", "work", "empty cache", "begin", "work", "end", "usual waits for side"]


def test_all_graphs_are_recorded_on_one_stream_into_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are kept by stream inside of a pool: graphs of different streams share no memory."""
    cuda = FakeCuda(monkeypatch)
    record = CudaRecorder(torch.device("cuda"))
    output = torch.zeros(1)

    def work() -> torch.Tensor:
        cuda.calls.append("work")
        return output

    for _ in range(3):
        cuda.calls.clear()
        replay = record(work)
        assert cuda.calls == RECORDING
        assert replay() is output and cuda.calls[-1] == "replay"
    assert cuda.num_streams == 1
    assert len(cuda.pools) == 3 and len(set(map(id, cuda.pools))) == 1


def test_a_recording_that_fails_ends_and_the_usual_stream_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    record = CudaRecorder(torch.device("cuda"))

    def work() -> torch.Tensor:
        cuda.calls.append("work")
        if "begin" in cuda.calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1)

    with pytest.raises(torch.OutOfMemoryError):
        record(work)
    assert cuda.calls == RECORDING
