"""A hybrid's text after a restart goes on from the last state that was kept, and is the text without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.config import EngineConfig, SamplingParams
from runtime.engine import kept_prefixes, loading
from runtime.engine.kept_prefixes import KeptPrefixes
from runtime.engine.kept_states import StateForm
from runtime.engine.loading import OpenSession
from runtime.engine.prefix_block import SUFFIX, BlockForm
from runtime.events import Finished, PrefillProgress
from runtime.model.pass_shapes import MOST_MARKS
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.hybrids import save_hybrid
from tests.support.model_factory import TINY_VOCAB_SIZE
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.thinking_models import let_think

BLOCK_TOKENS = 8
TEXT = "the cat and the dog and a bird in the garden of the house"
GREEDY = {"max_new_tokens": 20}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "KeptPrefixes", partial(KeptPrefixes, block_tokens=BLOCK_TOKENS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "hybrid": save_hybrid(root / "hybrid"),
        "other": save_hybrid(root / "other", seed=9),
        "dense": save_tiny_folder(root / "dense", "qwen2", seed=9),
    }


@contextmanager
def kept(folder: Path, state_folder: Path, **settings: Any) -> Iterator[OpenSession]:
    with open_tiny(folder, state_folder=state_folder, prefix_cache="auto", **settings) as opened:
        yield opened
        prefixes = opened.session.engine.prefixes
        assert prefixes is not None and prefixes.store.flush()


def state_files(state_folder: Path) -> list[Path]:
    """The files of states, which are the largest: they have room for a block beside the states."""
    files = sorted(state_folder.rglob(f"*{SUFFIX}"), key=lambda file: file.stat().st_size)
    return [file for file in files if file.stat().st_size == files[-1].stat().st_size]


def turns(opened: OpenSession, **params: object) -> tuple[list[list[int]], list[int]]:
    """Two turns of a conversation: their tokens, and how many were not computed anew."""
    first, text = answer(opened, request(TEXT, **params))
    second, more = answer(opened, request(TEXT + first.text + " and the cat", **params))
    return [text, more], [first.statistics.cached_tokens, second.statistics.cached_tokens]


WAYS: dict[str, dict[str, Any]] = {
    "resident": {},
    "streamed": {"num_residents": 1},
    "dense draft": {"draft": "dense", "tree": "12x5"},
    "hybrid draft": {"draft": "other", "tree": "8x4"},
    "substitute": {"draft": "substitute", "tree": "8x4", "link": "10GB/s"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_text_after_a_restart_is_the_text_without(way: str, folders: dict[str, Path], tmp_path: Path) -> None:
    settings = dict(WAYS[way])
    settings["draft"] = folders.get(settings.get("draft", ""), settings.get("draft", "none"))
    for params in (GREEDY, {**GREEDY, "temperature": 0.8, "seed": 5}):
        with open_tiny(folders["hybrid"], **settings) as opened:
            expected, _ = turns(opened, **params)
        for _ in range(2):
            with kept(folders["hybrid"], tmp_path, **settings) as opened:
                found, cached = turns(opened, **params)
                assert not opened.notes or not any("prefix" in note for note in opened.notes)
            assert found == expected
    assert cached[0] > 0 and cached[1] > 0


def test_a_prompt_goes_on_where_it_ended(folders: dict[str, Path], tmp_path: Path) -> None:
    with kept(folders["hybrid"], tmp_path) as opened:
        first, _ = answer(opened, request(TEXT, **GREEDY))
        assert first.statistics.cached_tokens == 0
    with kept(folders["hybrid"], tmp_path) as opened:
        statistics = answer(opened, request(TEXT, **GREEDY))[0].statistics
        assert statistics.cached_tokens == statistics.prompt_tokens - 1
    with kept(folders["hybrid"], tmp_path) as opened:
        again = answer(opened, request(TEXT + first.text + " and the cat", **GREEDY))[0].statistics
        assert again.cached_tokens == statistics.prompt_tokens - 1


def test_a_damaged_state_is_a_miss_and_so_is_a_missing_block(folders: dict[str, Path], tmp_path: Path) -> None:
    with kept(folders["hybrid"], tmp_path) as opened:
        expected, _ = turns(opened, **GREEDY)
    *others, last = state_files(tmp_path)
    assert len(others) == 1, "one behind each prompt"
    for file in (last, *others):
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes(content)
        with kept(folders["hybrid"], tmp_path) as opened:
            assert turns(opened, **GREEDY)[0] == expected
    blocks = [file for file in tmp_path.rglob(f"*{SUFFIX}") if file not in state_files(tmp_path)]
    blocks[0].unlink()
    with kept(folders["hybrid"], tmp_path) as opened:
        assert turns(opened, **GREEDY)[0] == expected


def test_another_model_finds_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    with kept(folders["hybrid"], tmp_path) as opened:
        turns(opened, **GREEDY)
    with kept(folders["other"], tmp_path) as opened:
        assert answer(opened, request(TEXT, **GREEDY))[0].statistics.cached_tokens == 0


def test_long_texts_keep_states_on_their_way(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_prefixes, "STATE_TOKENS", 16)
    monkeypatch.setattr("runtime.model.recurrent_cache.MARK_TOKENS", 8)
    with kept(folders["hybrid"], tmp_path) as opened:
        answer(opened, request(TEXT, max_new_tokens=48))
    assert len(state_files(tmp_path)) >= 3


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def count(*args: object, **named: object) -> object:
        calls.append(1)
        return function(*args, **named)

    return count


def test_progress_is_told_block_by_block_and_names_are_made_once(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each block they took longer than the reading: two minutes of a prompt of 128,000 tokens."""
    counts = []
    for text in (TEXT, TEXT * 2):
        state_folder = tmp_path / str(len(text))
        with kept(folders["hybrid"], state_folder, context_tokens=256) as opened:
            answer(opened, request(text, max_new_tokens=2))
        with kept(folders["hybrid"], state_folder, context_tokens=256) as opened:
            made: list[int] = []
            with monkeypatch.context() as patched:
                patched.setattr(StateForm, "names", counted(StateForm.names, made))
                events = list(opened.session.generate(request(text, max_new_tokens=2)))
            progress = [event for event in events if isinstance(event, PrefillProgress)]
            num_prompt = progress[0].num_prompt_tokens
            done = [event.num_done_tokens for event in progress]
            assert done == list(range(BLOCK_TOKENS, num_prompt, BLOCK_TOKENS))
            assert isinstance(events[-1], Finished) and events[-1].statistics.cached_tokens == num_prompt - 1
            counts.append((len(done), sum(made)))
    (few, made_of_few), (many, made_of_many) = counts
    assert few < many and made_of_few == made_of_many


