"""Questions and answers are kept where the chat keeps its own, and can be gone on with."""

from pathlib import Path

import pytest

from profiles.errors import BadInputError
from runtime.prompts.prompt_file import Message
from tui.ask.kept import LAST_FILE, kept_conversation
from tui.ask.pieces import Ended, Said, Waits
from tui.chat.store.records import Thinking
from tui.commands.chat import open_conversations


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVERSTORY_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def ask(question: str, *answer: str, goes_on: bool = False, system: str | None = None) -> tuple[Message, ...]:
    """Keep a question with its answer, and return what the model was shown."""
    with kept_conversation(goes_on=goes_on, is_kept=True) as kept:
        messages = kept.messages(question, system=system)
        kept.begin(question, system=system, model="tiny")
        for piece in (Waits("reading"), Said("hm", is_thinking=True), *map(Said, answer)):
            kept.add(piece)
        kept.add(Ended(finish_reason="stop", usage={"completion_tokens": 2}))
    return messages


def test_the_chat_shows_what_was_asked() -> None:
    assert ask("Hi?", "Hello ", "there.", system="Be brief.") == (
        Message("system", "Be brief."),
        Message("user", "Hi?"),
    )
    store, _ = open_conversations()
    with store:
        (conversation,) = store.list_conversations()
        assert (conversation.title, conversation.system_prompt) == ("Hi?", "Be brief.")
        prompt, answer = store.messages(conversation.id)
        assert (prompt.content, answer.content) == ("Hi?", "Hello there.")
        assert (answer.state, answer.model, answer.statistics["num_new_tokens"]) == ("complete", "tiny", 2)
        assert answer.thinking == Thinking(text="hm")


def test_a_conversation_can_be_gone_on_with() -> None:
    ask("Hi?", "Hello.", system="Be brief.")
    shown = ask("And you?", "Fine.", goes_on=True)
    assert shown[2].reasoning_content == "hm"
    turns = [(each.role, each.content) for each in shown]
    assert turns == [("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "And you?")]
    shown = ask("Long?", "Yes.", goes_on=True, system="Be long.")
    assert shown[0] == Message("system", "Be long.") and len(shown) == 6
    ask("Something else?", "No.")
    assert len(ask("Further?", "Yes.", goes_on=True)) == 3
    store, _ = open_conversations()
    with store:
        assert [each.num_messages for each in store.list_conversations()] == [4, 6]
        assert store.list_conversations()[1].system_prompt == "Be long."


def test_a_question_without_an_answer_is_asked_with_the_next_one() -> None:
    with kept_conversation(goes_on=False, is_kept=True) as kept:
        kept.begin("Hi?", system=None, model="tiny")
        kept.end("stopped")
    assert ask("There?", "Yes.", goes_on=True) == (Message("user", "Hi?\n\nThere?"),)


def test_what_is_broken_off_stays() -> None:
    with kept_conversation(goes_on=False, is_kept=True) as kept:
        kept.begin("Hi?", system=None, model="tiny")
        kept.add(Said("Hel"))
        kept.end("failed", error="out of memory")
        kept.add(Said("lo"))
    store, _ = open_conversations()
    with store:
        (conversation,) = store.list_conversations()
        _, answer = store.messages(conversation.id)
        assert (answer.content, answer.state, answer.statistics["error"]) == ("Hel", "failed", "out of memory")


def test_nothing_is_kept_unless_it_is_wanted(data_folder: Path) -> None:
    with kept_conversation(goes_on=False, is_kept=False) as kept:
        assert kept.messages("Hi?", system=None) == (Message("user", "Hi?"),)
        kept.begin("Hi?", system=None, model="tiny")
        kept.add(Said("Hello."))
        kept.end("complete")
    assert not data_folder.exists()
    ask("Hi?", "Hello.")
    with kept_conversation(goes_on=True, is_kept=False) as kept:
        assert len(kept.messages("And?", system=None)) == 3
        kept.begin("And?", system=None, model="tiny")
        kept.add(Said("No."))
        kept.end("complete")
    assert len(ask("Then?", "Yes.", goes_on=True)) == 3


def test_without_a_conversation_there_is_none_to_go_on_with(data_folder: Path) -> None:
    for content in (None, b"", b"[]", b'{"conversation_id": "x"}', b'{"id": 1}'):
        if content is not None:
            (data_folder / LAST_FILE).write_bytes(content)
        with (
            pytest.raises(BadInputError, match="there is no conversation of ask to continue; leave out --continue"),
            kept_conversation(goes_on=True, is_kept=True),
        ):
            pass
    (data_folder / LAST_FILE).write_text('{"conversation_id": 99}')
    with (
        pytest.raises(BadInputError, match="the last conversation of ask was deleted; leave out --continue"),
        kept_conversation(goes_on=True, is_kept=True),
    ):
        pass


def test_an_answer_that_cannot_be_kept_comes_all_the_same(
    data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_folder.write_text("a file where the folder should be")
    assert ask("Hi?", "Hello.") == (Message("user", "Hi?"),)
    told = capsys.readouterr().err
    assert told.count("overstory: ") == 2
    assert "nothing that is said now will be kept" in told and "question and answer are not kept" in told
