"""Bits are compared, not values: NaNs and signs of zero count."""

import pytest
import torch

from offload.device import one_thread
from offload.formats.packed import MAX_BASE, PackedWeight, escape_share, pack_matrix
from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE, PACKED_COLUMNS
from offload.formats.weight_format import DenseWeight, UpcastScratch

CPU = torch.device("cpu")


def bits_of(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.view(torch.int16)


def matrix_of(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def trained(num_rows: int, num_columns: int, *, scale: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(num_rows, num_columns, generator=generator) * scale).to(torch.bfloat16)


def with_every_value(num_common: int, *, scale: float) -> torch.Tensor:
    """All 65,536 values of bfloat16 among `num_common` rows of common ones."""
    every = matrix_of(torch.arange(65536)).view(-1, 256)
    return torch.cat((trained(num_common, 256, scale=scale), every, trained(num_common, 256, scale=scale)))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 0.02, 1.0, 3e4, 3e38], ids=str)
@pytest.mark.parametrize("num_common", [0, 7, 4096])
def test_every_value_comes_back_whatever_the_common_exponents_are(num_common: int, scale: float) -> None:
    """Zeros, denormals, infinities and NaNs of every payload are among them; the base is 0 and its limit, too."""
    matrix = with_every_value(num_common, scale=scale)
    packed = pack_matrix(matrix)
    assert torch.equal(bits_of(packed.unpack()), bits_of(matrix))
    assert 0 <= packed.format.base <= MAX_BASE


def test_the_smallest_and_the_largest_base_are_both_met() -> None:
    assert pack_matrix(trained(64, 64, scale=1e-38)).format.base == 0
    assert pack_matrix(trained(64, 64, scale=1e4)).format.base == MAX_BASE


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 64), (31, 128), (32, 64), (97, 192), (700, 1536)])
def test_a_matrix_of_many_escapes_comes_back(shape: tuple[int, int], share: float) -> None:
    generator = torch.Generator().manual_seed(11)
    odd = matrix_of(torch.randint(0, 65536, shape, generator=generator))
    matrix = torch.where(torch.rand(shape, generator=generator) < share, odd, trained(*shape))
    packed = pack_matrix(matrix)
    assert torch.equal(bits_of(packed.unpack()), bits_of(matrix))
    assert (
        (len(packed.escapes) > 0.7 * share * matrix.numel()) if share else len(packed.escapes) <= 0.001 * matrix.numel()
    )


def test_zeros_take_no_place_among_the_escapes() -> None:
    """Some matrices of trained models are zero to a fifth."""
    matrix = trained(64, 128)
    matrix[::2] = 0.0
    matrix[1, ::2] = -0.0
    packed = pack_matrix(matrix)
    assert len(packed.escapes) < 4
    assert torch.equal(bits_of(packed.unpack()), bits_of(matrix))


def test_the_words_are_those_that_the_format_says() -> None:
    """Two blocks, the second of three rows, read as another program would read them."""
    matrix = trained(CHUNK_ROW_MULTIPLE + 3, 128)
    matrix[matrix.abs() < 1e-4] = 0.0
    packed = pack_matrix(matrix)
    assert len(packed.escapes) == 0
    for rows in (slice(0, CHUNK_ROW_MULTIPLE), slice(CHUNK_ROW_MULTIPLE, None)):
        words = packed.words[rows].flatten().tolist()
        quarter = len(words) // 3
        first, second, third = (words[part * quarter : (part + 1) * quarter] for part in range(3))
        hidden = [((((c >> 4) ^ b) >> 3) + 2 * a) % 65536 for a, b, c in zip(first, second, third, strict=True)]
        codes = [word & 0x87FF for word in words] + [(bits & 0x8000) | (bits >> 4 & 0x7FF) for bits in hidden]
        stored = (bits % 65536 for bits in bits_of(matrix[rows]).flatten().tolist())
        assert codes == [bits - (packed.format.base << 7) if bits & 0x7FFF else bits for bits in stored]


