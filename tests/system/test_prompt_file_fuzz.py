"""Damaged lines of prompt files and of results, 6,000 with `--fuzz 1`: each costs itself alone, or is named.

Both formats; whatever a line holds, its result is a line that a strict reader takes and that a resumed run knows again.
"""

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiles.files import parse_json_text
from runtime.config import SamplingParams, options_of
from runtime.errors import OptionError, PromptFileError
from runtime.prompts.headless import PromptItem, PromptResult, one_by_one, pending_items, run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.prompt_file import BadLine
from runtime.prompts.result_file import ResultFile, format_record
from runtime.prompts.result_format import ResultFormat, is_answer, kind_of
from tests.support.answer_fakes import echo
from tests.support.batch_files import chat_line, completion_line
from tests.support.damage import ODD_VALUES, damage_bytes, damage_value, to_json

UNCHOSEN = frozenset(options_of(SamplingParams))
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "stop": ["\n", "END"], "seed": 3, "presence_penalty": 0.5}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
CHAT = chat_line(
    "b",
    messages=TURNS,
    max_completion_tokens=5,
    n=2,
    logprobs=True,
    top_logprobs=3,
    response_format={"type": "text"},
    stream=False,
    frequency_penalty=-0.5,
    **SAMPLING,
)
COMPLETION = completion_line("b", ["the cat"], max_tokens=5, logprobs=2, n=3, **SAMPLING)
OWN = {"id": "b", "messages": [*TURNS[:1], {"role": "user", "content": "Hi"}], "max_new_tokens": 5, **SAMPLING}
OWN |= {"top_k": 40, "min_p": 0.1, "banned_tokens": [4, 5], "forced_tokens": [7], "verification": "coupled"}
OWN |= {"top_logprobs": 4}
SOUND = {"chat": (CHAT, chat_line), "completions": (COMPLETION, completion_line), "own": (OWN, None)}


@pytest.fixture
def stride(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("fuzz"))


def neighbours(kind: str) -> tuple[bytes, bytes]:
    """Sound lines to stand before and behind a damaged one."""
    make = SOUND[kind][1] or (lambda name: {"id": name, "prompt": "the cat"})
    return to_json(make("first")), to_json(make("last"))


def damaged_lines(sound: dict[str, Any], source: random.Random, num_cases: int) -> Iterator[bytes]:
    """Every key with every odd value, then values and bytes damaged at random."""
    for key, value in itertools.product(sound, ODD_VALUES):
        yield to_json({**sound, key: value})
    for key, value in itertools.product(sound.get("body", ()), ODD_VALUES):
        yield to_json({**sound, "body": {**sound["body"], key: value}})
    for index in range(num_cases):
        raw = to_json(sound)
        yield damage_bytes(raw, source) if index % 3 == 0 else to_json(damage_value(sound, source))


def read(path: Path, *lines: bytes) -> tuple[list[PromptItem], ResultFormat]:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return read_prompts_or_batch(path, SamplingParams(), unchosen=UNCHOSEN)


def records_of(items: list[PromptItem], result_format: ResultFormat) -> list[dict[str, Any]]:
    results = (event for event in run_prompts(one_by_one(echo), items) if isinstance(event, PromptResult))
    return [record for result in results if (record := result_format.record(result)) is not None]


@pytest.mark.parametrize("kind", SOUND)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, kind: str, stride: int) -> None:
    first, last = neighbours(kind)
    outcomes: Counter[str] = Counter()
    cases = damaged_lines(SOUND[kind][0], random.Random(kind), 900)
    for line in itertools.islice(cases, 0, None, stride):
        try:
            items, result_format = read(tmp_path / "prompts.jsonl", first, line, last)
        except PromptFileError as error:
            assert "is not UTF-8" in str(error), line
            outcomes["whole file"] += 1
            continue
        assert (items[0].id, items[-1].id) == ("first", "last"), line
        bad = [item for item in items if isinstance(item, BadLine)]
        assert all(item.error.isprintable() and len(item.error) < 1000 for item in bad), line
        outcomes["refused" if bad else "answered"] += 1
        records = records_of(items, result_format)
        assert len(records) == len({item.line_number for item in items}), line
        for record in records:
            written = parse_json_text(format_record(record).encode())
            assert written == record and kind_of(written) == result_format.kind, line
        assert sum(map(is_answer, records)) == len(records) - len(bad), line
        answered = {each for record in filter(is_answer, records) for each in result_format.ids_answered_by(record)}
        assert pending_items(items, answered) == bad, line
    assert outcomes["refused"] and outcomes["answered"], outcomes


def lines_of(content: bytes) -> set[bytes]:
    """The lines that are not empty; only a newline ends one, as JSON may hold a carriage return between values."""
    return set(filter(None, content.split(b"\n")))


@pytest.mark.parametrize("kind", SOUND)
def test_of_damaged_results_none_is_changed_and_what_is_whole_stays(
    tmp_path: Path, kind: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    first, last = neighbours(kind)
    items, result_format = read(tmp_path / "prompts.jsonl", first, to_json(SOUND[kind][0]), last)
    sound = "".join(format_record(record) + "\n" for record in records_of(items, result_format)).encode()
    path, outcomes, source = tmp_path / "results.jsonl", Counter[str](), random.Random(7)
    for _ in range(600 // stride):
        content = damage_bytes(sound, source)
        path.write_bytes(content)
        try:
            with ResultFile(path, is_resumed=True, result_format=result_format) as file:
                finished_ids = set(file.finished_ids)
        except OptionError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            assert path.read_bytes() == content
            outcomes["refused"] += 1
            continue
        outcomes["resumed"] += 1
        kept = lines_of(path.read_bytes())
        assert kept <= lines_of(content) and all(is_answer(json.loads(line)) for line in kept), content
        assert lines_of(sound) & lines_of(content) <= kept, content
        # An id may itself be damaged, and is then another one.
        assert finished_ids == {each for line in kept for each in result_format.ids_answered_by(json.loads(line))}
    assert outcomes["refused"] and outcomes["resumed"], outcomes
