"""The engine's process: opens sessions and writes answers for the chat app, told and telling by JSON lines.

Started as `python -m tui.chat.engine.host`; requests come on stdin, reports go to stdout, and what libraries
print goes to stderr, whose last lines the app shows if this process dies. It ends when its stdin does: no app, no
engine. What goes wrong is told and survived; only a fault below Python, or the system, ends the process.
"""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import psutil

from offload.errors import BudgetError
from profiles.child_process import own_streams
from profiles.errors import BadInputError, OverstoryError
from profiles.steps import finish
from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.errors import OptionError, PromptTooLongError
from runtime.events import Finished, LoadProgress, Round
from tui.chat.commands.slash import as_typed_here
from tui.chat.engine.child_process import lines_of, step_back, write_line
from tui.chat.engine.context import context_full, context_words, larger_contexts
from tui.chat.engine.counting import TokenCounter
from tui.chat.engine.messages import (
    Answer,
    AnswerEvent,
    CountTokens,
    Failed,
    Loaded,
    Loading,
    LoadModel,
    LoadRefused,
    OfAnswer,
    PassRunning,
    Quit,
    Report,
    SessionFigures,
    SessionNote,
    StillLoading,
    StopAnswer,
    StopLoad,
    from_line,
    to_line,
)
from tui.environment import cache_folder, has_nvidia_driver, load_models, prepare_libraries
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.engine.loading import OpenSession
    from runtime.model.generation_config import GenerationConfig

TICK_SECONDS = 0.1
"""How often the app hears where a pass is."""
LOAD_TICK_SECONDS = 0.5
"""How often it hears how long a load has taken, while nothing more is read."""
END_SECONDS = 1.0
"""How long the work may take to end once nothing more is wanted: then the system takes everything back."""


