"""How much host memory may be pinned here, and which layers get it.

Where a platform limits pinning, the driver is probed once and the figure kept in the machine profile. Pinned layers are
fetched by the device itself; the rest, and layers on disk, pass through a few pinned stages that threads fill. This
ring is pinned before any layer, because a driver that has refused once pins nothing more.
"""

import logging
import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain
from operator import itemgetter
from pathlib import Path

import psutil
import torch

from offload.device import device_memory, identify_device
from offload.errors import LinkError
from offload.pinning.pin_probe import PinBudget, probe_pin_budget
from offload.residency_plan import ResidencyPlan, Tier, choose_evenly
from offload.stage_ring import StageRing, plan_stages
from offload.units import format_bytes, round_up_to_page
from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource
from profiles.profile_store import load_machine_profile, save_profile

logger = logging.getLogger(__name__)

_PAGEABLE_SLOWDOWN = 4.0
"""A layer from pageable memory against a pinned one: 3 to 8 GB/s were seen on links of 12 to 25."""
_DISK_SLOWDOWN = 8.0
_HANDOVER_BYTES = 5_000_000
"""What the link could carry while a piece is handed from stage to stage: 0.2 ms of 25 GB/s."""

# Firmware and kernel updates move the total by a few per cent; another module moves it by more.
_SAME_MEMORY_WITHIN = 0.05


def detect_platform() -> str:
    """Return the system's name; `WSL2` for Linux within it, containers included, where the kernel is Microsoft's.

    Linux: the driver pins as much as there is memory: neither RLIMIT_MEMLOCK nor a fixed cap binds it, and a control
    group charges pinned pages like any others. Everywhere else it is asked.
    Windows: 0.5 to 4 GB beside a loaded model. GenerelSchwerz/llama.cpp #84: a bare process pinned 28 GB of 64, a
    loaded server 2 to 4 GB in all; ashalliants/ninfer-3090 #45: with 15.4 of 24 GB in use 8 GB were granted, with
    21.5 GB in use 2.8 GB, and one failure poisoned every later call.
    WSL2: FreeToken #233: 0.75 to 1.0 GiB in all of 62.8 GiB; microsoft/WSL #14078: 500 MB in Docker.
    """
    system = platform.system()
    return "WSL2" if system == "Linux" and "microsoft" in platform.release().lower() else system


def find_pin_budget(device: torch.device, state_folder: Path | None, *, wanted_bytes: int = 0) -> PinBudget:
    """Return what may be pinned for an accelerator, remembered in `state_folder` (None: nowhere) or else probed now.

    Where the platform sets no limit, neither store nor driver is asked. A stored budget below `wanted_bytes` that met
    no refusal was cut short by the memory that was free that day, so the driver is probed again. A probe that could not
    even begin leaves nothing pinned: slower, but a session all the same. A store that cannot be written costs only the
    next start's time.

    Raises ProfileError if what is stored is damaged or of a newer schema version; it is left as it is.
    """
    if detect_platform() == "Linux":
        return PinBudget(None, PinBudgetSource.NOT_LIMITED)
    identity, host_memory_bytes = identify_device(device), int(psutil.virtual_memory().total)
    stored = None if state_folder is None else _load(identity, state_folder, host_memory_bytes)
    if stored is not None and stored.pin_budget_bytes is not None:
        is_cut_short = stored.pin_budget_source is PinBudgetSource.GRANTED and stored.pin_budget_bytes < wanted_bytes
        if not is_cut_short:
            return PinBudget(stored.pin_budget_bytes, stored.pin_budget_source)
    try:
        probed = probe_pin_budget(device)
    except LinkError:
        return PinBudget(0, PinBudgetSource.CRASHED)
    if state_folder is not None:
        found = MachineProfile(
            identity, _total_bytes(device), host_memory_bytes, probed.num_bytes, probed.source, date.today()
        )
        if stored is not None:
            found = replace(
                stored, pin_budget_bytes=probed.num_bytes, pin_budget_source=probed.source, measured_at=date.today()
            )
        try:
            save_profile(state_folder, found)
        except ProfileError as error:
            logger.warning("the pinned memory budget will be probed again next time: %s", error)
    return probed


def _load(device: DeviceIdentity, folder: Path, host_memory_bytes: int) -> MachineProfile | None:
    """Return what is stored, if it is still true of this machine."""
    try:
        stored = load_machine_profile(folder, device)
    except StaleProfileError as error:
        logger.info("measuring anew: %s", error)
        return None
    if stored is None:
        return None
    if abs(stored.host_memory_bytes - host_memory_bytes) > _SAME_MEMORY_WITHIN * host_memory_bytes:
        logger.info("measuring anew: the machine had %d bytes of memory", stored.host_memory_bytes)
        return None
    return stored


def _total_bytes(device: torch.device) -> int:
    memory = device_memory(device)
    return 0 if memory is None else memory.total_bytes


@dataclass(frozen=True, slots=True)
class PinningPlan:
    """Which host slabs to pin, and the ring for everything else."""

    pinned_slabs: Collection[int]
    """Places among the host layers."""
    ring: StageRing
    """What the others pass through."""
    budget_bytes: int | None
    """What may be pinned in all; None for no limit."""


