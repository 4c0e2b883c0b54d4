"""A node's mask is that of its own path alone, in whatever order nodes are asked for."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.speculation.grammar import AnswerGrammar, Grammars
from runtime.speculation.logit_processors import LogitProcessor
from runtime.tokenizer.json_schema import compile_schema

pytest.importorskip("llguidance")

TOKENS = [b"", b"", *(bytes([byte]) for byte in range(256)), b'{"', b'"a', b'{"', b'":', b"true", b"12"]
ENDS = (0, 1)
VOCAB_SIZE = len(TOKENS) + 3
SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"enum": [True, 12, "é", "ab"]}}, "required": ["a"]}
    | {"additionalProperties": False}
)


def grammars(tokens: Sequence[bytes] = TOKENS, *, ends: Sequence[int] = ENDS) -> Grammars:
    return Grammars(tokens, vocab_size=VOCAB_SIZE, end_token_ids=ends, check=compile_schema)


@pytest.fixture(scope="module")
def shared() -> Grammars:
    return grammars()


def allowed(grammar: AnswerGrammar, path: Sequence[int] = ()) -> list[int] | None:
    mask = grammar.allowed(path)
    return None if mask is None else np.flatnonzero(mask).tolist()


def spelled(text: str) -> list[int]:
    return [2 + byte for byte in text.encode()]


def test_masks_are_those_of_a_new_matcher_on_the_whole_path(shared: Grammars) -> None:
    rng = random.Random(1)
    grammar, text = shared.begin(SCHEMA), list[int]()
    paths: list[tuple[int, ...]] = [()]
    for _ in range(150):
        path = rng.choice(paths)
        fresh = shared.begin(SCHEMA)
        fresh.accept(text)
        fresh.accept(path)
        found = allowed(grammar, path)
        assert found == allowed(fresh)
        if found is not None:
            paths += [(*path, rng.choice(found)), (*path, rng.randrange(VOCAB_SIZE))]
        if rng.random() < 0.05 and found and not set(path) & set(ENDS):
            grammar.accept(path)
            text += path
            paths = [()]
    assert len(text) > 2


def test_tokens_that_spell_the_same_are_allowed_alike_and_padding_rows_never(shared: Grammars) -> None:
    grammar = shared.begin(SCHEMA)
    assert allowed(grammar) == [2 + ord("{"), 258, 260]
    assert allowed(grammar, spelled('{"a":"\xe9'[:-1])) is not None
    assert allowed(grammar, [258, *spelled('a":"'), 2 + 0xC3]) == [2 + 0xA9]  # the second byte of é


def test_at_the_end_only_end_tokens_are_allowed_and_behind_them_anything(shared: Grammars) -> None:
    grammar = shared.begin(SCHEMA)
    whole = spelled('{"a":12}')
    assert allowed(grammar, whole) == [*ENDS]
    assert allowed(grammar, [*whole, 1]) is None
    assert allowed(grammar, [*whole, 1, 5]) is None
    assert allowed(grammar, spelled('{"x')) is None
    row = np.zeros(VOCAB_SIZE, dtype=np.float32)
    assert grammar.masked(row, [*whole, 0]) is row
    assert np.flatnonzero(np.isfinite(grammar.masked(row, whole))).tolist() == [*ENDS]
    grammar.accept([*whole, 1, 7])
    assert grammar.masked(row) is row and grammar.failure is None


def test_what_is_forced_goes_as_far_as_the_schema_leaves_no_choice(shared: Grammars) -> None:
    """A key with what stands around it; a value to choose ends it, and so does the place where the answer may end."""
    grammar = shared.begin(SCHEMA)
    key = (258, 2 + ord("a"), 261)  # {" a ":
    assert grammar.forced(max_tokens=9) == key
    assert grammar.forced(max_tokens=2) == key[:2]
    assert grammar.forced(key, max_tokens=9) == ()
    assert grammar.forced([*key, *spelled("t")], max_tokens=9) == (*spelled("rue}"),)
    assert grammar.forced(spelled('{"x'), max_tokens=9) == ()
    assert grammar.forced([*spelled('{"a":12}'), 1], max_tokens=9) == ()
    grammar.accept([*key, 262])
    assert grammar.forced(max_tokens=9) == (2 + ord("}"),)


def test_a_blank_is_forced_where_it_stands_for_itself(shared: Grammars) -> None:
    grammar = shared.begin(json.dumps({"type": "object", "properties": {"a b": {}}, "required": ["a b"]}))
    assert grammar.forced(spelled('{"a'), max_tokens=9) == (*spelled(" b"), 261)
    assert grammar.forced([*spelled('{"a b": '), 262], max_tokens=9) == ()  # another key may follow


def test_where_an_answer_may_end_or_go_on_both_are_allowed(shared: Grammars) -> None:
    found = allowed(shared.begin('{"type": "integer"}'), spelled("7"))
    assert found is not None and {*ENDS} < {*found}


def test_a_token_that_is_not_allowed_fails_the_answer_alone(shared: Grammars) -> None:
    grammar, other = shared.begin(SCHEMA), shared.begin(SCHEMA)
    grammar.accept(spelled("x"))
    assert grammar.failure is not None and allowed(grammar) is None
    assert other.failure is None and allowed(other) is not None


def test_a_processor_applies_its_penalties_and_then_the_mask(shared: Grammars) -> None:
    params = SamplingParams(banned_tokens=(258,), repetition_penalty=2.0)
    processor = LogitProcessor(params, prompt=[260], vocab_size=VOCAB_SIZE, grammar=shared.begin(SCHEMA))
    assert not processor.is_idle and processor.failure is None and processor.changes([()]) is None
    row = processor.adjusted(np.full(VOCAB_SIZE, 4.0, dtype=np.float32))
    assert np.flatnonzero(np.isfinite(row)).tolist() == [2 + ord("{"), 260]
    assert row[260] == 2.0
    processor.accept(spelled('{"a":12'))
    row = processor.adjusted(np.zeros(VOCAB_SIZE, dtype=np.float32), spelled("}"))
    assert np.flatnonzero(np.isfinite(row)).tolist() == [*ENDS]


def test_a_processor_forces_the_tokens_asked_for_and_then_what_the_schema_says(shared: Grammars) -> None:
    params = SamplingParams(forced_tokens=(260, 2 + ord("a")))
    processor = LogitProcessor(params, prompt=[260], vocab_size=VOCAB_SIZE, grammar=shared.begin(SCHEMA))
    assert processor.forced(max_tokens=9) == (260, 2 + ord("a"), 261)
    assert processor.forced(max_tokens=1) == (260,)
    assert processor.forced([260], max_tokens=9) == (2 + ord("a"), 261)
    processor.accept([260])
    assert processor.forced(max_tokens=9) == (2 + ord("a"), 261)
    assert LogitProcessor(params, prompt=[1], vocab_size=VOCAB_SIZE).forced(max_tokens=9) == (260, 2 + ord("a"))


def test_what_cannot_be_is_refused_in_a_sentence(shared: Grammars) -> None:
    loop: dict[str, Any] = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    with pytest.raises(OptionError, match=r"^the JSON schema allows no answer: .*; change the schema$"):
        shared.begin(json.dumps(loop))
    with pytest.raises(OptionError, match="the JSON schema allows no answer"):
        grammars([b"", b"", *[b"x"] * 10]).begin(SCHEMA)
    with pytest.raises(OptionError, match="no end token"):
        grammars(ends=())


def test_only_so_many_compiled_schemas_are_kept(shared: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.speculation.grammar.MAX_KEPT_GRAMMARS", 2)
    for value in range(4):
        assert allowed(shared.begin(json.dumps({"enum": [value]}))) == [2 + ord("0") + value]
    assert len(shared._compiled) == 2
