"""Absurd tensors are stopped before they are made; ordinary ones pass untouched."""

import pytest
import torch

from runtime.model.size_guard import SizeGuard


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**15),
        lambda: torch.ones((10**8, 10**8)),
        lambda: torch.full((10**15,), 3),
        lambda: torch.empty(10**15),
        lambda: torch.arange(10**15),
        lambda: torch.arange(0, 1e15),
        lambda: torch.arange(2000).unsqueeze(1) * torch.arange(2000),
        lambda: torch.outer(torch.arange(2000.0), torch.arange(2000.0)),
        lambda: torch.nn.Linear(10**7, 10**7),
        lambda: torch.zeros(1, device="meta").expand(2000, 2000).contiguous(),
    ],
)
def test_a_tensor_that_is_too_large_is_never_made(make):
    with SizeGuard(10**6), pytest.raises(ValueError, match="expected at most 1000000"):
        make()


def test_tensors_up_to_the_limit_are_made_as_always():
    with SizeGuard(10**6):
        table = torch.outer(torch.arange(1000.0), torch.arange(1000.0))
        scalar = torch.tensor(3.0) * 2
    assert torch.equal(table, torch.outer(torch.arange(1000.0), torch.arange(1000.0)))
    assert scalar == 6
    torch.arange(10**6 + 1)  # and outside nothing is guarded
