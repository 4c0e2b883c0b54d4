import numpy as np
import pytest
import torch

from offload.formats import widened_codes
from offload.formats.widened_codes import (
    E2M1_FACTOR,
    pieces,
    scale_groups,
    unpack_words,
    wide_scales,
    write_e2m1,
    write_float8,
    write_integers,
)
from tests.support.published_weights import AWQ_ORDER, E2M1, FLOAT8

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BYTES = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_is_written_as_the_number_it_means(dtype: torch.dtype) -> None:
    out = torch.empty(2, 256, dtype=dtype)
    write_integers(BYTES.view(2, 128), 4, out)
    assert out.view(-1).tolist() == [code for byte in range(256) for code in (byte & 15, byte >> 4)]
    write_e2m1(BYTES.view(2, 128), out)
    assert (out.float() * E2M1_FACTOR).view(-1).tolist() == [
        E2M1[code] for byte in range(256) for code in (byte & 15, byte >> 4)
    ]
    out = torch.empty(1, 256, dtype=dtype)
    write_integers(BYTES.view(1, 256), 8, out)
    assert out.view(-1).tolist() == list(range(256))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float8_is_the_number_that_torch_gives_it(dtype: torch.dtype) -> None:
    out = torch.empty(1, 256, dtype=dtype)
    factor = write_float8(BYTES.view(1, 256).view(torch.float8_e4m3fn), out)
    found, expected = out.float() * factor, BYTES.view(torch.float8_e4m3fn).float()
    is_number = torch.from_numpy(np.isfinite(FLOAT8))
    assert torch.equal(found[0, is_number], expected[is_number])
    assert torch.equal(expected[is_number], torch.from_numpy(FLOAT8)[is_number])
    assert found[0, ~is_number].tolist() == [480.0, -480.0]


def test_signs_of_zero_are_kept() -> None:
    out = torch.empty(1, 2)
    write_e2m1(torch.tensor([[0x80]], dtype=torch.uint8), out)
    assert torch.signbit(out).tolist() == [[False, True]]


def test_words_are_unpacked_lowest_bits_first_or_in_the_order_of_awq() -> None:
    word = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)  # 0xFEDCBA98
    assert unpack_words(word, 4).tolist() == [list(range(16))]
    assert unpack_words(word, 8).tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]
    places = [AWQ_ORDER.index(output) for output in range(8)]
    assert unpack_words(word[:, :1], 4, interleaved=True).tolist() == [places]


def test_scales_of_every_type_are_widened_exactly() -> None:
    exponents = torch.tensor([0, 1, 126, 127, 128, 254], dtype=torch.uint8)
    assert wide_scales(exponents).tolist() == [2.0 ** (code - 127) for code in exponents.tolist()]
    assert wide_scales(exponents[:, None].t()).shape == (1, 6)
    codes = torch.arange(0x7F, dtype=torch.uint8)
    assert torch.equal(wide_scales(codes.view(torch.float8_e4m3fn)), torch.from_numpy(FLOAT8[:0x7F]))
    for dtype in DTYPES:
        assert wide_scales(torch.tensor([0.5], dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_columns", "group_size"), [(12, 4), (10, 4), (3, 8), (6, 6)])
def test_groups_of_columns_are_scaled_and_rounded_once(dtype: torch.dtype, num_columns: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    out = torch.randn(5, num_columns, generator=generator).to(dtype)
    scales = torch.rand(5, -(-num_columns // group_size), generator=generator)
    wide = out.double() * scales.double().repeat_interleave(group_size, dim=1)[:, :num_columns]
    scale_groups(out, scales, group_size)
    assert torch.equal(out, wide.to(torch.float32).to(dtype))


def test_rows_are_divided_into_pieces_that_begin_at_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_codes, "piece_elements", lambda is_host: 1000)
    out = torch.empty(100, 10)
    found = list(pieces(64, 164, out))
    assert [(first, end) for first, end, _ in found] == [(64, 160), (160, 164)]
    assert [rows.data_ptr() for _, _, rows in found] == [out.data_ptr(), out[96:].data_ptr()]
