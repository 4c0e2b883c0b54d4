"""The conversation on the screen: its turns, scrolled; an answer is Markdown that may still grow.

The view follows what arrives until the reader scrolls up, and again at the end. Text comes in bursts and is drawn at
the rate at which it comes on average.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.geometry import Region
from textual.timer import Timer
from textual.widgets import Static

from tui.attachments import split_attachments
from tui.chat.commands.keymap import key_now
from tui.chat.store.guesses import Guesses, guesses_of
from tui.chat.store.records import EDITED, StoredMessage, Thinking
from tui.chat.widgets.attachments import FoldedText
from tui.chat.widgets.guesses import GuessedAnswer, guessed_share
from tui.chat.widgets.markdown import AnswerMarkdown, CodeBlock
from tui.chat.widgets.text_smoothing import TextSmoother
from tui.chat.widgets.thinking import ThinkingFold
from tui.chat.widgets.tool_turns import ToolCallView, ToolTurn
from tui.chat.widgets.turn_head import TurnHead
from tui.chat.widgets.welcome import Greeting, Welcome
from tui.terminal_text import counted, one_line, shown_text

FRAMES_PER_SECOND = 30
SETTLE_SECONDS = 1.0
"""In which a conversation that was opened is laid out."""
NUM_SHOWN_TURNS = 40
NUM_SHOWN_CHARACTERS = 12_000
"""A conversation with more turns or more text opens at its end; what is before is drawn when a reader goes there."""
REST = 3.0
"""Times as long as a drawing took nothing more is drawn, so that keys have most of a slow machine's time."""
LONGEST_REST_SECONDS = 0.5

_FAILURES = {"context": "the context is full", "memory": "memory ran out", "dead": "the engine ended"}


class PromptTurn(Vertical):
    """What the user said."""

    DEFAULT_CLASSES = "turn prompt-turn"

    def __init__(self, message: StoredMessage, head: TurnHead | None = None) -> None:
        super().__init__()
        self.message = message
        self.head = head or TurnHead(message)

    def compose(self) -> ComposeResult:
        attachments, text = split_attachments(self.message.content)
        yield self.head
        yield from map(FoldedText, attachments)
        yield Static(shown_text(text), markup=False, classes="prompt-text")

    @property
    def shown_text(self) -> str:
        """What a reader sees of the prompt and of what is attached; safe to paste into a terminal."""
        return shown_text(self.message.content)

    def select(self, is_selected: bool) -> None:
        """Show whether keys are for this turn."""
        self.set_class(is_selected, "-selected")
        self.head.is_selected = is_selected


