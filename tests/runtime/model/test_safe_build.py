"""Which models are built; what has no memory is not initialised, absurd tensors stop, and all else is as always."""

import pytest
import torch
from torch import nn

from offload.errors import CheckpointError
from runtime.model.architecture import build_empty_model
from runtime.model.safe_build import SafeBuild, cache_argument, declared, refuse_unsupported
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
    with SafeBuild(10**6):
        assert fill(tensor) is tensor
    assert tensor.is_meta and tensor.shape == (8, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_real_tensors_are_filled():
    with SafeBuild(10**6):
        tensor = torch.empty(3).fill_(2.0)
        zeros = torch.ones(3).zero_()
    assert tensor.tolist() == [2.0] * 3 and zeros.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**15),
        lambda: torch.ones((10**8, 10**8)),
        lambda: torch.full((10**15,), 3),
        lambda: torch.empty(10**15),
        lambda: torch.empty(10**7, device="meta"),
        lambda: torch.arange(10**15),
        lambda: torch.arange(0, 1e15),
        lambda: torch.arange(2000).unsqueeze(1) * torch.arange(2000),
        lambda: torch.outer(torch.arange(2000.0), torch.arange(2000.0)),
        lambda: torch.nn.Linear(10**7, 10**7),
        lambda: torch.zeros(1, device="meta").expand(2000, 2000).contiguous(),
    ],
)
def test_a_tensor_that_is_too_large_is_never_made(make):
    with SafeBuild(10**6), pytest.raises(ValueError, match="expected at most 1000000"):
        make()


def test_tensors_up_to_the_limit_are_made_as_always():
    with SafeBuild(10**6):
        table = torch.outer(torch.arange(1000.0), torch.arange(1000.0))
        scalar = torch.tensor(3.0) * 2
    assert torch.equal(table, torch.outer(torch.arange(1000.0), torch.arange(1000.0)))
    assert scalar == 6
    torch.arange(10**6 + 1)  # and outside nothing is guarded


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


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mistral", "gpt2", "olmo2"])
def test_dense_decoders_pass(kind: str) -> None:
    refuse_unsupported(tiny_config(kind), where="config.json")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mixtral", "mixture of experts"), ("t5", "encoder-decoder"), ("mamba", "linear_attention")],
)
def test_everything_else_is_refused_with_what_it_is(kind: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        refuse_unsupported(tiny_config(kind), where="config.json")


def test_a_setting_counts_only_if_the_class_knows_it() -> None:
    """config.json may hold anything, and every key becomes an attribute."""
    config = tiny_config("llama", sliding_window=4)
    assert config.sliding_window == 4
    assert declared(config, "sliding_window") is None
    assert declared(tiny_config("mistral"), "sliding_window") == 8


def test_the_cache_goes_by_the_name_that_the_forward_knows() -> None:
    """transformers 5.24 renamed it, and forwards swallow a wrong name: every pass would forget the text."""
    assert cache_argument(["input_ids", "cache"]) == "cache"
    assert cache_argument(["input_ids", "past_key_values"]) == "past_key_values"
