"""A dialogue's branches against a model that keeps nothing but who follows whom, and in which order ends were left."""

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config import EngineConfig
from tests.support.chat_fakes import LOADED, FakeEngine
from tests.support.dialogues import answered
from tui.chat.dialogue import Dialogue
from tui.chat.store.store import ConversationStore

ACTS = ("ask", "edit prompt", "edit answer", "regenerate", "version before", "version after", "branch")


class Model:
    """All by brute force: every question goes through all messages."""

    def __init__(self):
        self.parents, self.texts, self.shown, self.left = {}, {}, [], []

    def add(self, text, *, before=None):
        """Let a message follow what is shown, or take a shown one's place."""
        if before is not None:
            self.left.append(self.shown[-1])
            self.shown = self.shown[: self.shown.index(before)]
        new_id = len(self.parents) + 1
        self.parents[new_id] = self.shown[-1] if self.shown else 0
        self.texts[new_id] = text
        self.shown.append(new_id)

    def versions(self, message_id):
        return [each for each, parent in self.parents.items() if parent == self.parents[message_id]]

    def path(self, message_id):
        return [] if message_id == 0 else [*self.path(self.parents[message_id]), message_id]

    def leaves(self):
        return [each for each in self.parents if each not in self.parents.values()]

    def show(self, message_id):
        if message_id in self.shown:
            return
        below = [each for each in self.parents if message_id in self.path(each)]
        left = [each for each in self.left if each in below]
        self.left.append(self.shown[-1])
        self.shown = self.path(left[-1] if left else max(below))


def perform(act, choice, dialogue, model, number):
    """Do one thing to both; `choice` chooses where."""
    if not model.shown or act == "ask":
        dialogue.ask(f"prompt {number}")
        model.add(f"prompt {number}")
        answered(dialogue, f"answer {number}")
        model.add(f"answer {number}")
        return
    place = choice % len(model.shown)
    message_id = model.shown[place]
    if act in ("edit prompt", "edit answer"):
        message_id = model.shown[place - place % 2 + (act == "edit answer")]
        dialogue.edit(message_id)
        dialogue.ask(f"changed {number}")
        model.add(f"changed {number}", before=message_id)
        if act == "edit prompt":
            answered(dialogue, f"answer {number}")
            model.add(f"answer {number}")
    elif act == "regenerate":
        dialogue.regenerate(message_id)
        answered(dialogue, f"answer {number}")
        model.add(f"answer {number}", before=model.shown[place | 1])
    elif act == "branch":
        leaf_id = model.leaves()[choice % len(model.leaves())]
        dialogue.show_branch(leaf_id)
        model.show(leaf_id)
    else:
        versions = model.versions(message_id)
        index = versions.index(message_id) + (1 if act == "version after" else -1)
        dialogue.show_version(message_id, step=1 if act == "version after" else -1)
        if 0 <= index < len(versions):
            model.show(versions[index])


@settings(max_examples=40, deadline=None)
@given(acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 99)), min_size=4, max_size=16))
def test_whatever_is_done_with_turns_the_branch_shown_is_that_of_the_model_and_nothing_is_lost(acts):
    with ConversationStore(None) as store:
        engine = FakeEngine(lambda request: ())
        dialogue, model = Dialogue(store, engine), Model()
        dialogue.load(EngineConfig(target="tiny"))
        dialogue.take(LOADED)
        for number, (act, choice) in enumerate(acts):
            perform(act, choice, dialogue, model, number)
            shown = [(each.id, each.content) for each in dialogue.messages()]
            assert shown == [(each, model.texts[each]) for each in model.shown]
            several = {each: tuple(model.versions(each)) for each in model.shown if len(model.versions(each)) > 1}
            assert dialogue.versions() == several
            branches = store.branches(dialogue.conversation_id)
            assert [each.leaf_id for each in branches] == model.leaves()[::-1]
            for branch in branches:
                path = model.path(branch.leaf_id)
                parting = next((each for each in reversed(path) if len(model.versions(each)) > 1), path[0])
                assert (branch.num_messages, branch.parting_number) == (len(path), path.index(parting) + 1)
                assert (branch.words, branch.is_shown) == (model.texts[parting], path == model.shown)
        kept = {each.id: each.content for each in store.all_messages(dialogue.conversation_id)}
        assert kept == model.texts
