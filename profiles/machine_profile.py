"""What one machine can do, as measured: memory, pinned memory, link and disk of one device with one driver.

A profile cannot hold nonsense: every field is checked when the object is made, whether it was measured or read from a
file. None means "not measured". Knows no file and no torch; `profile_store` reads and writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from profiles.errors import ProfileError, quote
from profiles.field_checks import (
    check_ascending,
    check_bytes,
    check_count,
    check_day,
    check_entries,
    check_rate,
    check_seconds,
    check_text,
)
from profiles.profile_records import from_record, to_record

SCHEMA_VERSION = 2
"""Raised whenever a field is added, dropped or changes its meaning."""


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


_WITHOUT_BUDGET = {PinBudgetSource.NOT_MEASURED, PinBudgetSource.NOT_LIMITED}


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Which device with which driver: what a figure is true of."""

    device_type: str
    """torch's name for its kind, such as "cuda", "xpu" or "cpu"."""
    name: str
    """The maker's name for the model."""
    driver_version: str
    """As the driver calls itself; empty where there is no driver, as for a processor."""

    def __post_init__(self) -> None:
        check_text("device.device_type", self.device_type)
        check_text("device.name", self.name)
        check_text("device.driver_version", self.driver_version, can_be_empty=True)

    def __str__(self) -> str:
        driver = f" with driver {self.driver_version}" if self.driver_version else ""
        return f"{self.name} ({self.device_type}){driver}"


@dataclass(frozen=True, slots=True)
class TransferSample:
    """One size of a copy over the link, or of a read from the disk."""

    num_bytes: int
    """Bytes of each transfer."""
    seconds: float
    """Median."""

    def __post_init__(self) -> None:
        check_count("num_bytes of a transfer", self.num_bytes, minimum=1)
        check_seconds("seconds of a transfer", self.seconds)


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Facts about one machine and one of its devices. Raises ProfileError, which names the field, for nonsense."""

    device: DeviceIdentity
    """What was measured."""
    device_memory_bytes: int
    """All of the device's memory."""
    host_memory_bytes: int
    """All of the machine's memory, as the operating system counts it."""
    pin_budget_bytes: int | None
    """How much host memory may be pinned in all; None where no figure was looked for, see pin_budget_source."""
    pin_budget_source: PinBudgetSource
    """How pin_budget_bytes was found."""
    measured_at: date
    """The day of the latest measurement."""
    link_bytes_per_second: float | None = None
    """From pinned host memory to the device; None until measured."""
    link_latency_seconds: float | None = None
    """Fixed cost of every copy over the link; None until measured."""
    disk_bytes_per_second: float | None = None
    """Reading a model's files past the page cache; None until measured."""
    disk_latency_seconds: float | None = None
    """Fixed cost of every read past the page cache; None until measured."""
    link_samples: tuple[TransferSample, ...] = ()
    """The copies that the link's figures come from, by ascending bytes."""
    disk_samples: tuple[TransferSample, ...] = ()
    """The reads that the disk's figures come from, by ascending bytes."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, DeviceIdentity):
            raise ProfileError(f"device is {quote(self.device)}; expected a type, a name and a driver version")
        check_bytes("device_memory_bytes", self.device_memory_bytes)
        check_bytes("host_memory_bytes", self.host_memory_bytes)
        self._check_pin_budget()
        check_day("measured_at", self.measured_at)
        check_rate("link_bytes_per_second", self.link_bytes_per_second, can_be_zero=False)
        check_rate("link_latency_seconds", self.link_latency_seconds, can_be_zero=True)
        check_rate("disk_bytes_per_second", self.disk_bytes_per_second, can_be_zero=False)
        check_rate("disk_latency_seconds", self.disk_latency_seconds, can_be_zero=True)
        for name in ("link_samples", "disk_samples"):
            samples = getattr(self, name)
            check_entries(name, samples, TransferSample)
            check_ascending(name, [sample.num_bytes for sample in samples])

    def _check_pin_budget(self) -> None:
        if not isinstance(self.pin_budget_source, PinBudgetSource):
            expected = ", ".join(PinBudgetSource)
            raise ProfileError(f"pin_budget_source is {quote(self.pin_budget_source)}; expected one of {expected}")
        if self.pin_budget_source not in _WITHOUT_BUDGET:
            check_bytes("pin_budget_bytes", self.pin_budget_bytes)
        elif self.pin_budget_bytes is not None:
            raise ProfileError(
                f"pin_budget_bytes is {quote(self.pin_budget_bytes)}, but pin_budget_source is "
                f"{self.pin_budget_source}; expected null"
            )

    def to_record(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        return {"schema_version": SCHEMA_VERSION, **to_record(self)}


def profile_from_record(record: Mapping[str, Any]) -> MachineProfile:
    """The profile that `to_record` wrote.

    Raises:
        StaleProfileError: an older version of this program wrote it.
        ProfileError: it is anything else; the message names what is wrong.
    """
    return from_record(MachineProfile, record, version=SCHEMA_VERSION)
