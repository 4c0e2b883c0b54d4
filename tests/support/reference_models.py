"""What transformers itself computes of small models: the oracle of streamed passes, drafts and whole texts."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from runtime.engine.engine import verify_input
from runtime.model.streamed_model import StreamedModel, chain_input
from runtime.speculation.token_tree import TokenTree
from tests.support.model_factory import auto_class
from tests.support.trees import tree_of_counts

TIE = 1e-4
"""Logits that lie closer may fall either way."""


@functools.lru_cache(maxsize=4)
def reference_model(folder: Path) -> Any:
    """transformers' own model of a folder, in float32; the folder does not change."""
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32)


@torch.inference_mode()
def own_logits(folder: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """transformers' logits of a whole sequence, (T, V)."""
    logits: torch.Tensor = reference_model(folder)(torch.tensor([list(token_ids)])).logits[0]
    return logits


def assert_tree_is_its_paths(target: StreamedModel, folder: Path, tokens: Sequence[int], *, num_first: int) -> None:
    """One pass over a tree behind `tokens`, of which so many are passed before, gives what `folder` does by paths."""
    topology = tree_of_counts([3, 2, 1, 0, 1, 0, 0, 0])
    tree = TokenTree(topology, np.random.default_rng(1).integers(3, 90, topology.num_nodes))
    tree.token_ids[0] = tokens[-1]
    target.run_pass(chain_input(tokens[:num_first], num_cached=0))
    hidden = target.run_pass(verify_input(tokens, tree, num_cached=num_first))
    logits = target.logits(hidden[len(tokens) - num_first - 1 :])
    for node in range(topology.num_nodes):
        path = [*tokens[:-1], *tree.path_token_ids(node).tolist()]
        torch.testing.assert_close(logits[node], own_logits(folder, path)[-1], rtol=1e-5, atol=1e-5)


@functools.cache
def greedy_reference(folder: Path, prompt: tuple[int, ...], num_tokens: int) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens and, for each, the gap between the two largest logits."""
    text, gaps = list(prompt), []
    for _ in range(num_tokens):
        best = own_logits(folder, text)[-1].topk(2)
        text.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return text[len(prompt) :], gaps


def assert_same_text(found: list[int], folder: Path, prompt: Sequence[int]) -> None:
    """Equal token for token, unless the first difference is a float tie."""
    expected, gaps = greedy_reference(folder, tuple(prompt), len(found))
    for position, (token, wanted) in enumerate(zip(found, expected, strict=True)):
        if token != wanted:
            assert gaps[position] < TIE, f"token {position} differs, and the gap is {gaps[position]}"
            return
