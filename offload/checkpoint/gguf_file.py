"""The header of a GGUF file: its metadata, and which tensor lies where, as what.

Little endian, versions 2 and 3; in one file, or in parts named `NAME-00001-of-00003.gguf`. Reads the header alone and
never a tensor's bytes. Everything in it counts as hostile: each fault is one sentence, and no count is believed before
the bytes for it are there. Imports neither torch nor transformers.
Format: docs/gguf.md of ggml-org/ggml.
"""

import functools
import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from offload.checkpoint.strict_json import read_start
from offload.checkpoint.tensor_entry import TensorEntry
from offload.errors import CheckpointError
from offload.formats.stored_sizes import GGML_BLOCKS
from profiles.errors import quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 * 10**6
"""The largest vocabularies in use, of 262,144 tokens with their merges, make headers of 16 MB."""
_TYPE_NAMES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
    **{40: "NVFP4", 41: "Q1_0"},
}
"""By the number in a file."""
_BLOCKS = {
    **GGML_BLOCKS,
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8)},
    **{"I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8)},
    **{"Q8_1": (32, 40), "Q8_K": (256, 292), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "Q1_0": (128, 18)},
}
"""Elements and bytes of a block; of the last row no more than that is known here."""
PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
"""By the number of a metadata type; 8 is a string and 9 an array."""
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SHORT_LIST = 1024
"""Lists of so many items are kept always: some architectures have one for each layer."""
_FIRST_BYTES, _GROWTH = 1 << 20, 4
_MAX_KEY_BYTES, _MAX_NAME_BYTES, _MAX_RANK, _MAX_ALIGNMENT, _MAX_PARTS = 65_535, 500, 4, 1 << 16, 1000


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata, in the bytes of the file until it is asked for."""

    item_type: int
    count: int
    sha256: str
    """Of its bytes in the file."""
    raw: bytes | None = None
    """Those bytes; None for a long list where lists were not asked for."""

    @property
    def holds_strings(self) -> bool:
        return self.item_type == _STRING

    def strings(self) -> list[str]:
        """Return the strings; bytes that are no UTF-8 are replaced."""
        assert self.holds_strings and self.raw is not None, "a list that was not kept, or one of numbers"
        found, position, raw = [], 0, self.raw
        for _ in range(self.count):
            end = position + 8 + int.from_bytes(raw[position : position + 8], "little")
            found.append(raw[position + 8 : end].decode("utf-8", errors="replace"))
            position = end
        return found

    def numbers(self) -> list[int | float]:
        """Return the numbers."""
        assert not self.holds_strings and self.raw is not None, "a list that was not kept, or one of strings"
        return list(struct.unpack(f"<{self.count}{_SCALARS[self.item_type][1]}", self.raw))


MetadataValue = int | float | bool | str | GgufArray


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the header of one file says, or those of all parts together."""

    file: Path
    """The file, or the first of its parts."""
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        """Return a string of the metadata. Raises CheckpointError if there is none."""
        value = self.metadata.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def strings(self, key: str) -> list[str]:
        """Return an array of strings. Raises CheckpointError if there is none."""
        value = self.metadata.get(key)
        if not isinstance(value, GgufArray) or not value.holds_strings:
            raise self._wrong(key, "a list of strings")
        return value.strings()

    def numbers(self, key: str) -> list[int | float]:
        """Return an array of numbers. Raises CheckpointError if there is none."""
        value = self.metadata.get(key)
        if not isinstance(value, GgufArray) or value.holds_strings:
            raise self._wrong(key, "a list of numbers")
        return value.numbers()

    def count(self, key: str) -> int | None:
        """Return a whole number of the metadata, or None if it has no such key. Raises CheckpointError."""
        value = self.metadata.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise self._wrong(key, "a whole number")
        return value

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        value = self.metadata.get(key)
        found = f"a list of {value.count}" if isinstance(value, GgufArray) else quote(value)
        found = f"has {key} = {found}" if key in self.metadata else f"lacks {key}"
        return CheckpointError(f"{self.file} {found} in its metadata; expected {expected}")


def row_bytes(ggml_type: str, num_columns: int) -> int:
    """Return the bytes of a row of whole blocks."""
    block_elements, block_bytes = _BLOCKS[ggml_type]
    return num_columns // block_elements * block_bytes


def part_files(file: Path) -> tuple[Path, ...]:
    """Return the files of the model that `file` is, or is a part of, the one with the metadata first."""
    named = PART_NAME.fullmatch(file.name)
    if named is None:
        return (file,)
    count = int(named["count"])
    return tuple(file.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))


