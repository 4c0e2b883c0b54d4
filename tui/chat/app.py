"""The chat app: paints before the engine is started, and ends the engine before it ends itself."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, ClassVar

from textual import events, on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.screen import Screen

from tui.chat.commands.keymap import bind, keys_now
from tui.chat.commands.registry import COMMANDS, key_text
from tui.chat.display import ChatServices
from tui.chat.screen import ChatScreen
from tui.chat.terminal_input import BACKGROUND_QUERY, TerminalBackground, tells_background
from tui.chat.themes import AUTO, THEMES, is_theme, theme_name
from tui.interruption import end_within
from tui.terminal_text import one_line

QUIT_SECONDS = 6.0
"""More than the engine takes to end; an app whose terminal is gone may not end by itself."""
BACKGROUND_SECONDS = 2.0
"""Within which the terminal may tell its background."""
_MODES = (2004, 1000, 1003, 1015, 1006, 1016, 2048, 1004)
LEAVING = b"\x1b\\" + b"".join(b"\x1b[?%dl" % mode for mode in _MODES) + b"\x1b[?7h\x1b[<u\x1b[?1049l\x1b[?25h"
"""Takes back all that Textual's driver asks of a terminal."""
IDLE_SECONDS = 3.0
"""Without a key and without an answer; then a pause is noticed by nobody."""
RARELY = 1_000
"""Collections of the middle generation between two of the oldest, instead of 10: an app that is never idle."""


def leave_terminal(attributes: list[Any] | None, *, farewell: str = "") -> None:
    """Put the terminal back as it was if it takes that at once, and let what is still printed go nowhere.

    A terminal that is gone would hold its writers up for good; one that only hung up keeps its screen, its mouse and
    its `attributes` as they were left.
    """
    terminal = os.dup(2)
    silence_terminal()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else whoever is in the background would be stopped here
    with suppress(OSError):
        os.set_blocking(terminal, False)
        try:
            os.write(terminal, LEAVING + farewell.encode())
        finally:
            os.set_blocking(terminal, True)
    if attributes is not None:
        import termios

        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    os.close(terminal)


def silence_terminal() -> None:
    """Let what is still printed go nowhere."""
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


class ChatApp(App[int], inherit_bindings=False):
    """Overstory in a terminal."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("quit", "quit", "Quit", priority=True, tooltip="End the app; every conversation is kept."),
        bind("palette", "command_palette", "Commands", priority=True, tooltip="Find a command by a part of its name"),
        Binding("ctrl+c", "help_quit", show=False, system=True),  # in dialogs, where nothing else takes it
    ]
    TITLE = "Overstory"
    CSS_PATH = "chat.tcss"

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.services = services
        self.set_keymap(services.keys.chosen)
        self._chat_screen: ChatScreen | None = None
        self._collecting: asyncio.TimerHandle | None = None
        self._handlers: dict[int, Any] = {}  # of signals, as they were before
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.settings.theme
        self.theme = theme_name(wanted, services.environment, known=self.available_themes)
        if wanted != AUTO and not is_theme(wanted, known=self.available_themes):
            unknown = f"there is no theme {one_line(wanted)}, so the terminal's background decides; /theme lists them"
            self.services = replace(services, notices=(*services.notices, unknown))
        self._asked_at = -BACKGROUND_SECONDS

    def get_default_screen(self) -> ChatScreen:
        self._chat_screen = ChatScreen(self.services)
        return self._chat_screen

    def farewell(self) -> str:
        """Return what the terminal is told once the app has left it: to show the title again that it had."""
        return "" if self._chat_screen is None else self._chat_screen.chat.attention.farewell()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer the registry's commands in the palette, where names, aliases and keys are found too."""
        if isinstance(screen, ChatScreen):
            for command in COMMANDS:
                usage, *_ = command.usage.split(" [")  # which the palette would read as markup
                names = " ".join((usage, *(f"/{alias}" for alias in command.aliases)))
                keys = " ".join(map(key_text, keys_now(self, command.name)))
                title = f"{command.title}  {names}  {keys}".rstrip()
                yield SystemCommand(title, command.help, partial(screen.run_action, f"do('{command.name}')"))

    def on_mount(self) -> None:
        """Ask the terminal for its background; let its end, or a request of the system, end the app in order."""
        if self._driver is not None and not self.is_headless and tells_background(self.services.environment):
            self._asked_at = time.monotonic()
            self._driver.write(BACKGROUND_QUERY)
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

    def on_terminal_background(self, message: TerminalBackground) -> None:
        """Take the theme for that background, unless another one was chosen or so long ago that it would surprise."""
        screen = self.screen_stack[0]
        if isinstance(screen, ChatScreen) and time.monotonic() - self._asked_at < BACKGROUND_SECONDS:
            screen.chat.is_light = message.luminance > 0.5
            self.theme = screen.chat.theme_name(self.services.settings.settings.theme)

    @on(Driver.SignalResume)
    def repaint(self) -> None:
        """Draw everything again: the terminal was another program's meanwhile."""
        self.refresh(layout=True)
        self.screen.refresh(layout=True)

    async def on_event(self, event: events.Event) -> None:
        """Hear keys before anybody else gets them: the prompt gets what nobody else wants.

        And cyclic garbage is looked for once nobody has typed for a while.
        """
        if isinstance(event, events.Key):
            self._collect_later()
        if isinstance(event, events.Key | events.AppFocus):
            self._notice_person()
        is_typed = isinstance(event, events.Key | events.Paste) and not event.is_forwarded
        if is_typed and isinstance(self.screen, ChatScreen):
            self.screen.lend_focus(event if isinstance(event, events.Key) else None)
        await super().on_event(event)

    def _notice_person(self) -> None:
        """Whoever is there sees what ended."""
        if self._chat_screen is not None and self._chat_screen.chat.attention.notice_person():
            self._chat_screen.chat.show_engine()

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
            leave_terminal(getattr(self._driver, "attrs_before", None), farewell=self.farewell())
            self.run_worker(self._leave(128 + number))
        else:
            self.run_worker(self.action_quit(128 + number))

    async def _leave(self, exit_code: int) -> None:
        """End the engine and this process; the terminal was left in order, if there still was one."""
        self._save_drafts()
        await self._close_processes()
        self.services.store.close()
        os._exit(exit_code)

    async def action_quit(self, exit_code: int = 0) -> None:
        self._save_drafts()
        if not exit_code and not await self._may_quit():
            return
        await self._close_processes()
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
        await self._close_processes()

    async def _close_processes(self) -> None:
        await asyncio.gather(self.services.engine.close(), self.services.tools.close())
