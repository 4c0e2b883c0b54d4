"""What was saved stays, whatever ends the process, writes beside it or fills the disk."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.paths import ROOT
from tui.chat.store.database import ConversationStoreError
from tui.chat.store.store import ConversationStore

WRITER = """
import itertools, sys
from pathlib import Path
from tui.chat.store.store import ConversationStore
store = ConversationStore(Path(sys.argv[1]))
conversation = store.create_conversation()
store.append_prompt(conversation.id, "count")
message = store.begin_answer(conversation.id, model="m")
for number in itertools.count():
    store.append_text(message.id, f"{number} ")
    print(number, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_killed_process_loses_at_most_the_last_round(tmp_path):
    """The process is killed while it appends; what it said it had saved is there, and not a piece twice."""
    path = tmp_path / "conversations.db"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        with ConversationStore(path) as other:
            (conversation,) = other.list_conversations()
            assert other.messages(conversation.id)[1].state == "streaming"  # its process lives
        os.kill(writer.pid, signal.SIGKILL)
        said = 19 + len(writer.stdout.read().split())
    with ConversationStore(path) as store:
        prompt, message = store.messages(conversation.id)
        assert (prompt.content, message.state) == ("count", "stopped")
        numbers = [int(word) for word in message.content.split()]
        assert numbers == list(range(len(numbers)))
        assert said <= numbers[-1] <= said + 1
        assert [hit.conversation_id for hit in store.search("18 19")] == [message.conversation_id]


CHATTER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tui.chat.store.store import ConversationStore
with ConversationStore(Path(sys.argv[1])) as store:
    message = store.begin_answer(store.create_conversation(title=sys.argv[2]).id, model="m")
    for number in range(100):
        store.append_text(message.id, f"{number} ")
    print(store.finish_answer(message.id).content)
"""


def test_two_instances_share_one_database(tmp_path):
    """They start together, and each writes an answer while the other does."""
    path = tmp_path / "conversations.db"
    commands = [[sys.executable, "-c", CHATTER, str(path), title] for title in "ab"]
    instances = [subprocess.Popen(each, cwd=ROOT, stdout=subprocess.PIPE, text=True) for each in commands]
    texts = [instance.communicate()[0].split() for instance in instances]
    assert texts == [[str(number) for number in range(100)]] * 2
    with ConversationStore(path) as store:
        assert sorted(each.title for each in store.list_conversations()) == ["a", "b"]


def test_one_store_serves_many_threads(tmp_path):
    """The app saves from a thread while its list of conversations is drawn from another."""
    with ConversationStore(tmp_path / "conversations.db") as store:

        def chat(title):
            message = store.begin_answer(store.create_conversation(title=title).id, model="m")
            for number in range(50):
                store.append_text(message.id, f"{number} ")
                store.list_conversations()
            return store.finish_answer(message.id).content.split()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(chat, "abcd")) == [[str(number) for number in range(50)]] * 4


def test_a_full_disk_is_one_sentence_and_leaves_no_gap(tmp_path):
    """Text that found no room is saved with what comes once there is room again."""
    path = tmp_path / "conversations.db"
    with ConversationStore(path) as store:
        message = store.begin_answer(store.create_conversation().id, model="m")
        limit_pages(store, 1)
        pieces = [f"{number:010d}" * 100 for number in range(40)]
        failures = []
        for piece in pieces[:-1]:
            try:
                store.append_text(message.id, piece)
            except ConversationStoreError as error:
                failures.append(str(error))
        assert failures and set(failures) == {f"{path}: the disk is full; make room, nothing that was saved is lost"}
        limit_pages(store, 100_000)
        store.append_text(message.id, pieces[-1])
        assert store.finish_answer(message.id).content == "".join(pieces)


def limit_pages(store, num_pages):
    with store._database.reading() as connection:
        connection.execute(f"PRAGMA max_page_count = {num_pages}")
