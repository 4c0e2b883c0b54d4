"""How much host memory a session may pin for its device, and which host layers get it.

Joins what the driver grants (asked once, remembered), what the platform's rules say and what the layers need. Pins
nothing itself.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from offload.device_identity import identify_device
from offload.device_selection import device_memory
from offload.errors import LinkError
from offload.pinning.pin_budget import PinBudget, budget_beside, detect_platform, remembered_pin_budget, rule_for
from offload.pinning.pin_probe import probe_limit_bytes, probe_pin_budget
from offload.pinning.pinning_plan import PinningPlan, plan_pinning
from offload.residency_plan import ResidencyPlan, Tier
from profiles.errors import ProfileError
from profiles.machine_profile import PinBudgetSource

logger = logging.getLogger(__name__)


def find_pin_budget(device: torch.device, state_folder: Path | None, *, wanted_bytes: int = 0) -> PinBudget:
    """What may be pinned for an accelerator; a probe's answer is kept in `state_folder` (None: nowhere).

    A probe that could not even begin leaves nothing pinned: slower, but a session all the same.

    Raises:
        ProfileError: what is stored is damaged or of a newer schema version.
    """
    memory = device_memory(device)
    with tempfile.TemporaryDirectory(prefix="overstory-") as passing:
        try:
            return remembered_pin_budget(
                identify_device(device),
                Path(passing) if state_folder is None else state_folder,
                probe=lambda: probe_pin_budget(str(device), limit_bytes=probe_limit_bytes()),
                device_memory_bytes=0 if memory is None else memory.total_bytes,
                wanted_bytes=wanted_bytes,
            )
        except LinkError:
            return PinBudget(0, PinBudgetSource.CRASHED)


def plan_pinned_layers(
    device: torch.device, residency: ResidencyPlan, *, device_bytes: int, state_folder: Path | None
) -> tuple[PinningPlan, int | None]:
    """Which host layers of `residency` to pin for `device`, and the budget (None: no limit) that decided it.

    `device_bytes` is what the session will hold on the device: on Windows it counts against the same limit. Stages
    are whole layers here. A stored budget that cannot be used costs a probe at every start, not the session.
    """
    sizes = {tier: _sizes_of(residency, tier) for tier in (Tier.HOST, Tier.DISK)}
    wanted = sum(sizes[Tier.HOST])
    memory = device_memory(device)
    try:
        found = find_pin_budget(device, state_folder, wanted_bytes=wanted)
    except ProfileError as error:
        logger.warning("the pinned memory budget is probed at every start: %s", error)
        found = find_pin_budget(device, None, wanted_bytes=wanted)
    budget = budget_beside(
        found.num_bytes,
        rule_for(detect_platform()),
        device_memory_bytes=0 if memory is None else memory.total_bytes,
        device_bytes_in_use=device_bytes,
    )
    largest = max((*sizes[Tier.HOST], *sizes[Tier.DISK]), default=0)
    plan = plan_pinning(sizes[Tier.HOST], budget, disk_slab_sizes=sizes[Tier.DISK], min_stage_bytes=max(largest, 1))
    return plan, budget


def _sizes_of(residency: ResidencyPlan, wanted: Tier) -> Sequence[int]:
    return [size for size, tier in zip(residency.layer_bytes, residency.tiers, strict=True) if tier is wanted]
