"""Keeps what is written and not sent with its conversation: saved while it is written, back when that is opened."""

from contextlib import suppress

from profiles.errors import BadInputError
from tui.attachments import joined_messages
from tui.chat.changes import ConversationLeft
from tui.chat.dialogue import Dialogue
from tui.chat.store.database import ConversationStoreError
from tui.chat.store.drafts import Draft
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.prompt import PromptArea

SAVE_SECONDS = 0.5
"""From the first letter that is not saved to the moment when it is."""


class DraftKeeper:
    """The prompt's draft and the store's, for whatever conversation is open."""

    def __init__(self, store: ConversationStore, dialogue: Dialogue, prompt: PromptArea) -> None:
        self._store, self._dialogue, self._prompt = store, dialogue, prompt
        self._conversation_id: int | None = None  # that the prompt's words belong to
        self._saved = Draft()

    @property
    def draft(self) -> Draft:
        """What would be lost now without being saved: prompts that wait, what is written, what is changed beside it."""
        waiting = [each.text for each in self._dialogue.waiting]
        return self._draft(waiting, self._dialogue.editing_id or 0)

    @property
    def is_saved(self) -> bool:
        return self.draft == self._saved and self._conversation_id == self._dialogue.conversation_id

    def save(self) -> None:
        """Save what is written, if that was not tried yet; what the disk has no room for, the store keeps."""
        if not self.is_saved:
            self._save(self._dialogue.conversation_id, self.draft)

    def enter(self) -> None:
        """Show the draft of the conversation that is open."""
        self._conversation_id = self._dialogue.conversation_id
        draft = self._saved = self._store.draft(self._conversation_id)
        self._prompt.write(draft.text)
        if draft.edit:
            edited = self._dialogue.message(draft.edited_id)
            self._dialogue.editing_id = None if edited is None else edited.id
            self._prompt.show_beside(draft.edit)

    def leave(self, left: ConversationLeft) -> None:
        """Save what belongs to the conversation that was open before, and show what belongs to that which is now."""
        self._save(left.conversation_id, self._draft(left.waiting, left.edited_id))
        self.enter()

    def _draft(self, waiting: "tuple[str, ...] | list[str]", edited_id: int) -> Draft:
        text = joined_messages([part for part in (*waiting, self._prompt.written) if part.strip()])
        changed = self._prompt.changed or (self._prompt.message if edited_id else "")
        if changed == self._prompt.written:  # it is not beside but in place of it
            return Draft(text="", edited_id=edited_id, edit=text) if edited_id else Draft(text=text)
        return Draft(text=text, edited_id=edited_id if changed else 0, edit=changed)

    def _save(self, conversation_id: int | None, draft: Draft) -> None:
        if self._conversation_id != conversation_id:  # it began with what was written
            self._put(self._conversation_id, Draft())
            self._conversation_id = conversation_id
        self._put(conversation_id, draft)
        self._saved = draft

    def _put(self, conversation_id: int | None, draft: Draft) -> None:
        with suppress(ConversationStoreError):  # which the store tries again
            try:
                self._store.save_draft(conversation_id, draft)
            except BadInputError:  # another window purged it
                self._store.save_draft(None, draft)
