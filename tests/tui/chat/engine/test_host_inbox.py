"""Work waits in line; a stop and the end act at once, whenever they come."""

import queue
import threading
from collections.abc import Iterator

import pytest

from runtime.config import EngineConfig
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.chat.engine.host import RequestInbox
from tui.chat.engine.messages import Answer, LoadModel, Quit, Request, StopAnswer, to_line

LOAD = LoadModel(EngineConfig(target="a"))


def ask(answer_id: int) -> Answer:
    return Answer(answer_id, PromptRequest(id="x", messages=(Message("user", "?"),)))


@pytest.fixture
def lines() -> queue.SimpleQueue[bytes | None]:
    return queue.SimpleQueue()


@pytest.fixture
def inbox(lines: queue.SimpleQueue[bytes | None]) -> Iterator[RequestInbox]:
    """An inbox that a thread reads into, as in the engine's process."""
    inbox = RequestInbox()
    thread = threading.Thread(target=inbox.read, args=(iter(lines.get, None),))
    thread.start()
    yield inbox
    lines.put(None)
    thread.join()


def whole(*requests: Request) -> RequestInbox:
    """An inbox that has read all of this and nothing after it."""
    inbox = RequestInbox()
    for request in requests:
        inbox._take_in(request)
    return inbox


def test_work_is_taken_in_order_and_ends_with_quit(inbox, lines):
    for request in (LOAD, ask(1), ask(2)):
        lines.put(to_line(request))
        assert inbox.take() == request
    lines.put(to_line(Quit()))
    assert inbox.take() is None
    assert inbox.complaint is None


def test_the_end_of_the_pipe_ends_the_work(inbox, lines):
    lines.put(None)
    assert inbox.take() is None
    lines.put(None)


def test_what_still_waits_at_the_end_is_dropped():
    inbox = RequestInbox()
    inbox.read([to_line(LOAD), to_line(Quit()), b"never read"])
    assert inbox.take() is None
    assert inbox.complaint is None


def test_a_line_that_is_no_request_ends_the_work_with_a_complaint():
    inbox = RequestInbox()
    inbox.read([b"hello\n"])
    assert inbox.take() is None
    assert inbox.complaint is not None and "is no message" in inbox.complaint


@pytest.mark.parametrize(
    "last",
    [to_line(StopAnswer(7)), to_line(LOAD), to_line(Quit()), None],
    ids=["stop", "another model", "quit", "app gone"],
)
def test_an_answer_under_way_is_stopped_by_a_stop_a_load_and_the_end(inbox, lines, last):
    stopped = threading.Event()
    with inbox.stoppable(7, stopped.set):
        lines.put(last)
        assert stopped.wait(200)
    lines.put(None)


def test_a_load_is_outdated_once_another_waits():
    inbox = whole(LOAD)
    assert inbox.take() == LOAD
    assert not inbox.is_load_outdated
    inbox._take_in(ask(1))
    assert not inbox.is_load_outdated
    inbox._take_in(LOAD)
    assert inbox.is_load_outdated
    assert inbox.take() == ask(1) and inbox.take() == LOAD
    assert not inbox.is_load_outdated
    inbox.read([])
    assert inbox.is_load_outdated


def test_a_stop_may_come_before_its_answer_is_begun():
    stopped = threading.Event()
    inbox = whole(ask(7), ask(8), StopAnswer(8))
    with inbox.stoppable(7, stopped.set):
        assert not stopped.is_set()
    with inbox.stoppable(8, stopped.set):
        assert stopped.is_set()


@pytest.mark.parametrize("requests", [[StopAnswer(6)], [StopAnswer(8)], [ask(8), StopAnswer(8)]])
def test_a_stop_of_another_answer_stops_none(requests):
    stopped = threading.Event()
    inbox = whole(ask(7))
    with inbox.stoppable(7, stopped.set):
        for request in requests:
            inbox._take_in(request)
        assert not stopped.is_set()


def test_a_stop_that_comes_after_the_end_is_forgotten():
    inbox = whole(ask(7))
    stopped = threading.Event()
    with inbox.stoppable(7, stopped.set):
        pass
    inbox._take_in(StopAnswer(7))
    assert not stopped.is_set()
    with inbox.stoppable(8, stopped.set):
        assert not stopped.is_set()
