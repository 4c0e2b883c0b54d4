"""Gives the empty modules of a transformers model their weights, and takes them away again.

Linear layers multiply through a `StoredWeight`, so that storage dtype and compute dtype stay apart; a quantized or
packed matrix comes as several tensors, which its `WeightFormat` puts together; embeddings gather their rows, dense or
of quantized blocks, and widen only those; everything else (norms, biases) is small and widened on binding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from offload.formats.weight_format import (
    DenseWeight,
    GatheredFormat,
    StoredWeight,
    UpcastScratch,
    WeightFormat,
    WidenedWeight,
    multiply_to_float32,
)
from runtime.model.gguf_names import Restore

HOST_DEVICE = torch.device("cpu")
PIECE = "@"
"""In the name of a tensor that is one of several rows of a parameter: stands between that one's name and its place."""
_RESTORED = "restored_vectors"
"""The attribute of a module that says what its stored vectors are changed by, by their names in it."""
Convert = Callable[[StoredWeight], StoredWeight]
"""Makes another weight, in memory of its own, of one that views a slab."""


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """How a model multiplies."""

    dtype: torch.dtype
    """Type of activations, caches and (widened) weights."""
    is_fast: bool = False
    """Whether products may round activations where that is faster, as a draft's may."""
    device: torch.device = HOST_DEVICE


