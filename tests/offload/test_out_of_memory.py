"""Every real way of running out of memory is known as one; whatever else goes wrong stays what it is."""

import mmap
from collections.abc import Callable

import pytest
import torch

from offload.errors import BudgetError
from offload.out_of_memory import explained_shortage, is_out_of_memory

TOO_MUCH = 1 << 60


def map_too_much() -> object:
    return mmap.mmap(-1, TOO_MUCH)


def allocate_too_much_with_torch() -> object:
    return torch.empty(1 << 46)


def allocate_too_much_with_python() -> object:
    return bytearray(TOO_MUCH)


def device_is_full() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def older_device_is_full() -> object:
    raise RuntimeError("HIP error: out of memory")


@pytest.mark.parametrize(
    ("allocate", "place", "option"),
    [
        (map_too_much, "host memory", "--host-memory"),
        (allocate_too_much_with_torch, "host memory", "--host-memory"),
        (allocate_too_much_with_python, "host memory", "--host-memory"),
        (device_is_full, "the device's memory", "--device-memory"),
        (older_device_is_full, "the device's memory", "--device-memory"),
    ],
)
def test_every_way_of_running_out_is_a_sentence(allocate: Callable[[], object], place: str, option: str) -> None:
    with pytest.raises(BudgetError) as caught, explained_shortage("the ring"):
        allocate()
    sentence = str(caught.value)
    assert sentence.startswith(f"{place} has no room for the ring; close other programs")
    assert option in sentence and "\n" not in sentence
    assert caught.value.__cause__ is not None and is_out_of_memory(caught.value.__cause__)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("shapes differ"), ValueError("no")])
def test_anything_else_goes_on_as_it_is(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, explained_shortage("the ring"):
        raise error
    assert caught.value is error


def test_where_nothing_runs_out_nothing_happens() -> None:
    with explained_shortage("the ring"):
        pass
