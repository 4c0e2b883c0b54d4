"""What is attached is read as it is, sent with its name, and found again in the message."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import BadInputError
from tui.attachments import (
    Attachment,
    in_brief,
    is_long_paste,
    joined_messages,
    pasted,
    read_attachment,
    split_attachments,
    with_attachments,
)

NOTES = Attachment("one\ntwo", "notes.txt")
PIECES = [*"ab`\n (1):", "```", "Pasted text (1 line):\n", "Attached file x (1 line):\n", "\n\n", "\n```"]
WILD = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def test_a_message_names_and_fences_what_is_attached_before_the_words():
    message = with_attachments("What is this?", [NOTES, pasted("a ``` b\n")])
    assert message == (
        "Attached file notes.txt (2 lines):\n```\none\ntwo\n```\n\n"
        "Pasted text (1 line):\n````\na ``` b\n````\n\nWhat is this?"
    )
    assert split_attachments(message) == ((NOTES, Attachment("a ``` b")), "What is this?")
    assert in_brief(message) == "[notes.txt, 2 lines] [pasted text, 1 line] What is this?"


@given(st.lists(WILD, max_size=3), WILD)
def test_what_is_put_together_comes_apart_again(texts, words):
    attachments = tuple(pasted(text) if number else Attachment(text, "a b.txt") for number, text in enumerate(texts))
    message = with_attachments(words, attachments)
    found, rest = split_attachments(message)
    assert with_attachments(rest, found) == message
    if not words.startswith(("Pasted", "Attached")):
        assert (found, rest) == (attachments, words)


@given(WILD)
def test_any_text_is_a_message(text):
    """What a person typed by chance in that form is still sent as it was typed."""
    found, rest = split_attachments(text)
    assert with_attachments(rest, found) == text


def test_messages_that_are_joined_keep_what_is_attached_in_front():
    first, second = with_attachments("One?", [NOTES]), with_attachments("", [pasted("x")])
    assert joined_messages([first, "Two?", second]) == with_attachments("One?\nTwo?", [NOTES, pasted("x")])
    assert joined_messages(["One?", "Two?"]) == "One?\nTwo?"


def test_a_file_is_read_with_its_name_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for content in ("grün\r\nend\n".encode(), "\ufeffgrün\nend".encode(), "grün\nend".encode("utf-16")):
        (tmp_path / "sub/a\x1b[2Jb.txt").write_bytes(content)
        assert read_attachment(tmp_path / "sub/a\x1b[2Jb.txt") == Attachment("grün\nend", "sub/ab.txt")
    assert read_attachment(tmp_path / "sub/a\x1b[2Jb.txt").label == "sub/ab.txt, 2 lines"


def test_what_cannot_be_attached_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "zeros").write_bytes(b"a\0b")
    (tmp_path / "large.txt").write_bytes(b"x" * 101)
    (tmp_path / "blank.txt").write_text(" \n")
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "picture.png": "picture.png is no text in UTF-8",
        "zeros": "zeros holds binary data",
        "large.txt": "large.txt has more than 100 bytes, the most that is attached; attach a part of it",
        "blank.txt": "blank.txt is empty",
        "gone.txt": "gone.txt cannot be attached: No such file",
        "pipe": "pipe cannot be attached: it is not a regular file",
        ".": "cannot be attached: ",
    }.items():
        with pytest.raises(BadInputError) as caught:
            read_attachment(tmp_path / name, max_bytes=100)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_paste_is_long_by_characters_or_by_lines():
    assert not is_long_paste("x" * 2000) and is_long_paste("x" * 2001)
    assert not is_long_paste("x\n" * 30) and is_long_paste("x\n" * 31)
    assert pasted("x\n" * 214).label == "pasted text, 214 lines"
