"""What was exported is imported exactly; nothing is written over, and nonsense is refused in a sentence."""

import json
import os
import stat
from dataclasses import replace

import pytest

from offload.errors import WriteError
from profiles.errors import BadInputError
from tests.support.conversation_factory import conversation, message
from tui.chat.store.files import (
    MAX_FILE_BYTES,
    export_conversation,
    free_export_path,
    from_json,
    import_conversation,
    to_json,
    to_markdown,
)
from tui.chat.store.records import EDITED
from tui.chat.store.store import ConversationStore

CALL = {"id": "1", "name": "files__read", "arguments": '{"path": "a"}'}
CONVERSATION = conversation(system_prompt="Be brief.", num_messages=3, leaf_id=13)
MESSAGES = (
    message(id=11, content="Zeile\nzwei ü 日本 😀\t\x1b[31m\x9b2J\u2028\r\n"),
    message(
        "assistant",
        "```py\nx\n```",
        id=12,
        parent_id=11,
        state="stopped",
        statistics={"seconds_per_token": 0.1, "by": [1, None, "ü"]},
    ),
    message(id=13, parent_id=12, content=""),
)


def without_ids(messages):
    return tuple(replace(each, id=0, conversation_id=0, parent_id=0) for each in messages)


def test_json_brings_back_everything_but_ids(tmp_path):
    path = tmp_path / "made" / "plan.json"
    export_conversation(path, CONVERSATION, MESSAGES)
    taken, messages = import_conversation(path)
    assert (taken, without_ids(messages)) == (replace(CONVERSATION, id=0, leaf_id=3), without_ids(MESSAGES))
    assert [(each.id, each.parent_id) for each in messages] == [(1, 0), (2, 1), (3, 2)]
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_store_takes_in_what_another_one_exported(tmp_path):
    path = tmp_path / "plan.json"
    with ConversationStore(None) as store:
        made = store.create_conversation(system_prompt="Be brief.")
        store.append_prompt(made.id, "What is\na ring?")
        answer = store.begin_answer(made.id, model="qwen")
        store.append_text(answer.id, "A circle")
        store.finish_answer(answer.id, state="stopped", statistics={"num_rounds": 2})
        exported = (store.conversation(made.id), store.messages(made.id))
        export_conversation(path, *exported)
    with ConversationStore(None) as other:
        other.create_conversation()
        taken = other.add_conversation(*import_conversation(path))
        assert taken == replace(exported[0], id=taken.id, updated_at=taken.updated_at, leaf_id=taken.leaf_id)
        assert without_ids(other.messages(taken.id)) == without_ids(exported[1])
        assert other.list_conversations()[0] == taken
        assert len(other.search("circle")) == 1


def test_an_answer_that_streamed_when_it_was_exported_is_taken_in_as_stopped():
    streaming = message("assistant", "half", state="streaming")
    with ConversationStore(None) as store:
        taken = store.add_conversation(*from_json(to_json(conversation(leaf_id=1), [streaming]).encode()))
        assert [(each.content, each.state) for each in store.messages(taken.id)] == [("half", "stopped")]


def test_json_is_safe_to_print_and_readable():
    text = to_json(CONVERSATION, MESSAGES)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "ü 日本 😀" in text
    assert json.loads(text)["schema_version"] == 3


def branching(store):
    """Two answers, of which the first is shown and goes on, and another prompt in place of the first."""
    made = store.create_conversation(title="My plan")
    first = store.append_prompt(made.id, "fox?")
    for text in ("red", "grey"):
        answer = store.begin_answer(made.id, model="qwen")
        store.append_text(answer.id, text)
        store.finish_answer(answer.id)
        store.branch_off(answer.id)
    store.branch_off(first.id)
    store.append_prompt(made.id, "owl?")
    store.show(2)
    store.append_prompt(made.id, "why?")
    return store.conversation(made.id), store.all_messages(made.id)


