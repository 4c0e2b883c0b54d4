"""Pinned host memory, which a device fetches by itself: slabs that are pinned as far as budget and driver allow.

Where a driver can register memory in place (CUDA, ROCm), slabs are mappings of exact size, filled and then registered:
torch's pinned allocator takes the next power of two, and registering untouched memory would fault and clear it first.
All driver calls come from one thread, because the error that a refusal leaves behind belongs to the thread that met it.
Other accelerators get slabs from torch's own allocator, the processor needs none. The one module that says "cuda".
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from offload.closing import PATIENCE_SECONDS, Closeable
from offload.errors import LinkError
from offload.memory import allocate_slab
from offload.units import PAGE_BYTES, format_bytes, round_up_to_page

logger = logging.getLogger(__name__)

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not only for the current one."""
_CODE_NAMES = {1: "invalid value", 2: "out of memory", 712: "already registered", 801: "not supported"}

CLOSING_SECONDS = 0.5
"""The most that closing takes: a process that ends need not wait, as the driver lets go of its memory then anyway."""

_never_unmapped: list[torch.Tensor] = []
"""Slabs that the driver would not let go: were their addresses used again, copies would read the old pages."""
_still_unpinning: "list[PinnedMemory]" = []
"""Closed ones whose thread still gives slabs back to the driver."""


def _do_nothing() -> None:
    """Wait for no slab in particular."""


class HostPinner(Closeable):
    """Hands out slabs and pins them as far as budget and driver allow; a context manager, driven from one thread.

    The order for each slab: `allocate`, fill it, `filled`; after the last one `finish`. Copies may start after that.
    This one pins nothing, which is all that a device needs that computes in host memory.
    """

    refused: str | None = None
    """One sentence if memory was refused at some slab, after which nothing more is pinned; else None."""

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """Return a slab of whole pages, uint8 of shape (round_up_to_page(num_bytes),), for the caller to fill.

        `huge_pages`: see allocate_slab; memory that is pinned from the start is left as it comes.
        """
        return allocate_slab(num_bytes, huge_pages=huge_pages)

    def filled(self, slab: torch.Tensor, *, then: Callable[[], None] = _do_nothing) -> None:
        """Pin a slab that holds its bytes by now, at once or in the background; returns at once.

        `then` is called, from any thread, when the slab is pinned, or certain not to be.
        """
        then()

    def finish(self) -> None:
        """Block until nothing is being pinned any more.

        Raises LinkError if the driver does not answer within the patience: no copy may start then.
        """

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """Return whether all of a slab from `allocate` is pinned; never True before that is certain."""
        return False

    def close(self) -> None:
        """Unpin everything, or leave the rest of it to a thread; may be called again. No copy may be in flight."""


