"""The chat screen: what stands where; keys and slash commands to actions, the engine's reports to the dialogue."""

import asyncio
import inspect
import time
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual import events, on, work
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Footer, Input, Static, TextArea

from runtime.errors import OptionError
from tui.chat.actions import Actions
from tui.chat.changes import PromptReturned, Trouble
from tui.chat.commands.keymap import NO_KEY, bind, bindings_of, key_now, keys_now
from tui.chat.commands.mentions import NearbyFiles
from tui.chat.commands.registry import COMMANDS, Command
from tui.chat.commands.slash import complete_command, is_command, parse_command, paths_for, whole_command
from tui.chat.display import ChatDisplay, ChatServices
from tui.chat.drafts import SAVE_SECONDS
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import Loaded, LoadRefused, Report, TokensCounted
from tui.chat.themes import theme_choices
from tui.chat.tools.servers import CallEnded
from tui.chat.unsaved import RETRY_SECONDS, UnsavedWatch
from tui.chat.widgets.attachments import AttachmentList
from tui.chat.widgets.markdown import AnswerMarkdown
from tui.chat.widgets.prompt import PromptArea
from tui.chat.widgets.tools import ToolsScreen
from tui.chat.widgets.welcome import Welcome

MIN_COLUMNS, MIN_ROWS = 40, 10
NARROW_COLUMNS = 100
"""Below this many the list lies over the conversation and the machine below it, instead of beside it."""
LOW_ROWS = 16
"""Below this many a notice leaves room for the prompt: two rows of it are shown."""
FOOTER_WORDS = {
    "help": "Help",
    "quit": "Quit",
    "new": "New",
    "list": "List",
    "regenerate": "Again",
    "model": "Model",
    "stats": "Machine",
    "set": "Settings",
}
"""Commands in the footer, with a word that fits beside the others in 80 columns; a narrow one shows the first."""
TAKEN_BY_OTHERS = {"ctrl+e", "ctrl+f", "ctrl+q", "f7"}
"""Keys that a text area or the app itself would act on; all others come in the order in which they were typed."""
QUIT_SECONDS = 2.0  # within which Ctrl+C twice quits


def _binding(command: Command) -> Binding:
    return bind(
        command.name,
        f"do('{command.name}')",
        FOOTER_WORDS.get(command.name, command.title),
        show=command.name in FOOTER_WORDS,
        tooltip=command.help,
        priority=command.key in TAKEN_BY_OTHERS,
    )


def _footer_place(command: Command) -> int:
    return [*FOOTER_WORDS, command.name].index(command.name)


_COMMAND_KEYS = [_binding(command) for command in sorted(COMMANDS, key=_footer_place)]


