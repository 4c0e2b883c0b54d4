"""Decide what a prepared folder will hold before anything is written: shards, quantized matrices, bytes, config.

Which layers are quantized is asked of transformers, since it decides the same again when it loads the folder: linear
layers of the decoder layers, never the embeddings or the head. One shard per decoder layer, and one per matrix outside
them, so that never more than one of these is in memory. Reads headers and small files only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from offload.checkpoint.checkpoint import MAX_CONFIG_BYTES, Checkpoint, TensorEntry
from offload.checkpoint.strict_json import read_json
from offload.errors import CheckpointError
from offload.formats.weight_format import TORCH_DTYPES
from offload.formats.weight_quantizer import WeightQuantizer
from runtime.model.architecture import DecoderParts, open_decoder

INDEX_NAME = "model.safetensors.index.json"
_COMPANION_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "NOTICE*")
_TEMPLATE_FOLDER = "additional_chat_templates"
_BYTES_PER_NAME = 400  # its entries in a header and in the index
_SMALL_FILES_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One stored tensor of the source on its way into a shard."""

    name: str
    """Full name in the prepared folder."""
    entry: TensorEntry
    dtype: torch.dtype
    """What transformers loads it in; a quantized matrix is made from this, any other tensor is stored in it."""
    is_quantized: bool = False
    is_transposed: bool = False
    """Whether it is stored (I, O), as by GPT-2; quantized matrices are always (O, I)."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(O, I) of a tensor that is quantized."""
        rows, columns = self.entry.shape
        return (columns, rows) if self.is_transposed else (rows, columns)


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One safetensors file of the prepared folder."""

    name: str
    layer_index: int | None
    """The decoder layer it holds; None for everything else."""
    tensors: tuple[PlannedTensor, ...]

    @property
    def source_bytes(self) -> int:
        return sum(tensor.entry.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class PreparationPlan:
    """Everything about a prepared folder but its bytes."""

    checkpoint: Checkpoint
    quantizer: WeightQuantizer
    dtype: torch.dtype
    """What transformers loads the model in."""
    shards: tuple[PlannedShard, ...]
    """Decoder layers in order, then the rest."""
    skipped_modules: tuple[str, ...] | None
    """What transformers must be told not to convert; None where its defaults are right."""
    companions: tuple[Path, ...]
    """Small files that are copied: tokenizer, generation settings, chat templates, licences."""

    @classmethod
    def make(cls, folder: Path, quantizer: WeightQuantizer) -> "PreparationPlan":
        """Plan for the model in `folder`. Raises CheckpointError if it is quantized already, or cannot be read."""
        _refuse_quantized(folder)
        checkpoint = Checkpoint.open(folder)
        dtype = _loading_dtype(checkpoint)
        parts = open_decoder(checkpoint, dtype=dtype)
        linears, skipped = _choose_linears(parts)
        return cls(
            checkpoint=checkpoint,
            quantizer=quantizer,
            dtype=dtype,
            shards=_plan_shards(parts, linears),
            skipped_modules=skipped,
            companions=_companions(folder),
        )

    @property
    def num_layers(self) -> int:
        return sum(shard.layer_index is not None for shard in self.shards)

    @property
    def source_bytes(self) -> int:
        """Bytes to be read for all shards."""
        return sum(shard.source_bytes for shard in self.shards)

    @property
    def num_quantized(self) -> int:
        return sum(tensor.is_quantized for shard in self.shards for tensor in shard.tensors)

    @property
    def max_bytes(self) -> int:
        """What the prepared folder takes at most; the true size is a few kilobytes a layer less."""
        total = sum(file.stat().st_size for file in self.companions)
        for tensor in (tensor for shard in self.shards for tensor in shard.tensors):
            if tensor.is_quantized:
                total += self.quantizer.max_bytes(tensor.matrix_shape) + 8 * _BYTES_PER_NAME
            else:
                total += math.prod(tensor.entry.shape) * tensor.dtype.itemsize + _BYTES_PER_NAME
        return total + _SMALL_FILES_BYTES

    def config(self) -> dict[str, Any]:
        """Return config.json of the prepared folder: the source's, with what transformers needs to load it."""
        config = dict(self.checkpoint.config)
        name = str(self.dtype).removeprefix("torch.")
        if config.get("dtype") is None and config.get("torch_dtype") is None:
            config["dtype"] = name  # transformers would otherwise guess it from the first tensor, a scale
        skipped = None if self.skipped_modules is None else list(self.skipped_modules)
        if self.quantizer.format == "int8":
            settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        else:
            settings = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=self.quantizer.is_double,
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=skipped,
            )
        config["quantization_config"] = dict(sorted(settings.to_dict().items()))
        return config

    def source_files(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time of every file that is read, by its name in the source folder."""
        folder = self.checkpoint.folder
        shards = {tensor.entry.file for shard in self.shards for tensor in shard.tensors}
        files = sorted({*shards, *self.companions, folder / "config.json"})
        try:
            stats = {str(file.relative_to(folder)): file.stat() for file in files}
        except OSError as error:
            raise CheckpointError(f"{folder} changed while it was read: {error.strerror}; start again") from error
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _refuse_quantized(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        return  # opening the folder says more
    config = read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise CheckpointError(
                f"{folder} is quantized already ({key} in config.json); give the bf16, fp16 or fp32 original"
            )


def _choose_linears(parts: DecoderParts) -> tuple[dict[str, bool], tuple[str, ...] | None]:
    """Return the full names of the modules to quantize, with whether they are stored turned; and what else to skip."""
    model = parts.model
    defaults = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    convertible = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, defaults)
    }
    linears = {name: kind for name, kind in convertible.items() if name.startswith(f"{parts.layers_name}.")}
    outside = convertible.keys() - linears.keys()
    return linears, tuple(sorted({*defaults, *outside})) if outside else None


def _plan_shards(parts: DecoderParts, linears: Mapping[str, bool]) -> tuple[PlannedShard, ...]:
    groups: list[Mapping[str, TensorEntry]] = [
        {f"{parts.layers_name}.{index}.{name}": entry for name, entry in tensors.items()}
        for index, tensors in enumerate(parts.layer_tensors)
    ]
    others = parts.other_tensors
    matrices = [{name: entry} for name, entry in others.items() if len(entry.shape) > 1] or [{}]
    groups += [matrices[0] | {name: entry for name, entry in others.items() if len(entry.shape) <= 1}, *matrices[1:]]
    dtypes = _loaded_dtypes(parts)
    shards = []
    for index, group in enumerate(groups):
        tensors = []
        for name, entry in group.items():
            module, _, kind = name.rpartition(".")
            is_quantized = kind == "weight" and module in linears
            tensors.append(PlannedTensor(name, entry, dtypes[name], is_quantized, is_quantized and linears[module]))
        layer_index = index if index < len(parts.layer_tensors) else None
        shards.append(
            PlannedShard(f"model-{index + 1:05}-of-{len(groups):05}.safetensors", layer_index, tuple(tensors))
        )
    return tuple(shards)


def _loading_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return what `from_pretrained` would choose: the configuration's type, else that of the first weight."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    for dtype in TORCH_DTYPES.values():
        if named == str(dtype).removeprefix("torch."):
            return dtype
    stored = (entry.dtype for entry in checkpoint.tensors.values() if entry.dtype in TORCH_DTYPES)
    return TORCH_DTYPES[next(stored, "F32")]


def _loaded_dtypes(parts: DecoderParts) -> dict[str, torch.dtype]:
    """Return the type of every parameter and buffer after loading; a few are never narrowed.

    They are stored in it, because transformers converts them when it loads an original, but not beside quantized ones.
    """
    model = parts.model
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    return {
        name: torch.float32 if any(pattern in name for pattern in kept) else tensor.dtype
        for name, tensor in model.state_dict().items()
    }


def _companions(folder: Path) -> tuple[Path, ...]:
    found = {file for pattern in _COMPANION_PATTERNS for file in folder.glob(pattern)}
    found |= set((folder / _TEMPLATE_FOLDER).glob("*.jinja"))
    return tuple(
        sorted(
            file
            for file in found
            if file.is_file() and file.name != "config.json" and not file.name.endswith(".index.json")
        )
    )
