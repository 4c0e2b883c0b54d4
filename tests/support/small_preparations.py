"""Small sources, and preparations of them that are finished or interrupted."""

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from runtime.events import LoadProgress
from runtime.prepare.preparation import prepare_model
from tests.support.generator_ends import drained
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Rows of whole blocks: bitsandbytes' AVX512 kernel, which transformers computes with, is wrong for others."""
SOURCES = {
    "llama, bf16": ("llama", {"dtype": torch.bfloat16, **WIDE}),
    "qwen2 with biases, tied, fp16, shards": (
        "qwen2",
        {"dtype": torch.float16, "tie_word_embeddings": True, "max_shard_size": "60KB", **WIDE},
    ),
    "gemma3, tied, fp32": ("gemma3", {**WIDE, "head_dim": 16, "num_hidden_layers": 3}),
    "gpt2, turned matrices": ("gpt2", {"hidden_size": 64}),
    "opt, projected embeddings": (
        "opt",
        {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
}


Asked = Callable[[], Generator[str | LoadProgress, None, dict[str, Any]]]
"""Something to be prepared, as often as it is called."""


def save_source(folder: Path, name: str = "llama, bf16") -> Path:
    kind, settings = SOURCES[name]
    return save_tiny_tokenizer(save_tiny_model(kind, folder, seed=5, **settings))


def request(source: Path, output: Path, weight_format: str = "nf4", is_double: bool = False) -> Asked:
    return partial(prepare_model, str(source), output, weight_format=weight_format, is_double=is_double)


def finish(asked: Asked) -> tuple[list[LoadProgress], SimpleNamespace]:
    events, record = drained(asked())
    prepared = SimpleNamespace(**record | {"folder": Path(record["folder"])})
    return [event for event in events if isinstance(event, LoadProgress)], prepared


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def interrupt(asked: Asked, *, at: str = "layer 3 of 4 layers") -> None:
    """Close the generator there, as Ctrl-C does."""
    steps = asked()
    for event in steps:
        if isinstance(event, LoadProgress) and event.what == at:
            break
    steps.close()
