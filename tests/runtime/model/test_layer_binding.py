from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from offload.formats.ggml_blocks import GgmlFormat
from offload.formats.int8 import Int8RowsFormat, Int8RowsWeight
from offload.formats.weight_format import DenseWeight, StoredWeight, UpcastScratch, WidenedWeight
from runtime.model.layer_binding import (
    PIECE,
    ComputePlan,
    HostEmbedding,
    ModuleBinder,
    StoredLinear,
    bind_embedding,
    replace_linears,
)


class Block(nn.Module):
    """A linear layer with bias, one without, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
        self.norm = nn.LayerNorm(4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(inputs))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval().requires_grad_(False)


def to_int8(stored: StoredWeight) -> StoredWeight:
    assert isinstance(stored, DenseWeight)
    return Int8RowsWeight.quantize(stored.matrix)


def bound(block: Block, *, is_int8: bool = False) -> tuple[ModuleBinder, dict[str, torch.Tensor]]:
    tensors = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.to("meta")
    replace_linears(block, UpcastScratch(torch.float32, torch.device("cpu")))
    convert = to_int8 if is_int8 else None
    binder = ModuleBinder(block, ComputePlan(torch.float32), convert=convert)
    binder.bind(tensors)
    return binder, tensors


def test_a_bound_module_computes_what_the_original_did(block: Block) -> None:
    inputs = torch.randn(2, 4)
    expected = block(inputs)
    bound(block)
    torch.testing.assert_close(block(inputs), expected)


def test_what_is_stored_in_pieces_is_put_together_in_their_order(block: Block) -> None:
    """Ten and more of them too, in whatever order the file has them."""
    binder, tensors = bound(block)
    rows = torch.arange(12.0)
    block.norm = nn.LayerNorm(12)
    pieces = {f"norm.weight{PIECE}{place}": rows[place : place + 1] for place in (11, 3, *range(3), *range(4, 11))}
    binder.bind({**tensors, **pieces, "norm.bias": torch.zeros(12)} | {"norm.weight": torch.ones(12)})
    assert block.norm.weight.tolist() == rows.tolist()


def test_an_unbound_module_cannot_compute(block: Block) -> None:
    binder, _ = bound(block)
    binder.unbind()
    with pytest.raises(AssertionError, match="released"):
        block(torch.randn(2, 4))


def test_dense_matrices_are_views_and_no_copies(block: Block) -> None:
    _, tensors = bound(block)
    first = block.inner[0]
    assert isinstance(first, StoredLinear)
    assert isinstance(first.stored, DenseWeight)
    assert first.weight.data_ptr() == tensors["inner.0.weight"].data_ptr()


def test_converted_weights_outlive_the_slab_they_came_from(block: Block) -> None:
    """The substitute draft is made from slots that the next layer overwrites, norms and biases included."""
    inputs = torch.randn(2, 4)
    _, tensors = bound(block, is_int8=True)
    before = block(inputs)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    assert torch.equal(block(inputs), before)


def test_a_quantized_matrix_is_put_together_from_its_tensors(block: Block) -> None:
    """Its scales are no parameter of the module; the bias beside them is."""
    inputs = torch.randn(2, 4)
    tensors = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    quantized = Int8RowsWeight.quantize(tensors["inner.0.weight"])
    block.inner[0].weight.data = quantized.rows * quantized.absmax[:, None] / 127
    expected = block(inputs)
    block.to("meta")
    replace_linears(block, UpcastScratch(torch.float32, torch.device("cpu")))
    formats = {"inner.0.weight": Int8RowsFormat((6, 4))}
    binder = ModuleBinder(block, ComputePlan(torch.float32), formats=formats)
    binder.bind({**tensors, "inner.0.weight": quantized.rows, "inner.0.weight.SCB": quantized.absmax})
    torch.testing.assert_close(block(inputs), expected)
    first = block.inner[0]
    assert isinstance(first, StoredLinear) and isinstance(first.stored, Int8RowsWeight)
    assert first.stored.rows.data_ptr() == quantized.rows.data_ptr()
    assert first.weight.dtype == torch.float32 and first.weight.numel() == 0


def test_subclasses_of_linear_are_left_alone() -> None:
    class Scaled(nn.Linear):
        pass

    module = nn.Sequential(Scaled(2, 2), nn.Linear(2, 2))
    replace_linears(module, UpcastScratch(torch.float32, torch.device("cpu")))
    assert type(module[0]) is Scaled
    assert isinstance(module[1], StoredLinear)


class ScaledEmbedding(nn.Embedding):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * 3


def test_an_embedding_gathers_from_the_stored_table_and_keeps_its_own_forward() -> None:
    table = torch.randn(10, 4).bfloat16()
    module = ScaledEmbedding(10, 4, padding_idx=9, device="meta").requires_grad_(False)
    bind_embedding(module, table, torch.float32)
    ids = torch.tensor([[7, 7, 0]])
    assert torch.equal(module(ids), table[ids].float() * 3)


def block_table() -> tuple[WidenedWeight, torch.Tensor]:
    """A table (10, 32) of Q8_0 blocks, and its numbers."""
    codes = torch.randint(-128, 128, (10, 32), dtype=torch.int8)
    scales = torch.rand(10, 1).half()
    rows = torch.cat((scales.view(torch.uint8), codes.view(torch.uint8)), dim=1)
    return WidenedWeight(GgmlFormat((10, 32), "Q8_0"), {"": rows.reshape(-1)}), scales.float() * codes


def test_an_embedding_gathers_from_quantized_blocks() -> None:
    table, numbers = block_table()
    module = ScaledEmbedding(10, 32, padding_idx=9, device="meta").requires_grad_(False)
    bind_embedding(module, table, torch.float32)
    ids = torch.tensor([[7, 7, 0], [9, 1, 2]])
    assert torch.equal(module(ids), numbers[ids] * 3)


def test_rows_of_quantized_blocks_are_widened_before_they_cross() -> None:
    table, numbers = block_table()
    module = ScaledEmbedding(10, 32, device="meta").requires_grad_(False)
    embedding = HostEmbedding(module, table, ComputePlan(torch.bfloat16))
    assert embedding.device_rows(4).shape == (4, 32) and embedding.device_rows(4).dtype == torch.bfloat16
    embedding.bring(np.array([3, 3, 8]))
    expected = numbers[torch.tensor([[3, 3, 8]])].bfloat16() * 3
    assert torch.equal(module(torch.zeros(1, 3, dtype=torch.int64)), expected)


@pytest.mark.parametrize("can_pin", [True, False])
def test_rows_brought_from_host_memory_are_those_of_the_table(can_pin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that pins no more makes the copies slower, nothing else."""
    wanted = []

    def pinning(*size: Any, pin_memory: bool = False, **settings: Any) -> torch.Tensor:
        wanted.append(pin_memory)
        if pin_memory and not can_pin:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **settings)

    table = torch.randn(10, 4).bfloat16()
    module = ScaledEmbedding(10, 4, padding_idx=9, device="meta").requires_grad_(False)
    embedding = HostEmbedding(module, table, ComputePlan(torch.float32))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", pinning)
    for ids in ([7, 7, 0], [9]):
        embedding.bring(np.array(ids))
        assert torch.equal(module(torch.zeros(1, len(ids), dtype=torch.int64)), table[torch.tensor([ids])].float() * 3)
    assert wanted == ([True, True] if can_pin else [True, False, False])


def test_a_lookup_of_other_tokens_than_were_brought_is_no_silent_mistake() -> None:
    module = nn.Embedding(10, 4, device="meta").requires_grad_(False)
    embedding = HostEmbedding(module, torch.randn(10, 4), ComputePlan(torch.float32))
    embedding.bring(np.array([1, 2]))
    with pytest.raises(AssertionError, match="3 tokens are looked up, 2 rows were brought"):
        module(torch.tensor([[1, 2, 3]]))
