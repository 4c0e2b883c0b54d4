"""Int8 rows against their own formula, written out, and against the numbers that they round."""

import torch

from offload.formats.stored_sizes import int8_token_bytes
from runtime.model.int8_rows import Int8Rows

PARTS = [[(2, 8), (2, 8)], [(1, 24), (1, 8)], [(3, 5), (2, 7)], [(8, 128), (8, 128)]]
"""(K, D) of keys and values: of equal and of different widths, some of no multiple of four numbers."""
SLOTS = 11


def rows_of(parts: list[tuple[int, int]]) -> torch.Tensor:
    size = int8_token_bytes(sum(heads for heads, _ in parts), sum(heads * width for heads, width in parts))
    return torch.randint(0, 256, (SLOTS, size), dtype=torch.uint8)


def states_of(parts: list[tuple[int, int]], num_tokens: int, *, seed: int = 0) -> list[torch.Tensor]:
    """Keys and values (1, K, T, D) of every magnitude, with numbers that stand out of some heads."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for heads, width in parts:
        numbers = torch.randn(1, heads, num_tokens, width, generator=generator)
        numbers *= 10 ** torch.randint(-4, 5, (1, heads, num_tokens, 1), generator=generator)
        numbers[..., 0] *= torch.randint(1, 50, (1, heads, num_tokens), generator=generator)
        found.append(numbers)
    return found


def empty(parts: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.full((1, heads, SLOTS, width), torch.nan, dtype=dtype) for heads, width in parts]


def test_a_number_is_off_by_half_a_step_of_its_head_at_most() -> None:
    for parts in PARTS:
        rows, states, wide = Int8Rows(rows_of(parts), parts), states_of(parts, 7), empty(parts)
        rows.write(2, states)
        rows.widen(2, 9, wide)
        for exact, found in zip(states, wide, strict=True):
            step = exact.abs().amax(dim=-1, keepdim=True) / 127
            assert ((found[:, :, 2:9] - exact).abs() <= step * 0.5001).all()
            assert ((found[:, :, 2:9] - exact).abs() > step * 0.4).any()
            assert found[:, :, :2].isnan().all() and found[:, :, 9:].isnan().all()


def test_zeros_and_the_largest_number_of_a_head_are_exact() -> None:
    parts = [(1, 4), (1, 4)]
    rows, wide = Int8Rows(rows_of(parts), parts), empty(parts)
    rows.write(0, [torch.tensor([0.0, 0, 0, 0]).view(1, 1, 1, 4), torch.tensor([0, -254.0, 1, 3]).view(1, 1, 1, 4)])
    rows.widen(0, 1, wide)
    assert wide[0][0, 0, 0].tolist() == [0, 0, 0, 0]
    assert wide[1][0, 0, 0].tolist() == [0, -254, 0, 4]  # halves go to the even code


def test_what_is_no_number_stays_visible() -> None:
    """A model that overflows must not write a text as if nothing had happened."""
    parts = [(1, 4), (1, 4)]
    for bad in (torch.nan, torch.inf):
        rows, wide = Int8Rows(rows_of(parts), parts), empty(parts)
        rows.write(0, [torch.tensor([1.0, bad, 0, 2]).view(1, 1, 1, 4)] * 2)
        rows.widen(0, 1, wide)
        assert not wide[0][0, 0, 0].isfinite().any()


def test_a_row_follows_from_its_own_token_alone() -> None:
    """However a text comes in passes, its rows are the same to the bit, so that its widened numbers are too."""
    for parts in PARTS:
        states, at_once, in_pieces = states_of(parts, 7), rows_of(parts), rows_of(parts)
        at_once.zero_()
        in_pieces.zero_()
        Int8Rows(at_once, parts).write(1, states)
        for start, stop in ((0, 3), (3, 4), (4, 7)):
            Int8Rows(in_pieces, parts).write(1 + start, [part[:, :, start:stop] for part in states])
        assert torch.equal(at_once, in_pieces)


def test_a_processor_widens_in_chunks_what_it_would_at_once(monkeypatch) -> None:
    for parts in PARTS:
        memory, states = rows_of(parts), states_of(parts, SLOTS)
        Int8Rows(memory, parts).write(0, states)
        whole, chunked = empty(parts), empty(parts)
        Int8Rows(memory, parts).widen(0, SLOTS, whole)
        with monkeypatch.context() as patch:
            patch.setattr("runtime.model.int8_rows.CHUNK_ELEMENTS", 3 * sum(heads * width for heads, width in parts))
            Int8Rows(memory, parts).widen(0, SLOTS, chunked)
        assert all(torch.equal(one, other) for one, other in zip(whole, chunked, strict=True))


def test_other_types_are_rounded_once_from_the_same_rows() -> None:
    parts = PARTS[0]
    for dtype in (torch.bfloat16, torch.float16):
        states = [part.clamp(-1e4, 1e4).to(dtype) for part in states_of(parts, SLOTS)]
        rows, wide, narrow = Int8Rows(rows_of(parts), parts), empty(parts), empty(parts, dtype)
        rows.write(0, states)
        rows.widen(0, SLOTS, wide)
        rows.widen(0, SLOTS, narrow)
        assert all(torch.equal(one.to(dtype), other) for one, other in zip(wide, narrow, strict=True))


def test_rows_of_a_large_model_are_little_more_than_half_of_bfloat16() -> None:
    """Llama-3-70B: 8 key heads of 128; and every row begins at a multiple of 16 bytes."""
    assert int8_token_bytes(16, 2048) == 2048 + 64
    assert all(rows_of(parts).shape[1] % 16 == 0 for parts in PARTS)
