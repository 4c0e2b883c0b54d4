"""Turns move exactly their bytes; the yardsticks read every byte once, multiply every matrix once, overlap nothing."""

import threading
import time
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout
from profiles.steps import finish
from runtime.bench import stream
from runtime.bench.stream import (
    StreamReport,
    StreamTurn,
    bare_pass_seconds,
    free_overlap_seconds,
    raw_link_seconds,
    run_stream,
    streamed_layouts,
)
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from tests.support.session_factory import open_tiny, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37, dtype=torch.bfloat16)


def test_a_run_reports_each_turn_and_every_byte(folder: Path) -> None:
    with open_tiny(folder, num_residents=1, io="buffered") as opened:
        said = list[str]()
        report = finish(run_stream(opened, num_turns=2, passes_per_turn=3), said.append)
        payload = opened.session.engine.target.last_pass.bytes_streamed
    turns = report.turns
    assert [sentence.split(" %")[0] for sentence in said] == [f"turn: {100 * turn.ratio:.1f}" for turn in turns]
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
    assert report.to_record()["ratio"] == pytest.approx(0.9)
    assert [turn["ratio"] for turn in report.to_record()["turns"]] == pytest.approx([0.9, 0.99, 0.1])
    assert report.to_record()["peak_over_planned"] == pytest.approx(1.1)
    assert report.to_record()["seconds_over_bare_loop"] == pytest.approx(0.5)
    assert report.to_record()["seconds_over_free_overlap"] == pytest.approx(1.25)


def test_over_an_emulated_link_a_turn_moves_exactly_its_passes_bytes(folder: Path) -> None:
    """From a full ring to a full ring, so that the rate cannot exceed the link's; 0.97 of it on quiet cores."""
    with open_tiny(folder, link="2MB/s") as opened:
        report = finish(run_stream(opened, num_turns=2, passes_per_turn=2))
    assert report.turns[0].raw_bytes_per_second == pytest.approx(2e6)
    assert 0.2 < report.to_record()["ratio"] <= 1.0
    assert report.bare_seconds_per_pass > report.bytes_per_pass / 2e6


def test_two_links_are_left_to_the_round_benchmark(folder: Path) -> None:
    with (
        open_tiny(folder, link="2MB/s", disk_link="1MB/s", host_memory_bytes=45_000) as opened,
        pytest.raises(OptionError, match="bench round"),
    ):
        next(run_stream(opened))


def test_nothing_to_stream_is_a_sentence(folder: Path) -> None:
    with open_tiny(folder) as opened, pytest.raises(OptionError, match="--device-memory"):
        next(run_stream(opened))


def test_a_bare_pass_is_the_link_and_the_products_one_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream._LayerProducts, "seconds", lambda products, index: 0.25)
    with open_tiny(folder, link="1MB/s") as opened:
        layouts = streamed_layouts(opened)
        link_seconds = sum(layout.payload_bytes for layout in layouts) / 1e6
        assert raw_link_seconds(opened, layouts) == pytest.approx(link_seconds)
        assert bare_pass_seconds(opened) == pytest.approx(link_seconds + 4 * 0.25)
        assert free_overlap_seconds(opened) == pytest.approx(max(link_seconds, 4 * 0.25))


def test_residents_are_multiplied_but_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tiny(folder, num_residents=1) as opened:
        assert len(streamed_layouts(opened)) == 3
        read = []
        monkeypatch.setattr(stream, "raw_link_seconds", lambda opened, layouts: read.extend(layouts) or 5.0)
        assert bare_pass_seconds(opened) > 15
        assert read == streamed_layouts(opened)


def test_a_files_seconds_are_measured_by_reading_it(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert raw_link_seconds(opened, streamed_layouts(opened)) > 0


def test_a_free_overlap_reads_while_it_multiplies_and_waits_for_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ends when all products are done, which only comes to pass if neither waits for the other."""
    with open_tiny(folder, num_residents=1) as opened:
        read, multiplied, is_done = [], [], threading.Event()

        def slow_read(opened: OpenSession, layouts: list[LayerLayout]) -> float:
            assert is_done.wait(timeout=60)
            time.sleep(0.1)
            read.extend(layouts)
            return 0.1

        def products(self: object, index: int) -> float:
            multiplied.append(index)
            if len(multiplied) == 4:
                is_done.set()
            return 0.0

        monkeypatch.setattr(stream, "raw_link_seconds", slow_read)
        monkeypatch.setattr(stream._LayerProducts, "seconds", products)
        assert free_overlap_seconds(opened) > 0.1
        assert (read, multiplied) == (streamed_layouts(opened), [0, 1, 2, 3])
