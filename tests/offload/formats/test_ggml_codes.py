import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers.integrations.gguf import dequant

from offload.formats.ggml_codes import BLOCK_TYPES, Workspace

CPU = torch.device("cpu")


def test_types_have_the_names_and_sizes_of_both_other_readers() -> None:
    for name, kind in BLOCK_TYPES.items():
        assert (kind.num_elements, kind.num_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert set(dequant.GGML_NAME.values()) <= BLOCK_TYPES.keys()


def test_every_type_gives_all_its_codes_in_a_byte_and_a_scale_for_each_group() -> None:
    for kind in BLOCK_TYPES.values():
        blocks = torch.randint(0, 256, (6, kind.num_bytes), dtype=torch.uint8)
        work = Workspace(CPU)
        codes = kind.codes(blocks, work)
        assert codes.dtype in (torch.uint8, torch.int8) and codes.numel() == 6 * kind.num_elements
        scales, offsets = kind.scales(blocks, work)
        assert scales.dtype == torch.float32 and 6 * kind.num_elements % scales.numel() == 0
        assert offsets is None or offsets.shape == scales.shape


def test_a_workspace_hands_out_the_same_memory_for_each_piece() -> None:
    work = Workspace(CPU)
    work.clear(1000)
    first, second = work.take(3, 5), work.take(7, dtype=torch.float32)
    first.fill_(1)
    second.fill_(2)
    assert first.tolist() == [[1] * 5] * 3
    assert second.data_ptr() % 64 == first.data_ptr() % 64
    places = first.data_ptr(), second.data_ptr()
    work.clear(800)
    assert (work.take(3, 5).data_ptr(), work.take(7, dtype=torch.float32).data_ptr()) == places


def test_a_workspace_that_is_too_small_takes_other_memory_instead_of_what_is_in_use() -> None:
    work = Workspace(CPU)
    work.clear(64)
    first, second = work.take(64).fill_(1), work.take(64).fill_(2)
    assert first.unique().tolist() == [1] and second.unique().tolist() == [2]


def test_a_copy_is_contiguous() -> None:
    work = Workspace(CPU)
    work.clear(1 << 10)
    source = torch.from_numpy(np.arange(24, dtype=np.int16)).view(4, 6)
    copied = work.copy(source[:, 1:4])
    assert copied.is_contiguous() and torch.equal(copied, source[:, 1:4])
