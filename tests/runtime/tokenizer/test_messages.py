"""Records arrive as they were sent; what is none of them is refused by whoever reads it."""

import io

import pytest

from runtime.prompts.prompt_file import Message, ToolCall
from runtime.tokenizer.messages import (
    MAX_FRAME_BYTES,
    Add,
    Described,
    EncodeConversation,
    Ready,
    Released,
    Reply,
    Request,
    read_reply,
    read_request,
    to_frame,
)


def test_records_arrive_as_they_were_sent() -> None:
    turns = (Message("user", "é🙂"), Message("assistant", "", (ToolCall("1", "f", "{}"),), "hm"))
    asked = [Request(EncodeConversation(1, turns, True, "[]"), 1.5, [2, 3]), Request(Add(7, [1, 2]), 2.0, [])]
    stream = io.BytesIO(b"".join(map(to_frame, asked)))
    assert [read_request(stream), read_request(stream), read_request(stream)] == [*asked, None]
    replies: list[Reply] = [Ready(), Released("x", 1, False), Described([("\\xf0", b"\xf0"), ("</s>", None)])]
    stream = io.BytesIO(b"".join(map(to_frame, replies)))
    assert [read_reply(stream) for _ in replies] == replies
    with pytest.raises(EOFError):
        read_reply(stream)


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x93\xa5Ready\x01", b"\x91\xa7Unknown", b"\x92\xa7Encoded\xa1x"])
def test_what_is_no_reply_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(?!$)"):
        read_reply(io.BytesIO(len(content).to_bytes(4, "little") + content))


def test_lengths_are_bounded_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at most"):
        to_frame(Released("x" * MAX_FRAME_BYTES, 1, False))
    with pytest.raises(ValueError, match="claims"):
        read_reply(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(EOFError):
        read_reply(io.BytesIO(b"\x09\x00\x00\x00\x91"))


def test_half_a_surrogate_pair_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        to_frame(Released("\ud800", 1, False))
