import pytest

from offload.closeable import Closeable


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
