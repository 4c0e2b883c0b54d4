"""The index of a model folder, or of a GGUF file: which tensor lies where, in which file, as what.

Reads config.json, the shard index and the header of every safetensors file, and checks all of it; a folder that
passes can be streamed without a second look. Of quantized folders those of bitsandbytes and of PUBLISHED_METHODS pass,
and folders that `prepare` packed; other methods are refused by name. Never reads a tensor's bytes, and opens nothing
but JSON, safetensors and GGUF, so no file of a checkpoint can run code. Everything in it counts as hostile. Imports
neither torch nor transformers.
Format: 8 bytes little-endian header length, a JSON header, then the data that its offsets count from.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeGuard

from offload.checkpoint.border import MAX_SETTINGS_BYTES, check_border, check_inside, is_inner_name
from offload.checkpoint.gguf_config import config_of_gguf, tensors_of_gguf
from offload.checkpoint.gguf_file import GgufHeader, read_gguf
from offload.checkpoint.published_settings import NEXT_STEP, PUBLISHED_METHODS, PublishedSettings
from offload.checkpoint.strict_json import parse_json, read_json, read_start
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from profiles.errors import quote

SUPPORTED_DTYPES = ("BF16", "F16", "F32")
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
PACKED_METHOD = "overstory-packed"
"""The quant_method of a folder that `prepare` packed: one that transformers does not know."""
PACKED_VERSION = 2
MAX_HEADER_BYTES = 100 * 10**6
CODES_SUFFIXES = (".qweight", ".weight_packed", ".weight_blocks")
"""Of the names that published formats give the codes of a matrix X.weight."""
_MAX_RANK = 64
_MAX_NAME_CHARACTERS = 500
_LENGTH_BYTES = 8
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder whose files have been found sound, or a GGUF file."""

    folder: Path
    """The folder as it was named, or the file."""
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    """By their names in the files; the codes of a published matrix by X.weight, whatever their format calls them."""
    published: PublishedSettings | None = None
    """How config.json says that the model was published, quantized; None of every other folder."""
    gguf: GgufHeader | None = None
    """The header of a GGUF file; None of a folder."""

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read and check the index of `folder`, or of the GGUF file that it is.

        Raises CheckpointError if it is missing, damaged, stored neither as safetensors nor as GGUF, or quantized by a
        method that is not supported.
        """
        folder = Path(folder)
        try:
            if folder.is_file():
                return cls._open_gguf(folder)
            if not folder.is_dir():
                raise CheckpointError(f"{folder} is not a folder; expected a model folder in Hugging Face format")
            if not (folder / "config.json").exists():
                raise CheckpointError(f"{folder} has no config.json; expected a model folder in Hugging Face format")
            check_border(folder)
            config = read_json(folder / "config.json", max_bytes=MAX_SETTINGS_BYTES)
            _check_single(config, folder=folder)
            published = _check_quantization(config, folder=folder)
            tensors = _read_tensors(folder)
            if published is not None:
                tensors = _by_matrix(tensors)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {quote(str(error))}") from error
        return cls(folder=folder, config=config, tensors=tensors, published=published)

    @classmethod
    def _open_gguf(cls, file: Path) -> "Checkpoint":
        header = read_gguf(file)
        config = config_of_gguf(header)
        return cls(folder=header.file, config=config, tensors=tensors_of_gguf(header), gguf=header)

    @property
    def settings_place(self) -> str:
        """Where the settings are, for people."""
        return f"{self.folder}/config.json" if self.gguf is None else f"the metadata of {self.folder}"

    @property
    def is_quantized(self) -> bool:
        """Whether matrices may be stored in a quantized format, packed, or in the blocks of GGUF."""
        return self.gguf is not None or self.config.get("quantization_config") is not None

    @property
    def _settings_name(self) -> str:
        return "config.json" if self.gguf is None else "its metadata"

    @property
    def is_packed(self) -> bool:
        """Whether config.json says that `prepare` packed the folder, so that it is an original bit for bit."""
        settings = self.config.get("quantization_config")
        return isinstance(settings, dict) and settings.get("quant_method") == PACKED_METHOD

    @property
    def total_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.tensors.values())

    def check(self, expected: Mapping[str, tuple[int, ...]], *, stored_names: Mapping[str, str] | None = None) -> None:
        """Check that every expected tensor is stored with its shape and as BF16, F16 or F32.

        `stored_names` gives the name in the file by expected name, where they differ. Raises CheckpointError, which
        names the first tensor that is missing or wrong.
        """
        for name, shape in expected.items():
            entry = self.tensors.get((stored_names or {}).get(name, name))
            if entry is None:
                raise CheckpointError(
                    f"{self.folder} lacks the tensor {quote(name)} that {self._settings_name} calls for; "
                    f"the download is incomplete or {self._settings_name} belongs to another model"
                )
            where = f"the tensor {quote(entry.name)} in {entry.file}"
            if entry.shape != tuple(shape):
                raise CheckpointError(
                    f"{where} has shape {quote(list(entry.shape))}, but {self._settings_name} calls for "
                    f"{quote(list(shape))}; one of the two belongs to another model"
                )
            if entry.dtype not in SUPPORTED_DTYPES:
                raise CheckpointError(
                    f"{where} is stored as {entry.dtype}; expected one of {', '.join(SUPPORTED_DTYPES)}"
                )


def is_hub_name(text: str) -> bool:
    """Return whether this can be a model's name on the hub: "owner/name"."""
    return _HUB_NAME.fullmatch(text) is not None


