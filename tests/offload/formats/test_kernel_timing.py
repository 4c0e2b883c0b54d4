import time

import torch

from offload.formats.kernel_timing import DRAFT_WIDTHS, fastest_seconds


def test_the_fastest_run_counts() -> None:
    pauses = iter((0.02, 0.001, 0.02))
    assert 0.001 <= fastest_seconds(lambda: time.sleep(next(pauses)), repeats=3) < 0.02


def test_every_repeat_runs_the_action_once() -> None:
    calls = []
    fastest_seconds(lambda: calls.append(None), repeats=5, device=torch.device("cpu"))
    assert len(calls) == 5


def test_draft_widths_are_those_of_narrow_levels() -> None:
    assert min(DRAFT_WIDTHS) == 1 and max(DRAFT_WIDTHS) == 16
