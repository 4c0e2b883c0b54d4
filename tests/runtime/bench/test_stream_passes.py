"""Turns move exactly their bytes; the yardsticks read every byte once, and wait for both sides of the overlap."""

import threading
import time
from pathlib import Path

import pytest
import torch

from offload.layer_streamer import ResidentLayer
from profiles.steps import finish
from runtime.bench import rounds
from runtime.bench.rounds import (
    free_overlap_seconds,
    raw_link_seconds,
    run_stream,
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
        pairs = zip(opened.plan.target.layouts, opened.streamer.layers, strict=True)
        payload = sum(layout.payload_bytes for layout, layer in pairs if not isinstance(layer, ResidentLayer))
    turns = report["turns"]
    assert [sentence.split(" %")[0] for sentence in said] == [f"turn: {100 * turn['ratio']:.1f}" for turn in turns]
    assert len(turns) == 2
    assert report["bytes_per_pass"] == payload
    assert (report["num_resident_layers"], report["num_streamed_layers"]) == (1, 3)
    assert min(min(turn.values()) for turn in turns) >= 0
    for name in ("ratio", "seconds_over_free_overlap", "raw_bytes_per_second", "bytes_per_second", "seconds_per_pass"):
        assert report[name] == pytest.approx(sum(turn[name] for turn in turns) / 2)  # the median of two
    for turn in turns:
        assert turn["ratio"] == turn["bytes_per_second"] / turn["raw_bytes_per_second"]
        assert turn["seconds_over_free_overlap"] == turn["seconds_per_pass"] / turn["free_overlap_seconds"]
        assert turn["bytes_per_second"] * turn["seconds_per_pass"] == pytest.approx(payload)
    assert report["peak_over_planned"] == report["peak_bytes"] / report["planned_bytes"]


def test_over_an_emulated_link_a_turn_moves_exactly_its_passes_bytes(folder: Path) -> None:
    """From a full ring to a full ring, so that the rate cannot exceed the link's; 0.97 of it on quiet cores."""
    with open_tiny(folder, link="2MB/s") as opened:
        report = finish(run_stream(opened, num_turns=2, passes_per_turn=2))
    assert report["turns"][0]["raw_bytes_per_second"] == pytest.approx(2e6)
    assert 0.2 < report["ratio"] <= 1.0
    assert report["turns"][0]["free_overlap_seconds"] >= 0.99 * report["bytes_per_pass"] / 2e6


def test_two_links_are_left_to_the_round_benchmark(folder: Path) -> None:
    with (
        open_tiny(folder, link="2MB/s", disk_link="1MB/s", host_memory_bytes=45_000) as opened,
        pytest.raises(OptionError, match="bench round"),
    ):
        next(run_stream(opened))


def test_nothing_to_stream_is_a_sentence(folder: Path) -> None:
    with open_tiny(folder) as opened, pytest.raises(OptionError, match="--device-memory"):
        next(run_stream(opened))


def test_over_an_emulated_link_the_free_overlap_is_the_longer_of_both(folder: Path) -> None:
    with open_tiny(folder, link="1MB/s") as opened:
        link_seconds = opened.placement.streamed_bytes / 1e6
        assert raw_link_seconds(opened) == pytest.approx(link_seconds)
        assert free_overlap_seconds(opened, lambda: None) >= 0.99 * link_seconds
        assert free_overlap_seconds(opened, lambda: time.sleep(link_seconds + 0.05)) > link_seconds


def test_a_files_seconds_are_measured_by_reading_it(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert raw_link_seconds(opened) > 0


def test_a_free_overlap_reads_while_it_computes_and_waits_for_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ends when the pass is done, which only comes to pass if neither waits for the other."""
    with open_tiny(folder, num_residents=1) as opened:
        read, is_done = list[OpenSession](), threading.Event()

        def slow_read(opened: OpenSession) -> float:
            assert is_done.wait(timeout=60)
            time.sleep(0.1)
            read.append(opened)
            return 0.1

        monkeypatch.setattr(rounds, "raw_link_seconds", slow_read)
        assert free_overlap_seconds(opened, is_done.set) > 0.1
        assert read == [opened]
