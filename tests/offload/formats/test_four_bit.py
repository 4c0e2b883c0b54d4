import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from offload.formats import four_bit
from offload.formats.four_bit import FourBitFormat, FourBitWeight, has_kernel, pair_table, scalar_on
from offload.formats.stored_sizes import CHUNK_ELEMENTS
from offload.formats.weight_format import UpcastScratch
from tests.support.four_bit_weights import dequantized, four_bit_weight

CPU = torch.device("cpu")
SHAPES = [(40, 64), (64, 66), (33, 130), (5, 7), (1, 300), (3, 24)]


@pytest.fixture(params=["bitsandbytes", "table"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Widens with bitsandbytes' kernel, or with the table that any other device uses."""
    if request.param == "table":
        monkeypatch.setattr("offload.formats.four_bit.has_kernel", lambda operator, device_type: False)
    return request.param


def random_matrix(num_outputs: int, num_inputs: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)


def grid() -> Iterator[torch.Tensor]:
    """Matrices of every shape and dtype."""
    for shape, dtype in product(SHAPES, (torch.float32, torch.bfloat16, torch.float16)):
        yield random_matrix(*shape, dtype)


def test_quantizing_equals_bitsandbytes_own_bit_for_bit() -> None:
    for matrix in grid():
        codes, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        weight = FourBitWeight.quantize(matrix)
        assert torch.equal(weight.parts[""], codes.view(-1))
        assert torch.equal(weight.parts[".absmax"], state.absmax)
        assert torch.equal(weight.parts[".nested_absmax"], state.state2.absmax)
        assert torch.equal(weight.parts[".nested_quant_map"], state.state2.code)
        assert weight.format.num_blocks == state.absmax.numel()
        assert weight.format.nested_offset == state.offset.item()


def test_quantizing_on_a_device_equals_quantizing_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bitsandbytes' operator as the device would run it, in chunks that end within the matrix."""
    monkeypatch.setattr(four_bit, "ACCELERATOR_CHUNK_ELEMENTS", 1 << 12)
    for matrix in (random_matrix(100, 130), random_matrix(96, 128, torch.bfloat16), random_matrix(3, 5)):
        codes, absmax = four_bit.quantize_on(matrix.reshape(-1), CPU)
        flat = matrix.reshape(-1)
        own_codes, own_absmax = four_bit.quantize_blocks(lambda start, stop, flat=flat: flat[start:stop], flat.numel())
        assert torch.equal(codes, own_codes)
        assert torch.equal(absmax, own_absmax)


def test_a_device_with_a_kernel_quantizes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(four_bit, "has_kernel", lambda operator, kind: operator == "quantize_4bit" and kind == "meta")
    monkeypatch.setattr(
        four_bit, "quantize_on", lambda flat, device: asked.append(device) or (torch.zeros(1), torch.zeros(256))
    )
    FourBitWeight.quantize(random_matrix(4, 128), device=torch.device("meta"))
    assert asked == [torch.device("meta")]


def test_the_pieces_of_a_matrix_are_quantized_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2)

    def read(start: int, stop: int) -> torch.Tensor:
        both.wait(timeout=30)  # a thread alone would wait in vain
        return torch.ones(stop - start)

    codes, absmax = four_bit.quantize_blocks(read, 2 * four_bit.PIECE_ELEMENTS)
    assert codes.unique().tolist() == [255]
    assert absmax.unique().tolist() == [1.0]


def test_dequantizing_equals_bitsandbytes_own_bit_for_bit(kernel: str) -> None:
    for matrix, quant_type, is_nested in product(grid(), ("nf4", "fp4"), (False, True)):
        codes, state = bnb.quantize_4bit(matrix, quant_type=quant_type, compress_statistics=is_nested)
        weight = four_bit_weight(matrix, quant_type=quant_type, is_nested=is_nested)
        assert torch.equal(dequantized(weight, matrix.dtype), bnb.dequantize_4bit(codes, state))


def test_a_matrix_of_many_chunks_and_nested_blocks_equals_bitsandbytes_own(kernel: str) -> None:
    """66 columns: blocks span rows, chunks end where a block does, and the last block is short."""
    matrix = random_matrix(2 * CHUNK_ELEMENTS // 66 + 1001, 66)
    codes, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    weight = FourBitWeight.quantize(matrix)
    assert torch.equal(weight.parts[""], codes.view(-1))
    expected = bnb.dequantize_4bit(codes, state)
    inputs, scratch = torch.randn(3, 66), UpcastScratch(torch.float32, CPU)
    torch.testing.assert_close(weight.linear(inputs, None, scratch), F.linear(inputs, expected), rtol=1e-5, atol=1e-4)
    assert scratch.view(0, 0).untyped_storage().nbytes() == 4 * CHUNK_ELEMENTS


@pytest.mark.parametrize("num_tokens", [1, 5, 16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_fast", [False, True])
def test_a_product_equals_that_of_the_dequantized_matrix(
    num_tokens: int, compute: torch.dtype, is_fast: bool, kernel: str
) -> None:
    weight = FourBitWeight.quantize(random_matrix(96, 130), is_fast=is_fast)
    inputs, bias = torch.randn(2, num_tokens, 130).to(compute), torch.randn(96).to(compute)
    found = weight.linear(inputs, bias, UpcastScratch(compute, CPU))
    expected = F.linear(inputs, dequantized(weight, compute), bias)
    assert found.dtype == compute
    torch.testing.assert_close(found, expected, rtol=2e-2 if compute == torch.bfloat16 else 1e-5, atol=1e-2)


def test_rows_and_blocks_of_zeros_stay_zero(kernel: str) -> None:
    matrix = random_matrix(8, 64)
    matrix[3] = 0
    weight = four_bit_weight(matrix, quant_type="nf4", is_nested=False)
    assert (dequantized(weight, torch.float32)[3] == 0).all()


def test_a_bound_weight_views_the_slab_whatever_dtype_the_codes_are_stored_as() -> None:
    made = FourBitWeight.quantize(random_matrix(4, 128))
    bound = made.format.bind(made.parts)
    assert bound.parts[""].data_ptr() == made.parts[""].data_ptr()
    assert torch.equal(dequantized(bound.to(CPU), torch.float32), dequantized(made, torch.float32))


def test_the_format_knows_its_sizes() -> None:
    layout = FourBitFormat((5, 7), "nf4")
    assert (layout.num_blocks, layout.packed_bytes, layout.row_multiple) == (1, 18, 64)
    assert layout.part_suffixes == ("", ".absmax")
    nested = FourBitFormat((6, 96), "fp4", 64, 0.5)
    assert (nested.num_blocks, nested.packed_bytes, nested.row_multiple) == (9, 288, 2)
    assert nested.part_suffixes == ("", ".absmax", ".nested_absmax", ".nested_quant_map")


def test_thefused_product_gets_what_bitsandbytes_own_call_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device here has the fused kernel; bitsandbytes' default implementation of the operator stands in for it."""
    asked = []
    monkeypatch.setattr(
        "offload.formats.four_bit.has_kernel", lambda operator, device_type: asked.append(operator) or True
    )
    inputs, bias = torch.randn(2, 130), torch.randn(96)
    for is_nested in (False, True):
        weight = four_bit_weight(random_matrix(96, 130), quant_type="nf4", is_nested=is_nested, is_fast=True)
        found = weight.linear(inputs, bias, UpcastScratch(torch.float32, CPU))
        expected = F.linear(inputs, dequantized(weight, torch.float32), bias)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "gemm_4bit" in asked


def test_codes_that_are_not_aligned_never_reach_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads 16 bytes at once, and a device that was asked for such a load elsewhere is lost."""
    fused = []
    monkeypatch.setattr("offload.formats.four_bit.has_kernel", lambda operator, device_type: operator == "gemm_4bit")
    monkeypatch.setattr(FourBitWeight, "fused_product", lambda weight, inputs, bias: fused.append(1) or inputs)
    weight, inputs = FourBitWeight.quantize(random_matrix(64, 64), is_fast=True), torch.randn(2, 64)
    memory = torch.zeros(64 * 32 + 16, dtype=torch.uint8)
    for phase in range(17):
        codes = memory[phase : phase + 64 * 32].copy_(weight.parts[""])
        moved = replace(weight, parts={**weight.parts, "": codes})
        found = moved.linear(inputs, None, UpcastScratch(torch.float32, CPU))
        assert len(fused) == 1 + (phase == 16)
        if phase % 16:
            torch.testing.assert_close(found, F.linear(inputs, dequantized(weight, torch.float32)))


def test_only_devices_with_kernels_of_their_own_use_them() -> None:
    assert has_kernel("dequantize_4bit", "cpu")
    assert not has_kernel("gemm_4bit", "cpu")
    assert not has_kernel("dequantize_4bit", "privateuseone")
    assert not has_kernel("an_operator_of_a_later_version", "cpu")  # torch raises for one that nobody has defined


def test_tables_and_scalars_are_made_once_per_device() -> None:
    assert pair_table("nf4", CPU) is pair_table("nf4", CPU)
    assert scalar_on(0.5, CPU) is scalar_on(0.5, CPU)
    assert pair_table("nf4", CPU).view(torch.float32)[:2].tolist() == [-1.0, -1.0]


class KernelCount(TorchDispatchMode):
    """Counts what launches a kernel on a device: every operator that neither views nor allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name.split(".")[0] not in {
            "view",
            "t",
            "slice",
            "unsqueeze",
            "empty",
            "new_empty",
            "_unsafe_view",
            "expand",
        }:
            self.names[name] += 1
        # bitsandbytes' own description of this one compares a shape with a list.
        return None if name == "dequantize_4bit.out" else func(*args, **(kwargs or {}))


def test_a_layer_of_70b_takes_few_kernels_and_no_memory_beside_the_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device for which bitsandbytes has kernels; 234 were launched in chunks of 8 M elements."""
    monkeypatch.setattr("offload.formats.four_bit.has_kernel", lambda operator, device_type: operator != "gemm_4bit")
    meta = torch.device("meta")
    scratch, count = UpcastScratch(torch.bfloat16, meta), KernelCount()
    shapes = [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 2 + [(8192, 28672)]
    for shape in shapes:
        layout = FourBitFormat(shape, "nf4", nested_offset=0.5)
        num_scales = -(-layout.num_blocks // 256)
        sizes = {"": (layout.packed_bytes, torch.uint8), ".absmax": (layout.num_blocks, torch.uint8)}
        sizes |= {".nested_absmax": (num_scales, torch.float32), ".nested_quant_map": (256, torch.float32)}
        parts = {suffix: torch.empty(size, dtype=dtype, device=meta) for suffix, (size, dtype) in sizes.items()}
        inputs = torch.empty(1, 256, shape[1], dtype=torch.bfloat16, device=meta)
        with torch.no_grad(), count:
            assert layout.bind(parts).linear(inputs, None, scratch).shape == (1, 256, shape[0])
    assert count.names == {
        "dequantize_blockwise.default": 7,
        "add_.Tensor": 7,
        "dequantize_4bit.out": 16,
        "mm.out": 16,
    }
