"""A machine profile for tests, with whatever fields a test cares about."""

from dataclasses import replace
from datetime import date
from typing import Any

from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource

DEVICE = DeviceIdentity(device_type="cuda", name="GeForce RTX 4060 Ti", driver_version="560.94")

_PROFILE = MachineProfile(
    device=DEVICE,
    device_memory_bytes=16_000_000_000,
    host_memory_bytes=64_000_000_000,
    pin_budget_bytes=3_000_000_000,
    pin_budget_source=PinBudgetSource.REFUSED,
    measured_at=date(2026, 1, 31),
)


def machine_profile(**fields: Any) -> MachineProfile:
    return replace(_PROFILE, **fields)
