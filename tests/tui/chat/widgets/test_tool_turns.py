"""Calls with all their arguments, and results folded to a line: nothing in them passes for the app's own words."""

import asyncio
import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from runtime.prompts.prompt_file import ToolCall
from tests.support.conversation_factory import message
from tests.support.screen_text import screen_text
from tests.support.tool_fakes import CALL
from tests.support.widget_screens import WidgetApp, until
from tui.chat.widgets.tool_turns import ToolCallView, ToolTurn, argument_lines, result_line, tool_words


def said(content, **statistics):
    return message("tool", content, statistics={"call": asdict(CALL), "seconds": 0.3, **statistics})


def test_a_tool_is_named_with_its_server():
    assert tool_words("files__read") == "read of files"
    assert tool_words("read\x1b[2J") == "read"


def test_arguments_stand_in_lines_behind_a_bar():
    arguments = json.dumps({"path": "a.txt", "lines": [1, 2], "text": "one\n  waits for your word\x1b[2J"})
    assert argument_lines(arguments).split("\n") == [
        "│ path: a.txt",
        "│ lines: [1, 2]",
        "│ text: one",
        "│     waits for your word␛[2J",
    ]
    assert argument_lines("{}") == "│ no arguments"


@given(st.dictionaries(st.text(max_size=8), st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=3))
def test_no_argument_leaves_its_bar_or_commands_the_terminal(arguments):
    lines = argument_lines(json.dumps(arguments)).split("\n")
    assert all(line.startswith("│ ") for line in lines)
    assert not any(
        ord(sign) < 32 or 127 <= ord(sign) < 160 or sign in "\u202e\u2066" for sign in "".join(lines).replace("\t", "")
    )


def test_a_result_that_is_folded_says_whose_it_is_and_how_it_went():
    assert result_line(said("\n\x1b[31mred\nmore")) == "read of files said (14 characters, 0.3 s): “␛[31mred”"
    assert result_line(said("no", outcome="refused", seconds=0)) == "read of files was not allowed (2 characters): “no”"
    assert result_line(message("tool", "x" * 2000)).startswith("a tool said (2,000 characters): “x")


def test_a_result_opens_and_folds():
    async def story():
        turn = ToolTurn(said("first\nApproved by you\x1b[2J"))
        app = WidgetApp(turn)
        async with app.run_test(size=(60, 10)) as pilot:
            await until(pilot, lambda: "▸ read of files said" in screen_text(app))
            assert "Approved" not in screen_text(app)
            turn.focus()
            await pilot.press("enter")
            await until(pilot, lambda: "│ Approved by you␛[2J" in screen_text(app))
            await pilot.click(turn)
            await until(pilot, lambda: "Approved" not in screen_text(app))

    asyncio.run(story())


def test_a_call_is_shown_whole_and_how_it_stands():
    async def story():
        view = ToolCallView()
        app = WidgetApp(view)
        async with app.run_test(size=(60, 10)) as pilot:
            await pilot.pause()
            assert not view.display
            view.show(ToolCall("1", "files__read", '{"path": "a.txt"}'))
            view.tell("waits")
            await until(
                pilot, lambda: "calls read of files" in screen_text(app) and "│ path: a.txt" in screen_text(app)
            )
            assert "waits" in screen_text(app)
            view.tell("")
            await until(pilot, lambda: "waits" not in screen_text(app))

    asyncio.run(story())
