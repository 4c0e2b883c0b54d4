"""Keys and values that wait in host memory and travel with their layers change no text, whatever happens to a pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.errors import PassCancelledError
from offload.residency_plan import Tier
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, open_session
from runtime.model.streamed_model import chain_input
from tests.support.every_architecture import save_architecture
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

LONG = "the cat and the dog " * 12
ASKED = [request(), request("the cat and the dog and the cat", max_new_tokens=9), request("a dog"), request(LONG)]
"""The second continues the first, the third forgets it, the last one is read in several chunks."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "target": save_tiny_folder(root / "target"),
        "unrelated": save_tiny_folder(root / "unrelated", "qwen2", seed=9),
    }


def texts_where(kv_cache: str, folder: Path, ask: Callable[[OpenSession], Any], **settings: Any) -> Any:
    """What `ask` finds, and everything is where it should be."""
    options = {"link": "10GB/s", "context_tokens": 200, "kv_cache": kv_cache, **settings}
    with open_tiny(folder, **options) as opened:
        residency = opened.plan.residency
        assert any("keys and values" in note for note in opened.notes) == (kv_cache == "host")
        assert residency.travelling == (residency.streamed_layers if kv_cache == "host" else ())
        found = ask(opened)
        last = opened.session.engine.target.last_pass
        assert (last.cache_bytes_sent > 0) == (last.cache_bytes_returned > 0) == bool(residency.travelling)
    return found


def ask_all(opened: OpenSession, **params: Any) -> list[list[int]]:
    return [answer(opened, request(asked.prompt, **params))[1] for asked in ASKED]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three slots": {"ring_slots": 3},
    "on disk": {"host_memory_bytes": 0},
    "two on disk": {"host_memory_bytes": 100_000, "disk_link": "5GB/s"},
    "substitute": {"draft": "substitute", "tree": "8x4"},
    "tree of another model": {"draft": "unrelated", "tree": "12x5"},
    "tree shaped in context": {"draft": "unrelated", "tree": "dynamic:8x4", "lookup": "on"},
}


@pytest.mark.parametrize("way", WAYS)
def test_text_is_that_of_a_cache_on_the_device(way: str, folders: dict[str, Path], monkeypatch) -> None:
    monkeypatch.setattr("runtime.engine.engine.PREFILL_CHUNK_TOKENS", 16)
    settings = dict(WAYS[way])
    if settings.get("draft") == "unrelated":
        settings["draft"] = folders["unrelated"]

    def ask(opened: OpenSession) -> list[list[list[int]]]:
        sampled = {"temperature": 0.9, "seed": 5, "verification": "coupled"}
        return [ask_all(opened, max_new_tokens=12), ask_all(opened, max_new_tokens=12, **sampled)]

    on_device, travelling = (texts_where(where, folders["target"], ask, **settings) for where in ("device", "host"))
    assert on_device == travelling
    assert len({tuple(tokens) for tokens in on_device[0]}) == len(ASKED)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gemma4_text", "youtu", "gpt2", "falcon"])
def test_windows_wide_values_latents_and_layers_that_differ_may_travel(name: str, tmp_path: Path) -> None:
    folder = save_architecture(name, tmp_path / name)
    settings = {"draft": "substitute", "tree": "8x4"}

    def ask(opened: OpenSession) -> list[list[int]]:
        return ask_all(opened, max_new_tokens=10)

    assert texts_where("device", folder, ask, **settings) == texts_where("host", folder, ask, **settings)


def test_residents_keep_their_keys_and_values_on_the_device(folders: dict[str, Path]) -> None:
    """What is left of the device beside them holds those of streamed layers, as many as fit."""
    config = EngineConfig(
        target=str(folders["target"]), draft="none", link="10GB/s", context_tokens=200, kv_cache="host"
    )
    expected = texts_where("device", folders["target"], ask_all)
    least = LoadPlan.build(config).placement.device_bytes
    counts = set()
    for more in (40_000, 60_000, 80_000):
        with open_session(replace(config, device_memory_bytes=least + more)) as opened:
            residency = opened.plan.residency
            assert opened.placement.device_bytes <= least + more
            assert not set(residency.travelling) & set(residency.resident_layers)
            counts.add((len(residency.travelling), residency.tiers.count(Tier.RESIDENT)))
            assert ask_all(opened) == expected
    assert len(counts) == 3


def test_a_pass_that_ends_at_any_layer_leaves_the_text_as_it_was(folders: dict[str, Path]) -> None:
    """By an error, by cancelling it, and by closing an answer at any event: later texts are what they were."""
    expected = texts_where("device", folders["target"], lambda opened: ask_all(opened, max_new_tokens=8))

    def disturb(opened: OpenSession) -> list[list[list[int]]]:
        target, streamer = opened.session.engine.target, opened.streamer
        found = []
        for index, layer in enumerate(target.parts.layers):
            tokens = opened.session.format_prompt(ASKED[0])
            handle = layer.register_forward_hook(lambda *_: streamer.cancel())
            num_cached = target.cache.num_cached
            try:
                target.run_pass(chain_input(tokens, num_cached=num_cached))
            except PassCancelledError:
                assert target.cache.num_cached == num_cached
            else:
                assert index == len(target.parts.layers) - 1
                target.cache.truncate(num_cached)
            handle.remove()
            events = opened.session.generate(request("a dog and a cat", max_new_tokens=9))
            for _ in range(index + 1):
                next(events)
            events.close()
            found.append(ask_all(opened, max_new_tokens=8))
        return found

    assert texts_where("host", folders["target"], disturb) == [expected] * 4


def test_bytes_are_counted_in_both_directions(folders: dict[str, Path]) -> None:
    def passes(opened: OpenSession) -> list[tuple[int, int]]:
        target, counts = opened.session.engine.target, []
        for start, stop in ((0, 5), (5, 12), (12, 13)):
            target.run_pass(chain_input(range(3, 3 + stop - start), num_cached=start))
            counts.append((target.last_pass.cache_bytes_sent, target.last_pass.cache_bytes_returned))
        assert target.last_pass.link_bytes == target.last_pass.bytes_streamed + sum(counts[-1])
        return counts

    row = 4 * 2 * 2 * 8 * torch.float32.itemsize  # layers, keys and values, heads, their width
    assert texts_where("host", folders["target"], passes) == [(0, 5 * row), (5 * row, 7 * row), (12 * row, row)]


def test_a_session_plans_with_the_rows_that_travel(folders: dict[str, Path]) -> None:
    def copies_by_length(opened: OpenSession) -> list[list[float]]:
        planner, found = opened.session.engine.planner, []
        ask_all(opened, max_new_tokens=12)
        for num_tokens in (0, 150):
            planner.use_temperature(0.0, num_text_tokens=num_tokens)
            assert planner.costs is not None
            found.append(list(filter(None, planner.costs.copy_seconds)))
        return found

    for where in ("device", "host"):
        empty, full = texts_where(where, folders["target"], copies_by_length, draft="substitute", tree="auto")
        assert (empty == full) == (where == "device")
        assert all(more >= less for less, more in zip(empty, full, strict=True))
