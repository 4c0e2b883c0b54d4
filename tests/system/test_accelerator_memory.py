"""Where the simulated accelerator's memory runs out, layers move down a tier or one sentence says so; none leaks."""

import functools
import gc
import sys
import threading
from contextlib import ExitStack

import pytest
import torch

from offload.errors import BudgetError
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import OpenSession, load_session, open_session
from runtime.fit.machine import RESERVED_BYTES, RESERVED_SHARE
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    ASKED,
    DEVICE,
    FEW_TIERS,
    TIERS,
    capacity_restored,
    config_of,
    cpu_text,
    in_layers,
    layer_bytes,
    num_tiers,
    opened_on,
    quick_sessions,
    wide_folder,
)
from tests.support.generator_ends import drained
from tests.support.session_factory import answer, request
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions, is_alone=True)
check = CHECKS.check


def load_with_less_room(config: EngineConfig, stack: ExitStack, room: int) -> OpenSession:
    """Open a session on a device that has room for `room` bytes of resident layers, and not for the planned ones."""
    empty_device_cache()  # or the ring might lie in larger blocks, of what an earlier session left
    loading = load_session(config, stack)
    while next(loading).what != "layers":
        pass
    sim.set_capacity_bytes(allocated_bytes() + LoadPlan.build(config).placement.late_bytes + room)
    return drained(loading)[1]


def empty_device_cache() -> None:
    gc.collect()
    torch.accelerator.empty_cache()


def allocated_bytes() -> int:
    empty_device_cache()
    return int(torch.accelerator.memory_allocated(torch.device(DEVICE)))


@check
def a_second_session_finds_the_memory_of_the_first() -> None:
    """As where a chat opens another model: what torch's allocator caches is no free memory of the device."""
    folder = wide_folder()
    config = config_of(folder)
    with capacity_restored():
        needed = int(1.3 * LoadPlan.build(config).placement.device_bytes)
        sim.set_capacity_bytes(allocated_bytes() + int((needed + RESERVED_BYTES) / (1 - RESERVED_SHARE)))
        for _ in range(3):
            with opened_on(folder) as opened:
                assert num_tiers(opened) == (6, 0, 0)
                answer(opened, ASKED)
            del opened


def device_runs_out_at_resident(number: int, host_layers: int, has_draft: bool) -> None:
    """That layer and the later ones move a tier down, and the session says so and has room enough for its passes."""
    folder = wide_folder()
    size, draft = layer_bytes(folder), folder if has_draft else None
    config = config_of(folder, num_residents=3, host_memory_bytes=host_layers * size, draft=draft or "none", tree="8x4")
    with capacity_restored(), ExitStack() as stack:
        opened = load_with_less_room(config, stack, number * size + size // 2)
        residents, hosts, disks = num_tiers(opened)
        assert residents == number
        assert (hosts, disks) == (min(6 - number, host_layers), max(0, 6 - number - host_layers))
        assert "the device ran out of memory at layer" in opened.notes[0] and "instead" in opened.notes[0]
        assert opened.placement.num_resident_layers == number
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
            open_session(config),
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
        with pytest.raises(BudgetError, match=r"embeddings.*--device-memory"), open_session(config):
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
            open_session(config),
        ):
            pass
    assert allocated_bytes() == before


@check
def a_pass_without_room_costs_one_answer() -> None:
    """Something else took the memory: the prompt fails with a sentence, and once the memory is back, the next works."""
    folder = wide_folder()
    with capacity_restored(), opened_on(folder, num_residents=1) as opened:
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
            loading = load_session(config, stack)
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


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
