"""The chat app on an engine that writes one kind of answer at a steady rate: for measuring, in a terminal.

    python -m tests.support.chat_stream prose|list|table|code

Each prompt is answered, whatever it says. No model, no file of the user's.
"""

import asyncio
import sys
from collections.abc import Iterator

import regex

from runtime.events import LevelDrafted, PrefillProgress, TextDelta
from tests.support.chat_fakes import FIGURES, FINISHED, LOADED, ROUND, FakeEngine, of_answer
from tui.chat.app import ChatApp, collect_rarely
from tui.chat.display import ChatServices
from tui.chat.engine.messages import Answer, LoadModel, PassRunning, Report, Request, StopAnswer
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import ChatSettings
from tui.chat.store.store import ConversationStore

TOKENS_PER_SECOND = 100
TOKENS_PER_ROUND = 3
TEXT = "the forest grows beside a river and every stone under its slow water remembers **rain** or `snow`"
WORDS = TEXT.split()


def _words(start: int, number: int) -> str:
    return " ".join(WORDS[(start + index) % len(WORDS)] for index in range(number))


def _prose() -> Iterator[str]:
    for number in range(24):
        yield _words(number, 60) + ".\n\n"


def _list() -> Iterator[str]:
    yield "All of them:\n\n"
    for number in range(120):
        yield f"{number + 1}. **Item {number}**: {_words(number, 11)}\n"


def _table() -> Iterator[str]:
    yield "| number | name | what it does | why |\n|---:|---|---|---|\n"
    for number in range(80):
        yield f"| {number} | name {number} | {_words(number, 4)} | {_words(number + 3, 5)} |\n"


def _code() -> Iterator[str]:
    yield "```python\n"
    for number in range(60):
        yield f"def function_{number}(first: int, second: str = 'text') -> list[str]:\n"
        yield f'    """Return the words, {number} times."""\n'
        yield f"    return [word for word in second.split() if len(word) > first + {number}]\n\n"
    yield "```\n"


ANSWERS = {"prose": _prose, "list": _list, "table": _table, "code": _code}


def answer(kind: str) -> str:
    """Return the whole answer of a kind."""
    return "".join(ANSWERS[kind]())


class SteadyEngine(FakeEngine):
    """Writes the answer, some tokens a round."""

    def __init__(self, text: str) -> None:
        super().__init__(self._answer)
        self._tokens = regex.findall(r"\s?\w{1,6}|\s?\W", text)
        self._writing: asyncio.Task[None] | None = None

    def _answer(self, request: Request) -> list[Report]:
        if isinstance(request, LoadModel):
            return [LOADED]
        if isinstance(request, Answer):
            self._writing = asyncio.create_task(self._write(request.answer_id))
        if isinstance(request, StopAnswer) and self._writing is not None and self._writing.cancel():
            return of_answer(request.answer_id, FINISHED)
        return []

    async def _write(self, answer_id: int) -> None:
        self.say(*of_answer(answer_id, PrefillProgress(12, 12)))
        clock = asyncio.get_running_loop()
        begun = clock.time()
        for start in range(0, len(self._tokens), TOKENS_PER_ROUND):
            await asyncio.sleep(begun + start / TOKENS_PER_SECOND - clock.time())
            text = "".join(self._tokens[start : start + TOKENS_PER_ROUND])
            drafted = (LevelDrafted(0, 1), LevelDrafted(1, 2))
            self.say(*of_answer(answer_id, *drafted, PassRunning(3, 6, (2, 4)), ROUND, FIGURES, TextDelta(text)))
        self.say(*of_answer(answer_id, FINISHED))


if __name__ == "__main__":
    collect_rarely()
    with ConversationStore(None) as store:
        settings = RememberedSettings(ChatSettings(target="tiny"))
        ChatApp(ChatServices(store=store, engine=SteadyEngine(answer(sys.argv[1])), settings=settings)).run()
