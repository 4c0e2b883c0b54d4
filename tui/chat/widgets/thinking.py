"""What an answer thought before it said something: one line that counts along, and opens."""

import time
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.timer import Timer
from textual.widgets import Static

from tui.chat.commands.keymap import bind, key_now
from tui.chat.store.records import Thinking
from tui.chat.widgets.markdown import AnswerMarkdown
from tui.terminal_text import counted, show_terminal_escapes

TICK_SECONDS = 0.5
"""How often the line is brought up to date while more is thought."""


class ThinkingFold(Vertical, can_focus=True):
    """The thinking of one answer; nothing is drawn of its text while it is folded."""

    DEFAULT_CLASSES = "thinking"
    FOCUS_ON_CLICK = False  # the prompt keeps the focus
    BINDINGS: ClassVar[list[BindingType]] = [
        bind("fold", "fold", "Open or fold", tooltip="Open or fold what was thought")
    ]

    def __init__(
        self,
        thinking: Thinking | None = None,
        *,
        is_open: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing as long as nothing is thought."""
        super().__init__()
        self._thinking = thinking
        self._clock = clock
        self._begun: float | None = None  # while more may come
        self._is_open = is_open
        self._head = Static("", markup=False, classes="thinking-head")
        self._body = AnswerMarkdown()
        self._num_shown = 0  # characters of the text that the body has
        self._ticking: Timer

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._body

    def on_mount(self) -> None:
        self._ticking = self.set_interval(TICK_SECONDS, self._show_head, pause=self._begun is None)
        self._show()

    @property
    def is_open(self) -> bool:
        return self._is_open

    def grow(self, thinking: Thinking) -> None:
        """Show that more was thought, and that it goes on."""
        is_first, self._thinking = self._thinking is None, thinking
        self._begun = self._clock() - thinking.seconds
        if self.is_mounted:
            self._ticking.resume()
            if is_first:
                self._show()
            elif self._is_open:
                self._show_text()

    def end(self, thinking: Thinking | None = None) -> None:
        """Show that no more is thought; `thinking`: all of it, if that was not shown."""
        is_over, self._begun = self._begun is None, None
        self._thinking = thinking or self._thinking
        if self.is_mounted and not (is_over and thinking is None):
            self._ticking.pause()
            self._show()

    def open(self, is_open: bool) -> None:
        """Show the text, or the line alone."""
        self._is_open = is_open
        if self.is_mounted:
            self._show()

    def action_fold(self) -> None:
        self.open(not self._is_open)

    def on_click(self) -> None:
        self.action_fold()

    def _show(self) -> None:
        self.display = self._thinking is not None
        self._body.display = self._is_open
        verb, key = "Fold" if self._is_open else "Open", key_now(self, "thoughts")
        self._head.tooltip = f"{verb} what was thought; {key} does it to all"
        self._show_head()
        self._show_text()

    def _show_head(self) -> None:
        if self._thinking is not None:
            seconds = self._thinking.seconds if self._begun is None else self._clock() - self._begun
            words = thinking_words(self._thinking, seconds=seconds, is_over=self._begun is None)
            self._head.update(f"{'▾' if self._is_open else '▸'} {words}", layout=False)

    def _show_text(self) -> None:
        if self._thinking is None or not self._is_open:
            return
        more = self._thinking.text[self._num_shown :]
        self._num_shown += len(more)
        self._body.append(show_terminal_escapes(more))
        if self._begun is None:
            self._body.end()


def thinking_words(thinking: Thinking, *, seconds: float, is_over: bool) -> str:
    """Say how much was thought, and for how long: `thinking, 312 tokens, 40 s`."""
    words = ["thought" if is_over else "thinking"]
    if thinking.num_tokens:
        words.append(counted(thinking.num_tokens, "token"))
    if seconds >= 1 or not is_over:
        whole = int(seconds)
        words.append(f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02d} min")
    return ", ".join(words)
