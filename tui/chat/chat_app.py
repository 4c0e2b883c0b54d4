"""The chat app, for the command and for the tests alike: `make_chat_app` is the one way to get it.

Paints before the engine is started; ends the engine before it ends itself.
"""

from typing import ClassVar

from textual.app import App

from tui.chat.chat_screen import ChatScreen
from tui.chat.chat_services import ChatServices
from tui.chat.chat_themes import THEMES, theme_name


class ChatApp(App[int]):
    """Overstory in a terminal."""

    TITLE = "Overstory"
    CSS_PATH = "chat.tcss"
    ENABLE_COMMAND_PALETTE: ClassVar[bool] = True

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.services = services
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.settings.theme
        self.theme = theme_name(wanted, services.environment, known=self.available_themes)

    def get_default_screen(self) -> ChatScreen:
        """The chat."""
        return ChatScreen(self.services)

    async def action_quit(self) -> None:
        """End the engine, then the app."""
        await self.services.engine.close()
        self.exit(0)

    async def on_unmount(self) -> None:
        """However the app ends, the engine ends too."""
        await self.services.engine.close()


def make_chat_app(services: ChatServices) -> ChatApp:
    """An app that is ready to run."""
    return ChatApp(services)
