"""A field of few values, by its keys."""

from tests.support.screen_text import screen_rows
from tests.support.widget_screens import WidgetApp, run
from tui.chat.widgets.choice import ChoiceField


def story_of(field, *keys):
    found = []

    async def story(pilot):
        field.focus()
        await pilot.press(*keys)
        await pilot.pause()
        found.append(screen_rows(pilot.app)[0])

    run(WidgetApp(field), story)
    return found[0]


def test_left_and_right_go_round():
    assert story_of(ChoiceField(("a", "b", "c"), "a"), "right") == "‹ b ›"
    assert story_of(ChoiceField(("a", "b", "c"), "a"), "left") == "‹ c ›"
    assert story_of(ChoiceField(("a", "b", "c"), "c"), "space") == "‹ a ›"


def test_a_letter_jumps_to_the_next_value_that_begins_with_it():
    themes = ("nord", "textual-dark", "textual-light")
    assert story_of(ChoiceField(themes, "nord"), "t") == "‹ textual-dark ›"
    assert story_of(ChoiceField(themes, "nord"), "t", "t") == "‹ textual-light ›"
    assert story_of(ChoiceField(themes, "nord"), "x") == "‹ nord ›"


def test_a_value_that_is_not_among_them_is_kept():
    assert story_of(ChoiceField(("a", "b"), "mine"), "right") == "‹ a ›"
    assert story_of(ChoiceField(("a", "b"), "mine"), "right", "left") == "‹ mine ›"


def test_a_click_goes_on_and_tells():
    field, told = ChoiceField(("a", "b"), "a"), []

    class App(WidgetApp):
        def on_choice_field_changed(self, event):
            told.append((event.control, event.value))

    async def story(pilot):
        await pilot.pause()
        assert told == []
        await pilot.click(field)
        await pilot.pause()

    run(App(field), story)
    assert told == [(field, "b")]


def test_a_value_cannot_move_the_cursor():
    assert story_of(ChoiceField(("\x1b[2Jx",), "\x1b[2Jx")) == "‹ ␛[2Jx ›"
