"""Every task has a reply, and what goes wrong in one is a sentence that leaves the desk ready for the next."""

from pathlib import Path

import pytest

from runtime.prompts.prompt_file import Message
from runtime.tokenizer import messages as m
from runtime.tokenizer.desk import Desk
from tests.support.model_factory import build_tokenizer, save_tiny_tokenizer


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk()
    assert ask(desk, m.Load(1, bytes(save_tiny_tokenizer(tmp_path)))) == m.Loaded(2, True, 96)
    return desk


def ask(desk: Desk, task: m.Task, *dropped_keys: int) -> m.Reply:
    return desk.reply(m.Request(task, 1.0, list(dropped_keys)))


def test_a_prompt_and_its_answer(desk: Desk) -> None:
    ids = build_tokenizer()("the cat")["input_ids"]
    assert ask(desk, m.Encode(1, "the cat")) == m.Encoded(ids)
    assert ask(desk, m.EncodePair(1, "the cat", " sat")) == m.EncodedPair(ids, build_tokenizer()(" sat")["input_ids"])
    assert isinstance(ask(desk, m.EncodeConversation(1, (Message("user", "the cat"),), False)), m.Encoded)
    assert ask(desk, m.Begin(1, 2, ["a"], [], [], [5])) == m.Text("<|user|>")
    assert ask(desk, m.Add(2, ids)) == m.Released("the c", ids.index(build_tokenizer()("a")["input_ids"][0]) + 1, True)
    assert ask(desk, m.End(2)) == m.Ended("", "the c", ids.index(build_tokenizer()("a")["input_ids"][0]), "a")
    assert ask(desk, m.Describe(1, [*ids[:1], 2], True)) == m.Described([("the", b"the"), ("</s>", None)])
    assert ask(desk, m.Name(1, 2)) == m.Text("'</s>'")


def test_two_tokenizers_are_compared(desk: Desk, tmp_path: Path) -> None:
    ask(desk, m.Load(2, bytes(save_tiny_tokenizer(tmp_path / "other", order_seed=3))))
    assert ask(desk, m.Compare(1, 1)) == m.Difference(-1, "", "")
    found = ask(desk, m.Compare(1, 2))
    assert isinstance(found, m.Difference) and found.token_id == 7


def test_what_goes_wrong_is_a_sentence(desk: Desk, tmp_path: Path) -> None:
    for task in (
        m.Encode(1, ""),
        m.EncodePair(1, "", ""),
        m.Encode(9, "x"),
        m.Add(9, [1]),
        m.End(9),
        m.Load(3, bytes(tmp_path / "none")),
    ):
        reply = ask(desk, task)
        assert isinstance(reply, m.Refused) and reply.sentence and not reply.ends
    assert isinstance(ask(desk, m.Encode(1, "the cat")), m.Encoded)


def test_what_was_dropped_is_gone(desk: Desk) -> None:
    assert isinstance(ask(desk, m.Encode(1, "the cat"), 1), m.Refused)


def test_a_process_that_ran_out_of_memory_is_not_used_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("runtime.tokenizer.desk.encode_text", fail)
    assert ask(Desk(), m.Encode(1, "x")) != ask(desk, m.Encode(1, "x")) == m.Refused("", ends=True)


def test_a_prompt_of_too_many_tokens_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.tokenizer.desk.MAX_PROMPT_TOKENS", 3)
    for task in (m.Encode(1, "the cat"), m.EncodePair(1, "a ", "cat")):
        reply = ask(desk, task)
        assert isinstance(reply, m.Refused) and "expected at most 3" in reply.sentence
