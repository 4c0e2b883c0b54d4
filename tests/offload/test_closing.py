import threading

import pytest

from offload.closing import Closeable, Patience


def test_it_is_set_once_its_time_is_up() -> None:
    now = [5.0]
    patience = Patience(2.0, clock=lambda: now[0])
    assert not patience.is_set() and patience.seconds_left == 2.0
    now[0] = 6.5
    assert not patience.wait(0.0) and patience.seconds_left == 0.5
    now[0] = 7.0
    assert patience.is_set() and patience.wait() and patience.seconds_left == 0.0


def test_a_wait_ends_with_it() -> None:
    assert Patience(0.01).wait()
    assert Patience(0.01).wait(30.0)


def test_it_can_be_ended_earlier_from_another_thread() -> None:
    patience = Patience(60.0)
    threading.Timer(0.01, patience.set).start()
    assert patience.wait(30.0) and patience.seconds_left == 0.0


class Door(Closeable):
    def __init__(self) -> None:
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


def test_the_end_of_the_block_closes_and_lets_errors_through() -> None:
    door = Door()
    with pytest.raises(KeyError), door as opened:
        assert opened is door
        raise KeyError
    assert door.num_closed == 1


def test_a_class_that_does_not_say_how_to_close_cannot_be_made() -> None:
    class Wall(Closeable):
        pass

    with pytest.raises(TypeError, match="close"):
        Wall()  # type: ignore[abstract]
