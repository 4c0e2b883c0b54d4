"""Deleted conversations are listed with the time that is left, brought back, or removed once that is confirmed."""

import asyncio

from tests.support.screen_text import screen_text
from tests.support.widget_screens import WidgetApp
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.deleted import DeletedScreen

DAY = 86400.0


def test_deleted_conversations_come_back_or_go_for_good():
    now = 1e9

    async def story():
        nonlocal now
        with ConversationStore(None, clock=lambda: now) as store:
            for title in ("foxes", "owls"):
                store.delete_conversation(store.create_conversation(title=title).id)
                now += DAY
            app = WidgetApp(screen=DeletedScreen(store, keep_seconds=30 * DAY, clock=lambda: now))
            async with app.run_test(size=(80, 24)) as pilot:
                await pilot.pause()
                shown = screen_text(app)
                assert shown.index("owls  0 turns, deleted 1 d ago, kept for 29 d more") < shown.index("foxes  0 turns")
                await pilot.press("down", "delete")
                asked = " ".join(screen_text(app).replace("│", " ").split())
                assert "Del again removes foxes for good, all but its part of the prefix cache" in asked
                await pilot.press("escape")
                assert len(store.list_deleted()) == 2 and not app.results
                await pilot.press("delete", "up", "delete")  # which asks anew for another one
                assert len(store.list_deleted()) == 2
                await pilot.press("down", "delete", "delete")
                await pilot.pause()
                assert [each.title for each in store.list_deleted()] == ["owls"]
                owls = store.list_deleted()[0].id
                await pilot.press("enter")
                await pilot.pause()
                assert app.results == [owls]

    asyncio.run(story())
