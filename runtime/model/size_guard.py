"""Stops absurd tensors before memory for them is touched.

A model is built on the meta device, but its buffers (rotary and position tables, causal masks) are real, and their
sizes come from a file. Inside this context an operation that would make a tensor of more elements than allowed
raises instead. Knows nothing of models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profiles.errors import quote


class SizeGuard(TorchDispatchMode):
    """A context in which no operation makes a tensor of more than `max_elements`.

    Raises:
        ValueError: from the operation that would have.
    """

    def __init__(self, max_elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_elements = max_elements

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` unless its arguments announce a tensor that is too large."""
        num_elements = max(_sizes_asked_for(args), _broadcast_elements(args))
        if "arange" in str(func):
            num_elements = max(
                num_elements, *(math.ceil(abs(value)) for value in args if isinstance(value, (int, float)))
            )
        if num_elements > self.max_elements:
            raise ValueError(f"a tensor of {quote(num_elements)} elements; expected at most {self.max_elements}")
        return func(*args, **(kwargs or {}))


def _sizes_asked_for(args: Sequence[Any]) -> int:
    """The largest list of sizes among the arguments, as for zeros, empty, full, expand."""
    lists = [value for value in args if isinstance(value, (list, tuple)) and all(type(item) is int for item in value)]
    return max((abs(math.prod(sizes)) for sizes in lists), default=0)


def _broadcast_elements(args: Sequence[Any]) -> int:
    """Elements of the tensor arguments broadcast together: outer products are where position tables come from."""
    shapes = [value.shape for value in args if isinstance(value, torch.Tensor)]
    rank = max((len(shape) for shape in shapes), default=0)
    return math.prod(max(shape[i] for shape in shapes if -i <= len(shape)) for i in range(-rank, 0)) if shapes else 0
