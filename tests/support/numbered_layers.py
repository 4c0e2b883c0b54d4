"""Layers that tell themselves apart, and a pass over them that looks at every one."""

from collections.abc import Callable, Sequence

import torch

from offload.copying.copy_engine import HostSource
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from offload.pass_statistics import PassStatistics

SLAB_BYTES = 64


def numbered_slab(layer_index: int) -> torch.Tensor:
    return torch.full((SLAB_BYTES,), layer_index + 1, dtype=torch.uint8)


def make_layers(is_resident: Sequence[bool]) -> list[StreamedLayer]:
    """Layer i is full of the byte i + 1, and carries i + 1 weight bytes."""
    return [
        ResidentLayer(numbered_slab(index)) if resident else HostSource(numbered_slab(index), payload_bytes=index + 1)
        for index, resident in enumerate(is_resident)
    ]


def check_slab(slab: torch.Tensor, layer_index: int) -> None:
    assert torch.equal(slab[:SLAB_BYTES], numbered_slab(layer_index)), f"layer {layer_index} was overwritten"


def run_pass(streamer: LayerStreamer, *, use: Callable[[int], None] = lambda index: None) -> PassStatistics:
    streamer.begin_pass()
    for index in range(streamer.num_layers):
        slab = streamer.acquire(index)
        check_slab(slab, index)
        use(index)
        check_slab(slab, index)
        streamer.release(index)
    return streamer.end_pass()
