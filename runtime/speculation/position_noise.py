"""Gumbel noise that belongs to a place in the text: one vector per absolute position, a function of the seed alone.

Counter-based (Philox), so that any position's vector can be had at any time: neither tree, draft, ring nor batch can
change it. Bits become numbers by exact operations, so machines can differ only by the last bit of their logarithm.
Knows no model; the noise of a token does not depend on how many tokens a vocabulary has.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

MAX_CACHED_POSITIONS = 64
"""More than the levels of a tree: a round asks for each position twice, and the next one for what was rejected."""

_TOKENS_AT_ONCE = 8192
"""What stays in a core's cache, and needs no fresh pages."""


class PositionNoise:
    """Standard Gumbel noise by absolute position, for one seed."""

    def __init__(self, seed: int, *, max_cached_positions: int = MAX_CACHED_POSITIONS) -> None:
        """`seed` is any whole number from 0; 64 vectors of a vocabulary of 152,000 take 39 MB."""
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._max_cached_positions = max_cached_positions
        self._vectors: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    def at(self, position: int, num_tokens: int) -> NDArray[np.float32]:
        """The noise (V,) of the token chosen for `position`, counted from the text's first token; read-only, finite.

        Of two vocabularies the smaller one's noise is the beginning of the larger one's.
        """
        vector = self._vectors.pop(position, None)
        if vector is None or len(vector) < num_tokens:
            vector = self._compute(position, num_tokens)
        self._vectors[position] = vector  # the latest used stands last
        if len(self._vectors) > self._max_cached_positions:
            self._vectors.popitem(last=False)
        return vector[:num_tokens]

    def _compute(self, position: int, num_tokens: int) -> NDArray[np.float32]:
        noise = np.empty(num_tokens, dtype=np.float32)
        generator = np.random.Philox(key=self._key, counter=position << 64)
        for start in range(0, num_tokens, _TOKENS_AT_ONCE):
            part = noise[start : start + _TOKENS_AT_ONCE]
            _fill_with_noise(part, generator.random_raw(len(part)))
        noise.flags.writeable = False
        return noise


def _fill_with_noise(noise: NDArray[np.float32], bits: NDArray[np.uint64]) -> None:
    """-log(-log(u)) of u = (2k + 1) / 2^53, k of 52 bits: exact in float64, and neither 0 nor 1.

    Large noise, which is what wins, comes from u close to 1, where -log(u) has steps of 2e-16.
    """
    bits >>= np.uint64(11)
    bits |= np.uint64(1)
    uniform = bits.astype(np.float64)
    uniform *= 2.0**-53
    np.log(uniform, out=uniform)
    noise[:] = uniform
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