class ChatScreen(Screen[None]):
    """Everything that a person does, and all that the engine reports, comes in here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("back", "step_back", "Stop", show=True, tooltip="Close what lies over the prompt; else take back or stop"),
        *_COMMAND_KEYS,
        bind("interrupt", "copy_or_quit", "Copy or quit", priority=True, tooltip="Copy what is selected; twice quits"),
        bind("suspend", "app.suspend_process", "Suspend", tooltip="Back to the shell; fg returns here"),
        bind("choices", "go_to_notice", "Choose", priority=True, tooltip="Go to the notice's choices"),
        bind("page_up", "page(-1)", "Scroll up", priority=True, tooltip="Scroll the conversation up"),
        bind("page_down", "page(1)", "Scroll down", priority=True, tooltip="Scroll it down"),
        bind("first_turn", "show_start", "Start", priority=True, tooltip="Go to the first turn"),
        bind("last_turn", "show_end", "End", priority=True, tooltip="Go to the last turn, follow it"),
    ]

    def __init__(self, services: ChatServices) -> None:
        super().__init__()
        self.chat = ChatDisplay(self, services)
        self.actions = Actions(self.chat)
        self.unsaved = UnsavedWatch(self.chat)
        self._interrupted_at = -QUIT_SECONDS
        self._saving: Timer | None = None
        self._files = NearbyFiles()

    def compose(self) -> ComposeResult:
        chat = self.chat
        yield chat.title_bar
        with Horizontal(id="body"):
            yield chat.side
            with Vertical(id="talk"):
                yield from (chat.view, chat.turn_keys, chat.legend, chat.notice, chat.queued, chat.prompt.attached)
                yield from (chat.completions, chat.prompt)
            yield chat.panel
        yield chat.status
        yield Footer(compact=True, show_command_palette=False)
        yield Static("", id="too-small", markup=False)

    async def on_mount(self) -> None:
        """Show the conversation; the engine comes after the first paint."""
        chat, services = self.chat, self.chat.services
        chat.dialogue.expect_load()  # what is sent before the engine's process is there waits for it
        await chat.apply(chat.dialogue.open(services.conversation_id))
        self.set_focus(chat.prompt)
        self.app.theme_changed_signal.subscribe(self, self.actions.remember_theme)
        self.call_after_refresh(self._listen)
        self.call_after_refresh(self._listen_to_tools)
        self.set_interval(RETRY_SECONDS, self.unsaved.look)
        if services.notices:
            await chat.notice.show_lasting(" · ".join(services.notices))

    def on_resize(self, event: events.Resize) -> None:
        """Say so if the terminal is too small; lay the list over the talk if it is narrow."""
        columns, rows = event.size
        is_too_small = columns < MIN_COLUMNS or rows < MIN_ROWS
        self.set_class(is_too_small, "-too-small")
        self.set_class(columns < NARROW_COLUMNS, "-narrow")
        self.set_class(rows < LOW_ROWS, "-low")
        need = f"The terminal has {columns} x {rows} cells;\nthe chat needs {MIN_COLUMNS} x {MIN_ROWS}."
        self.query_one("#too-small", Static).update(need if is_too_small else "")

    def watch_focused(self, focused: Widget | None) -> None:
        """Let the prompt have the focus where nothing else has it, such as a button that is gone."""
        if focused is None and self.is_mounted:
            self.call_after_refresh(self._focus_prompt)

    def _focus_prompt(self) -> None:
        if self.focused is None and self.is_current and self.app.app_focus:
            self.set_focus(self.chat.prompt)

    def lend_focus(self, key: events.Key | None) -> None:
        """Let a key, or for None a paste, go to the prompt, wherever the focus is, except in a field of its own."""
        focused = self.focused
        if focused is not None:
            nodes = [node for node in focused.ancestors_with_self if node is not self and node is not self.app]
            is_field = isinstance(focused, Input | TextArea)
            is_bound = key is not None and any(any(bindings_of(node, key.key)) for node in nodes)
            if is_field or is_bound or (key is not None and not key.is_printable):
                return
        self.set_focus(self.chat.prompt)

    def on_key(self, event: events.Key) -> None:
        """Come back to the prompt with Esc, wherever the focus is, once there is nothing to stop."""
        places = (self.chat.side, self.chat.notice, self.chat.turn_keys)
        is_taken = any(each.has_focus_within for each in places)
        if event.key in keys_now(self, "back") and not is_taken and not self.chat.is_something_to_stop:
            event.stop()
            self.chat.side.display = False
            self.set_focus(self.chat.prompt)

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """What the keys do that hold now, in the usual order; what has no key is not for the footer."""
        active = {
            key: each._replace(binding=replace(each.binding, description=self.actions.word_of_step_back))
            if each.binding.action == "step_back"
            else each
            for key, each in super().active_bindings.items()
        }
        chosen = self.app._keymap
        if not chosen:
            return {key: each for key, each in active.items() if key != NO_KEY}
        own: dict[str, ActiveBinding] = {}
        for _, binding in self._bindings:
            is_possible = self.app._check_action_state(binding.action, self)
            for key in keys_now(self, binding.id) if binding.id is not None and is_possible else ():
                if key in active and active[key].node is self:
                    own[key] = active[key]
                elif binding.id in chosen:
                    own[key] = ActiveBinding(self, replace(binding, key=key), True, binding.tooltip)
        return own | {key: each for key, each in active.items() if key not in own and key != NO_KEY}

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Show Esc in the footer while there is something to stop."""
        return action != "step_back" or self.chat.is_something_to_stop

    async def action_step_back(self) -> None:
        """Put away what lies over the prompt; else take a waiting prompt back, stop the answer, leave an edit."""
        self.set_focus(self.chat.prompt)
        await self.chat.perform(self.actions.step_back)

    async def action_do(self, name: str, *values: str) -> None:
        """Do what a command, a key or a notice asks for: the action of that name."""
        with self.chat.telling():
            changes = getattr(self.actions, f"do_{name}")(*values)
            if inspect.isawaitable(changes):
                changes = await changes
            await self.chat.perform(lambda: changes)
            if changes:
                self.chat.prompt.focus()

    def action_begin(self, text: str) -> None:
        """Put the beginning of a command where it can be finished; what is being written waits meanwhile."""
        if is_command(self.chat.prompt.text):
            self.chat.prompt.put(text)
        else:
            self.chat.prompt.show_beside(text)
        self.set_focus(self.chat.prompt)

    async def on_prompt_area_sent(self, message: PromptArea.Sent) -> None:
        text = message.text
        self.chat.completions.show(())
        if not is_command(text):
            await self.chat.perform(lambda: self.chat.dialogue.ask(message.message))
            self.chat.say_what_still_starts()
            return
        try:
            command, values = parse_command(whole_command(text.strip()))
        except OptionError as error:
            self.chat.say(str(error), is_warning=True)
            await self.chat.apply((PromptReturned(text),))
            return
        await self.action_do(command.name, *values)

    def on_text_area_changed(self, message: TextArea.Changed) -> None:
        if message.text_area is self.chat.prompt:
            self._complete(message.text_area.text)
            self._save_draft_soon()
            self.chat.counter.refresh()

    def on_attachment_list_changed(self) -> None:
        self._save_draft_soon()
        self.chat.counter.refresh()

    def on_attachment_list_removed(self, message: AttachmentList.Removed) -> None:
        self.chat.say(f"{message.attachment.label}: taken out; /attach brings it back")
        if not self.chat.prompt.attached.attachments:
            self.set_focus(self.chat.prompt)

    def on_prompt_area_refused(self, message: PromptArea.Refused) -> None:
        self.chat.say(message.sentence, is_warning=True)

    async def action_take_file(self, path: str) -> None:
        """Attach a file that was clicked in the list over the prompt."""
        self.set_focus(self.chat.prompt)
        await self.chat.prompt.take_file(path)

    def _save_draft_soon(self) -> None:
        if self._saving is None:
            self._saving = self.set_timer(SAVE_SECONDS, self.save_draft)

    def save_draft(self) -> None:
        """Save what is written and not sent."""
        self._saving = None
        with self.chat.telling():
            self.chat.drafts.save()

    def on_notice_bar_dismissed(self) -> None:
        self.chat.view.spell_out_failures()
        self.chat.show_keys()
        self.chat.prompt.focus()

    async def on_welcome_chosen(self, message: Welcome.Chosen) -> None:
        """Ask one of the welcome's prompts, unless another one is being written."""
        self.set_focus(self.chat.prompt)
        if self.chat.prompt.message.strip():
            self.chat.say("send or clear what is written below first")
        else:
            await self.chat.perform(lambda: self.chat.dialogue.ask(message.text))

    def on_answer_markdown_copy_wanted(self, message: AnswerMarkdown.CopyWanted) -> None:
        self.chat.view.point_at(message.block)
        self.actions.copy_code(message.block.code, message.block.language)

    def on_answer_markdown_wrap_wanted(self) -> None:
        self.actions.do_wrap()

    def on_answer_markdown_link_clicked(self, message: AnswerMarkdown.LinkClicked) -> None:
        """Copy the address: a link that a model wrote is not opened."""
        self.app.copy_to_clipboard(message.href)
        self.chat.say(f"link copied: {message.href}")

    async def action_open_conversation(self, conversation_id: int, message_id: int = 0) -> None:
        await self.chat.perform(lambda: self.chat.dialogue.open(conversation_id, message_id=message_id))
        self.chat.side.display &= not self.has_class("-narrow")
        self.chat.prompt.focus()

    async def action_show_version(self, message_id: int, step: int) -> None:
        """Show the version of a turn after the one that is shown, or with -1 the one before."""
        await self.chat.perform(lambda: self.chat.dialogue.show_version(message_id, step=step))

    async def action_turn(self, what: str) -> None:
        """Do what a key asks for that is for the selected turn."""
        with self.chat.telling():
            done = getattr(self.actions.turns, f"do_{what}")()
            if inspect.isawaitable(done):
                await done

    async def action_edit_turn(self, message_id: int) -> None:
        """Let a turn be changed in the prompt."""
        self.set_focus(self.chat.prompt)
        await self.chat.perform(lambda: self.chat.dialogue.edit(message_id))

    async def action_rename_conversation(self, conversation_id: int) -> None:
        await self.chat.perform(lambda: self.actions.ask_title(conversation_id))

    async def action_delete_conversation(self, conversation_id: int) -> None:
        """Delete one in the list, which keeps the focus."""
        await self.chat.perform(lambda: self.chat.dialogue.delete(conversation_id))

    async def action_undo_in_list(self) -> None:
        """Bring back what was deleted last; the list keeps the focus, which `do('undo')` gives to the prompt."""
        await self.chat.perform(self.chat.dialogue.undo)

    @on(Input.Changed, "#search")
    def search(self) -> None:
        """Show what is found by what is typed."""
        self.chat.refresh_list()

    async def action_copy_or_quit(self) -> None:
        """Copy what is selected; else quit when it is pressed twice."""
        selected = self.get_selected_text() or self.chat.prompt.selected_text
        if selected:
            self.app.copy_to_clipboard(selected)
            self.chat.say(f"{len(selected)} characters copied")
            return
        now = time.monotonic()
        if now - self._interrupted_at < QUIT_SECONDS:
            await self.app.action_quit()
            return
        self._interrupted_at = now
        again, stop = key_now(self, "interrupt"), key_now(self, "back")
        self.chat.say(f"press {again} again to quit; {stop} stops an answer")

    def action_go_to_notice(self) -> None:
        if self.chat.notice.display:
            self.chat.notice.focus_choices()

    def action_page(self, direction: int) -> None:
        """Scroll the conversation by a page; lists scroll themselves."""
        if self.chat.side.has_focus_within:
            raise SkipAction
        if direction < 0:
            self.chat.view.scroll_page_up(animate=False)
        else:
            self.chat.view.scroll_page_down(animate=False)

    async def action_show_start(self) -> None:
        await self.chat.view.show_start()

    def action_show_end(self) -> None:
        self.chat.view.show_end()

    @work(group="engine", exclusive=True)
    async def _listen(self) -> None:
        """Start the engine, load the model, and hand every report on until the app ends."""
        await self.actions.start_and_load()
        async for report in self.chat.services.engine.reports():
            await self._hear(report)

    @work(group="tools", exclusive=True)
    async def _listen_to_tools(self) -> None:
        """Hand on what the servers of tools tell until the app ends."""
        async for report in self.chat.services.tools.reports():
            if isinstance(report, CallEnded):
                await self.chat.perform(partial(self.chat.dialogue.take_result, report))
            elif report.sentence:
                self.chat.say(report.sentence, is_warning=True)
            for opened in self.app.screen_stack:
                if isinstance(opened, ToolsScreen):
                    opened.refresh_rows()

    async def _hear(self, report: Report | EngineDied) -> None:
        try:
            await self.chat.apply(self.chat.dialogue.take(report))
            await self.unsaved.look_at_once()
            if isinstance(report, TokensCounted):
                self.chat.counter.take(report)
                self.chat.show_engine()
            elif isinstance(report, Loaded):
                await self.actions.note_loaded(report)
            elif isinstance(report, LoadRefused | EngineDied):
                self.chat.services.settings.forget_choice()
        except Exception as error:  # the border: whatever goes wrong here, the conversation goes on
            self.log.error(error)
            await self.chat.show_trouble(Trouble("fault", f"unexpected {type(error).__name__}: {error}"))

    @work(group="complete", exclusive=True)
    async def _complete(self, text: str) -> None:
        mention = None if is_command(text) else self.chat.prompt.mention
        if mention is not None:
            found = await asyncio.to_thread(self._files.propose, mention)
            self.chat.completions.show(found, text)
            self.chat.show_keys()
            return
        known = {
            "THEME": theme_choices(self.app.available_themes),
            "MODEL": self.chat.services.settings.settings.recent_targets,
            "FILE": await paths_for(text),
        }
        self.chat.completions.show(complete_command(text, known), text)
        self.chat.show_keys()
