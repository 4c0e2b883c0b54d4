"""What a tokenizer's process is asked and what it replies: small records, a length before each.

Both sides read them strictly: the process runs what strangers wrote, and is believed no more than their files are.
"""

from typing import Any, Protocol

import msgspec

from runtime.prompts.prompt_file import Message

MAX_FRAME_BYTES = 64 * 2**20
"""The longest request or reply. A prompt of a million tokens takes 5 MB."""
_LENGTH_BYTES = 4


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Load(_Message, frozen=True):
    """Load the tokenizer of a model folder and keep it under a number."""

    key: int
    folder: bytes
    """As the system has it: it may be no UTF-8."""


class Encode(_Message, frozen=True):
    """Turn raw text into token ids."""

    key: int
    text: str


class EncodeConversation(_Message, frozen=True):
    """Apply the chat template to turns, and turn the result into token ids."""

    key: int
    turns: tuple[Message, ...]
    is_continued: bool
    tools: str | None = None
    thinking: bool | None = None
    reasoning_effort: str | None = None


class EncodePair(_Message, frozen=True):
    """Turn a context and its continuation into token ids, to be scored."""

    key: int
    context: str | None
    """None: there is none, and the whole text is scored."""
    continuation: str


class Name(_Message, frozen=True):
    """Say which string a token id stands for."""

    key: int
    token_id: int


class Describe(_Message, frozen=True):
    """Say what tokens add to a text, which they begin or follow."""

    key: int
    token_ids: list[int]
    is_first: bool


class Compare(_Message, frozen=True):
    """Find the first id that two tokenizers read differently."""

    key: int
    other_key: int


class CheckSchema(_Message, frozen=True):
    """Compile a JSON schema, to see whether that can be done."""

    schema: str


class Begin(_Message, frozen=True):
    """Begin an answer's text, kept under a number of its own."""

    key: int
    answer_key: int
    stop: list[str]
    behind: list[int]
    kept: list[str] = []  # copied for each record
    """Tokens whose text stays although they are special."""
    tail: list[int] = []
    """The prompt's last tokens, whose text is the reply, with all that is special."""
    has_ends: bool = False
    """Whether to tell where each token ends in the text."""


class Add(_Message, frozen=True):
    """Add tokens to an answer and release the text that is certain."""

    answer_key: int
    token_ids: list[int]


class End(_Message, frozen=True):
    """Return an answer's whole text, and what was held back of it."""

    answer_key: int


Task = Load | Encode | EncodeConversation | EncodePair | Name | Describe | Compare | CheckSchema | Begin | Add | End


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A task, and how long the processor may work on it."""

    task: Task
    seconds: float
    dropped_keys: list[int]
    """Tokenizers and answers that nobody wants any more."""


class Ready(_Message, frozen=True):
    """The process has started."""


class ThinkingMarks(msgspec.Struct, frozen=True, array_like=True):
    """What a model sets around its thinking.

    Each mark is given as its tokens: those that may stand in each of its places, first the one that is written where
    the mark is forced.
    """

    begin_text: str
    end_text: str
    has_switch: bool
    """Whether the chat template takes a choice of thinking."""
    begin: tuple[tuple[int, ...], ...]
    end: tuple[tuple[int, ...], ...]


class Loaded(_Message, frozen=True):
    """The tokenizer is there."""

    eos_token_id: int | None
    has_chat_template: bool
    num_tokens: int
    thinking: ThinkingMarks | None = None
    """None where no marks of thinking are known."""
    marks: list[str] = []
    """Beginnings of the marks that its answers may have: see `AnswerForm`."""


class Encoded(_Message, frozen=True):
    """The token ids of a prompt."""

    token_ids: list[int]


class EncodedPair(_Message, frozen=True):
    """The token ids of a context and its continuation."""

    context_ids: list[int]
    continuation_ids: list[int]


class Text(_Message, frozen=True):
    """A token's string, as it may be printed, or the text of some."""

    text: str


class Described(_Message, frozen=True):
    """Of each token its text, and the bytes that it adds, as `token_contents` gives them."""

    contents: list[tuple[str, bytes | None]]


class Difference(_Message, frozen=True):
    """An id that two tokenizers read differently; -1 where there is none."""

    token_id: int
    string: str
    """As it may be printed."""
    other_string: str


class Released(_Message, frozen=True):
    """Text of an answer that no later token changes."""

    text: str
    num_taken: int
    """How many of its tokens belong to the answer so far: those behind a stop string do not."""
    is_stopped: bool
    ends: list[int] = []
    """Of each token that was added, how many characters the text has with it, if that is wanted."""


class Ended(_Message, frozen=True):
    """An answer's whole text."""

    released: str
    text: str
    num_tokens: int
    """Of the text, the last of which may end behind it."""
    stop_string: str | None = None
    """Which of them ended it."""


class Refused(_Message, frozen=True):
    """The task failed, and in which words; the process is ready for the next one unless it `ends`."""

    sentence: str
    ends: bool = False


Reply = Ready | Loaded | Encoded | EncodedPair | Text | Described | Difference | Released | Ended | Refused
_requests, _replies = msgspec.msgpack.Decoder(Request), msgspec.msgpack.Decoder(Reply)
_encoder = msgspec.msgpack.Encoder()


class ReadableStream(Protocol):
    """The reading end of a pipe."""

    def read(self, num_bytes: int, /) -> bytes:
        """Return that many bytes; fewer at the end."""
        ...


def to_frame(message: Request | Reply) -> bytes:
    """Return a message with its length before it. Raises ValueError if it is too long, or no text that can be sent."""
    content = _encoder.encode(message)
    if len(content) > MAX_FRAME_BYTES:
        raise ValueError(f"it takes {len(content)} bytes; at most {MAX_FRAME_BYTES} can be sent")
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def read_request(stream: ReadableStream) -> Request | None:
    """Return the next request, or None at the end of the stream."""
    content = _read_frame(stream)
    return None if content is None else _requests.decode(content)


def read_reply(stream: ReadableStream) -> Reply:
    """Return the next reply. Raises EOFError at the end of the stream, and ValueError for what is no reply."""
    content = _read_frame(stream)
    if content is None:
        raise EOFError("the stream has ended")
    reply: Any = _replies.decode(content)
    return reply  # type: ignore[no-any-return]


def _read_frame(stream: ReadableStream) -> bytes | None:
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    num_bytes = int.from_bytes(length, "little")
    if num_bytes > MAX_FRAME_BYTES:
        raise ValueError(f"a message claims {num_bytes} bytes")
    content = stream.read(num_bytes)
    return content if len(content) == num_bytes else None
