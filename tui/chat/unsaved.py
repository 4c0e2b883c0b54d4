"""What the disk had no room for: said while it is so, saved once there is room, and written elsewhere at the end."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from offload.errors import WriteError
from tui.chat.commands.keymap import key_now
from tui.chat.display import ChatDisplay
from tui.chat.store.database import ConversationStoreError
from tui.chat.store.files import path_of, to_markdown
from tui.chat.store.private_files import create_private_file, free_path
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.dialogs import LineDialog
from tui.terminal_text import one_line

RETRY_SECONDS = 2.0


def unsaved_text(store: ConversationStore) -> str:
    """Return, as Markdown, the conversations with answers that are not saved whole, and the drafts that are not."""
    answer_ids, drafts = store.unsaved()
    branches = [store.messages_until(each) for each in answer_ids]
    parts = [to_markdown(store.conversation(branch[-1].conversation_id), branch) for branch in branches]
    return "\n\n".join((*parts, *(f"# Not sent\n\n{draft}\n" for draft in drafts)))


class UnsavedWatch:
    """Tells that something is not saved, and tries again until it is."""

    def __init__(self, chat: ChatDisplay) -> None:
        self._chat, self._store = chat, chat.services.store
        self._is_told = self._is_asked = False

    async def look(self) -> None:
        """Try to save what is not saved; say so where that fails, and say no more once it is saved."""
        if not self._store.is_unsaved and not self._is_told:
            return
        try:
            self._store.save_unsaved()
        except ConversationStoreError as error:
            if not self._is_told:
                self._is_told = True
                words = "what comes now is kept here only, and saved as soon as that is possible"
                await self._chat.notice.show_lasting(f"not saved: {error}; {words}")
        else:
            self._is_told = False
            self._chat.notice.end_lasting()
            self._chat.say("everything is saved again")

    async def look_at_once(self) -> None:
        """Say that something is not saved, if that is new."""
        if self._store.is_unsaved and not self._is_told:
            await self.look()

    async def may_quit(self, quit_now: Callable[[], Awaitable[None]]) -> bool:
        """Return whether nothing would be lost; if something would, offer once to write it elsewhere first."""
        await self.look()
        if not self._store.is_unsaved or self._is_asked:
            return True
        self._is_asked = True
        proposed = str(free_path(Path.home() / "overstory-unsaved.md"))
        back, leave = (key_now(self._chat.screen, name) for name in ("cancel", "quit"))
        hint = f"Enter writes it there and quits; {back} goes back; {leave} quits without it"

        async def write(path: str | None) -> None:
            self._is_asked = False
            if path is None:
                return
            with self._chat.telling():
                write_elsewhere(self._store, path_of(path))
                self._is_asked = True
                await quit_now()

        question = "The conversation is not saved: there is no room on its disk. Write it to"
        self._chat.screen.app.push_screen(LineDialog(question, proposed, hint=hint), write)
        return False


def write_elsewhere(store: ConversationStore, path: Path) -> None:
    """Write what is not saved to a new file. Raises WriteError."""
    try:
        create_private_file(path, unsaved_text(store).encode())
    except OSError as error:
        raise WriteError(
            f"{one_line(str(path))} cannot be written: {error.strerror or error}; give another place"
        ) from error
