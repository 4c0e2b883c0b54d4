"""Pinned host memory in slabs of exact size: own pages, filled first, then registered with the driver behind the back.

torch's pinned allocator takes the next power of two, up to twice the memory, so slabs are anonymous mappings that
cudaHostRegister pins in place. Registering untouched memory would fault and clear it first, hence after it is filled;
registration is serialised in the driver, hence one thread. All driver calls are made on that thread, because the error
that a refusal leaves behind belongs to the thread that met it. The one module that says "cuda".
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, SupportsInt

import torch

from offload.checkpoint.stored_sizes import PAGE_BYTES
from offload.closeable import Closeable
from offload.copying.patience import PATIENCE_SECONDS, Patience
from offload.errors import LinkError, PassCancelledError
from offload.pinning.host_pinner import AllocatorPinnedMemory, HostPinner, PageableMemory
from offload.pinning.slab_memory import allocate_slab
from offload.units import format_bytes

logger = logging.getLogger(__name__)

DEFAULT_CHUNK_BYTES = 1 << 30
_POLL_SECONDS = 0.02
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not only for the current one."""
_CODE_NAMES = {1: "invalid value", 2: "out of memory", 712: "already registered", 801: "not supported"}

_never_unmapped: list[torch.Tensor] = []
"""Slabs that the driver would not let go: were their addresses used again, copies would read the old pages."""


class HostRegistrar(Protocol):
    """A driver that can pin memory in place. Both calls return its code, 0 for success."""

    def register(self, address: int, num_bytes: int) -> int:
        """Pin `num_bytes` (more than 0, whole pages) at `address`."""

    def unregister(self, address: int) -> int:
        """Undo the `register` that began at `address`."""


class _CudaRuntime(Protocol):
    """The part of `torch.cuda.cudart()` that is used; ROCm's torch answers to the same names."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> SupportsInt: ...  # noqa: N802
    def cudaHostUnregister(self, address: int) -> SupportsInt: ...  # noqa: N802


class CudaHostRegistrar:
    """Registers through torch's CUDA or ROCm runtime; never raises for a code."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        """See HostRegistrar."""
        return self._call(lambda runtime: runtime.cudaHostRegister(address, num_bytes, _PORTABLE))

    def unregister(self, address: int) -> int:
        """See HostRegistrar."""
        return self._call(lambda runtime: runtime.cudaHostUnregister(address))

    def _call(self, function: Callable[[_CudaRuntime], SupportsInt]) -> int:
        with torch.cuda.device(self._device):  # a new thread would otherwise open a context on device 0
            runtime: _CudaRuntime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            code = int(function(runtime))
            if code:
                self._clear_error()
        return code

    def _clear_error(self) -> None:
        # torch has no cudaGetLastError, but the check behind every kernel launch calls it: the failure stays here.
        try:
            torch.ones(1, device=self._device)
        except RuntimeError as error:
            logger.debug("cleared what the refusal left behind: %s", error)


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


class PinnedMemory(Closeable):
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
        self._refused: str | None = None
        self._thread = threading.Thread(target=self._work, name="pin", daemon=True)
        self._thread.start()

    @property
    def pinned_bytes(self) -> int:
        """Bytes of the slabs that are pinned now."""
        with self._wake:
            return self._pinned_bytes()

    @property
    def refused(self) -> str | None:
        """See HostPinner."""
        with self._wake:
            return self._refused

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """A zeroed slab of whole pages, uint8, pageable so far; see HostPinner."""
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
            if known.state is not _State.PAGEABLE or self._refused is not None:
                return
            if self._budget_bytes is not None and self._promised_bytes + known.num_bytes > self._budget_bytes:
                return
            self._promised_bytes += known.num_bytes
            known.state = _State.QUEUED
            self._queue.append(known)
            self._wake.notify_all()

    def finish(self, cancel: threading.Event | None = None) -> None:
        """See HostPinner. What was registered before a cancel stays so; the rest goes on in the background.

        Raises LinkError, too, if the driver does not answer within the patience: no copy may start then.
        """
        with self._wake:
            num_calls, patience = self._num_calls, Patience(self._patience_seconds)
            while any(slab.state is _State.QUEUED for slab in self._slabs.values()) and not self._is_closing:
                if cancel is not None and cancel.is_set():
                    raise PassCancelledError("Loading was cancelled while host memory was being pinned.")
                if self._num_calls != num_calls:
                    num_calls, patience = self._num_calls, Patience(self._patience_seconds)
                elif patience.is_set():
                    raise LinkError(
                        f"The driver has been pinning host memory for {self._patience_seconds:g} seconds without an "
                        "answer; check that the device works, then try again."
                    )
                self._wake.wait(_POLL_SECONDS)

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """See HostPinner."""
        with self._wake:
            known = self._slabs.get(slab.data_ptr())
            return known is not None and known.state is _State.PINNED

    def close(self) -> None:
        """Unregister every chunk, then let the slabs go; idempotent.

        A driver that does not answer is left alone with its thread, which keeps all slabs mapped.
        """
        with self._wake:
            self._is_closing = True
            self._queue.clear()
            self._wake.notify_all()
            num_calls, patience = self._num_calls, Patience(self._patience_seconds)
            while not self._has_ended:
                self._wake.wait(_POLL_SECONDS)
                if self._num_calls != num_calls:
                    num_calls, patience = self._num_calls, Patience(self._patience_seconds)
                elif patience.is_set():
                    logger.warning("the driver has not answered for %g s; its memory stays", self._patience_seconds)
                    return
        self._thread.join()

    def _pinned_bytes(self) -> int:
        return sum(slab.num_bytes for slab in self._slabs.values() if slab.state is _State.PINNED)

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
        """With the lock held: nothing more will be registered, because one refusal spoils the calls after it."""
        for slab in self._queue:
            slab.state = _State.PAGEABLE
        self._queue.clear()
        if not self._is_closing:
            pinned = format_bytes(self._pinned_bytes())
            self._refused = f"the driver pinned {pinned} of host memory and then no more ({failure})"
            logger.warning("%s", self._refused)

    def _unregister(self, slab: _Slab) -> None:
        failures = [self._attempt(self._registrar.unregister, address) for address in slab.registered]
        slab.registered.clear()
        if causes := [failure for failure in failures if failure is not None]:
            logger.warning("the driver would not unpin %d bytes (%s); they stay mapped", slab.num_bytes, causes[0])
            _never_unmapped.append(slab.memory)

    def _attempt(self, call: Callable[..., int], *arguments: int) -> str | None:
        """Why the driver refused; None if it did not."""
        try:
            code = call(*arguments)
            failure = None if code == 0 else f"error {code}{f', {_CODE_NAMES[code]}' if code in _CODE_NAMES else ''}"
        except Exception as error:  # a refusal like any other: the thread lives on to unregister the rest
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with self._wake:
            self._num_calls += 1
        return failure


def open_registrar(device: torch.device) -> HostRegistrar | None:
    """The driver that pins memory in place for `device`; None if it has none that torch gives access to."""
    return CudaHostRegistrar(device) if device.type == "cuda" else None


def open_pinner(device: torch.device, budget_bytes: int | None) -> HostPinner:
    """The way to pin host memory for `device`, with at most `budget_bytes` of it (None: no limit)."""
    if device.type == "cpu":
        return PageableMemory()
    registrar = open_registrar(device)
    return AllocatorPinnedMemory(budget_bytes) if registrar is None else PinnedMemory(registrar, budget_bytes)
