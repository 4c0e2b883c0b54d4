"""Dialogs hand over what was written, or nothing with Esc."""

import asyncio

import pytest
from textual.app import App

from tui.chat.widgets.dialogs import LineDialog, TextDialog


def answer_of(dialog, *keys):
    answers = []

    async def run():
        app = App()
        async with app.run_test(size=(60, 20)) as pilot:
            app.push_screen(dialog, answers.append)
            await pilot.pause()
            await pilot.press(*keys)
            await pilot.pause()

    asyncio.run(run())
    return answers


@pytest.mark.parametrize(
    ("keys", "answer"), [(("x", "enter"), "x"), (("x", "escape"), None), (("space", "enter"), None)]
)
def test_a_line(keys, answer):
    assert answer_of(LineDialog("Title"), *keys) == [answer]


def test_a_line_begins_with_what_there_is():
    assert answer_of(LineDialog("Title", "old"), "enter") == ["old"]


@pytest.mark.parametrize(
    ("keys", "answer"),
    [(("a", "enter", "b", "ctrl+s"), "a\nb"), (("a", "escape"), None), (("ctrl+s",), "")],
)
def test_several_lines(keys, answer):
    assert answer_of(TextDialog("System prompt"), *keys) == [answer]
