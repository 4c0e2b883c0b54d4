"""The sizes of a 70B, random numbers, and timing."""

from pathlib import Path

import torch

from runtime.bench.card.setting import FULL, SMALL, Setting, time_work

CPU = torch.device("cpu")


def test_layers_have_as_many_weights_as_published():
    assert sum(rows * columns for rows, columns in FULL.target.matrices) == 855_638_016
    assert sum(rows * columns for rows, columns in FULL.draft.matrices) == 218_103_808


def test_random_numbers_fill_any_shape_and_follow_the_seed():
    numbers = Setting(CPU, SMALL, 3, Path()).random(3, 70_001)
    assert numbers.shape == (3, 70_001) and numbers.dtype == torch.bfloat16
    assert 0.01 < numbers.float().std() < 0.03
    assert torch.equal(numbers, Setting(CPU, SMALL, 3, Path()).random(3, 70_001))
    assert not torch.equal(numbers, Setting(CPU, SMALL, 4, Path()).random(3, 70_001))


def test_work_is_warmed_up_twice_and_timed_as_often_as_asked():
    runs: list[int] = []
    timed = time_work(lambda: runs.append(1), CPU, num_repeats=5)
    assert len(runs) == 7 and 0 <= timed.launch_seconds <= timed.seconds
