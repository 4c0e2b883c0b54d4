"""A tree of messages against brute force, and what a store makes of it: nothing is out of reach."""

import random

import pytest

from tui.chat.store.branches import ROOT, MessageTree, Node, Place
from tui.chat.store.store import ConversationStore


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


def contents(store, conversation):
    return [each.content for each in store.messages(conversation.id)]


def answer(store, conversation, text):
    message = store.begin_answer(conversation.id, model="m")
    store.append_text(message.id, text)
    return store.finish_answer(message.id)


def test_every_answer_is_reached_in_the_order_in_which_they_were_begun(store):
    conversation = store.create_conversation()
    store.append_prompt(conversation.id, "question")
    ids = []
    for text in "ABCD":
        message = answer(store, conversation, text)
        ids.append(message.id)
        if text != "D":
            store.branch_off(message.id)
    places = [store.step_back(conversation.id) for _ in range(4)]
    assert places == [*(Place(number, 4, True, ids[number - 1]) for number in (3, 2, 1)), None]
    assert contents(store, conversation) == ["question", "A"]
    assert [store.step_forth(conversation.id) is not None for _ in range(4)] == [True, True, True, False]
    assert contents(store, conversation) == ["question", "D"]


def test_what_was_cleared_last_comes_back_first_whichever_is_older(store):
    conversation = store.create_conversation()
    first = store.append_prompt(conversation.id, "older")
    store.branch_off(first.id)
    second = store.append_prompt(conversation.id, "newer")
    store.step_back(conversation.id)
    store.branch_off(first.id)
    assert contents(store, conversation) == []
    store.step_back(conversation.id)
    assert contents(store, conversation) == ["older"]
    store.step_forth(conversation.id)
    assert contents(store, conversation) == [second.content]


def test_no_message_is_ever_out_of_reach(store):
    """Whatever was asked, written anew, edited and undone: going back to the end and forth shows every message."""
    for seed in range(20):
        choose = random.Random(seed)
        conversation = store.create_conversation()
        written = set()
        for number in range(12):
            shown = store.messages(conversation.id)
            act = choose.choice(("ask", "again", "edit", "back", "back", "forth"))
            if act == "back":
                store.step_back(conversation.id)
                continue
            if act == "forth":
                store.step_forth(conversation.id)
                continue
            wanted = "assistant" if act == "again" else "user"
            if act != "ask" and (same := [each.id for each in shown if each.role == wanted]):
                store.branch_off(same[-1])
            if act != "again" or not shown:
                store.append_prompt(conversation.id, f"prompt {number}")
                written.add(f"prompt {number}")
            answer(store, conversation, f"answer {number}")
            written.add(f"answer {number}")
        seen = set()
        for step in (store.step_back, store.step_forth):
            for _ in range(200):
                seen.update(contents(store, conversation))
                if step(conversation.id) is None:
                    break
        assert seen == written, seed


def random_nodes(choose, *, num_nodes):
    nodes = []
    for number in range(1, num_nodes + 1):
        parent_id = choose.choice([ROOT, *(node.id for node in nodes)])
        nodes.append(Node(number, parent_id, choose.choice((0, number))))
    return nodes


def below(nodes, message_id):
    """Itself and all that follow it, directly or not."""
    found = {message_id}
    for node in nodes:
        found |= {node.id} if node.parent_id in found else set()
    return found


def test_the_tree_is_what_its_nodes_say():
    for seed in range(200):
        choose = random.Random(seed)
        nodes = random_nodes(choose, num_nodes=choose.randint(1, 12))
        tree, by_id = MessageTree(choose.sample(nodes, len(nodes))), {node.id: node for node in nodes}
        leaves = tree.leaves()
        assert set(leaves) == {node.id for node in nodes} - {node.parent_id for node in nodes}
        for node in nodes:
            path = tree.path(node.id)
            assert set(path) == {each.id for each in nodes if node.id in below(nodes, each.id)}
            assert list(path) == sorted(path)
            assert tree.versions(node.id) == tuple(each.id for each in nodes if each.parent_id == node.parent_id)
            assert tree.latest_leaf(node.id) == max(
                below(nodes, node.id), key=lambda each: (by_id[each].last_shown, each)
            )
        partings = [tree.parting(leaf_id) for leaf_id in leaves]
        assert len(set(partings)) == len(leaves), seed  # each tells its branch from all others


def test_an_empty_tree_has_no_branch():
    tree = MessageTree(())
    assert tree.path(ROOT) == tree.leaves() == ()
    assert tree.neighbour(ROOT, is_back=True) is tree.neighbour(ROOT, is_back=False) is None


