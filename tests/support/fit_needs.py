"""Needs and machines of round numbers, for the tests of what fits."""

from dataclasses import replace

from runtime.fit.machine import Machine, free_bytes_for
from runtime.fit.place import DraftNeed, LayerFormat, MemoryNeed, Placement
from runtime.fit.workspace import Workspace

GB = 10**9


class _Weightless(Workspace):
    """Passes that hold nothing, not even positions: needs are then as round as what is asked for."""

    _token_bytes = property(lambda self: 0)


def round_need(*, draft_gb: float | None = None, context_tokens: int = 4000, file_gb: float = 0) -> MemoryNeed:
    """Ten layers of 4 GB (int8: 2, nf4: 1), 1 GB of embeddings, 1 MB a token of cache, rings of two slots."""
    return MemoryNeed(
        formats=tuple(
            LayerFormat(name, (size * GB,) * 10) for name, size in (("bfloat16", 4), ("int8", 2), ("nf4", 1))
        ),
        others_bytes=GB,
        draft=None if draft_gb is None else DraftNeed("draft model", int(draft_gb * GB), 0),
        cache_bytes_per_token=10**6,
        context_tokens=context_tokens,
        max_nodes=1 if draft_gb is None else 100,
        workspace=_Weightless(hidden_size=0, head_dim=0, inner_size=0, vocab_size=0, item_bytes=0),
        scratch_bytes=0,
        file_bytes=int(file_gb * GB),
    )


def machine(
    *, host: int, device: int | None = None, disk: int | None = None, budget: int | None = None, link: bool = False
) -> Machine:
    """A machine whose budgets for `round_need()`, not its free memory, are exactly `host` and `device` bytes.

    In smaller formats an accelerator's stages are smaller, and the host's budget so much larger (nearly).
    """
    is_pinned = device is not None
    stage_bytes = round_need().stage_bytes if is_pinned else 0
    return Machine(
        host_total_bytes=1 << 50,
        host_free_bytes=free_bytes_for(host, is_pinned=is_pinned) + stage_bytes,
        device_free_bytes=None if device is None else free_bytes_for(device),
        disk_free_bytes=disk,
        device_budget_bytes=budget,
        is_link_emulated=link,
    )


def layers_of(placement: Placement) -> tuple[int, int, int]:
    """How many layers are resident, in host memory, on disk."""
    return placement.num_resident_layers, placement.num_host_layers, placement.num_disk_layers


def with_free_host(found: Machine, more_bytes: int) -> Machine:
    """The machine with more free memory."""
    return replace(found, host_free_bytes=found.host_free_bytes + more_bytes)
