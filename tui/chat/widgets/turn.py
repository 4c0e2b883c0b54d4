"""One turn of a conversation on the screen: a prompt as it was typed, or an answer as Markdown that may still grow.

Shows plain values; knows no store and no engine.
"""

from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from tui.chat.store.records import Message
from tui.chat.widgets.markdown import AnswerMarkdown, CodeBlock
from tui.chat.widgets.turn_caption import turn_caption
from tui.terminal_text import one_line, show_terminal_escapes


def shown_text(text: str) -> str:
    """The text as it is drawn: line ends of one kind, and signs for what a terminal would obey."""
    return show_terminal_escapes(text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"))


class PromptTurn(Vertical):
    """What the user said."""

    DEFAULT_CLASSES = "turn prompt-turn"

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message

    def compose(self) -> ComposeResult:
        """Who, and what."""
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
        """Which model, what it said, and how it ended."""
        yield Static(one_line(self.message.model) or "model", markup=False, classes="turn-name")
        yield self._markdown
        yield self._caption

    def on_mount(self) -> None:
        """An answer without a caption leaves no empty line for it."""
        self._show_caption()

    @property
    def shown_text(self) -> str:
        """What a reader sees of the answer, as Markdown; safe to paste into a terminal."""
        return self._markdown.source

    def code_blocks(self) -> list[CodeBlock]:
        """Its code blocks, the first one first."""
        return self._markdown.code_blocks()

    async def write(self, text: str) -> None:
        """Append to what is shown."""
        if self._stream is None:
            self._stream = Markdown.get_stream(self._markdown)
        await self._stream.write(shown_text(text))

    def resume(self) -> None:
        """It is being written on: how it ended before is over."""
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
    """The widget that shows a message."""
    return PromptTurn(message) if message.role == "user" else AnswerTurn(message)
