"""The yardstick: every byte is read once, every matrix multiplied once, and nothing overlaps."""

import time
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout
from runtime.bench import bare_loop
from runtime.bench.bare_loop import bare_pass_seconds, free_overlap_seconds, raw_link_seconds, streamed_layouts
from runtime.engine.loading import OpenSession
from tests.support.session_factory import open_tiny, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2, dtype=torch.bfloat16)


def test_a_bare_pass_is_the_link_and_the_products_one_after_the_other(folder: Path) -> None:
    with open_tiny(folder, link="1MB/s") as opened:
        layouts = streamed_layouts(opened)
        link_seconds = sum(layout.payload_bytes for layout in layouts) / 1e6
        assert raw_link_seconds(opened, layouts) == pytest.approx(link_seconds)
        assert link_seconds < bare_pass_seconds(opened) < 3 * link_seconds


def test_residents_are_multiplied_but_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tiny(folder, num_residents=1) as opened:
        assert len(streamed_layouts(opened)) == 3
        read = []
        monkeypatch.setattr(bare_loop, "raw_link_seconds", lambda opened, layouts: read.extend(layouts) or 5.0)
        assert bare_pass_seconds(opened) > 15
        assert read == streamed_layouts(opened)


def test_a_files_seconds_are_measured_by_reading_it(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert raw_link_seconds(opened, streamed_layouts(opened)) > 0


def test_a_free_overlap_lasts_as_long_as_the_longer_of_reading_and_multiplying(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tiny(folder, link="1MB/s") as opened:
        layouts = streamed_layouts(opened)
        assert free_overlap_seconds(opened) == pytest.approx(raw_link_seconds(opened, layouts))
    with open_tiny(folder, num_residents=1) as opened:
        read = []

        def slow_read(opened: OpenSession, layouts: list[LayerLayout]) -> float:
            read.extend(layouts)
            time.sleep(0.3)
            return 0.3

        monkeypatch.setattr(bare_loop, "raw_link_seconds", slow_read)
        assert 0.3 <= free_overlap_seconds(opened) < 0.6
        assert read == streamed_layouts(opened)
