"""The chat app: paints before the engine is started, and ends the engine before it ends itself."""

import asyncio
import os
import signal
import threading
from contextlib import suppress

from textual import events
from textual.app import App

from tui.chat.commands.palette import CommandProvider
from tui.chat.display import ChatServices
from tui.chat.engine.idle_collection import IdleCollector
from tui.chat.screen import ChatScreen
from tui.chat.themes import THEMES, theme_name

QUIT_SECONDS = 6.0
"""More than the engine takes to end; an app whose terminal is gone may not end by itself."""


def silence_terminal() -> None:
    """Let what is still printed go nowhere: a terminal that is gone would hold its writers up for good."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_within(seconds: float, exit_code: int) -> None:
    """End this process after a while, whatever it waits for: all is saved, and the engine ends with the app."""
    timer = threading.Timer(seconds, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()


class ChatApp(App[int]):
    """Overstory in a terminal."""

    TITLE = "Overstory"
    CSS_PATH = "chat.tcss"
    COMMANDS = {CommandProvider}  # noqa: RUF012 - as the base class declares it

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.services = services
        self.collector = IdleCollector()
        """Takes over where the app has the process to itself; a test's process keeps its own collecting."""
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.settings.theme
        self.theme = theme_name(wanted, services.environment, known=self.available_themes)

    def get_default_screen(self) -> ChatScreen:
        """Return the chat."""
        return ChatScreen(self.services)

    def on_mount(self) -> None:
        """Let a terminal that is closed, or a request of the system, end the app in order."""
        self.set_interval(1.0, self._collect)
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGTERM", "SIGHUP"):
            with suppress(NotImplementedError, AttributeError):  # Windows has neither
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), self._end_for, name)

    async def on_event(self, event: events.Event) -> None:
        """Hear keys before anybody else gets them."""
        if isinstance(event, events.Key):
            self.collector.note_activity()
        await super().on_event(event)

    def _collect(self) -> None:
        first = self.screen_stack[0] if self.screen_stack else None
        if isinstance(first, ChatScreen) and first.chat.dialogue.is_answering:
            self.collector.note_activity()
        self.collector.collect_if_idle()

    def _end_for(self, name: str) -> None:
        exit_code = 128 + int(getattr(signal, name))
        end_within(QUIT_SECONDS, exit_code)
        if name == "SIGHUP":
            silence_terminal()
            self.run_worker(self._leave(exit_code))
        else:
            self.run_worker(self._quit(exit_code))

    async def _leave(self, exit_code: int) -> None:
        """End the engine and this process; there is no terminal to put in order."""
        await self.services.engine.close()
        self.services.store.close()
        os._exit(exit_code)

    async def action_quit(self) -> None:
        """End the engine, then the app."""
        await self._quit(0)

    async def _quit(self, exit_code: int) -> None:
        await self.services.engine.close()
        self.exit(exit_code, return_code=exit_code)

    async def on_unmount(self) -> None:
        """End the engine, however the app ends."""
        await self.services.engine.close()