def describe_pinning(
    slab_sizes: Sequence[int],
    pinned_slabs: Collection[int],
    *,
    ring: StageRing,
    num_disk_layers: int,
    refused: str | None = None,
) -> str:
    """Say how host and disk layers reach the device and why, without a full stop.

    `pinned_slabs` are places in slab_sizes; `ring` has no stages where none is pinned; `refused` is the pinner's.
    """
    num_slabs, num_pinned = len(slab_sizes), len(pinned_slabs)
    num_pageable = num_slabs - num_pinned
    way = "through pageable memory, which the device cannot fetch from by itself"
    if ring.num_stages:
        stages = f"{ring.num_stages} x {format_bytes(ring.stage_bytes)}"
        way = f"through a pinned ring of {stages} filled by copy threads"
    whole, pinned = format_bytes(sum(slab_sizes)), format_bytes(sum(slab_sizes[place] for place in pinned_slabs))
    parts = []
    if num_pageable:
        rest = f"the other {num_pageable}" if num_pinned else "all of them"
        cause = refused or "the driver grants no more"
        parts.append(f"{num_pinned} of {num_slabs} host layers ({pinned} of {whole}) are pinned, {cause}")
        parts.append(f"{rest} {'goes' if num_pageable == 1 else 'go'} {way}")
    elif num_slabs:
        which = "the only host layer" if num_slabs == 1 else f"all {num_slabs} host layers"
        parts.append(f"{which} ({whole}) {'is' if num_slabs == 1 else 'are'} pinned")
    if num_disk_layers:
        layers = "disk layer goes" if num_disk_layers == 1 else "disk layers go"
        parts.append(f"{num_disk_layers} {layers} {'the same way' if num_pageable else way}")
    return "; ".join(parts) or "no layer streams, so nothing has to be pinned"


def plan_pinning(
    slab_sizes: Sequence[int], budget_bytes: int | None, *, disk_slab_sizes: Sequence[int] = ()
) -> PinningPlan:
    """Pin every host slab if the budget holds them; else a ring first, then as many evenly spread slabs as fit beside.

    `slab_sizes`: the host layers', in layer order; `disk_slab_sizes`: those of the layers on disk, which need a ring
    anyway. `budget_bytes`: None for no limit.
    """
    sizes = tuple(round_up_to_page(size) for size in slab_sizes)
    disk_sizes = tuple(round_up_to_page(size) for size in disk_slab_sizes)
    pinned: Collection[int] = range(len(sizes))
    ring = plan_stages(max(disk_sizes, default=0), budget_bytes)
    if budget_bytes is not None and sum(sizes) + ring.num_bytes > budget_bytes:
        ring = plan_stages(max(sizes + disk_sizes), budget_bytes)
        left_bytes = budget_bytes - ring.num_bytes
        pinned = choose_evenly(sizes, lambda places: sum(sizes[place] for place in places), left_bytes) or ()
    return PinningPlan(pinned, ring, budget_bytes)


def plan_pinned_layers(
    device: torch.device, choices: Iterable[tuple[ResidencyPlan, int]], *, state_folder: Path | None
) -> tuple[int, PinningPlan]:
    """Decide which host layers to pin for `device`, and return the place of the residency that is best with it.

    `choices` are residencies, and what the session holds on the device with each, the most residents first: on Windows
    that counts against the same limit, so that a resident less may buy the ring that all the others pass through. Only
    as many are looked at as that takes. A stored budget that cannot be used costs a probe at every start, not the
    session.
    """
    choices = iter(choices)
    residency, device_bytes = next(choices)
    try:
        found = find_pin_budget(device, state_folder, wanted_bytes=residency.host_bytes)
    except ProfileError as error:
        logger.warning("the pinned memory budget is probed at every start: %s", error)
        found = find_pin_budget(device, None)
    if detect_platform() != "Windows":
        return 0, _pinning_of(residency, found.num_bytes)
    considered: list[tuple[float, int, PinningPlan]] = []
    for each, held_bytes in chain([(residency, device_bytes)], choices):
        left = max(0, _total_bytes(device) - held_bytes)  # both together stay at about the device's capacity
        plan = _pinning_of(each, left if found.num_bytes is None else min(found.num_bytes, left))
        considered.append((pass_cost(each, plan), len(considered), plan))
        host = _sizes_in(each, Tier.HOST)
        if len(plan.pinned_slabs) == len(host) or plan.ring == plan_stages(max(host)):
            break
    _, best, plan = min(considered, key=itemgetter(0))
    return best, plan


def _pinning_of(residency: ResidencyPlan, budget_bytes: int | None) -> PinningPlan:
    host, disk = (_sizes_in(residency, tier) for tier in (Tier.HOST, Tier.DISK))
    layers_budget = budget_bytes
    if budget_bytes is not None and has_room_for_rows(budget_bytes, residency):
        layers_budget = budget_bytes - residency.travelling_bytes
    return replace(plan_pinning(host, layers_budget, disk_slab_sizes=disk), budget_bytes=budget_bytes)


def _sizes_in(residency: ResidencyPlan, wanted: Tier) -> list[int]:
    return [size for size, tier in zip(residency.layer_bytes, residency.tiers, strict=True) if tier is wanted]


def pass_cost(residency: ResidencyPlan, pinning: PinningPlan) -> float:
    """Return what a pass's copies cost, in the bytes that the link would carry from pinned memory in the same time."""
    host, ring = _sizes_in(residency, Tier.HOST), pinning.ring
    pinned = sum(host[place] for place in pinning.pinned_slabs)
    slowdown = 1 + _HANDOVER_BYTES / ring.stage_bytes if ring.num_stages else _PAGEABLE_SLOWDOWN
    return pinned + slowdown * (sum(host) - pinned) + _DISK_SLOWDOWN * sum(_sizes_in(residency, Tier.DISK))


def has_room_for_rows(budget_bytes: int, residency: ResidencyPlan) -> bool:
    """Return whether keys and values that travel are pinned too: they come after a ring, and take half at most."""
    return 2 * residency.travelling_bytes <= budget_bytes
