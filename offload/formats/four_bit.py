"""Weights in bitsandbytes' 4-bit formats, NF4 and FP4 (QLoRA, arXiv 2305.14314), with and without double quantization.

Two codes of 4 bits a byte, first element high; blocks of consecutive elements share an absmax, and with double
quantization the absmaxes are 8-bit codes in blocks of 256 themselves. A product widens the matrix chunk by chunk, bit
for bit as bitsandbytes does: with its kernel where it has one for the device, else by a table from a byte to its two
values. All that steers is known on the host (`FourBitFormat`): no visit reads anything back.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from offload.checkpoint.layer_layout import DEVICE_ALIGNMENT_BYTES
from offload.formats.stored_sizes import ACCELERATOR_CHUNK_ELEMENTS, DEFAULT_BLOCK_SIZE, NESTED_BLOCK_SIZE
from offload.formats.weight_format import UpcastScratch, from_columns
from offload.memory import allocate_slab

QUANT_TYPES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
PIECE_ELEMENTS = 1 << 18
"""Elements quantized at a time, 1 MB in float32: a multiple of every block size."""
ReadElements = Callable[[int, int], torch.Tensor]
"""Elements `start` to `stop` of a row-major matrix, flat, in the model's dtype."""
HOST = torch.device("cpu")
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS", "hpu": "HPU"}


