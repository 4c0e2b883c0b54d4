"""The chat app: paints before the engine is started, and ends the engine before it ends itself."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from textual import events
from textual.app import App, SystemCommand
from textual.screen import Screen

from tui.chat.commands.registry import COMMANDS, key_text
from tui.chat.display import ChatServices
from tui.chat.screen import ChatScreen
from tui.chat.themes import THEMES, theme_name
from tui.interruption import end_within

QUIT_SECONDS = 6.0
"""More than the engine takes to end; an app whose terminal is gone may not end by itself."""
IDLE_SECONDS = 3.0
"""Without a key and without an answer; then a pause is noticed by nobody."""
RARELY = 1_000
"""Collections of the middle generation between two of the oldest, instead of 10: an app that is never idle."""


def silence_terminal() -> None:
    """Let what is still printed go nowhere: a terminal that is gone would hold its writers up for good."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def collect_rarely() -> None:
    """Let the interpreter look through the oldest objects hardly ever, and not at all at what is there now.

    A full collection walks over everything that a conversation has on the screen: 0.2 s after a long answer, every few
    seconds of it, in which no key is answered. The app looks while it is idle; young garbage is still collected at
    once, which takes a millisecond.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, RARELY)
    gc.freeze()


class ChatApp(App[int]):
    """Overstory in a terminal."""

    TITLE = "Overstory"
    CSS_PATH = "chat.tcss"

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.services = services
        self._collecting: asyncio.TimerHandle | None = None
        self._handlers: dict[int, Any] = {}  # of signals, as they were before
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.settings.theme
        self.theme = theme_name(wanted, services.environment, known=self.available_themes)

    def get_default_screen(self) -> ChatScreen:
        return ChatScreen(self.services)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer the registry's commands in the palette, where names, aliases and keys are found too."""
        if isinstance(screen, ChatScreen):
            for command in COMMANDS:
                usage, *_ = command.usage.split(" [")  # which the palette would read as markup
                names = " ".join((usage, *(f"/{alias}" for alias in command.aliases)))
                title = f"{command.title}  {names}  {key_text(command.key)}".rstrip()
                yield SystemCommand(title, command.help, partial(screen.run_action, f"do('{command.name}')"))

    def on_mount(self) -> None:
        """Let a terminal that is closed, or a request of the system, end the app in order."""
        if threading.current_thread() is not threading.main_thread():
            return
        hear = partial(self._hear, asyncio.get_running_loop())
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                self._handlers[number] = signal.signal(number, hear)

    def _hear(self, loop: asyncio.AbstractEventLoop, number: int, frame: FrameType | None) -> None:
        """End the app, and the process even where the loop is stuck: in drawing on a terminal that takes nothing."""
        end_within(QUIT_SECONDS, 128 + number)
        with suppress(RuntimeError):  # it has ended already
            loop.call_soon_threadsafe(self._end_for, number)

    async def on_event(self, event: events.Event) -> None:
        """Hear keys before anybody else gets them: the prompt gets what nobody else wants.

        And cyclic garbage is looked for once nobody has typed for a while.
        """
        if isinstance(event, events.Key):
            self._collect_later()
        is_typed = isinstance(event, events.Key | events.Paste) and not event.is_forwarded
        if is_typed and isinstance(self.screen, ChatScreen):
            self.screen.lend_focus(event if isinstance(event, events.Key) else None)
        await super().on_event(event)

    def _collect_later(self) -> None:
        if self._collecting is not None:
            self._collecting.cancel()
        self._collecting = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._collect)

    def _collect(self) -> None:
        if any(isinstance(each, ChatScreen) and each.chat.dialogue.is_answering for each in self.screen_stack):
            self._collect_later()
        else:
            gc.collect()

    def _end_for(self, number: int) -> None:
        if number == getattr(signal, "SIGHUP", None):
            silence_terminal()
            self.run_worker(self._leave(128 + number))
        else:
            self.run_worker(self.action_quit(128 + number))

    async def _leave(self, exit_code: int) -> None:
        """End the engine and this process; there is no terminal to put in order."""
        self._save_drafts()
        await self.services.engine.close()
        self.services.store.close()
        os._exit(exit_code)

    async def action_quit(self, exit_code: int = 0) -> None:
        self._save_drafts()
        if not exit_code and not await self._may_quit():
            return
        await self.services.engine.close()
        self.exit(exit_code, return_code=exit_code)

    async def _may_quit(self) -> bool:
        screens = [each for each in self.screen_stack if isinstance(each, ChatScreen)]
        return all([await each.unsaved.may_quit(self.action_quit) for each in screens])

    def _save_drafts(self) -> None:
        for each in self.screen_stack:
            if isinstance(each, ChatScreen):
                each.save_draft()

    async def on_unmount(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        await self.services.engine.close()
