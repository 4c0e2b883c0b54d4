"""A profile that exists is a sound one: whatever is wrong with a field is named, in one sentence."""

import json
import math
from datetime import date, datetime
from typing import Any

import pytest

from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import (
    SCHEMA_VERSION,
    DeviceIdentity,
    MachineProfile,
    PinBudgetSource,
    TransferSample,
    profile_from_record,
)
from tests.support.profile_factory import DEVICE, machine_profile

MEASURED = machine_profile(
    link_bytes_per_second=12.5e9,
    link_latency_seconds=1e-5,
    disk_bytes_per_second=2e9,
    disk_latency_seconds=1e-4,
    link_samples=(TransferSample(1 << 20, 1e-4), TransferSample(1 << 26, 5.4e-3)),
    disk_samples=(TransferSample(1 << 26, 0.03),),
)
UNKNOWN = machine_profile(pin_budget_bytes=None, pin_budget_source=PinBudgetSource.NOT_MEASURED)
UNLIMITED = machine_profile(pin_budget_bytes=None, pin_budget_source=PinBudgetSource.NOT_LIMITED)


@pytest.mark.parametrize("profile", [MEASURED, UNKNOWN, UNLIMITED, machine_profile()])
def test_a_profile_survives_json(profile: MachineProfile) -> None:
    assert profile_from_record(json.loads(json.dumps(profile.to_record(), allow_nan=False))) == profile


def test_the_record_is_plain_json_with_units_in_its_names() -> None:
    assert MEASURED.to_record() == {
        "schema_version": 2,
        "device": {"device_type": "cuda", "name": "GeForce RTX 4060 Ti", "driver_version": "560.94"},
        "device_memory_bytes": 16_000_000_000,
        "host_memory_bytes": 64_000_000_000,
        "pin_budget_bytes": 3_000_000_000,
        "pin_budget_source": "refused",
        "measured_at": "2026-01-31",
        "link_bytes_per_second": 12.5e9,
        "link_latency_seconds": 1e-5,
        "disk_bytes_per_second": 2e9,
        "disk_latency_seconds": 1e-4,
        "link_samples": [{"num_bytes": 1 << 20, "seconds": 1e-4}, {"num_bytes": 1 << 26, "seconds": 5.4e-3}],
        "disk_samples": [{"num_bytes": 1 << 26, "seconds": 0.03}],
    }


BYTES_NONSENSE = [-1, True, 1.0, "16", [], 10**400]
RATE_NONSENSE = [-1.0, math.nan, math.inf, -math.inf, "1", True, 10**400, {}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("device_memory_bytes", "host_memory_bytes") for value in [*BYTES_NONSENSE, None]),
        *(("pin_budget_bytes", value) for value in [*BYTES_NONSENSE, None]),
        *(("link_bytes_per_second", value) for value in [*RATE_NONSENSE, 0.0]),
        *(("link_latency_seconds", value) for value in RATE_NONSENSE),
        *(("disk_bytes_per_second", value) for value in [*RATE_NONSENSE, 0]),
        *(("disk_latency_seconds", value) for value in RATE_NONSENSE),
        *((name, value) for name in ("link_samples", "disk_samples") for value in [None, 7, "all", {}]),
        *(("pin_budget_source", value) for value in ["guessed", 3, None, ["refused"]]),
        *(("measured_at", value) for value in ["yesterday", "2026-13-01", 20260131, None, datetime(2026, 1, 31, 12)]),
        *(("device", value) for value in ["a card", None, 7]),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(ProfileError, match=f"^{field} is .*; expected ") as made:
        machine_profile(**{field: value})
    assert len(str(made.value)) < 300
    with pytest.raises(ProfileError, match=f"^{field} is .*; expected "):
        profile_from_record({**MEASURED.to_record(), field: value})


@pytest.mark.parametrize("source", [PinBudgetSource.NOT_MEASURED, PinBudgetSource.NOT_LIMITED])
def test_a_budget_that_nobody_measured_is_refused(source: PinBudgetSource) -> None:
    with pytest.raises(ProfileError, match=r"pin_budget_bytes is 5, but pin_budget_source is not_.*; expected null"):
        machine_profile(pin_budget_bytes=5, pin_budget_source=source)