def test_a_state_goes_before_the_blocks_without_which_it_is_worthless(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_prefixes, "STATE_TOKENS", 16)
    monkeypatch.setattr("runtime.model.recurrent_cache.MARK_TOKENS", 8)
    for _ in range(2):  # what was kept, and what was read then
        with kept(folders["hybrid"], tmp_path) as opened:
            answer(opened, request(TEXT, max_new_tokens=48))
            text = list(opened.session.engine.text)
    states = state_files(tmp_path)
    assert len(states) >= 3
    with kept(folders["hybrid"], tmp_path) as opened:
        prefixes = opened.session.engine.prefixes
        assert prefixes is not None
        for file in sorted(tmp_path.rglob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns):
            file.unlink()
            outlook = prefixes.outlook(text, 0, None)
            assert (outlook.num_coming > 0) == any(state.exists() for state in states)


def test_no_blocks_are_kept_where_no_state_is(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a file of prompts, where texts hardly part at a state, and of more texts at a time than states are kept of."""
    asked = [replace(request(TEXT + more, max_new_tokens=2), id=more) for more in ("", " and the cat", " and a dog")]
    config = EngineConfig(target=str(folders["hybrid"]), draft="none", context_tokens=128, prefix_cache="auto")
    with loading.open_session(config, requests=asked, state_folder=tmp_path) as opened:
        assert [event for _, event in opened.session.generate_all(asked) if isinstance(event, Finished)]
    with kept(folders["hybrid"], tmp_path, num_texts=MOST_MARKS + 1) as opened:
        answer(opened, request(TEXT, max_new_tokens=2))
    assert not list(tmp_path.rglob(f"*{SUFFIX}"))
    with kept(folders["hybrid"], tmp_path, num_texts=MOST_MARKS) as opened:
        answer(opened, request(TEXT, max_new_tokens=2))
    assert len(state_files(tmp_path)) == 1


def chat(*texts: str) -> PromptRequest:
    """A conversation, the person's words first."""
    messages = tuple(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))
    return PromptRequest(id="1", messages=messages, params=SamplingParams(max_new_tokens=20))


