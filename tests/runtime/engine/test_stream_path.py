"""Which engines lie between a session's files and its slots, by what was asked for; accelerators are tested on one."""

from pathlib import Path
from typing import Any

import pytest

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.staged_engine import StagedCopyEngine
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=5)


@pytest.fixture(scope="module")
def text(folder: Path) -> list[int]:
    with open_tiny(folder) as opened:
        return answer(opened, request())[1]


def test_without_a_link_the_disk_feeds_the_ring(folder: Path, text: list[int]) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert opened.link is opened.reader
        assert opened.notes == ()
        assert answer(opened, request())[1] == text


@pytest.mark.parametrize("settings", [{}, {"host_memory_bytes": 0}])
def test_an_emulated_link_paces_what_lies_in_one_place(folder: Path, text: list[int], settings: dict[str, Any]) -> None:
    with open_tiny(folder, link="1GB/s", **settings) as opened:
        assert isinstance(opened.link, EmulatedLink)
        assert answer(opened, request())[1] == text


def test_two_emulated_links_work_at_once_and_both_are_counted(folder: Path, text: list[int]) -> None:
    with open_tiny(folder, link="50MB/s", disk_link="20MB/s", host_memory_bytes=90_000) as opened:
        assert isinstance(opened.link, StagedCopyEngine)
        assert isinstance(opened.link.link, EmulatedLink)
        assert isinstance(opened.link.reader, EmulatedLink)
        assert {type(layer) for layer in opened.streamer.layers} == {HostSource, LayerLayout}
        assert answer(opened, request())[1] == text
        statistics = opened.session.engine.target.last_pass
        assert 0 < statistics.bytes_read < statistics.bytes_streamed
        assert statistics.disk_busy_seconds > 0
        assert opened.placement.stage_bytes == opened.link.ring.num_bytes


def test_layers_in_two_places_behind_one_link_pass_through_stages(folder: Path, text: list[int]) -> None:
    with open_tiny(folder, link="1GB/s", host_memory_bytes=90_000, draft="substitute", tree="8x4") as opened:
        assert isinstance(opened.link, StagedCopyEngine)
        assert answer(opened, request())[1] == text
