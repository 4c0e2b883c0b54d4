"""The page of keys and commands leaves out none."""

import asyncio

from screen_text import STYLES, screen_text
from textual.app import App

from tui.chat.chat_screen import ChatScreen
from tui.chat.command_palette import key_text
from tui.chat.command_registry import COMMANDS
from tui.chat.help_screen import OTHER_KEYS, HelpScreen, help_content


def test_every_command_and_every_key_of_the_screen_is_there():
    text = help_content().plain
    assert all(f"/{command.name}" in text and command.help in text for command in COMMANDS)
    keys = [key for binding in ChatScreen.BINDINGS for key in binding.key.split(",")]
    spelled = {key_text(key).replace("Pageup", "PageUp").replace("Pagedown", "PageDown") for key in keys}
    assert {key for key in spelled if key not in text} == set()
    assert len(OTHER_KEYS) == len({keys for keys, _ in OTHER_KEYS})


def test_it_opens_over_the_chat_and_closes():
    async def run():
        app = App(css_path=STYLES)
        async with app.run_test(size=(80, 24)) as pilot:
            await app.push_screen(HelpScreen())
            await pilot.pause()
            assert "Send the prompt." in screen_text(app)
            await pilot.press("end")
            await pilot.pause(0.1)
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(app.screen, HelpScreen)

    asyncio.run(run())
