"""Conversations, kept in SQLite: every prompt, every piece of every answer, as soon as it is there.

Deleted conversations stay restorable, and what is no longer shown stays on its branch. Several instances of the app may
use one database, each with one store, which may be called from any thread.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from profiles.errors import BadInputError
from tui.chat.store.branches import ROOT, Branch, Place
from tui.chat.store.database import ConversationDatabase, ConversationStoreError
from tui.chat.store.drafts import Draft, replace_draft, select_draft
from tui.chat.store.records import (
    Conversation,
    EndState,
    MessageState,
    StoredMessage,
    Thinking,
    storable,
    title_of_prompt,
)
from tui.chat.store.rows import (
    ALL_CONVERSATIONS,
    CONVERSATIONS,
    MESSAGES,
    SHOWN,
    add_message,
    go_to,
    insert_message,
    is_there,
    select_branch,
    select_conversation,
    select_message,
    select_tree,
    stop_answers,
    title_line,
    to_json,
    to_message,
    unknown,
    update_conversation,
)
from tui.chat.store.search import SearchHit, find_hits
from tui.chat.store.writers import is_writing, writer_token

UNDO_SECONDS = 30 * 86400.0
"""How long a deleted conversation can be brought back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsaved:
    """What an answer has become since the disk took something of it last."""

    text: str = ""
    state: MessageState
    writer: str | None = None
    statistics: str | None = None
    """JSON; None keeps those that are there."""


