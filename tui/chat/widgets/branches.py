"""The branches of a conversation: where each parts from the others, how long it is, when it was written to last."""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.attachments import in_brief
from tui.chat.commands.keymap import bind, key_now
from tui.chat.store.branches import Branch
from tui.chat.widgets.lists import age_words
from tui.terminal_text import one_line

LOW_ROWS = 20
"""Below this many, what is empty is left out, and three branches are in sight."""


class BranchesScreen(ModalScreen[int | None]):
    """Lists them, the one written to last in front; returns the last message of the one to show, if any."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("cancel", "dismiss", "Close", show=True, tooltip="Leave everything as it was"),
    ]

    def __init__(self, branches: Sequence[Branch], *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._branches, self._clock = branches, clock

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(f"{len(self._branches)} branches of this conversation", classes="dialog-title")
            yield OptionList(*map(self._option, self._branches), id="branches", compact=True, markup=False)
            words = f"Enter shows it · {key_now(self, 'cancel')} closes"
            yield Static(words, markup=False, classes="dialog-hint")

    def on_mount(self) -> None:
        rows = self.query_one(OptionList)
        rows.highlighted = next((index for index, each in enumerate(self._branches) if each.is_shown), 0)
        rows.focus()

    def on_resize(self, event: events.Resize) -> None:
        """Leave out what is empty where there are few rows."""
        self.set_class(event.size.height < LOW_ROWS, "-low")

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Return the branch that was chosen."""
        self.dismiss(self._branches[event.option_index].leaf_id)

    def _option(self, branch: Branch) -> Option:
        who = "you" if branch.role == "user" else "model"
        words = Content(f"{'▸' if branch.is_shown else ' '} {who}: {_line(branch.words)}")
        age = age_words(self._clock() - branch.updated_at)
        part = f"turn {branch.parting_number} of {branch.num_messages}"
        after = f" · after: {_line(branch.follows)}" if branch.follows else ""
        place = f"    {part} · {age if age == 'now' else f'{age} ago'}{after}"
        shown = words.stylize("bold") if branch.is_shown else words
        return Option(Content.assemble(shown, "\n", Content(place).stylize("$text-muted")))


def _line(text: str) -> str:
    return one_line(in_brief(text)) or "(empty)"
