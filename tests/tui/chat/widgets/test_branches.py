"""Branches in a list: where each parts, how long it is and how old; one is chosen, also in a small terminal."""

import pytest

from tests.support.screen_text import screen_text
from tests.support.widget_screens import WidgetApp, run
from tui.chat.store.branches import Branch
from tui.chat.widgets.branches import BranchesScreen

NOW = 1e9


def branch(leaf_id, **fields):
    values = {"num_messages": 4, "role": "user", "words": "Why?", "follows": "", "parting_number": 3}
    return Branch(**{"leaf_id": leaf_id, "updated_at": NOW - 7200, "is_shown": False, **values, **fields})


BRANCHES = (
    branch(9, words="Owls?\n\x1b[31mred", follows="Foxes\nare red.", updated_at=NOW),
    branch(7, role="assistant", words="", follows="Foxes?", parting_number=2, is_shown=True),
    branch(5, parting_number=1),
)


def watch(story, *, size, branches=BRANCHES):
    app = WidgetApp(screen=BranchesScreen(branches, clock=lambda: NOW))
    run(app, lambda pilot: story(app, pilot), size=size)


def test_each_says_where_it_parts_and_how_long_and_how_old_it_is():
    async def story(app, pilot):
        shown = screen_text(app)
        assert "3 branches of this conversation" in shown
        assert "you: Owls? " in shown and "\x1b" not in shown
        assert "turn 3 of 4 · now · after: Foxes are red." in shown
        assert "▸ model: (empty)" in shown and "turn 2 of 4 · 2 h ago · after: Foxes?" in shown
        assert "turn 1 of 4 · 2 h ago  " in shown  # which parts at the beginning, after nothing
        assert "Enter shows it · Esc closes" in shown

    watch(story, size=(80, 24))


@pytest.mark.parametrize(("keys", "chosen"), [(["enter"], 7), (["up", "enter"], 9), (["down", "enter"], 5)])
def test_the_one_shown_is_where_one_begins_to_choose(keys, chosen):
    async def story(app, pilot):
        await pilot.press(*keys)
        await pilot.pause()
        assert app.results == [chosen]

    watch(story, size=(80, 24))


def test_nothing_is_chosen_by_who_closes_it():
    async def story(app, pilot):
        await pilot.press("down", "escape")
        await pilot.pause()
        assert app.results == [None]

    watch(story, size=(80, 24))


@pytest.mark.parametrize("size", [(40, 10), (200, 50)])
def test_many_are_reached_in_any_terminal(size):
    async def story(app, pilot):
        rows = screen_text(app).splitlines()
        assert any("40 branches" in row for row in rows) and any("Enter shows it" in row for row in rows)
        assert sum("you: Why?" in row for row in rows) >= 3
        await pilot.press("end", "enter")
        await pilot.pause()
        assert app.results == [39]

    watch(story, size=size, branches=[branch(number) for number in range(40)])
