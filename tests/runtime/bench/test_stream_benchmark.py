from pathlib import Path

import pytest

from runtime.bench.stream_benchmark import StreamReport, StreamTurn, run_stream_benchmark
from runtime.errors import OptionError
from tests.support.session_factory import open_tiny, save_tiny_folder


def test_a_run_reports_each_turn_and_every_byte(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", seed=37)
    with open_tiny(folder, num_residents=1, io="buffered") as opened:
        *turns, report = run_stream_benchmark(opened, num_turns=2, passes_per_turn=3)
        payload = opened.session.engine.target.last_pass.bytes_streamed
    assert isinstance(report, StreamReport)
    assert report.turns == tuple(turns)
    assert len(turns) == 2
    assert report.bytes_per_pass == payload
    assert (report.num_resident_layers, report.num_streamed_layers) == (1, 3)
    record = report.to_record()
    assert record["ratio"] == pytest.approx(sum(turn.ratio for turn in turns) / 2)  # the median of two
    assert record["raw_bytes_per_second"] > 0
    assert record["seconds_per_pass"] > 0


def test_the_ratio_is_the_median_of_the_turns() -> None:
    turns = tuple(StreamTurn(100.0, 0.8, achieved, 1.0, 0.5) for achieved in (90.0, 99.0, 10.0))
    report = StreamReport(turns, 1, 1, 0, 1, peak_bytes=11, planned_bytes=10, bare_seconds_per_pass=2.0)
    assert report.ratio == pytest.approx(0.9)
    assert report.to_record()["peak_over_planned"] == pytest.approx(1.1)
    assert report.to_record()["seconds_over_bare_loop"] == pytest.approx(0.5)
    assert report.to_record()["seconds_over_free_overlap"] == pytest.approx(1.25)


def test_over_an_emulated_link_a_turn_moves_exactly_its_passes_bytes(tmp_path: Path) -> None:
    """From a full ring to a full ring: the rate can then not exceed the link's, and stays close below it."""
    folder = save_tiny_folder(tmp_path / "model", seed=37)
    with open_tiny(folder, link="2MB/s") as opened:
        *_, report = run_stream_benchmark(opened, num_turns=2, passes_per_turn=2)
    assert isinstance(report, StreamReport)
    assert report.turns[0].raw_bytes_per_second == pytest.approx(2e6)
    assert 0.8 < report.ratio <= 1.0
    assert report.bare_seconds_per_pass > report.bytes_per_pass / 2e6


def test_two_links_are_left_to_the_round_benchmark(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    with (
        open_tiny(folder, link="2MB/s", disk_link="1MB/s", host_memory_bytes=90_000) as opened,
        pytest.raises(OptionError, match="bench round"),
    ):
        list(run_stream_benchmark(opened))


def test_nothing_to_stream_is_a_sentence(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "model")) as opened, pytest.raises(OptionError, match="--device-memory"):
        list(run_stream_benchmark(opened))
