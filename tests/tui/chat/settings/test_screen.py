"""Stories of the settings screen, key by key."""

import pytest
from textual.widgets import Input, TextArea

from tests.support.screen_text import screen_rows, screen_text
from tests.support.widget_screens import WidgetApp, run
from tui.chat.settings.screen import SettingsScreen
from tui.chat.settings.settings import TYPED_SETTINGS, ChatSettings
from tui.chat.widgets.choice import ChoiceField

THEMES = ("nord", "textual-dark", "textual-light")
FIRST_ROWS = """\
 ╭─ Settings ─────────────────────────────────────────────────────────────────╮
 │ Answers                                                                    │
 │  Temperature          -1                                                   │
 │   ✗ temperature is -1; it must be from 0 (greedy) to 2                     │
 │  Top-p                auto                                                 │"""


def played(*keys, settings=None, first="temperature", size=(80, 24)):
    """The screen's rows after the keys, and what it returned."""
    screen = SettingsScreen(settings or ChatSettings(), themes=THEMES)
    app, rows = WidgetApp(screen=screen), []

    async def story(pilot):
        screen.query_one(f"#field-{first}").focus()
        await pilot.pause()
        await pilot.press(*keys)
        await pilot.pause()
        rows.extend(screen_rows(app))

    run(app, story, size=size)
    return rows, app.results


def test_a_wrong_value_is_told_below_it_and_cannot_be_kept():
    rows, results = played("-", "1", "ctrl+s")
    assert "\n".join(rows[:5]) == FIRST_ROWS
    assert results == []


def test_the_help_says_what_holds_where_it_is_chosen_elsewhere():
    now = {"temperature": "auto: 0.6, the model's own"}
    app = WidgetApp(screen=SettingsScreen(ChatSettings(), now=now))

    async def story(pilot):
        shown = " ".join(screen_text(app).replace("│", " ").split())
        assert "auto takes the model's own, else 0.7. Now auto: 0.6, the model's own." in shown
        await pilot.press("down")
        await pilot.pause()
        assert "Now" not in screen_text(app)

    run(app, story)


def test_what_is_typed_replaces_the_value_and_is_kept():
    _, results = played("1", "enter", ".", "5", "ctrl+s")
    assert results == [ChatSettings(temperature=1.0, top_p=0.5)]


def test_escape_changes_nothing():
    _, results = played("1", "escape")
    assert results == [None]


def test_down_and_up_go_through_the_settings():
    rows, _ = played("down", "down", "up")
    assert any("Keep the likeliest tokens up to this mass" in row for row in rows)


def test_it_says_what_waits_for_another_load():
    rows, results = played("6", "4", "x", "1", "0", "ctrl+s", first="tree")
    assert results == [ChatSettings(tree="64x10")]
    rows, _ = played("6", "4", "x", "1", "0", first="tree")
    assert any("Waits for another load: Tree" in row for row in rows)
    rows, _ = played("1", first="temperature")
    assert not any("Waits" in row for row in rows)


def test_choices_are_taken_with_the_arrows():
    _, results = played("right", "ctrl+s", first="verification")
    assert results == [ChatSettings(verification="sequoia")]
    _, results = played("right", "ctrl+s", first="theme")
    assert results == [ChatSettings(theme=THEMES[0])]  # from auto, which stands before them


def test_a_system_prompt_has_lines():
    _, results = played("a", "enter", "b", "ctrl+s", first="system_prompt")
    assert results == [ChatSettings(system_prompt="a\nb")]


def test_the_arrows_leave_a_system_prompt_at_its_ends():
    rows, _ = played("a", "enter", "b", "up", "down", "down", first="system_prompt")
    assert any("Folder, GGUF file or hub name of the model to run" in row for row in rows)
    rows, _ = played("a", "enter", "b", "up", "up", first="system_prompt")
    assert any("How sampled tokens are verified" in row for row in rows)


def test_the_wrong_setting_gets_the_focus_when_it_is_kept():
    screen = SettingsScreen(ChatSettings())

    async def story(pilot):
        await pilot.press("x", "down", "down", "ctrl+s")
        await pilot.pause()
        assert screen.focused is screen.query_one("#field-temperature")

    run(WidgetApp(screen=screen), story)


def test_the_buttons_work_with_the_mouse():
    screen = SettingsScreen(ChatSettings())
    app = WidgetApp(screen=screen)

    async def story(pilot):
        await pilot.press("1")
        await pilot.click("#settings-keep")
        await pilot.pause()

    run(app, story)
    assert app.results == [ChatSettings(temperature=1.0)]


def test_every_setting_has_a_field_with_a_tooltip_that_the_keyboard_reaches():
    screen = SettingsScreen(ChatSettings(), themes=THEMES)

    async def story(pilot):
        fields = [screen.query_one(f"#field-{name}") for name in TYPED_SETTINGS]
        assert all(isinstance(field, Input | TextArea | ChoiceField) and field.tooltip for field in fields)
        reached = set()
        for _ in range(len(fields) + 2):
            reached.add(screen.focused)
            await pilot.press("tab")
        assert reached >= set(fields)

    run(WidgetApp(screen=screen), story)


@pytest.mark.parametrize("size", [(80, 24), (60, 16), (120, 50)])
def test_the_ways_out_are_always_on_the_screen(size):
    rows, _ = played(size=size)
    assert any("Keep" in row and "Cancel" in row for row in rows)


def test_escapes_in_a_system_prompt_are_signs():
    settings = ChatSettings(system_prompt="a\x1b]52;c;eA==\x07b\u202ec")
    rows, _ = played(settings=settings, first="system_prompt")
    assert any("a␛]52;c;eA==␇b⟨c" in row for row in rows)


def test_it_can_be_read_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    screen = SettingsScreen(ChatSettings())

    async def story(pilot):
        assert "Temperature          auto" in screen_text(pilot.app)
        first, second = (screen.query_one(f"#row-{name} .setting-label") for name in ("temperature", "top_p"))
        assert first.rich_style.reverse and not second.rich_style.reverse
        await pilot.press("down")
        await pilot.pause()
        assert second.rich_style.reverse and not first.rich_style.reverse

    run(WidgetApp(screen=screen), story)


def test_a_wrong_text_leaves_the_value_until_it_is_mended():
    rows, results = played("x", "enter", ".", "5", "up", "1", "ctrl+s")
    assert not any("✗" in row for row in rows)
    assert results == [ChatSettings(temperature=1.0, top_p=0.5)]


def test_going_back_is_no_change():
    rows, results = played("8", "x", "4", "ctrl+a", "ctrl+k", *"auto", "ctrl+s", first="tree")
    assert not any("Waits" in row for row in rows)
    assert results == [ChatSettings()]
