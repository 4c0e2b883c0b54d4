"""A tiny model of bfloat16, and its folder as `prepare` packs it."""

from pathlib import Path
from typing import Any

import torch

from runtime.prepare.preparation import prepare_model
from tests.support.generator_ends import drained
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}


def save_packed_folder(
    root: Path, kind: str = "llama", *, seed: int = 0, sizes: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """Save a model in `original` and `packed` below `root`, both with a tokenizer; return the two folders."""
    original = save_tiny_model(kind, root / "original", seed=seed, dtype=torch.bfloat16, **(sizes or SIZES))
    save_tiny_tokenizer(original)
    drained(prepare_model(str(original), root / "packed", weight_format="packed"))
    return original, root / "packed"
