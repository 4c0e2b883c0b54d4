"""The chat screen: keys and slash commands to actions, the engine's reports to the dialogue.

Actions stand in the classes below it, one for answers, one for conversations, one for the machine.
"""

import inspect
import time
from typing import ClassVar

from textual import work
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from runtime.errors import OptionError
from tui.chat.chat_services import ChatServices
from tui.chat.commands.registry import COMMANDS, Command
from tui.chat.commands.slash import (
    CommandLine,
    CompletionSources,
    complete_command,
    is_command,
    message_text,
    needs_paths,
    parse_command,
)
from tui.chat.dialogue_changes import PromptReturned, Trouble
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import Loaded, Report
from tui.chat.machine_actions import MachineActions
from tui.chat.settings.path_completion import list_paths
from tui.chat.widgets.lists import CompletionList
from tui.chat.widgets.markdown import AnswerMarkdown, CodeBlock
from tui.chat.widgets.notice import NoticeBar
from tui.chat.widgets.prompt import PromptArea

FOOTER_WORDS = {
    "stop": "Stop",
    "help": "Help",
    "new": "New",
    "list": "List",
    "regenerate": "Again",
    "stats": "Machine",
    "model": "Model",
    "set": "Settings",
    "quit": "Quit",
}
"""Commands in the footer, in its order, with a word that fits beside the others in 80 columns."""
TAKEN_BY_EDITORS = {"ctrl+f"}
"""Keys that a text area would act on; all others come in the order in which they were typed."""
QUIT_SECONDS = 2.0
"""Ctrl+C twice within this time quits."""


def _binding(command: Command) -> Binding:
    return Binding(
        command.key,
        command.action,
        FOOTER_WORDS.get(command.name, command.title),
        show=command.name in FOOTER_WORDS,
        tooltip=command.help,
        priority=command.key in TAKEN_BY_EDITORS,
    )


