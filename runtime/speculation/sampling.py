"""From logits to probabilities, and from probabilities to tokens (Sequoia, arXiv 2402.12374).

One function, `logits_to_probs`, serves draft and target rows: two would silently break losslessness. Tokens are
drawn in float64 with fresh randomness from the generator that is passed in; half-precision noise never proposes
unlikely tokens, and reused noise makes rounds dependent (both were found in earlier systems).
"""

import numpy as np
from numpy.typing import DTypeLike, NDArray

from profiles.errors import OverstoryError
from runtime.config import SamplingParams
from runtime.events import TokenLogprob, TokenLogprobs

Floats = NDArray[np.floating]
Probs = NDArray[np.float64]
_Support = slice | NDArray[np.int64]

BLOCK_TOKENS = 512
NUCLEUS_TOLERANCE = 1e-6
"""How far short of top_p a mass may fall and still reach it: the relative precision of float32 logits."""


def logits_to_probs(logits: Floats, params: SamplingParams, *, dtype: DTypeLike = np.float64) -> Floats:
    """Apply temperature, top-k, softmax, top-p and min-p over the last axis, in this order.

    `logits` (..., V) becomes probabilities (..., V) of type `dtype`, each row with sum 1. Ties go to the lower token.
    Raises OverstoryError if a row's largest logit is not finite.
    """
    rows = np.asarray(logits)
    probs = np.zeros(rows.shape, dtype=dtype)
    for index in np.ndindex(rows.shape[:-1]):
        support, kept = _kept_log_weights(rows[index], params, dtype=probs.dtype)
        np.exp(kept, out=kept)
        kept /= float(kept.sum(dtype=np.float64))
        probs[index][support] = kept
    return probs


def log_weights(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float32]:
    """Return the logarithm of what `logits_to_probs` makes of a row (V,), up to a constant: the largest is 0.

    Tokens that are not kept have -inf. Without top-p this takes no exponential.
    """
    support, kept = _kept_log_weights(logits, params, dtype=np.float32)
    if isinstance(support, slice):
        return kept
    weights = np.full(logits.shape, -np.inf, dtype=np.float32)
    weights[support] = kept
    return weights


def top_tokens(row: Floats, num_tokens: int) -> NDArray[np.int64]:
    """Return the tokens of the largest values of `row` (V,), in descending order; among equals the lower token first.

    Raises ValueError if the row is shorter, OverstoryError if its largest value is not finite.
    """
    if num_tokens > len(row):
        raise ValueError(f"a vocabulary of {len(row)} tokens has no {num_tokens} top tokens")
    _finite_maximum(row)
    if num_tokens <= 0:
        return np.empty(0, dtype=np.int64)
    num_blocks = len(row) // BLOCK_TOKENS
    if num_blocks >= num_tokens:
        # num_tokens blocks reach this value, so the top tokens do: a bound ten times faster than partitioning the row.
        heads = row[: num_blocks * BLOCK_TOKENS].reshape(num_blocks, BLOCK_TOKENS).max(axis=1)
        least = np.partition(heads, num_blocks - num_tokens)[num_blocks - num_tokens]
    else:
        least = np.partition(row, len(row) - num_tokens)[len(row) - num_tokens]
    if least == -np.inf:  # most of a filtered row ties here
        candidates = np.append(np.flatnonzero(row > least), np.flatnonzero(row == least)[:num_tokens])
    else:
        candidates = np.flatnonzero(row >= least)
    order = np.argsort(-row[candidates], kind="stable")
    return candidates[order[:num_tokens]]


def token_logprobs(row: NDArray[np.float32], token_id: int, num_likeliest: int) -> TokenLogprobs:
    """Return the log softmax of a row of logits (V,) at a token and at the likeliest ones, at most V.

    Raises OverstoryError if its largest logit is not finite.
    """
    largest = _finite_maximum(row)
    log_mass = largest + float(np.log(np.exp(row - largest).sum(dtype=np.float64)))
    chosen, *likeliest = (
        TokenLogprob(token, float(row[token]) - log_mass)
        for token in (token_id, *top_tokens(row, min(num_likeliest, len(row))).tolist())
    )
    return TokenLogprobs(chosen, tuple(likeliest))