class AnswerTurn(Vertical):
    """What the model said."""

    DEFAULT_CLASSES = "turn answer-turn"

    def __init__(
        self,
        message: StoredMessage,
        head: TurnHead | None = None,
        *,
        wraps_code: bool = False,
        opens_thinking: bool = False,
        shows_guesses: bool = False,
    ) -> None:
        super().__init__()
        self.message = message
        self.head = head or TurnHead(message)
        self._markdown = AnswerMarkdown(shown_text(message.content), wraps_code=wraps_code)
        self._shows_guesses = shows_guesses
        self._guessed = GuessedAnswer()
        self._written = message.content  # what is drawn of it, as the model wrote it
        self._guesses = guesses_of(message.statistics)
        self._caption = Static(markup=False, classes="turn-caption")
        self.thinking = ThinkingFold(message.thinking, is_open=opens_thinking)
        self.call = ToolCallView(message.call)
        self._is_told = False  # elsewhere, why it failed

    def compose(self) -> ComposeResult:
        yield self.head
        yield self.thinking
        yield self._markdown
        yield self._guessed
        yield self.call
        yield self._caption

    def on_mount(self) -> None:
        self._show_guesses()
        self._show_caption()

    @property
    def shown_text(self) -> str:
        """What a reader sees of the answer, as Markdown; safe to paste into a terminal."""
        return self._markdown.source

    def select(self, is_selected: bool) -> None:
        """Show whether keys are for this turn."""
        self.set_class(is_selected, "-selected")
        self.head.is_selected = is_selected

    def write(self, text: str) -> None:
        """Append to what is shown."""
        self.thinking.end()
        self._markdown.append(shown_text(text))
        self._written += text
        self._show_guesses()

    def note_guesses(self, guesses: Guesses) -> None:
        """Take note of where the text comes from that has arrived so far, to be drawn with it."""
        self._guesses = guesses

    def color_guesses(self, shows_guesses: bool) -> None:
        """Show the text as it was written, with what was guessed ahead in another colour, or as Markdown."""
        self._shows_guesses = shows_guesses
        self._show_guesses()
        self._show_caption()

    def end(self, message: StoredMessage) -> None:
        """Show how it ended, with the message whole; why it failed is for the notice to tell, until `spell_out`."""
        self.message, self._is_told = message, True
        self.thinking.end(message.thinking)
        whole = shown_text(message.content)
        if self._markdown.source != whole:
            self._markdown.update(whole)
        self._markdown.end()
        self._written, self._guesses = message.content, guesses_of(message.statistics)
        self._show_guesses()
        self.call.show(message.call)
        self._show_caption()

    def spell_out(self) -> None:
        """Say here why it failed, since the notice that did is gone."""
        if self._is_told:
            self._is_told = False
            self._show_caption()

    def wrap_code(self, wraps_code: bool) -> None:
        """Break lines of code that are too long, or show where they are cut."""
        self._markdown.wrap_code(wraps_code)

    def _show_guesses(self) -> None:
        is_shown = self._shows_guesses and bool(self._written)
        self._markdown.display, self._guessed.display = not self._shows_guesses, is_shown
        if is_shown:
            self._guessed.show(self._written, self._guesses)

    def _show_caption(self) -> None:
        caption = turn_caption(self.message, is_told=self._is_told, go_on=key_now(self, "continue"))
        if self._shows_guesses and caption:
            statistics = self.message.statistics
            share = guessed_share(statistics.get("num_guessed_tokens"), statistics.get("num_new_tokens"))
            caption = f"{share} · {caption}"
        self._caption.update(caption)
        self._caption.display = bool(caption)
        self.set_class(self.message.state == "failed", "-failed")
        self.set_class(self.message.state == "streaming", "-streaming")


Turn = PromptTurn | AnswerTurn | ToolTurn


def turn_view(
    message: StoredMessage,
    *,
    versions: Sequence[int] = (),
    wraps_code: bool = False,
    opens_thinking: bool = False,
    shows_guesses: bool = False,
) -> Turn:
    """Return the widget that shows a message, which is one of these versions; one that is left out is marked."""
    head = TurnHead(message, versions)
    if message.role == "user":
        turn: Turn = PromptTurn(message, head)
    elif message.role == "tool":
        turn = ToolTurn(message)
    else:
        turn = AnswerTurn(
            message, head, wraps_code=wraps_code, opens_thinking=opens_thinking, shows_guesses=shows_guesses
        )
    turn.set_class(message.is_left_out, "-left-out")
    return turn


def num_fitting(messages: Sequence[StoredMessage]) -> int:
    """Return how many of the last messages are drawn at once: at least the last exchange."""
    num = num_characters = 0
    for message in reversed(messages):
        num_characters += len(message.content) * (message.role != "tool")  # which is folded
        if num == NUM_SHOWN_TURNS or (num >= 2 and num_characters > NUM_SHOWN_CHARACTERS):
            break
        num += 1
    return num


def turn_caption(message: StoredMessage, *, is_told: bool = False, go_on: str = "Ctrl+G") -> str:
    """Return how an answer ended and what it took; empty while it streams. `is_told`: why it failed stands elsewhere.

    `go_on` is the key that writes on.

    Words between dots, such as `stopped · 34 tokens · 5.2 tok/s · 3.1 tokens per pass`.
    """
    if message.state == "streaming":
        return ""
    words = [_how_it_failed(message, is_told=is_told) if message.state == "failed" else _how_it_ended(message, go_on)]
    is_counted = " token" in words[0]
    return " · ".join(word for word in (*words, *_figures(message.statistics, is_counted=is_counted)) if word)


def _how_it_failed(message: StoredMessage, *, is_told: bool) -> str:
    begin = "broken off" if message.content else "no answer"
    kind = _FAILURES.get(str(message.statistics.get("kind")), "")
    if is_told:
        return f"{begin}: {kind}" if kind else begin
    return f"{begin}: {one_line(str(message.statistics.get('error', 'the engine could not answer')))}"


