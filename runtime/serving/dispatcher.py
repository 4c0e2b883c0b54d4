"""Gives one session's answers to many clients: one thread loads the model, runs all passes, and unloads it when idle.

Requests that arrive while a pass runs join at the next one. Clients take turns; one that goes away ends its own answers
alone, and an error is that of its own answer.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from profiles.errors import OverstoryError
from runtime.errors import QueueFullError, ShuttingDownError
from runtime.events import Event, Finished, GenerationStatistics, LevelDrafted, LoadProgress, PromptScored, Round
from runtime.prompts.prompt_file import PromptRequest
from runtime.serving.answer import Answer, Wanted
from runtime.serving.fair_queue import FairQueue
from runtime.serving.tally import Tally

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession
    from runtime.tokenizer.box import Tokenizer

Load = Callable[[ExitStack], "Generator[str | LoadProgress, None, OpenSession]"]
"""Opens a session that is closed with the stack, and says how far it is."""
Phase = Literal["loading", "ready", "unloaded", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoaded:
    """The model is in memory, for the first time or again."""

    seconds: float
    """Which that took."""
    num_lanes: int
    context_tokens: int
    """Likewise as in `ServerState`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnloaded:
    """The model's memory is free, until the next request."""

    idle_seconds: float | None
    """Without a request, which is why; None where an error is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """The model could not be loaded again."""

    error: OverstoryError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOver:
    """An answer has ended, however it did."""

    asked_by: str
    """See `Wanted`."""
    how: str
    """See `Tally.num_ended`."""
    waiting_seconds: float
    """Before it began."""
    seconds: float
    """From there on; 0 where it never began."""
    statistics: GenerationStatistics | None = None
    """None where there was no end to it, but an error."""
    error: OverstoryError | None = None


News = ModelLoaded | ModelUnloaded | LoadFailed | AnswerOver
_LOOK_SECONDS = 0.2
_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 1, 600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What a server does now."""

    phase: Phase
    progress: LoadProgress | None
    """How far the load is, if there is one."""
    num_waiting: int
    """Answers that have not begun."""
    num_running: int
    most_waiting: int
    num_lanes: int | None
    """Answers that share passes at most; None while no model is loaded."""
    context_tokens: int | None
    """Most tokens of prompt and answer together, likewise."""
    tally: Tally


