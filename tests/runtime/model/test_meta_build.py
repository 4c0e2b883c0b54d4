"""What is built without memory is not initialised, and everything that has memory is as always."""

import pytest
import torch
from torch import nn

from runtime.model.architecture import build_empty_model
from runtime.model.meta_build import MetaBuild
from tests.support.model_factory import MAIN_KINDS, random_model, tiny_config


@pytest.mark.parametrize(
    "fill",
    [
        lambda tensor: nn.init.normal_(tensor, 0.0, 0.02),
        lambda tensor: nn.init.kaiming_uniform_(tensor),
        nn.init.zeros_,
        nn.init.ones_,
        lambda tensor: tensor.fill_(torch.tensor(2.0)),
    ],
)
def test_a_fill_returns_its_tensor_and_draws_nothing(fill):
    tensor = nn.Parameter(torch.empty(8, 4, device="meta"), requires_grad=False)
    before = torch.get_rng_state()
    with MetaBuild(10**6):
        assert fill(tensor) is tensor
    assert tensor.is_meta and tensor.shape == (8, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_real_tensors_are_filled():
    with MetaBuild(10**6):
        tensor = torch.empty(3).fill_(2.0)
        zeros = torch.ones(3).zero_()
    assert tensor.tolist() == [2.0] * 3 and zeros.tolist() == [0.0] * 3


def test_sizes_are_guarded_as_ever():
    with MetaBuild(10**6), pytest.raises(ValueError, match="expected at most 1000000"):
        torch.empty(10**7, device="meta")


def test_an_empty_model_is_not_initialised(monkeypatch):
    """Random fills on the meta device are worked out in Python, two milliseconds for each matrix."""
    import torch._refs as references

    monkeypatch.setattr(references, "normal", lambda *args, **kwargs: pytest.fail("a fill was worked out"))
    model = build_empty_model(tiny_config("qwen2"), dtype=torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("kind", [*MAIN_KINDS, "gemma2", "gpt2", "starcoder2", "falcon"])
def test_buffers_are_those_of_a_model_that_was_built_as_always(kind):
    config = tiny_config(kind)
    expected = dict(random_model(config).named_buffers())
    found = dict(build_empty_model(config, dtype=torch.float32).named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        assert torch.equal(buffer, expected[name]), name
