"""The chat screen without its actions: what stands where, and how changes of the dialogue are shown.

The engine's reports come in here and go to the dialogue; no widget below ever speaks to the engine or the store.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static

from profiles.errors import OverstoryError
from tui.chat.chat_services import ChatServices
from tui.chat.dialogue import Dialogue
from tui.chat.dialogue_changes import (
    AnswerEnded,
    AnswerResumed,
    Change,
    Changes,
    PromptReturned,
    QueueChanged,
    TextCame,
    Trouble,
    TroubleKind,
    TurnAdded,
    TurnsChanged,
)
from tui.chat.machine.panel import MachinePanel
from tui.chat.machine.status import StatusLine
from tui.chat.widgets.conversation import ConversationView
from tui.chat.widgets.lists import UNTITLED, CompletionList, ConversationList
from tui.chat.widgets.notice import Choice, NoticeBar
from tui.chat.widgets.prompt import PromptArea
from tui.terminal_text import one_line

MIN_COLUMNS, MIN_ROWS = 40, 12
NARROW_COLUMNS = 100
"""Below this many the list lies over the conversation and the machine below it, instead of beside it."""

_CHOOSE = Choice("Choose model", "choose_model", "Choose a model, with what each would need here")
_RESTART = Choice("Restart engine", "restart_engine", "Start the engine again and load the model; nothing was lost")
_SETTINGS = Choice("Settings", "set_setting", "Change memory budgets, the draft or the context")
_AGAIN = Choice("Try again", "regenerate", "Ask for the answer again")
_TRIM = Choice("Leave out the oldest turns", "trim_conversation", "They stay in the conversation; the model skips them")
_NEW = Choice("New conversation", "new_conversation", "Begin with an empty context")
CHOICES: Mapping[TroubleKind, tuple[Choice, ...]] = {
    "no model": (_CHOOSE,),
    "dead": (_RESTART, _CHOOSE),
    "memory": (_CHOOSE, _SETTINGS),
    "context": (_TRIM, _NEW),
    "fault": (_AGAIN, _RESTART),
    "input": (_CHOOSE, _SETTINGS),
    "store": (),
}
"""What can be done about each kind of trouble, the likeliest first."""


class ChatFrame(Screen[None]):
    """What every action of the chat screen works on."""

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.services = services
        self.dialogue = Dialogue(
            services.store,
            services.engine,
            params=services.settings.params,
            new_system_prompt=lambda: services.settings.system_prompt,
        )
        self._applying = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """The list, the talk with the prompt under it, and the status line."""
        yield Static("", id="title-bar", markup=False)
        with Horizontal(id="body"):
            side = ConversationList(id="side")
            side.display = False
            yield side
            with Vertical(id="talk"):
                yield ConversationView(id="conversation")
                yield NoticeBar(id="notice")
                yield Static("", id="queued", markup=False)
                yield CompletionList(id="completions")
                yield PromptArea(id="prompt")
            machine = MachinePanel(id="machine")
            machine.display = self.services.settings.settings.show_panel
            yield machine
        yield StatusLine(id="status")
        yield Footer(compact=True, show_command_palette=False)
        yield Static("", id="too-small", markup=False)

    @property
    def view(self) -> ConversationView:
        """The turns."""
        return self.query_one(ConversationView)

    @property
    def prompt(self) -> PromptArea:
        """Where prompts are written."""
        return self.query_one(PromptArea)

    @property
    def notice(self) -> NoticeBar:
        """The bar over the prompt."""
        return self.query_one(NoticeBar)

    @property
    def side(self) -> ConversationList:
        """The list of conversations."""
        return self.query_one(ConversationList)

    @property
    def machine(self) -> MachinePanel:
        """The panel of the machine at work."""
        return self.query_one(MachinePanel)

    def on_resize(self, event: events.Resize) -> None:
        """Say so if the terminal is too small; lay the list over the talk if it is narrow."""
        columns, rows = event.size
        is_too_small = columns < MIN_COLUMNS or rows < MIN_ROWS
        self.set_class(is_too_small, "-too-small")
        self.set_class(columns < NARROW_COLUMNS, "-narrow")
        self.machine.place("bottom" if columns < NARROW_COLUMNS else "side")
        need = f"The terminal has {columns} x {rows} cells;\nthe chat needs {MIN_COLUMNS} x {MIN_ROWS}."
        self.query_one("#too-small", Static).update(need if is_too_small else "")

    async def apply(self, changes: Changes) -> None:
        """Show what changed, in order, whoever else shows something now."""
        async with self._applying:
            for change in changes:
                await self._apply(change)
        if all(isinstance(change, TextCame) for change in changes):
            self.show_engine()  # many times a second, so nothing is read or laid out for it
        else:
            self.show_state()

    def show_engine(self) -> None:
        """Show what the engine does."""
        self.query_one(StatusLine).show(self.dialogue.state)
        self.machine.show(self.dialogue.state)

    def show_state(self) -> None:
        """Show what the engine does, which conversation is open, and what can be done."""
        self.show_engine()
        self.query_one("#title-bar", Static).update(self._title())
        self.refresh_bindings()

    def refresh_list(self) -> None:
        """Show the conversations, or what the search finds, as they are now."""
        if not self.side.display:
            return
        store = self.services.store
        if text := self.side.search_text:
            self.side.show_hits(store.search(text))
        else:
            self.side.show_conversations(store.list_conversations(), open_id=self.dialogue.conversation_id)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell what goes wrong inside, such as a full disk, instead of ending the app for it."""
        try:
            yield
        except OverstoryError as error:
            self.say(str(error), is_warning=True)

    def say(self, sentence: str, *, is_warning: bool = False) -> None:
        """Show one sentence for a few seconds."""
        self.notify(one_line(sentence), severity="warning" if is_warning else "information", markup=False)

    async def show_trouble(self, trouble: Trouble) -> None:
        """Show what did not work and what can be done about it."""
        if trouble.kind == "refused":
            self.say(trouble.sentence, is_warning=True)
            return
        await self.notice.show(
            trouble.sentence,
            CHOICES[trouble.kind],
            is_error=trouble.kind != "no model",
            takes_focus=not self.prompt.text,
        )

    def _title(self) -> str:
        conversation_id = self.dialogue.conversation_id
        if conversation_id is None:
            return UNTITLED
        try:
            return one_line(self.services.store.conversation(conversation_id).title) or UNTITLED
        except OverstoryError as error:  # another window may have removed it
            return one_line(str(error))

    async def _apply(self, change: Change) -> None:
        match change:
            case TurnsChanged():
                await self._show_turns()
            case TurnAdded(message=message):
                await self.view.add(message)
                self.refresh_list()
            case AnswerResumed():
                self.view.resume()
            case TextCame(text=text):
                self.view.append(text)
            case AnswerEnded(message=message):
                await self.view.end(message)
                self.refresh_list()
            case QueueChanged(text=text):
                self._show_queued(text)
            case PromptReturned(text=text):
                self._return_prompt(text)
            case Trouble():
                await self.show_trouble(change)

    async def _show_turns(self) -> None:
        messages = self.dialogue.messages()
        self.prompt.set_history([message.content for message in messages if message.role == "user"])
        await self.view.show(messages, first_kept_id=self.dialogue.first_kept_id())
        self.refresh_list()

    def _show_queued(self, text: str) -> None:
        queued = self.query_one("#queued", Static)
        queued.update(f"waits: {one_line(text)}   (Esc takes it back)" if text else "")
        queued.display = bool(text)

    def _return_prompt(self, text: str) -> None:
        """What was written meanwhile stays, below what comes back."""
        written = self.prompt.text
        self.prompt.put(f"{text}\n{written}" if written.strip() else text)