def test_any_blocks_of_rows_are_unpacked_alone() -> None:
    matrix = with_every_value(100, scale=0.02)
    packed = pack_matrix(matrix)
    for start in range(0, len(matrix), CHUNK_ROW_MULTIPLE):
        for num_blocks in (1, 3):
            rows = matrix[start : start + num_blocks * CHUNK_ROW_MULTIPLE]
            out = torch.empty_like(rows)
            packed.unpack_rows(start, start + len(rows), out)
            assert torch.equal(bits_of(out), bits_of(rows))


def test_words_go_where_they_are_wanted_and_the_number_of_threads_changes_nothing() -> None:
    matrix = trained(500, PACKED_COLUMNS)
    words = torch.empty(500, 3 * PACKED_COLUMNS // 4, dtype=torch.int16)
    with one_thread():
        packed = pack_matrix(matrix, words=words)
    other = pack_matrix(matrix)
    assert packed.words is words
    for name in ("words", "escapes", "escape_values"):
        assert torch.equal(getattr(packed, name), getattr(other, name))
    assert packed.format.escape_ends.tolist() == other.format.escape_ends.tolist()


def test_it_takes_twelve_bits_an_element() -> None:
    matrix = trained(512, 1024)
    packed = pack_matrix(matrix)
    assert packed.words.nbytes == matrix.numel() * 12 // 8
    assert packed.escapes.nbytes + packed.escape_values.nbytes < 0.001 * packed.words.nbytes


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 70])
@pytest.mark.parametrize("compute", [torch.float32, torch.float16])
def test_products_are_those_of_the_matrix_as_it_was_stored_to_the_last_bit(
    num_tokens: int, compute: torch.dtype
) -> None:
    """Of several chunks, the last one short, and with a bias."""
    matrix = trained(1500, 1536)
    matrix[700, 3] = 1e-20
    inputs, bias = torch.randn(2, num_tokens, 1536).to(compute), torch.randn(1500).to(compute)
    packed = pack_matrix(matrix).linear(inputs, bias, UpcastScratch(compute, CPU))
    stored = DenseWeight(matrix).linear(inputs, bias, UpcastScratch(compute, CPU))
    assert torch.equal(packed, stored)


def test_products_in_bfloat16_take_its_rows_as_they_are_unpacked() -> None:
    matrix, inputs = trained(300, 128), torch.randn(5, 128).to(torch.bfloat16)
    product = pack_matrix(matrix).linear(inputs, None, UpcastScratch(torch.bfloat16, CPU))
    assert product.dtype == torch.bfloat16
    assert torch.allclose(product.float(), inputs.float() @ matrix.float().t(), rtol=0.02, atol=0.01)


def test_a_copy_has_memory_of_its_own() -> None:
    packed = pack_matrix(trained(64, 64))
    copied = packed.to(CPU, copy=True)
    assert isinstance(copied, PackedWeight)
    assert copied.words.data_ptr() != packed.words.data_ptr()
    assert torch.equal(copied.unpack(), packed.unpack())


@pytest.mark.parametrize("place", [-(2**31), -1, 64 * 64, 2**31 - 1])
def test_a_place_outside_the_matrix_writes_nothing_outside_the_rows(place: int) -> None:
    """A file may have been damaged since it was opened, and a device would end its context."""
    matrix = trained(64, 64)
    matrix[40, 3] = 1e30
    packed = pack_matrix(matrix)
    packed.escapes.fill_(place)
    memory = torch.zeros(96, 64, dtype=torch.bfloat16)
    packed.unpack_rows(32, 64, memory[32:64])
    assert not memory[:32].any() and not memory[64:].any()


def test_the_share_of_escapes_is_that_of_the_best_base() -> None:
    bits = trained(256, 256).view(torch.uint16).numpy()
    packed = pack_matrix(trained(256, 256))
    assert escape_share(bits) == len(packed.escapes) / bits.size < 0.001
    assert escape_share(bits[:0]) == escape_share(bits[:1] * 0) == 0.0
