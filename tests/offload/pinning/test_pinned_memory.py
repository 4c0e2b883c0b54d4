"""Registered after they are filled, on one thread; a refusal leaves a mixture that works.

Without a driver of ours: by torch's allocator as long as it gives any, or not at all.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from offload.pinning import pinned_memory
from offload.pinning.pinned_memory import (
    AllocatorPinnedMemory,
    HostPinner,
    HostRegistrar,
    PinnedMemory,
    open_pinner,
    open_registrar,
)
from offload.units import round_up_to_page
from tests.support.fake_driver import FakeDriver, at_call
from tests.support.pinned_slabs import CHUNK, PAGE, pin


def test_a_slab_is_registered_to_the_byte_and_only_once_it_is_filled() -> None:
    driver = FakeDriver()
    with PinnedMemory(driver, None) as memory:
        slab = memory.allocate(5 * PAGE - 1)
        assert slab.dtype == torch.uint8 and slab.shape == (5 * PAGE,) and slab.data_ptr() % PAGE == 0
        memory.finish()
        assert not memory.is_pinned(slab) and driver.ranges == {}
        memory.filled(slab)
        memory.finish()
        assert memory.is_pinned(slab) and memory.refused is None
        assert memory.pinned_bytes == 5 * PAGE
        assert driver.ranges == {slab.data_ptr(): 5 * PAGE}


@pytest.mark.parametrize("num_bytes", [0, 1, PAGE, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 33 * PAGE])
def test_sizes_are_whole_pages_and_not_powers_of_two(num_bytes: int) -> None:
    driver = FakeDriver()
    with PinnedMemory(driver, None) as memory:
        (slab,) = pin(memory, num_bytes)
        expected = max(PAGE, -(-num_bytes // PAGE) * PAGE)
        assert memory.pinned_bytes == driver.pinned_bytes == slab.numel() == expected
        assert driver.ranges == {slab.data_ptr(): expected}


def test_every_driver_call_comes_from_one_thread_which_is_not_the_callers() -> None:
    """The error that a refusal leaves behind belongs to the thread that met it."""
    driver = FakeDriver(capacity_bytes=3 * CHUNK)
    with PinnedMemory(driver, None) as memory:
        pin(memory, CHUNK, 4 * CHUNK)
    assert len(driver.thread_ids) == 1 and threading.get_ident() not in driver.thread_ids


@pytest.mark.parametrize("refused_call", range(1, 4))
def test_a_refusal_at_any_slab_leaves_a_working_mixture(refused_call: int) -> None:
    """Of three slabs: all before it stay pinned, and no later one is tried."""
    driver = FakeDriver()
    driver.before_call = at_call(refused_call, lambda: setattr(driver, "is_poisoned", True))
    with PinnedMemory(driver, None) as memory:
        slabs = pin(memory, *[3 * CHUNK] * 3)
        num_whole = refused_call - 1
        assert [memory.is_pinned(slab) for slab in slabs] == [index < num_whole for index in range(3)]
        assert driver.ranges == {slab.data_ptr(): 3 * CHUNK for slab in slabs[:num_whole]}
        assert memory.pinned_bytes == num_whole * 3 * CHUNK
        assert driver.num_register_calls == refused_call
        assert memory.refused is not None and "error 2, out of memory" in memory.refused
        (late,) = pin(memory, CHUNK)
        assert not memory.is_pinned(late) and driver.num_register_calls == refused_call
        assert all(bool((slab == 1).all()) for slab in [*slabs, late])
    assert driver.ranges == {}


def test_the_refusal_is_one_sentence_with_what_was_pinned_before(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), PinnedMemory(FakeDriver(capacity_bytes=2 * CHUNK), None) as memory:
        pin(memory, 2 * CHUNK, CHUNK)
        expected = "the driver pinned 32.8 KB of host memory and then no more (error 2, out of memory)"
        assert memory.refused == expected and caplog.messages == [expected]


def test_a_driver_that_raises_has_refused() -> None:
    def fail() -> None:
        raise RuntimeError("the device\nfell off the bus")

    driver = FakeDriver(before_call=at_call(2, fail))
    with PinnedMemory(driver, None) as memory:
        slabs = pin(memory, CHUNK, CHUNK, CHUNK)
        assert [memory.is_pinned(slab) for slab in slabs] == [True, False, False]
        assert memory.refused is not None and "RuntimeError: the device fell off the bus" in memory.refused
    assert driver.ranges == {}


def test_the_budget_is_never_exceeded_and_its_rest_is_used() -> None:
    driver = FakeDriver()
    with PinnedMemory(driver, 5 * PAGE) as memory:
        slabs = pin(memory, 3 * PAGE, 3 * PAGE, 2 * PAGE, PAGE)
        assert [memory.is_pinned(slab) for slab in slabs] == [True, False, True, False]
        assert memory.pinned_bytes == driver.pinned_bytes == 5 * PAGE
        assert memory.refused is None  # nobody asked the driver for more


def test_a_budget_of_nothing_asks_the_driver_for_nothing() -> None:
    driver = FakeDriver()
    with PinnedMemory(driver, 0) as memory:
        pin(memory, PAGE)
    assert driver.num_register_calls == 0


class FakeRuntime:
    """What `torch.cuda.cudart()` returns, as far as it is used."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes
        self.calls: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("register", address, num_bytes, flags))
        return self.codes.pop(0)

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.calls.append(("unregister", address))
        return self.codes.pop(0)


