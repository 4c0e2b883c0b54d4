"""Conversations of other programs are read as far as they are words, and what is left out is counted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.errors import BadInputError
from tests.support.conversation_factory import conversation, message
from tui.chat.store.files import to_json
from tui.chat.store.foreign import MAX_FOREIGN_BYTES, import_conversations, left_out_words, read_foreign


def node(name, parent, role="user", parts=("",), **fields):
    content = {"content_type": fields.pop("kind", "text"), "parts": list(parts)}
    said = {"id": name, "author": {"role": role}, "content": content, "create_time": 1.7e9, **fields}
    return {"id": name, "message": said, "parent": parent, "children": []}


def export(*nodes, current="d", **fields):
    """A conversation as ChatGPT exports it: a tree, whose nodes name their parents."""
    tree = {"root": {"id": "root", "message": None, "parent": None}, **{each["id"]: each for each in nodes}}
    return {"title": "Foxes", "create_time": 1.6e9, "update_time": 1.65e9, "mapping": tree, "current_node": current}


TREE = export(
    node("s", "root", "system", ["Be brief."]),
    node("a", "s", "user", ["About foxes?", {"content_type": "image_asset_pointer", "asset_pointer": "file://1"}]),
    node("b", "a", "assistant", ["The other branch."]),
    node("c", "a", "assistant", ["They sleep."], metadata={"model_slug": "gpt-4o"}),
    node("t", "c", "assistant", ["print(1)"], kind="code", recipient="python"),
    node("r", "t", "tool", ["1"]),
    node("h", "r", "user", ["hidden"], metadata={"is_visually_hidden_from_conversation": True}),
    node("d", "h", "assistant", ["And hunt."]),
)
SHAREGPT = {"id": "x1", "conversations": [{"from": "human", "value": "Owls?\nNow"}, {"from": "gpt", "value": "Hello."}]}
PLAIN = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
}


def read(*records):
    return read_foreign(json.dumps(records if len(records) > 1 else records[0]).encode())


def turns(found):
    return [(each.role, each.content) for each in found.messages]


def test_of_a_tree_the_branch_that_was_open_is_read():
    (found,) = read(TREE)
    assert turns(found) == [("user", "About foxes?"), ("assistant", "They sleep."), ("assistant", "And hunt.")]
    assert [each.model for each in found.messages] == ["", "gpt-4o", ""]
    read_as = found.conversation
    assert (read_as.title, read_as.system_prompt, read_as.num_messages) == ("Foxes", "Be brief.", 3)
    assert (read_as.created_at, read_as.updated_at, found.messages[0].created_at) == (1.6e9, 1.65e9, 1.7e9)
    assert left_out_words(found.left_out) == "1 call of a tool, 1 image and 1 result of a tool left out"
    (other,) = read({**TREE, "current_node": "b"})
    assert turns(other)[-1] == ("assistant", "The other branch.")


def test_without_a_current_node_the_newest_is_the_end_and_circles_end():
    later = node("e", "a", "assistant", ["Newest."], create_time=1.8e9)
    (found,) = read({**TREE, "mapping": {**TREE["mapping"], "e": later}, "current_node": None})
    assert turns(found) == [("user", "About foxes?"), ("assistant", "Newest.")]
    (round_,) = read(export(node("a", "b", parts=["One"]), node("b", "a", "assistant", ["Two"]), current="b"))
    assert turns(round_) == [("user", "One"), ("assistant", "Two")]


def test_lists_of_messages_and_of_sharegpt_are_read_with_a_title_of_the_first_prompt():
    plain, share = read(PLAIN, SHAREGPT)
    assert turns(plain) == [("user", "See:"), ("assistant", "It is 42.")]
    assert (plain.conversation.title, plain.conversation.system_prompt) == ("See:", "Be kind.")
    assert left_out_words(plain.left_out) == "1 call of a tool, 1 image and 1 result of a tool left out"
    assert turns(share) == [("user", "Owls?\nNow"), ("assistant", "Hello.")] and left_out_words(share.left_out) == ""


def test_many_stand_in_a_list_in_lines_or_under_a_name():
    lines = "\n".join(json.dumps(each) for each in (SHAREGPT, PLAIN, TREE)).encode()
    listed = json.dumps({"items": [SHAREGPT, PLAIN, TREE]}).encode()
    for raw in (lines, listed, json.dumps([SHAREGPT, {"other": 1}, PLAIN, 3, TREE]).encode()):
        assert [len(each.messages) for each in read_foreign(raw)] == [2, 2, 3]
    (alone,) = read_foreign(json.dumps(PLAIN["messages"]).encode())
    assert len(alone.messages) == 2


def test_conversations_that_hold_nothing_are_none():
    assert read(export(node("d", "root", parts=[""]))) == []
    assert read({"messages": []}) == [] and read({"conversations": "x"}) == [] and read(3) == []


NAMES = [
    *("mapping", "messages", "conversations", "message", "author", "role", "content", "parts", "parent", "from", "d"),
    *("value", "current_node", "create_time", "metadata", "title", "type", "text", "content_type", "items"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from("ud"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_no_json_breaks_the_reader(record):
    for found in read_foreign(json.dumps(record).encode()):
        assert found.messages and all(each.content.strip() for each in found.messages)


def test_our_own_files_are_read_exactly(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(to_json(conversation(), [message(content="Hi")]), encoding="utf-8")
    (found,) = import_conversations(path)
    assert turns(found) == [("user", "Hi")] and found.conversation.title == conversation().title
    path.write_text(path.read_text(encoding="utf-8").replace('"content"', '"contents"'), encoding="utf-8")
    with pytest.raises(BadInputError, match="has no content"):
        import_conversations(path)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    path = tmp_path / "file.json"
    for content, words in (
        (b"[" * 100_000, "it is nested too deeply"),
        (b"{}", "of no form that is known"),
        (b'{"messages": []}\nno\n', "line 2 is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInputError) as caught:
            import_conversations(path)
        assert words in str(caught.value) and "is no conversation that can be imported" in str(caught.value)
        assert str(caught.value).isprintable()
    with path.open("wb") as file:
        file.truncate(MAX_FOREIGN_BYTES + 1)
    with pytest.raises(BadInputError, match="it has more than 268435456 bytes"):
        import_conversations(path)
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        import_conversations(tmp_path / "gone.json")
