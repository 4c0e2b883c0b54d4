import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.gguf import dequant

from offload.formats import ggml_blocks
from offload.formats.draft_weight import draft_converter
from offload.formats.ggml_blocks import GgmlFormat
from offload.formats.ggml_codes import BLOCK_TYPES
from offload.formats.int8 import Int8RowsWeight, PackedInt8Weight
from offload.formats.weight_format import GatheredFormat, UpcastScratch, WidenedFormat, WidenedWeight

CPU = torch.device("cpu")
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4")
"""Types that gguf can write, or that random bytes make plausible numbers of."""


def random_bytes(found: GgmlFormat, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (found.num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def formats(shape: tuple[int, int] = (7, 768)) -> Iterator[GgmlFormat]:
    for name in BLOCK_TYPES:
        yield GgmlFormat(shape, name)


def by_gguf(found: GgmlFormat, data: torch.Tensor) -> torch.Tensor:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = quants.dequantize(data.numpy().reshape(found.shape[0], -1), GGMLQuantizationType[found.name])
    return torch.from_numpy(np.array(rows))


def widened(found: GgmlFormat, data: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.empty(found.shape, dtype=dtype)
    found.widen({"": data}, 0, found.shape[0], out)
    return out


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether numbers are the same, and not numbers in the same places; -0 counts as 0."""
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(7e30), right.nan_to_num(7e30))


def test_every_type_equals_ggufs_own_numbers_to_the_bit() -> None:
    """Of random bytes: scales are everything that float16 holds, infinite and no numbers among them."""
    for found in formats():
        for seed in range(8):
            data = random_bytes(found, seed)
            assert same(widened(found, data), by_gguf(found, data)), found.name


def test_the_types_that_transformers_reads_equal_its_numbers_to_the_bit() -> None:
    for found in formats():
        if (number := GGMLQuantizationType[found.name]) in dequant.GGML_BLOCK:
            data = random_bytes(found)
            assert same(widened(found, data), dequant.dequantize(data, int(number)).view(found.shape)), found.name


def test_blocks_of_one_byte_repeated_are_read_whatever_it_is() -> None:
    """Scales that are zero, denormal, infinite or no number, and every code at its ends."""
    for found in formats((256, 256)):
        data = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, found.row_bytes).reshape(-1)
        assert same(widened(found, data), by_gguf(found, data)), found.name


def test_pieces_end_between_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in formats():
        data = random_bytes(found)
        expected = widened(found, data)
        for num_elements in (1, 256, 1000, 2048):
            monkeypatch.setattr(ggml_blocks, "piece_elements", lambda is_host, count=num_elements: count)
            assert same(widened(found, data), expected), found.name
        monkeypatch.undo()


def test_some_rows_are_those_of_the_whole() -> None:
    for found in formats():
        data = random_bytes(found)
        expected, out = widened(found, data), torch.empty(3, 768)
        found.widen({"": data}, 2, 5, out)
        assert same(out, expected[2:5]), found.name


def test_rows_are_gathered_in_any_order_and_more_than_once() -> None:
    for found in formats():
        data = random_bytes(found)
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.empty(4, 768, dtype=dtype)
            ids = torch.tensor([6, 0, 6, 3])
            found.gather({"": data}, ids, out)
            assert same(out.float(), widened(found, data, dtype)[ids].float()), found.name
        found.gather({"": data}, ids[:0], torch.empty(0, 768))


def test_passes_in_inference_mode_and_loads_outside_of_it_may_follow_each_other() -> None:
    """What is kept from one for the next was memory that only one of them may write to."""
    for found in formats():
        data = random_bytes(found)
        with torch.inference_mode():
            first = widened(found, data)
        second = widened(found, data)
        with torch.inference_mode():
            assert same(first, second) and same(widened(found, data), second), found.name


def test_narrower_types_are_rounded_once() -> None:
    for found in formats():
        data = random_bytes(found)
        for dtype in (torch.bfloat16, torch.float16):
            assert same(widened(found, data, dtype).float(), widened(found, data).to(dtype).float()), found.name


def test_bytes_may_begin_anywhere_in_a_slab() -> None:
    """A slab keeps the phase of the file, and a hostile file any."""
    for found in formats():
        data = random_bytes(found)
        for phase in (1, 2, 3, 4, 16):
            slab = torch.zeros(len(data) + phase, dtype=torch.uint8)
            slab[phase:] = data
            assert same(widened(found, slab[phase:]), widened(found, data)), (found.name, phase)


def written(name: str, shape: tuple[int, int]) -> tuple[WidenedWeight, torch.Tensor]:
    """A weight whose numbers are about one, and they."""
    found = GgmlFormat(shape, name)
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    try:
        data = torch.from_numpy(quants.quantize(matrix, GGMLQuantizationType[found.name]).reshape(-1).copy())
    except NotImplementedError:
        data = random_bytes(found).view(-1, found.type.num_bytes)
        start = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0)
        halves = 2 if name in ("Q2_K", "Q4_K", "Q5_K") else 1
        data[:, start : start + 2 * halves] = torch.full((1, halves), 0.01, dtype=torch.float16).view(torch.uint8)
        data = data.view(-1)
    return found.bind({"": data}), by_gguf(found, data)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_product_equals_that_of_the_widened_matrix(compute: torch.dtype) -> None:
    for name in WRITABLE:
        weight, matrix = written(name, (96, 512))
        inputs, bias = torch.randn(2, 5, 512).to(compute), torch.randn(96).to(compute)
        found = weight.linear(inputs, bias, UpcastScratch(compute, CPU))
        assert found.dtype == compute
        tolerance = 2e-2 if compute == torch.bfloat16 else 1e-5
        torch.testing.assert_close(
            found, F.linear(inputs, matrix.to(compute), bias), rtol=tolerance, atol=20 * tolerance, msg=name
        )


def test_a_matrix_of_many_chunks_is_multiplied_in_the_memory_of_one() -> None:
    weight, matrix = written("Q8_0", (5000, 512))
    inputs, scratch = torch.randn(3, 512), UpcastScratch(torch.float32, CPU)
    torch.testing.assert_close(weight.linear(inputs, None, scratch), F.linear(inputs, matrix), rtol=1e-5, atol=1e-3)
    assert scratch.view(0, 0).untyped_storage().nbytes() == 4 << 20


def test_the_format_says_what_it_is() -> None:
    found = GgmlFormat((6, 512), "Q4_K")
    assert isinstance(found, WidenedFormat) and isinstance(found, GatheredFormat)
    assert (found.name, found.row_bytes, found.num_bytes, found.row_multiple) == ("Q4_K", 288, 1728, 1)
    assert found.part_suffixes == ("",) and not found.is_exact


def test_a_row_that_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of 300 elements.*Q4_K.*256"):
        GgmlFormat((6, 300), "Q4_K")


def test_a_bound_weight_views_its_bytes() -> None:
    weight, matrix = written("Q6_K", (8, 256))
    assert weight.to(CPU).parts[""].data_ptr() == weight.parts[""].data_ptr()
    assert weight.to(CPU, copy=True).parts[""].data_ptr() != weight.parts[""].data_ptr()
    assert torch.equal(weight.widen(torch.float32), matrix)


def test_a_draft_holds_blocks_as_rows_of_int8_or_as_they_are() -> None:
    weight, matrix = written("Q4_K", (64, 256))
    inputs = torch.randn(3, 256)
    kept = draft_converter("stored", torch.float32, CPU)(weight)
    assert isinstance(kept, WidenedWeight)
    assert kept.parts[""].data_ptr() != weight.parts[""].data_ptr()
    held = draft_converter("int8", torch.float32, CPU)(weight)
    assert isinstance(held, Int8RowsWeight | PackedInt8Weight)
    product = held.linear(inputs, None, UpcastScratch(torch.float32, CPU))
    expected = F.linear(inputs, matrix)
    assert (product - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_few_launches_of_a_device_make_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run here by the processor, in whose loops they would only be slower."""
    for found in formats():
        data = random_bytes(found)
        for dtype in (torch.float32, torch.bfloat16):
            expected = widened(found, data, dtype)
            with monkeypatch.context() as patch:
                patch.setattr(ggml_blocks, "_finish_on_host", ggml_blocks._finish_on_device)
                assert same(widened(found, data, dtype).float(), expected.float()), found.name


class KernelCount(TorchDispatchMode):
    """Counts what launches a kernel on a device: every operator that neither views nor allocates."""

    VIEWS = frozenset(
        (
            *("view", "_unsafe_view", "slice", "select", "t", "transpose", "permute", "unsqueeze", "squeeze"),
            *("expand", "split", "unbind", "alias", "detach", "empty", "new_empty"),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] not in self.VIEWS:
            self.names[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_piece_of_8_million_elements_takes_few_kernels_on_a_device() -> None:
    """A layer of 70B is about 102 such pieces."""
    meta = torch.device("meta")
    for found in formats((1024, 8192)):
        data = torch.empty(found.num_bytes, dtype=torch.uint8, device=meta)
        out = torch.empty(1024, 8192, dtype=torch.bfloat16, device=meta)
        found.widen({"": data}, 0, 2, out[:2])  # tables are made once
        with KernelCount() as count:
            found.widen({"": data}, 0, 1024, out)
        most = {"Q8_0": 5, "Q4_0": 9, "Q6_K": 19, "Q4_K": 21}.get(found.name, 45)
        assert count.names.total() <= most, (found.name, count.names)