class RequestInbox:
    """What the app asks while the engine computes: loads and answers wait in line, a stop and the end do not.

    One thread reads, another works, from the first request to Quit or to the end of the pipe.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[LoadModel | Answer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop: Callable[[], None] = _do_nothing  # of the answer under way
        self._answer_id: int | None = None  # the same answer's
        self._stopped_ids: set[int] = set()
        self._num_waiting_loads = 0
        self._is_load_stopped = False
        self._is_ending = False
        self.complaint: str | None = None
        """Why the reading ended, if a line was no request."""
        self.count: Callable[[CountTokens], None] = _count_nothing
        """Takes what is to be counted, at once."""

    @property
    def is_load_outdated(self) -> bool:
        """Whether a load under way is not wanted any more, because another waits or nothing more is wanted."""
        return self._is_ending or self._num_waiting_loads > 0

    def take_load_stop(self) -> bool:
        """Return whether the app has asked to give the load under way up; once for each time that it has."""
        with self._lock:
            is_stopped, self._is_load_stopped = self._is_load_stopped, False
        return is_stopped

    def read(self, lines: Iterable[bytes]) -> None:
        """Take requests in until Quit or the last line; then what is under way is stopped and the work ends."""
        try:
            for line in lines:
                request = from_line(line)
                if isinstance(request, Quit):
                    break
                self._take_in(request)
        except BadInputError as error:
            self.complaint = str(error)
        finally:
            self._end()

    def take(self) -> LoadModel | Answer | None:
        """Wait for the next piece of work and return it; None if there will be no more."""
        request = self._waiting.get()
        with self._lock:
            self._num_waiting_loads -= isinstance(request, LoadModel)
        return None if self._is_ending else request

    @contextmanager
    def stoppable(self, answer_id: int, stop: Callable[[], None]) -> Generator[None, None, None]:
        """While an answer is written, call `stop` once the app stops it, loads a model or ends.

        If it has stopped the answer or ended already, `stop` is called at once.
        """
        with self._lock:
            self._answer_id, self._stop = answer_id, stop
            if answer_id in self._stopped_ids or self._is_ending:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._answer_id, self._stop = None, _do_nothing

    def _take_in(self, request: LoadModel | Answer | StopAnswer | StopLoad | CountTokens) -> None:
        if isinstance(request, CountTokens):
            self.count(request)
            return
        with self._lock:
            if isinstance(request, StopLoad):
                self._is_load_stopped = True
                return
            if isinstance(request, StopAnswer):
                self._stopped_ids.add(request.answer_id)
                if request.answer_id == self._answer_id:
                    self._stop()
                return
            if isinstance(request, LoadModel):
                self._num_waiting_loads += 1
                self._is_load_stopped = False
                self._stop()
        self._waiting.put(request)

    def _end(self) -> None:
        with self._lock:
            self._is_ending = True
            self._stop()
        self._waiting.put(None)


def _do_nothing() -> None:
    """Stop the answer while there is none."""


def _count_nothing(request: CountTokens) -> None:
    """Take a request while nobody counts."""


class _OutdatedLoadError(Exception):
    """The load under way is not wanted any more."""


class _StoppedLoadError(OverstoryError):
    """The load under way was stopped by the app."""


class EngineHost:
    """Serves one app: loads and answers, one after the other."""

    def __init__(
        self, inbox: RequestInbox, say: Callable[[Report], None], *, yield_cores: Callable[[], None] | None = None
    ) -> None:
        """`say` may be called from several threads; `yield_cores` is called once the processor is known to compute."""
        self._inbox, self._say, self._yield_cores = inbox, say, yield_cores
        self._opened: OpenSession | None = None
        self._config: EngineConfig | None = None  # of the session that is open, or was before the load under way
        self._stack = ExitStack()  # closes it
        self._told: tuple[str, ...] = ()  # of its notes, to the app
        self._telling = threading.Lock()
        self._counter = TokenCounter(say)
        inbox.count = self._counter.want

    def serve(self) -> None:
        """Do what the app asks until nothing more is wanted, and close the session."""
        try:
            while (request := self._inbox.take()) is not None:
                self._try(request)
        finally:
            self._close()

    def _try(self, request: LoadModel | Answer) -> None:
        """Do one thing; what goes wrong is reported."""
        try:
            if isinstance(request, Answer):
                self._answer(request)
            else:
                self._load(request)
        except OverstoryError as error:
            self._say_failed(request, error, str(error))
        except Exception as error:
            traceback.print_exc()
            sentence = f"unexpected {type(error).__name__}: {error}; ask again, or load the model again"
            self._say_failed(request, error, sentence)

    def _say_failed(self, request: LoadModel | Answer, error: Exception, sentence: str) -> None:
        sentence, kind = as_typed_here(one_line(sentence)), failure_kind(error)
        if isinstance(request, Answer):
            self._say(OfAnswer(request.answer_id, Failed(sentence, kind)))
        elif self._is_open_again():
            assert self._opened is not None
            self._say(LoadRefused(sentence, kind, loaded(self._opened)))
        else:
            self._say(Failed(sentence, kind))

    def _load(self, request: LoadModel) -> None:
        """Open a session; whatever files and budgets tell against it is told before the one that is open is closed."""
        with suppress(_OutdatedLoadError):
            self._open(request.config, is_checked=self._opened is None)
            assert self._opened is not None
            self._say(loaded(self._opened))

    def _tell_late(self, opened: "OpenSession") -> None:
        """Say how far the load is, for as long as the session answers while it goes on."""

        def tell() -> bool:
            progress = opened.load_progress
            self._say(StillLoading(progress, self._news(opened) if progress is None else ()))
            return progress is not None

        if opened.load_progress is not None:
            self._stack.enter_context(ticking(tell, tick_seconds=LOAD_TICK_SECONDS))

    def _news(self, opened: "OpenSession") -> tuple[str, ...]:
        """Return the session's notes that the app has not been told, which it is now."""
        with self._telling:
            more = tuple(note for note in opened.notes if note not in self._told)
            self._told += more
        return tuple(map(_in_short, more))

    def _is_open_again(self) -> bool:
        """After a load that failed, open the session again that was closed for it; return whether one is open now."""
        if self._opened is None and self._config is not None:
            config, self._config = self._config, None
            try:
                self._open(config, is_checked=True)
            except _OutdatedLoadError:
                return False
            except Exception:
                traceback.print_exc()
        return self._opened is not None

    def _open(self, config: EngineConfig, *, is_checked: bool) -> None:
        """Open a session in place of the one that is open, unless a check refuses it first."""
        begun = time.perf_counter()
        latest, telling = LoadProgress("", 0, 0), threading.Lock()

        def tell_time(progress: LoadProgress | None = None) -> None:
            nonlocal latest
            with telling:  # from two threads, in order
                latest = progress or latest
                self._say(Loading(latest, time.perf_counter() - begun))

        def tell(step: str | LoadProgress) -> None:
            tell_time(LoadProgress(step, 0, 0) if isinstance(step, str) else step)
            if self._inbox.is_load_outdated:
                raise _OutdatedLoadError
            if self._inbox.take_load_stop():
                raise _StoppedLoadError("loading was stopped")

        with ExitStack() as stack, ticking(tell_time, tick_seconds=LOAD_TICK_SECONDS):
            if not is_checked:
                tell("checking the files and the memory")
                check_load(config, tell, held_bytes=self._held_bytes)
            self._close()
            tell("starting the libraries")
            with closing(load_models(config, stack, is_early=True)) as loading:
                opened = finish(loading, tell)
            if opened.plan.is_host and self._yield_cores is not None:
                self._yield_cores()
            self._opened, self._config, self._stack = opened, config, stack.pop_all()
            self._told = opened.notes
            self._counter.tokenizer = opened.session.tokenizer
        self._tell_late(opened)

    @property
    def _held_bytes(self) -> int:
        """Memory of the computing device that comes free with the session that is open."""
        return 0 if self._opened is None else self._opened.placement.device_bytes

    def _answer(self, request: Answer) -> None:
        if self._opened is None:
            raise OptionError("no model is open, so nothing can be answered; load one first")
        opened = self._opened

        def tell(event: AnswerEvent | None) -> None:
            if event is not None:
                self._say(OfAnswer(request.answer_id, event))

        try:
            tell(opened.session.prefill_start(request.prompt))
            self._generate(opened, request, tell)
            if opened.load_progress is None and (news := self._news(opened)):
                self._say(SessionNote(news))
        except PromptTooLongError as error:
            full = None
            with suppress(OptionError):  # of a template that refuses shorter conversations
                full = context_full(opened, request.prompt)
            if full is None:
                raise
            tell(full)
            raise PromptTooLongError(context_words(full)) from error

    def _generate(self, opened: "OpenSession", request: Answer, tell: Callable[[AnswerEvent | None], None]) -> None:
        events = opened.session.generate(request.prompt)
        with (
            self._inbox.stoppable(request.answer_id, opened.session.stop),
            ticking(lambda: tell(pass_running(opened))),
        ):
            for event in events:
                if isinstance(event, Finished) and event.finish_reason == "context":
                    with suppress(OptionError):
                        tell(context_full(opened, request.prompt, event))
                tell(event)
                if isinstance(event, Round):
                    tell(session_figures(opened))

    def _close(self) -> None:
        self._opened = self._counter.tokenizer = None
        self._stack.close()


