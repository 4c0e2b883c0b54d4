"""The context that an empty model is built in: absurd tensors are stopped, and nothing is drawn that no memory holds.

Building a model also initialises it. On the meta device that changes nothing, but every random fill is worked out step
by step in Python: two thirds of the time that building takes. Knows nothing of models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from runtime.model.size_guard import SizeGuard

_FILLS = frozenset(
    (torch.ops.aten.normal_, torch.ops.aten.uniform_, torch.ops.aten.zero_, torch.ops.aten.fill_)
)  # what initialisers end in; each returns the tensor that it fills


class MetaBuild(SizeGuard):  # type: ignore[no-untyped-call]
    """A `SizeGuard` in which filling a meta tensor does nothing; real tensors, such as rotary tables, are filled.

    Raises:
        ValueError: from an operation that would have made too large a tensor.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, unless it fills a tensor without memory or its arguments announce one that is too large."""
        if getattr(func, "overloadpacket", None) in _FILLS and args[0].is_meta:
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)