def test_a_damaged_file_that_leads_in_a_circle_ends():
    tree = MessageTree([Node(1, 2), Node(2, 1), Node(3, 3)])
    assert (tree.path(2), tree.path(3)) == ((1, 2), (3,))


def forest(store):
    """Two prompts, the first with two answers of which the first one goes on; all by what they say."""
    conversation = store.create_conversation()
    named = {"fox?": store.append_prompt(conversation.id, "fox?").id}
    named["red"] = answer(store, conversation, "red").id
    named["why?"] = store.append_prompt(conversation.id, "why?").id
    named["so"] = answer(store, conversation, "so").id
    store.branch_off(named["red"])
    named["grey"] = answer(store, conversation, "grey").id
    store.branch_off(named["fox?"])
    named["owl?"] = store.append_prompt(conversation.id, "owl?").id
    return conversation, named


def test_going_to_a_message_shows_the_end_of_its_branch_that_was_shown_last(store):
    conversation, named = forest(store)
    assert contents(store, conversation) == ["owl?"]
    store.show(named["fox?"])
    assert contents(store, conversation) == ["fox?", "grey"]
    store.show(named["red"])
    assert contents(store, conversation) == ["fox?", "red", "why?", "so"]
    store.show(named["why?"])  # which is shown already
    store.show(named["owl?"])
    store.show(named["fox?"])
    assert contents(store, conversation) == ["fox?", "red", "why?", "so"]
    assert store.conversation(conversation.id).num_messages == 4


def test_what_is_added_goes_to_the_branch_that_is_shown(store):
    conversation, named = forest(store)
    store.show(named["grey"])
    added = store.append_prompt(conversation.id, "more?")
    assert added.parent_id == named["grey"]
    store.show(named["so"])
    assert contents(store, conversation) == ["fox?", "red", "why?", "so"]


def test_versions_are_told_where_there_are_several(store):
    conversation, named = forest(store)
    assert store.versions(conversation.id) == {named["owl?"]: (named["fox?"], named["owl?"])}
    store.show(named["so"])
    assert store.versions(conversation.id) == {
        named["fox?"]: (named["fox?"], named["owl?"]),
        named["red"]: (named["red"], named["grey"]),
    }
    assert store.versions_of(named["grey"]) == (named["red"], named["grey"])


def test_branches_are_told_apart_by_where_they_part(store):
    conversation, named = forest(store)
    found = [(each.leaf_id, each.role, each.words, each.follows) for each in store.branches(conversation.id)]
    assert found == [
        (named["owl?"], "user", "owl?", ""),
        (named["grey"], "assistant", "grey", "fox?"),
        (named["so"], "assistant", "red", "fox?"),
    ]
    assert [each.num_messages for each in store.branches(conversation.id)] == [1, 2, 4]
    assert [each.parting_number for each in store.branches(conversation.id)] == [1, 2, 2]
    assert [each.is_shown for each in store.branches(conversation.id)] == [True, False, False]
    assert store.branches(store.create_conversation().id) == []


def test_what_is_left_out_is_left_out_on_all_branches_that_have_it(store):
    conversation, named = forest(store)
    store.show(named["so"])
    store.leave_out_before(conversation.id, named["why?"])
    assert [each.is_left_out for each in store.messages(conversation.id)] == [True, True, False, False]
    store.show(named["grey"])
    assert [each.is_left_out for each in store.messages(conversation.id)] == [True, False]
    store.show(named["owl?"])
    assert [each.is_left_out for each in store.messages(conversation.id)] == [False]
    store.show(named["so"])
    store.leave_out_before(conversation.id, 0)
    assert not any(each.is_left_out for each in store.all_messages(conversation.id))


def test_messages_of_all_branches_are_found_and_told(store):
    conversation, named = forest(store)
    assert [each.content for each in store.all_messages(conversation.id)] == list(named)
    assert [hit.message_id for hit in store.search("grey")] == [named["grey"]]
    assert [each.content for each in store.messages_until(named["why?"])] == ["fox?", "red", "why?"]
    assert store.recent_prompts(limit=9) == ["fox?", "why?", "owl?"]


def test_a_branch_is_shown_again_after_a_restart(tmp_path):
    path = tmp_path / "conversations.db"
    with ConversationStore(path) as store:
        conversation, named = forest(store)
        store.show(named["so"])
    with ConversationStore(path) as store:
        assert contents(store, conversation) == ["fox?", "red", "why?", "so"]
        store.show(named["grey"])
        store.show(named["fox?"])
        assert contents(store, conversation) == ["fox?", "grey"]
