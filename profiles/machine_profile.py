"""What one machine can do, as measured: memory, pinned memory, link and disk of one device with one driver.

The types of the fields bound what a file may hold (see `records`), so that nonsense is neither read nor written. None
means "not measured".
"""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from profiles.records import LARGEST, Count, CountFromZero, Rate, Seconds, Text, check_ascending

Latency = Annotated[float, Meta(ge=0, le=LARGEST)]


class PinBudgetSource(StrEnum):
    """How a pin budget was found, or why there is none."""

    NOT_MEASURED = "not_measured"
    """Nobody asked the driver: pin_budget_bytes is None."""
    NOT_LIMITED = "not_limited"
    """The platform sets no limit of its own, so none was looked for: pin_budget_bytes is None."""
    GRANTED = "granted"
    """The driver granted all that was asked for, so it may grant more."""
    REFUSED = "refused"
    """The driver refused a step: a part of what it granted before."""
    CRASHED = "crashed"
    """The probing process died at a step: a part of what it was granted before."""
    TIMED_OUT = "timed_out"
    """The probing process took too long: a part of what it was granted before."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Which device with which driver: what a figure is true of."""

    device_type: Text
    """torch's name for its kind, such as "cuda", "xpu" or "cpu"."""
    name: Text
    """The maker's name for the model."""
    driver_version: str
    """As the driver calls itself; empty where there is no driver, as for a processor."""

    def __str__(self) -> str:
        driver = f" with driver {self.driver_version}" if self.driver_version else ""
        return f"{self.name} ({self.device_type}){driver}"


@dataclass(frozen=True, slots=True)
class TransferSample:
    """One size of a copy over the link, or of a read from the disk; median."""

    num_bytes: Count
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Facts about one machine and one of its devices."""

    SCHEMA_VERSION: ClassVar[int] = 2
    """Raised whenever a field is added, dropped or changes its meaning."""

    device: DeviceIdentity
    device_memory_bytes: CountFromZero
    host_memory_bytes: CountFromZero
    """All of the machine's memory, as the operating system counts it."""
    pin_budget_bytes: CountFromZero | None
    """How much host memory may be pinned in all; None where no figure was looked for, see pin_budget_source."""
    pin_budget_source: PinBudgetSource
    measured_at: date
    link_bytes_per_second: Rate | None = None
    """From pinned host memory to the device; None until measured."""
    link_latency_seconds: Latency | None = None
    """Fixed cost of every copy over the link; None until measured."""
    disk_bytes_per_second: Rate | None = None
    """Reading a model's files past the page cache; None until measured."""
    disk_latency_seconds: Latency | None = None
    """Fixed cost of every read past the page cache; None until measured."""
    link_samples: tuple[TransferSample, ...] = ()
    """The copies that the link's figures come from, by ascending bytes."""
    disk_samples: tuple[TransferSample, ...] = ()
    """The reads that the disk's figures come from, by ascending bytes."""

    def __post_init__(self) -> None:
        is_limited = self.pin_budget_source not in (PinBudgetSource.NOT_MEASURED, PinBudgetSource.NOT_LIMITED)
        if is_limited != (self.pin_budget_bytes is not None):
            expected = "a whole number" if is_limited else "null"
            raise ValueError(
                f"pin_budget_bytes is {self.pin_budget_bytes}, but pin_budget_source is {self.pin_budget_source}; "
                f"expected {expected}"
            )
        check_ascending("link_samples", [sample.num_bytes for sample in self.link_samples])
        check_ascending("disk_samples", [sample.num_bytes for sample in self.disk_samples])
