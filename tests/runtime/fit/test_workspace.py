"""What passes hold, by hand-made sums."""

from dataclasses import replace

import pytest

from runtime.config import MAX_TREE_LEVELS
from runtime.fit.models import known_shapes
from runtime.fit.workspace import DeltaSizes, Workspace, expanded_width, num_masks

SMALL = Workspace(hidden_size=10, head_dim=4, inner_size=20, vocab_size=100, item_bytes=2)


def test_a_pass_holds_its_activations_and_its_masks():
    assert SMALL.pass_bytes(3, 33) == 2 * (3 * (10 + 2 * 4) + 3 * (3 * 10 + 3 * 20) + 3 * 48) + 3 * 16
    windows = Workspace(hidden_size=10, head_dim=4, inner_size=20, vocab_size=100, item_bytes=2, num_masks=2)
    assert windows.pass_bytes(3, 33) - SMALL.pass_bytes(3, 33) == 2 * 3 * 48


def test_a_recurrent_layer_holds_pairs_of_a_trees_tokens_and_what_its_rule_makes_of_each():
    sizes = DeltaSizes(num_layers=3, num_heads=4, num_key_heads=2, key_width=8, value_width=6, window=4)
    assert sizes.num_channels == 2 * 2 * 8 + 4 * 6 == 56
    assert sizes.state_bytes(2) == 3 * (4 * 4 * 8 * 6 + 3 * 56 * 2)
    assert sizes.row_bytes(2) == 3 * (56 * 2 + 8 * 4)
    state, of_token, of_node = 3 * 4 * 4 * 8 * 6, 5 * 56 * 2 + 4 * 4 * 8, 4 * 6 * 4 * 8
    block = sizes.layer_bytes(5, 2, num_nodes=4)
    assert block == 5 * of_token + 64 * of_node + 16 * 64 * 64 * 4 + state, "a text's block is wider than the tree"
    assert sizes.layer_bytes(5, 2, num_nodes=99) == 5 * of_token + 100 * of_node + 16 * 100 * 64 * 4 + state
    wide = sizes.layer_bytes(40000, 2, num_nodes=39999) - 40000 * (of_token + of_node) - state
    assert wide == 16 * 40000 * 64 * 2, "the heads of one key head at a time"
    hybrid = replace(SMALL, delta=sizes)
    between, beside = 5 * (2 * (10 + 8) + 16), 2 * (5 * 3 * 10 + 5 * 48)
    for num_nodes in (0, 99):
        held = sizes.layer_bytes(5, 2, num_nodes=num_nodes)
        assert hybrid.pass_bytes(5, 33, num_nodes=num_nodes) == between + held + beside
    assert SMALL.states_bytes(num_texts=3, num_nodes=9) == SMALL.state_bytes == 0
    rows = [num_rows * sizes.row_bytes(2) for num_rows in (9 + 3 * MAX_TREE_LEVELS + 6, 9 + 9 + 6)]
    states = 2 * 3 * sizes.state_bytes(2)
    assert hybrid.states_bytes(num_texts=3, num_nodes=9) == states + rows[0]
    assert hybrid.states_bytes(num_texts=3, num_nodes=9, is_grown=True) == states + rows[1]


def test_a_pass_in_slices_holds_one_slice_two_masks_and_what_lies_between_its_layers():
    between = 100 * (2 * (10 + 2 * 4) + 16)
    layer = 2 * (20 * (3 * 10 + 3 * 20) + 20 * 112)
    assert SMALL.sliced_bytes(100, 112, slice_tokens=20, last_tokens=5) == between + layer + 2 * 5 * 112


def test_what_a_layer_makes_of_cached_keys_grows_with_them_and_not_with_the_pass():
    latent = Workspace(hidden_size=10, head_dim=4, inner_size=20, vocab_size=100, item_bytes=2, expanded_width=7)
    assert latent.pass_bytes(3, 33) - SMALL.pass_bytes(3, 33) == 2 * 33 * 7


def test_recordings_keep_the_widest_pass_and_what_each_returns():
    """Widths of 1, 2, 4 ... 128 tokens, in buckets of 256, 512 and 600 keys."""
    returned = 255 * 3 * 10 * 2
    assert SMALL.recorded_bytes(600) == SMALL.pass_bytes(128, 600) + returned


def test_logits_are_counted_as_often_as_they_are_there():
    assert SMALL.logits_bytes(4) == 4 * 100 * (2 + 4)
    assert (
        Workspace(hidden_size=1, head_dim=0, inner_size=1, vocab_size=100, item_bytes=4).logits_bytes(4) == 4 * 100 * 4
    )
    assert SMALL.ranking_bytes(4) == 100 * (4 * 12 + 16)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({}, 0),
        ({"attn_logit_softcapping": 50.0}, 2 * 32 * 16),
        ({"kv_lora_rank": 256, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16}, 32 * (24 + 8 + 16)),
    ],
)
def test_only_soft_caps_and_latent_attention_copy_keys(config, width):
    assert expanded_width(config, num_heads=32, num_kv_heads=4, head_dim=16) == width


def test_windows_are_counted():
    assert num_masks({}) == num_masks({"layer_types": ["full_attention"] * 3}) == 1
    assert num_masks({"layer_types": ["sliding_attention", "full_attention"]}) == 2
    assert num_masks({"layer_types": ["linear_attention", "full_attention"]}) == 1
    assert num_masks({"sliding_window_pattern": 6}) == 2


def test_what_a_large_models_pass_holds_is_what_its_widths_say():
    """1,312 tokens at 9,248 keys of Llama-3-70B in bfloat16: 312 MB of activations and 24 MB of mask."""
    shape = known_shapes()["Llama-3-70B"]
    held = shape.workspace(2).pass_bytes(1312, 9248)
    assert held == 1312 * (2 * (4 * 8192 + 2 * 128 + 3 * 28672 + 9248) + 16)
    assert round(held / 1e6) == 337
