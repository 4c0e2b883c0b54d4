"""Pinned host memory: slabs that a device fetches by itself, without the processor, in the three ways there are.

Where a driver can register memory in place (CUDA, ROCm), slabs are anonymous mappings of exact size, filled first and
then registered behind the back: torch's pinned allocator takes the next power of two, up to twice the memory, and
registering untouched memory would fault and clear it first. Registration is serialised in the driver, hence one thread,
and all driver calls are made on it, because the error that a refusal leaves behind belongs to the thread that met it.
Other accelerators get slabs from torch's own pinned allocator, and for the processor nothing has to be pinned.
The one module that says "cuda".
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch

from offload.closing import PATIENCE_SECONDS, Closeable, Patience
from offload.errors import LinkError
from offload.memory import allocate_slab
from offload.units import PAGE_BYTES, format_bytes, round_up_to_page

logger = logging.getLogger(__name__)

DEFAULT_CHUNK_BYTES = 1 << 30
_POLL_SECONDS = 0.02
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not only for the current one."""
_CODE_NAMES = {1: "invalid value", 2: "out of memory", 712: "already registered", 801: "not supported"}

_never_unmapped: list[torch.Tensor] = []
"""Slabs that the driver would not let go: were their addresses used again, copies would read the old pages."""


class HostPinner(Closeable):
    """Hands out slabs and pins them as far as budget and driver allow; a context manager, driven from one thread.

    The order for each slab: `allocate`, fill it, `filled`; after the last one `finish`. Copies may start after that.
    This one pins nothing, which is all that a device needs that computes in host memory.
    """

    refused: str | None = None
    """One sentence if memory was refused at some slab, after which nothing more is pinned; else None."""

    @property
    def pinned_bytes(self) -> int:
        """What is pinned now, as the system accounts for it."""
        return 0

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """Return a slab of whole pages, uint8 of shape (round_up_to_page(num_bytes),), for the caller to fill.

        `huge_pages`: see allocate_slab; memory that is pinned from the start is left as it comes.
        """
        return allocate_slab(num_bytes, huge_pages=huge_pages)

    def filled(self, slab: torch.Tensor) -> None:
        """Pin a slab that holds its bytes by now, at once or in the background; returns at once."""

    def finish(self) -> None:
        """Block until nothing is being pinned any more.

        Raises LinkError if the driver does not answer within the patience: no copy may start then.
        """

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """Return whether all of a slab from `allocate` is pinned; never True before that is certain."""
        return False

    def close(self) -> None:
        """Unpin everything; may be called again. No copy may be in flight any more."""


