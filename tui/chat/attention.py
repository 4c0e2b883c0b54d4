"""Tells whoever looks elsewhere what the app does: by the terminal's title, and its bell when an answer ends.

Titles are kept and given back by the terminal itself (xterm's window operations 22 and 23), which others ignore.
"""

import time
from collections.abc import Callable

from tui.chat.engine.state import EngineState
from tui.chat.machine.drawing import fit_text, rate_text
from tui.terminal_text import one_line

KEEP_TITLE = "\x1b[22;2t"
GIVE_TITLE_BACK = "\x1b]2;\x07\x1b[23;2t"
"""Empty first, which is their own for terminals that keep none."""
BELL = "\x07"
LONG_SECONDS = 20.0
"""An answer that took longer is told of also where the terminal is in focus: nobody watches it for so long."""
TITLE_SECONDS = 1.0
"""Between two rates in the title."""
NAME_CELLS = 60
_ANSWERING = ("prefill", "drafting", "verifying")


class Attention:
    """The title and the bell of one terminal."""

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        wanted: Callable[[], str],
        is_watched: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write` hands escapes to the terminal; `wanted` is the setting `when_done`: bell, title or off."""
        self._write, self._wanted, self._is_watched, self._clock = write, wanted, is_watched, clock
        self._has_kept = False
        self._shown = ""
        self._mark = ""  # of an answer that ended and was not seen
        self._shown_at = self._begun_at = 0.0
        self._is_answering = False
        self._situation: tuple[object, ...] = ()
        self.is_paused = False
        """While another program has the terminal."""

    def show(self, state: EngineState, name: str) -> None:
        """Let the title say what is done in the conversation of that name."""
        is_answering = state.phase in _ANSWERING
        if is_answering and not self._is_answering:
            self._begun_at, self._mark = self._clock(), ""
        situation = (name, is_answering, state.phase == "prefill", state.figures.tokens_per_second is None, self._mark)
        is_new, self._situation = situation != self._situation, situation
        self._is_answering = is_answering
        if is_new or self._clock() - self._shown_at >= TITLE_SECONDS:
            self._put(self._title(state, name))

    def end_answer(self, *, is_failed: bool) -> None:
        """Tell that an answer is over, if nobody seems to have seen it."""
        is_long = self._clock() - self._begun_at >= LONG_SECONDS
        if self._wanted() == "off" or (self._is_watched() and not is_long):
            return
        self._mark = "✗" if is_failed else "✓"
        if self._wanted() == "bell" and not self.is_paused:
            self._write(BELL)

    def notice_person(self) -> bool:
        """Take the mark away, since somebody is there; return whether there was one."""
        mark, self._mark = self._mark, ""
        return bool(mark)

    def farewell(self) -> str:
        """Return what gives the terminal the title back that it had, once; empty if it still has that."""
        has_kept, self._has_kept, self._shown = self._has_kept, False, ""
        return GIVE_TITLE_BACK if has_kept else ""

    def _title(self, state: EngineState, name: str) -> str:
        shown = fit_text(one_line(name), NAME_CELLS)
        if not self._is_answering:
            return f"{self._mark} {shown}" if self._mark else f"{shown} - Overstory"
        rate = state.figures.tokens_per_second
        doing = "reading" if state.phase == "prefill" else "writing" if rate is None else f"{rate_text(rate)} tok/s"
        return f"● {doing} - {shown}"

    def _put(self, title: str) -> None:
        if self._wanted() == "off":
            if farewell := self.farewell():
                self._write(farewell)
            return
        if title == self._shown or self.is_paused:
            return
        keep = "" if self._has_kept else KEEP_TITLE
        self._has_kept, self._shown, self._shown_at = True, title, self._clock()
        self._write(f"{keep}\x1b]2;{title}\x07")
