"""A turn's first line says whose it is and which version, and takes clicks on the arrows and the word alone."""

import asyncio

import pytest
from textual.app import App

from tests.support.conversation_factory import message
from tests.support.screen_text import screen_text
from tui.chat.widgets.turn_head import TurnHead


class Window(App):
    CSS = "TurnHead { height: 1; }"

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.wanted = []

    def compose(self):
        yield self.head

    async def run_action(self, action, *rest, **named):
        self.wanted.append(action)
        return True


def shown(head, *clicks, size=(40, 3), is_offered=False):
    """The first line, and what clicks on these words ask for."""

    async def run():
        app = Window(head)
        async with app.run_test(size=size) as pilot:
            head.is_offered = is_offered
            app.screen.run_action = app.run_action
            await pilot.pause()
            line = screen_text(app).splitlines()[0].rstrip()
            for word in clicks:
                await pilot.click(offset=(line.index(word), 0))
            await pilot.pause()
            return line, app.wanted

    return asyncio.run(run())


def test_a_turn_without_versions_says_who_spoke():
    assert shown(TurnHead(message())) == ("you", [])
    assert shown(TurnHead(message("assistant", model="a\x1b[31mb")))[0].startswith("a")
    assert shown(TurnHead(message("assistant", model=""))) == ("model", [])


def test_one_of_several_versions_says_which_and_its_arrows_lead_to_the_others():
    head = TurnHead(message(id=5), (3, 5, 8))
    assert shown(head, "‹", "›", "2/3") == (
        "you  ‹ 2/3 ›",
        ["screen.show_version(5, -1)", "screen.show_version(5, 1)"],
    )


@pytest.mark.parametrize(("message_id", "line"), [(3, "you  ‹ 1/2 ›"), (5, "you  ‹ 2/2 ›")])
def test_no_arrow_leads_behind_the_ends(message_id, line):
    found, wanted = shown(TurnHead(message(id=message_id), (3, 5)), "‹", "›")
    assert (found, len(wanted)) == (line, 1)


def test_where_the_mouse_is_a_turn_can_be_changed():
    assert shown(TurnHead(message(id=5)), "edit", is_offered=True) == ("you  edit", ["screen.edit_turn(5)"])


def test_a_long_name_leaves_room_for_the_version():
    head = TurnHead(message("assistant", id=5, model="a very long name of a model " * 3), (3, 5))
    line, wanted = shown(head, "‹", size=(30, 3))
    assert line.endswith("…  ‹ 2/2 ›") and len(line) <= 30
    assert wanted == ["screen.show_version(5, -1)"]


def test_a_selected_turn_is_marked():
    head = TurnHead(message())
    head.is_selected = True
    assert shown(head)[0] == "▸ you"


def test_the_mouse_offers_to_change_a_turn():
    async def run():
        app = Window(head := TurnHead(message(id=5)))
        async with app.run_test(size=(40, 3)) as pilot:
            await pilot.hover(TurnHead)
            await pilot.pause()
            assert head.is_offered
            await pilot.hover(offset=(0, 2))
            await pilot.pause()
            assert not head.is_offered

    asyncio.run(run())
