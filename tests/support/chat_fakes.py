"""An engine that says what a test scripts, for the tests of the chat app's interface; no process, no model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

from offload.pass_statistics import PassStatistics
from runtime.events import Finished, GenerationStatistics, LevelDrafted, PrefillProgress, Round, TextDelta
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import (
    Answer,
    AnswerEvent,
    CountTokens,
    Loaded,
    LoadModel,
    OfAnswer,
    PassRunning,
    Report,
    Request,
    SessionFigures,
    StopAnswer,
)

LOADED = Loaded(
    target="tiny",
    draft="substitute",
    device="cpu",
    context_tokens=4096,
    num_layers=6,
    num_resident_layers=2,
    num_ring_slots=2,
    bytes_per_pass=4_000_000,
    memory={"ring": 2_000_000, "resident layers": 2_000_000},
    predicted_seconds_per_token=0.25,
    sentences=("the model fits well",),
)

ROUND = Round(
    parents=(-1, 0, 0, 1, 1, 3),
    path=(0, 1, 3),
    draft_seconds=0.05,
    verify_seconds=0.45,
    pass_statistics=PassStatistics(
        seconds=0.44,
        wait_seconds=0.04,
        link_busy_seconds=0.4,
        bytes_streamed=4_000_000,
        num_layers=6,
        num_streamed_layers=4,
        compute_seconds=0.4,
    ),
    num_pass_tokens=6,
)
FIGURES = SessionFigures(num_context_tokens=40, predicted_seconds_per_token=0.25, process_bytes=900_000_000)
FINISHED = Finished(
    "stop",
    "",
    GenerationStatistics(
        prompt_tokens=12,
        new_tokens=6,
        rounds=2,
        prefill_seconds=0.8,
        decode_seconds=1.0,
        decode_tokens=5,
        draft_seconds=0.1,
        verify_seconds=0.9,
        bytes_streamed=8_000_000,
        link_busy_seconds=0.8,
        decode_bytes_streamed=4_000_000,
    ),
)
STOPPED = replace(FINISHED, finish_reason="stopped")


def of_answer(answer_id: int, *events: AnswerEvent) -> list[Report]:
    """Reports of these events."""
    return [OfAnswer(answer_id, event) for event in events]


def answer_reports(answer_id: int, texts: Iterable[str], *, is_ended: bool = True) -> list[Report]:
    """What an engine says while it writes `texts`, one a round; without the end if it is not `is_ended`."""
    events: list[AnswerEvent] = [PrefillProgress(12, 12)]
    for text in texts:
        drafted = (LevelDrafted(0, 1), LevelDrafted(1, 2))
        events += [*drafted, PassRunning(3, 6, (2, 4)), ROUND, FIGURES, TextDelta(text)]
    return of_answer(answer_id, *events, *([FINISHED] if is_ended else []))


def polite(request: Request) -> list[Report]:
    """A script: loads at once, answers `Hello there.` in two rounds."""
    match request:
        case LoadModel():
            return [LOADED]
        case Answer(answer_id=answer_id):
            return answer_reports(answer_id, ["Hello ", "there."])
        case _:
            return []


def endless(request: Request) -> list[Report]:
    """A script: begins each answer with `Once upon ` and says no more until it is stopped."""
    match request:
        case Answer(answer_id=answer_id):
            return answer_reports(answer_id, ["Once upon "], is_ended=False)
        case StopAnswer(answer_id=answer_id):
            return of_answer(answer_id, STOPPED)
        case _:
            return polite(request)


class FakeEngine:
    """An `EngineClient` without a process: keeps what it is sent in `requests` and says what `script` makes of it.

    What is to be counted, which comes a moment after any key, is kept in `counts`.

    `script` may be exchanged at any time; `die` is what a killed process looks like.
    """

    def __init__(self, script: Callable[[Request], Iterable[Report]] = polite) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.counts: list[Request] = []
        self.num_starts = 0
        self.is_closed = False
        self._is_alive = False
        self._queue: asyncio.Queue[Report | EngineDied | None] = asyncio.Queue()

    @property
    def is_alive(self) -> bool:
        return self._is_alive

    async def start(self) -> None:
        self.num_starts += not self._is_alive
        self._is_alive = True

    def send(self, request: Request) -> None:
        if self._is_alive:
            (self.counts if isinstance(request, CountTokens) else self.requests).append(request)
            self.say(*self.script(request))

    def say(self, *reports: Report) -> None:
        for report in reports:
            self._queue.put_nowait(report)

    def die(self, sentence: str = "the engine was killed (SIGKILL)") -> None:
        self._is_alive = False
        self._queue.put_nowait(EngineDied(sentence))

    async def reports(self) -> AsyncIterator[Report | EngineDied]:
        while (report := await self._queue.get()) is not None:
            yield report
            self._queue.task_done()

    async def end_process(self) -> None:
        self._is_alive = False
        await self._queue.join()

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed, self._is_alive = True, False
            self._queue.put_nowait(None)
