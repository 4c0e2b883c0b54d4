"""What is on the screen, on the pipe and in the JSON while an answer comes and once it has ended."""

import io
import json

import pytest
from rich.console import Console

from tests.support.printed_screen import screen_of
from tui.ask.display import JsonDisplay, MarkdownDisplay, PlainDisplay
from tui.ask.pieces import Ended, Piece, Said, Waits

ENDED = Ended(finish_reason="stop", usage={"completion_tokens": 3})


def terminal(width: int = 40, height: int = 10, *, colors: str | None = "standard") -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=colors, legacy_windows=False
    )


def written_to(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def quiet() -> Console:
    return Console(file=io.StringIO(), quiet=True)


class Clock:
    """Time that passes by itself: a second with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def shown(*pieces: Piece, width: int = 40, height: int = 10, shows_thinking: bool = False) -> str:
    """What a terminal shows in the end, with what has left it at the top."""
    console = terminal(width, height)
    with MarkdownDisplay(console, shows_thinking=shows_thinking, clock=Clock()) as display:
        for piece in pieces:
            display.show(piece)
    return screen_of(written_to(console), width=width)


def test_a_pipe_has_the_answer_alone() -> None:
    out = io.StringIO()
    with PlainDisplay(out, quiet()) as display:
        for piece in (Waits("reading"), Said("hm", is_thinking=True), Said("He\x1b[2Jllo "), Said("**there**"), ENDED):
            display.show(piece)
    assert out.getvalue() == "Hello **there**\n"


def test_an_answer_that_was_broken_off_ends_its_line() -> None:
    for text in ("Once upon", "Once upon\n"):
        out = io.StringIO()
        with pytest.raises(KeyboardInterrupt), PlainDisplay(out, quiet()) as display:
            display.show(Said(text))
            raise KeyboardInterrupt
        assert out.getvalue() == "Once upon\n"


def test_what_is_waited_for_stands_on_stderr_until_something_comes() -> None:
    errors, out = terminal(), io.StringIO()
    with PlainDisplay(out, errors) as display:
        display.show(Waits("reading the prompt"))
        assert "reading the prompt" in screen_of(written_to(errors), width=40)
        display.show(Said("They greet.", is_thinking=True))
        assert "thinking, 2 words, 0 s" in screen_of(written_to(errors), width=40)
        display.show(Said("Hello"))
        assert screen_of(written_to(errors), width=40).strip() == ""
    assert out.getvalue() == "Hello\n"


def test_json_is_one_object() -> None:
    out = io.StringIO()
    with JsonDisplay(out, quiet(), facts=lambda: {"model": "tiny"}) as display:
        for piece in (Waits("reading"), Said("hm", is_thinking=True), Said("He\x1b"), Said("llo"), ENDED):
            display.show(piece)
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {
        "text": "He\x1bllo",
        "reasoning": "hm",
        "finish_reason": "stop",
        "usage": {"completion_tokens": 3},
        "model": "tiny",
    }


def test_json_of_a_broken_answer_has_what_came_and_of_none_nothing() -> None:
    for pieces, expected in (((Said("Once"),), "Once"), ((), None)):
        out = io.StringIO()
        with pytest.raises(KeyboardInterrupt), JsonDisplay(out, quiet(), facts=dict) as display:
            for piece in pieces:
                display.show(piece)
            raise KeyboardInterrupt
        if expected is None:
            assert out.getvalue() == ""
        else:
            record = json.loads(out.getvalue())
            assert (record["text"], record["finish_reason"], record["reasoning"]) == (expected, "stopped", None)


MARKDOWN = (
    "# Title\n\nSome *words* that are more than one line of forty cells.\n\n- one\n- two\n\n```py\nx = 1\n```\n\nEnd."
)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_markdown_is_the_same_however_it_was_cut(size: int) -> None:
    pieces = [Said(MARKDOWN[start : start + size]) for start in range(0, len(MARKDOWN), size)]
    found = shown(*pieces, ENDED, height=50)
    assert found == shown(Said(MARKDOWN), ENDED, height=50)
    lines = [line.strip() for line in found.splitlines() if line.strip()]
    assert lines[0] == "Title" or "Title" in lines[0]
    assert lines[1:] == [
        "Some words that are more than one line",
        "of forty cells.",
        "• one",
        "• two",
        "x = 1",
        "End.",
    ]


def test_one_blank_line_stands_between_blocks() -> None:
    found = shown(Said("Words\n\n- one\n\n| a |\n|---|\n| 1 |\n\n"), Said("End.\n"), ENDED, height=50)
    assert "\n\n\n" not in found.strip() and found.strip().count("\n\n") == 3


def test_an_answer_longer_than_the_screen_is_there_as_a_whole() -> None:
    text = "".join(f"- item {number}\n" for number in range(40))
    pieces = [Said(line + "\n") for line in text.splitlines()]
    found = shown(*pieces, ENDED, height=10)
    assert [line.strip() for line in found.splitlines() if line.strip()] == [f"• item {number}" for number in range(40)]


def test_thinking_is_one_line_unless_all_of_it_is_wanted() -> None:
    pieces = (Waits("reading"), Said("They greet.\nI greet.", is_thinking=True), Said("Hello."), ENDED)
    words = [line.strip() for line in shown(*pieces).splitlines() if line.strip()]
    assert words[0].startswith("thought, 4 words, ") and words[1:] == ["Hello."]
    words = [line.strip() for line in shown(*pieces, shows_thinking=True).splitlines() if line.strip()]
    assert words[:2] == ["They greet.", "I greet."] and words[2].startswith("thought, 4 words")


def test_what_is_waited_for_is_gone_in_the_end() -> None:
    assert shown(Waits("reading the prompt")).strip() == ""


def test_an_interrupted_answer_is_there_once() -> None:
    """The terminal wrote ^C behind a line that was padded to its full width, so that the line was never taken away."""
    console = terminal()
    with MarkdownDisplay(console, clock=Clock()) as display:
        for piece in (Said("Once "), Said("upon a time")):
            display.show(piece)
        console.file.write("^C")
    assert screen_of(written_to(console), width=40).strip() == "Once upon a time"


def test_the_model_cannot_write_to_the_terminal_itself() -> None:
    console = terminal(colors=None)
    with MarkdownDisplay(console) as display:
        display.show(Said("a\x1b]52;c;aGk=\x07b [link](https://a.b/c)"))
    assert "\x1b]" not in written_to(console) and "␛" in written_to(console)
    assert "https://a.b/c" in written_to(console)


def test_without_colors_there_are_none() -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=40, no_color=True, color_system="standard", legacy_windows=False
    )
    with MarkdownDisplay(console) as display:
        display.show(Said(MARKDOWN))
    assert not any(f"\x1b[{code}" in written_to(console) for code in ("31", "32", "33", "34", "35", "36", "38;"))
