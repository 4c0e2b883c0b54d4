"""The figures by hand-made times, and the measurement on a small app that answers like the chat."""

import os

import pytest

from runtime.errors import OptionError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
if os.name == "posix":
    from tui.chat import latency_benchmark
    from tui.chat.latency_benchmark import ChatLatencyReport, KeyLatency, run_latency_benchmark

APP = """
import os, sys, time, tty
tty.setraw(0)
os.write(1, b"Ask something ready ")
line = b""
while True:
    key = os.read(0, 4096)
    if b"\\x11" in key:
        break
    line += key
    if key.endswith(b"\\r"):
        line = b""
        os.write(1, b" verifying ")
    else:
        time.sleep({delay})
        os.write(1, key + b" {phase} ")
"""


def test_figures_of_hand_made_times() -> None:
    latency = KeyLatency.of([0.001 * number for number in range(1, 201)])
    assert (latency.num_keys, latency.worst_seconds) == (200, 0.2)
    assert latency.median_seconds == pytest.approx(0.1005)
    assert latency.p99_seconds == pytest.approx(0.198)
    assert KeyLatency.of([0.5]) == KeyLatency(1, 0.5, 0.5, 0.5)


def test_a_key_is_timed_until_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in waits for 60 ms before each letter."""
    monkeypatch.setattr(latency_benchmark, "_START", APP.format(delay=0.06, phase="verifying"))
    monkeypatch.setattr(latency_benchmark, "INTERVAL_SECONDS", 0.1)
    *_, report = run_latency_benchmark([], num_keys=3)
    assert isinstance(report, ChatLatencyReport)
    assert 0.06 <= report.at_rest.median_seconds < 1
    assert 0.06 <= report.while_computing.median_seconds < 1
    assert (report.while_computing.num_keys, report.num_answers) == (3, 1)
    assert report.first_paint_seconds > 0


def test_answers_that_end_at_once_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_benchmark, "_START", APP.format(delay=0, phase="stopped"))
    monkeypatch.setattr(latency_benchmark, "INTERVAL_SECONDS", 0.02)
    with pytest.raises(OptionError, match="answers end at once"):
        list(run_latency_benchmark([], num_keys=2))


def test_an_app_that_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_benchmark, "_START", "print('error: no such model')")
    with pytest.raises(OptionError, match=r"did not show 'Ask something' .* \(it has ended\)"):
        list(run_latency_benchmark([], num_keys=2))
