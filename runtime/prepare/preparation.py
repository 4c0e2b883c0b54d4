"""Make a quantized folder that transformers itself loads, layer by layer, in little memory and in any number of runs.

Bad input is found before anything is written. Every shard is written beside its name, flushed and renamed, and the
whole folder gets its name last; after an interruption the same request goes on behind the last finished shard.
Yields what has been done.
"""

import json
import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from offload.checkpoint.border import MAX_VOCABULARY_BYTES, check_small_file
from offload.checkpoint.checkpoint import ITEM_BYTES, Checkpoint, TensorEntry
from offload.errors import CheckpointError
from offload.formats.four_bit import ReadElements
from offload.formats.stored_sizes import QUANTIZED_FORMATS, QuantizedFormat
from offload.formats.weight_format import TORCH_DTYPES
from offload.formats.weight_quantizer import WeightQuantizer
from offload.free_memory import peak_memory_bytes
from offload.units import format_bytes
from profiles.errors import BadInputError, quote
from profiles.files import read_regular_file
from runtime.engine.model_folders import locate_model
from runtime.errors import OptionError
from runtime.events import LoadProgress
from runtime.model.architecture import DecoderParts, open_decoder
from runtime.model.trial_pass import try_pass
from runtime.prepare.shards import PartialFolder

