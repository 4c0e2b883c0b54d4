"""Make another folder of a model, layer by layer, in little memory and in any number of runs.

A quantized one, which transformers itself loads; a packed one, which only this program reads; and of a packed one the
original, bit for bit.

Bad input is found before anything is written. Every shard is written beside its name, flushed and renamed, and the
whole folder gets its name last; after an interruption the same request goes on behind the last finished shard.
Yields what has been done.
"""

import json
import math
import shutil
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from offload.checkpoint.border import MAX_VOCABULARY_BYTES
from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.tensor_entry import TensorEntry
from offload.device import one_thread
from offload.errors import CheckpointError
from offload.formats.four_bit import ReadElements
from offload.formats.packed import PackedFormat
from offload.formats.packed_tensors import unpack_tensors
from offload.formats.quantized_group import QuantizedGroup
from offload.formats.stored_sizes import PREPARED_FORMATS, PreparedFormat
from offload.formats.weight_quantizer import WeightQuantizer
from offload.free_memory import peak_memory_bytes
from offload.units import format_bytes
from profiles.errors import BadInputError, quote
from profiles.files import read_regular_file
from runtime.engine.model_folders import locate_model
from runtime.errors import OptionError
from runtime.events import LoadProgress
from runtime.prepare.preparation_plan import FILE_DTYPES, PreparationPlan, matrix_shape
from runtime.prepare.shards import PartialFolder

_COPIED_ELEMENTS = 1 << 20
_STATE = "state_of_the_model's_files"


def prepare_model(
    model: str, output: Path, *, weight_format: str, is_double: bool = False
) -> Generator[str | LoadProgress, None, dict[str, Any]]:
    """Make the folder; yields sentences and how many bytes of the original are done. May be closed at any step.

    Returns the figures: bytes of tensors, matrices, shards that an earlier run had finished, time, peak memory.

    `model`: folder or hub name of the original; `weight_format`: `int8` (LLM.int8 rows), `nf4` (4-bit NormalFloat) or
    `packed` (bfloat16 in 12 bits, bit for bit); `is_double`, NF4 only: quantize the scales as well, which saves 0.4
    bits a weight.

    Raises:
        BadInputError: something that was asked for cannot be used; nothing has been written then.
        WriteError: the disk is full or not writable; what is finished is kept.
    """
    begun = time.perf_counter()
    if weight_format not in PREPARED_FORMATS:
        raise OptionError(f"the format is {weight_format!r}; it must be one of {', '.join(PREPARED_FORMATS)}")
    if is_double and weight_format != "nf4":
        raise OptionError(f"double quantization belongs to nf4; leave it out for {weight_format}")
    quantizer = WeightQuantizer(cast(PreparedFormat, weight_format), is_double)
    source = yield from _find_source(model, output)
    plan = PreparationPlan.make(source, quantizer)
    if left_out_bytes := plan.left_out_bytes:
        yield (
            f"{format_bytes(left_out_bytes)} that are not of the text part are left out: the copy runs here, and "
            "transformers will miss them; --format packed keeps everything"
        )
    record = yield from _write_folder(plan, output.expanduser().resolve(), begun)
    return record | {"double_quant": is_double}


def unpack_model(model: str, output: Path) -> Generator[str | LoadProgress, None, dict[str, Any]]:
    """Make the folder of the original of a packed one: each tensor bit for bit; yields and returns as `prepare_model`.

    Raises as that does; BadInputError also for a matrix whose bytes are not those that were packed, in the middle of
    the work: nothing is published then.
    """
    begun = time.perf_counter()
    source = yield from _find_source(model, output)
    return (yield from _write_folder(PreparationPlan.unpacking(source), output.expanduser().resolve(), begun))


def _find_source(model: str, output: Path) -> Generator[str | LoadProgress, None, Path]:
    if not model.strip():
        raise OptionError("the model is empty; give a model folder or a hub name")
    source = Path((yield from locate_model("model", model)))
    output = output.expanduser().resolve()
    if output.is_relative_to(source.resolve()):
        raise OptionError(f"the output {output} lies inside the model folder {source}; choose another output")
    return source


def _write_folder(
    plan: PreparationPlan, output: Path, begun: float
) -> Generator[str | LoadProgress, None, dict[str, Any]]:
    partial = PartialFolder(output, _journal_request(plan))
    if partial.is_published:
        num_kept = len(plan.shards)
        partial.publish()
    else:
        _check_free_space(output, plan.max_bytes - partial.kept_bytes)
        # Sums then do not depend on the cores, and pieces this small are two or three times as fast so.
        with partial.begin(), one_thread():
            num_kept = yield from _make_shards(plan, partial)
            _write_small_files(plan, partial)
            _check_source(plan, partial)
            partial.publish()
    return {
        "folder": str(output),
        "num_bytes": sum(shard.tensor_bytes for shard in partial.shards.values()),
        "source_bytes": plan.source_bytes,
        "num_matrices": len(plan.is_turned) + len(plan.groups),
        "num_kept_shards": num_kept,
        "seconds": time.perf_counter() - begun,
        "peak_bytes": peak_memory_bytes(),
        "format": plan.format,
    }


def _make_shards(plan: PreparationPlan, partial: PartialFolder) -> Generator[LoadProgress, None, int]:
    """Make the shards that are missing; return how many were there already.

    Where nothing is quantized, which is slower than a disk, the next shard is made while a decoder layer is written.
    """
    num_kept = done_bytes = 0
    source_bytes = plan.source_bytes
    is_quantizing = plan.quantizer is not None and not plan.quantizer.is_exact
    written: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="shards") as writer:
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
            if written is not None:
                written.result()
            written = writer.submit(partial.write_shard, file_name, made)
            if is_quantizing or number > plan.num_layers:
                written.result()
        if written is not None:
            written.result()
    return num_kept


def _made_of(name: str, entry: TensorEntry, plan: PreparationPlan) -> dict[str, torch.Tensor]:
    if name in plan.groups:
        return {name: _unpacked(name, plan.groups[name])}
    dtype = plan.dtype_of(name, entry)
    if name not in plan.is_turned or plan.quantizer is None:
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


def _unpacked(name: str, group: QuantizedGroup) -> torch.Tensor:
    assert isinstance(group.format, PackedFormat) and group.sha256 is not None
    parts = {
        suffix: _converted(entry, FILE_DTYPES[entry.dtype]).view(entry.shape) for suffix, entry in group.entries.items()
    }
    try:
        return unpack_tensors(group.format, parts, sha256=group.sha256)
    except ValueError as error:
        raise CheckpointError(
            f"the tensor {quote(name)} in {group.entries[''].file} is damaged: {error}; pack its original again"
        ) from error


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
    return torch.from_numpy(raw).view(FILE_DTYPES[entry.dtype])


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


def _journal_request(plan: PreparationPlan) -> dict[str, Any]:
    """Return whatever determines the bytes of the result."""
    request = {
        "format": plan.format,
        "double_quantization": plan.quantizer is not None and plan.quantizer.is_double,
        "model_folder": str(plan.checkpoint.folder.resolve()),
        _STATE: plan.source_files(),
    }
    if plan.quantizer is None or plan.quantizer.is_exact:
        return request
    return request | {"version_of_bitsandbytes": metadata.version("bitsandbytes")}


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
