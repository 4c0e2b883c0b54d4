"""Whatever the phase of a file's weights, every matrix on the simulated accelerator lies at a multiple of 16 bytes."""

import functools
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from offload.checkpoint.layer_layout import DEVICE_ALIGNMENT_BYTES
from runtime.engine.loading import OpenSession
from runtime.model import model_loader
from runtime.model.layer_binding import StoredLinear, bind_embedding
from tests.support.accelerator_sessions import (
    ASKED,
    FEW_TIERS,
    SEED,
    TIERS,
    cpu_text,
    folder_of,
    in_layers,
    opened_on,
    quick_sessions,
    scratch,
)
from tests.support.model_factory import shift_weights
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import answer
from tests.support.sim_checks import SimChecks

CHECKS = SimChecks(__file__, quick_sessions)
DEVICE_TYPE = "sim"


@contextmanager
def seen_matrices() -> Iterator[Counter[int]]:
    """Count every matrix that is multiplied or gathered from on the device by its address modulo the alignment."""
    seen: Counter[int] = Counter()
    multiply = StoredLinear.forward

    def look(tensor: object) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == DEVICE_TYPE and tensor.dim() > 0:
            seen[tensor.data_ptr() % DEVICE_ALIGNMENT_BYTES] += 1

    def forward(linear: StoredLinear, inputs: torch.Tensor) -> torch.Tensor:
        stored: Any = linear.stored
        for name in type(stored).__slots__:
            part = getattr(stored, name)
            for tensor in part.values() if name == "parts" else (part,):
                look(tensor)
        return multiply(linear, inputs)

    def bind(module: Any, matrix: torch.Tensor, dtype: torch.dtype) -> None:
        look(matrix)
        bind_embedding(module, matrix, dtype)

    with patch.object(StoredLinear, "forward", forward), patch.object(model_loader, "bind_embedding", bind):
        yield seen


def tokens(opened: OpenSession) -> list[int]:
    return answer(opened, ASKED)[1]


def dense_matrices_are_aligned(dtype: torch.dtype, phase: int) -> None:
    """Resident, from host memory and from disk, and in a draft that is held as it is stored."""
    folder = scratch() / f"{dtype} at {phase}"
    shift_weights(shutil.copytree(folder_of("llama", dtype), folder, dirs_exist_ok=True), phase)
    settings = {"compute_dtype": "float32", "draft": folder_of("llama", dtype, SEED + 1), "tree": "8x4"}
    for tiers in (TIERS[FEW_TIERS[1]], {"num_residents": 2}):
        with seen_matrices() as seen, opened_on(folder, **settings, **in_layers(tiers, folder)) as opened:
            assert tokens(opened) == cpu_text(folder_of("llama", dtype))
        assert set(seen) == {0}, (phase, seen)


def quantized_matrices_are_aligned(name: str, phase: int) -> None:
    """Through slots, resident, and shared with a draft of the same layers."""
    saved = scratch() / f"aligned {name}"
    if not saved.exists():
        save_quantized_folder(saved, name, sizes={})
    folder = scratch() / f"{name} at {phase}"
    shift_weights(shutil.copytree(saved / "quantized", folder, dirs_exist_ok=True), phase)
    shared = {"draft": "substitute", "share_layers": True, "tree": "8x4"}
    for settings in (in_layers(TIERS[FEW_TIERS[1]], folder), shared):
        with seen_matrices() as seen, opened_on(folder, compute_dtype="float32", **settings) as opened:
            assert tokens(opened) == cpu_text(saved / "quantized")
        assert set(seen) == {0}, (phase, seen)


for _phase in (8, 7):
    CHECKS[f"dense_matrices_are_aligned: {_phase}"] = functools.partial(
        dense_matrices_are_aligned, torch.bfloat16, _phase
    )
for _name, _phase in (("nf4 nested", 8), ("nf4 nested", 1), ("int8", 8)):
    CHECKS[f"quantized_matrices_are_aligned: {_name}, {_phase}"] = functools.partial(
        quantized_matrices_are_aligned, _name, _phase
    )

test_on_accelerator = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
