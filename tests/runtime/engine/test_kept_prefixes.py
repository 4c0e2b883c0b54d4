"""A text after a restart is the text without, and what was computed before it is read instead of computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.engine import loading
from runtime.engine.kept_prefixes import KeptPrefixes
from runtime.engine.loading import OpenSession
from runtime.engine.prefix_block import SUFFIX
from runtime.events import Finished, PrefillProgress
from runtime.model.streamed_model import StreamedModel
from runtime.prompts.prompt_file import PromptRequest
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

BLOCK_TOKENS = 8
TEXT = "the cat and the dog and a bird in the garden of the house"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "KeptPrefixes", partial(KeptPrefixes, block_tokens=BLOCK_TOKENS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "target": save_tiny_folder(root / "target"),
        "windows": save_tiny_folder(root / "windows", "gemma3", seed=3),
        "unrelated": save_tiny_folder(root / "unrelated", "qwen2", seed=9),
    }


@contextmanager
def kept(folder: Path, state_folder: Path, **settings: Any) -> Iterator[OpenSession]:
    with open_tiny(folder, state_folder=state_folder, prefix_cache="auto", **settings) as opened:
        yield opened


def restored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is restored from now on: the first token of each block."""
    found: list[int] = []
    restore = StreamedModel.restore

    def count(self: StreamedModel, start: int, *args: Any, **named: Any) -> None:
        found.append(start)
        restore(self, start, *args, **named)

    monkeypatch.setattr(StreamedModel, "restore", count)
    return found


def turns(opened: OpenSession, **params: object) -> list[list[int]]:
    """A conversation of two turns, and another one that begins like it."""
    first = answer(opened, request(TEXT, **params))
    second = answer(opened, request(TEXT + first[0].text + " and the cat", **params))
    third = answer(opened, request("the cat and the dog and a bird, the dog", **params))
    return [first[1], second[1], third[1]]


