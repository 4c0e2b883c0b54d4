"""Headers of GGUF files written byte by byte, so that any of them may be wrong."""

import struct
from collections.abc import Sequence
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
_LAYOUTS = {0: "<B", 2: "<H", UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT64: "<Q"}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def item(kind: int, value: Any) -> bytes:
    """A value of the metadata; of an array (the kind of its items, the items)."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        item_kind, items = value
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(item(item_kind, each) for each in items)
    return struct.pack(_LAYOUTS[kind], value)


def key(name: str, kind: int, value: Any) -> bytes:
    return text(name) + struct.pack("<I", kind) + item(kind, value)


def tensor(name: str, sizes: Sequence[int], number: int, offset: int) -> bytes:
    """`sizes` as the file has them, the fastest first."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (len(tensors) if num_tensors is None else num_tensors, len(keys) if num_keys is None else num_keys)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*keys, *tensors))
    return header + b"\0" * (-len(header) % alignment) + data