_COMPANION_PATTERNS = (
    *("*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "NOTICE*"),
    "additional_chat_templates/*.jinja",
)
_BYTES_PER_NAME = 400  # its entries in a header and in the index
_SMALL_FILES_BYTES = 100_000
_COPIED_ELEMENTS = 1 << 20
_STATE = "state_of_the_model's_files"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationPlan:
    """Everything about a prepared folder but its bytes, from headers and small files alone.

    Which layers are quantized is asked of transformers, since it decides the same again when it loads the folder:
    linear layers of the decoder layers, never the embeddings or the head. One shard per decoder layer, and one per
    matrix outside them, so that never more than one of these is in memory.
    """

    checkpoint: Checkpoint
    quantizer: WeightQuantizer
    dtype: torch.dtype
    """What transformers loads the model in."""
    shards: Mapping[str, Mapping[str, TensorEntry]]
    """By file name: the stored tensors that go into it by full name. Decoder layers in order, then the rest."""
    num_layers: int
    dtypes: Mapping[str, torch.dtype]
    """By full name what transformers loads a tensor in; matrices are quantized from it, all else is stored in it."""
    is_turned: Mapping[str, bool]
    """By full name of each matrix to quantize, whether it is stored (I, O), as by GPT-2; quantized they are (O, I)."""
    skipped_modules: tuple[str, ...] | None
    """What transformers must be told not to convert; None where its defaults are right."""
    companions: tuple[Path, ...]
    """Small files that are copied: tokenizer, generation settings, chat templates, licences."""

    @classmethod
    def make(cls, folder: Path, quantizer: WeightQuantizer) -> "PreparationPlan":
        """Plan for the model in `folder`. Raises CheckpointError if it is quantized already, or cannot be read."""
        checkpoint = Checkpoint.open(folder)
        _refuse_quantized(checkpoint)
        dtype = _loading_dtype(checkpoint)
        try_pass(open_decoder(checkpoint, dtype=torch.float32))  # what cannot be run is not prepared
        parts = open_decoder(checkpoint, dtype=dtype)
        is_turned, skipped = _choose_linears(parts)
        return cls(
            checkpoint=checkpoint,
            quantizer=quantizer,
            dtype=dtype,
            shards=_plan_shards(parts),
            num_layers=parts.num_layers,
            dtypes=_loaded_dtypes(parts),
            is_turned=is_turned,
            skipped_modules=skipped,
            companions=_companions(folder),
        )

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        return {name: entry for tensors in self.shards.values() for name, entry in tensors.items()}

    @property
    def source_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.tensors.values())

    @property
    def max_bytes(self) -> int:
        """What the prepared folder takes at most; the true size is a few kilobytes a layer less."""
        total = sum(file.stat().st_size for file in self.companions)
        for name, entry in self.tensors.items():
            if name in self.is_turned:
                total += (
                    self.quantizer.max_bytes(matrix_shape(entry, is_turned=self.is_turned[name])) + 8 * _BYTES_PER_NAME
                )
            else:
                total += math.prod(entry.shape) * self.dtypes[name].itemsize + _BYTES_PER_NAME
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
        shards = {entry.file for entry in self.tensors.values()}
        files = sorted({*shards, *self.companions, folder / "config.json"})
        try:
            stats = {str(file.relative_to(folder)): file.stat() for file in files}
        except OSError as error:
            raise CheckpointError(f"{folder} changed while it was read: {error.strerror}; start again") from error
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    for key in ("quantization_config", "compression_config"):
        if checkpoint.config.get(key) is not None:
            raise CheckpointError(
                f"{checkpoint.folder} is quantized already ({key} in config.json); give the bf16, fp16 or fp32 original"
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


def _plan_shards(parts: DecoderParts) -> dict[str, Mapping[str, TensorEntry]]:
    groups: list[Mapping[str, TensorEntry]] = [
        {f"{parts.layers_name}.{index}.{name}": entry for name, entry in tensors.items()}
        for index, tensors in enumerate(parts.layer_tensors)
    ]
    others = parts.other_tensors
    matrices = [{name: entry} for name, entry in others.items() if len(entry.shape) > 1] or [{}]
    groups += [matrices[0] | {name: entry for name, entry in others.items() if len(entry.shape) <= 1}, *matrices[1:]]
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


def prepare_model(
    model: str, output: Path, *, weight_format: str, is_double: bool = False
) -> Generator[str | LoadProgress, None, dict[str, Any]]:
    """Make the folder; yields sentences and how many bytes of the original are done. May be closed at any step.

    Returns the figures: bytes of tensors, matrices, shards that an earlier run had finished, time, peak memory.

    `model`: folder or hub name of the original; `weight_format`: `int8` (LLM.int8 rows) or `nf4` (4-bit NormalFloat);
    `is_double`, NF4 only: quantize the scales as well, which saves 0.4 bits a weight.

    Raises:
        BadInputError: something that was asked for cannot be used; nothing has been written then.
        WriteError: the disk is full or not writable; what is finished is kept.
    """
    begun = time.perf_counter()
    if weight_format not in QUANTIZED_FORMATS:
        raise OptionError(f"the format is {weight_format!r}; it must be one of {', '.join(QUANTIZED_FORMATS)}")
    if is_double and weight_format != "nf4":
        raise OptionError(f"double quantization belongs to nf4; leave it out for {weight_format}")
    if not model.strip():
        raise OptionError("the model is empty; give a model folder or a hub name")
    source = Path((yield from locate_model("model", model)))
    output = output.expanduser().resolve()
    if output.is_relative_to(source.resolve()):
        raise OptionError(f"the output {output} lies inside the model folder {source}; choose another output")
    plan = PreparationPlan.make(source, WeightQuantizer(cast(QuantizedFormat, weight_format), is_double))
    partial = PartialFolder(output, _journal_request(plan))
    if partial.is_published:
        num_kept = len(plan.shards)
        partial.publish()
    else:
        _check_free_space(output, plan.max_bytes - partial.kept_bytes)
        with partial.begin(), _one_thread():
            num_kept = yield from _make_shards(plan, partial)
            _write_small_files(plan, partial)
            _check_source(plan, partial)
            partial.publish()
    return {
        "folder": str(output),
        "num_bytes": sum(shard.tensor_bytes for shard in partial.shards.values()),
        "source_bytes": plan.source_bytes,
        "num_quantized": len(plan.is_turned),
        "num_kept_shards": num_kept,
        "seconds": time.perf_counter() - begun,
        "peak_bytes": peak_memory_bytes(),
        "format": weight_format,
        "double_quant": is_double,
    }


def _make_shards(plan: PreparationPlan, partial: PartialFolder) -> Generator[LoadProgress, None, int]:
    """Make the shards that are missing; return how many were there already."""
    num_kept = done_bytes = 0
    source_bytes = plan.source_bytes
    for number, (file_name, tensors) in enumerate(plan.shards.items(), start=1):
        at = f"layer {number}" if number <= plan.num_layers else "embeddings and head"
        what = f"{at} of {plan.num_layers} layers"
        if partial.is_finished(file_name):
            num_kept += 1
            done_bytes += sum(entry.num_bytes for entry in tensors.values())
            yield LoadProgress(f"{what}, kept", done_bytes, source_bytes)
            continue
        made: dict[str, torch.Tensor] = {}
        for name, entry in tensors.items():
            made |= _made_of(name, entry, plan)
            done_bytes += entry.num_bytes
            yield LoadProgress(what, done_bytes, source_bytes)
        _check_source(plan, partial)
        partial.write_shard(file_name, made)
    return num_kept


def _made_of(name: str, entry: TensorEntry, plan: PreparationPlan) -> dict[str, torch.Tensor]:
    dtype = plan.dtypes[name]
    if name not in plan.is_turned:
        return {name: _converted(entry, dtype).view(entry.shape)}
    is_turned = plan.is_turned[name]
    shape = matrix_shape(entry, is_turned=is_turned)
    try:
        quantized = plan.quantizer.quantize(_reading(entry, dtype, is_turned=is_turned), shape, dtype)
    except ValueError as error:
        raise CheckpointError(
            f"the tensor {name} in {entry.file} cannot be quantized: it holds {error}; download it again"
        ) from error
    return {f"{name.removesuffix('weight')}{suffix}": value for suffix, value in quantized.items()}


def matrix_shape(entry: TensorEntry, *, is_turned: bool) -> tuple[int, int]:
    """Return (O, I) of a stored matrix."""
    rows, columns = entry.shape
    return (columns, rows) if is_turned else (rows, columns)


def _reading(entry: TensorEntry, dtype: torch.dtype, *, is_turned: bool) -> ReadElements:
    """Return how to read the matrix (O, I) in pieces; one that is stored turned has to be read whole."""
    if not is_turned:
        return lambda start, stop: read_elements(entry, start, stop).to(dtype)
    matrix = _converted(entry, dtype).view(entry.shape).t().contiguous().view(-1)
    return lambda start, stop: matrix[start:stop]


def _converted(entry: TensorEntry, dtype: torch.dtype) -> torch.Tensor:
    """Return the whole tensor, flat, converted piece by piece to the type that transformers would convert it to."""
    converted = torch.empty(math.prod(entry.shape), dtype=dtype)
    for start in range(0, converted.numel(), _COPIED_ELEMENTS):
        piece = converted[start : start + _COPIED_ELEMENTS]
        piece.copy_(read_elements(entry, start, start + piece.numel()))
    return converted


def read_elements(entry: TensorEntry, start: int, stop: int) -> torch.Tensor:
    """Read elements `start` to `stop` of a stored tensor, flat, in its storage dtype. Raises CheckpointError."""
    where = f"the tensor {quote(entry.name)} in {entry.file}"
    num_bytes = (stop - start) * ITEM_BYTES[entry.dtype]
    offset = entry.offset_bytes + start * ITEM_BYTES[entry.dtype]
    try:
        raw = np.fromfile(entry.file, np.uint8, num_bytes, offset=offset)
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {quote(str(error))}") from error
    if len(raw) < num_bytes:
        raise CheckpointError(f"{where} ends early; the file was changed or cut off while it was read")
    return torch.from_numpy(raw).view(TORCH_DTYPES[entry.dtype])


def _check_source(plan: PreparationPlan, partial: PartialFolder) -> None:
    if plan.source_files() != partial.request[_STATE]:
        raise CheckpointError(
            f"{plan.checkpoint.folder} changed while it was read; delete {partial.folder} and prepare it again"
        )


def _write_small_files(plan: PreparationPlan, partial: PartialFolder) -> None:
    for file in plan.companions:
        try:
            content = read_regular_file(file, max_bytes=MAX_VOCABULARY_BYTES)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {quote(str(error))}") from error
        partial.write_file(str(file.relative_to(plan.checkpoint.folder)), content)
    weight_map = {name: file for file, shard in partial.shards.items() for name in shard.tensor_names}
    total_bytes = sum(shard.tensor_bytes for shard in partial.shards.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    partial.write_file("model.safetensors.index.json", _to_json(index))
    partial.write_file("config.json", _to_json(plan.config()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: its sums then do not depend on the cores, and pieces this small are faster so.

    Measured on two busy cores: 230-270 million elements a second with one thread, 80-90 with two.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _journal_request(plan: PreparationPlan) -> dict[str, Any]:
    """Return whatever determines the bytes of the result."""
    return {
        "format": plan.quantizer.format,
        "double_quantization": plan.quantizer.is_double,
        "model_folder": str(plan.checkpoint.folder.resolve()),
        _STATE: plan.source_files(),
        "version_of_bitsandbytes": metadata.version("bitsandbytes"),
    }


def _check_free_space(output: Path, needed_bytes: int) -> None:
    place = next(folder for folder in output.parents if folder.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise BadInputError(
            f"{output} needs up to {format_bytes(needed_bytes)} and {place} has {format_bytes(free_bytes)} free; "
            "make room, or choose another output"
        )


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
