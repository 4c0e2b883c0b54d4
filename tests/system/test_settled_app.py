"""Behind a key a pilot sees what the key has led to, also where the app's process hardly gets the processor."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from textual import _wait
from textual.app import App, ComposeResult
from textual.message import Message
from textual.pilot import Pilot
from textual.widgets import Static

from tests.support.screen_text import screen_text

NUM_HOPS = 200


class Hop(Message):
    """Posted again and again, each time out of the handler of the one before."""

    def __init__(self, num_left: int) -> None:
        super().__init__()
        self.num_left = num_left


class Relay(App[None]):
    """Behind a key come many messages, a timer, and then a word."""

    def compose(self) -> ComposeResult:
        yield Static("waiting")

    def on_key(self) -> None:
        self.post_message(Hop(NUM_HOPS))

    async def on_hop(self, message: Hop) -> None:
        await asyncio.sleep(0)
        if message.num_left:
            self.post_message(Hop(message.num_left - 1))
        else:
            self.set_timer(0.004, self.say)

    def say(self) -> None:
        self.query_one(Static).update("done")


class Restless(App[None]):
    """Never has nothing to do."""

    def on_mount(self) -> None:
        self.run_worker(self.run_on())

    async def run_on(self) -> None:
        while True:
            await asyncio.sleep(0)


def run(app: App[None], story: Callable[[Pilot[None]], Awaitable[None]]) -> None:
    async def play() -> None:
        async with app.run_test(size=(20, 3)) as pilot:
            await story(pilot)

    asyncio.run(play())


@pytest.fixture
def _starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process sees that gets no processor: none of its seconds go by."""
    monkeypatch.setattr(_wait, "process_time", lambda: 0.0)
    monkeypatch.setattr(_wait, "SLEEP_GRANULARITY", 0.0)


@pytest.mark.usefixtures("_starved")
def test_what_a_key_leads_to_is_waited_for() -> None:
    async def story(pilot: Pilot[None]) -> None:
        await pilot.press("a")
        await pilot.pause()
        assert "done" in screen_text(pilot.app)

    run(Relay(), story)


def test_an_app_that_never_rests_is_not_waited_for_forever() -> None:
    async def story(pilot: Pilot[None]) -> None:
        await pilot.pause()

    run(Restless(), story)
