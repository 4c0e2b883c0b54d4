"""A tiny model of bfloat16, its folder as `prepare` packs it, and what sessions are compared by."""

from pathlib import Path
from typing import Any

import torch

from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import chain_input
from runtime.prepare.preparation import prepare_model
from tests.support.generator_ends import drained
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import answer, request

ASKED = [request(max_new_tokens=12), request("a dog", max_new_tokens=12, temperature=0.9, seed=5)]
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}


def save_packed_folder(
    root: Path, kind: str = "llama", *, seed: int = 0, sizes: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """Save a model in `original` and `packed` below `root`, both with a tokenizer; return the two folders."""
    original = save_tiny_model(kind, root / "original", seed=seed, dtype=torch.bfloat16, **(sizes or SIZES))
    save_tiny_tokenizer(original)
    drained(prepare_model(str(original), root / "packed", weight_format="packed"))
    return original, root / "packed"


def ask(opened: OpenSession) -> tuple[list[list[int]], torch.Tensor]:
    """Return the texts of two answers, and the logits of a pass of five tokens."""
    texts = [answer(opened, asked)[1] for asked in ASKED]
    target = opened.session.engine.target
    target.cache.truncate(0)
    return texts, target.logits(target.run_pass(chain_input([3, 5, 8, 13, 21], num_cached=0)))
