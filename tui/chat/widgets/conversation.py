"""The turns of one conversation, scrolled: follows what arrives until the reader scrolls up, and again at the end.

Text comes in bursts and is drawn at the rate at which it comes on average.
"""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.timer import Timer
from textual.widgets import Static

from tui.chat.store.records import Message
from tui.chat.widgets.markdown import CodeBlock
from tui.chat.widgets.text_smoothing import TextSmoother
from tui.chat.widgets.turn import AnswerTurn, PromptTurn, turn_view
from tui.terminal_text import one_line

FRAMES_PER_SECOND = 30
NUM_SHOWN_TURNS = 40
"""A longer conversation opens at its end; the turns before are drawn when they are asked for."""

WELCOME = """\
Ask something below.

Enter      sends the prompt
Ctrl+J     begins a new line
/          lists the commands
F1         explains the keys

What is said here stays on this machine."""


class ConversationView(VerticalScroll):
    """The turns of the open conversation."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "show_start", "Start", show=False, tooltip="Go to the first turn"),
        Binding("end", "show_end", "End", show=False, tooltip="Go to the last turn and follow it"),
    ]

    def __init__(self, *, id: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(id=id)
        self._clock = clock
        self._messages: list[Message] = []  # those that are not drawn yet, oldest first
        self._smoother = TextSmoother()
        self._growing: AnswerTurn | None = None
        self._drawing: Timer | None = None
        self._copied: CodeBlock | None = None
        self._notes: tuple[str, ...] = ()

    def on_mount(self) -> None:
        self._drawing = self.set_interval(1 / FRAMES_PER_SECOND, self._draw, pause=True)

    @property
    def has_drawn_all(self) -> bool:
        """Whether nothing that has arrived waits for its turn."""
        return not self._smoother.num_waiting

    async def show(self, messages: Sequence[Message], *, first_kept_id: int = 0) -> None:
        """Show another conversation; turns before `first_kept_id` are marked as left out."""
        self._growing, self._copied = None, None
        self._smoother = TextSmoother(self._smoother.expected_seconds)
        self._messages = list(messages[:-NUM_SHOWN_TURNS])
        shown = messages[-NUM_SHOWN_TURNS:]
        with self.app.batch_update():
            await self.remove_children()
            if self._messages:
                await self.mount(_EarlierTurns(len(self._messages)))
            if not messages:
                await self.mount(Static(self._welcome(), markup=False, classes="welcome"))
            await self.mount_all([_turn_view(message, first_kept_id=first_kept_id) for message in shown])
        if shown and shown[-1].state == "streaming":
            self._grow(self._last_answer())
        self.anchor(bool(messages))
        if not messages:
            self.scroll_y = self.scroll_target_y = 0  # an anchored view may stand above its first line

    def show_notes(self, notes: Sequence[str]) -> None:
        """Say this too while nothing else is said: what a user should know of the model that is open."""
        self._notes = tuple(map(one_line, notes))
        for welcome in self.query(".welcome").results(Static):
            welcome.update(self._welcome())

    async def add(self, message: Message) -> None:
        """Show one more turn at the end, and follow it."""
        await self.query(".welcome").remove()
        turn = turn_view(message)
        await self.mount(turn)
        if isinstance(turn, AnswerTurn) and message.state == "streaming":
            self._grow(turn)
        self.anchor()

    def resume(self) -> None:
        """Let the last answer grow again."""
        last = self._last_answer()
        if last is not None:
            last.resume()
        self._grow(last)

    def append(self, text: str) -> None:
        """Take more of the answer that grows, to be drawn smoothly."""
        if self._growing is None or self._drawing is None:
            return
        self._smoother.push(text, now=self._clock())
        self._drawing.resume()

    async def end(self, message: Message) -> None:
        """Draw all of an answer that is over, and how it ended."""
        growing, self._growing = self._growing, None
        if growing is None or growing.message.id != message.id:
            return
        self._smoother.flush()
        if self._drawing is not None:
            self._drawing.pause()
        await growing.end(message)

    def newest_answer_text(self) -> str:
        """Return what a reader sees of the last answer, as Markdown; empty if there is none."""
        answer = self._last_answer()
        return answer.shown_text if answer is not None else ""

    def next_code_block(self) -> CodeBlock | None:
        """Return and mark the last code block, with each call the one above, and after the first the last again."""
        blocks = list(self.query(CodeBlock))
        if not blocks:
            return None
        index = blocks.index(self._copied) - 1 if self._copied in blocks else len(blocks) - 1
        self.point_at(blocks[index])
        return blocks[index]

    def point_at(self, block: CodeBlock) -> None:
        """Mark the block that was copied."""
        if self._copied is not None:
            self._copied.remove_class("-copied")
        self._copied = block
        block.add_class("-copied")
        block.scroll_visible()

    async def action_show_start(self) -> None:
        earlier, self._messages = self._messages, []
        if earlier:
            await self.query(_EarlierTurns).remove()
            await self.mount_all([turn_view(message) for message in earlier], before=0)
        self.scroll_home(animate=False)

    def action_show_end(self) -> None:
        self.anchor()
        self.scroll_end(animate=False)

    def _welcome(self) -> str:
        return "\n".join((WELCOME, *(f"\n{note}" for note in self._notes)))

    def _grow(self, turn: AnswerTurn | None) -> None:
        self._growing = turn
        if turn is not None:
            self._smoother = TextSmoother(self._smoother.expected_seconds)
            turn.add_class("-streaming")

    def _last_answer(self) -> AnswerTurn | None:
        answers = self.query(AnswerTurn)
        return answers.last() if answers else None

    async def _draw(self) -> None:
        if self._growing is None:
            return
        if text := self._smoother.take(self._clock()):
            await self._growing.write(text)
        if not self._smoother.num_waiting and self._drawing is not None:
            self._drawing.pause()


class _EarlierTurns(Static):
    def __init__(self, num_turns: int) -> None:
        super().__init__(f"{num_turns} earlier turns; click or press Home here", markup=False, classes="earlier-turns")

    async def on_click(self) -> None:
        if isinstance(self.parent, ConversationView):
            await self.parent.action_show_start()


def _turn_view(message: Message, *, first_kept_id: int) -> PromptTurn | AnswerTurn:
    turn = turn_view(message)
    turn.set_class(message.id < first_kept_id, "-left-out")
    return turn
