"""What a probe of a card is given (sizes, device, seed, folder), what it gives back, and how it times device work."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offload.device import wait_for_device

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """A decoder layer of the Llama kind."""

    hidden: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of q, k, v, o, gate, up and down."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = ((queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries))
        return (*attention, (self.inner, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner))


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSizes:
    """What all probes take."""

    target: LayerSizes
    draft: LayerSizes
    widths: tuple[int, ...]
    """Rows of a product: a draft step's and a pass's."""
    num_keys: tuple[int, ...]
    """Lengths of the text that attention looks back on."""
    stream_bytes: int
    """Of the copies that others have to get through."""
    chunk_bytes: tuple[int, ...]
    pinned_bytes: tuple[int, ...]
    chunk_elements: tuple[int, ...]
    """Elements of a quantized matrix that are widened at a time."""
    prompt_tokens: int
    """Of a session's long prompt."""
    answer_tokens: int
    session_layers: int
    vocab_size: int
    max_position_embeddings: int
    num_repeats: int


FULL = CardSizes(
    target=LayerSizes(hidden=8192, inner=28672, num_heads=64, num_kv_heads=8),
    draft=LayerSizes(hidden=4096, inner=14336, num_heads=32, num_kv_heads=8),
    widths=(1, 4, 16, 64, 256),
    num_keys=(2048, 8192, 32768),
    stream_bytes=2 << 30,
    chunk_bytes=(2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB),
    pinned_bytes=(1 << 30, 4 << 30),
    chunk_elements=(1 << 23, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28),
    prompt_tokens=4096,
    answer_tokens=64,
    session_layers=4,
    vocab_size=32768,
    max_position_embeddings=16384,
    num_repeats=12,
)
SMALL = CardSizes(
    target=LayerSizes(hidden=64, inner=128, num_heads=4, num_kv_heads=2, head_dim=16),
    draft=LayerSizes(hidden=64, inner=128, num_heads=4, num_kv_heads=2, head_dim=16),
    widths=(1, 4),
    num_keys=(64, 128),
    stream_bytes=1 << 20,
    chunk_bytes=(1 << 16, 1 << 18),
    pinned_bytes=(1 << 20,),
    chunk_elements=(1 << 12, 1 << 13),
    prompt_tokens=96,
    answer_tokens=8,
    session_layers=4,
    vocab_size=512,
    max_position_embeddings=512,
    num_repeats=2,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every probe is told."""

    device: torch.device
    sizes: CardSizes
    seed: int
    folder: Path
    """Where it may write; removed when it has ended."""

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Return small random numbers on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        block = torch.randn(1 << 16, generator=generator).mul_(0.02).to(dtype)
        count = math.prod(shape)
        values = torch.empty(count, dtype=dtype, device=self.device)
        whole = count // block.numel() * block.numel()
        values[:whole].view(-1, block.numel()).copy_(block.to(self.device))
        values[whole:].copy_(block[: count - whole])
        return values.view(shape)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe found."""

    says: tuple[str, ...]
    """For a person, a sentence each."""
    figures: dict[str, Any]
    """Everything that it measured: numbers, texts, and lists of records of them."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Medians over the repeats."""

    launch_seconds: float
    """Until the call returned."""
    seconds: float
    """Until the device had done it."""


def time_work(work: Callable[[], object], device: torch.device, *, num_repeats: int) -> Timed:
    """Run `work` twice to warm up, then `num_repeats` times, each until the device has done it."""
    launches, totals = [], []
    for repeat in range(-2, num_repeats):
        wait_for_device(device)
        began = time.perf_counter()
        work()
        launched = time.perf_counter()
        wait_for_device(device)
        done = time.perf_counter()
        if repeat >= 0:
            launches.append(launched - began)
            totals.append(done - began)
    return Timed(statistics.median(launches), statistics.median(totals))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return by how much `work` raises what is allocated on the device, at its peak."""
    work()  # libraries allocate workspaces when they are first used
    wait_for_device(device)
    before = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    work()
    wait_for_device(device)
    return int(torch.accelerator.max_memory_allocated(device) - before)