def _check_single(config: Mapping[str, Any], *, folder: Path) -> None:
    """Refuse a configuration that sends transformers on to another one, which nobody has checked."""
    if config.get("configuration_files"):
        raise CheckpointError(
            f"{folder}/config.json names other configurations (configuration_files = "
            f"{quote(config['configuration_files'])}), which are not followed; put the right one into config.json"
        )


def _check_quantization(config: Mapping[str, Any], *, folder: Path) -> PublishedSettings | None:
    """Return the settings of a published method, or let bitsandbytes pass, by transformers' own rule, and our own.

    Raises CheckpointError, which names any other method.
    """
    published = None
    for key in ("quantization_config", "compression_config"):
        settings = config.get(key)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise CheckpointError(f"{folder}/config.json has {key} = {quote(settings)}; expected an object")
        method = settings.get("quant_method")
        if key == "quantization_config" and method == PACKED_METHOD:
            _check_packed(settings, folder=folder)
            continue
        if key == "quantization_config" and isinstance(method, str) and method in PUBLISHED_METHODS:
            published = PublishedSettings.parse(settings, where=f"quantization_config in {folder}/config.json")
            continue
        is_loaded = [settings.get(name) is True for name in ("load_in_4bit", "load_in_8bit")]
        method = settings.get("quant_method", "bitsandbytes" if any(is_loaded) else None)
        if key != "quantization_config" or method != "bitsandbytes":
            raise CheckpointError(
                f"{folder} is quantized with {quote(method)} ({key} in config.json), which cannot be streamed; "
                f"{NEXT_STEP}"
            )
        if sum(is_loaded) != 1:
            raise CheckpointError(
                f"{folder}/config.json names bitsandbytes in {key} without saying which format: expected either "
                f"load_in_4bit or load_in_8bit to be true; {NEXT_STEP}"
            )
    return published