class Dispatcher:
    """Owns the session and its thread. Everything public may be called from any thread unless it says otherwise."""

    def __init__(
        self,
        load: Load,
        *,
        most_waiting: int = 64,
        idle_seconds: float | None = None,
        tell: Callable[[News], None] = lambda _: None,
    ) -> None:
        """`idle_seconds`: after so long without a request the model is unloaded until the next one; None: never.

        `tell` gets the news, in any thread, and raises nothing.
        """
        self.first_load: Future[None] = Future()
        """Done once the model was loaded for the first time, or with the error that this ended in."""
        self._load = load
        self._most_waiting = most_waiting
        self._idle_seconds = idle_seconds
        self._tell = tell
        self._has_news = threading.Condition()
        self._queue = FairQueue()
        self._running: dict[str, Answer] = {}
        self._tally = Tally()
        self._phase: Phase = "loading"
        self._progress: LoadProgress | None = None
        self._is_ending = False
        self._opened: OpenSession | None = None
        self._tokenizer: Tokenizer | None = None
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._work, name="serving", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    @property
    def state(self) -> ServerState:
        with self._has_news:
            opened = self._opened
            return ServerState(
                phase=self._phase,
                progress=self._progress,
                num_waiting=len(self._queue),
                num_running=len(self._running),
                most_waiting=self._most_waiting,
                num_lanes=None if opened is None else len(opened.session.engine.sequences),
                context_tokens=None if opened is None else opened.session.engine.context_tokens,
                tally=replace(self._tally, num_ended=dict(self._tally.num_ended)),
            )

    def submit(self, client: Hashable, wanted: Sequence[Wanted]) -> list[Answer]:
        """Let a client wait for answers, all or none of them, which it reads in the event loop that runs here.

        However many they are, they are taken where the queue is not full yet. Raises QueueFullError, ShuttingDownError.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        answers = [Answer(each, client, now, loop) for each in wanted]
        with self._has_news:
            if self._is_ending:
                raise _shutting_down()
            if len(self._queue) >= self._most_waiting:
                self._tally.end("refused")
                raise QueueFullError(
                    f"{len(self._queue)} answers wait already and --max-queue is {self._most_waiting}; ask again later",
                    retry_seconds=self._retry_seconds(),
                )
            for answer in answers:
                self._queue.append(answer)
            self._has_news.notify_all()
        return answers

    def _retry_seconds(self) -> int:
        """Return when there will be room, about: once as many as are under way have ended."""
        expected = self._tally.seconds_per_answer or _LEAST_RETRY_SECONDS
        return max(_LEAST_RETRY_SECONDS, min(_MOST_RETRY_SECONDS, round(expected)))

    def drop(self, answer: Answer) -> None:
        """End an answer that nobody waits for any more: after the layer that computes now, if it is alone."""
        with self._has_news:
            answer.is_dropped = True
            is_waiting = self._queue.remove(answer)
            if is_waiting:
                self._tally.end("dropped")
            opened = self._opened if answer.request.id in self._running else None
            are_all_dropped = all(each.is_dropped for each in self._running.values())
        if is_waiting:
            self._tell(_over(answer, "dropped"))
        elif opened is not None:
            if answer.wanted.is_scored and are_all_dropped:
                opened.session.stop()
            opened.session.drop(answer.request.id)

    def count_tokens(self, request: PromptRequest) -> int:
        """Return how many tokens the prompt of a request has, also while the model is unloaded.

        Waits until it was loaded once. Raises OptionError where the tokenizer refuses the prompt.
        """
        from runtime.engine.session import format_prompt

        while self._tokenizer is None:
            if self._is_ending:
                raise _shutting_down()
            with suppress(TimeoutError):
                self.first_load.result(_LOOK_SECONDS)
        return len(format_prompt(self._tokenizer, request))

    def end(self) -> None:
        """Let all answers end now, and begin no other; `join` waits for it."""
        with self._has_news:
            self._is_ending = True
            opened = self._opened
            self._has_news.notify_all()
        if opened is not None:
            opened.session.stop()

    def join(self) -> None:
        """Wait until the model is unloaded and the thread has ended."""
        self._thread.join()

    def _work(self) -> None:
        try:
            self._ensure_loaded()
            while self._await_work():
                self._answer_once()
        finally:
            self._is_ending = True  # also where a bug ended this thread: nobody else would answer
            self._unload("ended")
            self._fail([*self._running.values(), *self._take_all()], _shutting_down())

    def _await_work(self) -> bool:
        """Wait until something is to be done, unloading the model meanwhile if that takes long; False at the end."""
        with self._has_news:
            while not self._is_ending and not len(self._queue):
                idle_seconds = None if self._opened is None else self._idle_seconds
                if not self._has_news.wait(idle_seconds):
                    break
            is_idle = not self._is_ending and not len(self._queue)
        if is_idle:
            self._unload("unloaded")
            self._tell(ModelUnloaded(idle_seconds=self._idle_seconds))
            return self._await_work()
        return not self._is_ending

    def _answer_once(self) -> None:
        """Answer what waits until nothing does; an error of the whole session ends the answers under way."""
        try:
            opened = self._ensure_loaded()
            if opened is None:
                return
            first = self._queue.first()
            if first is not None and first.wanted.is_scored:
                self._score(opened)
            else:
                self._answer(opened)
        except OverstoryError as error:
            self._fail(list(self._running.values()), error)
        except Exception as error:  # this thread's border: one pass that breaks must not end the server
            self._fail(list(self._running.values()), _unexpected(error))
            self._unload("unloaded")
            self._tell(ModelUnloaded(idle_seconds=None))

    def _ensure_loaded(self) -> "OpenSession | None":
        """Return the session, loaded if it is not; None where that failed, which all that wait are told."""
        if self._opened is not None:
            return self._opened
        self._phase = "loading"
        begun = time.monotonic()
        try:
            with closing(self._load(self._stack)) as steps:
                opened = self._follow(steps)
        except OverstoryError as error:
            self._fail_load(error)
            return None
        except Exception as error:  # as above
            self._fail_load(_unexpected(error))
            return None
        if opened is None:  # the end came first
            return None
        with self._has_news:
            self._opened, self._phase, self._progress = opened, "ready", None
            self._tokenizer = opened.session.tokenizer
            self._tally.num_loads += 1
        engine = opened.session.engine
        self._tell(
            ModelLoaded(
                seconds=time.monotonic() - begun,
                num_lanes=len(engine.sequences),
                context_tokens=engine.context_tokens,
            )
        )
        if not self.first_load.done():
            self.first_load.set_result(None)
        return opened

    def _follow(self, steps: "Generator[str | LoadProgress, None, OpenSession]") -> "OpenSession | None":
        while not self._is_ending:
            try:
                step = next(steps)
            except StopIteration as end:
                opened: OpenSession = end.value
                return opened
            self._progress = step if isinstance(step, LoadProgress) else self._progress
        return None

    def _fail_load(self, error: OverstoryError) -> None:
        self._unload("unloaded")
        if self.first_load.done():
            self._tell(LoadFailed(error=error))
        else:
            self.first_load.set_exception(error)
        failure = OverstoryError(f"the model cannot be loaded: {error}; the next request tries again")
        self._fail(self._take_all(), failure)

    def _unload(self, phase: Phase) -> None:
        with self._has_news:
            was_loaded = self._opened is not None
            self._opened, self._phase, self._progress = None, phase, None
            self._tally.num_unloads += was_loaded
        self._stack.close()
        if was_loaded:
            gc.collect()  # models are cyclic

    def _answer(self, opened: "OpenSession") -> None:
        with closing(opened.session.answer_coming(self._next_request)) as events:
            for request, event in events:
                self._deliver(opened, self._running[request.id], event)

    def _next_request(self) -> PromptRequest | None:
        """Return the next request to be answered, None where there is none, or where a prompt is to be scored first."""
        with self._has_news:
            first = self._queue.first()
            if self._is_ending or first is None or first.wanted.is_scored:
                return None
            return self._begin(self._queue.pop()).request

    def _begin(self, answer: Answer) -> Answer:
        now = time.monotonic()
        if answer.begun_at is None:
            answer.begun_at = now
            self._tally.begin(now - answer.asked_at)
        self._running[answer.request.id] = answer
        return answer

    def _deliver(self, opened: "OpenSession", answer: Answer, event: Event | PromptScored | OverstoryError) -> None:
        if answer.is_dropped:
            opened.session.drop(answer.request.id)
        if isinstance(event, Finished) and event.finish_reason == "stopped" and not answer.is_dropped:
            event = _shutting_down()  # nobody else stops an answer
        if isinstance(event, Finished | OverstoryError):
            self._end(answer, event)
            return
        with self._has_news:
            self._tally.add(event)
        if not isinstance(event, LevelDrafted | Round):
            answer.put(event)

    def _end(self, answer: Answer, event: Finished | OverstoryError) -> None:
        with self._has_news:
            self._running.pop(answer.request.id, None)
            self._tally.add(event)
            how = event.finish_reason if isinstance(event, Finished) else "error"
            over = _over(answer, "dropped" if answer.is_dropped else how, event)
            self._tally.end(over.how, over.seconds)
        self._tell(over)
        answer.put(event)

    def _fail(self, answers: Sequence[Answer], error: OverstoryError) -> None:
        for answer in answers:
            self._end(answer, error)

    def _take_all(self) -> list[Answer]:
        with self._has_news:
            return [self._queue.pop() for _ in range(len(self._queue))]

    def _score(self, opened: "OpenSession") -> None:
        """Score all prompts whose turn it is, in shared passes, and let those wait again that are to be answered."""
        from runtime.serving.prompt_scoring import score_prompts

        with self._has_news:
            batch: list[Answer] = []
            while (first := self._queue.first()) is not None and first.wanted.is_scored:
                batch.append(self._begin(self._queue.pop()))
        wanted = [answer.wanted for answer in batch]
        scored = score_prompts(opened, wanted, is_wanted=lambda index: self._is_wanted(batch[index]))
        with closing(scored) as events:
            for index, event in events:
                self._deliver(opened, batch[index], event)
        with self._has_news:
            for answer in reversed(batch):
                if self._running.pop(answer.request.id, None) is not None:
                    answer.wanted = replace(answer.wanted, is_scored=False)
                    self._queue.insert(answer)

    def _is_wanted(self, answer: Answer) -> bool:
        return not self._is_ending and not answer.is_dropped


def _over(answer: Answer, how: str, event: Finished | OverstoryError | None = None) -> AnswerOver:
    now = time.monotonic()
    begun_at = now if answer.begun_at is None else answer.begun_at
    return AnswerOver(
        asked_by=answer.wanted.asked_by,
        how=how,
        waiting_seconds=begun_at - answer.asked_at,
        seconds=now - begun_at,
        statistics=event.statistics if isinstance(event, Finished) else None,
        error=event if isinstance(event, OverstoryError) else None,
    )


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down; ask again once it has been started anew")


def _unexpected(error: Exception) -> OverstoryError:
    return OverstoryError(f"unexpected {type(error).__name__}: {error}; the model is loaded anew for the next answer")
