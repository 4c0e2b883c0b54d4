"""Keeps the NF4 layers of drafts on disk, so that a model is quantized once and not at every start.

Below one folder, a folder for each model, named by its content digest and `nf4`; in it `layer-000.safetensors` and so
on, each with a layer's tensors: matrices as bitsandbytes writes them (`X.weight` codes, `.absmax`, `.nested_absmax`,
`.nested_quant_map`), vectors as the model stores them. The metadata holds a record of the digest, the layer, the offset
of each matrix's absmaxes, and a SHA-256 of all of it and of the tensors. A file is written to a neighbour and renamed;
one that is not what it should be is made again. Of the models that were not used for longest, folders are removed until
all together take MAX_CACHE_BYTES at most.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from offload.checkpoint.hub_download import free_disk_bytes
from offload.checkpoint.layer_layout import LayerLayout
from offload.formats.four_bit import FourBitFormat, FourBitWeight
from offload.formats.stored_sizes import NESTED_BLOCK_SIZE, nf4_bytes
from offload.formats.weight_format import TORCH_DTYPES, StoredWeight
from profiles.files import parse_json_text

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 24 * 10**9
"""Of all models together: an 8B takes 4 GB."""
_FORMAT = "overstory nf4 draft 1"
_MAX_MODELS = 1000
_NUM_READERS = 4
"""Layers that are read and checked side by side: one core hashes 0.5 to 2 GB a second."""


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A decoder layer as it is bound: the tensors by name, and how the quantized matrices among them are read."""

    tensors: Mapping[str, torch.Tensor]
    formats: Mapping[str, FourBitFormat]


@dataclass(slots=True)
class DraftCache:
    """The cached layers of one model."""

    folder: Path
    """Of all models; it may not exist yet."""
    digest: str
    """The model's, see `model_digest`."""
    damaged: list[int] = field(default_factory=list)
    """Layers whose file was there and was not what it should be."""

    @property
    def model_folder(self) -> Path:
        return self.folder / f"{self.digest}-nf4"

    def load(
        self, layouts: Sequence[LayerLayout], linears: Sequence[Mapping[str, tuple[int, int]]]
    ) -> Iterator[CachedLayer | None]:
        """Yield every layer in order, the next ones on their way; None for one that is not there, or damaged."""
        with suppress(OSError):
            os.utime(self.model_folder)  # it is in use
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            indices = iter(range(len(layouts)))

            def begin(index: int) -> Future[CachedLayer | None]:
                return readers.submit(self._load_layer, index, layouts[index], linears[index])

            coming = [begin(index) for index in islice(indices, _NUM_READERS)]
            while coming:
                layer = coming.pop(0).result()
                if (following := next(indices, None)) is not None:
                    coming.append(begin(following))
                yield layer

    def save(self, index: int, weights: Mapping[str, StoredWeight], others: Mapping[str, torch.Tensor]) -> None:
        """Write a layer: its matrices, by name, as they are held, and copies of its other tensors.

        Raises OSError if the disk does not take it.
        """
        tensors, offsets = {name: tensor.clone() for name, tensor in others.items()}, {}
        for name, weight in weights.items():
            assert isinstance(weight, FourBitWeight)
            offsets[name] = weight.format.nested_offset
            tensors |= {f"{name}{suffix}": part.to("cpu").clone() for suffix, part in weight.parts.items()}
        record = {"format": _FORMAT, "digest": self.digest, "layer": index, "offsets": offsets}
        record["sha256"] = _checksum(record, tensors)
        self.model_folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".partial", dir=self.model_folder)
        os.close(handle)
        try:
            save_file(tensors, name, metadata={"record": json.dumps(record)})
            Path(name).replace(self._file(index))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        finally:
            Path(name).unlink(missing_ok=True)

    def has_room(self, linears: Sequence[Mapping[str, tuple[int, int]]]) -> bool:
        """Return whether the whole model may be kept; older ones are removed for it."""
        num_bytes = sum(nf4_bytes(shape) for layer in linears for shape in layer.values())
        free_bytes = free_disk_bytes(self.folder)
        if num_bytes > MAX_CACHE_BYTES or (free_bytes is not None and free_bytes < 2 * num_bytes):
            return False
        with suppress(OSError):
            self._evict(MAX_CACHE_BYTES - num_bytes)
        return True

    def _evict(self, most_bytes: int) -> None:
        """Remove the models that were not used for longest until the others take at most so much."""
        folders = [path for path in islice(self.folder.iterdir(), _MAX_MODELS) if path.name.endswith("-nf4")]
        others = [path for path in folders if path != self.model_folder and path.is_dir() and not path.is_symlink()]
        sizes = {path: sum(file.lstat().st_size for file in path.iterdir()) for path in others}
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) <= most_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]

    def _file(self, index: int) -> Path:
        return self.model_folder / f"layer-{index:03}.safetensors"

    def _load_layer(
        self, index: int, layout: LayerLayout, linears: Mapping[str, tuple[int, int]]
    ) -> CachedLayer | None:
        file = self._file(index)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                record = parse_json_text((opened.metadata() or {}).get("record", "").encode())
                # Copies: what is mapped would change with the file.
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            return self._checked(index, record, tensors, layout, linears)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.debug("%s is made again: %s", file, error)
            self.damaged.append(index)
            return None

    def _checked(
        self,
        index: int,
        record: object,
        tensors: Mapping[str, torch.Tensor],
        layout: LayerLayout,
        linears: Mapping[str, tuple[int, int]],
    ) -> CachedLayer:
        """Return the layer. Raises ValueError where the file does not hold it."""
        if not isinstance(record, dict) or not isinstance(record.get("offsets"), dict):
            raise ValueError("it has no record of what it holds")
        known = {"format": _FORMAT, "digest": self.digest, "layer": index}
        unchecked = {name: value for name, value in record.items() if name != "sha256"}
        if any(unchecked.get(name) != value for name, value in known.items()):
            raise ValueError("it is of another model, layer or version")
        formats, expected = {}, {}
        for tensor in layout.tensors:
            if any(tensor.name.startswith(f"{name}.") for name in linears):
                continue  # a part of a packed matrix
            if tensor.name not in linears:
                expected[tensor.name] = (TORCH_DTYPES[tensor.dtype], tensor.shape)
                continue
            shape, offset = linears[tensor.name], record["offsets"][tensor.name]
            if type(offset) is not float or not math.isfinite(offset):
                raise ValueError("an offset is not a number")
            found = FourBitFormat(shape, "nf4", nested_offset=offset)
            formats[tensor.name] = found
            num_nested = -(-found.num_blocks // NESTED_BLOCK_SIZE)
            expected |= {
                tensor.name: (torch.uint8, (found.packed_bytes,)),
                f"{tensor.name}.absmax": (torch.uint8, (found.num_blocks,)),
                f"{tensor.name}.nested_absmax": (torch.float32, (num_nested,)),
                f"{tensor.name}.nested_quant_map": (torch.float32, (256,)),
            }
        if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} != expected:
            raise ValueError("its tensors are not those of the layer")
        if record.get("sha256") != _checksum(unchecked, tensors):
            raise ValueError("its bytes are not those that were written")
        return CachedLayer(tensors, formats)


def _checksum(record: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
