"""Whole sessions on the simulated accelerator: the CPU's text, every wait in its place, and what happens at its limits.

Loading the device changes torch for the whole process, so every check below runs in one process of its own (this file,
as a script) and the tests read how each of them went.
"""

import contextlib
import faulthandler
import functools
import gc
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import simulated_device as sim
import torch
from model_factory import save_tiny_model, save_tiny_tokenizer
from quantized_factory import save_quantized_folder
from session_factory import CONTEXT_TOKENS, answer, request
from sim_checks import SimChecks, needs_compiler
from soak_driver import soak

from offload import pinned_memory
from offload.accelerator_copy_engine import AcceleratorCopyEngine, TorchAccelerator
from offload.copy_engine import DiskSource, HostSource
from offload.errors import BudgetError, OverstoryError, PassCancelledError
from offload.layer_streamer import ResidentLayer
from offload.pin_budget import Platform
from offload.pin_probe import ProbeResult
from offload.residency_plan import ResidencyPlan, Tier
from offload.staged_copy_engine import StagedCopyEngine
from profiles.machine_profile import PinBudgetSource
from runtime import pin_policy, session_plan, stream_path
from runtime.assembly import OpenSession, load_session, open_session, plan_memory
from runtime.engine_config import EngineConfig
from runtime.events import PassVerified
from runtime.model.model_loader import ModelFiles
from tui import calibrate_command, cli

DEVICE = "sim:0"
KINDS = ("llama", "qwen2", "gemma3")
NUM_LAYERS = 6
SEED = 37
"""A llama whose greedy answer is varied."""
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": NUM_LAYERS}
"""Layers of half a megabyte, so that activations are nowhere near their size."""
CHECKS = SimChecks(__file__)
check = CHECKS.check


# ------------------------------------------------------------------------------------------------- folders and sessions


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
    return max(layout.slab_bytes for layout in ModelFiles.open(folder).slabs.layouts)


@functools.cache
def fixed_bytes(config: EngineConfig, folder: Path, draft: Path | None) -> int:
    return plan_memory(config, target=folder, draft=draft).fixed_bytes


def config_of(
    folder: Path, *, num_residents: int | None = None, draft: Path | str = "none", **settings: Any
) -> EngineConfig:
    """`num_residents` sets the budget so that exactly so many layers stay on the device; None: all that fit."""
    options = {"context_tokens": CONTEXT_TOKENS, "draft_format": "stored", "device": DEVICE, **settings}
    config = EngineConfig(target=str(folder), draft=str(draft), **options)
    if num_residents is None:
        return config
    fixed = fixed_bytes(config, folder, draft if isinstance(draft, Path) else None)
    return replace(config, device_memory_bytes=fixed + (config.ring_slots + num_residents) * layer_bytes(folder))


@contextmanager
def opened_on(folder: Path, *, draft: Path | str = "none", **settings: Any) -> Iterator[OpenSession]:
    config = config_of(folder, draft=draft, **settings)
    with open_session(config, target=folder, draft=draft if isinstance(draft, Path) else None) as opened:
        yield opened


@functools.cache
def cpu_text(folder: Path) -> list[int]:
    with opened_on(folder, device="cpu") as opened:
        return answer(opened, ASKED)[1]


def num_tiers(opened: OpenSession) -> tuple[int, int, int]:
    layers = opened.streamer.layers
    return tuple(sum(isinstance(layer, kind) for layer in layers) for kind in (ResidentLayer, HostSource, DiskSource))


