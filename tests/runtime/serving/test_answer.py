"""What a client reads of an answer, however slowly; what it does not read in time is joined."""

import asyncio
import threading

import pytest

from profiles.errors import OverstoryError
from runtime.events import Finished, PrefillProgress, TextDelta
from runtime.prompts.prompt_file import PromptRequest
from runtime.serving.answer import Answer, Wanted
from tests.support.answer_fakes import STATISTICS

FINISHED = Finished("stop", "abc", STATISTICS)


def run(read, *events):
    """What `read` makes of an answer into which a thread puts events."""

    async def main():
        request = PromptRequest(id="1", prompt="x")
        answer = Answer(Wanted(request=request), "me", 0.0, asyncio.get_running_loop())
        thread = threading.Thread(target=lambda: [answer.put(event) for event in events])
        thread.start()
        try:
            return await asyncio.wait_for(read(answer, thread), 10)
        finally:
            thread.join()

    return asyncio.run(main())


async def slowly(answer, thread):
    await asyncio.to_thread(thread.join)
    return [event async for event in answer]


async def at_once(answer, thread):
    return [event async for event in answer]


def test_what_is_not_read_in_time_is_joined():
    texts = [TextDelta(sign) for sign in "abc"]
    progress = [PrefillProgress(done, 9) for done in range(9)]
    found = run(slowly, *progress, *texts, FINISHED)
    assert found == [progress[-1], TextDelta("abc"), FINISHED]


def test_a_reader_that_waits_loses_nothing():
    texts = [TextDelta(sign) for sign in "abc" * 200]
    found = run(at_once, *texts, FINISHED)
    assert found[-1] is FINISHED
    assert "".join(event.text for event in found[:-1]) == "abc" * 200


def test_an_error_is_raised_behind_what_came_before_it():
    async def read(answer, thread):
        first = await anext(answer)
        with pytest.raises(OverstoryError, match="gone"):
            await anext(answer)
        with pytest.raises(StopAsyncIteration):
            await anext(answer)
        return first

    assert run(read, TextDelta("a"), OverstoryError("the link is gone")) == TextDelta("a")


def test_nobody_who_is_gone_is_told_anything():
    async def read(answer, thread):
        answer.is_dropped = True
        await asyncio.to_thread(thread.join)
        answer.put(TextDelta("b"))
        return len(answer._events)

    assert run(read) == 0
