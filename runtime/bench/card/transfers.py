"""Probes of what lies around a card's kernels: its surroundings, its copy engines, and pinning."""

import statistics
import time
from itertools import cycle
from typing import Any

import torch

from offload.device import wait_for_device
from offload.pinning.pinned_memory import open_pinner
from offload.units import PAGE_BYTES, format_bytes
from runtime.bench.card.setting import Findings, Setting
from runtime.fit.probes import MachineProbes

_SMALL_BYTES = 64 << 10
_NUM_SMALL_COPIES = 64


def describe_environment(setting: Setting) -> Findings:
    """Return what the card, its driver, its links and the packages are."""
    probes = MachineProbes(setting.device, setting.folder)
    facts = next(each for each in probes.devices() if each.address == str(setting.device))
    links = probes.links()
    properties = getattr(torch.get_device_module(setting.device.type), "get_device_properties", None)
    versions = dict(probes.versions())
    figures = {
        "name": facts.name,
        "free_bytes": facts.free_bytes,
        "total_bytes": facts.total_bytes,
        "driver": probes.driver(),
        "system": probes.system(),
        "properties": "" if properties is None else str(properties(setting.device)),
        **versions,
        "links": [{"source": link.source, "bytes_per_second": link.speed.bytes_per_second} for link in links],
    }
    rates = ", ".join(map(str, links))
    return Findings((f"{facts}; driver {probes.driver()}; torch {versions['torch']}", rates), figures)


def time_small_copies(setting: Setting) -> Findings:
    """Copy a few KB while gigabytes cross the link in chunks of several sizes, on a stream of their own."""
    device, sizes = setting.device, setting.sizes
    source = torch.full((max(sizes.chunk_bytes) * 2,), 1, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    small = torch.ones(min(_SMALL_BYTES, source.numel()), dtype=torch.uint8).pin_memory()
    landing = torch.empty_like(small, device=device)
    stream = torch.Stream(device)

    def small_seconds() -> list[float]:
        found = []
        for _ in range(_NUM_SMALL_COPIES):
            began = time.perf_counter()
            landing.copy_(small, non_blocking=True)
            torch.accelerator.current_stream(device).synchronize()
            found.append(time.perf_counter() - began)
        return sorted(found)

    wait_for_device(device)
    alone = small_seconds()
    rows = []
    for chunk_bytes in sizes.chunk_bytes:
        starts = cycle(range(0, source.numel() - chunk_bytes + 1, chunk_bytes))
        began = time.perf_counter()
        with stream:
            for _ in range(max(1, sizes.stream_bytes // chunk_bytes)):
                start = next(starts)
                target[start : start + chunk_bytes].copy_(source[start : start + chunk_bytes], non_blocking=True)
        queued = small_seconds()
        is_over = stream.query()
        stream.synchronize()
        seconds = time.perf_counter() - began
        rows.append(
            {
                "chunk_bytes": chunk_bytes,
                "bytes_per_second": max(1, sizes.stream_bytes // chunk_bytes) * chunk_bytes / seconds,
                "median_seconds": statistics.median(queued),
                "worst_seconds": queued[-1],
                "stream_ended_first": is_over,
            }
        )
    says = f"{len(small)} bytes alone take {statistics.median(alone) * 1e3:.3f} ms; " + ", ".join(
        f"behind chunks of {format_bytes(row['chunk_bytes'])} {row['median_seconds'] * 1e3:.3f} ms" for row in rows
    )
    return Findings((says,), {"alone_seconds": statistics.median(alone), "chunks": rows})


def time_pinning(setting: Setting) -> Findings:
    """Pin memory and let go of it, as a session does with its layers."""
    rows = []
    for num_bytes in setting.sizes.pinned_bytes:
        pinner = open_pinner(setting.device, None)
        slab = pinner.allocate(num_bytes)
        slab[::PAGE_BYTES] = 1
        began = time.perf_counter()
        pinner.filled(slab)
        pinner.finish()
        pinned = time.perf_counter()
        is_pinned = pinner.is_pinned(slab)
        pinner.close()
        rows.append(
            {
                "num_bytes": num_bytes,
                "is_pinned": is_pinned,
                "refused": pinner.refused,
                "pin_seconds": pinned - began,
                "unpin_seconds": time.perf_counter() - pinned,
            }
        )
    says = tuple(map(_pinning_words, rows))
    return Findings(says, {"slabs": rows})


def _pinning_words(row: dict[str, Any]) -> str:
    size = format_bytes(row["num_bytes"])
    if not row["is_pinned"]:
        return f"{size}: not pinned ({row['refused']})"
    return f"{size}: pinned in {row['pin_seconds']:.2f} s, let go in {row['unpin_seconds']:.2f} s"
