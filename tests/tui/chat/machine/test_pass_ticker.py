"""Where a pass is, read from beside it."""

import queue
import threading

from offload.layer_streamer import LayerStreamer
from tests.support.fakes import InstantEngine
from tests.support.numbered_layers import make_layers, run_pass
from tui.chat.engine.engine_messages import PassRunning
from tui.chat.machine.pass_ticker import PassTicker


def test_a_report_counts_the_layers_that_are_done_and_names_those_in_the_ring():
    with LayerStreamer(make_layers([False, True, False, False, False]), InstantEngine(), num_slots=2) as ring:
        ticker = PassTicker(7, ring, lambda report: None)
        reports: list[PassRunning | None] = [ticker.report()]
        run_pass(ring, use=lambda index: reports.append(ticker.report()))
        reports.append(ticker.report())
    assert reports == [
        None,
        PassRunning(7, 0, 5, (0, 2)),
        PassRunning(7, 1, 5, (2, 3)),
        PassRunning(7, 2, 5, (2, 3)),
        PassRunning(7, 3, 5, (3, 4)),
        PassRunning(7, 4, 5, (0, 4)),
        None,
    ]


def test_it_speaks_from_its_own_thread_while_a_pass_lasts_and_is_silent_afterwards():
    heard: queue.SimpleQueue[tuple[PassRunning, int]] = queue.SimpleQueue()
    with LayerStreamer(make_layers([True, True]), InstantEngine(), num_slots=0) as ring:

        def say(report: PassRunning) -> None:
            heard.put((report, threading.get_ident()))

        with PassTicker(7, ring, say, tick_seconds=0.001):
            ring.begin_pass()
            report, thread = heard.get(timeout=60)
        assert report == PassRunning(7, 0, 2, ())
        assert thread != threading.get_ident()
        while not heard.empty():
            heard.get()
        ring.acquire(0)
        assert heard.empty()
        ring.abort_pass()