class ConversationStore:
    """All conversations of one database; a context manager.

    Every method raises ConversationStoreError if the disk is full or the database cannot be used, and
    BadInputError for an id that is not there, or no longer.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database at `path`, made if need be; None keeps everything in memory."""
        self._database = ConversationDatabase(path)
        self.notice = self._database.notice
        """One sentence for the user if a damaged database had to be set aside, or an earlier one was changed."""
        self._clock = clock
        self._unsaved_drafts: dict[int | None, Draft] = {}  # the same of drafts, by conversation
        self._unsaved: dict[int, _Unsaved] = {}  # answers that the disk has had no room for yet, by their ids
        self._token: str | None = None
        try:
            self._stop_abandoned()
            self.purge_deleted(older_than_seconds=UNDO_SECONDS)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database; answers of this process that still stream are stopped. Doing so again does nothing."""
        token, self._token = self._token, None
        try:
            if token is not None:
                self.save_unsaved()
                with self._database.writing() as connection:
                    stop_answers(connection, token)
        finally:
            self._database.close()

    def __enter__(self) -> "ConversationStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_conversation(self, *, title: str = "", system_prompt: str = "") -> Conversation:
        """Begin a conversation; without a title, its first prompt gives it one."""
        now = self._clock()
        begun = Conversation(title=title, system_prompt=system_prompt, created_at=now, updated_at=now)
        return self.add_conversation(begun, ())

    def add_conversation(
        self, conversation: Conversation, messages: Sequence[StoredMessage], *, is_used_now: bool = True
    ) -> Conversation:
        """Add a whole conversation, such as an imported one, under new ids; it counts as used now, or when it was.

        Messages without an id follow each other. The branch that is shown ends with the conversation's leaf, or with
        the last message if that is 0.
        """
        title, system_prompt = title_line(conversation.title), storable(conversation.system_prompt)
        used_at = self._clock() if is_used_now else conversation.updated_at
        with self._database.writing() as connection:
            added_id = (
                connection.execute(
                    "INSERT INTO conversations (title, system_prompt, created_at, updated_at) VALUES (?, ?, ?, ?)",
                    (title, system_prompt, conversation.created_at, used_at),
                ).lastrowid
                or 0
            )
            ids, last_id = {ROOT: ROOT}, ROOT
            for message in messages:
                parent_id = ids[message.parent_id] if message.id else last_id
                state: MessageState = "stopped" if message.state == "streaming" else message.state
                added = replace(message, conversation_id=added_id, parent_id=parent_id, state=state)
                last_id = ids[message.id or -1] = insert_message(connection, added).id
            leaf_id = ids[conversation.leaf_id] if conversation.leaf_id else last_id
            connection.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf_id, added_id))
            return select_conversation(connection, added_id)

    def conversation(self, conversation_id: int) -> Conversation:
        """Return the conversation as it is now."""
        with self._database.reading() as connection:
            return select_conversation(connection, conversation_id)

    def list_conversations(self, *, limit: int = -1) -> list[Conversation]:
        """Return those that are not deleted, the one used last in front; at most `limit`, unless that is negative."""
        with self._database.reading() as connection:
            query = f"{CONVERSATIONS} ORDER BY updated_at DESC, id DESC LIMIT ?"
            return [Conversation(**row) for row in connection.execute(query, (limit,))]

    def rename_conversation(self, conversation_id: int, title: str) -> None:
        """Give it another title, which becomes one line."""
        self._update(conversation_id, title=title_line(title))

    def set_system_prompt(self, conversation_id: int, system_prompt: str) -> None:
        """Change what the model is told first, from the next answer on."""
        self._update(conversation_id, system_prompt=storable(system_prompt))

    def leave_out_before(self, conversation_id: int, message_id: int) -> None:
        """Let a model read only that message of the branch shown and those after it from now on; 0 for all of them."""
        with self._database.writing() as connection:
            leaf_id = select_conversation(connection, conversation_id).leaf_id
            connection.execute(
                f"{SHOWN.format(leaf='?')} UPDATE messages SET is_left_out = id < ? WHERE id IN shown",
                (leaf_id, message_id),
            )

    def delete_conversation(self, conversation_id: int) -> None:
        """Take it out of lists and searches; `undo_delete` brings it back for UNDO_SECONDS."""
        self._update(conversation_id, deleted_at=self._clock())

    def undo_delete(self, conversation_id: int) -> Conversation:
        """Bring a deleted conversation back; one that is not deleted stays as it is."""
        with self._database.writing() as connection:
            connection.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
            return select_conversation(connection, conversation_id)

    def list_deleted(self) -> list[Conversation]:
        """Return those that are deleted and can be brought back, the one deleted last in front."""
        with self._database.reading() as connection:
            query = f"{ALL_CONVERSATIONS} WHERE deleted_at IS NOT NULL ORDER BY deleted_at DESC, id DESC"
            return [Conversation(**row) for row in connection.execute(query)]

    def purge_conversation(self, conversation_id: int) -> None:
        """Remove one that is deleted for good, and overwrite it."""
        with self._database.writing() as connection:
            query = "DELETE FROM conversations WHERE id = ? AND deleted_at IS NOT NULL"
            if not connection.execute(query, (conversation_id,)).rowcount:
                raise unknown(f"deleted conversation {conversation_id}")
        self._database.remove_earlier(until=math.inf)  # which have it too

    def purge_deleted(self, *, older_than_seconds: float) -> int:
        """Remove for good what was deleted so long ago, overwrite it, and return how many conversations that were."""
        deleted_until = self._clock() - older_than_seconds
        self._database.remove_earlier(until=deleted_until)
        with self._database.writing() as connection:
            deleted = connection.execute("DELETE FROM conversations WHERE deleted_at <= ?", (deleted_until,))
            return deleted.rowcount

    def messages(self, conversation_id: int) -> list[StoredMessage]:
        """Return the messages of the branch that is shown, oldest first."""
        with self._database.reading() as connection:
            return self.messages_until(select_conversation(connection, conversation_id).leaf_id)

    def messages_until(self, message_id: int) -> list[StoredMessage]:
        """Return the messages of the branch that leads to this one, itself included, oldest first; none for 0."""
        with self._database.reading() as connection:
            query = f"{SHOWN.format(leaf='?')} {MESSAGES} WHERE id IN shown ORDER BY id"
            return [self._whole(to_message(row)) for row in connection.execute(query, (message_id,))]

    def all_messages(self, conversation_id: int) -> list[StoredMessage]:
        """Return the messages of all branches, in the order in which they were begun."""
        with self._database.reading() as connection:
            select_conversation(connection, conversation_id)
            query = f"{MESSAGES} WHERE conversation_id = ? ORDER BY id"
            return [self._whole(to_message(row)) for row in connection.execute(query, (conversation_id,))]

    def versions(self, conversation_id: int) -> dict[int, tuple[int, ...]]:
        """Return what else follows the same message as each of the branch shown, itself included; where there is any.

        In the order in which they were begun.
        """
        with self._database.reading() as connection:
            leaf_id = select_conversation(connection, conversation_id).leaf_id
            tree = select_tree(connection, conversation_id)
            versions = {message_id: tree.versions(message_id) for message_id in tree.path(leaf_id)}
        return {message_id: each for message_id, each in versions.items() if len(each) > 1}

    def versions_of(self, message_id: int) -> tuple[int, ...]:
        """Return what follows the same message as this one, itself included, in the order in which they were begun."""
        with self._database.reading() as connection:
            message = select_message(connection, message_id)
            query = "SELECT id FROM messages WHERE conversation_id = ? AND parent_id = ? ORDER BY id"
            return tuple(row[0] for row in connection.execute(query, (message.conversation_id, message.parent_id)))

    def branches(self, conversation_id: int) -> list[Branch]:
        """Return the branches, that which was written to last in front."""
        with self._database.reading() as connection:
            shown_id = select_conversation(connection, conversation_id).leaf_id
            tree = select_tree(connection, conversation_id)
            return [
                select_branch(connection, tree, leaf_id, is_shown=leaf_id == shown_id)
                for leaf_id in reversed(tree.leaves())
            ]

    def show(self, message_id: int) -> None:
        """Show the branch with that message; of those that have it, the one that was shown last."""
        with self._database.writing() as connection:
            conversation_id = select_message(connection, message_id).conversation_id
            tree = select_tree(connection, conversation_id)
            if message_id not in tree.path(select_conversation(connection, conversation_id).leaf_id):
                go_to(connection, conversation_id, tree.latest_leaf(message_id))

    def branch_off(self, message_id: int) -> None:
        """Show the branch up to this message, which is left away; what is added next takes its place.

        For another answer to the same prompt, or another prompt in place of one: `step_back` takes it back.
        """
        with self._database.writing() as connection:
            message = select_message(connection, message_id)
            go_to(connection, message.conversation_id, message.parent_id)

    def recent_prompts(self, *, limit: int) -> list[str]:
        """Return the last prompts of all conversations, oldest first, each text once."""
        with self._database.reading() as connection:
            query = (
                "SELECT m.content FROM messages m JOIN conversations c ON c.id = m.conversation_id "
                "WHERE m.role = 'user' AND c.deleted_at IS NULL ORDER BY m.id DESC LIMIT ?"
            )
            newest_first = dict.fromkeys(content for (content,) in connection.execute(query, (limit,)))
            return list(newest_first)[::-1]

    def draft(self, conversation_id: int | None) -> Draft:
        """Return what was written in it and not sent; None is the conversation that is yet to begin here."""
        if (unsaved := self._unsaved_drafts.get(conversation_id)) is not None:
            return unsaved
        with self._database.writing() as connection:
            return select_draft(connection, conversation_id, writer=self._writer_token(), is_writing=is_writing)

    def save_draft(self, conversation_id: int | None, draft: Draft) -> None:
        """Keep what is written in it and not sent, in place of what was kept before.

        What could not be saved is kept for `save_unsaved`.
        """
        try:
            with self._database.writing() as connection:
                if conversation_id is not None and not is_there(connection, conversation_id):
                    raise unknown(f"conversation {conversation_id}")
                replace_draft(connection, conversation_id, draft, writer=self._writer_token())
        except ConversationStoreError:
            self._unsaved_drafts[conversation_id] = draft
            raise
        self._unsaved_drafts.pop(conversation_id, None)

    def message(self, message_id: int) -> StoredMessage:
        """Return one message, on whatever branch."""
        with self._database.reading() as connection:
            return self._whole(select_message(connection, message_id))

    def append_prompt(self, conversation_id: int, content: str) -> StoredMessage:
        """Add what the user says to the branch shown; names the conversation if it has no title yet."""
        with self._database.writing() as connection:
            now = self._clock()
            title = select_conversation(connection, conversation_id).title or title_line(title_of_prompt(content))
            update_conversation(connection, conversation_id, title=title, updated_at=now)
            prompt = StoredMessage(
                conversation_id=conversation_id, role="user", content=content, state="complete", created_at=now
            )
            return add_message(connection, prompt)

    def append_result(self, answer_id: int, content: str, *, statistics: Mapping[str, Any]) -> StoredMessage:
        """Add what a tool said to the call of an answer; where that ends the branch shown, so does this."""
        with self._database.writing() as connection:
            answer, now = select_message(connection, answer_id), self._clock()
            is_shown = select_conversation(connection, answer.conversation_id).leaf_id == answer_id
            result = StoredMessage(
                conversation_id=answer.conversation_id,
                parent_id=answer_id,
                role="tool",
                content=content,
                state="complete",
                statistics=statistics,
                created_at=now,
            )
            added = insert_message(connection, result)
            leaf = {"leaf_id": added.id} if is_shown else {}
            update_conversation(connection, answer.conversation_id, updated_at=now, **leaf)
            return added

    def begin_answer(self, conversation_id: int, *, model: str) -> StoredMessage:
        """Add an empty answer that streams to the branch shown."""
        token = self._writer_token()
        with self._database.writing() as connection:
            now = self._clock()
            update_conversation(connection, conversation_id, updated_at=now)
            answer = StoredMessage(
                conversation_id=conversation_id,
                role="assistant",
                content="",
                state="streaming",
                model=model,
                created_at=now,
            )
            return add_message(connection, answer, writer=token)

    def continue_answer(self, message_id: int) -> StoredMessage:
        """Let an answer that has ended stream again, from its end on."""
        self.append_text(message_id, "")
        return self.message(message_id)

    def append_text(self, message_id: int, text: str) -> None:
        """Save more of an answer, which streams from now on if it did not.

        What could not be saved is kept for `save_unsaved`, or for the next call about the same answer: after a full
        disk nothing is missing in between.
        """
        self._extend(message_id, text, state="streaming", writer=self._writer_token())

    def keep_thinking(self, message_id: int, thinking: Thinking) -> None:
        """Save what an answer has thought so far; `finish_answer` takes all of it once more, in its statistics."""
        with self._database.writing() as connection:
            query = "UPDATE messages SET statistics = json_set(statistics, '$.thinking', json(?)) WHERE id = ?"
            connection.execute(query, (to_json(thinking.to_record()), message_id))

    def finish_answer(
        self, message_id: int, *, state: EndState = "complete", statistics: Mapping[str, Any] | None = None
    ) -> StoredMessage:
        """End an answer; `statistics`, JSON values by name, replace those it has, if given."""
        self._extend(message_id, "", state=state, statistics=None if statistics is None else to_json(statistics))
        return self.message(message_id)

    def step_back(self, conversation_id: int) -> Place | None:
        """Show the version before, at the last place that has one, or what was cleared; None if there is none.

        Every call goes one version further back, in the order in which they were begun.
        """
        return self._step(conversation_id, is_back=True)

    def step_forth(self, conversation_id: int) -> Place | None:
        """Show the version after, at the last place that has one; None if there is none."""
        return self._step(conversation_id, is_back=False)

    @property
    def is_unsaved(self) -> bool:
        """Whether a part of an answer or a draft is in memory alone."""
        return bool(self._unsaved or self._unsaved_drafts)

    def unsaved(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the answers of which a part is in memory alone, and the texts of such drafts."""
        texts = (text for draft in self._unsaved_drafts.values() for text in (draft.text, draft.edit))
        return tuple(self._unsaved), tuple(text for text in texts if text)

    def save_unsaved(self) -> None:
        """Save what could not be saved before; what belongs to a conversation that was purged since is given up."""
        for message_id, unsaved in list(self._unsaved.items()):
            try:
                self._save(message_id, unsaved)
            except BadInputError:
                self._unsaved.pop(message_id, None)
        for conversation_id, draft in list(self._unsaved_drafts.items()):
            try:
                self.save_draft(conversation_id, draft)
            except BadInputError:
                self._unsaved_drafts.pop(conversation_id, None)

    def search(self, query: str) -> list[SearchHit]:
        """Find where all terms of the query occur, in titles and messages; any text is a query."""
        with self._database.reading() as connection:
            return find_hits(connection, query)

    def _update(self, conversation_id: int, **values: str | float) -> None:
        with self._database.writing() as connection:
            update_conversation(connection, conversation_id, **values)

    def _extend(
        self,
        message_id: int,
        text: str,
        *,
        state: MessageState,
        writer: str | None = None,
        statistics: str | None = None,
    ) -> None:
        """Append text to an answer; statistics None keeps those that are there."""
        before = self._unsaved.get(message_id)
        unsaved = _Unsaved(
            text=("" if before is None else before.text) + storable(text),
            state=state,
            writer=writer,
            statistics=statistics if statistics is not None or before is None else before.statistics,
        )
        self._save(message_id, unsaved)

    def _save(self, message_id: int, unsaved: _Unsaved) -> None:
        """Save what an answer has become, or keep it for later and raise."""
        try:
            with self._database.writing() as connection:
                extended = connection.execute(
                    "UPDATE messages SET content = content || ?, state = ?, writer = ?, "
                    "statistics = coalesce(?, statistics) WHERE id = ? AND role = 'assistant'",
                    (unsaved.text, unsaved.state, unsaved.writer, unsaved.statistics, message_id),
                )
                if not extended.rowcount:
                    raise unknown(f"answer {message_id}")
                if unsaved.state != "streaming":
                    connection.execute(
                        "UPDATE conversations SET updated_at = ? "
                        "WHERE id = (SELECT conversation_id FROM messages WHERE id = ?)",
                        (self._clock(), message_id),
                    )
        except ConversationStoreError:
            self._unsaved[message_id] = unsaved
            raise
        self._unsaved.pop(message_id, None)

    def _whole(self, message: StoredMessage) -> StoredMessage:
        """Return the message with what could not be saved of it."""
        unsaved = self._unsaved.get(message.id)
        if unsaved is None:
            return message
        statistics = message.statistics if unsaved.statistics is None else json.loads(unsaved.statistics)
        content = message.content + unsaved.text
        return replace(message, content=content, state=unsaved.state, statistics=statistics)

    def _step(self, conversation_id: int, *, is_back: bool) -> Place | None:
        with self._database.writing() as connection:
            leaf_id = select_conversation(connection, conversation_id).leaf_id
            tree = select_tree(connection, conversation_id)
            wanted_id = tree.neighbour(leaf_id, is_back=is_back)
            if wanted_id is None:
                return None
            go_to(connection, conversation_id, tree.latest_leaf(wanted_id))
            versions = tree.versions(wanted_id)
            is_answer = select_message(connection, wanted_id).role == "assistant"
            return Place(versions.index(wanted_id) + 1, len(versions), is_answer=is_answer, message_id=wanted_id)

    def _writer_token(self) -> str:
        if self._token is None:
            self._token = writer_token()
        return self._token

    def _stop_abandoned(self) -> None:
        """Mark answers as stopped whose process is gone."""
        with self._database.writing() as connection:
            query = "SELECT DISTINCT writer FROM messages WHERE state = 'streaming'"
            for (writer,) in connection.execute(query).fetchall():
                if writer is None or not is_writing(writer):
                    stop_answers(connection, writer)