class StoredLinear(nn.Module):
    """A linear layer whose matrix is a `StoredWeight`, bound before use and gone after release."""

    def __init__(self, scratch: UpcastScratch) -> None:
        super().__init__()
        self._scratch = scratch
        self._float32_scratch: UpcastScratch | None = None
        self.stored: StoredWeight | None = None
        self.bias: torch.Tensor | None = None
        self.paired_heads: int | None = None
        """Heads whose outputs are stored in pairs, for a rotation of neighbours; None where they are in halves."""

    @property
    def weight(self) -> torch.Tensor:
        """The dense matrix, for architectures that look at its dtype or device; empty where it is quantized."""
        if isinstance(self.stored, DenseWeight):
            return self.stored.matrix
        assert self.stored is not None, "the layer's weights were released"
        return self._scratch.view(0, 0)

    def give_float32(self, scratch: UpcastScratch) -> None:
        """Return unrounded float32 sums from now on, as a head should: two logits of bfloat16 tie too easily."""
        self._float32_scratch = scratch

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` (..., I) to (..., O)."""
        assert self.stored is not None, "the layer's weights were released"
        if self._float32_scratch is not None:
            return multiply_to_float32(self.stored, inputs, self.bias, self._float32_scratch)
        outputs = self.stored.linear(inputs, self.bias, self._scratch)
        return outputs if self.paired_heads is None else in_halves(outputs, self.paired_heads)


def in_halves(outputs: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Put a head's numbers that are rotated with each other half a head apart: 0 1 2 3 become 0 2 1 3.

    (..., O) to (..., O). So the bytes of a matrix stay as the file has them, wherever they stream from, and only
    activations are moved.
    """
    pairs = outputs.view(*outputs.shape[:-1], num_heads, -1, 2)  # (..., H, D/2, 2)
    return pairs.transpose(-1, -2).reshape(outputs.shape)


def undo_conversion(model: nn.Module, paired_heads: Mapping[str, int], restored: Mapping[str, Restore]) -> None:
    """Let the layers of an empty model take weights that the file has in other words: see `gguf_names`.

    By full name: of linear layers the heads whose outputs are in pairs, of vectors what changes them back.
    """
    for name, num_heads in paired_heads.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, StoredLinear), f"{name} is no linear layer"
        linear.paired_heads = num_heads
    for name, restore in restored.items():
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner).__dict__.setdefault(_RESTORED, {})[attribute] = restore


def replace_linears(module: nn.Module, scratch: UpcastScratch) -> None:
    """Put a `StoredLinear` in the place of every plain nn.Linear below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, StoredLinear(scratch))


def part_names(formats: Mapping[str, WeightFormat]) -> set[str]:
    """Return the names of tensors that are parts of a matrix that has another name."""
    return {f"{name}{suffix}" for name, found in formats.items() for suffix in found.part_suffixes if suffix}


class ModuleBinder:
    """Binds named tensors into one module; `unbind` makes any later use an error."""

    def __init__(
        self,
        module: nn.Module,
        compute: ComputePlan,
        *,
        formats: Mapping[str, WeightFormat] | None = None,
        convert: Convert | None = None,
    ) -> None:
        """`formats` of the quantized and packed matrices by name; what `convert` makes outlives the slab it came from.

        With `convert`, which brings the matrices to the device, everything else is brought there too.
        """
        self._module = module
        self._compute = compute
        self._formats = dict(formats or {})
        self._convert = convert
        self._linears = {
            f"{name}.weight": child for name, child in module.named_modules() if isinstance(child, StoredLinear)
        }
        self.part_names: set[str] = set()
        """Tensors that are parts of a matrix that has another name."""
        self.learn(self._formats)

    def learn(self, formats: Mapping[str, WeightFormat]) -> None:
        """Take the formats of matrices that are not as the files have them."""
        self._formats.update(formats)
        self.part_names.update(part_names(formats))

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """The matrices that are bound, by name."""
        return {name: linear.stored for name, linear in self._linears.items() if linear.stored is not None}

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make `tensors` (by the module's own parameter names, in the storage dtype) the module's weights.

        What is stored in pieces, see PIECE, is put together on the way.
        """
        pieces: dict[str, dict[int, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            whole, is_piece, place = name.partition(PIECE)
            linear = self._linears.get(name)
            if is_piece:
                pieces.setdefault(whole, {})[int(place)] = tensor
            elif linear is not None:
                stored = self._stored(name, tensors)
                linear.stored = stored if self._convert is None else self._convert(stored)
            elif name not in self.part_names:
                self._bind_small(name, tensor)
        for whole, found in pieces.items():
            self._bind_small(whole, torch.cat([found[place] for place in sorted(found)]))

    def _stored(self, name: str, tensors: Mapping[str, torch.Tensor]) -> StoredWeight:
        found = self._formats.get(name)
        if found is None:
            return DenseWeight(tensors[name], self._compute.is_fast)
        parts = {suffix: tensors[f"{name}{suffix}"] for suffix in found.part_suffixes}
        return found.bind(parts, is_fast=self._compute.is_fast)

    def _bind_small(self, name: str, tensor: torch.Tensor) -> None:
        owner_name, _, attribute = name.rpartition(".")
        owner = self._module.get_submodule(owner_name)
        device = tensor.device if self._convert is None else self._compute.device
        restore: Restore | None = owner.__dict__.get(_RESTORED, {}).get(attribute)
        if restore is not None:
            tensor = restore(tensor.to(torch.float32))
        widened = tensor.to(device, self._compute.dtype, copy=self._convert is not None)
        if isinstance(owner, StoredLinear):
            owner.bias = widened
        elif attribute in owner._buffers:
            owner._buffers[attribute] = widened
        else:
            owner._parameters[attribute] = nn.Parameter(widened, requires_grad=False)

    def unbind(self) -> None:
        """Forget the matrices, so that the slab behind them may be overwritten."""
        for linear in self._linears.values():
            linear.stored = None


Table: TypeAlias = torch.Tensor | WidenedWeight
"""The rows (V, E) that tokens are looked up in: a dense matrix, or a weight of a GatheredFormat."""


class _Rows:
    """Gathers rows of a table, in the dtype that they are kept in: as stored, or widened already."""

    def __init__(self, table: Table, compute_dtype: torch.dtype) -> None:
        self._table = table
        self.width = table.shape[1] if isinstance(table, torch.Tensor) else table.format.shape[1]
        self.dtype = table.dtype if isinstance(table, torch.Tensor) else compute_dtype

    def gather(self, ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows of `ids` (T,), (T, E), in the memory of `out` if that is given."""
        table = self._table
        if isinstance(table, torch.Tensor):
            return table[ids] if out is None else torch.index_select(table, 0, ids, out=out)
        assert isinstance(table.format, GatheredFormat)
        rows = torch.empty(len(ids), self.width, dtype=self.dtype, device=ids.device) if out is None else out
        table.format.gather(table.parts, ids, rows)
        return rows


def bind_embedding(module: nn.Embedding, table: Table, compute_dtype: torch.dtype) -> None:
    """Let an nn.Embedding (or a subclass that scales) read its rows from `table`.

    Before each forward the rows asked for are gathered and widened, and the ids renumbered: the architecture's own
    forward then runs in the compute dtype without a widened copy of the table.
    """
    rows = _Rows(table, compute_dtype)
    _replace_table(module, lambda ids: rows.gather(ids.reshape(-1)).to(compute_dtype))


class HostEmbedding:
    """The input embeddings in host memory: before a pass its rows are gathered there and cross in one small copy.

    A pass needs a few hundred rows of a table that takes as much of a device as several layers.
    """

    def __init__(self, module: nn.Embedding, table: Table, compute: ComputePlan) -> None:
        """Let `module` (or a subclass that scales) read from `table`, which lies in host memory."""
        self._table = _Rows(table, compute.dtype)
        self._compute = compute
        self._is_pinnable = True
        self._no_rows = torch.empty(0, self._table.width, dtype=self._table.dtype)
        self._rows = self._no_rows
        _replace_table(module, self._present)

    def gather(self, token_ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the rows (T, E) of the tokens in the table's dtype, in pinned memory unless a driver refuses it."""
        return self._table.gather(torch.from_numpy(token_ids), out=self._empty_rows(len(token_ids)))

    def device_rows(self, num_tokens: int) -> torch.Tensor:
        """Return memory on the device for the rows of so many tokens, (T, E) of zeros."""
        size = (num_tokens, self._table.width)
        return torch.zeros(size, dtype=self._table.dtype, device=self._compute.device)

    def show(self, rows: torch.Tensor) -> None:
        """Let the next forward find `rows` (T, E), on the device, where it looks up T tokens; they are gone then."""
        self._rows = rows

    def bring(self, token_ids: npt.NDArray[np.int64]) -> None:
        """Gather the rows of a pass and show them; nothing waits for their copy but the pass."""
        self.show(self.gather(token_ids).to(self._compute.device, non_blocking=True))

    def _present(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.numel() == len(self._rows), (
            f"{ids.numel()} tokens are looked up, {len(self._rows)} rows were brought"
        )
        rows, self._rows = self._rows, self._no_rows  # an empty view of the rows would keep their memory
        return rows.to(self._compute.dtype)

    def _empty_rows(self, num_tokens: int) -> torch.Tensor:
        shape, dtype = (num_tokens, self._table.width), self._table.dtype
        if self._is_pinnable:
            try:
                return torch.empty(shape, dtype=dtype, pin_memory=True)  # torch reuses it once its copy is done
            except RuntimeError:  # the driver pins no more: these copies then make the host wait
                self._is_pinnable = False
        return torch.empty(shape, dtype=dtype)


def _replace_table(module: nn.Embedding, rows_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Give the module, before each forward, the rows of the ids that it is asked for, and renumber those."""

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *rest = args
        module._parameters["weight"] = nn.Parameter(rows_of(ids), requires_grad=False)
        return torch.arange(ids.numel(), device=ids.device).view(ids.shape), *rest

    def drop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        rows = module._parameters["weight"]
        assert rows is not None
        module._parameters["weight"] = nn.Parameter(rows.new_empty(0, rows.shape[1]), requires_grad=False)

    module.padding_idx = None  # the renumbered ids know no padding row
    module.register_forward_pre_hook(gather)
    module.register_forward_hook(drop)
