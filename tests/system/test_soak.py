"""Five hundred passes that end in every way leave threads, files, memory and the ring where they were."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.soak_driver import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    with open_tiny(folder) as opened:
        return answer(opened, request(max_new_tokens=12))[1]


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "the disk": (500, {"num_residents": 0, "io": "buffered"}),
    "the disk, with a draft": (
        150,
        {"num_residents": 0, "io": "buffered", "draft": "substitute", "tree": "6x3", "ring_slots": 3},
    ),
    "an emulated link": (200, {"link": "300MB/s,50us", "host_memory_bytes": 0}),
    "two emulated links": (500, {"link": "200MB/s,50us", "disk_link": "100MB/s,100us", "host_memory_bytes": 90_000}),
}
"""How many passes, and what they go over."""


@pytest.mark.parametrize("way", WAYS)
def test_passes_that_end_in_every_way_leave_nothing_behind(way: str, folder: Path, expected: list[int]) -> None:
    num_passes, settings = WAYS[way]
    with open_tiny(folder, **settings) as opened:
        driver = soak(opened, expected, num_passes=num_passes, longest_pass_seconds=0.01)
    assert driver.num_passes >= num_passes
    assert min(driver.endings.values()) > 0, driver.endings
