"""Keys and values as rows of int8, one a token: each head's numbers and, behind those of all heads, its float32 scale.

A head's scale is its largest magnitude over 127, and number = code * scale, off by half a step at most. A token's row
follows from its own keys and values alone, and is made once: whoever sees the token, in the pass that brings it and in
all later ones, sees the row widened. So the text depends on no tree, no draft and no cutting of a prompt into passes.
"""

import math
from collections.abc import Sequence

import torch

from offload.formats.int8 import LEVELS
from offload.formats.stored_sizes import CHUNK_ELEMENTS

_LEAST_SCALE = 1e-36
"""What numbers are divided by at least: those of a head of zeros are codes of zero."""


class Int8Rows:
    """The rows of one layer: where keys and values of new tokens are kept, and what the device widens for a pass."""

    def __init__(self, rows: torch.Tensor, parts: Sequence[tuple[int, int]]) -> None:
        """`rows`: uint8 (slots, bytes), see `int8_token_bytes`; `parts`: (K, D) of the keys, then of the values."""
        num_elements = sum(map(math.prod, parts))
        scales_begin = -(-num_elements // 4) * 4
        codes = rows[:, :num_elements].view(torch.int8)
        scales = rows[:, scales_begin : scales_begin + 4 * sum(heads for heads, _ in parts)].view(torch.float32)
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []  # codes (slots, K, D), scales (slots, K, 1)
        element = head = 0
        for heads, width in parts:
            end = element + heads * width
            self._parts.append(
                (codes[:, element:end].view(len(rows), heads, width), scales[:, head : head + heads, None])
            )
            element, head = end, head + heads
        self._rows_at_once = len(rows) if rows.device.type != "cpu" else max(1, CHUNK_ELEMENTS // num_elements)

    def write(self, start: int, states: Sequence[torch.Tensor]) -> None:
        """Keep keys and values of new tokens, each (1, K, T, D), in the rows from `start` on."""
        for (codes, scales), part in zip(self._parts, states, strict=True):
            numbers = part[0].transpose(0, 1).to(torch.float32)  # (T, K, D)
            found = numbers.abs().amax(dim=-1, keepdim=True).div_(LEVELS)
            new = slice(start, start + len(numbers))
            scales[new] = found
            codes[new] = (numbers / found.clamp_min(_LEAST_SCALE)).round_()

    def widen(self, start: int, stop: int, into: Sequence[torch.Tensor]) -> None:
        """Write the numbers of rows `start` to `stop` to the same slots of keys and values, each (1, K, slots, D)."""
        for (codes, scales), part in zip(self._parts, into, strict=True):
            numbers = part[0].transpose(0, 1)  # (slots, K, D)
            for begin in range(start, stop, self._rows_at_once):
                chunk = slice(begin, min(stop, begin + self._rows_at_once))
                torch.mul(codes[chunk], scales[chunk], out=numbers[chunk])
