"""Parts of rounds are timed on the session's own models, and leave it as it was."""

from pathlib import Path

import pytest

from runtime.calibration import timing
from runtime.calibration.timing import layers_of_zeros, median_seconds, wait_for_full_ring
from runtime.model.streamed_model import chain_input
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def test_the_first_of_several_runs_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 23.0, 30.0, 32.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    calls: list[str] = []
    seconds = median_seconds(
        lambda: calls.append("run"), 4, before=lambda: calls.append("before"), after=lambda: calls.append("after")
    )
    assert seconds == 2.0  # of 9, 1, 3 and 2
    assert calls == ["before", "run", "after"] * 4


def test_one_run_is_its_own_median(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    assert median_seconds(lambda: None, 1) == 9.0


def test_passes_over_zeros_stream_nothing_and_change_nothing(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        expected = answer(opened, request())[1]
        target, before = opened.session.engine.target, opened.link.bytes_copied
        opened.session.engine.truncate(0)
        wait_for_full_ring(opened)
        before = opened.link.bytes_copied
        with layers_of_zeros(opened):
            target.run_pass(chain_input([1, 2, 3], num_cached=0))
        assert opened.link.bytes_copied == before
        assert target.last_pass.bytes_streamed == 0
        target.cache.truncate(0)
        assert answer(opened, request())[1] == expected


def test_a_full_ring_is_waited_for(folder: Path) -> None:
    with open_tiny(folder, num_residents=0, link="4MB/s") as opened:
        opened.streamer.prefetch()
        wait_for_full_ring(opened)
        assert opened.streamer.is_full