@dataclass(frozen=True, slots=True)
class FourBitFormat:
    """How a matrix of 4-bit codes is to be read."""

    shape: tuple[int, int]
    """(O, I); blocks run on from one row to the next."""
    quant_type: str
    """One of QUANT_TYPES."""
    block_size: int = DEFAULT_BLOCK_SIZE
    """Elements that share an absmax."""
    nested_offset: float | None = None
    """What is added to every absmax of a doubly quantized matrix; None without double quantization."""

    @property
    def name(self) -> str:
        return self.quant_type

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def is_nested(self) -> bool:
        return self.nested_offset is not None

    @property
    def num_blocks(self) -> int:
        """Number of absmaxes; the last block may be short."""
        return -(-math.prod(self.shape) // self.block_size)

    @property
    def packed_bytes(self) -> int:
        return -(-math.prod(self.shape) // 2)

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        nested = (".nested_absmax", ".nested_quant_map") if self.is_nested else ()
        return ("", ".absmax", *nested)

    @property
    def row_multiple(self) -> int:
        """How many rows are a whole number of blocks."""
        return self.block_size // math.gcd(self.shape[1], self.block_size)

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> "FourBitWeight":
        """Return the weight whose tensors are `parts`, by suffix; they are viewed, not copied."""
        return FourBitWeight(self, parts, is_fast)


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """A matrix of 4-bit codes."""

    format: FourBitFormat
    parts: Mapping[str, torch.Tensor]
    """By suffix: the codes uint8 (any shape), absmax float32 (B,), or uint8 (B,) with nested_absmax float32 and
    nested_quant_map float32 (256,)."""
    is_fast: bool = False
    """Whether bitsandbytes' fused product may be used, where it has one."""

    @classmethod
    def quantize(cls, matrix: torch.Tensor, *, is_fast: bool = False, device: torch.device = HOST) -> "FourBitWeight":
        """Round (O, I) of any float dtype to NF4 with double quantization, as bitsandbytes does, in memory of `device`.

        bitsandbytes' kernel of the device does it where there is one, else every core of the processor.
        """
        import bitsandbytes.functional as bnb

        if device.type != "cpu" and has_kernel("quantize_4bit", device.type):
            codes, absmax = quantize_on(matrix.reshape(-1), device)
        elif device.type != "cpu":
            return cls.quantize(matrix, is_fast=is_fast).to(device)
        else:
            flat = matrix.reshape(-1)
            codes, absmax = quantize_blocks(lambda start, stop: flat[start:stop].to("cpu"), flat.numel())
        offset = absmax.mean()
        nested, state = bnb.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK_SIZE)
        layout = FourBitFormat((matrix.shape[0], matrix.shape[1]), "nf4", nested_offset=offset.item())
        parts = {"": codes, ".absmax": nested, ".nested_absmax": state.absmax, ".nested_quant_map": state.code}
        return cls(layout, parts, is_fast)

    def to(self, device: torch.device, *, copy: bool = False) -> "FourBitWeight":
        return replace(self, parts={suffix: part.to(device, copy=copy) for suffix, part in self.parts.items()})

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        # The fused kernel loads 16 codes at a time: elsewhere a device would stop with an error that it keeps.
        is_aligned = self.parts[""].data_ptr() % DEVICE_ALIGNMENT_BYTES == 0
        if self.is_fast and is_aligned and has_kernel("gemm_4bit", inputs.device.type):
            return self.fused_product(inputs, bias)
        absmax = self._wide_absmax()
        num_outputs, num_columns = self.format.shape

        def widen(start: int, stop: int) -> torch.Tensor:
            out = scratch.view(stop - start, num_columns)
            return self._widen_rows(start, stop, absmax, out)

        columns = scratch.multiply(inputs, num_outputs, widen, row_multiple=self.format.row_multiple)
        product = from_columns(columns, inputs)
        return product if bias is None else product.add_(bias)

    def _wide_absmax(self) -> torch.Tensor:
        absmax = self.parts[".absmax"]
        if self.format.nested_offset is None:
            return absmax
        if absmax.device.type != "cpu" and has_kernel("dequantize_blockwise", absmax.device.type):
            kernel_values: torch.Tensor = torch.ops.bitsandbytes.dequantize_blockwise.default(
                absmax,
                self.parts[".nested_absmax"],
                self.parts[".nested_quant_map"],
                NESTED_BLOCK_SIZE,
                torch.float32,
            )
            return kernel_values.add_(self.format.nested_offset)
        values = self.parts[".nested_quant_map"].index_select(0, absmax.view(-1).to(torch.int32))
        wide = _scale_blocks(values, self.parts[".nested_absmax"], NESTED_BLOCK_SIZE, out=values)
        return wide.add_(self.format.nested_offset)

    def _widen_rows(self, start: int, stop: int, absmax: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Widen rows start..stop (`start` a multiple of row_multiple) to `out`, or to memory of the kernel's own."""
        num_columns, block_size = self.format.shape[1], self.format.block_size
        first, end = start * num_columns, stop * num_columns
        codes = self.parts[""].view(-1)[first // 2 : -(-end // 2)]
        blocks = absmax[first // block_size : -(-end // block_size)]
        # bitsandbytes compiles python code for large blocks, and its AVX512 kernel (0.50) scales blocks that reach over
        # the end of a row wrongly.
        is_plain = num_columns % block_size == 0 and block_size < 2048
        if is_plain and has_kernel("dequantize_4bit", codes.device.type):
            options = (codes, blocks, block_size, self.format.quant_type, (stop - start, num_columns), out.dtype)
            if has_kernel("dequantize_4bit.out", codes.device.type):
                torch.ops.bitsandbytes.dequantize_4bit.out(*options, out=out)
                return out
            widened: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(*options)
            return widened
        pairs = pair_table(self.format.quant_type, codes.device).index_select(0, codes.to(torch.int32))
        values = pairs.view(torch.float32)[: end - first]
        return _scale_blocks(values, blocks, block_size, out=out.view(-1)).view(out.shape)

    def fused_product(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply as `linear` does, by bitsandbytes' kernel, which widens nothing to memory; codes are aligned."""
        parts, shape = self.parts, self.format
        scales, nested = parts[".absmax"], {}
        if shape.nested_offset is not None:
            nested = {
                "absmax_8bit": scales,
                "absmax_code": parts[".nested_quant_map"],
                "absmax_offset": scalar_on(shape.nested_offset, inputs.device),
            }
            scales = parts[".nested_absmax"]
        product: torch.Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
            inputs, parts[""].view(-1, 1), shape.shape, scales, shape.block_size, shape.quant_type, bias=bias, **nested
        )
        return product


def _scale_blocks(values: torch.Tensor, scales: torch.Tensor, block_size: int, *, out: torch.Tensor) -> torch.Tensor:
    """Set out[i] = values[i] * scales[i // block_size], rounded once to the dtype of `out`; all one-dimensional."""
    num_whole = values.numel() // block_size
    whole = num_whole * block_size
    blocks = values[:whole].view(num_whole, block_size)
    torch.mul(blocks, scales[:num_whole, None], out=out[:whole].view(num_whole, block_size))
    if whole < values.numel():
        torch.mul(values[whole:], scales[num_whole], out=out[whole:])
    return out


def quantize_on(flat: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize_blocks` does of elements (N,), on `device` by bitsandbytes' kernel there, chunk by chunk.

    A chunk at a time crosses the link, so no whole matrix takes the device's memory besides its codes.
    """
    import bitsandbytes  # noqa: F401  # registers its operators

    num_elements = flat.numel()
    codes = torch.empty(-(-num_elements // 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(-(-num_elements // DEFAULT_BLOCK_SIZE), device=device)
    for start in range(0, num_elements, ACCELERATOR_CHUNK_ELEMENTS):
        chunk = flat[start : start + ACCELERATOR_CHUNK_ELEMENTS].to(device)
        chunk_codes, chunk_absmax = torch.ops.bitsandbytes.quantize_4bit.default(
            chunk, DEFAULT_BLOCK_SIZE, "nf4", torch.uint8
        )
        codes[start // 2 : start // 2 + chunk_codes.numel()] = chunk_codes.view(-1)
        first_block = start // DEFAULT_BLOCK_SIZE
        absmax[first_block : first_block + chunk_absmax.numel()] = chunk_absmax
    return codes, absmax


def quantize_blocks(read: ReadElements, num_elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a matrix in pieces; return its NF4 codes, uint8, and the absmax of every block, float32, both flat.

    On the CPU, by as many threads as torch computes with; `read` is called from all of them.
    """
    num_code_bytes = -(-num_elements // 2)
    codes = allocate_slab(num_code_bytes)[:num_code_bytes]
    absmax = torch.empty(-(-num_elements // DEFAULT_BLOCK_SIZE))

    def quantize(start: int) -> None:
        piece_codes, piece_absmax = _quantize_piece(read(start, min(start + PIECE_ELEMENTS, num_elements)))
        codes.numpy()[start // 2 : start // 2 + len(piece_codes)] = piece_codes
        first_block = start // DEFAULT_BLOCK_SIZE
        absmax.numpy()[first_block : first_block + len(piece_absmax)] = piece_absmax

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(quantize, range(0, num_elements, PIECE_ELEMENTS)):
            pass  # what one of them raised is raised here
    return codes, absmax


def _quantize_piece(piece: torch.Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return two codes a byte, each the nearest of 16 levels after division by the block's absmax, and the absmaxes.

    bitsandbytes searches the levels for every element (7 to 30 million elements a second on one core); counting the
    boundaries below all elements at once gives the same codes twenty times as fast. NumPy's loops stay in the thread
    that asks: torch's own would share each of them among all cores, and wait for the last.
    """
    if piece.numel() % DEFAULT_BLOCK_SIZE:  # an odd tail, which bitsandbytes rounds its own way
        import bitsandbytes.functional as bnb

        tail, state = bnb.quantize_4bit(piece, blocksize=DEFAULT_BLOCK_SIZE, quant_type="nf4")
        return tail.view(-1).numpy(), state.absmax.numpy()
    blocks = _wide(piece).reshape(-1, DEFAULT_BLOCK_SIZE)
    absmax = np.abs(blocks).max(axis=1)
    with np.errstate(invalid="ignore"):  # what is not finite shows in its absmax
        values = (blocks * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))[:, None]).reshape(-1)
    counts = np.zeros(values.shape, dtype=np.uint8)
    is_above = np.empty(values.shape, dtype=np.bool_)
    for boundary in _boundaries():
        np.greater(values, boundary, out=is_above)
        np.add(counts, is_above.view(np.uint8), out=counts)
    pairs = counts.view("<u2")  # the first of two elements is the low byte, and the high half of the code
    return ((pairs << 4) | (pairs >> 8)).astype(np.uint8), absmax


def _wide(piece: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return elements as float32; bfloat16 is the upper half of one."""
    if piece.dtype == torch.bfloat16:
        bits: npt.NDArray[np.uint16] = piece.view(torch.uint16).numpy()
        return (bits.astype(np.uint32) << 16).view(np.float32)
    wide: npt.NDArray[np.float32] = piece.numpy().astype(np.float32)
    return wide


@cache
def _boundaries() -> npt.NDArray[np.float32]:
    """Return what lies half way between neighbouring levels, (15,)."""
    import bitsandbytes.functional as bnb

    levels = bnb.get_4bit_type("nf4", device="cpu")
    middles: npt.NDArray[np.float32] = ((levels[:-1] + levels[1:]) / 2).numpy()
    return middles


@cache
def pair_table(quant_type: str, device: torch.device) -> torch.Tensor:
    """Return (256,) on `device`: entry b holds the two float32 values of byte b, high nibble first, as one int64.

    One gather of 8 bytes is twice as fast as one of two floats, and every device gathers int64.
    """
    import bitsandbytes.functional as bnb

    values = bnb.get_4bit_type(quant_type, device="cpu")  # (16,) float32
    byte = torch.arange(256)
    pairs = torch.stack([values[byte >> 4], values[byte & 15]], dim=1)  # (256, 2)
    return pairs.view(torch.int64).view(-1).to(device)


@cache
def scalar_on(value: float, device: torch.device) -> torch.Tensor:
    """Return a float32 scalar on `device`, copied there once."""
    return torch.tensor(value, dtype=torch.float32, device=device)


@cache
def has_kernel(operator: str, device_type: str) -> bool:
    """Return whether bitsandbytes has a kernel of its own for this operator on this type of device."""
    import bitsandbytes  # noqa: F401  # registers its operators

    key = _DISPATCH_KEYS.get(device_type)
    try:
        return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operator}", key)
    except RuntimeError:  # this bitsandbytes has no such operator for any device
        return False
