"""One thread, one session, many clients: a session without a model, which answers word by word when it is told to."""

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from offload.errors import BudgetError
from profiles.errors import OverstoryError
from runtime.errors import QueueFullError, ShuttingDownError
from runtime.events import Finished, LoadProgress, PrefillProgress, TextDelta
from runtime.prompts.prompt_file import PromptRequest
from runtime.serving.answer import Wanted
from runtime.serving.dispatcher import Dispatcher
from tests.support.answer_fakes import ROUND, STATISTICS


@dataclass
class FakeSession:
    """Answers a prompt with its words, one of each answer in a pass; a pass begins as soon as it may."""

    num_lanes: int = 2
    tokenizer: None = None
    passes: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10**6))
    """Passes that may begin."""
    log: list[tuple[str, ...]] = field(default_factory=list)
    """Whose words each pass wrote."""
    dropped: set[str] = field(default_factory=set)
    is_stopped: bool = False
    has_begun: threading.Event = field(default_factory=threading.Event)

    @property
    def engine(self):
        return SimpleNamespace(sequences=[None] * self.num_lanes, context_tokens=99)

    def drop(self, request_id):
        self.dropped.add(request_id)

    def stop(self):
        self.is_stopped = True
        self.passes.release(10**6)

    def answer_coming(self, next_request):
        self.is_stopped = False
        live = {}
        while True:
            while len(live) < self.num_lanes and (request := next_request()) is not None:
                live[request.id] = (request, request.prompt.split())
                yield request, PrefillProgress(0, 2)
            if not live:
                return
            self.has_begun.set()
            assert self.passes.acquire(timeout=60)
            self.log.append(tuple(live))
            for name, (request, words) in list(live.items()):
                is_dropped = name in self.dropped
                word = words.pop(0) if words else "end"
                if word == "broken":
                    raise RuntimeError("a bug")
                if word == "wrong":
                    del live[name]
                    yield request, OverstoryError("that is wrong")
                    continue
                yield request, ROUND
                yield request, TextDelta(word)
                if is_dropped or self.is_stopped or not words:
                    del live[name]
                    reason = "stopped" if is_dropped or self.is_stopped else "stop"
                    yield request, Finished(reason, request.prompt, STATISTICS)


class Loading:
    """Loads sessions, and counts them; none before it may."""

    def __init__(self, session, errors=()):
        self.session = session
        self.errors = list(errors)
        self.num_loaded = self.num_closed = 0
        self.may_load = threading.Event()

    def __call__(self, stack):
        yield "opening"
        assert self.may_load.wait(60)
        yield LoadProgress("layers", 1, 2)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        self.num_loaded += 1
        stack.callback(self.closed)
        return SimpleNamespace(session=self.session)

    def closed(self):
        self.num_closed += 1


@contextmanager
def dispatching(session, *, errors=(), is_held=False, **options):
    """`is_held`: the first load waits for a test's word, so that nothing is idle before it has asked."""
    loading = Loading(session, errors)
    if not is_held:
        loading.may_load.set()
    dispatcher = Dispatcher(loading, **options)
    dispatcher.start()
    try:
        yield dispatcher, loading
    finally:
        loading.may_load.set()
        dispatcher.end()
        dispatcher.join()
        assert loading.num_closed == loading.num_loaded
        assert dispatcher.state.phase == "ended"


def wanted(name, prompt="a b c"):
    return Wanted(request=PromptRequest(id=name, prompt=prompt))


async def texts(answers):
    """The text of each answer, or its error."""

    async def read(answer):
        try:
            return "".join([event.text async for event in answer if isinstance(event, TextDelta)])
        except OverstoryError as error:
            return error

    return await asyncio.wait_for(asyncio.gather(*map(read, answers)), 20)


def ask(dispatcher, client, *names, prompt="a b c"):
    return dispatcher.submit(client, [wanted(name, prompt) for name in names])


