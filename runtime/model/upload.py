"""Several small arrays in one copy to a device, which the host does not wait for.

A card reads each small copy behind whatever its engine is copying, a piece of a layer that streams by: five inputs of a
draft step would wait five times.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16


def upload(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Return the arrays as tensors on `device`, of the same shapes and types: views of one block, or of the arrays.

    On an accelerator the block crosses from pinned memory. That is the caching allocator's, which gives it out again
    only once the copy has read it.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    starts = [0, *accumulate(sizes)]
    staged = _host_memory(max(starts[-1], _ALIGNMENT))
    for array, start in zip(arrays, starts, strict=False):
        staged[start : start + array.nbytes].numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    block = staged.to(device, non_blocking=True)
    return [
        block[start : start + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


_DTYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32, "bool": torch.bool}


def _host_memory(num_bytes: int) -> torch.Tensor:
    """Return memory for a block, pinned unless the driver grants no more."""
    rounded = 1 << math.ceil(math.log2(num_bytes))  # few sizes, so that blocks are used again
    try:
        return torch.empty(rounded, dtype=torch.uint8, pin_memory=True)[:num_bytes]
    except RuntimeError:
        return torch.empty(num_bytes, dtype=torch.uint8)
