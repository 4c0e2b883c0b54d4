"""How soon the chat app answers a key, at rest and while the model computes: whole app, real terminal, real engine.

    python -m tests.support.chat_latency [--keys 200] [options of `overstory chat`]
    python -m tests.support.chat_latency --answer prose|list|table|code [--keys 200] [--busy 2]

The second form types while an engine that computes nothing writes such an answer at 100 tokens a second, beside so many
processes that do nothing but compute.

Greek letters are typed into the prompt, one by one; each is timed from the key to the bytes that draw it. The first
paint is timed from the start of the process. The app gets folders of its own, so that no conversation of the user's is
touched. POSIX only.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from tests.support.terminal_driver import TerminalDriver

LETTERS = "αβγδεζηθικλμνξοπρστυφχψω"
"""Nothing else on the screen has them."""
PROMPT = "Write a very long story about a forest, a river and a town, and never stop."
BUSY_PHASES, REST_PHASES = ("reading", "guessing ahead", "checking", "writing"), ("ready", "stopped")
ENDED = "tokens per pass"
"""Stands below an answer that is over."""
INTERVAL_SECONDS = 0.15
"""Between keys: faster than most people type."""
PASTE_SECONDS = 1.0
"""From a prompt's last letter to Enter: a paste must have ended."""
KEY_TIMEOUT_SECONDS, LOAD_TIMEOUT_SECONDS = 60.0, 600.0
_START = "import sys; from tui.cli import main; sys.argv[0] = 'overstory'; main()"


@dataclass(frozen=True, slots=True)
class KeyLatency:
    """Seconds from key to screen."""

    num_keys: int
    median_seconds: float
    p99_seconds: float
    """As quick or quicker were 99 of 100 (nearest rank)."""
    worst_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "KeyLatency":
        """From at least one."""
        ordered = sorted(seconds)
        p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return cls(len(ordered), statistics.median(ordered), p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class ChatLatency:
    """What was measured."""

    first_paint_seconds: float
    """From the start of the process to the prompt on the screen."""
    load_seconds: float
    """From there until the model was ready."""
    at_rest: KeyLatency
    while_computing: KeyLatency
    num_answers: int
    """Answers that were asked for meanwhile."""


class LatencyError(Exception):
    """The app ended, did not load its model in time, or answers at once."""


def measure_latency(
    options: Sequence[str], *, num_keys: int, say: Callable[[str], object] = lambda sentence: None
) -> ChatLatency:
    """Time `num_keys` keys at rest and as many while it computes; `options` are those of `overstory chat`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OVERSTORY_DATA": folder, "OVERSTORY_CONFIG": folder, "TERM": "xterm-256color"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        begun = time.perf_counter()
        with TerminalDriver([sys.executable, "-c", _START, "chat", *options], environment=environment) as terminal:
            painted = _expect(terminal, "Ask something", seconds=60.0)
            say(f"first paint after {painted - begun:.2f} s; loading the model")
            ready = _expect(terminal, "ready", seconds=LOAD_TIMEOUT_SECONDS)
            say(f"ready after {ready - painted:.1f} s; {num_keys} keys at rest")
            at_rest = [_time_key(terminal, letter) for letter in itertools.islice(itertools.cycle(LETTERS), num_keys)]
            say(f"{num_keys} keys while it computes")
            computing, num_answers = _time_while_computing(terminal, num_keys)
            terminal.press("\x1b")
            terminal.press("\x11")
        return ChatLatency(
            first_paint_seconds=painted - begun,
            load_seconds=ready - painted,
            at_rest=KeyLatency.of(at_rest),
            while_computing=KeyLatency.of(computing),
            num_answers=num_answers,
        )


def measure_growing(kind: str, *, num_keys: int, num_busy: int = 0) -> KeyLatency:
    """Time keys while an answer of a kind grows from its beginning to its end, in one app after another."""
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "tests.support.chat_stream", kind]
    seconds: list[float] = []
    letters = itertools.cycle(LETTERS)
    with ExitStack() as stack:
        for _ in range(num_busy):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        while len(seconds) < num_keys:
            with TerminalDriver(command, environment=environment) as terminal:
                _expect(terminal, "ready", seconds=60.0)
                terminal.press("go")
                time.sleep(PASTE_SECONDS)
                terminal.press("\r")
                _expect(terminal, "tok/s", seconds=60.0)
                while len(seconds) < num_keys and terminal.last_of(ENDED) is None:
                    seconds.append(_time_key(terminal, next(letters)))
                terminal.press("\x11")
    return KeyLatency.of(seconds)


def _expect(terminal: TerminalDriver, *texts: str, seconds: float) -> float:
    found = terminal.wait_for(*texts, timeout_seconds=seconds)
    if found is None:
        state = "it has ended" if terminal.exit_code is not None else "it still runs"
        raise LatencyError(
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
    terminal.wait_for(ENDED, timeout_seconds=INTERVAL_SECONDS)  # reads on, as a terminal does
    return seconds


def _time_while_computing(terminal: TerminalDriver, num_keys: int) -> tuple[list[float], int]:
    """Seconds of `num_keys` keys that were typed and drawn while an answer was written, and the number of answers."""
    seconds: list[float] = []
    num_answers = 0
    letters = itertools.cycle(LETTERS)
    while len(seconds) < num_keys:
        terminal.forget()
        terminal.press(PROMPT)
        time.sleep(PASTE_SECONDS)
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
            raise LatencyError(
                "answers end at once, so that nothing computes while keys are typed; give another target"
            )
    return seconds, num_answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--answer", choices=("prose", "list", "table", "code"))
    parser.add_argument("--busy", type=int, default=0)
    own, others = parser.parse_known_args()
    if own.answer is not None:
        print(json.dumps(asdict(measure_growing(own.answer, num_keys=own.keys, num_busy=own.busy))))
        sys.exit()
    latency = measure_latency(
        ["--draft=substitute", "--max-new-tokens=1024", *others],
        num_keys=own.keys,
        say=lambda sentence: print(sentence, file=sys.stderr),
    )
    print(json.dumps(asdict(latency)))
