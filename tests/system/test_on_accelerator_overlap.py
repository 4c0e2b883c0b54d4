"""On the simulated accelerator, copies and computation overlap, and a wait that is left out does not go unnoticed."""

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from offload.copying.accelerator_engine import Accelerator
from profiles.errors import OverstoryError
from runtime.engine import loading
from runtime.engine.loading import OpenSession
from runtime.events import Round
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    folder_of,
    layer_bytes,
    num_tiers,
    opened_on,
    quick_sessions,
    speed_restored,
    wide_folder,
)
from tests.support.session_factory import answer, request
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check

PATIENCE_SECONDS = 60.0
"""How long to look for a pass that nothing else on this machine disturbed."""


@contextmanager
def slow_layers(opened: OpenSession, seconds: float) -> Iterator[None]:
    """Every layer of the target keeps the device's compute stream busy for so long."""
    layers = opened.session.engine.target.parts.layers
    handles = [layer.register_forward_hook(lambda *_: sim.delay_stream(seconds), prepend=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def best_of(ends: list[float]) -> float:
    """The shortest time from the end of one pass to that of the next; a busy machine lengthens some of them."""
    return min(end - begin for begin, end in itertools.pairwise(ends))


def copies_and_computation_overlap(copy_seconds: float, compute_seconds: float) -> None:
    """A pass costs about the longer of the two; one after the other, it would cost their sum."""
    folder = wide_folder()
    with opened_on(folder, num_residents=0) as opened, speed_restored():
        answer(opened, request(max_new_tokens=2))
        sim.set_copy_bytes_per_second(layer_bytes(folder) / copy_seconds)
        num_layers = opened.streamer.num_layers
        ends, passes = [], []
        longer, shorter = sorted((num_layers * copy_seconds, num_layers * compute_seconds), reverse=True)
        deadline = time.perf_counter() + PATIENCE_SECONDS
        sim.reset_counters()
        with slow_layers(opened, compute_seconds):
            while len(ends) < 5 or (best_of(ends) >= longer + 0.5 * shorter and time.perf_counter() < deadline):
                for event in opened.session.generate(request(max_new_tokens=5)):
                    if isinstance(event, Round):
                        ends.append(time.perf_counter())
                        passes.append(opened.session.engine.target.last_pass)
        assert sim.hazards() == []
        assert longer * 0.95 <= best_of(ends) < longer + 0.5 * shorter, (best_of(ends), longer, shorter)
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
            if isinstance(event, Round):
                waits.append(opened.session.engine.target.last_pass.wait_seconds)
                time.sleep(0.15)
        assert min(waits[1:]) < 0.05 * (opened.streamer.num_layers - 1), waits


# ------------------------------------------------------------------------------------------------- an engine gone wrong


class _ForgetfulStream:
    """A stream that is told to wait and does not."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any) -> object:
        return self.stream.record_event(event)


class _ComputesTooEarly(Accelerator):
    def current_stream(self) -> Any:
        return _ForgetfulStream(super().current_stream())


class _CopiesTooEarly(Accelerator):
    def create_stream(self) -> Any:
        return _ForgetfulStream(super().create_stream())

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        super().copy(destination, source, stream.stream)


def _read_late(layer: torch.nn.Module, *_: Any) -> None:
    """A kernel that is still queued when its layer is released; all others of the simulated device are over by then."""
    matrix = layer.self_attn.q_proj.stored.matrix
    sim.delay_stream(0.004)
    torch.empty(matrix.shape, pin_memory=True).copy_(matrix, non_blocking=True)


def missing_wait_is_a_hazard(accelerator: type[Accelerator], copy_seconds: float) -> None:
    """Were it not for this, an empty list of hazards would prove nothing."""
    folder = folder_of("llama")
    with (
        mock.patch.object(loading, "Accelerator", accelerator),
        opened_on(folder, num_residents=0) as opened,
        speed_restored(),
    ):
        sim.set_copy_bytes_per_second(layer_bytes(folder) / copy_seconds)
        sim.reset_counters()
        if accelerator is _CopiesTooEarly:
            for layer in opened.session.engine.target.parts.layers:
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


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
