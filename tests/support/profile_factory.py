"""A machine profile for tests, with whatever fields a test cares about."""

from dataclasses import replace
from datetime import date
from typing import Any

from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource
from profiles.pair_profile import AcceptanceTable, ModelIdentity, PairProfile, PassCost, StepCost, WalkCost

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


PAIR = PairProfile(
    device=DEVICE,
    target=ModelIdentity("big", "aa" * 16, "bfloat16"),
    draft=ModelIdentity("small", "bb" * 16, "int8"),
    compute_dtype="bfloat16",
    measured_at=date(2026, 1, 31),
    draft_steps=(StepCost(1, 0.01), StepCost(8, 0.02)),
    pass_costs=(PassCost(1, 128, 0.1), PassCost(64, 128, 0.2, is_fitted=True)),
    walk_costs=(WalkCost(1, 0.005), WalkCost(64, 0.01)),
    acceptance=(
        AcceptanceTable(0.0, (0.8, 0.1), (0.01, 0.02), (200, 150), ((0.7, 0.1), (0.9, 0.05)), (100, 100), 8),
        AcceptanceTable(1.0, (0.7, 0.1), (0.01, None), (200, 1), ((0.7, 0.1),), (200,), 8),
    ),
)
