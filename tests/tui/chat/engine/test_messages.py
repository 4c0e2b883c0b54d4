"""What one side writes the other reads, value by value."""

import pytest

from profiles.errors import BadInputError
from tui.chat.engine.messages import (
    Answer,
    Failed,
    Loaded,
    LoadModel,
    PassRunning,
    Quit,
    TextArrived,
    from_line,
    to_line,
)

MESSAGES = [
    LoadModel({"target": "a b", "ring_slots": 3}),
    Answer(7, ({"role": "user", "content": "zeile\nzwei \x1b[0m ü"},), {"temperature": 0.5}, is_continued=True),
    Quit(),
    Loaded("t", "none", "cpu", 4096, 4, 2, 2, 10, {"ring": 5}, None, ("a",), resident_layers=(0, 2)),
    PassRunning(7, 3, 28, (4, 5)),
    TextArrived(7, "\u2028 one line all the same\n"),
    Failed(None, "no such folder", "input"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_from_its_line(message):
    line = to_line(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert from_line(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"message": "Nothing"}',
        b'{"message": "Quit", "more": 1}',
        b'{"message": "StopAnswer"}',
    ],
)
def test_anything_else_is_refused_in_a_sentence(line):
    with pytest.raises(BadInputError, match="is no message"):
        from_line(line)
