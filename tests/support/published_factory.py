"""Tiny models in the formats that models are published in, and beside each the same one with its matrices unpacked."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.model_factory import edit_config, save_tiny_model, save_tiny_tokenizer
from tests.support.published_weights import PUBLISHED, published_matrix

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
"""Matrices whose columns are whole words and groups, and rows whole words of outputs."""


def save_published_folder(
    root: Path,
    kind: str,
    *,
    model: str = "llama",
    seed: int = 0,
    kept: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
    sizes: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Save `published` and `dense` below `root` and return them; the second is the oracle, in float32.

    Matrices of decoder layers are of a kind in PUBLISHED, but for those whose module's name ends like one in `kept`;
    `more` names others that are. The rest is bfloat16.
    """
    dense = save_tiny_model(model, root / "dense", seed=seed, **(sizes or SIZES))
    published = publish(save_tiny_tokenizer(dense), root / "published", kind, seed=seed, kept=kept, more=more)
    if kept:
        settings = dict(PUBLISHED[kind][0])
        names = [f"model.layers.{layer}.{name}" for layer in range(SIZES["num_hidden_layers"]) for name in kept]
        key = "ignore" if settings["quant_method"] in ("compressed-tensors", "modelopt") else "modules_to_not_convert"
        edit_settings(published, **{key: ["lm_head", *names]})
    if more:
        edit_settings(published, ignore=None)
    return published, dense


def publish(
    dense: Path, published: Path, kind: str, *, seed: int = 0, kept: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Path:
    """Save a copy of a folder of one file with its decoder layers' matrices in a kind of PUBLISHED, and return it.

    `dense` itself then holds those matrices unpacked. Towers of images stay as they are.
    """
    shutil.copytree(dense, published)
    generator, original = torch.Generator().manual_seed(seed), load_file(dense / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    unpacked: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        module = name.removesuffix(".weight")
        is_chosen = module in more or (".layers." in name and "vis" not in name and not module.endswith(kept or ("-",)))
        if tensor.dim() != 2 or not is_chosen:
            stored[name] = tensor.to(torch.bfloat16)
            unpacked[name] = stored[name].to(torch.float32)
            continue
        parts, unpacked[name] = published_matrix(kind, (tensor.shape[0], tensor.shape[1]), generator)
        stored |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(stored, published / "model.safetensors", metadata={"format": "pt"})
    save_file(unpacked, dense / "model.safetensors", metadata={"format": "pt"})
    edit_config(published, quantization_config=PUBLISHED[kind][0])
    return published


def edit_settings(folder: Path, **changes: object) -> None:
    """Change keys of quantization_config; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"] | changes
    config["quantization_config"] = {key: value for key, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a folder of one file."""
    tensors = load_file(folder / "model.safetensors") | dict(changes)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
