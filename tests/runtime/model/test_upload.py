"""One block for all arrays of a step: what arrives is what was given, in its shape and type."""

import numpy as np
import pytest
import torch

from runtime.model import upload as uploading
from runtime.model.upload import upload

ARRAYS = (
    np.arange(7, dtype=np.int64),
    np.array([[True, False, True]] * 5),
    np.empty((4, 0), dtype=np.bool_),
    np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)[:, ::2],
    np.array([3, -1], dtype=np.int32),
)


def test_on_a_processor_nothing_is_copied() -> None:
    found = upload(ARRAYS[:1], torch.device("cpu"))
    assert found[0].data_ptr() == ARRAYS[0].ctypes.data


def test_arrays_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the block on a device without bytes only shapes can be told, so its copy is looked at before it leaves."""
    blocks = []

    def allocate(num_bytes: int) -> torch.Tensor:
        blocks.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return blocks[-1]

    monkeypatch.setattr(uploading, "_host_memory", allocate)
    found = upload(ARRAYS, torch.device("meta"))
    assert len(blocks) == 1
    for array, tensor in zip(ARRAYS, found, strict=True):
        assert tuple(tensor.shape) == array.shape
        start = tensor.storage_offset() * tensor.element_size()
        assert start % 16 == 0
        staged = blocks[0][start : start + array.nbytes].numpy().tobytes()
        assert staged == np.ascontiguousarray(array).tobytes()
