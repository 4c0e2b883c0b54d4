"""An accelerator whose streams run only when a test lets them: asynchronous, and ordered by events alone.

Three tempers: `copies_first` lets the copy stream run as far ahead as events allow, `kernels_first` the compute stream,
`random` either. A copy poisons its slot with 0xFF before the first byte arrives, and a copy from memory that is not
pinned is synchronous, as on a real device.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

POISON = 0xFF


class FakeEvent:
    """A torch.Event: it remembers its newest record, and counts the records that the device has passed."""

    def __init__(self, accelerator: "FakeAccelerator") -> None:
        self._accelerator = accelerator
        self.num_recorded = 0
        self.num_passed = 0
        self.passed_at = 0.0

    def query(self) -> bool:
        self._accelerator.num_queries += 1
        self._accelerator.step()
        return self.num_passed >= self.num_recorded

    def elapsed_time(self, other: "FakeEvent") -> float:
        if not self._accelerator.can_time:
            raise RuntimeError("this device has no timers")
        if self.num_passed < self.num_recorded or other.num_passed < other.num_recorded:
            raise RuntimeError("the events have not been passed")
        return 1000 * (other.passed_at - self.passed_at)


@dataclass
class Work:
    """One entry of a stream."""

    action: Callable[[], None]
    is_ready: Callable[[], bool] = lambda: True
    seconds: float = 0.0


@dataclass
class FakeStream:
    """A torch.Stream."""

    accelerator: "FakeAccelerator"
    name: str
    queue: deque[Work] = field(default_factory=deque)

    def wait_event(self, event: FakeEvent) -> None:
        if self.accelerator.ignores_waits_of == self.name:
            return
        wanted = event.num_recorded  # the newest record at the time of the call, as on a device
        self.queue.append(Work(lambda: None, lambda: event.num_passed >= wanted))

    def record_event(self, event: FakeEvent) -> None:
        event.num_recorded += 1
        number = event.num_recorded

        def reach() -> None:
            event.num_passed, event.passed_at = number, self.accelerator.now

        self.queue.append(Work(reach))

    def launch(self, action: Callable[[], None], seconds: float = 0.0) -> None:
        self.queue.append(Work(action, seconds=seconds))

    @property
    def can_run(self) -> bool:
        return bool(self.queue) and self.queue[0].is_ready()

    def run_one(self) -> None:
        work = self.queue.popleft()
        self.accelerator.now += work.seconds
        work.action()


class FakeAccelerator:
    """What AcceleratorCopyEngine needs of a device, and a compute stream for the test's kernels."""

    def __init__(self, temper: str = "random", *, seed: int = 0, bytes_per_second: float = 1e6) -> None:
        self.temper = temper
        self.compute_stream = FakeStream(self, "compute")
        self.copy_streams: list[FakeStream] = []
        self.ignores_waits_of: str | None = None
        """Name of the stream whose waits are lost: a broken engine."""
        self.can_time = True
        self.now = 0.0
        self.num_events = self.num_queries = self.num_synchronous_copies = 0
        self.copy_sizes: list[int] = []
        self.fails_at_copy: int | None = None
        self._bytes_per_second = bytes_per_second
        self._rng = random.Random(seed)
        self._pinned: list[tuple[int, int]] = []
        self._whole_slots: dict[int, torch.Tensor] = {}

    def pin(self, slab: torch.Tensor) -> torch.Tensor:
        self._pinned.append((slab.data_ptr(), slab.data_ptr() + slab.numel()))
        return slab

    def slot(self, num_bytes: int) -> torch.Tensor:
        slot = torch.full((num_bytes,), POISON, dtype=torch.uint8)
        self._whole_slots[slot.data_ptr()] = slot
        return slot

    def create_stream(self) -> FakeStream:
        self.copy_streams.append(FakeStream(self, "copy"))
        return self.copy_streams[-1]

    def current_stream(self) -> FakeStream:
        return self.compute_stream

    def create_event(self) -> FakeEvent:
        self.num_events += 1
        return FakeEvent(self)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: FakeStream) -> None:
        if self.fails_at_copy == len(self.copy_sizes):
            self.fails_at_copy = None
            raise RuntimeError("the device refuses the copy")
        self.copy_sizes.append(source.numel())

        def move() -> None:
            slot = self._whole_slots.get(destination.data_ptr())
            if slot is not None:
                slot.fill_(POISON)
            destination.copy_(source)

        stream.launch(move, source.numel() / self._bytes_per_second)
        begin = source.data_ptr()
        if not any(start <= begin and begin + source.numel() <= end for start, end in self._pinned):
            self.num_synchronous_copies += 1
            while stream.queue:
                self._run_something(stream)

    def step(self) -> None:
        """Run one entry of some stream, if any can."""
        self._run_something(None)

    def finish(self) -> None:
        """Run until every stream is empty."""
        while self.compute_stream.queue or any(stream.queue for stream in self.copy_streams):
            assert self._run_something(None), "the streams wait for each other"

    def _run_something(self, wanted: FakeStream | None) -> bool:
        copies = [stream for stream in self.copy_streams if stream.can_run]
        kernels = [self.compute_stream] if self.compute_stream.can_run else []
        if wanted is not None and wanted.can_run:
            able = [wanted]
        elif self.temper == "random":
            able = copies + kernels
            self._rng.shuffle(able)
        else:
            able = copies + kernels if self.temper == "copies_first" else kernels + copies
        if able:
            able[0].run_one()
        return bool(able)
