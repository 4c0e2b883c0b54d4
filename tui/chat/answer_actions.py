"""What a person can do with answers: stop, write anew, go on, change the prompt, make room, copy."""

from typing import Literal

from tui.chat.dialogue_changes import Changes, PromptReturned, TurnsChanged
from tui.chat.display import ChatFrame
from tui.chat.widgets.lists import CompletionList

Undo = tuple[Literal["conversation", "turns"], int]
"""What `undo_delete` brings back: a conversation, or the turns that were dropped last from one."""


class AnswerActions(ChatFrame):
    """Actions on the open conversation's answers."""

    undos: list[Undo]

    @property
    def is_something_to_stop(self) -> bool:
        """Whether Esc has anything to do."""
        is_asked = self.dialogue.is_answering or bool(self.dialogue.queued)
        is_in_the_way = self.notice.display or self.query_one(CompletionList).display
        return is_asked or is_in_the_way or self.dialogue.editing_id is not None

    async def action_stop_answer(self) -> None:
        """Stop the answer and keep what came; first of all, put away what lies over the prompt."""
        completions = self.query_one(CompletionList)
        if completions.display:
            completions.hide()
        elif self.dialogue.is_answering or self.dialogue.queued:
            await self.apply(self.dialogue.stop())
        elif self.notice.display:
            self.notice.action_dismiss()
        elif self.dialogue.editing_id is not None:
            self.dialogue.editing_id = None
            self.prompt.put("")
            self.say("the last prompt stays as it was")
        self.prompt.focus()

    async def action_regenerate(self) -> None:
        """Write the last answer anew."""
        if not self.dialogue.is_answering and self.services.settings.params().get("temperature") == 0:
            self.say("temperature is 0, so the answer will be the same; raise it with /set temperature 0.7")
        await self._do_undoable(self.dialogue.regenerate())

    async def action_continue_answer(self) -> None:
        """Let the last answer go on."""
        await self._do(self.dialogue.continue_answer())

    async def action_trim_conversation(self) -> None:
        """Leave the oldest turns out of what the model reads."""
        await self._do(self.dialogue.trim())

    async def action_untrim_conversation(self) -> None:
        """Let the model read again what was left out."""
        await self._do(self.dialogue.read_all())

    async def action_edit_last(self) -> None:
        """Take the last prompt back into the prompt area; sending it drops what followed it."""
        if self.dialogue.is_answering:
            self.say("an answer is being written; press Esc to stop it first", is_warning=True)
        elif (text := self.dialogue.edit_last()) is None:
            self.say("nothing was asked yet", is_warning=True)
        else:
            self.prompt.put("")
            await self._do((PromptReturned(text),))
            self.say("Enter sends it in place of the last prompt; Esc leaves that as it was")

    def action_copy_answer(self) -> None:
        """Copy the last answer as it is shown."""
        text = self.view.newest_answer_text()
        if not text:
            self.say("there is no answer to copy yet", is_warning=True)
            return
        self.app.copy_to_clipboard(text)
        self.say(f"answer copied ({len(text)} characters)")

    def action_copy_code(self) -> None:
        """Copy the last code block; again, the one above."""
        block = self.view.next_code_block()
        if block is None:
            self.say("there is no code block to copy", is_warning=True)
            return
        self.copy_code(block.code, block.language)

    def copy_code(self, code: str, language: str) -> None:
        """Put code into the clipboard."""
        self.app.copy_to_clipboard(code)
        num_lines = len(code.splitlines())
        self.say(f"{num_lines} line{'s' if num_lines != 1 else ''} of {language or 'text'} copied")

    async def _do_undoable(self, changes: Changes) -> None:
        """The same, where turns were dropped that `undo_delete` can bring back."""
        conversation_id = self.dialogue.conversation_id
        if conversation_id is not None and any(isinstance(change, TurnsChanged) for change in changes):
            self.undos.append(("turns", conversation_id))
        await self._do(changes)

    async def _do(self, changes: Changes) -> None:
        await self.apply(changes)
        if not self.notice.display:
            self.prompt.focus()
