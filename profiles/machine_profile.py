"""What one machine can do, as measured: memory, pinned memory, link and disk of one device with one driver.

A profile cannot hold nonsense: every field is checked when the object is made, whether it was measured or read from a
file. None means "not measured". Knows no file and no torch; `profile_store` reads and writes it.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from enum import StrEnum
from typing import Any

from profiles.errors import ProfileError

SCHEMA_VERSION = 1
"""Raised whenever a field is added, dropped or changes its meaning."""

# A damaged figure must not become an allocation: no machine has an exbibyte of memory or of bandwidth.
_LARGEST = 1 << 60


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
        for name in ("device_type", "name", "driver_version"):
            text = getattr(self, name)
            if not isinstance(text, str) or (not text and name != "driver_version"):
                raise ProfileError(f"device.{name} is {_quote(text)}; expected a text")

    def __str__(self) -> str:
        driver = f" with driver {self.driver_version}" if self.driver_version else ""
        return f"{self.name} ({self.device_type}){driver}"


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

    def __post_init__(self) -> None:
        if not isinstance(self.device, DeviceIdentity):
            raise ProfileError(f"device is {_quote(self.device)}; expected a type, a name and a driver version")
        _check_bytes("device_memory_bytes", self.device_memory_bytes)
        _check_bytes("host_memory_bytes", self.host_memory_bytes)
        if not isinstance(self.pin_budget_source, PinBudgetSource):
            expected = ", ".join(PinBudgetSource)
            raise ProfileError(f"pin_budget_source is {_quote(self.pin_budget_source)}; expected one of {expected}")
        if self.pin_budget_source not in _WITHOUT_BUDGET:
            _check_bytes("pin_budget_bytes", self.pin_budget_bytes)
        elif self.pin_budget_bytes is not None:
            raise ProfileError(
                f"pin_budget_bytes is {_quote(self.pin_budget_bytes)}, but pin_budget_source is "
                f"{self.pin_budget_source}; expected null"
            )
        if type(self.measured_at) is not date:  # a datetime is a date too, but would not be read back as the same
            raise ProfileError(f"measured_at is {_quote(self.measured_at)}; expected a date such as 2026-01-31")
        _check_rate("link_bytes_per_second", self.link_bytes_per_second, allows_zero=False)
        _check_rate("link_latency_seconds", self.link_latency_seconds, allows_zero=True)
        _check_rate("disk_bytes_per_second", self.disk_bytes_per_second, allows_zero=False)

    def to_record(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        record |= {field.name: getattr(self, field.name) for field in fields(self)}
        record["device"] = {field.name: getattr(self.device, field.name) for field in fields(self.device)}
        record["pin_budget_source"] = self.pin_budget_source.value
        record["measured_at"] = self.measured_at.isoformat()
        return record


def profile_from_record(record: Mapping[str, Any]) -> MachineProfile:
    """The profile that `to_record` wrote. Raises ProfileError, which names what is wrong, for anything else."""
    version = record.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ProfileError(f"schema_version is {_quote(version)}; this program reads version {SCHEMA_VERSION}")
    values = {name: value for name, value in record.items() if name != "schema_version"}
    _check_keys(values, MachineProfile, "")
    device = values["device"]
    if not isinstance(device, dict):
        raise ProfileError(f"device is {_quote(device)}; expected an object")
    _check_keys(device, DeviceIdentity, "device.")
    values["device"] = DeviceIdentity(**device)
    values["pin_budget_source"] = _to_source(values["pin_budget_source"])
    values["measured_at"] = _to_date(values["measured_at"])
    return MachineProfile(**values)


def _check_keys(values: Mapping[str, Any], kind: type[MachineProfile] | type[DeviceIdentity], prefix: str) -> None:
    expected = [field.name for field in fields(kind)]
    if missing := [name for name in expected if name not in values]:
        raise ProfileError(f"{prefix}{missing[0]} is missing")
    if unknown := [name for name in values if name not in expected]:
        raise ProfileError(f"{_quote(prefix + unknown[0])} is not a field of schema version {SCHEMA_VERSION}")


def _to_source(value: object) -> object:
    """The named source, or what was found, for the profile itself to refuse."""
    return PinBudgetSource(value) if isinstance(value, str) and value in set(PinBudgetSource) else value


def _to_date(value: object) -> object:
    """The date, or what was found, for the profile itself to refuse."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_bytes(name: str, value: object) -> None:
    if type(value) is not int or not 0 <= value <= _LARGEST:  # True is an int too
        raise ProfileError(f"{name} is {_quote(value)}; expected a whole number of bytes, at least 0")


def _check_rate(name: str, value: object, *, allows_zero: bool) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_rate(value, allows_zero=allows_zero):
        expected = "at least 0" if allows_zero else "above 0"
        raise ProfileError(f"{name} is {_quote(value)}; expected a number {expected}, or null where not measured")


def _is_rate(number: float, *, allows_zero: bool) -> bool:
    return 0 <= number <= _LARGEST and (number > 0 or allows_zero)  # NaN is neither


_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = _quoter.maxlong = 80


def _quote(value: object) -> str:
    """`value` as a short single line, whatever a file put into it."""
    return _quoter.repr(value)
