"""The lists that a person chooses from: conversations beside the talk, and completions over the prompt.

Both show what they are given and tell the screen what is wanted.
"""

import time
from collections.abc import Sequence
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui.chat.commands.keymap import bind
from tui.chat.commands.slash import Completion
from tui.chat.store.records import UNTITLED, Conversation
from tui.chat.store.search import SearchHit
from tui.terminal_text import counted, one_line, show_terminal_escapes

MAX_COMPLETIONS = 50
_AGES = ((60, 1, "now"), (3600, 60, "min"), (86400, 3600, "h"), (30 * 86400, 86400, "d"))


def age_words(seconds: float) -> str:
    """Say how long ago, in a few characters: `now`, `5 min`, `3 h`, `12 d`, `4 mo`."""
    for limit, unit, name in _AGES:
        if seconds < limit:
            return name if unit == 1 else f"{int(seconds // unit)} {name}"
    return f"{int(seconds // (30 * 86400))} mo"


class ConversationList(Vertical):
    """A field to search with, over a list to choose from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("list_close", "screen.do('list')", "Close", tooltip="Back to the prompt"),
        bind("list_enter", "focus_list", "List", tooltip="From the search field into the list"),
        bind("list_delete", "want('delete')", "Delete", show=True, tooltip="Delete it; undo brings it back"),
        bind("list_rename", "want('rename')", "Rename", show=True, tooltip="Give the conversation another title"),
        bind("list_undo", "screen.undo_in_list", "Undo", show=True, tooltip="Bring back what was deleted last"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._hits: dict[int, int] = {}  # messages that a search found, by their conversations

    def compose(self) -> ComposeResult:
        yield Input(placeholder="Search all conversations", id="search", compact=True, select_on_focus=False)
        yield OptionList(id="conversations", compact=True, markup=False)
        yield Static("", id="list-hint", markup=False)

    @property
    def search_text(self) -> str:
        return self.query_one("#search", Input).value.strip()

    def show_conversations(self, conversations: Sequence[Conversation], *, open_id: int | None) -> None:
        """List all conversations, the one that is open marked."""
        now = time.time()
        options = [Option(_line(each, now=now, is_open=each.id == open_id), id=str(each.id)) for each in conversations]
        self._fill(options, counted(len(options), "conversation"))
        ids = [each.id for each in conversations]
        if open_id in ids:
            self.query_one(OptionList).highlighted = ids.index(open_id)

    def show_hits(self, hits: Sequence[SearchHit]) -> None:
        """List what a search found; choosing one opens it where that stands."""
        options = [Option(_hit_lines(hit), id=str(hit.conversation_id)) for hit in hits]
        self._fill(options, f"{len(options)} found" if options else "nothing found")
        self._hits = {hit.conversation_id: hit.message_id for hit in hits}

    def search_for(self, words: str) -> None:
        """Let the next keys go on with a search that begins with these words."""
        field = self.query_one(Input)
        field.value = words
        field.cursor_position = len(words)
        field.focus()

    def action_focus_list(self) -> None:
        self.query_one(OptionList).focus()

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    async def open_highlighted(self) -> None:
        """Let the screen open the conversation, which is highlighted also where another one was clicked."""
        await self.action_want("open")

    async def action_want(self, what: Literal["open", "delete", "rename"]) -> None:
        options = self.query_one(OptionList)
        if options.option_count and options.highlighted is not None:
            option = options.get_option_at_index(options.highlighted)
            place = f", {self._hits.get(int(option.id or 0), 0)}" if what == "open" else ""
            await self.run_action(f"screen.{what}_conversation({option.id}{place})")

    def _fill(self, options: Sequence[Option], hint: str) -> None:
        self._hits = {}
        listed = self.query_one(OptionList)
        highlighted = listed.highlighted
        listed.clear_options()
        listed.add_options(options)
        if options:
            listed.highlighted = min(highlighted or 0, len(options) - 1)
        self.query_one("#list-hint", Static).update(f"{hint} · r rename · del delete · ^z undo")


def _line(conversation: Conversation, *, now: float, is_open: bool) -> Content:
    title = Content(f"{'▸ ' if is_open else '  '}{conversation.shown_title}")
    turns = counted(conversation.num_messages, "turn")
    age = f"  {age_words(now - conversation.updated_at)} · {turns} · #{conversation.id}"
    return Content.assemble(title.stylize("bold") if is_open else title, "\n", Content(age).stylize("$text-muted"))


def _hit_lines(hit: SearchHit) -> Content:
    snippet = Content(show_terminal_escapes(hit.snippet))
    for start, end in hit.matches:
        snippet = snippet.stylize("bold underline", start, end)
    return Content.assemble(Content(f"  {one_line(hit.title) or UNTITLED}"), "\n", Content("  "), snippet)


class CompletionList(OptionList, can_focus=False):
    """What could follow what is typed: up and down choose, Tab takes, Enter takes and sends, Esc puts it away.

    The prompt steers it.
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self._completions: tuple[Completion, ...] = ()
        self._typed = ""
        self._is_chosen = False  # by hand
        self.display = False

    @property
    def chosen(self) -> Completion | None:
        if not self.display or self.highlighted is None or self.highlighted >= len(self._completions):
            return None
        return self._completions[self.highlighted]

    def wanted(self, typed: str) -> Completion | None:
        """Return what Enter takes in place of `typed`, if the list is about that: what was chosen, or is needed."""
        chosen = self.chosen if typed == self._typed else None
        is_wanted = chosen is not None and (self._is_chosen or chosen.is_needed or chosen.is_file)
        return chosen if is_wanted else None

    def move(self, step: int) -> None:
        """Choose the next one, or with -1 the one before."""
        self._is_chosen = True
        if step > 0:
            self.action_cursor_down()
        else:
            self.action_cursor_up()

    def show(self, completions: Sequence[Completion], typed: str = "") -> None:
        """Show what could follow what is typed; if there is nothing, put the list away."""
        self._typed, self._is_chosen = typed, False
        self._completions = tuple(completions[:MAX_COMPLETIONS])
        self.clear_options()
        width = max((len(each.label) for each in self._completions), default=0)
        self.add_options([Option(_completion_row(each, width=min(width, 28))) for each in self._completions])
        self.highlighted = 0 if self._completions else None
        self.display = bool(self._completions)

    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        chosen = self._completions[event.option_index]
        await self.run_action(f"screen.{'take_file' if chosen.is_file else 'begin'}({chosen.text!r})")


def _completion_row(completion: Completion, *, width: int) -> Content:
    label = Content(one_line(completion.label).ljust(width))
    return Content.assemble(label, "  ", Content(one_line(completion.help)).stylize("$text-muted"))
