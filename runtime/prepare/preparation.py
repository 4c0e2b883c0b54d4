"""Makes a quantized folder that transformers itself loads, layer by layer, in little memory and in any number of runs.

Bad input is found before anything is written. Every shard is written beside its name, flushed and renamed, and the
whole folder gets its name last; after an interruption the same request goes on behind the last finished shard.
Yields what has been done; prints nothing. Does not know how a matrix is quantized.
"""

import json
import math
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from offload.checkpoint.checkpoint import resolve_model_folder
from offload.checkpoint.partial_folder import PartialFolder
from offload.checkpoint.safetensors_writer import DTYPE_NAMES, OutgoingTensor, WrittenFile, as_bytes, write_safetensors
from offload.checkpoint.tensor_reader import TensorReader
from offload.errors import CheckpointError
from offload.formats.weight_quantizer import QUANTIZED_FORMATS, QuantizedFormat, ReadElements, WeightQuantizer
from offload.memory import process_memory
from offload.units import format_bytes
from profiles.errors import BadInputError
from profiles.steps import relabel
from runtime.errors import OptionError
from runtime.prepare.preparation_plan import INDEX_NAME, PlannedShard, PlannedTensor, PreparationPlan

_PROGRESS_BYTES = 32 << 20
_COPIED_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationRequest:
    """What is to be prepared; raises OptionError for a value that makes no sense."""

    model: str
    """Folder or hub name of the original."""
    output: Path
    """The folder to be made."""
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
class PreparationProgress:
    """So much is done."""

    layer_index: int | None
    """The decoder layer at work; None for embeddings, norm and head."""
    num_layers: int
    """Decoder layers in all."""
    done_bytes: int
    """Bytes of the original that are done, those of kept shards included."""
    total_bytes: int
    """Bytes of the original."""
    is_kept: bool
    """Whether this shard is from an earlier run."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """The folder is complete; always the last event."""

    folder: Path
    """Where it is."""
    num_bytes: int
    """Bytes of its tensors."""
    source_bytes: int
    """Bytes of the original's tensors."""
    num_quantized: int
    """Matrices that are quantized."""
    num_kept_shards: int
    """Shards that an earlier run had finished."""
    seconds: float
    """How long this run took."""
    peak_bytes: int
    """The largest resident size of this process so far."""


def prepare_model(request: PreparationRequest) -> Generator[str | PreparationProgress | PreparedModel, None, None]:
    """Make the folder; yields sentences and progress, and last the PreparedModel. May be closed at any event.

    Raises:
        BadInputError: something in the request cannot be used; nothing has been written then.
        WriteError: the disk is full or not writable; what is finished is kept.
    """
    begun = time.perf_counter()
    yield f"looking for the model {request.model}"
    source = resolve_model_folder(request.model)
    output = request.output.expanduser().resolve()
    if output.is_relative_to(source.resolve()):
        raise OptionError(f"the output {output} lies inside the model folder {source}; choose another output")
    plan = PreparationPlan.make(source, WeightQuantizer(cast(QuantizedFormat, request.format), request.is_double))
    partial = PartialFolder(output, _journal_request(request, plan))
    preparation = _Preparation(plan, partial)
    if not partial.is_published:
        _check_free_space(output, plan.max_bytes - partial.kept_bytes)
        with partial.begin(), _one_thread():
            yield from preparation.run()
            partial.publish()
    else:
        partial.publish()
    yield PreparedModel(
        folder=output,
        num_bytes=sum(written.tensor_bytes for written in partial.files.values()),
        source_bytes=plan.source_bytes,
        num_quantized=plan.num_quantized,
        num_kept_shards=preparation.num_kept if preparation.num_done else len(plan.shards),
        seconds=time.perf_counter() - begun,
        peak_bytes=process_memory().peak_bytes,
    )


