"""The rank of each token of a text in a model's own order behind the tokens before it.

One pass over the text, a chunk of logits at a time: what a draft thinks of a text that its target wrote.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.model.streamed_model import StreamedModel, chain_input

CHUNK_ROWS = 64
"""Rows of logits at a time: 64 of 152,000 entries are 39 MB."""


def rank_tokens(model: StreamedModel, token_ids: Sequence[int], *, num_prompt: int) -> NDArray[np.int64]:
    """(A,) ranks, from 1, of the tokens behind the prompt; 0 for a token that the model has no row for.

    `num_prompt` is 1 or more. The model's cache is empty afterwards.
    """
    wanted = np.asarray(token_ids[num_prompt:], dtype=np.int64)
    last_token = model.vocab_size - 1
    inputs = [min(token, last_token) for token in token_ids[:-1]]
    model.cache.truncate(0)
    hidden = model.run_pass(chain_input(inputs, num_cached=0))[num_prompt - 1 :]  # (A, E)
    model.cache.truncate(0)
    ranks = np.zeros(len(wanted), dtype=np.int64)
    for start in range(0, len(wanted), CHUNK_ROWS):
        logits = model.logits(hidden[start : start + CHUNK_ROWS])  # (C, V)
        chunk = torch.as_tensor(wanted[start : start + CHUNK_ROWS], device=logits.device)
        own = logits.gather(1, chunk.clamp(max=logits.shape[1] - 1)[:, None])
        ranks[start : start + CHUNK_ROWS] = 1 + (logits > own).sum(dim=1).numpy(force=True)
        ranks[start : start + CHUNK_ROWS][wanted[start : start + CHUNK_ROWS] >= logits.shape[1]] = 0
    return ranks
