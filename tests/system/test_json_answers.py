"""Answers of random models that are held to a JSON schema keep to it, whatever tree or neighbours there are."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Finished, Round
from runtime.prompts.headless import run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.prompt_file import PromptRequest
from runtime.tokenizer.json_schema import ANY_OBJECT
from tests.support.batch_files import chat_line, write_lines
from tests.support.json_models import blank_tokens, save_json_folder
from tests.support.session_factory import open_tiny, request, save_tiny_folder

pytest.importorskip("llguidance")

SETTINGS: dict[str, dict[str, Any]] = {
    "no tree": {},
    "a tree": {"draft": "unrelated", "tree": "8x4", "lookup": "on"},
    "a tree without lookups": {"draft": "unrelated", "tree": "8x4", "lookup": "off"},
    "shaped by context": {"draft": "perfect", "tree": "dynamic:16x6"},
    "many": {"draft": "perfect", "tree": "8x4", "num_texts": 4},
}
BLANKS = blank_tokens()
PARAMS: tuple[dict[str, Any], ...] = (
    {"banned_tokens": BLANKS},
    {"temperature": 1.0, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.1, "banned_tokens": BLANKS},
)


def obj(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


DIGIT = {"type": "integer", "minimum": -9, "maximum": 9}
WORD = {"type": "string", "maxLength": 5}


def is_digit(value: Any) -> bool:
    return type(value) is int and -9 <= value <= 9


def is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 5


SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "object": (obj(name=WORD, age=DIGIT), lambda v: list(v) == ["name", "age"] and is_word(v["name"])),
    "list": (
        {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4},
        lambda v: 2 <= len(v) <= 4 and all(map(is_digit, v)),
    ),
    "enum": ({"enum": ["red", 'gre"en\\', "blé", 7, None]}, lambda v: v in ("red", 'gre"en\\', "blé", 7, None)),
    "nested": (
        obj(a=obj(b={"type": "array", "items": obj(c={"type": "boolean"}), "maxItems": 2}), d={"type": "null"}),
        lambda v: all(type(each["c"]) is bool for each in v["a"]["b"]) and v["d"] is None,
    ),
    "pattern": (obj(code={"type": "string", "pattern": "^[A-Z]{2}é[0-9]$"}), lambda v: v["code"][2] == "é"),
    "either": ({"anyOf": [DIGIT, {"type": "boolean"}]}, lambda v: type(v) is bool or is_digit(v)),
    "reference": (
        {"$defs": {"n": DIGIT}, **obj(x={"$ref": "#/$defs/n"}, y={"$ref": "#/$defs/n"})},
        lambda v: is_digit(v["x"]) and is_digit(v["y"]),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    target = save_json_folder(root / "target", seed=3)
    return {"target": target, "perfect": target, "unrelated": save_json_folder(root / "unrelated", seed=9)}


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[dict[str, OpenSession]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                open_tiny(
                    folders["target"],
                    **{"context_tokens": 512, **wanted, "draft": folders.get(wanted.get("draft"), "none")},
                )
            )
            for name, wanted in SETTINGS.items()
        }


def asked_for(schema: str, number: int, params: dict[str, Any]) -> PromptRequest:
    free = replace(request("the cat", max_new_tokens=400, **params), id=f"{schema} {number}")
    return replace(free, response_schema=json.dumps(SCHEMAS[schema][0]))


ASKED = [asked_for(schema, number, params) for schema in SCHEMAS for number, params in enumerate(PARAMS)]
ASKED.append(asked_for("object", 9, {"temperature": 1.0, "seed": 2}))  # with blanks
FREE = [
    replace(request("the dog", max_new_tokens=20, **params), id=f"free {number}")
    for number, params in enumerate(PARAMS)
]


@pytest.fixture(scope="module")
def answers(sessions: dict[str, OpenSession]) -> dict[str, dict[str, Finished]]:
    """By setting and id; free texts stand between the others."""
    mixed = [*ASKED[:4], FREE[0], *ASKED[4:9], FREE[1], *ASKED[9:]]
    found: dict[str, dict[str, Finished]] = {}
    for name, opened in sessions.items():
        events = opened.session.generate_all(mixed)
        found[name] = {asked.id: event for asked, event in events if isinstance(event, Finished)}
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_every_answer_is_what_its_schema_says(name: str, answers: dict[str, dict[str, Finished]]) -> None:
    for asked in ASKED:
        finished = answers[name][asked.id]
        assert finished.finish_reason == "stop", (asked.id, finished.text)
        value = json.loads(finished.text)
        assert SCHEMAS[asked.id.split()[0]][1](value), (asked.id, finished.text)


@pytest.mark.parametrize("name", list(SETTINGS)[1:])
def test_no_tree_and_no_neighbour_changes_an_answer(name: str, answers: dict[str, dict[str, Finished]]) -> None:
    for asked in [*ASKED, *FREE]:
        assert answers[name][asked.id].text == answers["no tree"][asked.id].text, asked.id


def test_drafts_keep_to_the_schema_too(answers: dict[str, dict[str, Finished]]) -> None:
    """A perfect draft that was not masked would be rejected wherever the model itself would not write JSON."""
    costs = [answers["shaped by context"][asked.id].statistics for asked in ASKED if asked.params.is_greedy]
    assert sum(each.new_tokens for each in costs) / sum(each.rounds for each in costs) > 3


def test_what_a_schema_forces_takes_no_drafting(sessions: dict[str, OpenSession]) -> None:
    """Keys that are longer than the tree is deep come in one round, in the same text."""
    schema = json.dumps(obj(a_long_name=DIGIT, another_long_name=DIGIT))
    asked = replace(ASKED[0], response_schema=schema)
    *_, without = _rounds_and_end(sessions["a tree without lookups"], asked)
    *rounds, finished = _rounds_and_end(sessions["a tree"], asked)
    assert finished.text == without.text
    assert 2 * finished.statistics.rounds <= without.statistics.rounds
    assert max(each.num_emitted for each in rounds if isinstance(each, Round)) >= len('"another_long_name')


def _rounds_and_end(opened: OpenSession, asked: PromptRequest) -> list[Any]:
    return [event for event in opened.session.generate(asked) if isinstance(event, Round | Finished)]


def test_who_asks_for_no_json_gets_no_rules(sessions: dict[str, OpenSession]) -> None:
    session = sessions["no tree"].session
    free = request()
    for asked in (free, replace(free, response_schema=ANY_OBJECT)):
        answer = session._begin(asked, lane=0)
        assert answer.sequence.choosing is not None
        assert answer.sequence.choosing.processor.is_idle == (asked is free)
        session._end(answer)


def test_an_answer_that_is_cut_has_its_length_for_a_reason(sessions: dict[str, OpenSession]) -> None:
    whole = sessions["a tree"].session
    *_, finished = whole.generate(replace(ASKED[0], params=SamplingParams(max_new_tokens=3)))
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "length" and finished.statistics.new_tokens == 3
    with pytest.raises(ValueError):
        json.loads(finished.text)


def test_characters_of_several_bytes(sessions: dict[str, OpenSession]) -> None:
    """A sampled string has bytes that are no character alone, and the next tokens must complete it."""
    schema = json.dumps({"type": "string", "pattern": "^[é-￮😀-😿]{4,8}$"})
    for seed in range(2):
        asked = replace(request("the", max_new_tokens=100, temperature=1.0, seed=seed), response_schema=schema)
        *_, finished = sessions["a tree"].session.generate(asked)
        assert isinstance(finished, Finished) and finished.finish_reason == "stop"
        text = json.loads(finished.text)
        assert 4 <= len(text) <= 8 and "\ufffd" not in text


def test_any_object(sessions: dict[str, OpenSession]) -> None:
    """A random model seldom ends one: as far as it came, it is the beginning of one."""
    for seed in range(2):
        asked = replace(request("the", max_new_tokens=30, temperature=1.0, seed=seed), response_schema=ANY_OBJECT)
        *_, finished = sessions["a tree"].session.generate(asked)
        assert isinstance(finished, Finished) and finished.text.startswith("{")
        assert finished.finish_reason == "length" or isinstance(json.loads(finished.text), dict)


def test_a_schema_that_cannot_be_held_to_costs_its_own_line(sessions: dict[str, OpenSession], tmp_path: Path) -> None:
    def asks(number: int, schema: Any) -> dict[str, Any]:
        named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        return chat_line(str(number), max_tokens=200, response_format=named)

    bad = (
        ({"type": "foo"}, "the JSON schema cannot be held to: Invalid type: foo; change the schema"),
        ({"$ref": "https://192.0.2.1/x"}, "https://192.0.2.1/x"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "the JSON schema allows no answer"),
        ({"type": "string", "pattern": "(?=a)b"}, "the JSON schema cannot be held to"),
        ({"enum": list(range(50_000))}, "bytes; it may take 262144, so make it smaller"),
    )
    lines = [asks(0, SCHEMAS["list"][0]), *(asks(1 + number, schema) for number, (schema, _) in enumerate(bad))]
    items, _ = read_prompts_or_batch(write_lines(tmp_path / "batch.jsonl", *lines), SamplingParams())
    results = {
        event.id: event
        for event in run_prompts(sessions["many"].session.generate_all, items)
        if hasattr(event, "finished")
    }
    assert results["0"].finished is not None and SCHEMAS["list"][1](json.loads(results["0"].finished.text))
    for number, (_, sentence) in enumerate(bad):
        error = results[str(1 + number)].error
        assert error is not None and sentence in error, error


def test_a_vocabulary_that_has_no_json_is_refused(tmp_path: Path) -> None:
    with open_tiny(save_tiny_folder(tmp_path / "target")) as opened:
        with pytest.raises(OptionError, match="allows no answer"):
            list(opened.session.generate(replace(request(), response_schema=ANY_OBJECT)))
        *_, finished = opened.session.generate(replace(request(), response_schema='{"enum": [7]}'))
    assert isinstance(finished, Finished) and finished.text == "7"