def check_load(config: EngineConfig, tell: Callable[[str | LoadProgress], None], *, held_bytes: int) -> None:
    """Raise what a load would, as far as the models' files, their tokenizers and the budgets tell.

    `held_bytes` come free before it. Imports torch, as a session that is open has done already.
    """
    from runtime.engine.load_plan import check_plan
    from runtime.engine.model_folders import locate_models

    check_plan(finish(locate_models(config, cache_folder=cache_folder()), tell), held_bytes=held_bytes)


def loaded(opened: "OpenSession") -> Loaded:
    """Return what the app is told of a session that is open."""
    plan, placement = opened.plan, opened.placement
    own_settings, own_sentences = own_settings_of(opened.session.generation)
    return Loaded(
        target=plan.target_name,
        draft=plan.draft_name,
        device=str(plan.device),
        context_tokens=opened.session.engine.context_tokens,
        num_layers=opened.streamer.num_layers,
        num_resident_layers=placement.num_resident_layers,
        resident_layers=placement.residency.resident_layers,
        has_chat_template=opened.session.has_chat_template,
        can_think=opened.session.can_think,
        knows_tools=opened.session.knows_tools,
        num_disk_layers=placement.num_disk_layers,
        num_ring_slots=len(opened.streamer.slots),
        bytes_per_pass=placement.streamed_bytes,
        memory=placement.entries(),
        predicted_seconds_per_token=_predicted_seconds_per_token(opened),
        sentences=(plan.advice.sentence, *map(_in_short, opened.notes), *own_sentences),
        own_settings=own_settings,
        larger_contexts=larger_contexts(opened),
    )


