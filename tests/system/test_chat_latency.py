"""Keys are drawn while the model computes: the measurement on the real app, and on a stand-in of known delays."""

import os
import statistics
import time
from pathlib import Path

import pytest

from tests.support.chat_fakes import endless
from tests.support.chat_stories import tell, telling
from tests.support.chat_stream import answer as written_answer
from tests.support.session_factory import save_tiny_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
if os.name == "posix":
    from tests.support import chat_latency
    from tests.support.chat_latency import KeyLatency, LatencyError, measure_latency

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
        os.write(1, b" checking ")
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
    monkeypatch.setattr(chat_latency, "_START", APP.format(delay=0.06, phase="checking"))
    monkeypatch.setattr(chat_latency, "INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(chat_latency, "PASTE_SECONDS", 0.1)
    report = measure_latency([], num_keys=3)
    assert report.at_rest.median_seconds >= 0.06
    assert report.while_computing.median_seconds >= 0.06
    assert (report.while_computing.num_keys, report.num_answers) == (3, 1)
    assert report.first_paint_seconds > 0


def test_answers_that_end_at_once_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_latency, "_START", APP.format(delay=0, phase="stopped"))
    monkeypatch.setattr(chat_latency, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(chat_latency, "PASTE_SECONDS", 0.1)
    with pytest.raises(LatencyError, match="answers end at once"):
        measure_latency([], num_keys=2)


def test_an_app_that_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_latency, "_START", "print('error: no such model')")
    with pytest.raises(LatencyError, match=r"did not show 'Ask something' .* \(it has ended\)"):
        measure_latency([], num_keys=2)


@pytest.mark.slow
def test_the_app_draws_every_key_while_its_engine_computes(tmp_path: Path) -> None:
    """A pass of 0.3 s over an emulated link; a key that was not drawn within a minute would end the measurement."""
    target = save_tiny_folder(tmp_path / "target")
    options = ["--target", str(target), "--context", "128", "--device-memory", "min", "--emulate-link", "0.5MB/s"]
    report = measure_latency([*options, "--draft", "none", "--max-new-tokens", "60"], num_keys=5)
    assert (report.at_rest.num_keys, report.while_computing.num_keys) == (5, 5)


@pytest.mark.slow
def test_keys_are_timed_while_an_answer_grows() -> None:
    assert chat_latency.measure_growing("table", num_keys=3).num_keys == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "table", "code"])
def test_a_key_costs_the_same_in_a_list_a_table_and_code_as_in_prose(kind: str, tmp_path: Path) -> None:
    """It cost ten times as much; counted in time of this thread, which other processes do not take."""

    async def seconds_per_key(text: str) -> float:
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Go on", is_awaited=False)
            (answer,) = teller.screen.query("AnswerTurn > AnswerMarkdown")
            answer.append(text[: len(text) * 2 // 3])
            seconds = []
            for start in range(len(text) * 2 // 3, len(text) * 2 // 3 + 300, 10):
                await teller.pilot.pause()
                begun = time.thread_time()
                answer.append(text[start : start + 10])
                await teller.press("x")
                seconds.append(time.thread_time() - begun)
            return statistics.median(seconds)

    async def story() -> None:
        prose, other = [await seconds_per_key(written_answer(each)) for each in ("prose", kind)]
        assert other < 3 * prose, f"{other / prose:.1f} times as much"

    tell(story)
