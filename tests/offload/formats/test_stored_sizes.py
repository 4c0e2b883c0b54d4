import bitsandbytes.functional
import pytest
import torch

from offload.formats.int8 import Int8RowsWeight
from offload.formats.stored_sizes import (
    ACCELERATOR_CHUNK_ELEMENTS,
    CHUNK_ELEMENTS,
    TILE_ROWS,
    chunk_rows,
    int8_rows_bytes,
    nf4_bytes,
    scratch_elements,
)

SHAPES = [(1, 64), (5, 7), (64, 64), (129, 130), (300, 1000), (257, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_double", [False, True])
def test_nf4_is_what_bitsandbytes_stores(shape, is_double):
    """The oracle is bitsandbytes itself, as it would write the matrix into a safetensors file."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=is_double)
    stored = state.as_dict(packed=True)
    json_state = stored.pop("quant_state.bitsandbytes__nf4")
    tensors = [packed, *stored.values()]
    assert nf4_bytes(shape, is_double=is_double) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert json_state.numel() < 256


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_rows_are_what_the_weight_holds(shape):
    weight = Int8RowsWeight.quantize(torch.ones(shape))
    assert int8_rows_bytes(shape) == weight.rows.nbytes + weight.absmax.nbytes


def test_double_quantization_saves_three_bytes_of_four_per_block():
    shape = (8192, 8192)
    blocks = 8192 * 8192 // 64
    assert nf4_bytes(shape, is_double=False) - nf4_bytes(shape) == 3 * blocks - 4 * blocks // 256 - 1024


LAYER_OF_70B = ((8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672))


def test_an_accelerator_widens_matrices_in_few_equal_chunks_of_whole_tiles() -> None:
    counts = []
    for shape in LAYER_OF_70B:
        rows = chunk_rows(shape, most_elements=ACCELERATOR_CHUNK_ELEMENTS, row_multiple=1, is_host=False)
        assert rows * shape[1] <= ACCELERATOR_CHUNK_ELEMENTS or rows >= shape[0]
        if rows < shape[0]:
            assert shape[0] % rows == 0 and rows % TILE_ROWS == 0
        counts.append(-(-shape[0] // rows))
    assert counts == [1, 1, 1, 1, 4, 4, 4]


def test_chunks_hold_whole_blocks_and_no_more_than_there_is_room_for() -> None:
    for num_rows, num_columns, row_multiple, most in ((5000, 96, 2, 100_000), (777, 130, 32, 9000), (64, 4096, 1, 100)):
        shape = (num_rows, num_columns)
        for is_host in (False, True):
            rows = chunk_rows(shape, most_elements=most, row_multiple=row_multiple, is_host=is_host)
            assert rows % row_multiple == 0 and rows >= 1
            assert rows * num_columns <= most or rows == row_multiple


def test_a_processor_widens_as_much_as_its_cache_holds_whatever_the_matrices() -> None:
    assert scratch_elements(LAYER_OF_70B, is_host=True) == scratch_elements((), is_host=True) == CHUNK_ELEMENTS
    assert chunk_rows((28672, 8192), most_elements=CHUNK_ELEMENTS, row_multiple=1, is_host=True) == 128


def test_an_accelerators_scratch_is_no_larger_than_the_largest_matrix() -> None:
    assert scratch_elements(LAYER_OF_70B, is_host=False) == ACCELERATOR_CHUNK_ELEMENTS
    assert scratch_elements([(2048, 8192), (512, 2048)], is_host=False) == 2048 * 8192
