"""Decide what another folder of a model holds: which tensors, in which files, as what.

Reads headers and small files alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from offload.checkpoint.border import MAX_VOCABULARY_BYTES, check_small_file
from offload.checkpoint.checkpoint import PACKED_METHOD, PACKED_VERSION, Checkpoint
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from offload.formats.packed import PackedFormat
from offload.formats.packed_tensors import PART_SUFFIXES
from offload.formats.quantized_group import QuantizedGroup, find_group
from offload.formats.stored_sizes import can_be_packed
from offload.formats.weight_format import TORCH_DTYPES
from offload.formats.weight_quantizer import WeightQuantizer
from profiles.errors import quote
from runtime.model.architecture import DecoderParts, open_decoder
from runtime.model.trial_pass import try_pass

Tensors: TypeAlias = Mapping[str, TensorEntry]
FILE_DTYPES = TORCH_DTYPES | {
    "BOOL": torch.bool,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Every type of a safetensors file: what is not converted is copied, whatever it is."""
_COMPANION_PATTERNS = (
    *("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "NOTICE*"),
    "additional_chat_templates/*.jinja",
)
_BYTES_PER_NAME = 400  # its entries in a header and in the index
_SMALL_FILES_BYTES = 100_000
_ORIGINAL = "original"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationPlan:
    """Everything about a prepared folder but its bytes, from headers and small files alone.

    Which layers are quantized is asked of transformers, since it decides the same again when it loads the folder:
    linear layers of the decoder layers, never the embeddings or the head. The same ones are packed. One shard per
    decoder layer, and one per matrix outside them, so that never more than one of these is being made.
    """

    checkpoint: Checkpoint
    quantizer: WeightQuantizer | None
    """None: packed matrices are unpacked."""
    dtype: torch.dtype
    """What transformers loads the model in."""
    shards: Mapping[str, Mapping[str, TensorEntry]]
    """By file name: the stored tensors that go into it, by the name they get. Layers in order, then the rest."""
    num_layers: int
    dtypes: Mapping[str, torch.dtype]
    """By name what transformers loads a tensor in; matrices are quantized from it, all else is stored in it. Only of
    quantized folders: all others keep what they do not convert."""
    is_turned: Mapping[str, bool]
    """By name of each matrix to quantize, whether it is stored (I, O), as by GPT-2; quantized they are (O, I)."""
    skipped_modules: tuple[str, ...] | None
    """What transformers must be told not to convert; None where its defaults are right."""
    companions: tuple[Path, ...]
    """Small files that are copied: tokenizer, generation settings, chat templates, licences."""
    groups: Mapping[str, QuantizedGroup] = field(default_factory=dict)
    """By name of each matrix to unpack."""

    @classmethod
    def make(cls, folder: Path, quantizer: WeightQuantizer) -> "PreparationPlan":
        """Plan for the model in `folder`. Raises CheckpointError if it is quantized already, or cannot be read."""
        checkpoint = Checkpoint.open(folder)
        _refuse_quantized(checkpoint)
        dtype = _loading_dtype(checkpoint)
        try_pass(open_decoder(checkpoint, dtype=torch.float32))  # what cannot be run is not prepared
        parts = open_decoder(checkpoint, dtype=dtype)
        is_turned, skipped = _choose_linears(parts)
        layers, others = _full_names(parts)
        dtypes: Mapping[str, torch.dtype] = {}
        if quantizer.is_exact:
            _refuse_names(checkpoint)
            stored = [_by_stored_name(layer) for layer in layers]
            others = _all_others(stored, checkpoint)
            entries = [layer[name] for layer in layers for name in layer if is_turned.get(name) is False]
            packable = (entry.name for entry in entries if can_be_packed(entry.dtype, entry.shape))
            is_turned, layers = dict.fromkeys(packable, False), stored
        else:
            dtypes = _loaded_dtypes(parts)
        return cls(
            checkpoint=checkpoint,
            quantizer=quantizer,
            dtype=dtype,
            shards=_plan_shards(layers, others),
            num_layers=parts.num_layers,
            dtypes=dtypes,
            is_turned=is_turned,
            skipped_modules=skipped,
            companions=_companions(folder),
        )

    @classmethod
    def unpacking(cls, folder: Path) -> "PreparationPlan":
        """Plan for the original of a packed folder. Raises CheckpointError if it is none, or cannot be read."""
        checkpoint = Checkpoint.open(folder)
        if not checkpoint.is_packed:
            raise CheckpointError(f"{folder} is not packed; give a folder that prepare --format packed wrote")
        dtype = _loading_dtype(checkpoint)
        parts = open_decoder(checkpoint, dtype=dtype)
        groups = {}
        for layer, formats in zip(parts.layer_tensors, parts.layer_formats, strict=True):
            for name, found in formats.items():
                stored_name = layer[name].name
                if isinstance(found, PackedFormat) and (group := find_group(checkpoint, stored_name, found.shape)):
                    groups[stored_name] = group
        left_out = {f"{name}{suffix}" for name in groups for suffix in PART_SUFFIXES}
        layers = [_by_stored_name(layer, left_out) for layer in parts.layer_tensors]
        return cls(
            checkpoint=checkpoint,
            quantizer=None,
            dtype=dtype,
            shards=_plan_shards(layers, _all_others(layers, checkpoint, left_out)),
            num_layers=parts.num_layers,
            dtypes={},
            is_turned={},
            skipped_modules=None,
            companions=_companions(folder),
            groups=groups,
        )

    @property
    def format(self) -> str:
        return _ORIGINAL if self.quantizer is None else self.quantizer.format

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        return {name: entry for tensors in self.shards.values() for name, entry in tensors.items()}

    @property
    def left_out_bytes(self) -> int:
        """Bytes of what a composite model has beside its text part, which no quantized copy holds; 0 of others."""
        if self.quantizer is None or self.quantizer.is_exact or not self.checkpoint.config.get("text_config"):
            return 0
        held = {entry.name for entry in self.tensors.values()}
        return sum(entry.num_bytes for entry in self.checkpoint.tensors.values() if entry.name not in held)

    @property
    def source_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.tensors.values())

    @property
    def max_bytes(self) -> int:
        """What the prepared folder takes at most; the true size is a few kilobytes a layer less."""
        total = sum(file.stat().st_size for file in self.companions)
        for name, entry in self.tensors.items():
            if name in self.groups:
                total += 4 * entry.num_bytes // 3 + _BYTES_PER_NAME  # 12 bits become 16
            elif self.quantizer is not None and name in self.is_turned:
                shape = matrix_shape(entry, is_turned=self.is_turned[name])
                total += self.quantizer.max_bytes(shape) + 8 * _BYTES_PER_NAME
            else:
                total += math.prod(entry.shape) * self.dtype_of(name, entry).itemsize + _BYTES_PER_NAME
        return total + _SMALL_FILES_BYTES

    def dtype_of(self, name: str, entry: TensorEntry) -> torch.dtype:
        """Return what a tensor is stored in that is neither quantized nor packed."""
        return self.dtypes.get(name) or FILE_DTYPES[entry.dtype]

    def config(self) -> dict[str, Any]:
        """Return config.json of the prepared folder: the source's, with what is needed to load it."""
        config = dict(self.checkpoint.config)
        if self.quantizer is None:
            del config["quantization_config"]
            return config
        if self.quantizer.is_exact:
            return config | {"quantization_config": {"quant_method": PACKED_METHOD, "version": PACKED_VERSION}}
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
        shards = {entry.file for entry in self.tensors.values()}
        files = sorted({*shards, *self.companions, folder / "config.json"})
        try:
            stats = {str(file.relative_to(folder)): file.stat() for file in files}
        except OSError as error:
            raise CheckpointError(f"{folder} changed while it was read: {error.strerror}; start again") from error
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    if checkpoint.gguf is not None:
        raise CheckpointError(
            f"{checkpoint.folder} is a GGUF file, which streams as it lies; give a safetensors folder"
        )
    if checkpoint.is_packed:
        raise CheckpointError(f"{checkpoint.folder} is packed; restore its original with overstory unpack first")
    for key in ("quantization_config", "compression_config"):
        if checkpoint.config.get(key) is not None:
            raise CheckpointError(
                f"{checkpoint.folder} is quantized already ({key} in config.json), and runs as it is; to make another "
                "format, give the bf16, fp16 or fp32 original"
            )