def draw_without_replacement(probs: Floats, num_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw different tokens as `draw_while_mass` does; once no mass is left, the rest is uniform over the others.

    Returns (num_draws,). Raises ValueError if the vocabulary is smaller than `num_draws`.
    """
    if num_draws > len(probs):
        raise ValueError(f"{num_draws} different tokens cannot be drawn from a vocabulary of {len(probs)}")
    drawn = dict.fromkeys(draw_while_mass(probs, num_draws, rng).tolist())  # in drawing order
    while len(drawn) < num_draws:
        drawn.setdefault(int(rng.integers(len(probs))))
    return np.array([*drawn], dtype=np.int64)


def draw_while_mass(probs: Floats, num_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw different tokens one after another from `probs` (V,), each time from what is left of it, renormalised.

    This is the distribution of the top `num_draws` of log Q + Gumbel noise, in its order, without the noise of a whole
    vocabulary per node. Returns (num_draws,), or as many as there are tokens with mass.
    """
    weights = _BlockedWeights(probs)
    drawn: list[int] = []
    while len(drawn) < num_draws and weights.has_mass:
        token = weights.pick(rng)
        weights.clear(token)
        drawn.append(token)
    return np.array(drawn, dtype=np.int64)


def draw_with_replacement(probs: Floats, num_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw tokens independently from `probs` (V,), which has mass; returns (num_draws,)."""
    weights = _BlockedWeights(probs)
    return np.array([weights.pick(rng) for _ in range(num_draws)], dtype=np.int64)


def sample(probs: Floats, rng: np.random.Generator) -> int:
    """Draw one token from `probs` (V,), which need not be normalised. Raises ValueError if it has no mass."""
    weights = _BlockedWeights(probs)
    if not weights.has_mass:
        raise ValueError("cannot draw a token from a distribution without mass")
    return weights.pick(rng)


class _BlockedWeights:
    """Weights in blocks with their sums, so that a draw or a removal touches one block and not the vocabulary."""

    def __init__(self, weights: Floats) -> None:
        num_blocks = -(-len(weights) // BLOCK_TOKENS)
        padded = np.zeros(num_blocks * BLOCK_TOKENS)
        padded[: len(weights)] = weights
        self._blocks = padded.reshape(num_blocks, BLOCK_TOKENS)
        self._sums = self._blocks.sum(axis=1)

    @property
    def has_mass(self) -> bool:
        return bool(self._sums.any())

    def pick(self, rng: np.random.Generator) -> int:
        """A token with probability proportional to its weight, by inverting the cumulative sum in two steps."""
        ends = np.cumsum(self._sums)
        point = rng.random() * ends[-1]
        block = _first_above(ends, point)
        start = ends[block - 1] if block else 0.0
        return block * BLOCK_TOKENS + _first_above(np.cumsum(self._blocks[block]), point - start)

    def clear(self, token: int) -> None:
        """Remove a token; its block is summed anew, so that no rounding error stays behind."""
        block, offset = divmod(token, BLOCK_TOKENS)
        self._blocks[block, offset] = 0
        self._sums[block] = self._blocks[block].sum()


def _first_above(ends: NDArray[np.float64], point: float) -> int:
    """The first index whose cumulative weight exceeds `point`: never one without weight, even after rounding."""
    last = np.searchsorted(ends, ends[-1], side="left")
    return int(min(np.searchsorted(ends, point, side="right"), last))


def _kept_log_weights(logits: Floats, params: SamplingParams, *, dtype: DTypeLike) -> tuple[_Support, Floats]:
    """The tokens of a row (V,) that the filters keep, ascending, and their log weights, of which the largest is 0.

    Min-p comes last, as in transformers; vLLM has it before top-k and top-p. The place only matters for top-p, which so
    means a share of the whole distribution, whatever min_p is.
    """
    largest = _finite_maximum(logits)
    if params.temperature == 0:
        return np.array([np.argmax(logits)]), np.zeros(1, dtype=dtype)
    support: _Support = slice(None)
    if 0 < params.top_k < len(logits):
        support = np.sort(top_tokens(logits, params.top_k))
    kept = logits[support].astype(dtype)
    kept -= largest
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, as it should
        kept /= max(params.temperature, float(np.finfo(kept.dtype).tiny))
    if params.top_p < 1:
        support, kept = _selected(support, kept, np.sort(_nucleus(np.exp(kept), params.top_p)))
    if params.min_p > 0:
        support, kept = _selected(support, kept, np.flatnonzero(kept >= kept.dtype.type(np.log(params.min_p))))
    return support, kept


def _selected(support: _Support, kept: Floats, places: NDArray[np.int64]) -> tuple[_Support, Floats]:
    return (places if isinstance(support, slice) else support[places]), kept[places]


def _nucleus(weights: Floats, top_p: float) -> NDArray[np.int64]:
    """The smallest set of largest weights (V,) whose share of the sum reaches top_p; never empty."""
    total = float(weights.sum(dtype=np.float64))
    # What lies below the second share adds up to at most half of 1 - top_p, so it need not be sorted; the first share
    # mostly suffices, as models are confident, and leaves a few hundred tokens.
    for share in (1e-4, (1 - top_p) / (2 * len(weights))):
        candidates = weights[weights >= share * total]
        if candidates.sum(dtype=np.float64) >= top_p * total:
            break
    descending = np.sort(candidates)[::-1]
    mass = np.cumsum(descending, dtype=np.float64)
    num_kept = min(int(np.searchsorted(mass, (top_p - NUCLEUS_TOLERANCE) * total)) + 1, len(descending))
    least = descending[num_kept - 1]
    above = np.flatnonzero(weights > least)
    return np.concatenate((above, np.flatnonzero(weights == least)[: num_kept - len(above)]))


def _finite_maximum(row: Floats) -> float:
    largest = float(row.max())
    if not np.isfinite(largest):
        raise OverstoryError(f"the largest logit of a row is {largest}, where a finite number was expected")
    return largest