class ChatScreen(MachineActions):
    """Everything that a person does, comes in here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(_binding(command) for command in COMMANDS if command.key),
        Binding("ctrl+c", "copy_or_quit", "Copy or quit", show=False, priority=True, tooltip="Twice quits"),
        Binding("f6", "go_to_notice", "Choose", show=False, priority=True, tooltip="Go to the notice's choices"),
        Binding("pageup", "page(-1)", "Scroll up", show=False, priority=True, tooltip="Scroll the conversation up"),
        Binding("pagedown", "page(1)", "Scroll down", show=False, priority=True, tooltip="Scroll it down"),
        Binding("ctrl+home", "show_start", "Start", show=False, priority=True, tooltip="Go to the first turn"),
        Binding("ctrl+end", "show_end", "End", show=False, priority=True, tooltip="Go to the last turn, follow it"),
    ]

    def __init__(self, services: ChatServices) -> None:
        super().__init__(services)
        self.undos = []
        self._interrupted_at = -QUIT_SECONDS

    async def on_mount(self) -> None:
        """Show the conversation; the engine comes after the first paint."""
        self.prompt.completions = self.query_one(CompletionList)
        self.query_one("#queued").display = False
        if self.services.has_model:
            self.dialogue.expect_load()  # what is sent before the engine's process is there waits for it
        await self.apply(self.dialogue.open(self.services.conversation_id))
        self.prompt.focus()
        self.app.theme_changed_signal.subscribe(self, self.remember_theme)
        self.call_after_refresh(self.listen)
        if self.services.notices:
            await self.notice.show_lasting(" · ".join(self.services.notices))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Esc stands in the footer while there is something to stop."""
        return action != "stop_answer" or self.is_something_to_stop

    @work(group="engine", exclusive=True)
    async def listen(self) -> None:
        """Start the engine, load the model, and hand every report on until the app ends."""
        if self.services.has_model:
            await self.start_and_load()
        async for report in self.services.engine.reports():
            await self._hear(report)

    async def _hear(self, report: Report | EngineDied) -> None:
        try:
            await self.apply(self.dialogue.take(report))
            if isinstance(report, Loaded):
                await self.note_loaded(report)
        except Exception as error:  # the border: whatever goes wrong here, the conversation goes on
            self.log.error(error)
            await self.show_trouble(Trouble("fault", f"unexpected {type(error).__name__}: {error}"))

    async def on_prompt_area_sent(self, message: PromptArea.Sent) -> None:
        """Obey a command, or ask the model."""
        text = message.text
        self.query_one(CompletionList).hide()
        if not is_command(text):
            with self.telling():
                await self._do_undoable(self.dialogue.ask(message_text(text.strip("\n"))))
            return
        try:
            line = parse_command(text.strip())
        except OptionError as error:
            self.say(str(error), is_warning=True)
            await self.apply((PromptReturned(text),))
            return
        await self.run_command(line)

    async def run_command(self, line: CommandLine) -> None:
        """Do what a command asks for."""
        with self.telling():
            done = getattr(self, f"action_{line.command.action}")(*line.values)
            if inspect.isawaitable(done):
                await done

    def begin_command(self, text: str) -> None:
        """Put the beginning of a command where it can be finished."""
        self.prompt.put(text)
        self.prompt.focus()

    async def on_notice_bar_choice_made(self, message: NoticeBar.ChoiceMade) -> None:
        """Do what was chosen."""
        await self.run_action(message.action)

    def on_notice_bar_dismissed(self) -> None:
        """Back to writing."""
        self.refresh_bindings()
        self.prompt.focus()

    def on_code_block_copy_wanted(self, message: CodeBlock.CopyWanted) -> None:
        """Copy the block that was clicked."""
        self.view.point_at(message.block)
        self.copy_code(message.block.code, message.block.language)

    def on_markdown_link_clicked(self, message: AnswerMarkdown.LinkClicked) -> None:
        """Copy the address: a link that a model wrote is not opened."""
        self.app.copy_to_clipboard(message.href)
        self.say(f"link copied: {message.href}")

    def on_text_area_changed(self, message: TextArea.Changed) -> None:
        """Show what could follow what is typed."""
        if message.text_area is self.prompt:
            self.complete(message.text_area.text)

    @work(group="complete", exclusive=True)
    async def complete(self, text: str) -> None:
        """Show completions; folders are listed apart, since disks can be slow."""
        completions = self.query_one(CompletionList)
        sources = CompletionSources(
            themes=sorted(self.app.available_themes), models=self.services.settings.settings.recent_targets
        )
        if needs_paths(text):
            paths = await list_paths(text)
            sources = CompletionSources(themes=sources.themes, models=sources.models, list_paths=paths)
        completions.show(complete_command(text, sources))
        self.refresh_bindings()

    def on_completion_list_taken(self, message: CompletionList.Taken) -> None:
        """Put what was clicked into the prompt."""
        self.prompt.put(message.completion.text)
        self.prompt.focus()

    async def action_copy_or_quit(self) -> None:
        """Copy what is selected; else quit when it is pressed twice."""
        selected = self.get_selected_text() or self.prompt.selected_text
        if selected:
            self.app.copy_to_clipboard(selected)
            self.say(f"{len(selected)} characters copied")
            return
        now = time.monotonic()
        if now - self._interrupted_at < QUIT_SECONDS:
            await self.action_quit()
            return
        self._interrupted_at = now
        self.say("press Ctrl+C again to quit; Esc stops an answer")

    async def action_quit(self) -> None:
        """End the app."""
        await self.app.action_quit()

    def action_go_to_notice(self) -> None:
        """Let the next keys choose what the notice offers."""
        if self.notice.display:
            self.notice.focus_choices()

    def action_page(self, direction: int) -> None:
        """Scroll the conversation by a page; lists scroll themselves."""
        if self.side.has_focus_within:
            raise SkipAction
        if direction < 0:
            self.view.scroll_page_up(animate=False)
        else:
            self.view.scroll_page_down(animate=False)

    async def action_show_start(self) -> None:
        """Go to the first turn."""
        await self.view.action_show_start()

    def action_show_end(self) -> None:
        """Go to the last turn and follow it."""
        self.view.action_show_end()