class _Preparation:
    """The shards of one run, and how far it is."""

    def __init__(self, plan: PreparationPlan, partial: PartialFolder) -> None:
        self.num_kept = 0
        self.num_done = 0
        self._plan = plan
        self._partial = partial
        self._source_files = plan.source_files()
        self._kept_bytes = 0

    def run(self) -> Generator[PreparationProgress, None, None]:
        """Make what is missing, then the small files."""
        with TensorReader() as reader:
            for shard in self._plan.shards:
                if self._partial.is_finished(shard.name):
                    self.num_kept += 1
                    self._kept_bytes += shard.source_bytes
                    yield self._progress(shard, reader, is_kept=True)
                else:
                    yield from self._make(shard, reader)
                self.num_done += 1
        self._write_small_files()

    def _make(self, shard: PlannedShard, reader: TensorReader) -> Generator[PreparationProgress, None, None]:
        outgoing: list[OutgoingTensor] = []
        for tensor in shard.tensors:
            if tensor.is_quantized:
                outgoing += self._quantize(tensor, reader)
                yield self._progress(shard, reader)
            else:
                outgoing.append(_copied(tensor, reader))
        with closing(write_safetensors(self._partial.temporary(shard.name), outgoing)) as steps:
            written = yield from self._follow(steps, shard, reader)
        self._check_source()
        self._partial.accept(shard.name, written)
        yield self._progress(shard, reader)

    def _follow(
        self, steps: Generator[int, None, WrittenFile], shard: PlannedShard, reader: TensorReader
    ) -> Generator[PreparationProgress, None, WrittenFile]:
        """Write the file to its end; progress is worth an event every few megabytes."""
        reported = reader.bytes_read

        def say(_: int) -> PreparationProgress | None:
            nonlocal reported
            if reader.bytes_read - reported < _PROGRESS_BYTES:
                return None
            reported = reader.bytes_read
            return self._progress(shard, reader)

        return relabel(steps, say)

    def _quantize(self, tensor: PlannedTensor, reader: TensorReader) -> list[OutgoingTensor]:
        try:
            quantized = self._plan.quantizer.quantize(_reading(tensor, reader), tensor.matrix_shape)
        except ValueError as error:
            raise CheckpointError(
                f"the tensor {tensor.name} in {tensor.entry.file} cannot be quantized: it holds {error}; "
                "download it again"
            ) from error
        module = tensor.name.removesuffix("weight")
        return [OutgoingTensor.from_tensor(f"{module}{name}", value) for name, value in quantized.items()]

    def _check_source(self) -> None:
        if self._plan.source_files() != self._source_files:
            raise CheckpointError(
                f"{self._plan.checkpoint.folder} changed while it was read; "
                f"delete {self._partial.folder} and prepare it again"
            )

    def _write_small_files(self) -> None:
        plan, files = self._plan, self._partial.files
        for file in plan.companions:
            try:
                content = file.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
            self._partial.write_file(str(file.relative_to(plan.checkpoint.folder)), content)
        weight_map = {name: shard.name for shard in plan.shards for name in files[shard.name].tensor_names}
        total_bytes = sum(files[shard.name].tensor_bytes for shard in plan.shards)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        self._partial.write_file(INDEX_NAME, _to_json(index))
        self._partial.write_file("config.json", _to_json(plan.config()))
        self._check_source()

    def _progress(self, shard: PlannedShard, reader: TensorReader, *, is_kept: bool = False) -> PreparationProgress:
        return PreparationProgress(
            layer_index=shard.layer_index,
            num_layers=len(self._plan.shards) - 1,
            done_bytes=self._kept_bytes + reader.bytes_read,
            total_bytes=self._plan.source_bytes,
            is_kept=is_kept,
        )


def _reading(tensor: PlannedTensor, reader: TensorReader) -> ReadElements:
    """How to read the matrix (O, I) in pieces; one that is stored turned has to be read whole."""
    entry, dtype = tensor.entry, tensor.dtype
    if not tensor.is_transposed:
        return lambda start, stop: reader.read_elements(entry, start, stop).to(dtype)
    stored = reader.read_elements(entry, 0, math.prod(entry.shape)).view(entry.shape)
    matrix = stored.t().to(dtype).contiguous().view(-1)
    return lambda start, stop: matrix[start:stop]


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


def _copied(tensor: PlannedTensor, reader: TensorReader) -> OutgoingTensor:
    """A tensor that is not quantized; its bytes are copied, or converted where transformers would convert them."""
    entry = tensor.entry

    def pieces() -> Iterator[memoryview]:
        for start in range(0, num_elements, _COPIED_ELEMENTS):
            stop = min(start + _COPIED_ELEMENTS, num_elements)
            yield as_bytes(reader.read_elements(entry, start, stop).to(tensor.dtype))

    num_elements = math.prod(entry.shape)
    return OutgoingTensor(tensor.name, DTYPE_NAMES[tensor.dtype], entry.shape, pieces)


def _journal_request(request: PreparationRequest, plan: PreparationPlan) -> dict[str, Any]:
    """Whatever determines the bytes of the result."""
    return {
        "format": request.format,
        "double_quantization": request.is_double,
        "model_folder": str(plan.checkpoint.folder.resolve()),
        "state_of_the_model's_files": plan.source_files(),
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
