"""A session on the simulated accelerator that is stopped in the middle, at any place, has its later texts unchanged."""

import functools
import sys
import threading
import time

import pytest

from offload.errors import PassCancelledError
from tests.support import simulated_device as sim
from tests.support.accelerator_sessions import (
    ASKED,
    FEW_TIERS,
    TIERS,
    cpu_text,
    folder_of,
    in_layers,
    layer_bytes,
    opened_on,
    quick_sessions,
    speed_restored,
    wide_folder,
)
from tests.support.session_factory import answer, request
from tests.support.sim_checks import SimChecks
from tests.support.soak_driver import soak

CHECKS = SimChecks(__file__, quick_sessions)
check = CHECKS.check


@check
def stopping_at_any_event_changes_no_later_text() -> None:
    folder = folder_of("llama")
    with opened_on(folder, draft=folder_of("llama", seed=5), tree="9x4", num_residents=1) as opened:
        sim.reset_counters()
        num_events = sum(1 for _ in opened.session.generate(request(max_new_tokens=3)))
        for number in range(1, num_events):
            events = opened.session.generate(request("some other words"))
            for _ in range(number):
                next(events)
            events.close()
            engine = opened.session.engine
            assert engine.target.cache.num_cached == engine.num_committed
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        assert sim.hazards() == []


def cancelled_at_any_layer(tiers: str) -> None:
    """While the layer is computed, and while it is waited for."""
    folder = folder_of("llama")
    with opened_on(folder, **in_layers(TIERS[tiers], folder)) as opened:
        streamer, target = opened.streamer, opened.session.engine.target
        sim.reset_counters()
        for index in range(streamer.num_layers):
            handle = target.parts.layers[index].register_forward_pre_hook(lambda *_: streamer.cancel())
            try:
                list(opened.session.generate(request("some other words")))
                assert index == streamer.num_layers - 1  # nothing is left to wait for
            except PassCancelledError as error:
                assert f"before layer {index + 1}" in str(error)
            handle.remove()
            assert answer(opened, request(max_new_tokens=8))[1] == cpu_text(folder)[:8]
        assert sim.hazards() == []


for _tiers in FEW_TIERS:
    CHECKS[f"cancelled_at_any_layer: {_tiers}"] = functools.partial(cancelled_at_any_layer, _tiers)


@check
def a_cancel_wakes_a_pass_that_waits_for_a_slow_link() -> None:
    folder = wide_folder()
    with opened_on(folder, num_residents=0) as opened, speed_restored():
        sim.set_copy_bytes_per_second(layer_bytes(folder) / 0.2)
        timer = threading.Timer(0.3, opened.streamer.cancel)
        timer.start()
        began = time.perf_counter()
        with pytest.raises(PassCancelledError):
            list(opened.session.generate(request(max_new_tokens=1)))
        assert time.perf_counter() - began < 1.1  # a pass takes 1.2 s; what is on the link is let finish
        timer.join()
        sim.set_copy_bytes_per_second(None)
        assert answer(opened, ASKED)[1] == cpu_text(folder)
        assert sim.hazards() == []


def soak_leaves_nothing_behind(tiers: str, num_passes: int) -> None:
    folder = folder_of("llama")
    text = cpu_text(folder)[:12]
    with opened_on(folder, io="buffered", **in_layers(TIERS[tiers], folder)) as opened:
        sim.reset_counters()
        driver = soak(opened, text, num_passes=num_passes, longest_pass_seconds=0.02)
        assert sim.hazards() == []
        has_disk = "disk" in tiers
        assert all(number > 0 for way, number in driver.endings.items() if way != "unreadable" or has_disk)


for _tiers, _number in zip(FEW_TIERS, (100, 200), strict=True):
    CHECKS[f"soak_leaves_nothing_behind: {_tiers}"] = functools.partial(soak_leaves_nothing_behind, _tiers, _number)
    CHECKS.slow.add(f"soak_leaves_nothing_behind: {_tiers}")


test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
