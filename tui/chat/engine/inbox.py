"""Takes in what the app asks while the engine computes: loads and answers wait in line, a stop and the end do not.

One thread reads, another works; what a stop does is handed in.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from profiles.errors import BadInputError
from tui.chat.engine.messages import Answer, LoadModel, Quit, StopAnswer, from_line


class RequestInbox:
    """The requests of one app, from the first to Quit or to the end of its pipe."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[LoadModel | Answer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop: Callable[[], None] = _do_nothing  # of the answer under way
        self._answer_id: int | None = None  # the same answer's
        self._stopped_ids: set[int] = set()
        self._num_waiting_loads = 0
        self._is_ending = False
        self.complaint: str | None = None
        """Why the reading ended, if a line was no request."""

    @property
    def is_load_outdated(self) -> bool:
        """Whether a load under way is not wanted any more, because another waits or nothing more is wanted."""
        return self._is_ending or self._num_waiting_loads > 0

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

    def _take_in(self, request: LoadModel | Answer | StopAnswer) -> None:
        with self._lock:
            if isinstance(request, StopAnswer):
                self._stopped_ids.add(request.answer_id)
                if request.answer_id == self._answer_id:
                    self._stop()
                return
            if isinstance(request, LoadModel):
                self._num_waiting_loads += 1
                self._stop()
        self._waiting.put(request)

    def _end(self) -> None:
        with self._lock:
            self._is_ending = True
            self._stop()
        self._waiting.put(None)


def _do_nothing() -> None:
    """Stop the answer while there is none."""