def _how_it_ended(message: StoredMessage, go_on: str) -> str:
    reason, num_tokens = message.statistics.get("finish_reason"), message.statistics.get("num_new_tokens", 0)
    if reason == EDITED:
        return "edited"
    if reason == "length" and message.thinking is not None and not message.content:
        return f"cut while thinking, at {counted(num_tokens, 'token')}; /think {num_tokens // 2}, then /regenerate"
    if reason == "length":
        return f"cut at {counted(num_tokens, 'token')}, {go_on} goes on"
    if reason == "context":
        return "cut: the context is full"
    if message.state == "stopped":
        return "stopped" if message.content else "stopped, nothing came"
    if not message.content and message.call is None:
        return "an empty answer" if message.thinking is None else "nothing was said after the thinking"
    return ""


def _figures(statistics: Mapping[str, Any], *, is_counted: bool) -> list[str]:
    num_tokens, num_rounds = statistics.get("num_new_tokens"), statistics.get("num_rounds")
    seconds_per_token, prefill_seconds = statistics.get("seconds_per_token"), statistics.get("prefill_seconds")
    words = []
    if num_tokens and not is_counted:
        words.append(counted(num_tokens, "token"))
    if seconds_per_token:
        words.append(f"{1 / seconds_per_token:.3g} tok/s")
    if num_tokens and num_rounds:
        words.append(f"{num_tokens / num_rounds:.1f} tokens per pass")
    if prefill_seconds:
        expected = statistics.get("expected_prefill_seconds")
        words.append(f"first after {prefill_seconds:.1f} s" + (f" (expected {expected:.1f})" if expected else ""))
    return words


