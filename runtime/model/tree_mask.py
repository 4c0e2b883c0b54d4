"""Four-dimensional attention masks for a pass over tree nodes: who sees whom, with and without a sliding window.

A mask is additive: 0 where a query may look, the dtype's lowest value where it may not; both attention
implementations of transformers take it unchanged. Knows positions and visibility, no tokens and no models.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch


def attention_masks(
    visible: npt.NDArray[np.bool_],
    *,
    query_positions: npt.NDArray[np.int64],
    key_positions: npt.NDArray[np.int64],
    windows: Iterable[int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int | None, torch.Tensor]:
    """One additive mask (1, 1, T, K) per distinct window; None is full attention.

    `visible` (T, K) says which keys are a query's own past; a window w also hides keys whose position is w or more
    behind the query's, the convention of transformers' sliding attention.
    """
    distances = query_positions[:, None] - key_positions[None, :]  # (T, K)
    return {
        window: additive_mask(
            torch.from_numpy(visible if window is None else visible & (distances < window)).to(device), dtype
        )
        for window in set(windows)
    }


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask (1, 1, T, K) of `allowed` (T, K), bool, on the same device."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
