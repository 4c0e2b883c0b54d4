import pytest

from offload.errors import UnsupportedArchitectureError
from runtime.model.supported_models import cache_argument, declared, refuse_unsupported
from tests.support.model_factory import tiny_config


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mistral", "gpt2", "olmo2"])
def test_dense_decoders_pass(kind: str) -> None:
    refuse_unsupported(tiny_config(kind), where="config.json")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("mixtral", "mixture of experts"), ("t5", "encoder-decoder"), ("mamba", "linear_attention")],
)
def test_everything_else_is_refused_with_what_it_is(kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=reason):
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
