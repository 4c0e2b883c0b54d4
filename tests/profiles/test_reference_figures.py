"""A reference holds what can be, and names the field that cannot."""

from dataclasses import replace
from typing import Any

import pytest

from profiles.errors import ProfileError
from profiles.reference_figures import (
    Figure,
    PcieSlot,
    PublishedResult,
    ReferenceAcceptance,
    ReferenceMachine,
    ReferencePair,
    VerifyCost,
)

MACHINE = ReferenceMachine(
    key="card",
    name="Card",
    device_memory_bytes=Figure(24 << 30, "its box", False),
    memory_bytes_per_second=Figure(1e12, "its box", False),
    flops_per_second=Figure(1e14, "its box", False),
    pcie=PcieSlot(4, 16, "its box"),
    link_bytes_per_second=Figure(25e9, "a test", True),
)
PAIR = ReferencePair(
    key="pair",
    name="Pair",
    target_shape="big",
    acceptance=(
        ReferenceAcceptance((0.8, 0.1), "a test", True, temperature=0.0),
        ReferenceAcceptance((0.7, 0.1), "a test", True, temperature=1.0),
    ),
    verify_seconds=(VerifyCost(1, Figure(5.5, "a test", True)), VerifyCost(512, Figure(5.6, "a test", True))),
)


@pytest.mark.parametrize(
    ("generation", "lanes", "gigabytes_per_second"),
    [(3, 16, 15.75), (4, 16, 31.5), (4, 8, 15.75), (5, 16, 63.0), (5, 4, 15.75)],
)
def test_a_slot_carries_what_the_tables_of_pcie_say(generation: int, lanes: int, gigabytes_per_second: float) -> None:
    slot = PcieSlot(generation, lanes, "its box")
    assert slot.nominal_bytes_per_second == pytest.approx(gigabytes_per_second * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Figure(0, "x", True), "value is 0"),
        (lambda: Figure(float("nan"), "x", True), "value is nan"),
        (lambda: Figure(1.0, "", True), "source is ''"),
        (lambda: Figure(1.0, "x", 1), "is_measured is 1"),  # type: ignore[arg-type]
        (lambda: PcieSlot(6, 16, "x"), "generation is 6; expected 3, 4 or 5"),
        (lambda: PcieSlot(4, 12, "x"), "lanes is 12; expected"),
        (lambda: PcieSlot(4, True, "x"), "lanes is True; expected"),
        (lambda: PcieSlot([], 16, "x"), r"generation is \[\]; expected"),  # type: ignore[arg-type]
        (lambda: PcieSlot(4, 16, ""), "source is ''"),
        (lambda: ReferenceAcceptance((), "x", True), "by_rank is empty"),
        (lambda: ReferenceAcceptance((0.9, 0.2), "x", True), "by_rank adds up to 1.1"),
        (lambda: ReferenceAcceptance((0.9,), "x", True, temperature=-1.0), "temperature is -1.0"),
        (lambda: VerifyCost(0, Figure(1.0, "x", True)), "num_nodes is 0"),
        (lambda: PublishedResult(system="", workload="x", source="x"), "system is ''"),
        (lambda: PublishedResult(system="x", workload="x", source="x", speedup=-1.0), "speedup is -1.0"),
        (lambda: PublishedResult(system="x", workload="x", source="x", num_levels=0), "num_levels is 0"),
        (lambda: replace(MACHINE, key=""), "key is ''"),
        (lambda: replace(MACHINE, pcie=PcieSlot(3, 16, "x")), "link_bytes_per_second is 2.5e.10; .* PCIe 3.0 x16"),
        (lambda: replace(PAIR, target_shape=""), "target_shape is ''"),
        (lambda: replace(PAIR, acceptance=None), "acceptance is None"),
        (lambda: replace(PAIR, acceptance=PAIR.acceptance[::-1]), "acceptance is not in ascending order"),
        (lambda: replace(PAIR, verify_seconds=PAIR.verify_seconds[::-1]), "verify_seconds is not in ascending order"),
        (
            lambda: replace(PAIR, acceptance=(*PAIR.acceptance, ReferenceAcceptance((0.5,), "x", True))),
            "acceptance has several entries of which one lacks its temperature",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(("temperature", "first"), [(0.0, 0.8), (0.4, 0.8), (0.6, 0.7), (2.0, 0.7)])
def test_the_nearest_temperature_answers(temperature: float, first: float) -> None:
    found = PAIR.acceptance_near(temperature)
    assert found is not None and found.by_rank[0] == first


def test_an_unknown_temperature_answers_for_all_and_nothing_for_none() -> None:
    unknown = ReferenceAcceptance((0.5,), "x", True)
    assert replace(PAIR, acceptance=(unknown,)).acceptance_near(0.6) == unknown
    assert replace(PAIR, acceptance=()).acceptance_near(0.6) is None


def test_passes_are_looked_up_by_their_size() -> None:
    assert PAIR.verify_seconds_by_size == {1: 5.5, 512: 5.6}
