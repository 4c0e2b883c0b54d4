"""What goes along with the prompt, a line each above it, to be removed again; and what went along, folded to a line."""

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from profiles.errors import BadInputError
from tui.attachments import MAX_ATTACHMENT_BYTES, Attachment
from tui.chat.commands.keymap import bind, key_now
from tui.terminal_text import counted, show_terminal_escapes

MAX_CHARACTERS = 4 * MAX_ATTACHMENT_BYTES
"""Of all that goes along with one prompt."""
MAX_SHOWN_LINES, MAX_SHOWN_CHARACTERS = 400, 40_000
"""Of an attachment that is opened; all of it goes to the model."""


class AttachmentList(OptionList):
    """The lines over the prompt, which steers them; Del takes the one with the cursor out."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("attachment_remove", "remove", "Take out", show=True, tooltip="Take it out; /attach brings it back"),
    ]

    class Changed(Message):
        """Something else is attached than before."""

    class Removed(Message):
        """A person took something out."""

        def __init__(self, attachment: Attachment) -> None:
            super().__init__()
            self.attachment = attachment

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self.attachments: tuple[Attachment, ...] = ()
        """In the order in which the model reads them."""
        self._removed: list[Attachment] = []
        self._num_tokens: Mapping[Attachment, int] = {}
        self.tooltip = "What goes along with the prompt. Shift+Tab goes here, Del takes one out."
        self.display = False

    def put(self, attachments: tuple[Attachment, ...]) -> None:
        """Attach these instead of what is attached."""
        if attachments != self.attachments:
            self.attachments = attachments
            self._draw()
            self.post_message(self.Changed())

    def add(self, attachment: Attachment) -> None:
        """Attach one more; the same file takes its own place. Raises BadInputError for too much."""
        others = tuple(each for each in self.attachments if not attachment.name or each.name != attachment.name)
        if sum(len(each.text) for each in (*others, attachment)) > MAX_CHARACTERS:
            raise BadInputError(
                f"{attachment.label}: all that is attached would have more than {MAX_CHARACTERS:,} characters; "
                "attach less, or a part of it"
            )
        self.put((*others, attachment))

    def bring_back(self) -> bool:
        """Attach what was removed last; return whether something was."""
        if not self._removed:
            return False
        self.add(self._removed[-1])
        self._removed.pop()
        return True

    def show_tokens(self, num_tokens: Mapping[Attachment, int]) -> None:
        """Show how many tokens each takes, where that is known."""
        if num_tokens != self._num_tokens:
            self._num_tokens = dict(num_tokens)
            self._draw()

    def action_remove(self) -> None:
        if self.highlighted is None:
            return
        removed = self.attachments[self.highlighted]
        self._removed.append(removed)
        self.put(tuple(each for index, each in enumerate(self.attachments) if index != self.highlighted))
        self.post_message(self.Removed(removed))

    def action_cursor_down(self) -> None:
        """Behind the last line is the prompt."""
        if self.highlighted is None or self.highlighted == self.option_count - 1:
            self.screen.focus_next()
        else:
            super().action_cursor_down()

    def _draw(self) -> None:
        highlighted = self.highlighted if self.option_count >= len(self.attachments) else None
        self.clear_options()
        self.add_options([Option(self._line(each)) for each in self.attachments[:-1]])
        if self.attachments:
            remove = key_now(self, "attachment_remove")
            hint = Content(f"   (Shift+Tab, then {remove} takes it out)").stylize("$text-muted")
            self.add_option(Option(Content.assemble(self._line(self.attachments[-1]), hint)))
        last = self.option_count - 1
        self.highlighted = None if last < 0 else last if highlighted is None else min(highlighted, last)
        self.display = bool(self.attachments)

    def _line(self, attachment: Attachment) -> Content:
        num_tokens = self._num_tokens.get(attachment)
        figure = "" if num_tokens is None else f"{counted(num_tokens, 'token')} · "  # first: a long path is cut off
        return Content.assemble("+ ", Content(figure).stylize("$text-muted"), attachment.label)


class FoldedText(Vertical):
    """A text that went along with a prompt: a line, which a click opens and closes."""

    DEFAULT_CLASSES = "folded-text"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        self._attachment = attachment
        self.is_open = False
        self._head = Static("", markup=False, classes="folded-head")
        self._body = Static("", markup=False, classes="folded-body")

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._body

    def on_mount(self) -> None:
        self.open(self.is_open)

    def open(self, is_open: bool) -> None:
        """Show the text, or its line alone."""
        self.is_open = is_open
        self._head.update(f"{'▾' if is_open else '▸'} {self._attachment.label}")
        self._head.tooltip = f"Click to {'fold' if is_open else 'open'} what the model reads; /attached does it to all"
        self._body.update(shown_part(self._attachment) if is_open else "")
        self._body.display = is_open

    def on_click(self) -> None:
        self.open(not self.is_open)


def shown_part(attachment: Attachment) -> str:
    """Return the text of an attachment as it is drawn: its beginning, and how much more there is."""
    lines = attachment.text[:MAX_SHOWN_CHARACTERS].split("\n")[:MAX_SHOWN_LINES]
    shown = "\n".join(lines)
    text = show_terminal_escapes(shown)
    if len(shown) == len(attachment.text):
        return text
    num_more = attachment.num_lines - len(lines)
    what = counted(num_more, "more line") if num_more else "more of this line"
    return f"{text}\n… {what}; the model reads all of it"
