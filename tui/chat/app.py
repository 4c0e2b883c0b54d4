"""The chat app, for the command and for the tests alike: `make_chat_app` is the one way to get it.

Paints before the engine is started; ends the engine before it ends itself.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress

from textual import events
from textual.actions import ActionParseResult
from textual.app import App
from textual.dom import DOMNode

from profiles.errors import OverstoryError
from tui.chat.chat_services import ChatServices
from tui.chat.commands.palette import CommandProvider
from tui.chat.engine.idle_collection import IdleCollector
from tui.chat.screen import ChatScreen
from tui.chat.themes import THEMES, theme_name
from tui.terminal_text import one_line

QUIT_SECONDS = 6.0
"""More than the engine takes to end; an app whose terminal is gone may not end by itself."""


def silence_terminal() -> None:
    """Let what is still printed go nowhere: the terminal is gone, and whoever waits for it waits for ever."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_within(seconds: float, exit_code: int) -> None:
    """End this process then, whatever it waits for: every event is saved, and the engine ends with the app."""
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
        """For whoever runs the app to let it take over; a test's process keeps its own collecting."""
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.settings.theme
        self.theme = theme_name(wanted, services.environment, known=self.available_themes)

    def get_default_screen(self) -> ChatScreen:
        """The chat."""
        return ChatScreen(self.services)

    def on_mount(self) -> None:
        """A terminal that is closed, or a request of the system, ends the app in order."""
        self.set_interval(1.0, self._collect)
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGTERM", "SIGHUP"):
            with suppress(NotImplementedError, AttributeError):  # Windows has neither
                asyncio.get_running_loop().add_signal_handler(getattr(signal, name), self._end_for, name)

    async def on_event(self, event: events.Event) -> None:
        """Keys are heard here before anybody else gets them."""
        if isinstance(event, events.Key):
            self.collector.note_activity()
        await super().on_event(event)

    def _collect(self) -> None:
        chat = self.screen_stack[0] if self.screen_stack else None
        if isinstance(chat, ChatScreen) and chat.dialogue.answer is not None:
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

    async def run_action(
        self,
        action: "str | ActionParseResult",
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Run what a key stands for; what goes wrong in it is told, and the app goes on."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except OverstoryError as error:
            self.notify(one_line(str(error)), severity="warning", markup=False)
            return True

    async def action_quit(self) -> None:
        """End the engine, then the app."""
        await self._quit(0)

    async def _quit(self, exit_code: int) -> None:
        await self.services.engine.close()
        self.exit(exit_code, return_code=exit_code)

    async def on_unmount(self) -> None:
        """However the app ends, the engine ends too."""
        await self.services.engine.close()


def make_chat_app(services: ChatServices) -> ChatApp:
    """An app that is ready to run."""
    return ChatApp(services)