WAYS: dict[str, dict[str, Any]] = {
    "resident": {},
    "streamed": {"num_residents": 1},
    "travelling": {"link": "10GB/s", "kv_cache": "host"},
    "travelling as int8": {"link": "10GB/s", "kv_cache": "host", "kv_format": "int8"},
    "tree": {"draft": "unrelated", "tree": "12x5"},
    "tree in context": {"draft": "unrelated", "tree": "dynamic:8x4", "lookup": "on", "num_residents": 0},
    "substitute": {"draft": "substitute", "tree": "8x4", "link": "10GB/s", "kv_cache": "host"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_text_after_a_restart_is_the_text_without(
    way: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(WAYS[way])
    settings["draft"] = folders.get(settings.get("draft", ""), settings.get("draft", "none"))
    found = restored(monkeypatch)
    for params in ({"max_new_tokens": 16}, {"max_new_tokens": 16, "temperature": 0.8, "seed": 5}):
        with open_tiny(folders["target"], **settings) as opened:
            assert opened.session.engine.prefixes is None
            expected = turns(opened, **params)
        for _ in range(2):
            with kept(folders["target"], tmp_path, **settings) as opened:
                assert turns(opened, **params) == expected
                assert not any("prefixes" in note for note in opened.notes)
    # Of four sessions the first finds nothing; after its first turn the caches hold what texts begin with.
    assert found.count(0) == 3 * (1 if settings["draft"] == "none" else 2)
    assert len(found) > 18


def test_what_was_read_from_disk_is_told_as_cached(folders: dict[str, Path], tmp_path: Path) -> None:
    with kept(folders["target"], tmp_path) as opened:
        assert answer(opened, request(TEXT, max_new_tokens=2))[0].statistics.cached_tokens == 0
    with kept(folders["target"], tmp_path) as opened:
        statistics = answer(opened, request(TEXT, max_new_tokens=2))[0].statistics
        assert statistics.cached_tokens == (statistics.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS > 0


def test_of_a_text_that_was_never_read_again_the_end_goes_first(folders: dict[str, Path], tmp_path: Path) -> None:
    with kept(folders["target"], tmp_path) as opened:
        found, _ = answer(opened, request(TEXT, max_new_tokens=20))
        answer(opened, request(TEXT + found.text + " and the cat", max_new_tokens=4))
    blocks = sorted(tmp_path.rglob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
    assert len(blocks) > 4
    for block in blocks[:-3]:
        block.unlink()
    with kept(folders["target"], tmp_path) as opened:
        assert answer(opened, request(TEXT, max_new_tokens=2))[0].statistics.cached_tokens == 3 * BLOCK_TOKENS


def test_sliding_windows_keep_every_token(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache does, and masks hide what a window does not reach."""
    with kept(folders["windows"], tmp_path) as opened:
        expected = turns(opened, max_new_tokens=12)
    found = restored(monkeypatch)
    with kept(folders["windows"], tmp_path) as opened:
        assert turns(opened, max_new_tokens=12) == expected
    assert found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_keys_and_values_come_back_bit_for_bit(dtype: str, folders: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"compute_dtype": "float32" if dtype == "int8" else dtype, "draft": folders["unrelated"]}
    if dtype == "int8":
        settings |= {"link": "10GB/s", "kv_cache": "host", "kv_format": "int8"}
    states = []
    for _ in range(2):
        with kept(folders["target"], tmp_path, **settings) as opened:
            session = opened.session
            answer(opened, request(TEXT, max_new_tokens=1))
            engine = session.engine
            num_tokens = (len(session.format_prompt(request(TEXT))) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
            assert engine.drafter is not None
            found = []
            for model in (engine.target, engine.drafter.model):
                assert model.row_bytes is not None
                rows = torch.empty(num_tokens * sum(model.row_bytes), dtype=torch.uint8)
                model.cache.take_rows(0, num_tokens, rows)
                found.append(rows.numpy())
            states.append((found, session.engine.prefixes.store.bytes_per_second))
    (first, before), (second, after) = states
    assert before is None and after is not None
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert all(np.count_nonzero(rows) > len(rows) // 2 for rows in first)


def test_a_reopened_conversation_computes_little_of_its_prompt(folders: dict[str, Path], tmp_path: Path) -> None:
    """And says how far it is meanwhile."""
    asked = request(TEXT, max_new_tokens=2)
    with kept(folders["target"], tmp_path) as opened:
        num_prompt = len(opened.session.format_prompt(asked))
        answer(opened, asked)
    with kept(folders["target"], tmp_path) as opened:
        events = list(opened.session.generate(asked))
        done = [event.num_done_tokens for event in events if isinstance(event, PrefillProgress)]
        assert done == list(range(BLOCK_TOKENS, num_prompt, BLOCK_TOKENS))
        rounds = [event for event in events if hasattr(event, "num_pass_tokens") and hasattr(event, "parents")]
        assert rounds[0].num_pass_tokens == num_prompt - done[-1]


def test_another_model_or_way_of_holding_has_blocks_of_its_own(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept(folders["target"], tmp_path) as opened:
        answer(opened, request(TEXT))
    found = restored(monkeypatch)
    with kept(folders["unrelated"], tmp_path) as opened:
        answer(opened, request(TEXT))
    with kept(folders["target"], tmp_path, compute_dtype="bfloat16") as opened:
        answer(opened, request(TEXT))
    assert found == []
    assert len(list((tmp_path / "prefixes").iterdir())) == 3
    with kept(save_tiny_folder(tmp_path / "elsewhere"), tmp_path) as opened:  # the same weights in another folder
        answer(opened, request(TEXT))
    assert found


def test_damaged_blocks_change_no_text(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    expected = None
    for _ in range(6):
        with kept(folders["target"], tmp_path, draft=folders["unrelated"], tree="8x4") as opened:
            found = turns(opened)
        expected = expected or found
        assert found == expected
        for path in sorted((tmp_path / "prefixes").rglob(f"*{SUFFIX}")):
            kind, content = rng.integers(0, 4), bytearray(path.read_bytes())
            if kind == 0:
                content[rng.integers(0, len(content))] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                del content[rng.integers(0, len(content)) :]
            elif kind == 2:
                content[:] = bytes(len(content))
            path.write_bytes(content)


def test_of_a_file_of_prompts_only_what_two_begin_with_is_kept(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a long file would write each of its prompts to disk, for nobody."""
    system = "the garden of the house and "
    asked = [request(f"{system}{text}", max_new_tokens=3) for text in ("a bird in the tree", "0123456789, 0123456789")]
    asked = [replace(each, id=str(number)) for number, each in enumerate(asked)]

    def answers(requests: list[PromptRequest]) -> tuple[list[str], int]:
        with loading.open_session(
            loading.EngineConfig(
                target=str(folders["target"]), draft="none", context_tokens=128, num_texts=2, prefix_cache="auto"
            ),
            requests=requests,
            state_folder=tmp_path,
        ) as opened:
            num_shared = len(opened.session.format_prompt(request(system.rstrip()))) // BLOCK_TOKENS
            texts = {
                each.id: event.text
                for each, event in opened.session.generate_all(requests)
                if isinstance(event, Finished)
            }
        return [texts[each.id] for each in requests], num_shared

    expected, num_shared = answers(asked)
    assert num_shared >= 1
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == num_shared
    found = restored(monkeypatch)
    assert answers(asked)[0] == expected
    assert found == [BLOCK_TOKENS * number for number in range(num_shared)]  # once for both


def test_stopping_while_blocks_are_read_leaves_the_session_ready(folders: dict[str, Path], tmp_path: Path) -> None:
    asked = request(TEXT, max_new_tokens=6)
    with kept(folders["target"], tmp_path, draft=folders["unrelated"], tree="8x4") as opened:
        expected = answer(opened, asked)
    with kept(folders["target"], tmp_path, draft=folders["unrelated"], tree="8x4") as opened:
        session = opened.session
        events = session.generate(asked)
        assert isinstance(next(events), PrefillProgress)
        session.stop()
        finished = list(events)[-1]
        assert isinstance(finished, Finished) and finished.finish_reason == "stopped"
        assert session.engine.num_committed == BLOCK_TOKENS
        closed = session.generate(asked)
        next(closed)
        closed.close()
        assert answer(opened, asked)[1] == expected[1]


def test_what_is_computed_faster_than_read_is_computed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(TEXT, max_new_tokens=2)
    with kept(folders["target"], tmp_path) as opened:
        expected = answer(opened, asked)[1]
    found = restored(monkeypatch)
    for pass_seconds, bytes_per_second, is_read in ((1e-9, 1.0, False), (1.0, 1e9, True), (1.0, None, True)):
        with kept(folders["target"], tmp_path) as opened:
            engine = opened.session.engine
            assert engine.prefixes is not None
            engine.prefixes.store.bytes_per_second = bytes_per_second
            monkeypatch.setattr(engine.prefill, "_known", lambda costs, seconds=pass_seconds: (seconds, 0.0))
            start = opened.session.prefill_start(asked)
            assert start.expected_seconds is not None and start.num_done_tokens == 0
            assert answer(opened, asked)[1] == expected
            assert bool(found) == is_read
            if bytes_per_second == 1e9:
                num_left = len(opened.session.format_prompt(asked)) - BLOCK_TOKENS * len(found)
                assert start.expected_seconds == pytest.approx(num_left, rel=1e-3)
        found.clear()


def test_a_slow_disk_is_left_in_the_middle(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block tells how slow it is."""
    asked = request(TEXT, max_new_tokens=2)
    with kept(folders["target"], tmp_path) as opened:
        answer(opened, asked)
    found = restored(monkeypatch)
    with kept(folders["target"], tmp_path) as opened:
        engine = opened.session.engine
        monkeypatch.setattr(engine.prefill, "_known", lambda costs: (1e-12, 0.0))
        answer(opened, asked)
    assert found == [0]


def test_a_later_session_knows_how_fast_tokens_are_computed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first prompt is the one that is read, if any is."""
    asked = request(TEXT, max_new_tokens=2)
    for _ in range(2):  # the second finds blocks, and what to remember of them
        with kept(folders["target"], tmp_path) as opened:
            answer(opened, asked)
            monkeypatch.setattr(opened.session.engine.prefill, "_known", lambda costs: (1e-12, 0.0))
    found = restored(monkeypatch)
    with kept(folders["target"], tmp_path) as opened:
        prefixes = opened.session.engine.prefixes
        assert prefixes is not None
        prefixes.store.bytes_per_second = 1e6
        answer(opened, asked)
    assert found == []


def test_nothing_is_kept_without_a_folder_or_where_it_is_off(folders: dict[str, Path], tmp_path: Path) -> None:
    with open_tiny(folders["target"], prefix_cache="auto") as opened:
        assert opened.session.engine.prefixes is None
    with open_tiny(folders["target"], prefix_cache="off", state_folder=tmp_path) as opened:
        answer(opened, request(TEXT))
        assert opened.session.engine.prefixes is None
    assert not (tmp_path / "prefixes").exists()


def test_a_full_disk_is_told_and_costs_no_answer(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tiny(folders["target"]) as opened:
        expected = turns(opened)
    with kept(folders["target"], tmp_path) as opened:
        store = opened.session.engine.prefixes.store
        monkeypatch.setattr(store, "_free_bytes", lambda folder: 0)
        assert turns(opened) == expected
        assert store.flush()
        (note,) = [note for note in opened.notes if "prefixes" in note]
        assert "--prefix-cache off" in note