def _allocate_pinned(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class AllocatorPinnedMemory(HostPinner):
    """Slabs from torch's own pinned allocator, pinned from the start; pageable ones once it refuses or at the budget.

    The allocator takes the next power of two of every size, which is what counts against the budget. It keeps freed
    memory for itself, so that `close` gives nothing back to the system.
    """

    def __init__(self, budget_bytes: int | None) -> None:
        """`budget_bytes`: None for no limit."""
        self._budget_bytes = budget_bytes
        self._slabs: dict[int, torch.Tensor] = {}

    @property
    def pinned_bytes(self) -> int:
        return sum(_taken_bytes(slab.numel()) for slab in self._slabs.values())

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        size = max(round_up_to_page(num_bytes), PAGE_BYTES)
        has_room = self._budget_bytes is None or self.pinned_bytes + _taken_bytes(size) <= self._budget_bytes
        if has_room and self.refused is None:
            try:
                slab = _allocate_pinned(size)
                if slab.is_pinned():  # the allocator's own word is all there is to go by here
                    self._slabs[slab.data_ptr()] = slab
                    return slab
                cause = "torch returned memory that it does not call pinned"
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                cause = " ".join(str(error).split())[:200]
            self.refused = f"torch pinned {format_bytes(self.pinned_bytes)} of host memory and then no more ({cause})"
            logger.warning("%s", self.refused)
        return allocate_slab(num_bytes, huge_pages=huge_pages)

    def is_pinned(self, slab: torch.Tensor) -> bool:
        return slab.data_ptr() in self._slabs

    def close(self) -> None:
        """Let go of all slabs; torch's allocator may use their memory again once their last view is gone."""
        self._slabs.clear()


def _taken_bytes(num_bytes: int) -> int:
    """Return what torch's pinned allocator takes: the next power of two."""
    return 1 << (num_bytes - 1).bit_length()


class HostRegistrar:
    """Pins memory in place through torch's CUDA or ROCm runtime, whose calls bear the same names.

    Both calls return the driver's code, 0 for success, and raise for none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        """Pin `num_bytes` (more than 0, whole pages) at `address`."""
        return self._call("cudaHostRegister", address, num_bytes, _PORTABLE)

    def unregister(self, address: int) -> int:
        """Undo the `register` that began at `address`."""
        return self._call("cudaHostUnregister", address)

    def _call(self, name: str, *arguments: int) -> int:
        with torch.cuda.device(self._device):  # a new thread would otherwise open a context on device 0
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            code = int(getattr(runtime, name)(*arguments))
            if code:
                # torch has no cudaGetLastError, but the check behind every kernel launch calls it: it ends here.
                try:
                    torch.ones(1, device=self._device)
                except RuntimeError as error:
                    logger.debug("cleared what the refusal left behind: %s", error)
        return code


class PinnedMemory(HostPinner):
    """A HostPinner that registers filled slabs on a thread of its own, as far as budget and driver allow.

    Owns its slabs until it is closed, even if nobody else holds them. `finish` gives up on a call that outlasts the
    patience (None: never).
    """

    def __init__(
        self,
        registrar: HostRegistrar,
        budget_bytes: int | None,
        *,
        patience_seconds: float | None = PATIENCE_SECONDS,
    ) -> None:
        """`budget_bytes`: None for no limit."""
        self._registrar = registrar
        self._left_bytes = budget_bytes
        self._patience_seconds = patience_seconds
        self._slabs: dict[int, torch.Tensor] = {}
        self._pinned: set[int] = set()
        self._queue: deque[tuple[torch.Tensor, Callable[[], None]]] = deque()  # the first of them is with the driver
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="pin", daemon=True)
        self._thread.start()

    @property
    def pinned_bytes(self) -> int:
        with self._wake:
            return sum(self._slabs[address].numel() for address in self._pinned)

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """Return a zeroed slab of whole pages, uint8, pageable so far; see HostPinner."""
        slab = allocate_slab(num_bytes, huge_pages=huge_pages)
        with self._wake:
            self._slabs[slab.data_ptr()] = slab
        return slab

    def filled(self, slab: torch.Tensor, *, then: Callable[[], None] = _do_nothing) -> None:
        """Queue the registration and return at once; a slab beyond the budget, or after a refusal, stays pageable."""
        with self._wake:
            assert slab.data_ptr() in self._slabs, "the slab was not allocated here"
            has_room = self._left_bytes is None or slab.numel() <= self._left_bytes
            if self.refused is None and has_room:
                if self._left_bytes is not None:
                    self._left_bytes -= slab.numel()
                self._queue.append((slab, then))
                self._wake.notify_all()
                return
        then()

    def finish(self) -> None:
        with self._wake:
            if not self._wait_until(lambda: not self._queue):
                raise LinkError(
                    f"The driver has been pinning host memory for {self._patience_seconds:g} seconds without an "
                    "answer; check that the device works, then try again."
                )

    def is_pinned(self, slab: torch.Tensor) -> bool:
        with self._wake:
            return slab.data_ptr() in self._pinned

    def close(self) -> None:
        """Unregister every slab, then let them go; may be called again. Takes at most CLOSING_SECONDS.

        The driver takes some seconds for a hundred gigabytes. What is left then goes on in the thread, which keeps all
        slabs mapped, and `wait_until_unpinned` waits for it.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
            is_over = self._wake.wait_for(lambda: not self._slabs, CLOSING_SECONDS)
            if not is_over and self not in _still_unpinning:
                _still_unpinning.append(self)
        if is_over:
            self._thread.join()

    def wait_until_unpinned(self) -> None:
        """Block until a closed one holds no slab any more, or the driver has not answered for the patience."""
        with self._wake:
            if not self._wait_until(lambda: not self._slabs):
                logger.warning("the driver has not answered for %g s; its memory stays", self._patience_seconds)
                return
        self._thread.join()

    def _wait_until(self, is_over: Callable[[], bool]) -> bool:
        """Wait with the lock held; return whether it came to that before the driver stopped to answer."""
        while not is_over():
            if not self._wake.wait(self._patience_seconds):  # every answer of the driver's wakes it
                return False
        return True

    def _work(self) -> None:
        while (slab := self._next_slab()) is not None:
            failure = self._attempt(self._registrar.register, slab.data_ptr(), slab.numel())
            with self._wake:
                if failure is None:
                    self._pinned.add(slab.data_ptr())
                    settled = [self._queue.popleft()]
                else:  # one refusal spoils the calls after it
                    settled = list(self._queue)
                    self._queue.clear()
                    pinned = format_bytes(self.pinned_bytes)
                    self.refused = f"the driver pinned {pinned} of host memory and then no more ({failure})"
                    logger.warning("%s", self.refused)
                self._wake.notify_all()
            for _, then in settled:
                then()
        for address in tuple(self._pinned):
            with self._wake:
                self._pinned.remove(address)
            self._unregister(self._slabs[address])
        with self._wake:
            self._queue.clear()
            self._slabs.clear()
            if self in _still_unpinning:
                _still_unpinning.remove(self)
            self._wake.notify_all()

    def _next_slab(self) -> torch.Tensor | None:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._is_closing)
            return None if self._is_closing else self._queue[0][0]

    def _unregister(self, slab: torch.Tensor) -> None:
        failure = self._attempt(self._registrar.unregister, slab.data_ptr())
        if failure is not None:
            logger.warning("the driver would not unpin %d bytes (%s); they stay mapped", slab.numel(), failure)
            _never_unmapped.append(slab)

    def _attempt(self, call: Callable[..., int], *arguments: int) -> str | None:
        """Return why the driver refused; None if it did not."""
        try:
            code = call(*arguments)
            failure = None if code == 0 else f"error {code}{f', {_CODE_NAMES[code]}' if code in _CODE_NAMES else ''}"
        except Exception as error:  # a refusal like any other: the thread lives on to unregister the rest
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with self._wake:
            self._wake.notify_all()
        return failure


def wait_until_unpinned() -> None:
    """Block until the memory of every pinner that was closed is free, as far as the driver answers.

    For whoever is about to count free memory, or to pin anew.
    """
    for pinner in tuple(_still_unpinning):
        pinner.wait_until_unpinned()


def open_registrar(device: torch.device) -> HostRegistrar | None:
    """Return the driver that pins memory in place for `device`; None if torch gives access to none."""
    return HostRegistrar(device) if device.type == "cuda" else None


def open_pinner(
    device: torch.device, budget_bytes: int | None, *, patience_seconds: float | None = PATIENCE_SECONDS
) -> HostPinner:
    """Return the way to pin host memory for `device`, with at most `budget_bytes` of it (None: no limit)."""
    if device.type == "cpu":
        return HostPinner()
    registrar = open_registrar(device)
    if registrar is None:
        return AllocatorPinnedMemory(budget_bytes)
    return PinnedMemory(registrar, budget_bytes, patience_seconds=patience_seconds)
