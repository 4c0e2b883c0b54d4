"""Modules of transformers that compute over trees: against their own recurrence, and without a change to anything."""

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from runtime.model.delta_layers import compute_over_trees, delta_module, has_delta_functions
from runtime.model.recurrent_cache import LanePlanner, RecurrentLayer
from tests.support.every_architecture import small_config
from tests.support.model_factory import random_model

KINDS = {"qwen3_5_text": {}, "qwen3_next": {"num_experts": 0}, "olmo_hybrid": {}}


def modules_of(kind: str, **changes: Any) -> tuple[nn.Module, nn.Module, Any]:
    """Two equal modules, and the configuration of their model."""
    config = small_config(kind, **KINDS[kind], **changes)
    pair = [delta_module(random_model(config).model.layers[0]) for _ in range(2)]
    assert pair[0] is not None and pair[1] is not None
    return pair[0], pair[1], config


def own_outputs(module: nn.Module, config: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What the module says of a text, token by token (T, E)."""
    cache = DynamicCache(config=config)
    return torch.cat([module(row[None, None], cache=cache)[0] for row in hidden])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_text_and_a_tree_are_computed_as_token_by_token(kind: str) -> None:
    plain, ours, config = modules_of(kind)
    layer = RecurrentLayer(1)
    compute_over_trees(ours, layer)
    hidden = torch.randn(11, 32, generator=torch.Generator().manual_seed(1))
    parents = [-1, 0, 0, 1, 3]  # behind 6 tokens of text, the last of which is the root
    sight = np.zeros((5, 5), dtype=np.bool_)
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
        sight[node, paths[node]] = True
    planner = LanePlanner(0, base=0, last_mark=0, num_text=6)
    layer.pieces = (planner.plan(slice(0, 6), num_keys=6),)
    found = [ours(hidden[None, :6], cache=None, attention_mask=torch.zeros(1, 1, 6, 6))[0]]
    layer.settle()
    planner = LanePlanner(0, base=5, last_mark=0, num_text=6)
    layer.pieces = (planner.plan(slice(0, 5), num_keys=11, seen=sight),)
    found.append(ours(hidden[None, 6:])[0])
    layer.settle()
    torch.testing.assert_close(found[0], own_outputs(plain, config, hidden[:6]), rtol=1e-5, atol=1e-5)
    for node, path in enumerate(paths):
        text = torch.cat((hidden[:6], hidden[[6 + other for other in path]]))
        torch.testing.assert_close(found[1][node], own_outputs(plain, config, text)[-1], rtol=1e-5, atol=1e-5)
    assert layer.lanes[0].base == 5 and layer.lanes[0].count == 11


@torch.inference_mode()
def test_heads_that_take_turns_are_the_same_heads() -> None:
    """As GGUF files have them, in every weight that has to do with values."""
    plain, ours, config = modules_of("qwen3_5_text", linear_num_key_heads=2, linear_num_value_heads=6)
    width = config.linear_value_head_dim
    heads = torch.arange(6).view(2, 3).T.reshape(-1)
    channels = (heads[:, None] * width + torch.arange(width)).reshape(-1)
    behind = 2 * 2 * config.linear_key_head_dim
    rows = torch.cat((torch.arange(behind), behind + channels))
    order = {
        "in_proj_qkv.weight": rows,
        "conv1d.weight": rows,
        "in_proj_z.weight": channels,
        "out_proj.weight": channels,
    }
    for name, parameter in ours.named_parameters():
        index = order.get(name, heads)
        if name == "out_proj.weight":
            parameter.copy_(parameter[:, index])
        elif not name.startswith("norm"):
            parameter.copy_(parameter[index])
    layer = RecurrentLayer(1)
    compute_over_trees(ours, layer, has_tiled_heads=True)
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(2))
    planner, found = LanePlanner(0, base=0, last_mark=0, num_text=9), []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        layer.pieces = (planner.plan(slice(0, stop - start), num_keys=stop),)
        found.append(ours(hidden[None, start:stop])[0])
        layer.settle()
    torch.testing.assert_close(torch.cat(found), own_outputs(plain, config, hidden), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_nothing_that_others_use_is_changed() -> None:
    plain, ours, config = modules_of("qwen3_5_text")
    file = sys.modules[type(ours).__module__]
    before = dict(vars(file))
    hidden = torch.randn(4, 32)
    expected = own_outputs(plain, config, hidden)
    compute_over_trees(ours, RecurrentLayer(1))
    assert vars(file) == before and "forward" not in vars(plain)
    assert torch.equal(own_outputs(plain, config, hidden), expected)


def test_only_modules_that_call_all_of_these_functions_are_taken() -> None:
    module, *_ = modules_of("qwen3_5_text")
    assert has_delta_functions(sys.modules[type(module).__module__])
    assert not has_delta_functions(inspect)
    layers = random_model(small_config("qwen3_5_text")).model.layers
    assert [delta_module(layer) is not None for layer in layers] == [True, False, True]
    assert delta_module(nn.ModuleList([module, layers[2]])) is None, "two in one layer"
    assert delta_module(random_model(small_config("llama")).model.layers[0]) is None
