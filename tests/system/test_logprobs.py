"""Log-probabilities of an answer's tokens are those of transformers' own forward over the text, however it was made."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.engine.session import Session
from runtime.errors import OptionError
from runtime.events import Finished, Round
from runtime.prompts.headless import PromptResult, run_prompts
from runtime.prompts.openai_batch import read_prompts_or_batch
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.batch_files import chat_line, completion_line, write_lines
from tests.support.model_factory import build_tokenizer
from tests.support.reference_models import own_logits
from tests.support.session_factory import open_tiny, request, save_tiny_folder

TOLERANCE = 1e-4
NUM_LISTED = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "no tree": {},
    "a tree": {"draft": "unrelated", "tree": "12x5", "lookup": "on", "num_residents": 0},
    "its own draft": {"draft": "perfect", "tree": "8x8"},
    "many": {"draft": "perfect", "tree": "8x4", "num_texts": 4},
}
PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "banned_tokens": (9, 11)},
    {"temperature": 1.2, "verification": "sequoia", "seed": 3, "forced_tokens": (20, 30)},
)
TEXTS = ("the cat and the dog", "the cat", "a dog and a cat and a dog and the", "the cat and the dog in the end")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The target's greedy answer is varied and meets no end token for 100 tokens."""
    root = tmp_path_factory.mktemp("models")
    target = save_tiny_folder(root / "target", seed=37)
    return {"target": target, "perfect": target, "unrelated": save_tiny_folder(root / "unrelated", "qwen2", seed=9)}


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[dict[str, OpenSession]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                open_tiny(folders["target"], **{**wanted, "draft": folders.get(wanted.get("draft"), "none")})
            )
            for name, wanted in SETTINGS.items()
        }


def finished_of(opened: OpenSession, requests: Sequence[PromptRequest]) -> list[Finished]:
    ends = {asked.id: event for asked, event in opened.session.generate_all(requests) if isinstance(event, Finished)}
    return [ends[asked.id] for asked in requests]


def check(opened: OpenSession, folder: Path, asked: PromptRequest, finished: Finished) -> None:
    """One record of each token of the text, with what transformers gives in its place."""
    assert finished.logprobs is not None and asked.top_logprobs is not None
    prompt = opened.session.format_prompt(asked)
    chosen = [each.chosen for each in finished.logprobs]
    token_ids = [token.token_id for token in chosen]
    assert build_tokenizer().decode(token_ids, skip_special_tokens=True) == finished.text
    assert b"".join(token.content or b"" for token in chosen).decode() == finished.text
    if not token_ids:
        return
    expected = torch.log_softmax(own_logits(folder, [*prompt, *token_ids])[len(prompt) - 1 : -1], dim=-1)  # (T, V)
    for row, each in zip(expected, finished.logprobs, strict=True):
        best = row.topk(asked.top_logprobs)
        assert each.chosen.logprob == pytest.approx(float(row[each.chosen.token_id]), abs=TOLERANCE)
        assert [token.logprob for token in each.likeliest] == pytest.approx(best.values.tolist(), abs=TOLERANCE)
        listed = [float(row[token.token_id]) for token in each.likeliest]
        assert [token.logprob for token in each.likeliest] == pytest.approx(listed, abs=TOLERANCE)
        assert all(token == each.chosen for token in each.likeliest if token.token_id == each.chosen.token_id)


@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_those_of_transformers(name: str, sessions: dict[str, OpenSession], folders: dict[str, Path]) -> None:
    """Before temperature, filters, penalties and bans; beside texts of which none are asked."""
    requests = [
        replace(request(text, **params), id=f"{number} {text}", top_logprobs=None if number == 1 else NUM_LISTED)
        for number, params in enumerate([*PARAMS, PARAMS[1]])
        for text in TEXTS
    ]
    for asked, finished in zip(requests, finished_of(sessions[name], requests), strict=True):
        if asked.top_logprobs is None:
            assert finished.logprobs is None
        else:
            check(sessions[name], folders["target"], asked, finished)


@pytest.mark.parametrize("name", ["no tree", "its own draft"])
def test_an_answer_that_ends_within_a_round_has_as_many_as_tokens(
    name: str, sessions: dict[str, OpenSession], folders: dict[str, Path]
) -> None:
    opened = sessions[name]
    (whole,) = finished_of(opened, [replace(request(), top_logprobs=0)])
    assert whole.logprobs is not None and len(whole.logprobs) == whole.statistics.new_tokens == 24
    for limit in range(1, 12):
        (cut,) = finished_of(opened, [replace(request(max_new_tokens=limit), top_logprobs=0)])
        assert cut.finish_reason == "length" and cut.logprobs is not None
        assert logprobs_of(cut) == pytest.approx(logprobs_of(whole)[:limit], abs=TOLERANCE)
    for start in range(12):
        for length in (1, 3):
            asked = replace(request(stop=(whole.text[start : start + length],)), top_logprobs=2)
            (stopped,) = finished_of(opened, [asked])
            assert stopped.finish_reason == "stop" and stopped.logprobs is not None
            check_beginning(whole, stopped)
    tokens = [each.chosen.token_id for each in whole.logprobs]
    for end in tokens[:12]:
        session = Session(opened.session.engine, opened.session._tokenizer, end_token_ids=[end])
        *_, ended = session.generate(replace(request(), top_logprobs=2))
        assert isinstance(ended, Finished) and ended.finish_reason == "stop" and ended.logprobs is not None
        assert [each.chosen.token_id for each in ended.logprobs] == tokens[: tokens.index(end)]


def logprobs_of(finished: Finished) -> list[float]:
    assert finished.logprobs is not None
    return [each.chosen.logprob for each in finished.logprobs]


