import pytest

from profiles.steps import finish, relabel


def counting(until, closed=None):
    try:
        yield from range(until)
    finally:
        if closed is not None:
            closed.append(until)
    return "done"


def test_a_generator_is_run_to_its_end_in_sight():
    seen = []
    assert finish(counting(3), seen.append) == "done"
    assert seen == [0, 1, 2]
    assert finish(counting(0)) == "done"


def test_steps_are_said_in_other_words_and_the_result_is_kept():
    said = []
    assert finish(relabel(counting(4), lambda step: str(step) if step % 2 else None), said.append) == "done"
    assert said == ["1", "3"]


def test_one_that_is_stopped_early_stops_what_it_relabels():
    closed = []
    relabelled = relabel(counting(3, closed), str)
    assert next(relabelled) == "0"
    relabelled.close()
    assert closed == [3]


def test_an_error_while_saying_leaves_nothing_open():
    closed = []
    with pytest.raises(ZeroDivisionError):
        finish(relabel(counting(3, closed), lambda step: 1 // step))
    assert closed == [3]
