"""What a person can do with whole conversations: begin, find, rename, delete and bring back, write to files and read.

Every change goes through the store first and is shown from there.
"""

from collections.abc import Callable
from pathlib import Path

from textual import work

from tui.chat.answer_actions import AnswerActions
from tui.chat.dialogue_changes import TurnsChanged
from tui.chat.store.files import export_conversation, free_export_path, import_conversation
from tui.chat.widgets.dialogs import LineDialog, TextDialog
from tui.chat.widgets.lists import UNTITLED, ConversationList
from tui.terminal_text import one_line


class ConversationActions(AnswerActions):
    """Actions on conversations as wholes."""

    async def open_conversation(self, conversation_id: int | None) -> None:
        """Show another conversation, or an empty one; an answer that is being written goes on."""
        await self.apply(self.dialogue.open(conversation_id))

    async def action_new_conversation(self) -> None:
        """Begin an empty conversation; it is kept from its first prompt on."""
        await self.open_conversation(None)
        self.prompt.focus()

    def action_toggle_conversations(self) -> None:
        """Show the whole list, whatever was searched for before, and go there; or put it away."""
        if self.side.display:
            self.close_side()
        else:
            self.side.search_for("")
            self.open_side()
            self.side.focus_list()

    def action_search_conversations(self, words: str = "") -> None:
        """Show the list with the search field ready."""
        self.open_side()
        self.side.search_for(words)

    def open_side(self) -> None:
        """Show the list of conversations."""
        self.side.display = True
        self.refresh_list()

    def close_side(self) -> None:
        """Put the list away and go back to the prompt."""
        self.side.display = False
        self.prompt.focus()

    def action_rename_conversation(self, title: str = "") -> None:
        """Give the open conversation another title; without one, ask for it."""
        if (conversation_id := self._open_id()) is not None:
            self._rename(conversation_id, title)

    async def action_delete_conversation(self) -> None:
        """Delete the open conversation."""
        if (conversation_id := self._open_id()) is not None:
            await self._delete(conversation_id)

    async def action_clear_conversation(self) -> None:
        """Remove all turns of the open conversation."""
        messages = self.dialogue.messages()
        if self.dialogue.is_answering:
            self.say("an answer is being written; press Esc to stop it first", is_warning=True)
        elif messages and self.dialogue.conversation_id is not None:
            self.services.store.drop_messages_from(messages[0].id)
            self.undos.append(("turns", self.dialogue.conversation_id))
            await self.apply((TurnsChanged(),))
            self.say(f"{len(messages)} turns removed; /undo brings them back")
        else:
            self.say("there is nothing to clear")

    async def action_undo_delete(self) -> None:
        """Bring back what was deleted or cleared last."""
        if not self.undos:
            self.say("nothing was deleted since the start")
            return
        kind, conversation_id = self.undos.pop()
        if self.dialogue.is_answering:
            self.undos.append((kind, conversation_id))
            self.say("an answer is being written; press Esc to stop it first", is_warning=True)
            return
        if kind == "turns":
            self.services.store.restore_dropped(conversation_id)
        else:
            self.services.store.undo_delete(conversation_id)
        await self.open_conversation(conversation_id)
        self.say(f"{self._title()} is back")

    def action_set_system(self, text: str | None = None) -> None:
        """Change the system prompt of the open conversation; without a text, open an editor."""
        if text is not None:
            self._set_system(text)
            return
        current = self.dialogue.system_prompt()
        self.app.push_screen(TextDialog("System prompt of this conversation", current), self._set_system)

    def action_export_conversation(self, file: str = "") -> None:
        """Write the open conversation to a file; without a name, ask for it."""
        conversation_id = self._open_id()
        if conversation_id is None:
            return
        if file:
            self._export(conversation_id, file)
            return
        conversation = self.services.store.conversation(conversation_id)
        proposed = str(free_export_path(self.services.export_folder, conversation, suffix=".md"))
        hint = "Markdown, or JSON if the name ends in .json"
        self._ask_line("Export to", proposed, lambda path: self._export(conversation_id, path), hint=hint)

    def action_import_conversation(self, file: str = "") -> None:
        """Read a conversation from an exported JSON file; without a name, ask for it."""
        if file:
            self._import(file)
        else:
            self._ask_line("Import from", "", self._import, hint="a JSON file that was exported")

    async def on_conversation_list_chosen(self, message: ConversationList.Chosen) -> None:
        """Open what was chosen in the list."""
        with self.telling():
            await self.open_conversation(message.conversation_id)
        if self.has_class("-narrow"):
            self.side.display = False
        self.prompt.focus()

    def on_conversation_list_searched(self) -> None:
        """Show what the search finds."""
        with self.telling():
            self.refresh_list()

    def on_conversation_list_closed(self) -> None:
        """Put the list away."""
        self.close_side()

    async def on_conversation_list_undo_wanted(self) -> None:
        """Bring back what was deleted last."""
        with self.telling():
            await self.action_undo_delete()

    def on_conversation_list_rename_wanted(self, message: ConversationList.RenameWanted) -> None:
        """Ask for a title of the highlighted conversation."""
        with self.telling():
            self._rename(message.conversation_id, "")

    async def on_conversation_list_delete_wanted(self, message: ConversationList.DeleteWanted) -> None:
        """Delete the highlighted conversation."""
        with self.telling():
            await self._delete(message.conversation_id)

    def _open_id(self) -> int | None:
        if self.dialogue.conversation_id is None:
            self.say("this conversation is empty; ask something first", is_warning=True)
        return self.dialogue.conversation_id

    def _rename(self, conversation_id: int, title: str) -> None:
        def keep(new_title: str) -> None:
            with self.telling():
                self.services.store.rename_conversation(conversation_id, new_title)
                self.show_state()
                self.refresh_list()

        if title:
            keep(title)
        else:
            self._ask_line("Title", one_line(self.services.store.conversation(conversation_id).title), keep)

    async def _delete(self, conversation_id: int) -> None:
        title = one_line(self.services.store.conversation(conversation_id).title) or UNTITLED
        if self.dialogue.answer is not None and self.dialogue.answer.conversation_id == conversation_id:
            await self.apply(self.dialogue.stop())
        self.services.store.delete_conversation(conversation_id)
        self.undos.append(("conversation", conversation_id))
        if conversation_id == self.dialogue.conversation_id:
            await self.open_conversation(None)
        self.refresh_list()
        self.say(f"deleted: {title}; /undo or Ctrl+Z in the list brings it back")

    def _set_system(self, text: str | None) -> None:
        if text is not None:
            with self.telling():
                self.dialogue.set_system_prompt(text)
                self.say("the system prompt holds from the next answer on" if text.strip() else "no system prompt")

    def _export(self, conversation_id: int, file: str) -> None:
        store = self.services.store
        with self.telling():
            path = Path(file).expanduser()
            export_conversation(path, store.conversation(conversation_id), store.messages(conversation_id))
            self.say(f"written to {file}")

    @work(exclusive=True, group="import")
    async def _import(self, file: str) -> None:
        with self.telling():
            conversation, messages = import_conversation(Path(file).expanduser())
            added = self.services.store.add_conversation(conversation, messages)
            await self.open_conversation(added.id)
            self.say(f"{added.num_messages} turns imported")

    def _ask_line(
        self, question: str, text: str, use: Callable[[str], object], *, hint: str = "Enter keeps it, Esc does not"
    ) -> None:
        def take(answer: str | None) -> None:
            if answer is not None:
                use(answer)

        self.app.push_screen(LineDialog(question, text, hint=hint), take)
