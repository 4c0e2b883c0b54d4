"""When garbage is looked for: once after each activity, and never during one."""

import gc
from collections.abc import Iterator

import pytest

from tui.chat.engine.idle_collection import IDLE_SECONDS, RARELY, IdleCollector


class Idle:
    def __init__(self) -> None:
        self.now, self.num_collections = 100.0, 0
        self.collector = IdleCollector(clock=lambda: self.now, collect=self._collect)

    def _collect(self) -> None:
        self.num_collections += 1

    def wait(self, seconds: float) -> int:
        self.now += seconds
        self.collector.collect_if_idle()
        return self.num_collections


@pytest.fixture
def own_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_nothing_is_collected_while_somebody_types() -> None:
    idle = Idle()
    for _ in range(10):
        idle.collector.note_activity()
        assert idle.wait(IDLE_SECONDS - 0.1) == 0


def test_each_activity_is_followed_by_one_collection() -> None:
    idle = Idle()
    assert idle.wait(60) == 0
    idle.collector.note_activity()
    assert idle.wait(IDLE_SECONDS) == 1
    assert idle.wait(60) == 1
    idle.collector.note_activity()
    assert idle.wait(IDLE_SECONDS) == 2


def test_the_interpreter_leaves_the_oldest_objects_alone(own_thresholds: None) -> None:
    IdleCollector().take_over()
    assert gc.get_threshold()[2] == RARELY
    assert gc.get_freeze_count() > 0
