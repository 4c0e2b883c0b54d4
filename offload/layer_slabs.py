"""From a layer's slab to its tensors, which are views of it.

A slab in host memory holds the file's bytes as they lie there; one on a device holds the same tensors, each at a
multiple of DEVICE_ALIGNMENT_BYTES (`LayerLayout.moves`).
Reads through a CopyEngine, so that with O_DIRECT nothing is left behind in the page cache.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import CopyEngine, HostSource, PendingCopy
from offload.formats.weight_format import TORCH_DTYPES
from offload.memory import allocate_slab


def slab_views(layout: LayerLayout, slab: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors in `slab` (uint8, at least layout.slab_bytes) as views in their storage dtypes."""
    is_on_host = slab.device.type == "cpu"
    views = {}
    for tensor in layout.tensors:
        dtype = TORCH_DTYPES[tensor.dtype]
        num_bytes = math.prod(tensor.shape) * dtype.itemsize
        offset = tensor.slab_offset if is_on_host else tensor.device_offset
        piece = slab[offset : offset + num_bytes]
        views[tensor.name] = piece.view(dtype).view(tensor.shape)
    return views


def read_slab(layout: LayerLayout, engine: CopyEngine) -> torch.Tensor:
    """Read the layout's bytes into fresh memory, uint8; blocks until they are there. Raises LinkError."""
    slab = allocate_slab(layout.slab_bytes)
    engine.start(layout, slab).wait()
    return slab


def slab_on(device: torch.device, layout: LayerLayout, slab: torch.Tensor) -> torch.Tensor:
    """Return a slab in host memory as it lies on `device`: itself on a processor, else a copy in fresh memory."""
    if device.type == "cpu":
        return slab
    home = torch.empty(layout.slab_bytes, dtype=torch.uint8, device=device)
    copy_slab(layout, slab, home)
    return home


def copy_slab(layout: LayerLayout, slab: torch.Tensor, home: torch.Tensor) -> None:
    """Copy a slab in host memory to `home` on a device, at least layout.slab_bytes; waits until it is there."""
    for piece in HostSource(slab[: layout.slab_bytes], layout.payload_bytes, layout.moves).pieces(layout.slab_bytes):
        origin = slab[piece.slab_offset : piece.slab_offset + piece.num_bytes]
        home[piece.device_offset : piece.device_offset + piece.num_bytes].copy_(origin)


def read_ahead(engine: CopyEngine, targets: Iterable[tuple[LayerLayout, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Read layouts to their slabs in order, and yield each slab when its bytes are there, the next one on its way.

    A slab may come again at the second place after its own: it is written to once the one between was asked for.
    """
    coming: deque[tuple[PendingCopy, torch.Tensor]] = deque()
    for layout, slab in targets:
        coming.append((engine.start(layout, slab), slab))
        if len(coming) == 2:
            yield _arrived(*coming.popleft())
    while coming:
        yield _arrived(*coming.popleft())


def _arrived(copy: PendingCopy, slab: torch.Tensor) -> torch.Tensor:
    copy.wait()
    return slab
