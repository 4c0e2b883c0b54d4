"""One turn of a conversation on the screen: a prompt as it was typed, or an answer as Markdown that may still grow."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from tui.chat.store.records import Message
from tui.chat.widgets.markdown import AnswerMarkdown
from tui.terminal_text import one_line, show_terminal_escapes

_ENDS = {"length": "reached the most tokens", "context": "the context is full"}


def shown_text(text: str) -> str:
    """Return the text as it is drawn: line ends of one kind, and signs for what a terminal would obey."""
    return show_terminal_escapes(text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"))


class PromptTurn(Vertical):
    """What the user said."""

    DEFAULT_CLASSES = "turn prompt-turn"

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message

    def compose(self) -> ComposeResult:
        yield Static("you", markup=False, classes="turn-name")
        yield Static(shown_text(self.message.content), markup=False, classes="prompt-text")


class AnswerTurn(Vertical):
    """What the model said."""

    DEFAULT_CLASSES = "turn answer-turn"

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message
        self._markdown = AnswerMarkdown(shown_text(message.content))
        self._caption = Static(turn_caption(message), markup=False, classes="turn-caption")
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        yield Static(one_line(self.message.model) or "model", markup=False, classes="turn-name")
        yield self._markdown
        yield self._caption

    def on_mount(self) -> None:
        self._show_caption()

    @property
    def shown_text(self) -> str:
        """What a reader sees of the answer, as Markdown; safe to paste into a terminal."""
        return self._markdown.source

    async def write(self, text: str) -> None:
        """Append to what is shown."""
        if self._stream is None:
            self._stream = Markdown.get_stream(self._markdown)
        await self._stream.write(shown_text(text))

    def resume(self) -> None:
        """Forget how it ended before: it is being written on."""
        self.message = replace(self.message, state="streaming")
        self._show_caption()

    async def end(self, message: Message) -> None:
        """Show how it ended; what is shown is the message whole, whatever became of the drawing meanwhile."""
        self.message = message
        if self._stream is not None:
            stream, self._stream = self._stream, None
            try:
                await stream.stop()
            except Exception as error:  # whatever a half-written table broke in the drawing, all is drawn anew below
                self.log.error(error)
                await self._markdown.update("")
        whole = shown_text(message.content)
        if self._markdown.source != whole:
            await self._markdown.update(whole)
        self._show_caption()

    def _show_caption(self) -> None:
        caption = turn_caption(self.message)
        self._caption.update(caption)
        self._caption.display = bool(caption)
        self.set_class(self.message.state == "failed", "-failed")
        self.set_class(self.message.state == "streaming", "-streaming")


def turn_view(message: Message) -> PromptTurn | AnswerTurn:
    """Return the widget that shows a message."""
    return PromptTurn(message) if message.role == "user" else AnswerTurn(message)


def turn_caption(message: Message) -> str:
    """Return how an answer ended and what it took; empty while it streams.

    Words between dots, such as `stopped · 34 tokens · 5.2 tok/s · 3.1 tokens a pass`.
    """
    if message.state == "streaming":
        return ""
    statistics = message.statistics
    words = [_how_it_ended(message), *_figures(statistics)]
    return " · ".join(word for word in words if word)


def _how_it_ended(message: Message) -> str:
    statistics = message.statistics
    if message.state == "failed":
        return f"failed: {one_line(str(statistics.get('error', 'the engine could not answer')))}"
    if message.state == "stopped" and statistics.get("finish_reason") != "context":
        return "stopped" if message.content else "stopped, nothing came"
    return _ENDS.get(str(statistics.get("finish_reason")), "")


def _figures(statistics: Mapping[str, Any]) -> list[str]:
    num_tokens, num_rounds = statistics.get("num_new_tokens"), statistics.get("num_rounds")
    seconds_per_token, prefill_seconds = statistics.get("seconds_per_token"), statistics.get("prefill_seconds")
    words = []
    if num_tokens:
        words.append(f"{num_tokens} token{'s' if num_tokens != 1 else ''}")
    if seconds_per_token:
        words.append(f"{1 / seconds_per_token:.3g} tok/s")
    if num_tokens and num_rounds:
        words.append(f"{num_tokens / num_rounds:.1f} tokens a pass")
    if prefill_seconds:
        words.append(f"first after {prefill_seconds:.1f} s")
    return words
