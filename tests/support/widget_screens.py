"""Runs one widget or screen in an app of its own, and waits for what it shows."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget

from tests.support.screen_text import STYLES

PATIENCE_SECONDS = 120.0
"""With an app on a machine that has much else to do."""


class WidgetApp(App[Any]):
    """Shows the widgets it is given, or pushes the screen and keeps what it returns; with the chat's styles."""

    CSS_PATH = STYLES

    def __init__(self, *widgets: Widget, screen: Screen[Any] | None = None) -> None:
        super().__init__()
        self._widgets = widgets
        self._first_screen = screen
        self.animation_level = "none"
        self.results: list[Any] = []

    def compose(self) -> ComposeResult:
        yield from self._widgets

    def on_mount(self) -> None:
        if self._first_screen is not None:
            self.push_screen(self._first_screen, self.results.append)


async def until(pilot: Pilot[Any], condition: Callable[[], bool], what: str = "what the story waits for") -> None:
    """Let the app run until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        await pilot.pause(0.01)
    await pilot.pause()


async def resize(pilot: Pilot[Any], columns: int, rows: int) -> None:
    """Give the terminal another size, and let the screen take it."""
    await pilot.resize_terminal(columns, rows)
    await until(pilot, lambda: pilot.app.screen.size == (columns, rows), "another size")


def run(app: App[Any], story: Callable[[Pilot[Any]], Awaitable[None]], *, size: tuple[int, int] = (80, 24)) -> None:
    """Runs the app and the story, headless."""

    async def play() -> None:
        async with app.run_test(size=size, tooltips=True) as pilot:
            await pilot.pause()
            await story(pilot)

    asyncio.run(play())