@contextmanager
def restored(restore: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        restore()


def capacity_restored() -> contextlib.AbstractContextManager[None]:
    return restored(lambda: sim.set_capacity_bytes(1 << 30))


def speed_restored() -> contextlib.AbstractContextManager[None]:
    return restored(lambda: sim.set_copy_bytes_per_second(None))


def registrable_restored() -> contextlib.AbstractContextManager[None]:
    return restored(lambda: sim.set_registrable_bytes(None))


# ------------------------------------------------------------------------------------------------------- text and waits

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
    if slot_bytes := max((slot.numel() for slot in opened.streamer.slots), default=0):
        assert sim.num_allocations(at_least_bytes=slot_bytes) == 0, "memory as large as a slot was allocated in a pass"
    assert sim.num_device_synchronisations() <= rounds + draft_steps
    assert sim.num_event_synchronisations() == 0
    assert sim.num_blocking_reads() <= 4 * rounds + draft_steps
    return tokens


def text_is_the_cpus(kind: str, tiers: str) -> None:
    folder = folder_of(kind)
    with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
        wanted = {"resident": 0, "host": 1, "disk": 2}
        counts = num_tiers(opened)
        for word, place in wanted.items():
            assert (counts[place] > 0) == (word in tiers), (tiers, counts)
        assert answer_under_watch(opened) == cpu_text(folder)
        assert "pageable" not in " ".join(opened.notes)


DRAFTS: dict[str, dict[str, Any]] = {
    "substitute": {"draft": "substitute", "num_residents": 1},
    "substitute in nf4": {"draft": "substitute", "draft_format": "nf4", "num_residents": 0},
    "the target itself": {"draft": SEED, "num_residents": 1},
    "another model": {"draft": SEED + 1, "num_residents": 0},
    "another model in int8": {"draft": SEED + 1, "draft_format": "int8", "num_residents": 1},
}


def draft_changes_no_text(kind: str, draft: str) -> None:
    """Where the target drafts for itself, whole paths are accepted and the caches are compacted on the device."""
    folder, settings = folder_of(kind), dict(DRAFTS[draft])
    if isinstance(settings["draft"], int):
        settings["draft"] = folder_of(kind, seed=settings["draft"])
    with opened_on(folder, tree="8x4", **settings) as opened:
        assert opened.session.engine.drafter is not None
        assert answer_under_watch(opened) == cpu_text(folder)


def bfloat16_text_does_not_depend_on_the_tier(kind: str) -> None:
    folder = folder_of(kind, torch.bfloat16)
    texts = []
    for tiers in ("all resident", "all on disk", FEW_TIERS[0]):
        with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
            assert opened.plan.dtype == torch.bfloat16
            texts.append(answer_under_watch(opened))
    assert texts == texts[:1] * len(texts)


def bfloat16_files_in_float32_are_the_cpus(kind: str) -> None:
    """Widened on the device, in a scratch that is allocated once."""
    folder = folder_of(kind, torch.bfloat16)
    with opened_on(folder, num_residents=1, compute_dtype="float32") as opened:
        assert answer_under_watch(opened) == cpu_text(folder)


for _kind in KINDS:
    for _tiers in TIERS if _kind == "llama" else FEW_TIERS:
        CHECKS[f"text_is_the_cpus: {_kind}, {_tiers}"] = functools.partial(text_is_the_cpus, _kind, _tiers)
    for _draft in DRAFTS if _kind == "llama" else ("the target itself",):
        CHECKS[f"draft_changes_no_text: {_kind}, {_draft}"] = functools.partial(draft_changes_no_text, _kind, _draft)
CHECKS["bfloat16_files_in_float32_are_the_cpus"] = functools.partial(bfloat16_files_in_float32_are_the_cpus, "gemma3")
CHECKS["bfloat16_text_does_not_depend_on_the_tier"] = functools.partial(
    bfloat16_text_does_not_depend_on_the_tier, "llama"
)


def quantised_text_is_the_cpus(name: str) -> None:
    """No kernel of bitsandbytes knows the device, so that its matrices are widened by plain operators."""
    folder = save_quantized_folder(scratch() / f"quantised {name}", name, sizes={})
    with opened_on(folder, compute_dtype="float32", **in_layers(TIERS[FEW_TIERS[1]], folder)) as opened:
        assert answer_under_watch(opened) == cpu_text(folder)


for _name in ("nf4 nested", "int8"):
    CHECKS[f"quantised_text_is_the_cpus: {_name}"] = functools.partial(quantised_text_is_the_cpus, _name)


@check
def auto_is_the_accelerator() -> None:
    with opened_on(folder_of("llama"), device="auto", num_residents=1) as opened:
        assert opened.plan.device == torch.device("sim", 0)
        assert isinstance(opened.link, AcceleratorCopyEngine)
        assert {slot.device for slot in opened.streamer.slots} == {torch.device("sim", 0)}
        assert answer(opened, ASKED)[1] == cpu_text(folder_of("llama"))


@check
def the_second_device_is_used_alone() -> None:
    """Whatever forgets the index lands on the first one, where nothing may be allocated."""
    folder, first = folder_of("llama"), torch.device("sim", 0)
    gc.collect()
    before = torch.accelerator.memory_allocated(first)
    for settings in (
        {"num_residents": 1, "draft": folder, "tree": "8x4"},
        TIERS[FEW_TIERS[1]],
    ):
        with opened_on(folder, device="sim:1", **in_layers(settings, folder)) as opened:
            assert {slot.device for slot in opened.streamer.slots} == {torch.device("sim", 1)}
            assert answer_under_watch(opened) == cpu_text(folder)
            assert torch.accelerator.memory_allocated(first) == before
        assert torch.accelerator.current_device_index() == 0


# -------------------------------------------------------------------------------------------------------------- overlap


@contextmanager
def slow_layers(opened: OpenSession, seconds: float) -> Iterator[None]:
    """Every layer of the target keeps the device's compute stream busy for so long."""
    layers = opened.session.engine.target.shell.layers
    handles = [layer.register_forward_hook(lambda *_: sim.delay_stream(seconds), prepend=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def copies_and_computation_overlap(copy_seconds: float, compute_seconds: float) -> None:
    """A pass costs about the longer of the two; one after the other, it would cost their sum."""
    folder = wide_folder()
    with opened_on(folder, num_residents=0) as opened, speed_restored():
        answer(opened, request(max_new_tokens=2))
        sim.set_copy_bytes_per_second(layer_bytes(folder) / copy_seconds)
        num_layers = opened.streamer.num_layers
        ends, passes = [], []
        sim.reset_counters()
        with slow_layers(opened, compute_seconds):
            for event in opened.session.generate(request(max_new_tokens=5)):
                if isinstance(event, PassVerified):
                    ends.append(time.perf_counter())
                    passes.append(opened.session.engine.target.last_pass)
        assert sim.hazards() == []
        longer, shorter = sorted((num_layers * copy_seconds, num_layers * compute_seconds), reverse=True)
        best = min(end - begin for begin, end in itertools.pairwise(ends))
        assert longer * 0.95 <= best < longer + 0.5 * shorter, (best, longer, shorter)
        busy_seconds = sum(statistics.link_busy_seconds for statistics in passes)
        assert busy_seconds >= 0.8 * len(passes) * num_layers * copy_seconds
        assert min(statistics.compute_seconds for statistics in passes) >= 0.95 * num_layers * compute_seconds
        assert num_tiers(opened) == (0, num_layers, 0)


for _copy, _compute in ((0.03, 0.02), (0.02, 0.03)):
    CHECKS[f"copies_and_computation_overlap: {_copy} s, {_compute} s"] = functools.partial(
        copies_and_computation_overlap, _copy, _compute
    )


@check
def the_ring_fills_while_nobody_asks_for_a_layer() -> None:
    """As it must while a draft works: after a pause of the length of two copies, the first layers do not wait."""
    folder = wide_folder()
    with opened_on(folder, num_residents=0) as opened, speed_restored():
        answer(opened, request(max_new_tokens=2))
        sim.set_copy_bytes_per_second(layer_bytes(folder) / 0.05)
        waits = []
        for event in opened.session.generate(request(max_new_tokens=4)):
            if isinstance(event, PassVerified):
                waits.append(opened.session.engine.target.last_pass.wait_seconds)
                time.sleep(0.15)
        assert min(waits[1:]) < 0.05 * (opened.streamer.num_layers - 1), waits


# ----------------------------------------------------------------------------------------------- stopping in the middle


@check
def stopping_at_any_event_changes_no_later_text() -> None:
    folder = folder_of("llama")
    with opened_on(folder, draft=folder_of("llama", seed=5), tree="9x4", num_residents=1) as opened:
        sim.reset_counters()
        num_events = sum(1 for _ in opened.session.generate(request(max_new_tokens=3)))
        for number in range(1, num_events):
            events = opened.session.generate(request("some other words"))
            for _ in range(number):
                next(events)
            events.close()
            engine = opened.session.engine
            assert engine.target.cache.num_cached == engine.num_committed
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        assert sim.hazards() == []


def cancelled_at_any_layer(tiers: str) -> None:
    """While the layer is computed, and while it is waited for."""
    folder = folder_of("llama")
    with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
        streamer, target = opened.streamer, opened.session.engine.target
        sim.reset_counters()
        for index in range(streamer.num_layers):
            handle = target.shell.layers[index].register_forward_pre_hook(lambda *_: streamer.cancel())
            try:
                list(opened.session.generate(request("some other words")))
                assert index == streamer.num_layers - 1  # nothing is left to wait for
            except PassCancelledError as error:
                assert f"before layer {index + 1}" in str(error)
            handle.remove()
            assert answer(opened, request(max_new_tokens=8))[1] == cpu_text(folder)[:8]
        assert sim.hazards() == []


for _tiers in FEW_TIERS:
    CHECKS[f"cancelled_at_any_layer: {_tiers}"] = functools.partial(cancelled_at_any_layer, _tiers)


@check
def a_cancel_wakes_a_pass_that_waits_for_a_slow_link() -> None:
    folder = wide_folder()
    with opened_on(folder, num_residents=0) as opened, speed_restored():
        sim.set_copy_bytes_per_second(layer_bytes(folder) / 0.2)
        timer = threading.Timer(0.3, opened.streamer.cancel)
        timer.start()
        began = time.perf_counter()
        with pytest.raises(PassCancelledError):
            list(opened.session.generate(request(max_new_tokens=1)))
        assert time.perf_counter() - began < 1.1  # a pass takes 1.2 s; what is on the link is let finish
        timer.join()
        sim.set_copy_bytes_per_second(None)
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        assert sim.hazards() == []


def soak_leaves_nothing_behind(tiers: str, num_passes: int) -> None:
    folder = folder_of("llama")
    text = cpu_text(folder)[:12]
    with opened_on(folder, io="buffered", **in_layers(TIERS[tiers], folder)) as opened:
        sim.reset_counters()
        driver = soak(opened, text, num_passes=num_passes, longest_pass_seconds=0.02)
        assert sim.hazards() == []
        has_disk = "disk" in tiers
        assert all(number > 0 for way, number in driver.endings.items() if way != "unreadable" or has_disk)


for _tiers, _number in zip(FEW_TIERS, (100, 200), strict=True):
    CHECKS[f"soak_leaves_nothing_behind: {_tiers}"] = functools.partial(soak_leaves_nothing_behind, _tiers, _number)


# ------------------------------------------------------------------------------------------------- an engine gone wrong


class _ForgetfulStream:
    """A stream that is told to wait and does not."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any) -> object:
        return self.stream.record_event(event)


class _ComputesTooEarly(TorchAccelerator):
    def current_stream(self) -> Any:
        return _ForgetfulStream(super().current_stream())


class _CopiesTooEarly(TorchAccelerator):
    def create_stream(self) -> Any:
        return _ForgetfulStream(super().create_stream())

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        super().copy(destination, source, stream.stream)


def _read_late(layer: torch.nn.Module, *_: Any) -> None:
    """A kernel that is still queued when its layer is released; all others of the simulated device are over by then."""
    matrix = layer.self_attn.q_proj.stored.matrix
    sim.delay_stream(0.004)
    torch.empty(matrix.shape, pin_memory=True).copy_(matrix, non_blocking=True)


def missing_wait_is_a_hazard(accelerator: type[TorchAccelerator], copy_seconds: float) -> None:
    """Were it not for this, an empty list of hazards would prove nothing."""
    folder = folder_of("llama")
    with (
        mock.patch.object(stream_path, "TorchAccelerator", accelerator),
        opened_on(folder, num_residents=0) as opened,
        speed_restored(),
    ):
        sim.set_copy_bytes_per_second(layer_bytes(folder) / copy_seconds)
        sim.reset_counters()
        if accelerator is _CopiesTooEarly:
            for layer in opened.session.engine.target.shell.layers:
                layer.register_forward_hook(_read_late, prepend=True)
        with contextlib.suppress(OverstoryError):  # of NaN no token can be chosen
            answer(opened, request(max_new_tokens=3))
        assert sim.num_hazards() > 0
    torch.accelerator.synchronize()
    sim.reset_counters()


CHECKS["a_layer_that_computes_too_early_is_a_hazard"] = functools.partial(
    missing_wait_is_a_hazard, _ComputesTooEarly, 0.02
)
CHECKS["a_copy_that_begins_too_early_is_a_hazard"] = functools.partial(missing_wait_is_a_hazard, _CopiesTooEarly, 0.002)


# -------------------------------------------------------------------------------------------------------------- pinning


class SimRegistrar:
    """The simulated driver, as CUDA's is asked."""

    def register(self, address: int, num_bytes: int) -> int:
        return sim.host_register(address, num_bytes)

    def unregister(self, address: int) -> int:
        return sim.host_unregister(address)


def empty_host_cache() -> None:
    """Unpin what closed sessions left to torch's own allocator."""
    gc.collect()
    torch.accelerator.empty_host_cache()


@contextmanager
def registering() -> Iterator[None]:
    """Slabs are registered with the driver, as on CUDA, and not taken from torch's own pinned memory."""
    empty_host_cache()
    with mock.patch.object(pinned_memory, "open_registrar", lambda device: SimRegistrar()):
        yield


@check
def registered_slabs_are_fetched_by_the_device_and_let_go_at_the_end() -> None:
    folder = folder_of("llama")
    with registering():
        before = sim.registered_bytes()
        for settings in ({"num_residents": 0}, {"num_residents": 0, "host_memory_bytes": 2}):
            with opened_on(folder, **in_layers(settings, folder)) as opened:
                slabs = sum(layer.slab.numel() for layer in opened.streamer.layers if isinstance(layer, HostSource))
                stages = opened.link.stage_bytes if isinstance(opened.link, StagedCopyEngine) else 0
                assert sim.registered_bytes() == before + slabs + stages > before, (
                    slabs,
                    stages,
                    before,
                    sim.registered_bytes(),
                )
                assert answer_under_watch(opened) == cpu_text(folder)
            assert sim.registered_bytes() == before
            assert sim.hazards() == []


def refused_at_slab(number: int, register: bool, tiers: str) -> None:
    """The rest stays pageable, or goes through the ring if one was pinned: slower, the same text, and a sentence."""
    folder = folder_of("llama")
    size = layer_bytes(folder)
    with registering() if register else contextlib.nullcontext(), registrable_restored():
        empty_host_cache()
        sim.set_registrable_bytes(sim.registered_bytes() + number * size + size // 2)
        with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
            sim.reset_counters()
            assert answer(opened, ASKED)[1] == cpu_text(folder)
            assert sim.hazards() == []
            (sentence,) = opened.notes
            has_ring = "disk" in tiers and number >= 2
            assert (sim.num_synchronous_copies() == 0) == has_ring, sentence
            num_pinned = max(0, number - 2) if "disk" in tiers else number
            num_host = num_tiers(opened)[1]
            assert f"{num_pinned} of {num_host} host layers" in sentence, sentence
            assert "then no more" in sentence, sentence
            assert ("through a pinned ring of 2" in sentence) == has_ring, sentence


for _number, _register, _tiers in (
    (3, True, "all in host memory"),
    (1, False, "all in host memory"),
    (0, True, "two in host memory, the rest on disk"),
    (3, True, "two in host memory, the rest on disk"),
    (3, False, "two in host memory, the rest on disk"),
):
    CHECKS[f"pinning_is_refused_at_slab {_number}: {'registered' if _register else 'from torch'}, {_tiers}"] = (
        functools.partial(refused_at_slab, _number, _register, _tiers)
    )


@check
def a_pageable_layer_too_large_for_the_stages_goes_without_them() -> None:
    """Layers differ in size where some are quantised; stages are as large as the largest layer on disk."""
    skipped = [f"model.layers.{index}" for index in (1, 3)]
    folder = save_quantized_folder(scratch() / "unequal", "nf4", sizes={}, llm_int8_skip_modules=[*skipped, "lm_head"])
    sizes = [layout.slab_bytes for layout in ModelFiles.open(folder).slabs.layouts]
    assert len(set(sizes)) > 1
    tiers = tuple(Tier.HOST if size == max(sizes) else Tier.DISK for size in sizes)
    with (
        registering(),
        registrable_restored(),
        mock.patch.object(
            session_plan, "plan_residency", lambda sizes, **_: ResidencyPlan(tiers, tuple(sizes), num_slots=2)
        ),
    ):
        sim.set_registrable_bytes(sim.registered_bytes() + 2 * max(sizes) - 4096)
        with opened_on(folder, compute_dtype="float32") as opened:
            assert answer(opened, ASKED)[1] == cpu_text(folder)
            assert sim.hazards() == []
            assert "0 of 1 host layers" in opened.notes[0]


@check
def a_known_limit_pins_a_ring_first_and_a_subset_beside_it() -> None:
    """As on WSL2: the driver is probed before anything is read, and nothing is refused later."""
    folder = folder_of("llama")
    size = layer_bytes(folder)
    with (
        registering(),
        registrable_restored(),
        mock.patch.object(pin_policy, "detect_platform", lambda: Platform.WSL2),
        mock.patch("offload.pin_budget.detect_platform", lambda: Platform.WSL2),
        mock.patch.object(
            pin_policy, "probe_pin_budget", lambda *_, **__: ProbeResult(5 * size, PinBudgetSource.REFUSED)
        ),
    ):
        sim.set_registrable_bytes(sim.registered_bytes() + 4 * size)  # four fifths of what was granted once
        with opened_on(folder, num_residents=0, ring_slots=3) as opened:
            assert num_tiers(opened) == (0, NUM_LAYERS, 0)
            assert isinstance(opened.link, StagedCopyEngine)
            (sentence,) = opened.notes
            assert "2 of 6 host layers" in sentence and "the driver grants no more" in sentence
            assert "the other 4 go through a pinned ring of 2" in sentence
            assert answer_under_watch(opened) == cpu_text(folder)


# -------------------------------------------------------------------------------------------------------- out of memory


def load_with_less_room(
    config: EngineConfig, folder: Path, draft: Path | None, stack: ExitStack, room: int
) -> OpenSession:
    """Open a session on a device that has room for `room` bytes of resident layers, and not for the planned ones."""
    loading = load_session(config, stack, target=folder, draft=draft)
    while next(loading).what != "layers":
        pass
    _embeddings, *late = plan_memory(config, target=folder, draft=draft).fixed
    late_bytes = sum(entry.num_bytes for entry in late)
    sim.set_capacity_bytes(allocated_bytes() + late_bytes + room)
    while True:
        try:
            next(loading)
        except StopIteration as end:
            opened: OpenSession = end.value
            return opened


def allocated_bytes() -> int:
    gc.collect()
    torch.accelerator.empty_cache()
    return int(torch.accelerator.memory_allocated(torch.device(DEVICE)))


def device_runs_out_at_resident(number: int, host_layers: int, has_draft: bool) -> None:
    """That layer and the later ones move a tier down, and the session says so and has room enough for its passes."""
    folder = wide_folder()
    size, draft = layer_bytes(folder), folder if has_draft else None
    config = config_of(folder, num_residents=3, host_memory_bytes=host_layers * size, draft=draft or "none", tree="8x4")
    with capacity_restored(), ExitStack() as stack:
        opened = load_with_less_room(config, folder, draft, stack, number * size + size // 2)
        residents, hosts, disks = num_tiers(opened)
        assert residents == number
        assert (hosts, disks) == (min(6 - number, host_layers), max(0, 6 - number - host_layers))
        assert "the device ran out of memory at layer" in opened.notes[0] and "instead" in opened.notes[0]
        assert opened.accounting.num_resident_layers == number
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        sim.reset_counters()
        answer(opened, ASKED)
        assert sim.hazards() == []
        assert sim.num_synchronous_copies() == 0, opened.notes


for _number, _hosts, _has_draft in ((0, 6, False), (2, 6, True), (2, 3, False), (1, 0, False)):
    CHECKS[f"device_runs_out_at_resident {_number}, host budget of {_hosts} layers"] = functools.partial(
        device_runs_out_at_resident, _number, _hosts, _has_draft
    )


@check
def no_room_for_the_ring_is_a_sentence() -> None:
    folder = wide_folder()
    before = allocated_bytes()
    with capacity_restored():
        config = config_of(folder, num_residents=0)
        sim.set_capacity_bytes(before + layer_bytes(folder))
        with (
            pytest.raises(BudgetError, match=r"ring of 2 layer slots.*--device-memory") as caught,
            open_session(config, target=folder),
        ):
            pass
        assert "\n" not in str(caught.value)
    assert allocated_bytes() == before


@check
def no_room_for_embeddings_is_a_sentence() -> None:
    folder = wide_folder()
    before = allocated_bytes()
    with capacity_restored():
        config = config_of(folder, num_residents=0)
        sim.set_capacity_bytes(before + 2 * layer_bytes(folder) + 8192)
        with pytest.raises(BudgetError, match=r"embeddings.*--device-memory"), open_session(config, target=folder):
            pass
    assert allocated_bytes() == before


@check
def no_room_for_a_draft_is_a_sentence() -> None:
    folder = wide_folder()
    before = allocated_bytes()
    with capacity_restored():
        config = config_of(folder, num_residents=0, draft=folder)
        sim.set_capacity_bytes(before + 5 * layer_bytes(folder))
        with (
            pytest.raises(BudgetError, match=r"draft.*--device-memory"),
            open_session(config, target=folder, draft=folder),
        ):
            pass
    assert allocated_bytes() == before


@check
def a_pass_without_room_costs_one_answer() -> None:
    """Something else took the memory: the prompt fails with a sentence, and once the memory is back, the next works."""
    folder = wide_folder()
    with opened_on(folder, num_residents=1) as opened, capacity_restored():
        answer(opened, request(max_new_tokens=2))
        sim.set_capacity_bytes(allocated_bytes())
        with pytest.raises(BudgetError, match=r"memory.*--device-memory"):
            list(opened.session.generate(request("a dog and a cat and so on " * 3)))
        sim.set_capacity_bytes(1 << 30)
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        assert sim.hazards() == []
    del opened


@check
def a_closed_session_leaves_nothing_on_the_device() -> None:
    folder = wide_folder()
    with opened_on(folder, num_residents=1) as opened:
        answer(opened, request(max_new_tokens=2))
    del opened
    before, threads = allocated_bytes(), threading.active_count()
    for settings in ({"num_residents": 2, "draft": "substitute", "tree": "8x4"}, TIERS[FEW_TIERS[1]]):
        with opened_on(folder, **in_layers(settings, folder)) as opened:
            answer(opened, request(max_new_tokens=3))
        del opened
        assert allocated_bytes() == before
        assert threading.active_count() == threads


@check
def a_load_may_be_closed_at_every_step() -> None:
    folder = wide_folder()
    before, threads = allocated_bytes(), threading.active_count()
    config = config_of(folder, num_residents=2, host_memory_bytes=3 * layer_bytes(folder))
    num_steps = 0
    while True:
        with ExitStack() as stack:
            loading = load_session(config, stack, target=folder)
            try:
                for _ in range(num_steps):
                    next(loading)
            except StopIteration:
                break
            loading.close()
        assert allocated_bytes() == before
        assert threading.active_count() == threads
        num_steps += 1
    assert num_steps > 6
    gc.collect()


# ----------------------------------------------------------------------------------------------------- the command line


def run_command(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.execute(arguments)
    return code, out.getvalue(), err.getvalue()


@check
def the_run_command_takes_the_device() -> None:
    folder = folder_of("llama")
    prompts = scratch() / "prompts.txt"
    prompts.write_text("the cat and the dog\na dog\n", encoding="utf-8")
    options = ["run", str(prompts), "--target", str(folder), "--draft", "none", "--raw", "--max-new-tokens", "12"]
    records = {}
    for device in ("cpu", "sim:0", "auto"):
        sim.reset_counters()
        code, out, err = run_command(*options, "--device", device, "--device-memory", "min")
        assert code == 0, err
        records[device] = [json.loads(line) for line in out.splitlines()]
        assert sim.hazards() == []
    texts = {device: [record["text"] for record in found] for device, found in records.items()}
    assert texts["cpu"] == texts["sim:0"] == texts["auto"] and all(texts["cpu"])
    assert all(record["bytes_streamed"] > 0 for record in records["sim:0"])


@check
def a_device_that_is_not_there_is_a_sentence() -> None:
    for device in ("sim:7", "cuda", "sim:x"):
        code, out, err = run_command("run", "-", "--target", str(folder_of("llama")), "--device", device)
        assert code == 2 and out == "" and err.count("\n") == 1, err


@check
def the_doctor_examines_the_device() -> None:
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(scratch()), "OVERSTORY_CACHE": str(scratch())}):
        code, out, err = run_command(
            "doctor", "--device", DEVICE, "--json", "--target", str(folder_of("llama")), "--draft", "none"
        )
    assert code in (0, 1), err
    record = json.loads(out)
    assert "sim:0" in json.dumps(record["devices"])
    assert record["link"]["value"]["pinned_bytes_per_second"] > 0, record["link"]


@check
def a_calibration_measures_the_device() -> None:
    scope = replace(calibrate_command.QUICK, budget_seconds=3.0, transfer_bytes=(1 << 16, 1 << 20), max_texts=2)
    target, state = folder_of("llama"), scratch() / "state"
    budget = layer_bytes(target) * 2 + fixed_bytes(config_of(target, draft=target, context_tokens=200), target, target)
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(scratch()), "OVERSTORY_CACHE": str(state)}),
        mock.patch.object(calibrate_command, "QUICK", scope),
    ):
        code, out, err = run_command(
            *("calibrate", "--quick", "--device", DEVICE, "--target", str(target), "--draft", str(target)),
            *("--draft-format", "stored", "--context", "200", "--device-memory", f"{budget}B"),
        )
    assert code == 0, err
    record = json.loads(out)
    assert "(sim)" in record["device"], record["device"]
    assert record["link_bytes_per_second"] > 0
    assert record["copy_seconds"] > 0
    assert [table["temperature"] for table in record["acceptance"]] == [0.0, 0.6, 1.0]
    assert all(table["by_rank"][0] > 0.99 for table in record["acceptance"])  # the draft is the target
    assert len(list(state.glob("*.json"))) == 2


# ------------------------------------------------------------------------------------------------- the tests themselves


def run_checks(names: list[str]) -> None:
    """Run the checks in this process, with what sessions on tiny models need."""
    faulthandler.dump_traceback_later(260, exit=True)
    folder_of("llama")  # imports what saving needs
    gc.freeze()  # a session collects garbage when it opens, and the libraries' own objects take it 0.3 s each time
    CHECKS.run(names)
    scratch.keeper.cleanup()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    return CHECKS.failures()


@needs_compiler
@pytest.mark.parametrize("name", CHECKS)
def test_on_accelerator(name, failures):
    assert name not in failures, failures[name]


if __name__ == "__main__":
    run_checks(sys.argv[1:])
