"""Clients take turns, and within a client the order is that of asking."""

from types import SimpleNamespace

from runtime.serving.fair_queue import FairQueue


def filled(text):
    """A queue of answers such as `a1`, whose client is `a`."""
    queue, answers = FairQueue(), {}
    for name in text.split():
        answers[name] = SimpleNamespace(client=name[0], name=name)
        queue.append(answers[name])
    return queue, answers


def names(queue):
    return [queue.pop().name for _ in range(len(queue))]


def test_a_client_with_many_makes_nobody_wait_who_has_few():
    queue, _ = filled("a1 a2 a3 a4 b1 c1 b2")
    assert len(queue) == 7 and queue.first().name == "a1"
    assert names(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert queue.first() is None


def test_a_client_who_comes_is_the_last_in_turn():
    queue, _ = filled("a1 a2 b1")
    assert queue.pop().name == "a1"
    queue.append(SimpleNamespace(client="c", name="c1"))
    assert names(queue) == ["b1", "a2", "c1"]


def test_one_may_be_taken_out_and_another_put_before_all():
    queue, answers = filled("a1 a2 b1 b2")
    assert queue.remove(answers["a2"]) and not queue.remove(answers["a2"])
    queue.insert(answers["b2"])
    assert queue.first() is answers["b2"]
    assert queue.remove(answers["a1"]) and queue.remove(answers["b1"])
    assert names(queue) == ["b2", "b2"]
    assert not queue.remove(answers["a1"])
