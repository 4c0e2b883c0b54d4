"""The first line of a turn: who said it, which of several versions it is, and a word to click to change it.

`you  ‹ 2/3 ›  edit`: the arrows show the version before and after, each on its own branch.
"""

from collections.abc import Sequence

from textual import events
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tui.chat.store.records import StoredMessage
from tui.terminal_text import one_line

_GAP = "  "


class TurnHead(Widget):
    """Says whose turn it is; tells the screen which version is wanted."""

    DEFAULT_CLASSES = "turn-name"
    is_offered = reactive(False)
    """Whether it says that the turn can be changed: where the mouse is."""
    is_selected = reactive(False)
    """Whether the keys are for this turn."""

    def __init__(self, message: StoredMessage, versions: Sequence[int] = ()) -> None:
        """`versions` are the ids of the messages that take turns with this one, itself included."""
        super().__init__()
        self._message, self._versions = message, versions
        self._actions: tuple[tuple[range, str], ...] = ()  # by the columns that do them when they are clicked

    def render(self) -> Content:
        is_prompt = self._message.role == "user"
        name = "you" if is_prompt else one_line(self._message.model) or "model"
        name = f"▸ {name}" if self.is_selected else name
        parts = [(text, action) for text, action in self._parts() if text]
        room = self.size.width - sum(len(text) for text, _ in parts)
        shown = Content(name).truncate(max(1, room), ellipsis=True)
        actions, column = [], shown.cell_length
        for text, action in parts:
            shown += Content(text).stylize("not bold")
            actions.append((range(column, column + len(text)), action))
            column += len(text)
        self._actions = tuple(actions)
        return shown

    def watch_mouse_hover(self, value: bool) -> None:
        self.is_offered = value

    def _parts(self) -> list[tuple[str, str]]:
        """Return the texts behind the name, each with what a click on it does."""
        message_id, parts = self._message.id, []
        if len(self._versions) > 1:
            index = self._versions.index(message_id)
            back = f"screen.show_version({message_id}, -1)" if index else ""
            forth = f"screen.show_version({message_id}, 1)" if index + 1 < len(self._versions) else ""
            parts += [(f"{_GAP}‹", back), (f" {index + 1}/{len(self._versions)} ", ""), ("›", forth)]
        if self.is_offered:
            parts += [(_GAP, ""), ("edit", f"screen.edit_turn({message_id})")]
        return parts

    def on_click(self, event: events.Click) -> None:
        action = next((action for columns, action in self._actions if event.x in columns), "")
        if action:
            event.stop()
            self.screen.call_later(self.screen.run_action, action)  # not here, since it removes this widget
