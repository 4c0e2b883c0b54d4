"""Guessed text is told apart with colours and without, its legend fits, and no character of the answer changes."""

import pytest

from tests.support.screen_text import screen_text
from tests.support.widget_screens import WidgetApp, run
from tui.chat.store.guesses import Guesses
from tui.chat.widgets.guesses import UNKNOWN, GuessedAnswer, GuessesLegend, guessed_share, origin_style
from tui.terminal_text import shown_text

GUESSES = Guesses(start=2, lengths=(5, 3, 4))
TEXT = "ab**bold**\r\n\x1b[2J a [markup] 文"


def drawn(story, *, size=(80, 24)):
    app = WidgetApp(GuessedAnswer(), GuessesLegend())
    run(app, lambda pilot: story(app, pilot), size=size)


def test_each_origin_looks_different_with_colours_and_without():
    for has_colors in (True, False):
        looks = [origin_style(each, has_colors=has_colors) for each in ("guessed", "chosen", "unknown")]
        assert len(set(looks)) == 3
    assert origin_style("guessed", has_colors=False) == "underline"


@pytest.mark.parametrize("is_bare", [False, True])
def test_the_text_is_the_answers_own_with_markup_and_escapes_as_signs(is_bare, monkeypatch):
    if is_bare:
        monkeypatch.setenv("NO_COLOR", "1")

    async def story(app, pilot):
        answer = app.query_one(GuessedAnswer)
        answer.show(TEXT, GUESSES)
        assert answer.content.plain == shown_text(TEXT)
        style = origin_style("guessed", has_colors=not is_bare)
        spans = [answer.content.plain[span.start : span.end] for span in answer.content.spans if span.style == style]
        assert spans[0] == "**bol" and len(spans) == 2
        await pilot.pause()
        strips = [segment for row in range(4) for segment in app.screen._compositor.render_strips()[row]]
        guessed = next(segment for segment in strips if segment.text.startswith("**bol"))
        chosen = next(segment for segment in strips if segment.text.startswith("d**"))
        assert guessed.style.underline is (True if is_bare else guessed.style.underline)
        assert (guessed.style.underline, guessed.style.color) != (chosen.style.underline, chosen.style.color)

    drawn(story)


def test_where_nothing_was_told_all_is_unknown():
    async def story(app, pilot):
        answer = app.query_one(GuessedAnswer)
        answer.show("abc", None)
        assert answer.content.plain == "abc"
        assert [(span.start, span.end, span.style) for span in answer.content.spans] == [(0, 3, "$text-muted italic")]

    drawn(story)


@pytest.mark.parametrize(
    ("num_guessed", "num_tokens", "words"),
    [
        (28, 34, "guessed ahead 82 %"),
        (0, 5, "guessed ahead 0 %"),
        (199, 200, "guessed ahead 99 %"),
        (3, 3, "guessed ahead 100 %"),
    ],
)
def test_how_much_was_guessed(num_guessed, num_tokens, words):
    assert guessed_share(num_guessed, num_tokens) == words
    assert guessed_share(None, num_tokens) == guessed_share(num_guessed, 0) == UNKNOWN


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_the_legend_says_what_is_what_and_how_to_go_back(size):
    async def story(app, pilot):
        legend = app.query_one(GuessesLegend)
        assert not legend.display
        legend.show(True)
        await pilot.pause()
        words = "guessed ahead and kept · the model's own word · not recorded   (F7 goes back)"
        assert (words if size[0] >= 80 else "guessed · its own · unknown (F7 back)") in screen_text(app)
        legend.show(False)
        await pilot.pause()
        assert "guessed" not in screen_text(app)

    drawn(story, size=size)