class ConversationView(VerticalScroll, can_focus=False):
    """The turns of the open conversation; the prompt keeps the focus while they are scrolled and clicked."""

    def __init__(self, *, id: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(id=id)
        self._clock = clock
        self._messages: list[StoredMessage] = []  # those that are not drawn yet, oldest first
        self._smoother = TextSmoother()
        self._growing: AnswerTurn | None = None
        self._wanted: Turn | None = None  # what was searched for, until all is laid out
        self._drawing: Timer  # runs while arrived text waits
        self._copied: CodeBlock | None = None
        self._greeting = Greeting()
        self._versions: Mapping[int, Sequence[int]] = {}
        self._wraps_code = self._opens_thinking = self._shows_guesses = False
        self._rests_until = 0.0  # drawing, by perf_counter
        self.selected_id = 0
        """The turn that keys are for; 0 for none."""

    def on_mount(self) -> None:
        self._drawing = self.set_interval(1 / FRAMES_PER_SECOND, self._draw, pause=True)

    async def show(
        self, messages: Sequence[StoredMessage], *, versions: Mapping[int, Sequence[int]] = MappingProxyType({})
    ) -> None:
        """Show another conversation, or another branch; `versions` are those of each message that has several."""
        self._growing, self._copied, self._wanted = None, None, None
        self._smoother = TextSmoother(self._smoother.expected_seconds)
        self._versions = versions
        if self.selected_id not in {message.id for message in messages}:
            self.selected_id = 0
        num_earlier = len(messages) - num_fitting(messages)
        self._messages = list(messages[:num_earlier])
        shown = messages[num_earlier:]
        with self.app.batch_update():
            await self.remove_children()
            if self._messages:
                await self.mount(_EarlierTurns(len(self._messages)))
            if not messages:
                await self.mount(Welcome(self._greeting))
            await self.mount_all(map(self._turn, shown))
        if shown and shown[-1].state == "streaming":
            self._growing = self._last_answer()
        self.anchor(bool(messages))
        if not messages:
            self.scroll_y = self.scroll_target_y = 0  # an anchored view may stand above its first line
        if self.selected_id:
            await self.select(self.selected_id)

    def greet(self, greeting: Greeting) -> None:
        """Say this while nothing else is said."""
        if greeting != self._greeting:
            self._greeting = greeting
            for welcome in self.query(Welcome):
                welcome.show(greeting)

    async def add(self, message: StoredMessage) -> None:
        """Show one more turn at the end, and follow it."""
        await self.query(Welcome).remove()
        turn = self._turn(message)
        await self.mount(turn)
        if isinstance(turn, AnswerTurn) and message.state == "streaming":
            self._growing = turn
        self.anchor()

    def append(self, text: str, guesses: Guesses | None = None) -> None:
        """Take more of the answer that grows, to be drawn smoothly; `guesses`: of all of it, if that is told."""
        if self._growing is not None:
            if guesses is not None:
                self._growing.note_guesses(guesses)
            self._smoother.push(text, now=self._clock())
            self._drawing.resume()

    def think(self, thinking: Thinking) -> None:
        """Show what the answer that grows has thought."""
        if self._growing is not None:
            self._growing.thinking.grow(thinking)

    def open_thinking(self) -> bool:
        """Open what was thought before answers, here and from now on, or fold it; return whether it is open now."""
        self._opens_thinking = not self._opens_thinking
        for turn in self.query(AnswerTurn):
            turn.thinking.open(self._opens_thinking)
        return self._opens_thinking

    @property
    def has_thinking(self) -> bool:
        """Whether an answer in sight or above it thought before it said something."""
        return any(turn.thinking.display for turn in self.query(AnswerTurn))

    def color_guesses(self) -> bool:
        """Show in answers what was guessed ahead, here and from now on, or Markdown again; return which it is now."""
        self._shows_guesses = not self._shows_guesses
        for turn in self.query(AnswerTurn):
            turn.color_guesses(self._shows_guesses)
        return self._shows_guesses

    def tell_call(self, message_id: int, words: str) -> None:
        """Say how the call of one answer stands, and nothing of all others."""
        for turn in self.query(AnswerTurn):
            turn.call.tell(words if turn.message.id == message_id else "")

    async def end(self, message: StoredMessage) -> None:
        """Draw all of an answer that is over, and how it ended."""
        growing, self._growing = self._growing, None
        if growing is None or growing.message.id != message.id:
            return
        self._smoother = TextSmoother(self._smoother.expected_seconds)
        self._drawing.pause()
        growing.end(message)

    def spell_out_failures(self) -> None:
        """Say at each answer why it failed, once no notice does."""
        for turn in self.query(AnswerTurn):
            turn.spell_out()

    def newest_answer_text(self) -> str:
        """Return what a reader sees of the last answer, as Markdown; empty if there is none."""
        answer = self._last_answer()
        return answer.shown_text if answer is not None else ""

    def next_code_block(self) -> CodeBlock | None:
        """Return and mark the last code block, with each call the one above, and after the first the last again."""
        blocks = [block for answer in self._answers() for block in answer.code_blocks]
        if not blocks:
            return None
        index = blocks.index(self._copied) - 1 if self._copied in blocks else len(blocks) - 1
        self.point_at(blocks[index])
        return blocks[index]

    def point_at(self, block: CodeBlock) -> None:
        """Mark the block that was copied, and bring it into sight."""
        if self._copied is not None:
            self._copied.answer.mark(None)
        self._copied = block
        block.answer.mark(block.block)
        if not block.answer.display:  # what is shown instead is no Markdown
            return
        top = block.answer.region.y - self.content_region.y + self.scroll_offset.y
        self.scroll_to_region(Region(0, top + block.answer.row_of(block.block), 1, 2), animate=False)

    def wrap_code(self) -> bool:
        """Break long lines of code, or show again where they are cut; return whether they are broken now."""
        self._wraps_code = not self._wraps_code
        for turn in self.query(AnswerTurn):
            turn.wrap_code(self._wraps_code)
        return self._wraps_code

    def open_attachments(self) -> bool:
        """Open all texts that went along with prompts, or fold them if all are open; return whether there are any."""
        folded = list(self.query(FoldedText))
        is_to_open = not all(each.is_open for each in folded)
        for each in folded:
            each.open(is_to_open)
        return bool(folded)

    async def show_earlier(self) -> None:
        """Draw some of the turns before those that are drawn; what is read stays where it is."""
        if not self._messages:
            return
        line_on_top = next(iter(self.query(".turn")), None)
        await self._mount_earlier()
        if line_on_top is not None:
            self.call_after_refresh(self.scroll_to_widget, line_on_top, animate=False, top=True)

    async def _mount_earlier(self) -> None:
        start = len(self._messages) - num_fitting(self._messages)
        self._messages, shown = self._messages[:start], self._messages[start:]
        with self.app.batch_update():
            await self.query(_EarlierTurns).remove()
            await self.mount_all(map(self._turn, shown), before=0)
            if self._messages:
                await self.mount(_EarlierTurns(len(self._messages)), before=0)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._messages:
            self.run_worker(self.show_earlier(), group="earlier", exclusive=True)

    async def show_start(self) -> None:
        """Go to the first turn, which may not be drawn yet."""
        while self._messages:
            await self.show_earlier()
            await asyncio.sleep(0)  # keys come first
        self.call_after_refresh(self.scroll_home, animate=False)

    async def show_turn(self, message_id: int) -> None:
        """Go to one turn, which may not be drawn yet; nowhere if it is not there."""
        if message_id in {message.id for message in self._messages}:
            await self.show_start()
        if self._turn_of(message_id) is not None:
            self.anchor(False)
            self._want(message_id)

    def _want(self, message_id: int) -> None:
        self._wanted = self._turn_of(message_id)
        if self._wanted is not None:
            self.call_after_refresh(self._show_wanted)
            self.set_timer(SETTLE_SECONDS, self._forget_wanted)

    def watch_virtual_size(self) -> None:
        """Stay at the turn that is wanted while those above it are laid out."""
        if self._wanted is not None:
            self.call_after_refresh(self._show_wanted)

    def _show_wanted(self) -> None:
        if self._wanted is not None:
            is_selected = self._wanted.message.id == self.selected_id
            fits = self._wanted.outer_size.height <= self.size.height
            self.scroll_to_widget(self._wanted, top=not (is_selected and fits), animate=False, force=True)

    def _forget_wanted(self) -> None:
        self._wanted = None

    async def select(self, message_id: int) -> None:
        """Let keys be for one turn, which is marked and comes into sight; it may not be drawn yet."""
        while message_id in {message.id for message in self._messages}:
            await self._mount_earlier()
        self.selected_id = message_id
        for turn in self._turns():
            turn.select(turn.message.id == message_id)
        self.anchor(False)
        self._want(message_id)

    def deselect(self) -> None:
        """Let keys be for no turn; where the end is in sight, it is followed again."""
        if self.scroll_offset.y >= self.max_scroll_y:
            self.anchor()
        self.selected_id, self._wanted = 0, None
        for turn in self._turns():
            turn.select(False)

    def lowest_id_in_sight(self) -> int:
        """Return the lowest turn of which something is in sight; 0 if none is there."""
        seen = [turn.message.id for turn in self._turns() if turn.region.y < self.content_region.bottom]
        return seen[-1] if seen else 0

    def text_of(self, message_id: int) -> str:
        """Return what a reader sees of a turn, an answer as Markdown; empty if it is not drawn."""
        return next((turn.shown_text for turn in self._turns() if turn.message.id == message_id), "")

    def _turn_of(self, message_id: int) -> Turn | None:
        turns = (turn for turn in self.query(".turn") if isinstance(turn, Turn))
        return next((turn for turn in turns if turn.message.id == message_id), None)

    def _turns(self) -> Iterator[PromptTurn | AnswerTurn]:
        return (turn for turn in self.query(".turn") if isinstance(turn, PromptTurn | AnswerTurn))

    def show_end(self) -> None:
        """Go to the last turn, and follow it."""
        self.anchor()
        self.scroll_end(animate=False)

    def _answers(self) -> Iterator[AnswerMarkdown]:
        """Yield what answers say, without what they thought."""
        return self.query("AnswerTurn > AnswerMarkdown").results(AnswerMarkdown)

    def _last_answer(self) -> AnswerTurn | None:
        answers = self.query(AnswerTurn)
        return answers.last() if answers else None

    def _turn(self, message: StoredMessage) -> Turn:
        return turn_view(
            message,
            versions=self._versions.get(message.id, ()),
            wraps_code=self._wraps_code,
            opens_thinking=self._opens_thinking,
            shows_guesses=self._shows_guesses,
        )

    def _draw(self) -> None:
        begun = time.perf_counter()
        if self._growing is None or begun < self._rests_until:
            return
        if text := self._smoother.take(self._clock()):
            self._growing.write(text)
            self.call_after_refresh(self._rest, begun)
        if not self._smoother.num_waiting:
            self._drawing.pause()

    def _rest(self, begun: float) -> None:
        now = time.perf_counter()
        self._rests_until = now + min(LONGEST_REST_SECONDS, REST * (now - begun))


class _EarlierTurns(Static):
    def __init__(self, num_turns: int) -> None:
        super().__init__(
            markup=False,
            classes="earlier-turns",
        )
        self._num_turns = num_turns

    def on_mount(self) -> None:
        words = f"click to see more, {key_now(self, 'first_turn')} goes to the first"
        self.update(f"{self._num_turns} earlier turns; {words}")

    async def on_click(self) -> None:
        if isinstance(self.parent, ConversationView):
            await self.parent.show_earlier()