def own_settings_of(generation: "GenerationConfig") -> tuple[Mapping[str, float], tuple[str, ...]]:
    """Return what a model samples with where nobody chooses, and a sentence on all that is its own, if anything is."""
    from runtime.model.generation_config import describe_own_settings

    sampled, fields = SamplingParams(temperature=1), options_of(SamplingParams)
    own: Mapping[str, float] = {}
    with suppress(OptionError):  # which the first answer will say
        own = generation.choices(sampled, fields.keys() - {"max_new_tokens"}, num_prompt_tokens=0).own
    if not own:
        return generation.sampling(sampled, fields), ()
    sentence = f"the model's own generation settings: {describe_own_settings(own)}"
    return generation.sampling(sampled, fields), (f"{sentence}; /set generation plain leaves them out",)


def _in_short(note: str) -> str:
    """Return what a note comes to for whoever only wants to chat."""
    from runtime.planner.initial_plan import NO_PROFILE  # here, since it needs torch, as does whoever has notes

    measured = "Not measured on this machine yet: overstory calibrate (3 min) makes it faster."
    return measured if note == NO_PROFILE else note


def session_figures(opened: "OpenSession") -> SessionFigures:
    """Return how the session stands after a round."""
    return SessionFigures(
        num_context_tokens=len(opened.session.engine.text),
        predicted_seconds_per_token=_predicted_seconds_per_token(opened),
        process_bytes=int(psutil.Process().memory_info().rss),
    )


def _predicted_seconds_per_token(opened: "OpenSession") -> float | None:
    """Return what the planner expects of the tree it chose last; None for a fixed tree, or before the first choice."""
    choice = opened.session.engine.planner.choice
    return None if choice is None else choice.seconds_per_token


def pass_running(opened: "OpenSession") -> PassRunning | None:
    """Return where the target's pass is now; None between passes.

    May be called while another thread computes the pass: it reads two attributes of the ring. The device is not asked,
    since a question from a second thread spoils a pass that is being recorded.
    """
    ring = opened.streamer
    num_done = ring.num_done_layers
    if num_done is None:
        return None
    return PassRunning(num_done, ring.num_layers, tuple(sorted(ring.layers_in_slots)))


def failure_kind(error: Exception) -> str:
    """Return what a user can do about it: see `Failed.kind`."""
    if isinstance(error, PromptTooLongError):
        return "context"
    if isinstance(error, _StoppedLoadError):
        return "stopped"
    if isinstance(error, BudgetError | MemoryError):
        return "memory"
    return "input" if isinstance(error, BadInputError) else "fault"


@contextmanager
def ticking(say: Callable[[], object], *, tick_seconds: float = TICK_SECONDS) -> Iterator[None]:
    """Call `say` from a thread, some times a second, while the context lasts and it does not return False."""
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(tick_seconds) and say() is not False:
            pass

    thread = threading.Thread(target=tick, name="pass ticker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def main() -> NoReturn:
    """Run the process, from its first request to its end, which is also that of the app."""
    requests, reports = own_streams()
    if not has_nvidia_driver():  # else only where a model turns out to be computed by the processor
        step_back()
    prepare_libraries()
    inbox, writing = RequestInbox(), threading.Lock()

    def say(report: Report) -> None:
        try:
            with writing:
                write_line(reports, to_line(report))
        except OSError:  # the app is gone
            os._exit(0)

    def read() -> None:
        inbox.read(lines_of(requests))
        time.sleep(END_SECONDS)  # a download, or libraries being imported, may not look up for long
        _leave(inbox)

    threading.Thread(target=read, name="requests", daemon=True).start()
    EngineHost(inbox, say, yield_cores=step_back).serve()
    _leave(inbox)


def _leave(inbox: RequestInbox) -> NoReturn:
    """End without the interpreter's clearing up: the system takes all memory back at once."""
    if inbox.complaint is not None:
        sys.stderr.write(f"{inbox.complaint}\n")
        sys.stderr.flush()
    os._exit(0 if inbox.complaint is None else 1)


if __name__ == "__main__":
    main()