class NoDevice:
    """Stands for `torch.cuda.device`, which needs a driver."""

    entered: list[torch.device] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.entered.append(self.device)

    def __exit__(self, *_: object) -> None: ...


def test_the_real_registrar_hands_codes_back_and_clears_what_a_refusal_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime([0, 2, 0, 712])
    launches: list[torch.device] = []

    def launch(_: int, *, device: torch.device) -> None:
        launches.append(device)
        raise RuntimeError("CUDA error: out of memory")  # the refusal's, met by an innocent kernel

    monkeypatch.setattr(NoDevice, "entered", [])
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", NoDevice)
    monkeypatch.setattr(torch, "ones", launch)
    device = torch.device("cuda", 1)
    registrar = HostRegistrar(device)
    assert [registrar.register(8192, 4096), registrar.register(16384, 4096)] == [0, 2]
    assert launches == [device]
    assert [registrar.unregister(8192), registrar.unregister(16384)] == [0, 712]
    assert launches == [device, device]
    assert runtime.calls == [
        ("register", 8192, 4096, 1),
        ("register", 16384, 4096, 1),
        ("unregister", 8192),
        ("unregister", 16384),
    ]
    assert NoDevice.entered == [device] * 4


def test_each_kind_of_device_gets_its_way_of_pinning() -> None:
    kinds: dict[str, type] = {"cpu": HostPinner, "cuda": PinnedMemory, "xpu": AllocatorPinnedMemory}
    for name, kind in kinds.items():
        with open_pinner(torch.device(name), 123 * PAGE) as pinner:
            assert type(pinner) is kind
    assert isinstance(open_registrar(torch.device("cuda", 1)), HostRegistrar)
    assert open_registrar(torch.device("xpu")) is None


def test_a_machine_without_the_driver_ends_with_pageable_slabs() -> None:
    """torch raises where it was built without it, or finds no device."""
    if torch.cuda.is_available():
        pytest.skip("the driver is there")
    pinner: HostPinner = open_pinner(torch.device("cuda"), None)
    with pinner:
        slab = pinner.allocate(PAGE)
        pinner.filled(slab)
        pinner.finish()
        assert not pinner.is_pinned(slab) and pinner.refused is not None


class PinnedTensor(torch.Tensor):
    """Host memory that calls itself pinned."""

    def is_pinned(self, *_: object) -> bool:
        return True


