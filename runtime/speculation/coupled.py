"""Draft and target share the noise of a position, so that the text is a function of (seed, prompt, target) alone.

The target emits argmax(log P + noise), an exact sample of P, whatever was proposed; the children, the top b of
log Q + noise, are draws without replacement from Q that lean the same way. Hence the same tokens with any tree, with
any draft and without one. List decoding with shared Gumbel noise (arXiv 2506.05632).
"""

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.position_noise import PositionNoise
from runtime.speculation.sampling import log_weights, top_tokens
from runtime.speculation.scheme import Candidates, Children, Judgement, Place, Row, fill_up


class Coupled:
    """The noise of one seed; nothing else is remembered, and no generator is used."""

    name = "coupled"

    def __init__(self, seed: int) -> None:
        self._noise = PositionNoise(seed)

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """The top tokens of log Q + noise, in order."""
        ranked = self.rank(draft_row, num_children, place)
        kept = ranked.token_ids[np.isfinite(ranked.scores)].tolist()
        return Children(fill_up(kept, draft_row, num_children))

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """The same; scores are T (log Q + noise)."""
        scores = self._scores(draft_row, place)
        best = top_tokens(scores, num_candidates)
        return Candidates(best, np.float32(place.params.temperature) * scores[best])

    def noise_at(self, position: int, num_tokens: int) -> NDArray[np.float32]:
        """The noise (V,) of a position; read-only."""
        return self._noise.at(position, num_tokens)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """argmax(log P + noise), and the child that is it."""
        token = int(top_tokens(self._scores(target_row, place), 1)[0])
        return Judgement(token, children.index_of(token))

    def _scores(self, row: Row, place: Place) -> Row:
        scores = log_weights(row, place.params)
        scores += self._noise.at(place.position, len(row))
        return scores
