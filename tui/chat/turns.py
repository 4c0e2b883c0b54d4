"""What is done with a turn that is selected by keys: go on to others, edit it, ask again, see its versions, copy it."""

from collections.abc import Callable

from profiles.errors import BadInputError
from tui.chat.changes import Changes
from tui.chat.display import ChatDisplay
from tui.chat.store.records import StoredMessage


class TurnActions:
    """Each key of the selected turn is a method `do_` + what it does."""

    def __init__(self, chat: ChatDisplay, *, regenerate: Callable[[int], Changes]) -> None:
        """`regenerate` asks for another answer of a turn."""
        self._chat, self._regenerate = chat, regenerate

    async def begin(self) -> None:
        """Select the lowest turn in sight; with one selected already, the one before."""
        messages = self._messages()
        if not messages:
            raise BadInputError("nothing was said yet; ask something first")
        if self._chat.view.selected_id:
            await self.do_before()
            return
        seen = self._chat.view.lowest_id_in_sight()
        await self._select(next((each for each in messages if each.id == seen), messages[-1]))

    async def do_before(self) -> None:
        await self._move(-1)

    async def do_after(self) -> None:
        await self._move(1)

    async def do_edit(self) -> None:
        """Let the turn be changed in the prompt; what is written there waits."""
        message_id = self._chat.view.selected_id
        self.do_close()
        await self._chat.perform(lambda: self._chat.dialogue.edit(message_id))

    async def do_again(self) -> None:
        """Ask for another answer of the turn, and come back to the prompt while it is written."""
        message_id = self._chat.view.selected_id
        self.do_close()
        await self._chat.perform(lambda: self._regenerate(message_id))

    async def do_copy(self) -> None:
        text = self._chat.view.text_of(self._chat.view.selected_id)
        if not text:
            raise BadInputError("this turn says nothing that could be copied")
        self._chat.screen.app.copy_to_clipboard(text)
        self._chat.say(f"turn copied ({len(text)} characters)")

    async def do_version_before(self) -> None:
        await self._show_version(-1)

    async def do_version_after(self) -> None:
        await self._show_version(1)

    def do_close(self) -> None:
        self._chat.prompt.focus()

    async def _move(self, step: int) -> None:
        messages = self._messages()
        ids = [each.id for each in messages]
        selected_id = self._chat.view.selected_id
        index = ids.index(selected_id) + step if selected_id in ids else len(ids) - 1
        if index < 0:
            self._chat.say("this is the first turn")
        elif index >= len(ids):
            self.do_close()
            self._chat.view.show_end()
        else:
            await self._select(messages[index])

    async def _show_version(self, step: int) -> None:
        """Show another version of the turn, which is selected then."""
        view, dialogue = self._chat.view, self._chat.dialogue
        versions = dialogue.versions().get(view.selected_id, (view.selected_id,))
        await self._chat.perform(lambda: dialogue.show_version(view.selected_id, step=step))
        shown = next((each for each in self._messages() if each.id in versions), None)
        if shown is not None:
            await self._select(shown)

    def _messages(self) -> list[StoredMessage]:
        """Return what can be selected: what tools said is folded by keys of its own."""
        return [each for each in self._chat.dialogue.messages() if each.role != "tool"]

    async def _select(self, message: StoredMessage) -> None:
        ids = [each.id for each in self._messages()]
        versions = self._chat.dialogue.versions().get(message.id, ())
        await self._chat.view.select(message.id)
        version = f"{versions.index(message.id) + 1}/{len(versions)}" if versions else ""
        self._chat.turn_keys.show(f"{ids.index(message.id) + 1}/{len(ids)}", version)
