"""Draws the layers of a pass as characters, one each: where they lie and which computes now.

Knows indices only. Without colour the signs alone tell resident, streamed, waiting in the ring and computing apart.
"""

from collections.abc import Collection, Sequence

RESIDENT, STREAMED, IN_SLOT, CURRENT = "█", "░", "▒", "◆"
LEGEND = f"{RESIDENT} resident {STREAMED} streamed {IN_SLOT} ring {CURRENT} now"
_MAX_ROWS = 4


def layer_signs(num_layers: int, *, resident: Collection[int], in_slots: Collection[int], current: int | None) -> str:
    """One sign per layer; `current` is the one that computes, None between passes."""
    at_home, in_ring = frozenset(resident), frozenset(in_slots)

    def sign(layer: int) -> str:
        if layer == current:
            return CURRENT
        return RESIDENT if layer in at_home else IN_SLOT if layer in in_ring else STREAMED

    return "".join(map(sign, range(num_layers)))


def wrap_layers(signs: str, width: int) -> tuple[str, ...]:
    """The signs in rows of nearly the same length; several layers share a sign where they need too many rows."""
    if width < 1 or not signs:
        return ()
    room = width * _MAX_ROWS
    per_sign = -(-len(signs) // room)
    shared = [_most_telling(signs[start : start + per_sign]) for start in range(0, len(signs), per_sign)]
    num_rows = -(-len(shared) // width)
    per_row = -(-len(shared) // num_rows)
    return tuple("".join(shared[start : start + per_row]) for start in range(0, len(shared), per_row))


def slots_text(layers_in_slots: Sequence[int], num_slots: int) -> str:
    """`[18] [19]`, an empty slot as `[  ]`."""
    filled = [f"[{layer:>2}]" for layer in layers_in_slots]
    return " ".join(filled + ["[  ]"] * (num_slots - len(filled)))


def _most_telling(signs: str) -> str:
    return next((sign for sign in (CURRENT, IN_SLOT) if sign in signs), max(signs, key=signs.count))