def test_json_holds_all_branches_and_markdown_the_one_that_is_shown(tmp_path):
    with ConversationStore(None) as store:
        exported = branching(store)
        export_conversation(tmp_path / "plan.json", *exported)
        export_conversation(tmp_path / "plan.md", *exported)
        expected = [each.words for each in store.branches(exported[0].id)]
    shown = (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert "fox?" in shown and "red" in shown and "why?" in shown
    assert "grey" not in shown and "owl?" not in shown
    with ConversationStore(None) as other:
        other.append_prompt(other.create_conversation().id, "something that takes the first ids")
        taken = other.add_conversation(*import_conversation(tmp_path / "plan.json"))
        assert [each.content for each in other.messages(taken.id)] == ["fox?", "red", "why?"]
        assert [each.words for each in other.branches(taken.id)] == expected == ["red", "owl?", "grey"]
        assert taken.num_messages == 3


def test_a_file_of_before_there_were_branches_is_one_branch(tmp_path):
    record = json.loads(to_json(CONVERSATION, MESSAGES))
    del record["shown_until"]
    for each in record["messages"]:
        del each["follows"]
    taken, messages = from_json(json.dumps(record | {"schema_version": 1}).encode())
    assert (taken.leaf_id, taken.num_messages) == (3, 3)
    assert [(each.id, each.parent_id) for each in messages] == [(1, 0), (2, 1), (3, 2)]
    assert without_ids(messages) == without_ids(MESSAGES)


def test_calls_and_what_tools_said_come_back_from_json():
    with ConversationStore(None) as store:
        made = store.create_conversation()
        store.append_prompt(made.id, "What is in it?")
        answer = store.begin_answer(made.id, model="m")
        store.finish_answer(answer.id, statistics={"call": CALL})
        store.append_result(answer.id, "all \x1b[2J of it", statistics={"call": CALL, "outcome": "failed"})
        exported = store.conversation(made.id), store.all_messages(made.id)
        taken = store.add_conversation(*from_json(to_json(*exported).encode()))
        assert without_ids(store.messages(taken.id)) == without_ids(exported[1])
        assert [(each.role, each.outcome) for each in store.messages(taken.id)][-1] == ("tool", "failed")


def test_markdown_has_calls_and_results_as_code_that_nothing_in_them_ends():
    """What a tool said may look like a heading of the file, or like the end of its block."""
    answer = message("assistant", "", id=1, statistics={"call": CALL})
    said = message(
        "tool", "```\n## Prompt\n\x1b[2J", id=2, parent_id=1, statistics={"call": CALL, "outcome": "refused"}
    )
    text = to_markdown(conversation(leaf_id=2), [answer, said])
    assert 'Calls `files__read` with\n\n```json\n{"path": "a"}\n```' in text
    assert "## What files__read said (refused)\n\n````\n```\n## Prompt\n␛[2J\n````" in text


def test_an_empty_conversation_is_exported_and_imported():
    empty = conversation()
    assert from_json(to_json(empty, ()).encode()) == (replace(empty, id=0), ())


def test_markdown_reads_like_the_conversation():
    messages = (
        message(content="What is a ring?"),
        message("assistant", "A *circle*.\r\n\n\x1b]0;t\x07"),
        message(content="More"),
        message("assistant", "", state="failed", model=""),
    )
    assert to_markdown(CONVERSATION, messages) == (
        "# My plan\n\n"
        "*Begun 2027-01-15 08:00 UTC in Overstory.*\n\n"
        "## System prompt\n\nBe brief.\n\n"
        "## Prompt\n\nWhat is a ring?\n\n"
        "## Answer (qwen)\n\nA *circle*.\n\n␛]0;t␇\n\n"
        "## Prompt\n\nMore\n\n"
        "## Answer (failed)\n"
    )


def test_an_answer_that_a_person_edited_says_so_in_markdown_and_comes_back_from_json(tmp_path):
    with ConversationStore(None) as store:
        made = store.create_conversation()
        store.append_prompt(made.id, "Tell.")
        answer = store.begin_answer(made.id, model="qwen")
        store.append_text(answer.id, "Once upon a fox")
        store.finish_answer(answer.id, statistics={"finish_reason": EDITED})
        kept, messages = store.conversation(made.id), store.messages(made.id)
    assert "## Answer (qwen, edited)\n\nOnce upon a fox\n" in to_markdown(kept, messages)
    assert without_ids(from_json(to_json(kept, messages).encode())[1]) == without_ids(messages)


def test_markdown_of_an_empty_conversation_is_its_title():
    assert to_markdown(conversation(title=""), []) == ("# Conversation\n\n*Begun 2027-01-15 08:00 UTC in Overstory.*\n")


def test_the_suffix_says_what_is_written(tmp_path):
    export_conversation(tmp_path / "plan.MD", CONVERSATION, MESSAGES)
    assert (tmp_path / "plan.MD").read_text(encoding="utf-8") == to_markdown(CONVERSATION, MESSAGES)
    with pytest.raises(BadInputError, match=r"plan\.txt must end in \.md or \.json"):
        export_conversation(tmp_path / "plan.txt", CONVERSATION, MESSAGES)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_over(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(BadInputError, match=r"plan\.json is there already; give another name"):
        export_conversation(path, CONVERSATION, MESSAGES)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"plan\.md cannot be written: .*; make room, or give a folder"):
        export_conversation(tmp_path / "file" / "plan.md", CONVERSATION, MESSAGES)


@pytest.mark.parametrize(
    ("title", "stem"),
    [
        ("My Plan: a/b\\c..", "2027-01-15-my-plan-a-b-c"),
        ("../../etc/passwd", "2027-01-15-etc-passwd"),
        ("日本 Überblick", "2027-01-15-日本-überblick"),
        ("", "2027-01-15-conversation"),
        ("\x1b[2J", "2027-01-15-2j"),
        ("x" * 300, "2027-01-15-" + "x" * 50),
    ],
)
def test_a_file_is_named_after_day_and_title(tmp_path, title, stem):
    made = conversation(title=title)
    for name in (f"{stem}.md", f"{stem}-2.md", f"{stem}-3.md"):
        path = free_export_path(tmp_path, made, suffix=".md")
        assert path == tmp_path / name
        export_conversation(path, made, [])


RECORD = json.loads(to_json(CONVERSATION, MESSAGES))


def changed(**fields):
    return json.dumps({**RECORD, **fields}).encode()


def with_message(**fields):
    return changed(messages=[RECORD["messages"][0], {**RECORD["messages"][1], **fields}])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode byte"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[]", "it does not say that its format is 'overstory conversation'"),
        (b'{"format": 1}', "it does not say that its format is"),
        (b'{"format": "a", "format": "b"}', "the key 'format' stands twice"),
        (changed(schema_version=4), "its schema_version is 4, and this program reads 1 to 3"),
        (changed(schema_version=True), "its schema_version is True, and this program reads 1 to 3"),
        (changed(schema_version=1), "the conversation has 'shown_until', which this program does not know"),
        (changed(shown_until=4), "shown_until is 4, and must be a number from 0 to 3"),
        (changed(shown_until=None), "shown_until is None, and must be a number from 0 to 3"),
        (with_message(follows=2), "messages[1].follows is 2, and must be a number from 0 to 1"),
        (with_message(follows=-1), "messages[1].follows is -1, and must be a number from 0 to 1"),
        (with_message(follows=True), "messages[1].follows is True, and must be a number from 0 to 1"),
        (changed(more=1), "the conversation has 'more', which this program does not know"),
        (changed(title=None), "title is None; expected a text"),
        (changed(system_prompt=1), "system_prompt is 1; expected a text"),
        (changed(created_at="now"), "created_at is 'now'; expected a number"),
        (changed(updated_at=1e12), "updated_at is 1000000000000.0; expected a number, at most 1e+11"),
        (changed(messages={}), "messages is {}; expected a list"),
        (changed(messages=["x"]), "messages[0] is 'x'; expected an object"),
        (
            changed(messages=[{"role": "user"}]),
            "messages[0] has no follows, content, state, model, statistics, created_at",
        ),
        (with_message(role="system"), "messages[1].role is 'system'; expected one of user, assistant, tool"),
        (with_message(role=["user"]), "messages[1].role is ['user']; expected a text"),
        (
            with_message(state="done"),
            "messages[1].state is 'done'; expected one of complete, stopped, failed, streaming",
        ),
        (with_message(content=3), "messages[1].content is 3; expected a text"),
        (with_message(model=None), "messages[1].model is None; expected a text"),
        (with_message(statistics=[]), "messages[1].statistics is []; expected an object"),
        (with_message(created_at=True), "messages[1].created_at is True; expected a number"),
        (with_message(**{"\x1b[2J": 1}), "messages[1] has '\\x1b[2J', which this program does not know"),
        (changed(created_at=float("nan")), "'NaN' is not a finite number"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(tmp_path, content, reason):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        import_conversation(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is no conversation that can be imported: ") and reason in sentence
    assert sentence.endswith("; give a .json file that the chat app exported") and sentence.isprintable()


def test_a_file_that_is_not_there_or_too_large_is_one_sentence(tmp_path):
    with pytest.raises(BadInputError, match=r"plan\.json cannot be read: No such file"):
        import_conversation(tmp_path / "plan.json")
    with pytest.raises(BadInputError, match="cannot be read"):
        import_conversation(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadInputError, match="it has more than 67108864 bytes"):
        import_conversation(tmp_path / "large.json")
