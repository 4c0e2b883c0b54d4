"""Drivers that register nothing: they keep the rules of a real one, remember what was asked, and fail on request.

The functions at the end are the names by which a probing child opens one: see `probed_driver`.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

OUT_OF_MEMORY = 2
INVALID_VALUE = 1
ALREADY_REGISTERED = 712


class FakeDriver:
    """Pins page-aligned ranges that do not overlap; once it has refused, it pins nothing more, but lets go."""

    def __init__(self, *, capacity_bytes: int | None = None, before_call: Callable[[int], None] | None = None) -> None:
        """`before_call` gets the number of each register call and may raise, wait or worse."""
        self.capacity_bytes = capacity_bytes
        self.before_call = before_call
        self.ranges: dict[int, int] = {}
        """Registered now: bytes by address."""
        self.events: list[tuple[str, int, int]] = []
        """(what, address, bytes) of every call that succeeded, in order."""
        self.num_register_calls = 0
        self.is_poisoned = False
        self.thread_ids: set[int] = set()
        self.unregister_code = 0

    @property
    def pinned_bytes(self) -> int:
        return sum(self.ranges.values())

    def register(self, address: int, num_bytes: int) -> int:
        self.thread_ids.add(threading.get_ident())
        self.num_register_calls += 1
        if self.before_call is not None:
            self.before_call(self.num_register_calls)
        code = self._judge(address, num_bytes)
        if code:
            self.is_poisoned = True
            return code
        self.ranges[address] = num_bytes
        self.events.append(("register", address, num_bytes))
        return 0

    def unregister(self, address: int) -> int:
        self.thread_ids.add(threading.get_ident())
        if address not in self.ranges:
            return INVALID_VALUE
        if self.unregister_code:
            return self.unregister_code
        self.events.append(("unregister", address, self.ranges.pop(address)))
        return 0

    def _judge(self, address: int, num_bytes: int) -> int:
        if num_bytes <= 0 or num_bytes % 4096 or address % 4096:
            return INVALID_VALUE
        if any(address < begin + size and begin < address + num_bytes for begin, size in self.ranges.items()):
            return ALREADY_REGISTERED
        is_full = self.capacity_bytes is not None and self.pinned_bytes + num_bytes > self.capacity_bytes
        return OUT_OF_MEMORY if self.is_poisoned or is_full else 0


def at_call(number: int, act: Callable[[], object]) -> Callable[[int], None]:
    """For `before_call`: act at one of the calls only."""

    def before_call(call: int) -> None:
        if call == number:
            act()

    return before_call


def generous() -> FakeDriver:
    return FakeDriver()


def refusing_beyond_2_mib() -> FakeDriver:
    return FakeDriver(capacity_bytes=2 << 20)


def dying_at_call_4() -> FakeDriver:
    return FakeDriver(before_call=at_call(4, lambda: os.kill(os.getpid(), 9)))


def raising_at_call_2() -> FakeDriver:
    def fail() -> None:
        raise RuntimeError("the device fell off the bus")

    return FakeDriver(before_call=at_call(2, fail))


def hanging_at_call_4() -> FakeDriver:
    """Leaves a file at the path in the environment, so that a test need not guess when it hangs."""

    def hang() -> None:
        Path(os.environ["FAKE_DRIVER_HANGS"]).touch()
        threading.Event().wait()

    return FakeDriver(before_call=at_call(4, hang))
