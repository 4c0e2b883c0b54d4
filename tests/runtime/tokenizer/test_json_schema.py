"""A schema is compiled or refused in one sentence, whatever a stranger wrote into it."""

import json
import sys
import time
from typing import Any

import pytest

from runtime.errors import OptionError
from runtime.tokenizer import box
from runtime.tokenizer.box import BoxLimits, TokenizerBox, check_schema
from runtime.tokenizer.json_schema import ANY_OBJECT, MAX_SCHEMA_BYTES, compile_schema, grammar_of, json_library, reason


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(OptionError) as refused:
        json_library()
    assert str(refused.value) == "response_format needs llguidance; install it with: pip install 'overstory[json]'"


def test_what_is_no_schema_is_refused_before_it_is_compiled() -> None:
    nested = '{"items":' * 100_000 + "{}" + "}" * 100_000
    for schema in ("", "[]", "5", '{"type": ', nested[:9_000] + "{}" + "}" * 1_000):
        with pytest.raises(
            OptionError, match=r"^the JSON schema cannot be read: .*; give an object that is nested less$"
        ):
            grammar_of(schema)
    for schema in (nested, json.dumps({"enum": ["x" * MAX_SCHEMA_BYTES]})):
        with pytest.raises(OptionError, match=f"it may take {MAX_SCHEMA_BYTES}, so make it smaller"):
            grammar_of(schema)


def test_a_schema_cannot_set_the_librarys_options() -> None:
    text = grammar_of(json.dumps({"type": "object", "x-guidance": {"lenient": True, "whitespace_pattern": "x"}}))
    assert '"lenient": false' in text and '"whitespace_pattern": "x"' not in text


def test_the_librarys_words_lose_their_places_in_a_grammar() -> None:
    assert (
        reason("at 2(8): failed to compile JSON schema: Invalid type: foo\n   1 | %llguidance") == "Invalid type: foo"
    )
    assert reason("too \x1b[31m big.") == "too \\x1b[31m big"


SMALL: tuple[dict[str, Any], ...] = (
    {},
    {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(2000)}},
    {"type": "string", "pattern": "(a+)+$"},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": "array", "minItems": 10**7},
)
HOSTILE: tuple[dict[str, Any], ...] = (
    {"type": "foo"},
    {"properties": 3},
    {"$ref": "https://192.0.2.1/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "format": "weird"},
    {"enum": list(range(30_000))},
    {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for i in range(8)]} for j in range(8)]},
    {"allOf": [False]},
    {"type": "integer", "minimum": 5, "maximum": 3},
)


def test_schemas_compile_or_are_refused_soon() -> None:
    pytest.importorskip("llguidance")
    for schema in (*SMALL, json.loads(ANY_OBJECT)):
        compile_schema(json.dumps(schema))
    begun = time.process_time()
    for schema in HOSTILE[:7] + HOSTILE[8:]:
        with pytest.raises(OptionError, match=r"^the JSON schema cannot be held to: .+; change the schema$"):
            compile_schema(json.dumps(schema))
    assert time.process_time() - begun < 10


def test_a_box_compiles_it_and_survives_what_breaks_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    own = TokenizerBox(BoxLimits())
    monkeypatch.setattr(box, "_schema_box", lambda: own)
    check_schema.cache_clear()
    try:
        check_schema(ANY_OBJECT)
        with pytest.raises(OptionError, match="Invalid type: foo"):
            check_schema('{"type": "foo"}')
        monkeypatch.setattr(box, "_COMPILING_SECONDS", 0.01)
        with pytest.raises(
            OptionError, match=r"too much to compile: it computed for more than 0\.01 s; make it smaller"
        ):
            check_schema(json.dumps({"enum": list(range(20_000))}))
        monkeypatch.setattr(box, "_COMPILING_SECONDS", 3.0)
        check_schema('{"type": "integer"}')
        with pytest.raises(OptionError, match="is no text"):
            check_schema('"\ud800"')
    finally:
        own.close()
        check_schema.cache_clear()
