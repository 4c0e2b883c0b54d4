"""Damages files byte by byte and value by value, for tests of what reads them."""

import copy
import json
import random
import sys
from typing import Any

NESTED: Any = "bottom"
for _ in range(150):
    NESTED = [NESTED]
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 5, 64, 97, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**30),
    *(0.0, 0.5, -1.5, 1e300, -1e300, "", "4", "float32", "x" * 3000, "a\nb\x1b[2J", "\ud800", "../..", "\0"),
    *([], {}, [[]], [None], {"": None}, [1] * 300, [10**12, 10**12], {"a": {"b": [1]}}, NESTED),
)


def damage_bytes(raw: bytes, source: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(source.choice((1, 1, 2, 8))):
        position = source.randrange(len(damaged) + 1)
        kind = source.randrange(5)
        if kind == 0 and position < len(damaged):
            damaged[position] ^= 1 << source.randrange(8)
        elif kind == 1:
            damaged[position:position] = source.randbytes(source.randrange(1, 9))
        elif kind == 2:
            del damaged[position : position + source.randrange(1, 30)]
        elif kind == 3:
            damaged[position:position] = source.choice((b'"', b"{", b"}", b"[", b",", b"\xff\xfe", b"NaN", b"\\u0000"))
        else:
            del damaged[position + source.randrange(200) :]
    return bytes(damaged)


def damage_value(value: Any, source: random.Random) -> Any:
    """`value` with one node of its tree replaced, removed, doubled or moved."""
    damaged = copy.deepcopy(value)
    node = damaged
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return source.choice(ODD_VALUES)
        key = source.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and source.random() < 0.8:
            node = node[key]
            continue
        break
    kind = source.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[source.choice(("model.x", "lm_head.weight", "model.layers.9.x", "model.layers.0.x"))] = node.pop(key)
    elif kind == 2:
        node[key] = node[source.choice(keys)]
    elif kind == 3 and type(node[key]) is int:
        node[key] += source.choice((-64, -2, -1, 1, 2, 64, 4096))
    else:
        node[key] = source.choice(ODD_VALUES)
    return damaged


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
