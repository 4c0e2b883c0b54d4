"""Strictly JSON, or a ValueError that can be printed."""

import pytest

from profiles.json_text import parse_json_text


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        (b"[]", []),
        (b'"\\u001b"', "\x1b"),
        (b"1e3", 1000.0),
    ],
)
def test_what_is_json_is_read(raw: bytes, value: object) -> None:
    assert parse_json_text(raw) == value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1} x', "Extra data"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": {"\\n": 1, "\\n": 2}}', r"the key '\\n' stands twice"),
        (b"NaN", "'NaN' is not a finite number"),
        (b"-Infinity", "is not a finite number"),
        (b"1e999", "'1e999' is not a finite number"),
        (b"9" * 5000, "digits"),
    ],
)
def test_anything_else_is_a_value_error(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json_text(raw)
    assert "\n" not in str(caught.value)