def _choose_linears(parts: DecoderParts) -> tuple[dict[str, bool], tuple[str, ...] | None]:
    """Return the full names of the matrices to quantize, with whether they are stored turned; and what else to skip."""
    model = parts.model
    defaults = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    convertible = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, defaults)
    }
    outside = {name for name in convertible if not name.startswith(f"{parts.layers_name}.")}
    chosen = {f"{name}.weight": is_turned for name, is_turned in convertible.items() if name not in outside}
    return chosen, tuple(sorted({*defaults, *outside})) if outside else None


def _full_names(parts: DecoderParts) -> tuple[list[Tensors], Tensors]:
    """Return the layers' tensors and the others, by the model's own full names."""
    layers: list[Tensors] = [
        {f"{parts.layers_name}.{index}.{name}": entry for name, entry in tensors.items()}
        for index, tensors in enumerate(parts.layer_tensors)
    ]
    return layers, parts.other_tensors


def _refuse_names(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a tensor that would be taken for a part of a packed matrix."""
    for name in checkpoint.tensors:
        if name.endswith(PART_SUFFIXES):
            raise CheckpointError(f"{checkpoint.folder} has the tensor {quote(name)}, a name that packed matrices need")


def _by_stored_name(tensors: Tensors, left_out: Collection[str] = ()) -> Tensors:
    return {entry.name: entry for entry in tensors.values() if entry.name not in left_out}


def _all_others(layers: Sequence[Tensors], checkpoint: Checkpoint, left_out: Collection[str] = ()) -> Tensors:
    """Return whatever else the files hold, tensors that the model does not use included."""
    known = {name for layer in layers for name in layer} | set(left_out)
    return {name: entry for name, entry in checkpoint.tensors.items() if name not in known}


def _plan_shards(layers: Sequence[Tensors], others: Tensors) -> dict[str, Tensors]:
    matrices = [{name: entry} for name, entry in others.items() if len(entry.shape) > 1] or [{}]
    rest = {name: entry for name, entry in others.items() if len(entry.shape) <= 1}
    groups: list[Tensors] = [*layers, matrices[0] | rest, *matrices[1:]]
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, start=1)}


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
    """Return the files to copy; the links among them have been found to stay in the folder. Raises CheckpointError."""
    found = {file for pattern in _COMPANION_PATTERNS for file in folder.glob(pattern) if file.is_file()}
    for file in found:
        check_small_file(file, max_bytes=MAX_VOCABULARY_BYTES)
    return tuple(sorted(file for file in found - {folder / "config.json"} if not file.name.endswith(".index.json")))


def matrix_shape(entry: TensorEntry, *, is_turned: bool) -> tuple[int, int]:
    """Return (O, I) of a stored matrix."""
    rows, columns = entry.shape
    return (columns, rows) if is_turned else (rows, columns)