def _by_matrix(tensors: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors with the codes of a published matrix under the name of the matrix, X.weight."""
    found = dict(tensors)
    for name in tensors:
        suffix = next((suffix for suffix in CODES_SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            continue
        matrix = f"{name.removesuffix(suffix)}.weight"
        if matrix in found:
            raise CheckpointError(
                f"{tensors[name].file} holds {quote(name)} beside {quote(found[matrix].name)}; expected one of the two"
            )
        found[matrix] = found.pop(name)
    return found


def _check_packed(settings: Mapping[str, Any], *, folder: Path) -> None:
    version = settings.get("version")
    if type(version) is not int or version != PACKED_VERSION:
        raise CheckpointError(
            f"{folder} was packed as version {quote(version)}; expected {PACKED_VERSION}, pack the original again"
        )


def _read_tensors(folder: Path) -> dict[str, TensorEntry]:
    if (folder / "model.safetensors").exists():
        return _read_header(folder / "model.safetensors")
    index_file = folder / "model.safetensors.index.json"
    if not index_file.exists():
        _raise_no_safetensors(folder)
    weight_map = read_json(index_file, max_bytes=MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no usable weight_map: expected file names by tensor name")
    headers: dict[str, dict[str, TensorEntry]] = {}
    tensors: dict[str, TensorEntry] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index_file} maps {quote(name)} to {quote(shard)}; expected a file name")
        if shard not in headers:
            headers[shard] = _read_header(_shard_path(folder, shard, index_file=index_file))
        if name not in headers[shard]:
            raise CheckpointError(
                f"{index_file} places the tensor {quote(name)} in {quote(shard)}, which does not hold it; "
                "download the model again"
            )
        tensors[name] = headers[shard][name]
    return tensors


def _shard_path(folder: Path, shard: str, *, index_file: Path) -> Path:
    if not is_inner_name(shard) or any(sign in shard for sign in "\\:"):
        raise CheckpointError(f"{index_file} names the shard {quote(shard)}; expected a file inside the model folder")
    if not shard.endswith(".safetensors"):
        raise CheckpointError(f"{index_file} names the shard {quote(shard)}; expected a .safetensors file")
    path = folder / PurePosixPath(shard)
    check_inside(path, folder)
    return path


def _raise_no_safetensors(folder: Path) -> NoReturn:
    names = [path.name for path in folder.iterdir()]
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickle ({quote(pickles[0])}), which can run code and is never opened; "
            "convert them to safetensors or choose a safetensors revision"
        )
    raise CheckpointError(f"{folder} has no weights: expected model.safetensors or model.safetensors.index.json")


def _read_header(file: Path) -> dict[str, TensorEntry]:
    file_bytes, start = read_start(file, num_bytes=_LENGTH_BYTES)
    if len(start) < _LENGTH_BYTES:
        raise CheckpointError(f"{file} is not a safetensors file: it has {file_bytes} bytes; download it again")
    header_bytes = int.from_bytes(start, "little")
    if header_bytes > file_bytes - _LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file: its header claims {header_bytes} bytes "
            f"and the file has {file_bytes}; download it again"
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"{file} has a header of {header_bytes} bytes; expected at most {MAX_HEADER_BYTES}")
    _, raw = read_start(file, num_bytes=_LENGTH_BYTES + header_bytes)
    header = parse_json(raw[_LENGTH_BYTES:], where=f"the header of {file}")
    header.pop("__metadata__", None)
    data_offset_bytes = _LENGTH_BYTES + header_bytes
    tensors: dict[str, TensorEntry] = {}
    for name, fields in header.items():
        entry = _parse_entry(name, fields, file=file, data_offset_bytes=data_offset_bytes)
        if entry.offset_bytes + entry.num_bytes > file_bytes:
            raise CheckpointError(
                f"{file} is truncated: the tensor {quote(name)} ends at byte {entry.offset_bytes + entry.num_bytes} "
                f"and the file has {file_bytes}; download it again"
            )
        tensors[name] = entry
    _check_overlaps(tensors, file=file)
    return tensors


def _parse_entry(name: str, fields: object, *, file: Path, data_offset_bytes: int) -> TensorEntry:
    where = f"the tensor {quote(name)} in {file}"
    if len(name) > _MAX_NAME_CHARACTERS:
        raise CheckpointError(f"{where} has a name of {len(name)} characters; expected up to {_MAX_NAME_CHARACTERS}")
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where} is described by {quote(fields)}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the dtype {quote(dtype)}; expected one of {', '.join(SUPPORTED_DTYPES)}")
    if not _is_size_list(shape) or len(shape) > _MAX_RANK:
        raise CheckpointError(f"{where} has the shape {quote(shape)}; expected a list of sizes")
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the data_offsets {quote(offsets)}; expected its first and last byte")
    num_bytes = offsets[1] - offsets[0]
    expected_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if num_bytes != expected_bytes:
        raise CheckpointError(
            f"{where} takes {num_bytes} bytes by its data_offsets and {quote(expected_bytes)} by its dtype {dtype} "
            f"and shape {quote(shape)}; download the file again"
        )
    return TensorEntry(name, dtype, tuple(shape), file, data_offset_bytes + offsets[0], num_bytes)


def _is_size_list(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_overlaps(tensors: Mapping[str, TensorEntry], *, file: Path) -> None:
    in_order = sorted((entry for entry in tensors.values() if entry.num_bytes), key=lambda entry: entry.offset_bytes)
    for left, right in pairwise(in_order):
        if left.offset_bytes + left.num_bytes > right.offset_bytes:
            raise CheckpointError(
                f"{file} is damaged: the tensors {quote(left.name)} and {quote(right.name)} overlap; download it again"
            )
