"""Keys and values that wait in host memory and travel with their layers change no text, whatever happens to a pass.

As int8 they change it, but only as int8 itself does: the text is that of a plain forward with a rounded cache.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from offload.errors import PassCancelledError
from offload.residency_plan import Tier
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, open_session
from runtime.model.safe_build import cache_argument
from runtime.model.streamed_model import StreamedModel, chain_input
from tests.support.every_architecture import save_architecture
from tests.support.reference_models import TIE, own_logits, reference_model
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


def ask_disturbed(opened: OpenSession) -> list[list[list[int]]]:
    """What is answered after passes that ended at each layer in turn, and after answers that were closed."""
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


def test_a_pass_that_ends_at_any_layer_leaves_the_text_as_it_was(folders: dict[str, Path]) -> None:
    """By an error, by cancelling it, and by closing an answer at any event: later texts are what they were."""
    expected = texts_where("device", folders["target"], lambda opened: ask_all(opened, max_new_tokens=8))
    assert texts_where("host", folders["target"], ask_disturbed) == [expected] * 4


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


class RoundedCache(DynamicCache):
    """transformers' own cache, of keys and values that are rounded as they come: 255 levels for each head and token."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rounded = []
        for states in (key_states, value_states):
            step = states.abs().amax(dim=-1, keepdim=True) / 127
            rounded.append(torch.where(step > 0, (states / step).round() * step, 0.0))
        return super().update(*rounded, *args, **kwargs)


@torch.inference_mode()
def rounded_logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """Logits of a whole sequence, (T, V), of a plain forward with a rounded cache."""
    model = reference_model(folder)
    name = cache_argument(inspect.signature(model.forward).parameters)
    logits: torch.Tensor = model(torch.tensor([token_ids]), use_cache=True, **{name: RoundedCache()}).logits[0]
    return logits


def assert_text_of_rounded_cache(found: list[int], folder: Path, prompt: list[int]) -> None:
    """Each token is the likeliest one behind the text before it, or as good as that."""
    logits = rounded_logits(folder, prompt + found)[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    assert (logits.amax(dim=1) - chosen).max() < TIE


ask_int8 = functools.partial(texts_where, "host", kv_format="int8")


@pytest.mark.parametrize("way", WAYS)
def test_text_of_int8_is_that_of_a_plain_forward_with_a_rounded_cache(
    way: str, folders: dict[str, Path], monkeypatch
) -> None:
    """Whatever drafts and however a prompt is cut: a token's own pass sees it as all later ones do."""
    monkeypatch.setattr("runtime.engine.engine.PREFILL_CHUNK_TOKENS", 16)
    settings = dict(WAYS[way])
    if settings.get("draft") == "unrelated":
        settings["draft"] = folders["unrelated"]
    prompts: list[list[int]] = []

    def ask(opened: OpenSession) -> list[list[int]]:
        prompts.extend(opened.session.format_prompt(asked) for asked in ASKED)
        return ask_all(opened, max_new_tokens=12)

    texts = ask_int8(folders["target"], ask, **settings)
    for prompt, text in zip(prompts, texts, strict=True):
        assert_text_of_rounded_cache(text, folders["target"], prompt)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gemma4_text", "youtu", "gpt2", "falcon"])
def test_windows_wide_values_latents_and_layers_that_differ_may_travel_as_int8(name: str, tmp_path: Path) -> None:
    """With a tree and without one: a text that depends on no tree has no row that was made twice."""
    folder = save_architecture(name, tmp_path / name)
    plain = ask_int8(folder, lambda opened: ask_all(opened, max_new_tokens=10))
    assert ask_int8(folder, lambda opened: ask_all(opened, max_new_tokens=10), draft="substitute", tree="8x4") == plain


def test_logits_of_int8_are_near_those_of_an_exact_cache(folders: dict[str, Path]) -> None:
    token_ids = [3 + 7 * index % 40 for index in range(60)]

    def logits_of(opened: OpenSession) -> torch.Tensor:
        target: StreamedModel = opened.session.engine.target
        target.run_pass(chain_input(token_ids[:50], num_cached=0))
        return target.logits(target.run_pass(chain_input(token_ids[50:], num_cached=50)))

    exact = own_logits(folders["target"], token_ids)[50:]
    rounded = rounded_logits(folders["target"], token_ids)[50:]
    found = ask_int8(folders["target"], logits_of)
    assert torch.allclose(found, rounded, atol=TIE)
    error = (found - exact).square().mean().sqrt()
    assert 10 * TIE < error < 0.03 * exact.std(), error


def test_a_pass_that_ends_at_any_layer_leaves_rows_of_int8_as_they_were(folders: dict[str, Path]) -> None:
    expected = ask_int8(folders["target"], lambda opened: ask_all(opened, max_new_tokens=8))
    assert ask_int8(folders["target"], ask_disturbed) == [expected] * 4


def test_bytes_of_int8_are_those_of_its_rows(folders: dict[str, Path]) -> None:
    """32 numbers and 4 scales are 48 bytes, where 128 are exact; a real model's heads are wider."""

    def counts(opened: OpenSession) -> tuple[int, int, int]:
        target = opened.session.engine.target
        target.run_pass(chain_input(range(3, 13), num_cached=0))
        target.run_pass(chain_input(range(3, 5), num_cached=10))
        residency = opened.plan.residency
        assert opened.streamer.rows is not None and opened.streamer.rows.num_bytes == residency.travelling_bytes
        assert 201 * sum(opened.plan.row_bytes.values()) == residency.travelling_bytes  # what trees are planned for
        return target.last_pass.cache_bytes_sent, target.last_pass.cache_bytes_returned, residency.travelling_bytes

    assert ask_int8(folders["target"], counts) == (4 * 10 * 48, 4 * 2 * 48, 4 * 201 * 48)
    assert texts_where("host", folders["target"], counts) == (4 * 10 * 128, 4 * 2 * 128, 4 * 201 * 128)


def test_a_session_says_whether_int8_changes_anything(folders: dict[str, Path]) -> None:
    def notes(opened: OpenSession) -> list[str]:
        answer(opened, request("a dog"))
        return [note for note in opened.notes if "keys and values" in note]

    (note,) = ask_int8(folders["target"], notes)
    assert note.startswith("keys and values of 4 layers wait") and note.endswith("int8, with which the text may differ")
    settings = {"link": "10GB/s", "context_tokens": 200, "kv_cache": "device", "kv_format": "int8"}
    with open_tiny(folders["target"], **settings) as opened:
        assert notes(opened) == ["no keys and values travel, so that --kv-format int8 does nothing"]
        assert opened.streamer.rows is None and ask_all(opened) == texts_where("device", folders["target"], ask_all)
