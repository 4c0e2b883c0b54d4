"""Imports the conversations of a file while the app goes on, and says how far it is and what was left out."""

import asyncio
import time
from collections import Counter
from pathlib import Path

from tui.chat.display import ChatDisplay
from tui.chat.store.foreign import ReadConversation, import_conversations, left_out_words
from tui.chat.widgets.notice import Choice
from tui.terminal_text import counted, one_line

SAY_SECONDS = 2.0
"""Between two words about how far it is."""
_LIST = Choice("Show them", "list", "Show the list of conversations")


async def import_file(chat: ChatDisplay, path: Path) -> None:
    """Add the conversations of a file; a single one is opened."""
    with chat.telling():
        chat.say(f"reading {one_line(path.name)} …")
        found = await asyncio.to_thread(import_conversations, path)
        ids = await _add(chat, found)
        left_out = left_out_words(sum((Counter(each.left_out) for each in found), Counter()))
        num_turns = counted(sum(len(each.messages) for each in found), "turn")
        if len(ids) == 1:
            said = "; ".join(filter(None, (f"{num_turns} imported", left_out)))
            await chat.perform(lambda: (*chat.dialogue.open(ids[0]), said))
            return
        chat.refresh_list()
        sentence = f"{counted(len(ids), 'conversation')} with {num_turns} imported"
        await chat.notice.show("; ".join(filter(None, (sentence, left_out))), (_LIST,), is_error=False)


async def _add(chat: ChatDisplay, found: list[ReadConversation]) -> list[int]:
    """Store them one by one, so that an answer that is being written is saved in between."""
    store, said_at, ids = chat.services.store, time.monotonic(), []
    is_alone = len(found) == 1
    for number, each in enumerate(found, 1):
        added = await asyncio.to_thread(store.add_conversation, each.conversation, each.messages, is_used_now=is_alone)
        ids.append(added.id)
        if time.monotonic() - said_at > SAY_SECONDS:
            said_at = time.monotonic()
            chat.say(f"{number:,} of {counted(len(found), 'conversation')} imported")
    return ids
