"""A profile that is read is a sound one: whatever is wrong with a field is named, in one sentence."""

import json
import math
from datetime import datetime
from typing import Any

import pytest

from profiles.errors import ProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource, TransferSample
from profiles.records import from_record, to_record
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
RECORD = json.loads(json.dumps(to_record(MEASURED), allow_nan=False))


def read(**changes: Any) -> MachineProfile:
    return from_record(MachineProfile, {**RECORD, **changes})


@pytest.mark.parametrize("profile", [MEASURED, UNKNOWN, UNLIMITED, machine_profile()])
def test_a_profile_survives_json(profile: MachineProfile) -> None:
    assert from_record(MachineProfile, json.loads(json.dumps(to_record(profile), allow_nan=False))) == profile


def test_the_record_is_plain_json_with_units_in_its_names() -> None:
    assert RECORD == {
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
    with pytest.raises(ProfileError, match=f"^{field} is .*; expected ") as caught:
        read(**{field: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", [PinBudgetSource.NOT_MEASURED, PinBudgetSource.NOT_LIMITED])
def test_a_budget_that_nobody_measured_is_refused(source: PinBudgetSource) -> None:
    with pytest.raises(ProfileError, match=r"^pin_budget_bytes is 5, but pin_budget_source is not_.*; expected null"):
        read(pin_budget_bytes=5, pin_budget_source=source)


def test_a_source_that_is_none_gets_the_list() -> None:
    choices = "not_measured, not_limited, granted, refused, crashed, timed_out"
    with pytest.raises(ProfileError, match=f"^pin_budget_source is 'guessed'; expected one of {choices}$"):
        read(pin_budget_source="guessed")


@pytest.mark.parametrize("name", RECORD)
def test_a_missing_field_is_named(name: str) -> None:
    """Those with a default too: a figure that was lost is not one that nobody measured."""
    with pytest.raises(ProfileError, match=f"^{name} is "):
        from_record(MachineProfile, {key: value for key, value in RECORD.items() if key != name})


def test_a_processor_has_no_driver_but_every_device_has_a_name() -> None:
    assert str(DeviceIdentity("cpu", "some processor", "")) == "some processor (cpu)"
    assert str(DEVICE) == "GeForce RTX 4060 Ti (cuda) with driver 560.94"
    assert read(device={**RECORD["device"], "driver_version": ""}).device.driver_version == ""
    with pytest.raises(ProfileError, match=r"^device\.name is ''; expected a text"):
        read(device={**RECORD["device"], "name": ""})


def test_an_unknown_field_is_named_so_that_no_figure_is_dropped_silently() -> None:
    with pytest.raises(ProfileError, match="'link_bytes_per_secnd' is not a field of schema version 2"):
        read(link_bytes_per_secnd=1.0)
    with pytest.raises(ProfileError, match=r"'device.index' is not a field"):
        read(device={**RECORD["device"], "index": 0})


def test_a_long_value_does_not_become_a_long_message() -> None:
    with pytest.raises(ProfileError) as caught:
        read(pin_budget_source="x\n" * 10_000)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


SAMPLE = {"num_bytes": 1024, "seconds": 0.5}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([7], r"link_samples\[0\] is 7; expected an object"),
        ([SAMPLE, {"num_bytes": 2048}], r"link_samples\[1\]\.seconds is missing"),
        ([{**SAMPLE, "rate": 1}], r"'link_samples\[0\]\.rate' is not a field"),
        ([{**SAMPLE, "seconds": 0}], r"link_samples\[0\]\.seconds is 0; expected a number, above 0"),
        ([{**SAMPLE, "num_bytes": 0}], r"link_samples\[0\]\.num_bytes is 0; expected a whole number, at least 1"),
        ([SAMPLE, SAMPLE], "link_samples is not in ascending order"),
    ],
)
def test_a_sample_that_cannot_be_is_named_by_its_place(samples: list[Any], message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        read(link_samples=samples)
