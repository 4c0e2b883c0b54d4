"""The list of servers and tools: it says how they stand, and Enter switches them."""

import asyncio
from dataclasses import replace

import pytest

from offload.errors import WriteError
from tests.support.chat_fakes import LOADED
from tests.support.screen_text import screen_text
from tests.support.tool_fakes import CALLING, FILES, FakeSession, connecting
from tests.support.widget_screens import WidgetApp, until
from tui.chat.tools.servers import ToolServers
from tui.chat.tools.settings import ServerSettings
from tui.chat.widgets.tools import ToolsScreen


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_servers_and_tools_are_listed_and_switched(size):
    kept = []

    async def story():
        servers = ToolServers(
            [FILES, ServerSettings(name="idle", command="x", enabled=False)], connect=connecting(FakeSession())
        )
        app = WidgetApp(screen=ToolsScreen(servers, keep=kept.append, model=lambda: CALLING))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: "files  waits for a model" in screen_text(app))
            servers.start()
            await until(pilot, lambda: servers.states[0].phase == "ready")
            app.screen.refresh_rows()
            await until(pilot, lambda: "files  ready with 2 tools" in screen_text(app))
            assert "● read on" in screen_text(app) and "idle  off" in screen_text(app)
            await pilot.press("down", "enter")
            await until(pilot, lambda: "○ read off" in screen_text(app))
            assert kept[-1].off == {"read"}
            await pilot.press("up", "enter")
            await until(pilot, lambda: "files  off" in screen_text(app))
            assert not kept[-1].enabled
            await pilot.press("escape")
            await until(pilot, lambda: app.results == [None])
        await servers.close()

    asyncio.run(story())


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_without_servers_all_that_is_said_can_be_read_in_any_terminal(size):
    async def story():
        app = WidgetApp(screen=ToolsScreen(ToolServers(), keep=kept_not))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: "Esc closes" in screen_text(app))
            assert "settings.toml" in "".join(screen_text(app).replace("│", "").split())
            await pilot.press("end")
            await until(pilot, lambda: "start the chat again." in screen_text(app))

    asyncio.run(story())


def test_without_servers_it_says_how_to_name_one_and_without_tools_that_nothing_is_sent():
    async def story():
        app = WidgetApp(screen=ToolsScreen(ToolServers(), keep=kept_not))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "[mcp.files]" in screen_text(app))
        app = WidgetApp(
            screen=ToolsScreen(
                ToolServers([FILES]), keep=kept_not, model=lambda: replace(LOADED, target="small\x1b[2J")
            )
        )
        async with app.run_test(size=(80, 24)) as pilot:
            await until(
                pilot, lambda: "small was not made for tools" in " ".join(screen_text(app).replace("│", "").split())
            )
            await pilot.press("enter")
            await until(pilot, lambda: "no room" in screen_text(app))

    asyncio.run(story())


def kept_not(settings):
    raise WriteError("no room")
