"""Hold a draft's matrices as int8 rows, as NF4 or as they are stored, whichever multiplies fastest on this device.

A draft may round activations, so each format runs the fastest kernel that this device has for the widths of a tree's
levels. A processor's are measured (well under half a second in all, once per process); on an accelerator a step is as
long as its bytes take to read, and which formats there are kernels for is known.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch

from offload.formats.four_bit import FourBitWeight, has_kernel
from offload.formats.int8 import PACKED_BYTES_PER_ROW, Int8RowsWeight, PackedInt8Weight, measure_is_packed_faster
from offload.formats.packed import PackedWeight
from offload.formats.stored_sizes import NF4_CODE_BYTES, nf4_bytes
from offload.formats.weight_format import MEASURED_SIDE, DenseWeight, StoredWeight, WidenedWeight, draft_seconds

HeldFormat = Literal["int8", "nf4", "stored"]
_DECIDED = 0.8
"""Another format than int8 is chosen if it takes at most this share of its time: less is noise."""


def draft_converter(
    held: HeldFormat, compute: torch.dtype, device: torch.device
) -> Callable[[StoredWeight], StoredWeight]:
    """Return what makes a draft's weight on `device`, in memory of its own, of one that views a slab.

    What is packed is unpacked first, and what is widened for its products is widened once, to be rounded again: a
    draft's rounding costs some acceptance and changes no text. What bitsandbytes quantized stays so, whatever `held`
    says.
    """
    is_packed = device.type == "cpu" and measure_is_packed_faster(compute)

    def convert(stored: StoredWeight) -> StoredWeight:
        if isinstance(stored, PackedWeight):
            stored = DenseWeight(stored.unpack(), is_fast=True)
            if held == "stored":
                return stored.to(device)
        if isinstance(stored, WidenedWeight) and held == "int8":
            rows = partial(Int8RowsWeight.quantize_rows, stored.format.shape, stored.widen_rows, is_fast=True)
            multiple = stored.format.row_multiple
            if is_packed:
                return PackedInt8Weight.pack(rows(row_multiple=multiple))
            return rows(row_multiple=multiple).to(device)
        if isinstance(stored, WidenedWeight) and held == "nf4":
            stored = DenseWeight(stored.widen(torch.float32), is_fast=True)
        if isinstance(stored, DenseWeight) and held == "nf4":
            return FourBitWeight.quantize(stored.matrix, is_fast=True, device=device)
        if isinstance(stored, DenseWeight) and held == "int8":
            if is_packed:
                return PackedInt8Weight.pack(Int8RowsWeight.quantize(stored.matrix, is_fast=True))
            return Int8RowsWeight.quantize(stored.matrix, is_fast=True).to(device)
        if isinstance(stored, Int8RowsWeight) and is_packed:
            return PackedInt8Weight.pack(stored)
        return stored.to(device, copy=True)

    return convert


def held_bytes(shape: tuple[int, int], held: Literal["int8", "nf4"]) -> int:
    """Return the bytes of an ordinary (O, I) matrix once a draft holds it in this format."""
    if held == "int8":
        return shape[0] * (shape[1] + PACKED_BYTES_PER_ROW)
    return nf4_bytes(shape) - NF4_CODE_BYTES  # the levels are the same for all matrices


def has_fused_nf4(device: torch.device) -> bool:
    """Return whether a draft's NF4 matrices are multiplied there without being widened."""
    return has_kernel("gemm_4bit", device.type)


@cache
def fastest_format(compute: torch.dtype, device: torch.device) -> HeldFormat:
    """Return the format whose products of 1 to 16 rows are the fastest here; int8 unless another wins clearly.

    Measured on a processor. On an accelerator, whose recorded steps are bound by the bytes of the weights, it is the
    one of the fewest: NF4 where a fused kernel reads its codes (0.56 bytes a weight), else `stored` (2 bytes), since
    quantized weights would be widened first (about 5). Timing single products there would compare their launches.
    """
    if device.type != "cpu":
        return "nf4" if has_fused_nf4(device) else "stored"
    matrix = torch.randn(MEASURED_SIDE, MEASURED_SIDE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    formats: tuple[HeldFormat, ...] = ("int8", "nf4", "stored")
    seconds = {
        held: draft_seconds(draft_converter(held, compute, device)(DenseWeight(matrix, is_fast=True)), compute, device)
        for held in formats
    }
    best = min(formats, key=lambda held: seconds[held])
    return best if seconds[best] <= _DECIDED * seconds["int8"] else "int8"
