"""Tiny hybrids of attention and Gated DeltaNet, and what transformers computes of them token by token."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from runtime.bench.hybrid import random_topology
from runtime.speculation.token_tree import TokenTree
from tests.support.every_architecture import small_config
from tests.support.model_factory import random_model, save_tiny_tokenizer
from tests.support.reference_models import reference_model

KINDS: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5_text": {},
    "qwen3_5": {},
    "qwen3_next": {"num_experts": 0},
    "olmo_hybrid": {},
}
"""Model types, and what makes them dense."""


def save_hybrid(
    folder: Path, kind: str = "qwen3_5_text", *, seed: int = 0, gates: tuple[float, float] = (0.5, 3.0), **changes: Any
) -> Path:
    """Save a random hybrid whose decays are exp(-A softplus(...)) with A between the `gates`, and a tokenizer."""
    model = random_model(small_config(kind, **KINDS[kind], **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                low, high = gates
                parameter.copy_((low + (high - low) * torch.rand(parameter.shape, generator=generator)).log())
    model.save_pretrained(folder)
    return save_tiny_tokenizer(folder)


@torch.inference_mode()
def path_logits(folder: Path, text: Sequence[int], parents: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
    """The logits (N, V) behind each node of a tree whose root ends `text`, by transformers' recurrence per token."""
    model = reference_model(folder)
    cache = DynamicCache(config=model.config)
    for token in text[:-1]:
        model(torch.tensor([[token]]), cache=cache, use_cache=True)
    caches, rows = [], []
    for node, parent in enumerate(parents):
        own = copy.deepcopy(cache if node == 0 else caches[parent])
        rows.append(model(torch.tensor([[token_ids[node]]]), cache=own, use_cache=True).logits[0, -1])
        caches.append(own)
    return torch.stack(rows)


def random_tree(text: Sequence[int], num_nodes: int, source: np.random.Generator) -> TokenTree:
    """A tree of random shape and tokens on the last token of a text."""
    tree = TokenTree(random_topology(num_nodes, source), source.integers(7, 90, num_nodes))
    tree.token_ids[0] = text[-1]
    return tree


def random_path(tree: TokenTree, source: np.random.Generator) -> list[int]:
    """The nodes from the root down to a random one."""
    node = int(source.integers(tree.topology.num_nodes))
    path = [node]
    while path[0] != 0:
        path.insert(0, int(tree.topology.parents[path[0]]))
    return path
