"""The deleted conversations: to bring one back, or to remove it for good before its time."""

import time
from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from profiles.errors import OverstoryError
from tui.chat.commands.keymap import bind, key_now
from tui.chat.store.records import Conversation
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.lists import age_words
from tui.terminal_text import one_line

_DAY_SECONDS = 86400.0


class DeletedScreen(ModalScreen[int | None]):
    """Lists them, the one deleted last in front; returns the one to bring back, if any."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind(
            *("deleted_remove", "remove", "Remove for good"),
            show=True,
            tooltip="Remove the conversation for good; asks first",
        ),
        bind("deleted_close", "step_back", "Close", show=True, tooltip="Leave them as they are"),
    ]

    def __init__(
        self, store: ConversationStore, *, keep_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`keep_seconds` is how long after its deletion a conversation is kept."""
        super().__init__()
        self._store, self._keep_seconds, self._clock = store, keep_seconds, clock
        self._deleted: list[Conversation] = []
        self._doomed_id: int | None = None  # which another Del removes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("Deleted conversations", classes="dialog-title")
            yield OptionList(id="deleted", compact=True, markup=False)
            yield Static(markup=False, classes="dialog-hint")

    def on_mount(self) -> None:
        self._list()
        self.query_one(OptionList).focus()

    @on(OptionList.OptionSelected)
    def bring_back(self, event: OptionList.OptionSelected) -> None:
        """Return the conversation that was chosen."""
        self.dismiss(self._deleted[event.option_index].id)

    def action_remove(self) -> None:
        """Ask, and at the second time remove it."""
        index = self.query_one(OptionList).highlighted
        if index is None or not self._deleted:
            return
        chosen = self._deleted[index]
        if self._doomed_id != chosen.id:
            self._doomed_id = chosen.id
            remove, close = key_now(self, "deleted_remove"), key_now(self, "deleted_close")
            cached = "all but its part of the prefix cache, which newer texts replace"
            self._say(f"{remove} again removes {chosen.shown_title} for good, {cached}; {close} keeps it")
            return
        try:
            self._store.purge_conversation(chosen.id)
        except OverstoryError as error:
            self._say(one_line(str(error)))
        self._list()

    def action_step_back(self) -> None:
        """Keep what was to be removed; else close."""
        if self._doomed_id is None:
            self.dismiss(None)
        else:
            self._keep()

    @on(OptionList.OptionHighlighted)
    def _keep(self) -> None:
        self._doomed_id = None
        remove = f"Enter brings it back · {key_now(self, 'deleted_remove')} removes it for good"
        self._say(f"{remove if self._deleted else 'Nothing is deleted'} · {key_now(self, 'deleted_close')} closes")

    def _list(self) -> None:
        rows = self.query_one(OptionList)
        before = rows.highlighted or 0
        self._deleted = self._store.list_deleted()
        rows.clear_options().add_options(Option(self._row(each)) for each in self._deleted)
        rows.highlighted = min(before, len(self._deleted) - 1) if self._deleted else None
        self._keep()

    def _row(self, conversation: Conversation) -> Content:
        since = self._clock() - (conversation.deleted_at or 0.0)
        num_days = max(0, round((self._keep_seconds - since) / _DAY_SECONDS))
        age = age_words(since)
        when = "just now" if age == "now" else f"{age} ago"
        words = f"  {conversation.num_messages} turns, deleted {when}, kept for {num_days} d more"
        return Content.assemble(conversation.shown_title, Content(words).stylize("$text-muted"))

    def _say(self, words: str) -> None:
        self.query_one(".dialog-hint", Static).update(words)