def read_gguf(file: Path, *, keeps_lists: bool = False) -> GgufHeader:
    """Read and check the header of `file`, or of all parts of a model one of which is `file`.

    Vocabularies and other long lists are there with `keeps_lists`; without, their lengths and digests are. Raises
    CheckpointError if one is missing, damaged or no GGUF file, or if the parts do not belong together.
    """
    named = PART_NAME.fullmatch(file.name)
    if named is not None and not 0 < int(named["number"]) <= int(named["count"]) <= _MAX_PARTS:
        raise CheckpointError(f"{file} is named as a part that cannot be; expected up to {_MAX_PARTS} parts from 00001")
    files = part_files(file)
    for part in files:
        if not part.exists():
            raise CheckpointError(f"{part} is missing, one of {len(files)} parts of the model; download it too")
    headers = [_Reading(part, keeps_lists=True).header() if keeps_lists else _read_one(part) for part in files]
    first = headers[0]
    count = first.count("split.count") or 1
    if count != len(files):
        raise CheckpointError(
            f"{first.file} is one of {count} parts by its metadata and one of {len(files)} by its name; expected parts "
            f"that keep the names NAME-00001-of-{count:05}.gguf, side by side"
        )
    tensors: dict[str, TensorEntry] = {}
    for number, header in enumerate(headers):
        if (header.count("split.no") or 0) != number:
            raise CheckpointError(
                f"{header.file} is part {header.count('split.no')} by its metadata, counted from 0; expected {number}"
            )
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{header.file} holds the tensor {quote(name)}, which another part holds too")
            tensors[name] = tensor
    total = first.count("split.tensors.count")
    if len(files) > 1 and total is not None and total != len(tensors):
        raise CheckpointError(
            f"the parts of {first.file} hold {len(tensors)} tensors; expected {total} by the metadata, download all "
            "parts of one release"
        )
    return GgufHeader(first.file, first.metadata, MappingProxyType(tensors))


