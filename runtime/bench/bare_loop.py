"""What anybody could write in an hour: read a layer, multiply by its matrices, read the next one.

And what nobody can beat: reading everything and multiplying everything at once, neither waiting for the other. The
yardsticks for whole passes beside the raw link. Reads with the threads, blocks and O_DIRECT of `link_probe`, copies
host layers to an accelerator one by one on a stream of its own, and multiplies one row by every matrix with the same
kernels, on zeros. Shares no streaming code.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.accelerator_engine import DEFAULT_CHUNK_BYTES
from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.rates import measure_raw_link
from offload.formats.weight_format import EXACT, DenseWeight, StoredWeight, UpcastScratch
from offload.layer_streamer import ResidentLayer
from runtime.engine.loading import OpenSession


def streamed_layouts(opened: OpenSession) -> list[LayerLayout]:
    """Layouts of the layers that cross the link in every pass."""
    layouts = opened.plan.target.slabs.layouts
    pairs = zip(layouts, opened.streamer.layers, strict=True)
    return [layout for layout, layer in pairs if not isinstance(layer, ResidentLayer)]


def raw_link_seconds(opened: OpenSession, layouts: Sequence[LayerLayout]) -> float:
    """Seconds that the link alone needs for these layers: an emulated one by its figures, others as a bare loop does.

    The loop copies layers that wait in host memory to an accelerator, and reads the others from their files.
    """
    if isinstance(opened.link, EmulatedLink):
        return sum(opened.link.link.copy_seconds(layout.payload_bytes) for layout in layouts)
    slabs = _host_slabs(opened, layouts)
    if slabs and opened.plan.device.type != "cpu":
        return _copy_seconds(slabs, opened.plan.device)
    ranges = [piece for layout in layouts for piece in layout.ranges]
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).seconds


def _host_slabs(opened: OpenSession, layouts: Sequence[LayerLayout]) -> list[torch.Tensor]:
    """What these layers are copied from, if all of them wait in host memory; else nothing."""
    sources = dict(zip(map(id, opened.plan.target.slabs.layouts), opened.streamer.layers, strict=True))
    wanted = [sources[id(layout)] for layout in layouts]
    slabs = [source.slab for source in wanted if isinstance(source, HostSource)]
    return slabs if len(slabs) == len(wanted) else []


def _copy_seconds(slabs: Sequence[torch.Tensor], device: torch.device) -> float:
    """Seconds of copying them one after another to one place on the device, beside whatever else it does."""
    place = torch.empty(max(map(torch.Tensor.numel, slabs)), dtype=torch.uint8, device=device)
    stream = torch.Stream(device)
    begun = time.perf_counter()
    with stream:
        for slab in slabs:
            for begin in range(0, slab.numel(), DEFAULT_CHUNK_BYTES):  # a driver takes no copy from two registrations
                piece = slab[begin : begin + DEFAULT_CHUNK_BYTES]
                place[begin : begin + piece.numel()].copy_(piece, non_blocking=True)
    stream.synchronize()
    return time.perf_counter() - begun


def bare_pass_seconds(opened: OpenSession) -> float:
    """Seconds of one pass, layer after layer, of reading and multiplying in turn; residents are only multiplied."""
    plan = opened.plan
    streamed = set(map(id, streamed_layouts(opened)))
    products = _LayerProducts(opened)
    seconds = 0.0
    for index, layout in enumerate(plan.target.slabs.layouts):
        if id(layout) in streamed:
            seconds += raw_link_seconds(opened, [layout])
        seconds += products.seconds(index)
    return seconds


def free_overlap_seconds(opened: OpenSession) -> float:
    """Seconds of reading every streamed layer while every layer's products are done, neither waiting for the other.

    Where a disk and the products share cores and memory, no streaming can be faster. An emulated link takes no part of
    either: there it is the longer of the two.
    """
    products, num_layers = _LayerProducts(opened), opened.streamer.num_layers
    streamed = streamed_layouts(opened)
    if isinstance(opened.link, EmulatedLink):
        return max(raw_link_seconds(opened, streamed), sum(map(products.seconds, range(num_layers))))
    with ThreadPoolExecutor(1) as beside:
        begun = time.perf_counter()
        reading = beside.submit(raw_link_seconds, opened, streamed)
        for index in range(num_layers):
            products.seconds(index)
        reading.result()
        return time.perf_counter() - begun


class _LayerProducts:
    """One row times every matrix of a layer, with the model's own kernels, on zeros that lie in memory once."""

    def __init__(self, opened: OpenSession) -> None:
        plan = opened.plan
        self._opened = opened
        self._slab = torch.zeros(max(plan.residency.layer_bytes), dtype=torch.uint8, device=plan.device)
        self._scratch = UpcastScratch(plan.dtype, plan.device)

    def seconds(self, index: int) -> float:
        """Do layer `index`'s products; the seconds that they took."""
        plan = self._opened.plan
        matrices = _matrices(self._opened, index, self._slab)
        begun = time.perf_counter()
        for matrix, num_columns in matrices:
            matrix.linear(torch.ones(1, num_columns, dtype=plan.dtype, device=plan.device), None, self._scratch)
        if plan.device.type != "cpu":
            torch.accelerator.current_stream(plan.device).synchronize()
        return time.perf_counter() - begun


def _matrices(opened: OpenSession, index: int, slab: torch.Tensor) -> list[tuple[StoredWeight, int]]:
    """The layer's matrices as the model would bind them, and the columns of each."""
    target = opened.plan.target
    views, formats = target.slabs.views(index, slab), target.formats[index]
    found: list[tuple[StoredWeight, int]] = []
    for name, shape in target.linears[index].items():
        if name in formats:
            parts = {suffix: views[f"{name}{suffix}"] for suffix in formats[name].part_suffixes}
            found.append((formats[name].bind(parts, EXACT), shape[1]))
        else:
            found.append((DenseWeight(views[name]), shape[1]))
    return found