def _allocate_pinned(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class AllocatorPinnedMemory(HostPinner):
    """Slabs from torch's own pinned allocator, pinned from the start; pageable ones once it refuses or at the budget.

    The allocator takes the next power of two of every size, which is what counts against the budget. It keeps freed
    memory for itself, so that `close` gives nothing back to the system.
    """

    def __init__(
        self, budget_bytes: int | None, *, allocate_pinned: Callable[[int], torch.Tensor] = _allocate_pinned
    ) -> None:
        """`budget_bytes`: None for no limit. `allocate_pinned` gets a number of bytes and may raise RuntimeError."""
        self._budget_bytes = budget_bytes
        self._allocate_pinned = allocate_pinned
        self._slabs: dict[int, torch.Tensor] = {}

    @property
    def pinned_bytes(self) -> int:
        return sum(_taken_bytes(slab.numel()) for slab in self._slabs.values())

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        size = max(round_up_to_page(num_bytes), PAGE_BYTES)
        has_room = self._budget_bytes is None or self.pinned_bytes + _taken_bytes(size) <= self._budget_bytes
        if has_room and self.refused is None:
            try:
                slab = self._allocate_pinned(size)
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


class HostRegistrar(Protocol):
    """A driver that can pin memory in place. Both calls return its code, 0 for success."""

    def register(self, address: int, num_bytes: int) -> int:
        """Pin `num_bytes` (more than 0, whole pages) at `address`."""

    def unregister(self, address: int) -> int:
        """Undo the `register` that began at `address`."""


class CudaHostRegistrar:
    """Registers through torch's CUDA or ROCm runtime, whose calls bear the same names; never raises for a code."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        return self._call("cudaHostRegister", address, num_bytes, _PORTABLE)

    def unregister(self, address: int) -> int:
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


class _State(Enum):
    PAGEABLE = "pageable"
    QUEUED = "queued"
    PINNED = "pinned"


@dataclass(slots=True)
class _Slab:
    """A slab, how far it is, and which of its chunks the driver has."""

    memory: torch.Tensor
    state: _State = _State.PAGEABLE
    registered: list[int] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return self.memory.numel()


class PinnedMemory(HostPinner):
    """A HostPinner that registers filled slabs in chunks on a thread of its own, as far as budget and driver allow.

    Owns its slabs until it is closed, even if nobody else holds them. A slab is pinned as a whole or not at all; no
    copy may start before `finish`, since a driver rejects copies from memory that is registered in part. Chunks begin
    at multiples of `chunk_bytes` in the slab, so copies in pieces that divide it never touch two of them.
    """

    def __init__(
        self,
        registrar: HostRegistrar,
        budget_bytes: int | None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`budget_bytes`: None for no limit. `finish` and `close` give up on a call that outlasts the patience."""
        if chunk_bytes < PAGE_BYTES or chunk_bytes % PAGE_BYTES:
            raise ValueError(f"chunks of {chunk_bytes} bytes: need one page or more, in whole pages")
        self._registrar = registrar
        self._budget_bytes = budget_bytes
        self._chunk_bytes = chunk_bytes
        self._patience_seconds = patience_seconds
        self._slabs: dict[int, _Slab] = {}
        self._queue: deque[_Slab] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._has_ended = False
        self._num_calls = 0
        self._promised_bytes = 0
        self._thread = threading.Thread(target=self._work, name="pin", daemon=True)
        self._thread.start()

    @property
    def pinned_bytes(self) -> int:
        with self._wake:
            return sum(slab.num_bytes for slab in self._slabs.values() if slab.state is _State.PINNED)

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """Return a zeroed slab of whole pages, uint8, pageable so far; see HostPinner."""
        memory = allocate_slab(num_bytes, huge_pages=huge_pages)
        with self._wake:
            if self._is_closing:
                raise RuntimeError("the pinned memory is closed")
            self._slabs[memory.data_ptr()] = _Slab(memory)
        return memory

    def filled(self, slab: torch.Tensor) -> None:
        """Queue the registration and return at once; a slab beyond the budget, or after a refusal, stays pageable."""
        with self._wake:
            if self._is_closing:
                raise RuntimeError("the pinned memory is closed")
            known = self._slabs.get(slab.data_ptr())
            if known is None:
                raise ValueError("the slab was not allocated here")
            if known.state is not _State.PAGEABLE or self.refused is not None:
                return
            if self._budget_bytes is not None and self._promised_bytes + known.num_bytes > self._budget_bytes:
                return
            self._promised_bytes += known.num_bytes
            known.state = _State.QUEUED
            self._queue.append(known)
            self._wake.notify_all()

    def finish(self) -> None:
        with self._wake:
            if not self._wait_until(lambda: self._is_closing or not self._is_anything_queued()):
                raise LinkError(
                    f"The driver has been pinning host memory for {self._patience_seconds:g} seconds without an "
                    "answer; check that the device works, then try again."
                )

    def is_pinned(self, slab: torch.Tensor) -> bool:
        with self._wake:
            known = self._slabs.get(slab.data_ptr())
            return known is not None and known.state is _State.PINNED

    def close(self) -> None:
        """Unregister every chunk, then let the slabs go; may be called again.

        A driver that does not answer is left alone with its thread, which keeps all slabs mapped.
        """
        with self._wake:
            self._is_closing = True
            self._queue.clear()
            self._wake.notify_all()
            if not self._wait_until(lambda: self._has_ended):
                logger.warning("the driver has not answered for %g s; its memory stays", self._patience_seconds)
                return
        self._thread.join()

    def _is_anything_queued(self) -> bool:
        return any(slab.state is _State.QUEUED for slab in self._slabs.values())

    def _wait_until(self, is_over: Callable[[], bool]) -> bool:
        """Wait with the lock held; return whether it came to that before the driver stopped to answer."""
        num_calls, patience = self._num_calls, Patience(self._patience_seconds)
        while not is_over():
            if self._num_calls != num_calls:
                num_calls, patience = self._num_calls, Patience(self._patience_seconds)
            elif patience.is_set():
                return False
            self._wake.wait(_POLL_SECONDS)
        return True

    def _work(self) -> None:
        while (slab := self._next_slab()) is not None:
            self._register(slab)
        for slab in self._slabs.values():
            with self._wake:
                slab.state = _State.PAGEABLE
            self._unregister(slab)
        with self._wake:
            self._slabs.clear()
            self._has_ended = True
            self._wake.notify_all()

    def _next_slab(self) -> _Slab | None:
        with self._wake:
            while not self._queue and not self._is_closing:
                self._wake.wait()
            return None if self._is_closing else self._queue.popleft()

    def _register(self, slab: _Slab) -> None:
        """Pin all chunks of the slab, or none."""
        failure = None
        begin = slab.memory.data_ptr()
        for offset in range(0, slab.num_bytes, self._chunk_bytes):
            num_bytes = min(self._chunk_bytes, slab.num_bytes - offset)
            is_wanted = not self._is_closing
            failure = self._attempt(self._registrar.register, begin + offset, num_bytes) if is_wanted else "closed"
            if failure is not None:
                self._unregister(slab)
                break
            slab.registered.append(begin + offset)
        with self._wake:
            slab.state = _State.PINNED if failure is None else _State.PAGEABLE
            if failure is not None:
                self._refuse(failure)
            self._wake.notify_all()

    def _refuse(self, failure: str) -> None:
        """Register nothing more, because one refusal spoils the calls after it; with the lock held."""
        for slab in self._queue:
            slab.state = _State.PAGEABLE
        self._queue.clear()
        if not self._is_closing:
            pinned = format_bytes(self.pinned_bytes)
            self.refused = f"the driver pinned {pinned} of host memory and then no more ({failure})"
            logger.warning("%s", self.refused)

    def _unregister(self, slab: _Slab) -> None:
        failures = [self._attempt(self._registrar.unregister, address) for address in slab.registered]
        slab.registered.clear()
        if causes := [failure for failure in failures if failure is not None]:
            logger.warning("the driver would not unpin %d bytes (%s); they stay mapped", slab.num_bytes, causes[0])
            _never_unmapped.append(slab.memory)

    def _attempt(self, call: Callable[..., int], *arguments: int) -> str | None:
        """Return why the driver refused; None if it did not."""
        try:
            code = call(*arguments)
            failure = None if code == 0 else f"error {code}{f', {_CODE_NAMES[code]}' if code in _CODE_NAMES else ''}"
        except Exception as error:  # a refusal like any other: the thread lives on to unregister the rest
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with self._wake:
            self._num_calls += 1
        return failure


def open_registrar(device: torch.device) -> HostRegistrar | None:
    """Return the driver that pins memory in place for `device`; None if torch gives access to none."""
    return CudaHostRegistrar(device) if device.type == "cuda" else None


def open_pinner(
    device: torch.device, budget_bytes: int | None, *, patience_seconds: float = PATIENCE_SECONDS
) -> HostPinner:
    """Return the way to pin host memory for `device`, with at most `budget_bytes` of it (None: no limit)."""
    if device.type == "cpu":
        return HostPinner()
    registrar = open_registrar(device)
    if registrar is None:
        return AllocatorPinnedMemory(budget_bytes)
    return PinnedMemory(registrar, budget_bytes, patience_seconds=patience_seconds)