def check_beginning(whole: Finished, stopped: Finished) -> None:
    """Those tokens alone that begin before the text ends."""
    assert whole.logprobs is not None and stopped.logprobs is not None
    assert whole.text.startswith(stopped.text)
    num_characters, wanted = 0, []
    for each in whole.logprobs:
        if num_characters >= len(stopped.text):
            break
        wanted.append(each.chosen.token_id)
        num_characters += len(each.chosen.content or b"")
    assert [each.chosen.token_id for each in stopped.logprobs] == wanted


def test_nothing_is_looked_at_for_an_answer_that_does_not_ask(
    sessions: dict[str, OpenSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr("runtime.speculation.verifier.token_logprobs", fail)
    monkeypatch.setattr("runtime.tokenizer.box.Tokenizer.contents", fail)
    events = list(sessions["its own draft"].session.generate(request()))
    assert all(event.logprobs == () for event in events if isinstance(event, Round))


def test_tokens_that_cannot_be_named_cost_their_own_answer(
    sessions: dict[str, OpenSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise OptionError("too much")

    monkeypatch.setattr("runtime.tokenizer.box.Tokenizer.contents", fail)
    asking = [replace(request(), id=str(number), top_logprobs=None if number % 2 else 0) for number in range(6)]
    ends = {}
    for asked, event in sessions["many"].session.generate_all(asking):
        ends[asked.id] = str(event) if isinstance(event, OptionError) else type(event).__name__
    assert [ends[asked.id] for asked in asking] == ["too much", "Finished"] * 3


def test_rounds_tell_them_as_they_are_made(sessions: dict[str, OpenSession]) -> None:
    events = list(sessions["its own draft"].session.generate(replace(request(max_new_tokens=8), top_logprobs=1)))
    rounds = [event for event in events if isinstance(event, Round)]
    for done in rounds:
        assert tuple(each.chosen.token_id for each in done.logprobs) == done.token_ids
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.logprobs is not None
    unnamed = [replace(each.chosen, text="", content=None) for each in finished.logprobs]
    assert unnamed == [each.chosen for done in rounds for each in done.logprobs][: len(unnamed)]


def test_more_than_the_vocabulary_is_all_of_it(sessions: dict[str, OpenSession]) -> None:
    (finished,) = finished_of(sessions["no tree"], [replace(request(max_new_tokens=2), top_logprobs=1000)])
    assert finished.logprobs is not None
    assert sorted(token.token_id for token in finished.logprobs[0].likeliest) == list(range(96))


def test_an_answer_that_is_continued_keeps_its_first_space(sessions: dict[str, OpenSession]) -> None:
    turns = (Message("user", "the cat"), Message("assistant", "and the"))
    asked = PromptRequest(
        id="1", messages=turns, is_continued=True, top_logprobs=0, params=SamplingParams(max_new_tokens=5)
    )
    (finished,) = finished_of(sessions["no tree"], [asked])
    assert finished.logprobs is not None
    assert b"".join(each.chosen.content or b"" for each in finished.logprobs).decode() == finished.text


def test_a_batch_gets_them_in_openais_shapes(sessions: dict[str, OpenSession], tmp_path: Path) -> None:
    lines = (
        chat_line("a", logprobs=True, top_logprobs=2, max_tokens=4, n=2),
        chat_line("b", logprobs=True, max_tokens=4),
        completion_line("c", "the cat", logprobs=1, max_tokens=4, temperature=0),
        completion_line("d", "the cat", max_tokens=4),
    )
    items, result_format = read_prompts_or_batch(write_lines(tmp_path / "batch.jsonl", *lines), SamplingParams())
    results = run_prompts(sessions["many"].session.generate_all, items)
    records = [result_format.record(result) for result in results if isinstance(result, PromptResult)]
    choices = {
        record["custom_id"]: json.loads(json.dumps(record))["response"]["body"]["choices"]
        for record in records
        if record is not None
    }
    for choice in (*choices["a"], *choices["b"]):
        assert list(choice["logprobs"]) == ["content", "refusal"] and choice["logprobs"]["refusal"] is None
        content = choice["logprobs"]["content"]
        assert b"".join(bytes(each["bytes"] or ()) for each in content).decode() == choice["message"]["content"]
    assert [len(each["top_logprobs"]) for each in choices["a"][1]["logprobs"]["content"]] == [2] * 4
    assert [each["top_logprobs"] for each in choices["b"][0]["logprobs"]["content"]] == [[]] * 4
    (completion,) = choices["c"]
    lists = completion["logprobs"]
    assert "".join(lists["tokens"]).replace("<|assistant|>", "") == completion["text"], "a special token adds nothing"
    assert lists["text_offset"][0] == len("the cat")
    for text, logprob, likeliest in zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert likeliest == {text: logprob}, "greedy: the chosen token is the likeliest"
    assert choices["d"][0]["logprobs"] is None


def test_a_line_of_our_own_format_asks_by_their_number(sessions: dict[str, OpenSession], tmp_path: Path) -> None:
    lines = ({"prompt": "the cat", "top_logprobs": 3, "max_new_tokens": 3}, {"prompt": "the cat", "max_new_tokens": 3})
    items, result_format = read_prompts_or_batch(write_lines(tmp_path / "own.jsonl", *lines), SamplingParams())
    results = run_prompts(sessions["many"].session.generate_all, items)
    first, second = (result_format.record(result) for result in results if isinstance(result, PromptResult))
    assert first is not None and [len(each["top_logprobs"]) for each in first["logprobs"]] == [3] * 3
    assert second is not None and second["logprobs"] is None