@pytest.mark.parametrize("version", [0, 3, "2", True, 2.0, None, [2], -1])
def test_an_unknown_schema_version_is_refused_by_name(version: Any) -> None:
    with pytest.raises(ProfileError, match=f"schema_version is .*; this program reads version {SCHEMA_VERSION}"):
        profile_from_record({**MEASURED.to_record(), "schema_version": version})


@pytest.mark.parametrize("name", [*MEASURED.to_record()])
def test_a_missing_field_is_named(name: str) -> None:
    record = MEASURED.to_record()
    del record[name]
    with pytest.raises(ProfileError, match=f"^{name} is "):
        profile_from_record(record)


@pytest.mark.parametrize("name", ["device_type", "name", "driver_version"])
def test_a_device_without_a_name_is_refused(name: str) -> None:
    parts = {"device_type": "cpu", "name": "some processor", "driver_version": ""}
    record = {**MEASURED.to_record(), "device": {key: text for key, text in parts.items() if key != name}}
    with pytest.raises(ProfileError, match=f"device.{name} is missing"):
        profile_from_record(record)
    with pytest.raises(ProfileError, match=f"device.{name} is 7; expected a text"):
        DeviceIdentity(**{**parts, name: 7})  # type: ignore[arg-type]


def test_a_processor_has_no_driver_but_every_device_has_a_name() -> None:
    assert str(DeviceIdentity("cpu", "some processor", "")) == "some processor (cpu)"
    assert str(DEVICE) == "GeForce RTX 4060 Ti (cuda) with driver 560.94"
    with pytest.raises(ProfileError, match=r"device\.name is ''; expected a text"):
        DeviceIdentity("cpu", "", "")


def test_an_unknown_field_is_named_so_that_no_figure_is_dropped_silently() -> None:
    with pytest.raises(ProfileError, match="'link_bytes_per_secnd' is not a field of schema version 2"):
        profile_from_record({**MEASURED.to_record(), "link_bytes_per_secnd": 1.0})
    device = {**MEASURED.to_record()["device"], "index": 0}
    with pytest.raises(ProfileError, match=r"'device.index' is not a field"):
        profile_from_record({**MEASURED.to_record(), "device": device})


def test_a_long_value_does_not_become_a_long_message() -> None:
    with pytest.raises(ProfileError) as caught:
        machine_profile(pin_budget_source="x\n" * 10_000)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_the_day_is_kept_as_a_day() -> None:
    assert profile_from_record(MEASURED.to_record()).measured_at == date(2026, 1, 31)


def test_an_older_version_is_stale_so_that_it_may_be_measured_anew() -> None:
    """Other versions may be those of a newer program, whose figures are not this one's to replace."""
    with pytest.raises(StaleProfileError, match="schema_version is 1; this program reads version 2"):
        profile_from_record({**MEASURED.to_record(), "schema_version": 1})
    with pytest.raises(ProfileError) as caught:
        profile_from_record({**MEASURED.to_record(), "schema_version": 3})
    assert not isinstance(caught.value, StaleProfileError)


SAMPLE = {"num_bytes": 1024, "seconds": 0.5}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([7], r"link_samples\[0\] is 7; expected an object"),
        ([SAMPLE, {"num_bytes": 2048}], r"link_samples\[1\]\.seconds is missing"),
        ([{**SAMPLE, "rate": 1}], r"'link_samples\[0\]\.rate' is not a field"),
        ([{**SAMPLE, "seconds": 0}], r"link_samples\[0\]: seconds of a transfer is 0; expected more"),
        ([{**SAMPLE, "seconds": -1}], r"link_samples\[0\]: seconds of a transfer is -1; expected a number"),
        ([{**SAMPLE, "num_bytes": 0}], r"link_samples\[0\]: num_bytes of a transfer is 0; expected a whole number"),
        ([{**SAMPLE, "num_bytes": 10**400}], r"link_samples\[0\]: num_bytes of a transfer is 1000"),
        ([SAMPLE, SAMPLE], "link_samples is not in ascending order"),
    ],
)
def test_a_sample_that_cannot_be_is_named_by_its_place(samples: list[Any], message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        profile_from_record({**MEASURED.to_record(), "link_samples": samples})


def test_samples_are_objects_of_their_own_kind() -> None:
    with pytest.raises(ProfileError, match=r"^disk_samples\[0\] is \(1, 2.0\); expected an object"):
        machine_profile(disk_samples=((1, 2.0),))
