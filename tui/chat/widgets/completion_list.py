"""What could follow what is typed, over the prompt: up and down choose, Tab takes, Esc puts it away.

Never has the focus; the prompt area steers it. Knows no command.
"""

from collections.abc import Sequence

from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.chat.commands.slash_commands import Completion
from tui.terminal_text import one_line

MAX_SHOWN = 50


class CompletionList(OptionList, can_focus=False):
    """Ways on, the first one highlighted."""

    class Taken(Message):
        """One was clicked."""

        def __init__(self, completion: Completion) -> None:
            self.completion = completion
            super().__init__()

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self._completions: tuple[Completion, ...] = ()
        self.display = False

    @property
    def chosen(self) -> Completion | None:
        """The highlighted way on; None while nothing is shown."""
        if not self.display or self.highlighted is None or self.highlighted >= len(self._completions):
            return None
        return self._completions[self.highlighted]

    def show(self, completions: Sequence[Completion]) -> None:
        """Show these, or nothing."""
        self._completions = tuple(completions[:MAX_SHOWN])
        self.clear_options()
        width = max((len(each.label) for each in self._completions), default=0)
        self.add_options([Option(_row(each, width=min(width, 28))) for each in self._completions])
        self.highlighted = 0 if self._completions else None
        self.display = bool(self._completions)

    def hide(self) -> None:
        """Show nothing."""
        self.show(())

    def move(self, step: int) -> None:
        """Highlight the next one, or with -1 the one before; the ends are neighbours."""
        if self._completions:
            self.highlighted = ((self.highlighted or 0) + step) % len(self._completions)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the one that was clicked."""
        event.stop()
        self.post_message(self.Taken(self._completions[event.option_index]))


def _row(completion: Completion, *, width: int) -> Content:
    label = Content(one_line(completion.label).ljust(width))
    return Content.assemble(label, "  ", Content(one_line(completion.help)).stylize("dim"))
