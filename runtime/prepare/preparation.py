"""Make a quantized folder that transformers itself loads, layer by layer, in little memory and in any number of runs.

Bad input is found before anything is written. Every shard is written beside its name, flushed and renamed, and the
whole folder gets its name last; after an interruption the same request goes on behind the last finished shard.
Yields what has been done.
"""

import json
import math
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from offload.checkpoint.checkpoint import ITEM_BYTES, TensorEntry
from offload.errors import CheckpointError
from offload.formats.four_bit import ReadElements
from offload.formats.stored_sizes import QUANTIZED_FORMATS, QuantizedFormat
from offload.formats.weight_format import TORCH_DTYPES
from offload.formats.weight_quantizer import WeightQuantizer
from offload.memory import peak_memory_bytes
from offload.units import format_bytes
from profiles.errors import BadInputError, quote
from runtime.engine.model_folders import locate_model
from runtime.errors import OptionError
from runtime.events import LoadProgress
from runtime.prepare.preparation_plan import INDEX_NAME, PlannedShard, PlannedTensor, PreparationPlan
from runtime.prepare.shards import PartialFolder

_COPIED_ELEMENTS = 1 << 20
_STATE = "state_of_the_model's_files"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationRequest:
    """What is to be prepared; raises OptionError for a value that makes no sense."""

    model: str
    """Folder or hub name of the original."""
    output: Path
    format: str
    """`int8` (LLM.int8 rows) or `nf4` (4-bit NormalFloat)."""
    is_double: bool = False
    """NF4 only: quantize the scales as well, which saves 0.4 bits a weight."""

    def __post_init__(self) -> None:
        if self.format not in QUANTIZED_FORMATS:
            raise OptionError(f"the format is {self.format!r}; it must be one of {', '.join(QUANTIZED_FORMATS)}")
        if self.is_double and self.format != "nf4":
            raise OptionError(f"double quantization belongs to nf4; leave it out for {self.format}")
        if not self.model.strip():
            raise OptionError("the model is empty; give a model folder or a hub name")


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """The complete folder."""

    folder: Path
    num_bytes: int
    """Bytes of its tensors."""
    source_bytes: int
    """Bytes of the original's tensors."""
    num_quantized: int
    """Matrices."""
    num_kept_shards: int
    """Shards that an earlier run had finished."""
    seconds: float
    peak_bytes: int
    """The largest resident size of this process so far."""


def prepare_model(request: PreparationRequest) -> Generator[str | LoadProgress, None, PreparedModel]:
    """Make the folder; yields sentences and how many bytes of the original are done. May be closed at any step.

    Raises:
        BadInputError: something in the request cannot be used; nothing has been written then.
        WriteError: the disk is full or not writable; what is finished is kept.
    """
    begun = time.perf_counter()
    source = Path((yield from locate_model("model", request.model)))
    output = request.output.expanduser().resolve()
    if output.is_relative_to(source.resolve()):
        raise OptionError(f"the output {output} lies inside the model folder {source}; choose another output")
    plan = PreparationPlan.make(source, WeightQuantizer(cast(QuantizedFormat, request.format), request.is_double))
    partial = PartialFolder(output, _journal_request(request, plan))
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
    return PreparedModel(
        folder=output,
        num_bytes=sum(shard.tensor_bytes for shard in partial.shards.values()),
        source_bytes=plan.source_bytes,
        num_quantized=plan.num_quantized,
        num_kept_shards=num_kept,
        seconds=time.perf_counter() - begun,
        peak_bytes=peak_memory_bytes(),
    )


def _make_shards(plan: PreparationPlan, partial: PartialFolder) -> Generator[LoadProgress, None, int]:
    """Make the shards that are missing; return how many were there already."""
    num_kept = done_bytes = 0

    def progress(shard: PlannedShard, *, ending: str = "") -> LoadProgress:
        at = "embeddings and head" if shard.layer_index is None else f"layer {shard.layer_index + 1}"
        return LoadProgress(f"{at} of {plan.num_layers} layers{ending}", done_bytes, plan.source_bytes)

    for shard in plan.shards:
        if partial.is_finished(shard.name):
            num_kept += 1
            done_bytes += shard.source_bytes
            yield progress(shard, ending=", kept")
            continue
        made: dict[str, torch.Tensor] = {}
        for tensor in shard.tensors:
            made |= _made_of(tensor, plan.quantizer)
            done_bytes += tensor.entry.num_bytes
            yield progress(shard)
        _check_source(plan, partial)
        partial.write_shard(shard.name, made)
    return num_kept


def _made_of(tensor: PlannedTensor, quantizer: WeightQuantizer) -> dict[str, torch.Tensor]:
    """Return the tensors by name that a stored one becomes."""
    if not tensor.is_quantized:
        return {tensor.name: _converted(tensor).view(tensor.entry.shape)}
    try:
        quantized = quantizer.quantize(_reading(tensor), tensor.matrix_shape, tensor.dtype)
    except ValueError as error:
        raise CheckpointError(
            f"the tensor {tensor.name} in {tensor.entry.file} cannot be quantized: it holds {error}; download it again"
        ) from error
    return {f"{tensor.name.removesuffix('weight')}{name}": value for name, value in quantized.items()}


def _reading(tensor: PlannedTensor) -> ReadElements:
    """Return how to read the matrix (O, I) in pieces; one that is stored turned has to be read whole."""
    entry, dtype = tensor.entry, tensor.dtype
    if not tensor.is_transposed:
        return lambda start, stop: read_elements(entry, start, stop).to(dtype)
    matrix = _converted(tensor).view(entry.shape).t().contiguous().view(-1)
    return lambda start, stop: matrix[start:stop]


def _converted(tensor: PlannedTensor) -> torch.Tensor:
    """Return the whole tensor, flat, converted piece by piece to the type that transformers would convert it to."""
    converted = torch.empty(math.prod(tensor.entry.shape), dtype=tensor.dtype)
    for start in range(0, converted.numel(), _COPIED_ELEMENTS):
        piece = converted[start : start + _COPIED_ELEMENTS]
        piece.copy_(read_elements(tensor.entry, start, start + piece.numel()))
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
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        partial.write_file(str(file.relative_to(plan.checkpoint.folder)), content)
    weight_map = {name: file for file, shard in partial.shards.items() for name in shard.tensor_names}
    total_bytes = sum(shard.tensor_bytes for shard in partial.shards.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    partial.write_file(INDEX_NAME, _to_json(index))
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


def _journal_request(request: PreparationRequest, plan: PreparationPlan) -> dict[str, Any]:
    """Return whatever determines the bytes of the result."""
    return {
        "format": request.format,
        "double_quantization": request.is_double,
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
