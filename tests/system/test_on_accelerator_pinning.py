"""Slabs of a session are registered with the simulated driver, which may refuse, and are let go at its end."""

import contextlib
import functools
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from offload.copying.copy_engine import HostSource
from offload.copying.staged_engine import StagedCopyEngine
from offload.pinning import pinned_memory
from offload.pinning.pin_probe import PinBudget
from offload.residency_plan import ResidencyPlan, Tier
from profiles.machine_profile import PinBudgetSource
from runtime.fit import place
from runtime.model.model_loader import ModelFiles
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    ASKED,
    NUM_LAYERS,
    TIERS,
    answer_under_watch,
    cpu_text,
    folder_of,
    in_layers,
    layer_bytes,
    num_tiers,
    opened_on,
    quick_sessions,
    registrable_restored,
    scratch,
)
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import answer
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check


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
                stages = opened.link.ring.num_bytes if isinstance(opened.link, StagedCopyEngine) else 0
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
def a_pageable_layer_larger_than_the_stages_goes_through_them_in_pieces() -> None:
    """Layers differ in size where some are quantized; stages are as large as the largest layer on disk."""
    skipped = [f"model.layers.{index}" for index in (1, 3)]
    folder = save_quantized_folder(scratch() / "unequal", "nf4", sizes={}, llm_int8_skip_modules=[*skipped, "lm_head"])
    sizes = [layout.slab_bytes for layout in ModelFiles.open(folder).layouts]
    assert len(set(sizes)) > 1
    tiers = tuple(Tier.HOST if size == max(sizes) else Tier.DISK for size in sizes)
    with (
        registering(),
        registrable_restored(),
        mock.patch.object(place, "plan_residency", lambda sizes, **_: ResidencyPlan(tiers, tuple(sizes), num_slots=2)),
    ):
        sim.set_registrable_bytes(sim.registered_bytes() + 2 * max(sizes) - 4096)
        with opened_on(folder, compute_dtype="float32") as opened:
            sim.reset_counters()
            assert answer(opened, ASKED)[1] == cpu_text(folder)
            assert sim.hazards() == []
            assert sim.num_synchronous_copies() == 0
            assert "0 of 1 host layers" in opened.notes[0]


@check
def a_known_limit_pins_a_ring_first_and_a_subset_beside_it() -> None:
    """As on WSL2: the driver is probed before anything is read, and nothing is refused later."""
    folder = folder_of("llama")
    size = layer_bytes(folder)
    with (
        registering(),
        registrable_restored(),
        mock.patch("offload.pinning.pin_budget.detect_platform", lambda: "WSL2"),
        mock.patch(
            "offload.pinning.pin_budget.probe_pin_budget",
            lambda *_, **__: PinBudget(4 * size, PinBudgetSource.REFUSED),
        ),
    ):
        sim.set_registrable_bytes(sim.registered_bytes() + 5 * size)  # four fifths are kept of what was granted once
        with opened_on(folder, num_residents=0, ring_slots=3) as opened:
            assert num_tiers(opened) == (0, NUM_LAYERS, 0)
            assert isinstance(opened.link, StagedCopyEngine)
            (sentence,) = opened.notes
            assert "2 of 6 host layers" in sentence and "the driver grants no more" in sentence
            assert "the other 4 go through a pinned ring of 2" in sentence
            assert answer_under_watch(opened) == cpu_text(folder)


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
