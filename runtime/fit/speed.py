"""How fast a device multiplies: weights per second in narrow passes, floating-point operations in wide ones.

Measured, or a data sheet's figures times the shares of them that published measurements reached.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_L40_BYTES_PER_SECOND = 864e9
_L40_FLOPS = 181.05e12
_DRAFT_STEP_BYTES = 2 * (8_030_261_248 - 128_256 * 4096)
_DRAFT_STEP_SECONDS = 0.025
MEMORY_SHARE = _DRAFT_STEP_BYTES / _DRAFT_STEP_SECONDS / _L40_BYTES_PER_SECOND
"""Of a data sheet's memory bandwidth that is reached: 0.69.

A published step of Llama-3-8B in bf16 on an L40 takes 0.025 s (Sequoia); it reads 15.0 GB, everything but the
embeddings, and the data sheet says 864 GB/s.
"""
FLOPS_SHARE = MEMORY_SHARE
"""Of a data sheet's operations that are reached, taken to be the same: published passes hide theirs behind the copies.

Sequoia's verification of 1,024 nodes on the L40 only shows that it is more than 0.13.
"""
_PASS_FLOPS = 2 * 80 * 855_638_016 * 1024
_PASS_SECONDS, _LINK_SECONDS = 5.8, 80 * 1_711_308_800 / 24.9e9
COPY_SLOWDOWN = (_PASS_SECONDS - _LINK_SECONDS) / (_PASS_FLOPS / (FLOPS_SHARE * _L40_FLOPS))
"""Seconds of copying that each second of computing costs, where a published pass grows with its nodes.

Sequoia, L40, Llama-3-70B: 136.9 GB at 24.9 GB/s are 5.50 s, and 1,024 nodes take 5.8 s: 0.27.
"""
NARROW_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "stored": 2.0, "int8": 1.0, "nf4": 0.52}
"""Bytes of one weight as it is stored."""


class Basis(StrEnum):
    """What a figure rests on."""

    MEASURED = "measured here"
    PUBLISHED = "published"
    """Measured by somebody else."""
    DATA_SHEET = "data sheet"
    GIVEN = "given"
    """By the user."""
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeed:
    """What computing costs on one device."""

    target_weights_per_second: Mapping[str, float]
    """Weights that a narrow pass of the target multiplies, which widens them exactly, by format."""
    draft_weights_per_second: Mapping[str, float]
    """The same for a draft, which may use any kernel, by how it holds them."""
    flops: float
    """Floating-point operations a second in wide passes."""
    memory_bytes_per_second: float
    """Rate of reading what is not a weight: keys and values, logits."""
    basis: Basis
    source: str
    """The basis in words, for the user."""
    compute_item_bytes: int = 2
    """Bytes of one activation."""
    copy_slowdown: float = 0.0
    """Seconds of copying that each second of computing costs."""
    compute_slowdown: float = 0.0
    """Seconds of computing that each second of copying costs."""


def speed_of_data_sheet(*, memory_bytes_per_second: float, flops: float) -> DeviceSpeed:
    """Return a device that reaches the published shares of its data sheet's bandwidth and operations, in bf16.

    A quantized weight is read, written widened and read again, so that it takes longer than a bf16 one.
    """
    reached = MEMORY_SHARE * memory_bytes_per_second

    def rate(name: str) -> float:
        narrow = NARROW_BYTES[name]
        return reached / (narrow + 2 * NARROW_BYTES["bfloat16"] if name in ("int8", "nf4") else narrow)

    return DeviceSpeed(
        target_weights_per_second={name: rate(name) for name in NARROW_BYTES if name != "stored"},
        draft_weights_per_second={name: rate(name) for name in ("stored", "int8", "nf4")},
        flops=FLOPS_SHARE * flops,
        memory_bytes_per_second=reached,
        basis=Basis.DATA_SHEET,
        source=(
            f"{memory_bytes_per_second / 1e9:.0f} GB/s and {flops / 1e12:.0f} TFLOPS (data sheet) times "
            f"{MEMORY_SHARE:.2f}, the share that a published draft step on an L40 reaches; each second of it delays "
            f"copies by {COPY_SLOWDOWN:.2f} s, as in the published passes there"
        ),
        copy_slowdown=COPY_SLOWDOWN,
    )
