"""Sessions on the simulated accelerator: folders, budgets by the number of layers, and what an answer may cost.

To be imported only where the device is loaded, or for the names of checks that run where it is.
"""

import contextlib
import functools
import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.layer_streamer import ResidentLayer
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, open_session
from runtime.model.model_loader import ModelFiles
from tests.support import simulated_device as sim
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import CONTEXT_TOKENS, answer, request

DEVICE = "sim:0"
NUM_LAYERS = 6
SEED = 37
"""A llama whose greedy answer is varied."""
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": NUM_LAYERS}
"""Layers of half a megabyte, so that activations are nowhere near their size."""


@functools.cache
def scratch() -> Path:
    """Where this process keeps its models; removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="overstory-tests-")
    scratch.keeper = folder  # type: ignore[attr-defined]
    return Path(folder.name)


@functools.cache
def folder_of(kind: str, dtype: torch.dtype = torch.float32, seed: int = SEED) -> Path:
    folder = scratch() / f"{kind}-{dtype}-{seed}"
    return save_tiny_tokenizer(save_tiny_model(kind, folder, seed=seed, dtype=dtype, num_hidden_layers=NUM_LAYERS))


@functools.cache
def wide_folder() -> Path:
    return save_tiny_tokenizer(save_tiny_model("llama", scratch() / "wide", seed=SEED, **WIDE))


@functools.cache
def layer_bytes(folder: Path) -> int:
    return max(layout.slab_bytes for layout in ModelFiles.open(folder).layouts)


@functools.cache
def fixed_bytes(config: EngineConfig) -> int:
    """Of a session whose layers stream."""
    return LoadPlan.build(replace(config, device_memory_bytes=0)).placement.fixed_bytes


def config_of(
    folder: Path, *, num_residents: int | None = None, draft: Path | str = "none", **settings: Any
) -> EngineConfig:
    """`num_residents` sets the budget so that exactly so many layers stay on the device; None: all that fit."""
    options = {"context_tokens": CONTEXT_TOKENS, "draft_format": "stored", "device": DEVICE, **settings}
    config = EngineConfig(target=str(folder), draft=str(draft), **options)
    if num_residents is None:
        return config
    return replace(
        config, device_memory_bytes=fixed_bytes(config) + (config.ring_slots + num_residents) * layer_bytes(folder)
    )


@contextmanager
def opened_on(folder: Path, *, draft: Path | str = "none", **settings: Any) -> Iterator[OpenSession]:
    config = config_of(folder, draft=draft, **settings)
    with open_session(config) as opened:
        yield opened


@functools.cache
def cpu_text(folder: Path) -> list[int]:
    with opened_on(folder, device="cpu") as opened:
        return answer(opened, ASKED)[1]


def num_tiers(opened: OpenSession) -> tuple[int, int, int]:
    layers = opened.streamer.layers
    return tuple(sum(isinstance(layer, kind) for layer in layers) for kind in (ResidentLayer, HostSource, LayerLayout))


@contextmanager
def restored(restore: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        restore()


@contextmanager
def capacity_restored() -> Iterator[None]:
    """Capacities that are set inside count to the byte: no tiny block takes a segment of megabytes."""
    gc.collect()
    torch.accelerator.empty_cache()
    sim.set_exact_segments(True)
    try:
        yield
    finally:
        sim.set_exact_segments(False)
        sim.set_capacity_bytes(1 << 30)
        torch.accelerator.empty_cache()


def speed_restored() -> contextlib.AbstractContextManager[None]:
    return restored(lambda: sim.set_copy_bytes_per_second(None))


def registrable_restored() -> contextlib.AbstractContextManager[None]:
    return restored(lambda: sim.set_registrable_bytes(None))


TIERS: dict[str, dict[str, Any]] = {
    "all resident": {},
    "one resident, the rest in host memory": {"num_residents": 1},
    "all in host memory": {"num_residents": 0},
    "all in host memory, three slots": {"num_residents": 0, "ring_slots": 3},
    "all on disk": {"num_residents": 0, "host_memory_bytes": 0},
    "two in host memory, the rest on disk": {"num_residents": 0, "host_memory_bytes": 2},
    "one resident, two in host memory, the rest on disk, three slots": {
        "num_residents": 1,
        "host_memory_bytes": 2,
        "ring_slots": 3,
    },
}
"""`host_memory_bytes` counts layers here."""
FEW_TIERS = ("one resident, the rest in host memory", "two in host memory, the rest on disk")


def in_layers(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "host_memory_bytes" not in settings:
        return settings
    return {**settings, "host_memory_bytes": settings["host_memory_bytes"] * layer_bytes(folder)}


ASKED = request(max_new_tokens=14)


def answer_under_watch(opened: OpenSession) -> list[int]:
    """The answer's tokens, with everything checked that costs time or correctness on a real device."""
    answer(opened, request("a dog", max_new_tokens=2))  # caches and scratch are allocated by the first pass
    sim.reset_counters()
    finished, tokens = answer(opened, ASKED)
    rounds = finished.statistics.rounds
    draft_steps = 0 if opened.session.engine.drafter is None else 4 * rounds
    assert sim.hazards() == []
    assert sim.num_synchronous_copies() == 0, "a layer was copied from pageable memory"
    assert sim.num_waiting_uploads() == 0, "the host waited for something small to arrive"
    if slot_bytes := max((slot.numel() for slot in opened.streamer.slots), default=0):
        assert sim.num_allocations(at_least_bytes=slot_bytes) == 0, "memory as large as a slot was allocated in a pass"
    assert sim.num_device_synchronisations() <= rounds + draft_steps
    assert sim.num_event_synchronisations() == 0
    assert sim.num_blocking_reads() <= 4 * rounds + draft_steps
    return tokens


@contextmanager
def quick_sessions() -> Iterator[None]:
    """What sessions on tiny models need in a process, and an end to the models."""
    folder_of("llama")  # imports what saving needs
    gc.freeze()  # a session collects garbage when it opens, and the libraries' own objects take it 0.3 s each time
    yield
    scratch.keeper.cleanup()  # type: ignore[attr-defined]
