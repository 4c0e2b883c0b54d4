"""Runs a session's passes to their ends and to every other end: cancelled, aborted, closed, with reads that fail."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from unittest import mock

import psutil
import torch

from offload.errors import LinkError, PassCancelledError
from runtime.engine.loading import OpenSession
from runtime.events import Event
from runtime.prompts.prompt_file import PromptRequest
from tests.support.session_factory import answer, request

PROMPTS = ("the cat and the dog", "the cat", "a dog and some other words", "the end")
WAYS = ("whole", "cancelled", "aborted", "closed", "unreadable")


class _AbortedError(Exception):
    """What a layer raises."""


class SoakDriver:
    """Counts passes and how they ended."""

    def __init__(self, opened: OpenSession, *, seed: int, longest_pass_seconds: float) -> None:
        """Cancellations come after at most `longest_pass_seconds`."""
        self.opened = opened
        self.num_passes = 0
        self.endings = dict.fromkeys(("whole", "cancelled", "aborted", "unreadable", "closed"), 0)
        self._random = random.Random(seed)
        self._longest_pass_seconds = longest_pass_seconds
        self._fault_after: int | None = None
        self._lock = threading.Lock()

    def run(self, num_passes: int) -> None:
        """Begin so many passes more."""
        wanted = self.num_passes + num_passes
        begin_pass = self.opened.streamer.begin_pass

        def counted(**rows: int) -> None:
            self.num_passes += 1
            begin_pass(**rows)

        with self._unreliable_reads(), mock.patch.object(self.opened.streamer, "begin_pass", counted):
            while self.num_passes < wanted:
                self._answer(self._random.choice(WAYS))

    def _answer(self, way: str) -> None:
        rng = self._random
        asked = request(rng.choice(PROMPTS), max_new_tokens=rng.randint(1, 6))
        undo: Callable[[], object] = bool
        if way == "cancelled":
            undo = self._cancel_after(rng.uniform(0, 2 * self._longest_pass_seconds))
        elif way == "aborted":
            undo = self._raise_in_a_layer()
        elif way == "unreadable":
            self._fault_after = rng.randint(0, 12)
        try:
            self._consume(asked, rng.randint(1, 8) if way == "closed" else None)
        except PassCancelledError:
            self.endings["cancelled"] += 1
        except _AbortedError:
            self.endings["aborted"] += 1
        except LinkError:
            self.endings["unreadable"] += 1
        finally:
            undo()
        engine = self.opened.session.engine
        assert engine.target.cache.num_cached == engine.num_committed

    def _consume(self, asked: PromptRequest, num_events: int | None) -> None:
        events: Iterator[Event]
        with closing(self.opened.session.generate(asked)) as events:
            for number, _ in enumerate(events, start=1):
                if number == num_events:
                    self.endings["closed"] += 1
                    return
        self.endings["whole"] += 1

    def _cancel_after(self, seconds: float) -> Callable[[], None]:
        """Cancel then, and again until it meets a pass: drafting in between cannot be cancelled here."""
        has_ended = threading.Event()

        def keep_cancelling() -> None:
            pause = seconds
            while not has_ended.wait(pause):
                self.opened.streamer.cancel()
                pause = 0.0003

        thread = threading.Thread(target=keep_cancelling)
        thread.start()

        def end() -> None:
            has_ended.set()
            thread.join()

        return end

    def _raise_in_a_layer(self) -> Callable[[], None]:
        layers = self.opened.session.engine.target.parts.layers
        left = self._random.randint(0, 2)

        def fail(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _AbortedError

        handle: torch.utils.hooks.RemovableHandle = self._random.choice(layers).register_forward_pre_hook(fail)
        return handle.remove

    @contextmanager
    def _unreliable_reads(self) -> Iterator[None]:
        if not hasattr(os, "preadv"):
            yield
            return
        read = os.preadv

        def read_or_fail(*arguments: Any) -> int:
            with self._lock:
                left = self._fault_after
                self._fault_after = None if not left else left - 1
            if left == 0:
                raise OSError(errno.EIO, "Input/output error")
            return read(*arguments)

        with mock.patch.object(os, "preadv", read_or_fail):
            yield
        self._fault_after = None


def soak(opened: OpenSession, expected: list[int], *, num_passes: int, longest_pass_seconds: float) -> SoakDriver:
    """`num_passes` passes with all endings; everything is then where it was, and so is the text of `expected`."""
    driver = SoakDriver(opened, seed=11, longest_pass_seconds=longest_pass_seconds)
    driver.run(num_passes // 5)  # allocators, caches and files find their size
    process = psutil.Process()
    before = threading.active_count(), len(process.open_files())
    resident_bytes = process.memory_info().rss
    driver.run(num_passes - driver.num_passes)
    asked = request(max_new_tokens=len(expected))
    with suppress(LinkError):  # the last read that failed may have been one ahead of the ring
        answer(opened, asked)
    assert answer(opened, asked)[1] == expected
    assert (threading.active_count(), len(process.open_files())) == before
    assert process.memory_info().rss - resident_bytes < 32 << 20
    check_ring(opened)
    return driver


def check_ring(opened: OpenSession) -> None:
    """Between passes the ring holds the next pass's first layers, one in each slot."""
    streamer = opened.streamer
    streamed = [index for index, _ in streamer._sources]
    cycle = streamed * len(streamer.slots)
    assert sorted(streamer.layers_in_slots) == sorted(cycle[: len(streamer.slots)])
    assert len(streamer._coming) == len(streamer.slots) and not streamer._acquired and not streamer._is_draining
