"""A pass without memory or weights: what it counts, and what it finds out before anything is read."""

import pytest
import torch
from torch import nn

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from runtime.model.architecture import open_decoder
from runtime.model.recurrent_cache import RecurrentShape
from runtime.model.tree_cache import CacheShape
from runtime.model.trial_pass import try_pass
from tests.support.every_architecture import save_architecture
from tests.support.model_factory import edit_config


def tried(folder, **changes):
    edit_config(folder, **changes)
    return try_pass(open_decoder(Checkpoint.open(folder), dtype=torch.float32))


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("llama", [2 * 2 * 8] * 3),
        ("falcon", [2 * 1 * 8] * 3),
        ("gpt_bigcode", [2 * 1 * 8] * 3),
        ("gpt2", [2 * 4 * 8] * 3),
        ("youtu", [16 + 8] * 3),
        ("gemma4_text", [2 * 2 * 8, 2 * 2 * 8, 2 * 2 * 16]),
    ],
)
def test_the_numbers_that_a_cache_keeps_are_counted(name, widths, tmp_path):
    """Many query heads may share a key, keys and values may be as wide as a latent, and layers may differ."""
    assert [shape.width for shape in tried(save_architecture(name, tmp_path))] == widths


def test_layers_that_keep_states_are_counted_as_such(tmp_path):
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_value_head_dim": 4}
    recurrent = RecurrentShape((6, 8, 4), num_channels=2 * 2 * 8 + 6 * 4, window=4)
    attending = CacheShape((2, 8), (2, 8))
    assert tried(save_architecture("qwen3_5_text", tmp_path, **sizes)) == (recurrent, attending, recurrent)


def test_layers_that_are_alike_are_tried_once_and_those_that_differ_each(tmp_path, monkeypatch):
    computed = []
    forward = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: computed.append(a) or forward(*a, **k)
    )
    tried(save_architecture("llama", tmp_path / "llama", num_hidden_layers=9, num_key_value_heads=4))
    assert len(computed) < 5
    computed.clear()
    tried(save_architecture("gemma4_text", tmp_path / "gemma4"))
    assert len(computed) >= 3


def test_layers_that_run_several_times_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="layers that do not run once each, in order"):
        tried(save_architecture("dory", tmp_path))


@pytest.mark.parametrize("family", ["gemma4_text", "opt"])
def test_a_table_without_a_row_for_the_last_token_or_position_is_refused(family, tmp_path):
    """It would fail in the middle of an answer."""
    sizes = {"gemma4_text": {"vocab_size_per_layer_input": 50}, "opt": {"max_position_embeddings": 40}}
    folder = save_architecture(family, tmp_path, **sizes[family])
    checkpoint = Checkpoint.open(folder)
    parts = open_decoder(checkpoint, dtype=torch.float32)
    if family == "opt":
        parts.model.config.max_position_embeddings = 60
    with pytest.raises(CheckpointError, match=r"row \d+ of a table of \d+ rows"):
        try_pass(parts)
