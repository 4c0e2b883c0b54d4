"""Write narrow codes as numbers, exactly, and scale them group by group: what published quantized formats share.

Integers of 4 and 8 bits, float8 e4m3 (FP8, arXiv 2209.05433), 4-bit e2m1 with e8m0 scales (OCP Microscaling Formats
1.0), by plain operators on any device. A code is exact in every compute dtype, a difference of two as well, so that a
number is rounded once: when its scale, float32, multiplies it.
Codes of floats become halves by their bits, with an exponent that is too small by what the scale then makes up for: two
AVX2 cores write a million e4m3 numbers in 0.16 ms so, and in 2.7 ms as torch converts them; e2m1 in 0.30 ms, and in 1.1
ms by gathering from a table.
"""

from collections.abc import Iterator

import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE, piece_elements

FLOAT8_FACTOR = 2.0**8
"""What the halves made of e4m3 codes lack: their exponents count from 15, those of the codes from 7."""
E2M1_FACTOR = 2.0**14
"""The same of e2m1 codes, whose exponents count from 1."""


def pieces(start: int, stop: int, out: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Divide rows start..stop of `out` (stop - start, I): yield first row, end, and that part of `out`."""
    num_elements = piece_elements(is_host=out.device.type == "cpu")
    most = max(1, num_elements // (out.shape[1] * CHUNK_ROW_MULTIPLE)) * CHUNK_ROW_MULTIPLE
    for first in range(start, stop, most):
        end = min(first + most, stop)
        yield first, end, out[first - start : end - start]


def write_integers(codes: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Write the unsigned integers of 4 or 8 bits in bytes (R, I * bits / 8), low nibble first, to `out` (R, I)."""
    if bits == 8:
        out.copy_(codes)
        return
    words = codes.to(torch.int32).mul_((1 << 12) + 1).bitwise_and_(0x000F000F)  # a byte's codes as two int16
    out.copy_(words.view(torch.int16))


def write_e2m1(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Write the e2m1 numbers of bytes (R, I / 2), low nibble first, divided by E2M1_FACTOR, to `out` (R, I)."""
    words = codes.to(torch.int32)
    halves = words * ((1 << 21) + (1 << 9))  # exponents and mantissas of both codes, where a half has them
    halves.bitwise_and_(0x0E000E00)
    words.mul_((1 << 24) + (1 << 12)).bitwise_and_(-0x7FFF8000)  # their signs: bits 31 and 15
    out.copy_(halves.bitwise_or_(words).view(torch.float16))


def write_float8(codes: torch.Tensor, out: torch.Tensor) -> float:
    """Write float8_e4m3fn of any shape to `out`; return what the numbers there are to be multiplied by.

    On a processor the two codes that are no numbers become 480: a sound file has none.
    """
    if out.device.type != "cpu":
        out.copy_(codes)
        return 1.0
    halves = codes.view(torch.int8).to(torch.int16).mul_(128).bitwise_and_(~0x4000)
    out.copy_(halves.view(torch.float16))
    return FLOAT8_FACTOR


def unpack_words(words: torch.Tensor, bits: int, *, interleaved: bool = False) -> torch.Tensor:
    """Return the integers in int32 words (A, B), lowest bits first, as int32 (A, B * 32 / bits).

    `interleaved`: eight of 4 bits as AWQ has them, the even ones in the lower half of a word.
    """
    if interleaved:
        shifts = interleaved_shifts(words.device).view(-1)
    else:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return (words[:, :, None] >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)


def interleaved_shifts(device: torch.device) -> torch.Tensor:
    """Return by how many bits a word is shifted for each of eight codes as AWQ has them, int32 (4, 2)."""
    shifts = torch.arange(0, 16, 4, device=device)[:, None] + torch.arange(0, 32, 16, device=device)
    return shifts.to(torch.int32)


def wide_scales(scales: torch.Tensor) -> torch.Tensor:
    """Return scales as float32: floats, float8 e4m3, or bytes that are exponents of two (e8m0, biased by 127)."""
    if scales.dtype == torch.uint8:
        return scales.view(torch.float8_e8m0fnu).to(torch.float32)
    if scales.dtype == torch.float8_e4m3fn:
        wide = torch.empty(scales.shape, dtype=torch.float32, device=scales.device)
        factor = write_float8(scales, wide)
        return wide if factor == 1 else wide.mul_(factor)
    return scales.to(torch.float32)


def scale_groups(out: torch.Tensor, scales: torch.Tensor, group_size: int) -> None:
    """Multiply each `group_size` columns of `out` (R, I) by a column of `scales` (R or 1, groups) of float32."""
    num_whole = out.shape[1] // group_size
    if scales.shape[1] == 1:
        out.mul_(scales)
        return
    whole = num_whole * group_size
    out[:, :whole].view(len(out), num_whole, group_size).mul_(scales[:, :num_whole, None])
    if whole < out.shape[1]:
        out[:, whole:].mul_(scales[:, num_whole:])


def scale_integers(
    out: torch.Tensor,
    zeros: torch.Tensor | float,
    scales: torch.Tensor,
    *,
    group_size: int,
    groups: torch.Tensor | None = None,
) -> None:
    """Set out = (out - zeros) * scales, `out` (R, I) of codes, zeros and scales (R, I / group_size) of float32.

    `groups` (I,): the group of each column, where they are not `group_size` columns in a row.
    """
    if groups is not None:
        # A zero point and its scale are gathered as one number: two gathers take twice as long.
        both = torch.stack((torch.zeros_like(scales) + zeros, scales), dim=2).view(torch.int64)[:, :, 0]
        index = groups.to(torch.int64).expand(out.shape)
        found = torch.gather(both, 1, index)[:, :, None].view(torch.float32)  # (R, I, 2)
        out.sub_(found[:, :, 0]).mul_(found[:, :, 1])
        return
    blocks = out.view(len(out), -1, group_size)
    blocks.sub_(zeros if isinstance(zeros, float) else zeros[:, :, None])
    blocks.mul_(scales[:, :, None])
