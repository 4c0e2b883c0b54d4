"""How soon the chat app answers a key, at rest and while the model computes: whole app, real terminal, real engine.

Greek letters are typed into the prompt, one by one; each is timed from the key to the bytes that draw it. The first
paint is timed from the start of the process. The app gets folders of its own, so that no conversation of the user's is
touched. Prints nothing.
"""

import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.errors import OptionError
from tui.chat.terminal_driver import TerminalDriver

LETTERS = "αβγδεζηθικλμνξοπρστυφχψω"
"""Nothing else on the screen has them."""
PROMPT = "Write a very long story about a forest, a river and a town, and never stop."
BUSY_PHASES, REST_PHASES = ("prefill", "drafting", "verifying"), ("ready", "stopped")
INTERVAL_SECONDS = 0.15
"""Between keys: faster than most people type."""
KEY_TIMEOUT_SECONDS, LOAD_TIMEOUT_SECONDS = 10.0, 600.0
_START = "import sys; from tui.cli import main; sys.argv[0] = 'overstory'; main()"


@dataclass(frozen=True, slots=True)
class KeyLatency:
    """Seconds from key to screen."""

    num_keys: int
    """Keys that were timed."""
    median_seconds: float
    """Half were drawn sooner."""
    p99_seconds: float
    """As quick or quicker were 99 of 100 (nearest rank)."""
    worst_seconds: float
    """The slowest."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "KeyLatency":
        """From at least one."""
        ordered = sorted(seconds)
        p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return cls(len(ordered), statistics.median(ordered), p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class ChatLatencyReport:
    """What `overstory bench chat` shows."""

    first_paint_seconds: float
    """From the start of the process to the prompt on the screen."""
    load_seconds: float
    """From there until the model was ready."""
    at_rest: KeyLatency
    """While the engine waits."""
    while_computing: KeyLatency
    """While an answer is written."""
    num_answers: int
    """Answers that were asked for meanwhile."""

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)


def run_latency_benchmark(options: Sequence[str], *, num_keys: int) -> Iterator[str | ChatLatencyReport]:
    """Yield sentences of progress, and last the report; `options` are those of `overstory chat`.

    Raises OptionError if the app ends or the model is not loaded in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OVERSTORY_DATA": folder, "OVERSTORY_CONFIG": folder, "TERM": "xterm-256color"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        begun = time.perf_counter()
        with TerminalDriver([sys.executable, "-c", _START, "chat", *options], environment=environment) as terminal:
            painted = _expect(terminal, "Ask something", seconds=60.0)
            yield f"first paint after {painted - begun:.2f} s; loading the model"
            ready = _expect(terminal, "ready", seconds=LOAD_TIMEOUT_SECONDS)
            yield f"ready after {ready - painted:.1f} s; {num_keys} keys at rest"
            at_rest = [_time_key(terminal, letter) for letter in itertools.islice(itertools.cycle(LETTERS), num_keys)]
            yield f"{num_keys} keys while it computes"
            computing, num_answers = _time_while_computing(terminal, num_keys)
            terminal.press("\x1b")
            terminal.press("\x11")
        yield ChatLatencyReport(
            first_paint_seconds=painted - begun,
            load_seconds=ready - painted,
            at_rest=KeyLatency.of(at_rest),
            while_computing=KeyLatency.of(computing),
            num_answers=num_answers,
        )


def _expect(terminal: TerminalDriver, *texts: str, seconds: float) -> float:
    found = terminal.wait_for(*texts, timeout_seconds=seconds)
    if found is None:
        state = "it has ended" if terminal.exit_code is not None else "it still runs"
        raise OptionError(
            f"the chat app did not show {' or '.join(map(repr, texts))} within {seconds:g} s ({state}); "
            "try overstory chat with the same options"
        )
    return found


def _time_key(terminal: TerminalDriver, letter: str) -> float:
    """Seconds until the letter is drawn; it is taken out again."""
    terminal.forget()
    pressed = time.perf_counter()
    terminal.press(letter)
    seconds = _expect(terminal, letter, seconds=KEY_TIMEOUT_SECONDS) - pressed
    terminal.press("\x7f")
    time.sleep(INTERVAL_SECONDS)
    return seconds


def _time_while_computing(terminal: TerminalDriver, num_keys: int) -> tuple[list[float], int]:
    """Seconds of `num_keys` keys that were typed and drawn while an answer was written, and the number of answers."""
    seconds: list[float] = []
    num_answers = 0
    letters = itertools.cycle(LETTERS)
    while len(seconds) < num_keys:
        terminal.forget()
        terminal.press(PROMPT)
        time.sleep(1.0)  # a paste ends before Enter is sent
        terminal.press("\r")
        num_answers += 1
        _expect(terminal, *BUSY_PHASES, seconds=60.0)
        while len(seconds) < num_keys:
            took = _time_key(terminal, next(letters))
            terminal.wait_for(*BUSY_PHASES, *REST_PHASES, timeout_seconds=5.0)
            if terminal.last_of(*BUSY_PHASES, *REST_PHASES) in REST_PHASES:
                break  # the answer has ended, perhaps before this key
            seconds.append(took)
        if num_answers > num_keys:
            raise OptionError("answers end at once, so that nothing computes while keys are typed; give another target")
    return seconds, num_answers
