"""Which colours a terminal gets: what was chosen, else what fits the background that the terminal tells of."""

import pytest
from textual.color import Color

from runtime.errors import OptionError
from tests.support.chat_stories import tell, telling
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.themes import DARK, LIGHT, THEMES, find_theme, has_light_background, theme_choices, theme_name
from tui.chat.widgets.markdown import AnswerMarkdown

KNOWN = {theme.name for theme in THEMES} | {"nord"}


@pytest.mark.parametrize(
    ("told", "is_light"),
    [("0;15", True), ("0;default;7", True), ("15;0", False), ("7;8", False), ("", False), ("0;default", False)],
)
def test_the_background_is_the_last_number(told, is_light):
    assert has_light_background({"COLORFGBG": told}) is is_light


def test_auto_follows_the_terminal_and_a_choice_does_not():
    light = {"COLORFGBG": "0;15"}
    assert theme_name("auto", light, known=KNOWN) == LIGHT.name
    assert theme_name("auto", {}, known=KNOWN) == DARK.name
    assert theme_name("nord", light, known=KNOWN) == "nord"


def test_what_the_terminal_says_comes_before_the_environment():
    light = {"COLORFGBG": "0;15"}
    assert theme_name("auto", light, known=KNOWN, is_light=False) == DARK.name
    assert theme_name("auto", {}, known=KNOWN, is_light=True) == LIGHT.name
    assert theme_name("nord", {}, known=KNOWN, is_light=True) == "nord"


def test_ours_have_short_names_which_lead_the_choices():
    assert theme_choices(KNOWN) == ("auto", "dark", "light", "nord")
    for typed, found in {
        "light": "light",
        " Dark": "dark",
        LIGHT.name: "light",
        "AUTO": "auto",
        "nord": "nord",
    }.items():
        assert find_theme(typed, KNOWN) == found
    assert (theme_name("light", {}, known=KNOWN), theme_name("dark", {}, known=KNOWN)) == (LIGHT.name, DARK.name)
    assert theme_name(LIGHT.name, {}, known=KNOWN) == LIGHT.name, "as a settings file of before has it"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("lihgt", "lihgt; did you mean light?"),
        ("xyz", "xyz; there are auto, dark, light, nord"),
        ("\x1b[2J", "; there are auto, dark, light, nord"),
    ],
)
def test_a_theme_that_there_is_not_comes_with_those_that_there_are(typed, hint):
    with pytest.raises(OptionError) as told:
        find_theme(typed, KNOWN)
    assert str(told.value).startswith("there is no theme ") and hint in str(told.value)


def test_a_theme_that_is_gone_is_no_fault():
    assert theme_name("was-removed", {}, known=KNOWN) == DARK.name


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_can_be_read_on_every_ground(theme):
    """WCAG's 4.5 to 1 for text, on all three grounds."""
    for ground in (theme.background, theme.surface, theme.panel):
        assert _contrast(Color.parse(theme.foreground), Color.parse(ground)) >= 7
        for name in ("primary", "accent", "success", "warning", "error"):
            assert _contrast(Color.parse(getattr(theme, name)), Color.parse(ground)) >= 4.5, name


def _contrast(one, other) -> float:
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(color) -> float:
    parts = [value / 255 for value in (color.r, color.g, color.b)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_what_stands_around_an_answer_can_be_read(theme, tmp_path):
    """Its caption and the head of its code were as low as 2.8 to 1 on light ground."""

    async def story():
        settings = RememberedSettings(ChatSettings(theme=theme.name), path=tmp_path / "settings.toml")
        async with telling(tmp_path, settings=settings) as teller:
            await teller.ask("Hi?")
            view = teller.chat.view
            styles = [view.query(name).last().visual_style for name in (".turn-caption", ".turn-name")]
            markdown = view.query(AnswerMarkdown).last()
            styles += [markdown.get_visual_style(name) for name in ("clip", "code-head")]
            for style in styles:
                ground = Color.parse(theme.background) + (style.background or Color(0, 0, 0, 0))
                assert not style.dim
                assert _contrast(ground + style.foreground, ground) >= 4.5

    tell(story)


def _unread(app) -> list[str]:
    """Words on the screen, rather than frames and marks, that are told from their ground by less than 4.5 to 1."""
    found = []
    for piece in (piece for strip in app.screen._compositor.render_strips() for piece in strip):
        style = piece.style
        if any(map(str.isalnum, piece.text)) and style is not None and style.color and style.bgcolor:
            one, other = (Color(*each.get_truecolor()) for each in (style.color, style.bgcolor))
            if _contrast(one, other) < 4.5:
                found.append(piece.text)
    return found


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_word_that_is_drawn_can_be_read(theme, tmp_path):
    """The prompt's own hint, the ages of conversations and what commands do were as low as 2.9 to 1."""

    async def story():
        settings = RememberedSettings(ChatSettings(theme=theme.name), path=tmp_path / "settings.toml")
        async with telling(tmp_path, settings=settings, size=(100, 30)) as teller:
            assert not _unread(teller.app), "an empty conversation"
            await teller.ask("Hi?")
            for keys in (("f7",), ("f7", "alt+up"), ("escape", "f2"), ("f2", "f3")):
                await teller.press(*keys)
                assert not _unread(teller.app), keys
            await teller.press("escape")
            await teller.type("/th")
            await teller.until(lambda: teller.chat.completions.display)
            await teller.pilot.pause()
            assert not _unread(teller.app), "completions"

    tell(story)
