"""Splits an answer as its text comes: thinking, what is said, calls of tools. How the text is cut changes no part.

A call is given once it is whole. One that cannot be read is said as it stands, so that nothing is ever lost.
"""

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from runtime.events import AnswerParts, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall
from runtime.tokenizer.answer_forms import FENCE, FUNCTION, PYTHON_TAG, TOOL_CALLS, AnswerForm, CallMarks
from runtime.tokenizer.tool_texts import Call, KnownTools, calls_of_json, is_open, json_end, texts_of
from runtime.tokenizer.unmarked_calls import read_unmarked

Part = TextDelta | ReasoningDelta | ToolCallDelta
Spans = tuple[tuple[int, int], ...]
_MISTRAL_NAME = re.compile(r"\s*([\w.:/-]*)(\[CALL_ID\][^\[\s{]*)?(\[ARGS\])?\s*")
_FIRST_KEY = re.compile(r'\{\s*"(\w*)"')
_CALL_KEYS = frozenset(("name", "type", "function", "parameters", "arguments"))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What stands at a mark."""

    num_characters: int
    """How long it is, the mark included."""
    calls: Sequence[Call] = ()
    """Where there is none, it is said as it stands."""


def new_call_id() -> str:
    """Return an id for a call that no other has."""
    return f"call_{uuid.uuid4().hex[:24]}"


class AnswerSplitter:
    """Takes an answer's text as it comes and gives its parts."""

    def __init__(
        self,
        form: AnswerForm,
        *,
        tools: str | None = None,
        is_thinking: bool = False,
        is_all_calls: bool = False,
        has_one_call: bool = False,
        guessed: Callable[[int, int], Spans] | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tools` are the request's, without which no call is looked for; it may begin inside of thinking.

        `is_all_calls`: what is said is JSON of calls without marks, since a grammar held it to that. `has_one_call`:
        whatever follows a call is dropped. `guessed`: which stretches of the answer between two of its characters were
        guessed, counted from the first.
        """
        self._reasoning = form.reasoning
        self._calls = (*form.calls, FENCE) if tools is not None and not is_all_calls else ()
        self._tools = KnownTools.of(tools)
        self._is_all_calls = is_all_calls
        self._has_bare_form = is_all_calls or any(marks.begin == PYTHON_TAG for marks in self._calls)
        self._is_thinking = is_thinking
        self._may_think = not is_thinking
        self._has_one_call = has_one_call
        self._new_id = new_id
        self._guessed = guessed
        self._num_added = 0  # characters
        self._held = ""
        """Text whose part is not certain yet."""
        self._is_blank_dropped = is_thinking
        """Whether white space is part of nothing here: behind a mark."""
        self._stray = ""
        """A mark that may follow a call without its beginning."""
        self._has_said = False
        self._was_thinking = is_thinking
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._made: list[ToolCall] = []

    @property
    def parts(self) -> AnswerParts:
        """Return all parts so far, whole."""
        reasoning = "".join(self._thoughts) if self._was_thinking else None
        return AnswerParts("".join(self._texts), reasoning, tuple(self._made))

    @property
    def is_full(self) -> bool:
        """Return whether no further text belongs to the answer."""
        return self._has_one_call and bool(self._made)

    def add(self, text: str) -> list[Part]:
        """Return the parts that more text makes certain."""
        self._held += "" if self.is_full else text
        self._num_added += len(text)
        return list(self._advance(is_last=False))

    def finish(self) -> list[Part]:
        """Return what was held back, once no text follows."""
        return list(self._advance(is_last=True))

    def _advance(self, *, is_last: bool) -> Iterator[Part]:
        while True:
            before = (self._held, self._is_thinking)
            yield from self._think(is_last) if self._is_thinking else self._say(is_last)
            if (self._held, self._is_thinking) == before or not self._held:
                return

    def _think(self, is_last: bool) -> Iterator[Part]:
        assert self._reasoning is not None
        if self._is_blank_dropped:
            self._held = self._held.lstrip()
            while self._held.startswith(self._reasoning.begin):  # said although the prompt says it
                self._held = self._held.removeprefix(self._reasoning.begin).lstrip()
            if not is_last and self._reasoning.begin.startswith(self._held):
                return
        end = self._held.find(self._reasoning.end)
        if end >= 0:
            yield from self._thought(self._held[:end].rstrip())
            self._held = self._held[end + len(self._reasoning.end) :]
            self._is_thinking, self._is_blank_dropped = False, True
            return
        num_kept = 0 if is_last else _num_uncertain(self._held, [self._reasoning.end])
        yield from self._thought(self._held[: len(self._held) - num_kept])
        self._held = self._held[len(self._held) - num_kept :]

    def _say(self, is_last: bool) -> Iterator[Part]:
        stripped = self._held.lstrip()
        if self._is_blank_dropped:
            self._held = stripped
            if not stripped:
                return
        for mark in [] if self._has_said else self._first_marks():
            if stripped.startswith(mark):
                self._held, self._is_blank_dropped = stripped[len(mark) :], True
                self._is_thinking = mark != self._stray
                self._was_thinking |= self._is_thinking
                self._may_think, self._stray = False, ""
                return
            if mark.startswith(stripped) and not is_last:
                return
        begin, marks = self._next_call(stripped)
        if begin is None:
            num_kept = 0 if is_last else _num_uncertain(self._held, [each.begin for each in self._calls])
            yield from self._said(self._held[: len(self._held) - num_kept])
            self._held = self._held[len(self._held) - num_kept :]
            return
        yield from self._call_at(begin, marks, is_last)

    def _first_marks(self) -> Iterator[str]:
        """Yield the marks that only the first word can be."""
        if self._stray:
            yield self._stray
        if self._reasoning is not None and self._may_think:
            yield self._reasoning.begin

    def _next_call(self, stripped: str) -> tuple[int | None, CallMarks | None]:
        """Return where the first call may begin, and its marks: None for JSON without any, or where none begins."""
        is_bare = self._is_all_calls or bool(self._calls)
        if is_bare and not self._has_said and stripped.startswith(("{", "[") if self._is_all_calls else "{"):
            return len(self._held) - len(stripped), None
        found = [(self._held.find(marks.begin), -len(marks.begin), index) for index, marks in enumerate(self._calls)]
        begin, _, index = min((each for each in found if each[0] >= 0), default=(None, 0, 0))
        return begin, None if begin is None else self._calls[index]

    def _call_at(self, begin: int, marks: CallMarks | None, is_last: bool) -> Iterator[Part]:
        """Give what stands before a mark, and what stands at it once it is whole."""
        text = self._held[begin:]
        reading = self._read(text, marks, is_last)
        before = self._held[:begin]
        if reading is None or reading.calls:
            said = before.rstrip()
            yield from self._said(said)
            if reading is None:
                self._held = self._held[len(said) :]
                return
            for name, arguments in texts_of(reading.calls):
                call = ToolCall(self._new_id(), name, arguments)
                self._made.append(call)
                yield ToolCallDelta(len(self._made) - 1, call)
                if self.is_full:
                    self._held = ""
                    return
            self._is_blank_dropped, self._has_said, self._may_think = True, False, False
            self._stray = {FUNCTION: "</tool_call>", PYTHON_TAG: ";"}.get(marks.begin if marks else PYTHON_TAG, "")
        else:
            yield from self._said(before + text[: reading.num_characters])
        self._held = text[reading.num_characters :]

    def _read(self, text: str, marks: CallMarks | None, is_last: bool) -> _Reading | None:
        """Return what stands at a mark; None while more text is needed to say so."""
        if marks is FENCE or (marks is None and not self._has_bare_form):
            return self._read_unmarked(text, is_last)
        if marks is None:
            return self._read_bare(text, 0, is_last)
        if marks.begin == TOOL_CALLS:
            return self._read_mistral(text, is_last)
        if marks.end is None:
            start = len(marks.begin) + len(text[len(marks.begin) :]) - len(text[len(marks.begin) :].lstrip())
            return self._read_bare(text, start, is_last)
        return self._read_between(text, marks, marks.end, is_last)

    def _read_between(self, text: str, marks: CallMarks, end_mark: str, is_last: bool) -> _Reading | None:
        start = 0 if marks.begin == FUNCTION else len(marks.begin)
        first = end = text.find(end_mark, len(marks.begin))
        while end >= 0:
            stop = end + len(end_mark)
            inner = text[start : stop if marks.begin == FUNCTION else end]
            calls = marks.read(inner, self._tools)
            if calls is not None or not is_open(inner):
                return _Reading(stop, calls or ())
            end = text.find(end_mark, stop)
        if not is_last:
            return None
        calls = marks.read(text[start:], self._tools)  # the answer ended without the mark, as some models do
        if calls is not None:
            return _Reading(len(text), calls)
        return _Reading(len(text) if first < 0 else first + len(end_mark))

    def _read_bare(self, text: str, start: int, is_last: bool) -> _Reading | None:
        """Read JSON that ends with its last bracket, the mark before it or none."""
        if start >= len(text):
            return _Reading(len(text)) if is_last else None
        is_marked = start > 0
        if text[start] not in "{[":
            return _Reading(start)
        key = _FIRST_KEY.match(text, start)
        is_other = key is not None and key[1] not in _CALL_KEYS and key[1] not in self._tools.schemas
        if not is_marked and not self._is_all_calls and is_other:
            return _Reading(start + 1)
        end = json_end(text, start)
        if end is None:
            return _Reading(len(text)) if is_last else None
        calls = calls_of_json(text[start:end], self._tools)
        if not is_marked and any(name not in self._tools.schemas for name, _ in calls or ()):
            calls = None
        return _Reading(end, calls or ())

    def _read_unmarked(self, text: str, is_last: bool) -> _Reading | None:
        """Read a fence, or JSON without a mark, which is a call only where the answer ends with it."""
        if not is_last and any(marks.begin.startswith(text) for marks in self._calls if marks is not FENCE):
            return None
        found = read_unmarked(text, self._tools)
        if found is not None and not is_last:
            return None
        if found is None or not found.is_whole:
            return _Reading(len(FENCE.begin) if text.startswith(FENCE.begin) else 1)
        return _Reading(len(text), found.calls)

    def _read_mistral(self, text: str, is_last: bool) -> _Reading | None:
        """Read `[TOOL_CALLS]` and a list of calls, or a name, `[ARGS]` and its arguments."""
        mark = len(TOOL_CALLS)
        head = _MISTRAL_NAME.match(text, mark)
        assert head is not None, "all of it may be empty"
        rest = text[head.end() :]
        if not is_last and any(word.startswith(rest) for word in ("[ARGS]", "[CALL_ID]")):
            return None
        if not rest.startswith("{" if head[1] else "["):
            return _Reading(mark)
        end = json_end(text, head.end())
        if end is None:
            return _Reading(len(text)) if is_last else None
        value = text[head.end() : end]
        calls = calls_of_json(f'{{"name": "{head[1]}", "arguments": {value}}}' if head[1] else value, self._tools)
        return _Reading(end, calls or ())

    def _thought(self, text: str) -> Iterator[Part]:
        if text:
            self._is_blank_dropped = False
            self._thoughts.append(text)
            yield ReasoningDelta(text)

    def _said(self, text: str) -> Iterator[Part]:
        if text:
            self._is_blank_dropped = False
            self._has_said = self._has_said or not text.isspace()
            self._texts.append(text)
            start = self._num_added - len(self._held)  # what is said is always the beginning of what is held
            yield TextDelta(text, None if self._guessed is None else self._guessed(start, start + len(text)))


def _num_uncertain(text: str, marks: Sequence[str]) -> int:
    """Return how many last characters may be the beginning of a mark, with the white space before them."""
    if not marks:
        return 0
    sizes = range(min(max(map(len, marks)) - 1, len(text)), 0, -1)
    size = next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)
    return len(text) - len(text[: len(text) - size].rstrip())