class FakeAllocator:
    """Gives pinned tensors until a call fails with the given error."""

    def __init__(self, error: Exception | None = None, *, failing_call: int = 0, gives_pinned: bool = True) -> None:
        self.error = error
        self.failing_call = failing_call
        self.gives_pinned = gives_pinned
        self.requests: list[int] = []

    def __call__(self, num_bytes: int) -> torch.Tensor:
        self.requests.append(num_bytes)
        if self.error is not None and len(self.requests) == self.failing_call:
            raise self.error
        memory = torch.zeros(num_bytes, dtype=torch.uint8)
        return memory.as_subclass(PinnedTensor) if self.gives_pinned else memory


Use = Callable[[FakeAllocator], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Puts an allocator in the place of torch's own."""
    return partial(monkeypatch.setattr, pinned_memory, "_allocate_pinned")


def fill(pinner: HostPinner, *sizes: int) -> list[bool]:
    """Whether each of the slabs is pinned in the end; they are always whole pages of bytes."""
    slabs = [pinner.allocate(size) for size in sizes]
    for size, slab in zip(sizes, slabs, strict=True):
        assert slab.dtype == torch.uint8 and slab.shape == (max(PAGE, round_up_to_page(size)),)
        pinner.filled(slab.fill_(1))
    pinner.finish()
    return [pinner.is_pinned(slab) for slab in slabs]


def test_the_processor_needs_nothing_pinned() -> None:
    with HostPinner() as pinner:
        assert fill(pinner, 0, 5, 3 * PAGE) == [False] * 3
        assert pinner.refused is None


def test_memory_from_torch_is_pinned_from_the_start(use: Use) -> None:
    use(FakeAllocator())
    with AllocatorPinnedMemory(None) as pinner:
        slab = pinner.allocate(5)
        assert pinner.is_pinned(slab) and pinner.pinned_bytes == PAGE
        assert not pinner.is_pinned(torch.zeros(PAGE, dtype=torch.uint8))


def test_what_torch_really_takes_counts_against_the_budget(use: Use) -> None:
    """Its allocator rounds 5 pages up to 8."""
    use(allocator := FakeAllocator())
    with AllocatorPinnedMemory(10 * PAGE) as pinner:
        assert fill(pinner, 5 * PAGE, 3 * PAGE, 2 * PAGE, PAGE) == [True, False, True, False]
        assert pinner.pinned_bytes == 10 * PAGE and pinner.refused is None
        assert allocator.requests == [5 * PAGE, 2 * PAGE]


@pytest.mark.parametrize("error", [RuntimeError("no\nmore"), torch.OutOfMemoryError("no more")])
def test_after_a_refusal_slabs_are_pageable_and_torch_is_not_asked_again(
    error: Exception, caplog: pytest.LogCaptureFixture, use: Use
) -> None:
    use(allocator := FakeAllocator(error, failing_call=3))
    with caplog.at_level(logging.WARNING), AllocatorPinnedMemory(None) as pinner:
        assert fill(pinner, PAGE, PAGE, PAGE, PAGE) == [True, True, False, False]
        assert len(allocator.requests) == 3
        assert pinner.refused == "torch pinned 8.19 KB of host memory and then no more (no more)"
        assert caplog.messages == [pinner.refused]


def test_memory_that_torch_does_not_call_pinned_is_not_counted(use: Use) -> None:
    use(FakeAllocator(gives_pinned=False))
    with AllocatorPinnedMemory(None) as pinner:
        assert fill(pinner, PAGE) == [False]
        assert pinner.pinned_bytes == 0 and "does not call pinned" in str(pinner.refused)


def test_closing_lets_go_of_everything_and_may_be_repeated(use: Use) -> None:
    use(FakeAllocator())
    pinner = AllocatorPinnedMemory(None)
    slab = pinner.allocate(PAGE)
    pinner.close()
    pinner.close()
    assert not pinner.is_pinned(slab) and pinner.pinned_bytes == 0


def test_a_machine_without_an_accelerator_falls_back_to_pageable_slabs() -> None:
    if torch.accelerator.is_available():
        pytest.skip("torch can pin memory here")
    with AllocatorPinnedMemory(None) as pinner:
        assert fill(pinner, 3 * PAGE) == [False]
        assert pinner.refused is not None