async def until(is_so):
    for _ in range(2000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


def test_what_arrives_while_passes_run_joins_them_and_clients_take_turns():
    session = FakeSession(passes=threading.Semaphore(0))

    async def main(dispatcher):
        many = ask(dispatcher, "greedy", "g1", "g2", "g3", "g4")
        await asyncio.to_thread(session.has_begun.wait, 20)
        few = ask(dispatcher, "modest", "m1")
        session.passes.release(100)
        return await texts([*many, *few])

    with dispatching(session) as (dispatcher, _):
        assert asyncio.run(main(dispatcher)) == ["abc"] * 5
        tally = dispatcher.state.tally
    assert session.log[:3] == [("g1", "g2")] * 3
    assert session.log[3] == ("g3", "m1"), "and not g4, which its client asked for before"
    assert tally.num_ended == {"stop": 5} and tally.num_begun == 5
    assert tally.num_rounds == 15 and tally.num_new_tokens == 5 * STATISTICS.new_tokens


def test_an_error_is_that_of_its_own_answer():
    with dispatching(FakeSession()) as (dispatcher, _):

        async def main():
            return await texts([*ask(dispatcher, 1, "1", prompt="a wrong"), *ask(dispatcher, 2, "2")])

        error, text = asyncio.run(main())
        assert (str(error), text) == ("that is wrong", "abc")
        assert dispatcher.state.tally.num_ended == {"error": 1, "stop": 1}


def test_a_pass_that_breaks_ends_those_in_it_and_the_next_answer_loads_anew():
    with dispatching(FakeSession(num_lanes=1)) as (dispatcher, loading):

        async def main():
            return await texts(ask(dispatcher, 1, "1", prompt="a broken b") + ask(dispatcher, 1, "2"))

        error, text = asyncio.run(main())
        assert "unexpected RuntimeError: a bug" in str(error) and text == "abc"
        assert (loading.num_loaded, loading.num_closed) == (2, 1)


def test_more_than_may_wait_are_refused_with_a_time():
    session = FakeSession(num_lanes=1, passes=threading.Semaphore(0))
    with dispatching(session, most_waiting=2) as (dispatcher, _):

        async def main():
            first = ask(dispatcher, 1, "1")
            await asyncio.to_thread(session.has_begun.wait, 20)
            second = ask(dispatcher, 1, "2", "3", "4")  # taken whole, as there was room
            with pytest.raises(QueueFullError, match="3 answers wait already and --max-queue is 2") as refused:
                ask(dispatcher, 2, "5")
            state = dispatcher.state
            assert (state.num_waiting, state.num_running, state.phase) == (3, 1, "ready")
            session.passes.release(100)
            assert await texts(first + second) == ["abc"] * 4
            return refused.value.retry_seconds

        assert 1 <= asyncio.run(main()) <= 600
        assert dispatcher.state.tally.num_ended == {"refused": 1, "stop": 4}


def test_an_answer_is_dropped_where_it_is():
    session = FakeSession(num_lanes=1, passes=threading.Semaphore(0))
    with dispatching(session) as (dispatcher, _):

        async def main():
            running, waiting, other = ask(dispatcher, 1, "1", "2", "3")
            await asyncio.to_thread(session.has_begun.wait, 20)
            dispatcher.drop(waiting)
            dispatcher.drop(running)
            dispatcher.drop(running)
            session.passes.release(100)
            assert await texts([other]) == ["abc"]

        asyncio.run(main())
        assert session.log == [("1",), ("3",), ("3",), ("3",)]
        assert dispatcher.state.tally.num_ended == {"dropped": 2, "stop": 1}


def test_an_idle_model_is_unloaded_and_the_next_request_loads_it():
    with dispatching(FakeSession(), is_held=True, idle_seconds=0.02) as (dispatcher, loading):

        async def main():
            answers = ask(dispatcher, 1, "1")
            loading.may_load.set()
            assert await texts(answers) == ["abc"]
            await until(lambda: dispatcher.state.phase == "unloaded" and loading.num_closed == 1)
            assert dispatcher.state.num_lanes is None
            assert await texts(ask(dispatcher, 1, "2")) == ["abc"]

        asyncio.run(main())
        assert loading.num_loaded == 2


def test_a_load_that_fails_is_told_to_those_who_wait_and_tried_again():
    with dispatching(FakeSession(), errors=[BudgetError("too small"), RuntimeError("odd")]) as (dispatcher, _):

        async def main():
            with pytest.raises(BudgetError, match="too small"):
                await asyncio.wrap_future(dispatcher.first_load)
            (error,) = await texts(ask(dispatcher, 1, "1"))
            assert "the model cannot be loaded: unexpected RuntimeError: odd" in str(error)
            assert await texts(ask(dispatcher, 1, "2")) == ["abc"]

        asyncio.run(main())


def test_at_the_end_everybody_is_told():
    session = FakeSession(num_lanes=1, passes=threading.Semaphore(0))
    with dispatching(session) as (dispatcher, _):

        async def main():
            answers = ask(dispatcher, 1, "1", "2")
            await asyncio.to_thread(session.has_begun.wait, 20)
            dispatcher.end()
            found = await texts(answers)
            with pytest.raises(ShuttingDownError):
                ask(dispatcher, 1, "3")
            return found

        assert all(isinstance(error, ShuttingDownError) for error in asyncio.run(main()))


def test_news_are_told_of_whatever_happens():
    news, session = [], FakeSession(num_lanes=1, passes=threading.Semaphore(0))
    errors = [None, BudgetError("too small")]
    options = {"errors": errors, "is_held": True, "idle_seconds": 0.02, "tell": news.append}
    with dispatching(session, **options) as (dispatcher, loading):

        async def main():
            answers = [dispatcher.submit(1, [Wanted(request=wanted(name).request, asked_by="/x")])[0] for name in "12"]
            loading.may_load.set()
            await asyncio.to_thread(session.has_begun.wait, 20)
            dispatcher.drop(answers[1])
            session.passes.release(100)
            assert await texts(answers[:1]) == ["abc"]
            await until(lambda: dispatcher.state.phase == "unloaded")
            await texts(ask(dispatcher, 1, "3"))

        asyncio.run(main())
    loaded, gone, done, unloaded, failed, told = news
    assert (loaded.num_lanes, loaded.context_tokens) == (1, 99) and loaded.seconds >= 0
    assert (gone.asked_by, gone.how, gone.seconds, gone.statistics) == ("/x", "dropped", 0, None)
    assert (done.how, done.statistics, done.error) == ("stop", STATISTICS, None)
    assert gone.waiting_seconds > 0 and done.seconds > 0
    assert unloaded.idle_seconds == 0.02 and str(failed.error) == "too small"
    assert told.how == "error" and "the model cannot be loaded: too small" in str(told.error)


def test_a_load_under_way_ends_too():
    closed = threading.Event()

    def load(stack):
        try:
            while True:
                yield "opening"
        finally:
            closed.set()

    dispatcher = Dispatcher(load)
    dispatcher.start()
    dispatcher.end()
    dispatcher.join()
    assert closed.is_set() and dispatcher.state.phase == "ended"
