import itertools
from collections.abc import Callable

import pytest
import torch

from runtime.model import pass_threads
from runtime.model.pass_threads import LAST_TRIAL, MAX_WIDTH, PassThreads, ThreadChoice


def run(choice: ThreadChoice, seconds_of: Callable[[int], float], num_passes: int) -> list[int]:
    """Let passes take what `seconds_of` says of their threads; return the threads of each."""
    used = []
    for _ in range(num_passes):
        used.append(choice.num_threads)
        choice.observe(seconds_of(choice.num_threads))
    return used


def test_all_threads_stay_where_they_are_faster_and_trials_become_rare() -> None:
    used = run(ThreadChoice(2), lambda num_threads: 0.027 if num_threads == 2 else 0.034, 1000)
    trials = [index for index, num_threads in enumerate(used) if num_threads == 1]
    assert used[:4] == [2, 2, 2, 2]
    assert len([index for index in trials if index >= 500]) <= 3 * -(-500 // LAST_TRIAL)


def test_one_thread_is_taken_where_others_use_the_processor() -> None:
    used = run(ThreadChoice(2), lambda num_threads: 0.250 if num_threads == 2 else 0.060, 300)
    assert used[4:11].count(1) >= 7
    assert used.count(2) <= 12  # the first passes, and one pass of each trial


def test_a_trial_ends_at_its_first_pass_that_is_much_too_slow() -> None:
    used = run(ThreadChoice(2), lambda num_threads: 1.0 if num_threads == 2 else 1.6, 9)
    assert used == [2, 2, 2, 2, 1, 2, 2, 2, 2]


def test_threads_are_halved_as_long_as_it_helps_and_doubled_when_the_machine_is_quiet_again() -> None:
    choice = ThreadChoice(16)
    assert run(choice, lambda num_threads: 0.1 + abs(num_threads - 4), 100)[-10:].count(4) >= 7
    assert run(choice, lambda num_threads: 1 / num_threads, 600)[-20:].count(16) >= 17


def test_a_machine_that_becomes_busy_is_noticed_before_the_next_trial_is_due() -> None:
    choice = ThreadChoice(2)
    run(choice, lambda num_threads: 0.027 if num_threads == 2 else 0.034, 700)
    used = run(choice, lambda num_threads: 0.250 if num_threads == 2 else 0.060, 20)
    assert used.count(2) <= 6


def test_one_late_pass_changes_nothing() -> None:
    choice = ThreadChoice(2)
    run(choice, lambda num_threads: 1.0, 100)
    late = itertools.chain([5.0], itertools.repeat(1.0))
    assert run(choice, lambda num_threads: next(late), 5) == [2] * 5


def test_passes_run_with_the_chosen_threads_and_leave_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    num_threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", num_threads.append)
    clock = itertools.count()
    monkeypatch.setattr(pass_threads.time, "perf_counter", lambda: next(clock))
    threads = PassThreads()
    inside = []
    for _ in range(6):
        with threads.computing(1):
            inside.append(num_threads[-1])
    assert inside == [2, 2, 2, 2, 1, 1]
    with threads.computing(1, is_pass=False):
        assert num_threads[-1] == 1  # the head computes as its pass did
    with threads.computing(2):
        assert num_threads[-1] == 2  # each width is chosen for by itself
    with pytest.raises(KeyError), threads.computing(1):
        raise KeyError
    assert num_threads[-1] == 2


def test_wide_passes_keep_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute longer than they wait for memory: a prompt would take twice as long."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda num_threads: pytest.fail("threads were changed"))
    threads = PassThreads()
    for _ in range(100):
        with threads.computing(MAX_WIDTH + 1):
            pass