def _read_one(file: Path) -> GgufHeader:
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {quote(str(error))}") from error
    return _read_unchanged(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # a session asks for the same header several times, each a tenth of a second
def _read_unchanged(file: Path, file_bytes: int, modified_ns: int) -> GgufHeader:
    return _Reading(file, keeps_lists=False).header()


class _Reading:
    """One walk through a header; more of the file is read as it is needed."""

    def __init__(self, file: Path, *, keeps_lists: bool) -> None:
        self.file = file
        self._keeps_lists = keeps_lists
        self.file_bytes, self.raw = read_start(file, num_bytes=_FIRST_BYTES)
        self.position = 0

    def header(self) -> GgufHeader:
        if self.file_bytes < 24 or self.raw[:4] != MAGIC:
            raise CheckpointError(f"{self.file} is not a GGUF file: it does not begin with GGUF; download it again")
        self.position = 4
        version = self._number("<I")
        if version not in VERSIONS:
            is_big = int(version).to_bytes(4, "little")[:3] == b"\0\0\0"
            what = "written for big-endian machines" if is_big else f"of GGUF version {version}"
            raise CheckpointError(f"{self.file} is {what}; expected little-endian GGUF of version 2 or 3")
        num_tensors, num_keys = int(self._number("<Q")), int(self._number("<Q"))
        self._expect_room(num_keys, 13, "metadata keys")
        metadata: dict[str, MetadataValue] = {}
        for _ in range(num_keys):
            key = self._text(_MAX_KEY_BYTES, "a metadata key")
            if key in metadata:
                raise self._damaged(f"the metadata key {quote(key)} stands twice")
            metadata[key] = self._value(int(self._number("<I")), key)
        self._expect_room(num_tensors, 32, "tensors")
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(
                f"general.alignment is {quote(alignment)}; expected a power of 2 up to {_MAX_ALIGNMENT}"
            )
        tensors = self._placed(found, -(-self.position // alignment) * alignment, alignment)
        return GgufHeader(self.file, MappingProxyType(metadata), MappingProxyType(tensors))

    def _placed(
        self, found: list[tuple[str, str, tuple[int, ...], int]], data_begin: int, alignment: int
    ) -> dict[str, TensorEntry]:
        tensors: dict[str, TensorEntry] = {}
        for name, dtype, shape, offset in found:
            if name in tensors:
                raise self._damaged(f"the tensor {quote(name)} stands twice")
            if offset % alignment:
                raise self._damaged(f"the tensor {quote(name)} begins at {offset}, no multiple of {alignment}")
            num_bytes = math.prod(shape[:-1]) * row_bytes(dtype, shape[-1])
            if data_begin + offset + num_bytes > self.file_bytes:
                raise CheckpointError(
                    f"{self.file} is truncated: the tensor {quote(name)} ends at byte "
                    f"{quote(data_begin + offset + num_bytes)} and the file has {self.file_bytes}; download it again"
                )
            tensors[name] = TensorEntry(name, dtype, shape, self.file, data_begin + offset, num_bytes)
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset_bytes)
        for left, right in pairwise(in_order):
            if left.offset_bytes + left.num_bytes > right.offset_bytes:
                raise self._damaged(f"the tensors {quote(left.name)} and {quote(right.name)} overlap")
        return tensors

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._text(_MAX_NAME_BYTES, "a tensor's name")
        rank = self._number("<I")
        if not 0 < rank <= _MAX_RANK:
            raise self._damaged(f"the tensor {quote(name)} has {rank} dimensions; expected 1 to {_MAX_RANK}")
        sizes = tuple(int(self._number("<Q")) for _ in range(int(rank)))
        number, offset = int(self._number("<I")), int(self._number("<Q"))
        if number not in _TYPE_NAMES:
            raise CheckpointError(
                f"{self.file} holds the tensor {quote(name)} as ggml type {number}, which is not known here; update "
                "this program or choose another quantization of the model"
            )
        dtype = _TYPE_NAMES[number]
        block_elements, _ = _BLOCKS[dtype]
        if min(sizes) < 1 or math.prod(sizes) >= 2**62:
            raise self._damaged(f"the tensor {quote(name)} has the sizes {quote(list(sizes))}")
        if sizes[0] % block_elements:
            raise self._damaged(
                f"the tensor {quote(name)} has rows of {sizes[0]} elements; {dtype} takes multiples of {block_elements}"
            )
        return name, dtype, sizes[::-1], offset

    def _value(self, value_type: int, key: str) -> MetadataValue:
        if value_type == _STRING:
            return self._take(self._length(f"the value of {quote(key)}")).decode("utf-8", errors="replace")
        if value_type == _ARRAY:
            return self._array(key)
        if value_type not in _SCALARS:
            raise self._damaged(f"the metadata key {quote(key)} has the type {value_type}; expected 0 to 12")
        value = self._number(_SCALARS[value_type])
        if not math.isfinite(value):
            raise self._damaged(f"the metadata key {quote(key)} holds a number that is not finite")
        return bool(value) if value_type == _BOOL else value

    def _array(self, key: str) -> GgufArray:
        item_type, count = int(self._number("<I")), int(self._number("<Q"))
        if item_type not in _SCALARS and item_type != _STRING:
            raise self._damaged(
                f"the metadata key {quote(key)} is a list of type {item_type}; expected numbers or text"
            )
        if item_type != _STRING:
            width = struct.calcsize(_SCALARS[item_type])
            self._expect_room(count, width, f"items of {quote(key)}")
            return self._kept(item_type, count, self._take(count * width))
        self._expect_room(count, 8, f"items of {quote(key)}")
        begin = end = self.position
        raw, known = self.raw, len(self.raw)
        for _ in range(count):
            if end + 8 > known:
                self._fill(end + 8)
                raw, known = self.raw, len(self.raw)
            end += 8 + int.from_bytes(raw[end : end + 8], "little")
            if end > self.file_bytes:
                raise self._damaged(f"an item of {quote(key)} ends behind the end of the file")
        return self._kept(item_type, count, self._take(end - begin))

    def _kept(self, item_type: int, count: int, raw: bytes) -> GgufArray:
        is_kept = self._keeps_lists or count <= _SHORT_LIST
        return GgufArray(item_type, count, hashlib.sha256(raw).hexdigest(), raw if is_kept else None)

    def _text(self, max_bytes: int, what: str) -> str:
        length = self._length(what)
        if not 0 < length <= max_bytes:
            raise self._damaged(f"{what} has {length} bytes; expected 1 to {max_bytes}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is no UTF-8") from error

    def _length(self, what: str) -> int:
        length = int(self._number("<Q"))
        if length > self.file_bytes - self.position:
            raise self._damaged(f"{what} claims {length} bytes")
        return length

    def _number(self, layout: str) -> int | float:
        value: int | float = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self.raw):
            self._fill(end)
        taken = self.raw[self.position : end]
        self.position = end
        return taken

    def _fill(self, end: int) -> None:
        """Have the file's bytes up to `end`, and some more."""
        if end > self.file_bytes:
            raise CheckpointError(
                f"{self.file} is truncated: its header goes on behind the {self.file_bytes} bytes of the file; "
                "download it again"
            )
        if end > MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.file} has a header of more than {MAX_HEADER_BYTES} bytes; expected less")
        num_bytes = min(max(end, _GROWTH * len(self.raw)), MAX_HEADER_BYTES)
        self.file_bytes, self.raw = read_start(self.file, num_bytes=num_bytes)
        if end > len(self.raw):
            raise CheckpointError(f"{self.file} became shorter while it was read; start again")

    def _expect_room(self, count: int, item_bytes: int, what: str) -> None:
        if count * item_bytes > self.file_bytes - self.position:
            raise self._damaged(f"its header claims {count} {what}, more than the file has bytes for")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file} is damaged: {what}; download it again")