@pytest.mark.parametrize("has_draft", [False, True])
def test_a_state_ends_before_the_thinking_that_a_template_begins(has_draft: bool, tmp_path: Path) -> None:
    """The next prompt has no thinking there, so that no state behind it was ever found again."""
    folder, draft = (
        let_think(save_hybrid(tmp_path / str(seed), seed=seed, vocab_size=TINY_VOCAB_SIZE + 2)) for seed in (0, 9)
    )
    settings: dict[str, Any] = {"draft": draft, "tree": "8x4"} if has_draft else {}
    first, second = chat(TEXT), chat(TEXT, "a bird", "and the cat")
    with open_tiny(folder, **settings) as opened:
        expected = [answer(opened, first)[1], answer(opened, second)[1]]
        prompts = [opened.session.format_prompt(each) for each in (first, second)]
    num_common = next(place for place, pair in enumerate(zip(*prompts, strict=False)) if len(set(pair)) > 1)
    assert num_common == len(prompts[0]) - 2, "a mark and a line end"
    with kept(folder, tmp_path, **settings) as opened:
        assert answer(opened, first)[1] == expected[0]
        engine = opened.session.engine
        models = [engine.target] if engine.drafter is None else [engine.target, engine.drafter.model]
        assert [model.cache.reachable(num_common) for model in models] == [num_common - 1] * len(models)
    with kept(folder, tmp_path, **settings) as opened:
        finished, found = answer(opened, second)
        assert found == expected[1] and finished.statistics.cached_tokens == num_common - 1


def test_a_state_has_a_name_for_every_length_which_stands_for_all_tokens_before() -> None:
    blocks = BlockForm.of({"model": 1}, num_tokens=4, parts=[("layer 0", 40)])
    states = StateForm.of({"model": 1}, blocks, (100, 60))
    assert states is not None and states.rows_bytes == 40 and states.file.num_bytes == 200
    assert StateForm.of({"model": 1}, blocks, ()) is None
    text = list(range(11))
    found = dict(states.names(text, blocks.names(text)))
    assert list(found) == list(range(1, 12)) and len(set(found.values())) == 11
    assert list(states.names(text, blocks.names(text), first=7)) == list(found.items())[6:]
    other = [*text[:2], 99, *text[3:]]
    changed = dict(states.names(other, blocks.names(other)))
    assert [number for number in found if found[number] == changed[number]] == [1, 2]


def test_what_is_put_is_what_was_taken(folders: dict[str, Path]) -> None:
    with open_tiny(folders["hybrid"]) as opened:
        answer(opened, request(TEXT, max_new_tokens=4))
        model = opened.session.engine.target
        num_tokens = model.cache.last_mark()
        content = torch.zeros(sum(model.state_bytes), dtype=torch.uint8)
        model.cache.take_states(num_tokens, content)
        model.restore_states(num_tokens, content)
        assert model.cache.num_cached == num_tokens
        again = torch.zeros_like(content)
        model.cache.take_states(num_tokens, again)
        assert torch.equal(content, again) and content.any()
