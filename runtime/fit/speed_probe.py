"""Measures in seconds how fast this device multiplies, with the very products that a pass and a draft are made of.

One square matrix in every format, once narrow and once wide. Not a calibration of a pair of models: attention, kernel
launches and busy cores are not in it. Knows no models.
"""

from collections.abc import Callable
from functools import partial

import torch

from offload.copying.rates import measure_copy_rate
from offload.formats.draft_weight import HeldFormat, draft_converter, draft_policy
from offload.formats.four_bit import FourBitWeight
from offload.formats.int8 import Int8RowsWeight
from offload.formats.weight_format import DenseWeight, StoredWeight, UpcastScratch, fastest_seconds
from runtime.fit.device_speed import Basis, DeviceSpeed

SIDE = 3072
"""Of the matrix: its 38 MB in float32 lie in no processor's own caches."""
ACCELERATOR_SIDE = 8192
WIDE_ROWS = 128
"""Rows of a wide product: enough that multiplying takes longer than reading the weights."""
_HELD: tuple[HeldFormat, ...] = ("stored", "int8", "nf4")


def measure_speed(device: torch.device, *, side: int | None = None) -> DeviceSpeed:
    """What a pass and a draft step cost here, a weight and an operation at a time."""
    is_cpu = device.type == "cpu"
    side = side or (SIDE if is_cpu else ACCELERATOR_SIDE)
    compute = torch.float32 if is_cpu else torch.bfloat16  # as a session computes: see LoadPlan
    scratch = UpcastScratch(compute, device)
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    targets: dict[str, StoredWeight] = {
        "bfloat16": DenseWeight(matrix),
        "float16": DenseWeight(matrix.to(torch.float16)),
        "float32": DenseWeight(matrix.to(torch.float32)),
        "int8": Int8RowsWeight.quantize(matrix),
        "nf4": FourBitWeight.quantize(matrix),
    }
    targets = {name: weight.copy_to(device) for name, weight in targets.items()}

    def seconds(weight: StoredWeight, num_rows: int) -> float:
        inputs = torch.ones(num_rows, side, dtype=compute, device=device)
        return fastest_seconds(partial(weight.linear, inputs, None, scratch), repeats=6, device=device)

    def held(name: HeldFormat) -> StoredWeight:
        if name == "stored":
            return DenseWeight(matrix.to(device), draft_policy(compute, device))
        return draft_converter(name, compute, device)(DenseWeight(matrix))

    narrow = {name: side**2 / seconds(weight, 1) for name, weight in targets.items()}
    flops = 2 * side**2 * WIDE_ROWS / seconds(targets["bfloat16"], WIDE_ROWS)
    return DeviceSpeed(
        target_weights_per_second=narrow,
        draft_weights_per_second={name: side**2 / seconds(held(name), 1) for name in _HELD},
        flops=flops,
        memory_bytes_per_second=_memory_rate(device, side),
        basis=Basis.MEASURED,
        source=(
            f"products of one {side} x {side} matrix: {narrow['bfloat16'] / 1e9:.2f} G weights/s in bf16 with 1 row, "
            f"{flops / 1e9:.0f} GFLOPS with {WIDE_ROWS}"
        ),
        compute_item_bytes=compute.itemsize,
    )


def _memory_rate(device: torch.device, side: int) -> float:
    """Bytes a second that the device reads of its own memory; a copy reads and writes."""
    if device.type == "cpu":
        return measure_copy_rate(device)
    source = torch.empty(2 * side**2, dtype=torch.uint8, device=device)
    copy: Callable[[], object] = source.clone
    return 2 * source.numel() / fastest_seconds(copy, device=device)
