"""The files that come with the program are sound, name the source of every figure, and are found as people spell it."""

import json
import math
import random
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiles import builtin_profiles
from profiles.builtin_profiles import (
    Figure,
    PcieSlot,
    ReferenceAcceptance,
    ReferencePair,
    builtin_machine,
    builtin_machines,
    builtin_pairs,
)
from profiles.errors import ProfileError
from profiles.records import read_value
from tests.support.paths import REFERENCE_TREES, ROOT
from tests.support.published_pairs import published_pair

FOLDER = ROOT / "profiles" / "builtin"


def test_every_promised_machine_is_there() -> None:
    assert list(builtin_machines()) == [
        "l40",
        "rtx-4090",
        "rtx-4080-super",
        "rtx-4070-ti",
        "rtx-3090",
        "rtx-4060-ti-16gb",
        "rtx-5090",
    ]
    assert [machine.device_memory_bytes.value / 2**30 for machine in builtin_machines().values()] == [
        *(46068 / 1024, 24564 / 1024, 16, 12, 24, 16, 32)
    ]


def nominal_bytes_per_second(slot: PcieSlot) -> float:
    """What the wires carry one way, of which no copy gets all: each lane a bit per transfer, 128 of 130 payload."""
    return slot.lanes * {3: 8e9, 4: 16e9, 5: 32e9}[slot.generation] * (128 / 130) / 8


def test_only_two_links_were_measured_and_the_others_follow_from_one_of_them() -> None:
    """What was not measured is 26 GB/s of the 31.5 of the RTX 4090, by lanes and generation, and says so."""
    machines = builtin_machines()
    measured = {key for key, machine in machines.items() if machine.link_bytes_per_second.is_measured}
    assert measured == {"l40", "rtx-4090"}
    assert machines["l40"].link_bytes_per_second.value == 24.9e9
    share = 26e9 / nominal_bytes_per_second(machines["rtx-4090"].pcie)
    for machine in machines.values():
        assert machine.link_bytes_per_second.value < nominal_bytes_per_second(machine.pcie)
        if machine.key != "l40":
            expected = share * nominal_bytes_per_second(machine.pcie)
            assert machine.link_bytes_per_second.value == pytest.approx(expected, rel=1e-9)
        if machine.key not in measured:
            assert "not measured on this card" in machine.link_bytes_per_second.source


def test_what_was_derived_from_a_data_sheet_is_what_follows_from_it() -> None:
    """Cores * boost clock * 2 operations * 2 for tensor cores; pins * rate / 8."""
    machines = builtin_machines()
    for key, cores, clock in (
        ("rtx-4090", 16384, 2.52e9),
        ("rtx-4080-super", 10240, 2.55e9),
        ("rtx-4070-ti", 7680, 2.61e9),
        ("rtx-4060-ti-16gb", 4352, 2.535e9),
    ):
        assert machines[key].flops_per_second.value == pytest.approx(4 * cores * clock, rel=2e-3)
    for key, rate, pins in (
        ("l40", 18e9, 384),
        ("rtx-4090", 21e9, 384),
        ("rtx-4080-super", 23e9, 256),
        ("rtx-4070-ti", 21e9, 192),
        ("rtx-3090", 19.5e9, 384),
        ("rtx-4060-ti-16gb", 18e9, 128),
        ("rtx-5090", 28e9, 512),
    ):
        assert machines[key].memory_bytes_per_second.value == pytest.approx(rate * pins / 8, rel=1e-9)


def test_the_pair_of_the_reference_trees_has_their_acceptance() -> None:
    pair = builtin_pairs()["llama-3-70b-8b"]
    vector = pair.acceptance_near(0.6)
    assert vector.temperature is None
    assert list(vector.by_rank) == REFERENCE_TREES["llama3_70b_8b_cnn"]["acceptance"]
    assert (pair.target_shape, pair.draft_shape) == ("llama-3-70b", "llama-3-8b")
    greedy, sampled = builtin_pairs()["qwen2.5-coder-1.5b-0.5b"].acceptance
    assert (greedy.temperature, greedy.by_rank[0], sampled.temperature, sampled.by_rank[0]) == (0.0, 0.818, 1.0, 0.792)


def test_what_is_accepted_of_a_pair_cannot_contradict_itself() -> None:
    for pair in builtin_pairs().values():
        assert all(sum(entry.by_rank) <= 1 for entry in pair.acceptance)
        temperatures = [entry.temperature for entry in pair.acceptance]
        known = [temperature for temperature in temperatures if temperature is not None]
        assert known == sorted(set(known)) and (len(temperatures) == 1 or known == temperatures)


def test_what_was_published_of_that_pair_is_what_the_reference_trees_were_chosen_for() -> None:
    pair, choice = published_pair("llama-3-70b-8b"), REFERENCE_TREES["hardware_choice"]
    assert pair.draft_step_seconds is not None and pair.draft_step_seconds.value == choice["draft_step_seconds"]
    assert pair.verify_seconds_by_size == {int(n): s for n, s in choice["verify_seconds_by_size"].items()}
    assert pair.machine_key in builtin_machines()


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("4090", "rtx-4090"),
        ("rtx 4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("4090 24GB", "rtx-4090"),
        ("4060ti", "rtx-4060-ti-16gb"),
        ("RTX 4060 Ti 16 GB", "rtx-4060-ti-16gb"),
        ("4080_super", "rtx-4080-super"),
        ("l40", "l40"),
        ("NVIDIA L40", "l40"),
    ],
)
def test_a_machine_is_found_however_it_is_spelled(spelling: str, key: str) -> None:
    assert builtin_machine(spelling).key == key


def test_every_key_and_name_finds_its_own() -> None:
    assert all(
        builtin_machine(text) == machine
        for machine in builtin_machines().values()
        for text in (machine.key, machine.name, machine.name.upper(), f"NVIDIA GeForce {machine.name}")
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("4080", "rtx-4080-super"),  # another card than the SUPER
        ("RTX 4070 Ti SUPER", "rtx-4070-ti"),
        ("4060 Ti 8 GB", "rtx-4060-ti-16gb"),
        ("L40S", "l40"),
        ("rtx 409O", "rtx-4090"),
        ("RTX 4090 Laptop GPU", "rtx-4090"),
    ],
)
def test_another_card_is_not_taken_for_a_near_one_but_the_near_one_is_named(name: str, near: str) -> None:
    with pytest.raises(ProfileError) as caught:
        builtin_machine(name)
    message = str(caught.value)
    hint, _, choices = message.partition("; choose one of ")
    assert near in hint and choices == ", ".join(builtin_machines())


@pytest.mark.parametrize("name", ["", " ", "rtx", "zzz", "显卡", "\x1b[31m\n" * 99])
def test_a_name_that_is_near_nothing_gets_the_list(name: str) -> None:
    with pytest.raises(ProfileError) as caught:
        builtin_machine(name)
    message = str(caught.value)
    assert "near it" not in message and message.endswith(f"; choose one of {', '.join(builtin_machines())}")
    assert "\n" not in message and "\x1b" not in message and len(message) < 500


def test_the_files_are_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in settings["profiles"] for path in (ROOT / "profiles").glob(pattern)}
    assert packaged == {path for path in FOLDER.rglob("*") if path.is_file()}
    assert {"machines.json", "pairs.json", "calibration.jsonl"} <= {path.name for path in packaged}


Place = tuple[str | int, ...]


def places(value: object, path: Place = ()) -> Iterator[Place]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which the program reads instead of its own."""
    (tmp_path / "builtin").mkdir()
    for file in FOLDER.glob("*.json"):
        (tmp_path / "builtin" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(builtin_profiles.resources, "files", lambda _: tmp_path)
    return tmp_path / "builtin"


def refusal() -> str | None:
    """What the program says to its files; None if it takes them."""
    try:
        builtin_machines(), builtin_pairs()
    except ProfileError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file_name", ["machines.json", "pairs.json"])
def test_nonsense_at_any_place_of_a_file_is_named(copied: Path, file_name: str) -> None:
    """300 places and kinds of nonsense drawn with seed 9, none of which could be meant."""
    file = copied / file_name
    whole = json.loads(file.read_text())
    every = [place for place in places(whole) if place[-1] != "schema_version"]
    generator = random.Random(9)
    for _ in range(300):
        *outer, last = generator.choice(every)
        changed = json.loads(json.dumps(whole))
        inner: Any = changed
        for key in outer:
            inner = inner[key]
        inner[last] = generator.choice([{}, {"x": 1}, [[]], [None], -1, 10**400, math.nan])
        file.write_text(json.dumps(changed))
        message = refusal()
        assert message is not None, (outer, last, inner[last])
        assert message.startswith(f"the program's own file {file_name} is damaged: ") and "\n" not in message
        assert message.endswith("; install overstory again") and len(message) < 400


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is not valid JSON"),
        ("[]", "it does not hold a JSON object"),
        ("{}", "schema_version is None; this program reads version 1"),
        ('{"schema_version": 1}', "machines is missing"),
        ('{"schema_version": 2, "machines": []}', "schema_version is 2"),
    ],
)
def test_a_damaged_file_is_the_programs_own_fault_and_says_so(copied: Path, content: str, reason: str) -> None:
    (copied / "machines.json").write_text(content)
    message = refusal()
    assert message is not None and f"the program's own file machines.json is damaged: {reason}" in message


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "pairs.json").unlink()
    message = refusal()
    assert message is not None and "pairs.json is damaged: " in message and "No such file or directory" in message


@pytest.mark.parametrize("kind", ["machines", "pairs"])
def test_every_key_stands_once(kind: str) -> None:
    keys = [entry["key"] for entry in json.loads((FOLDER / f"{kind}.json").read_text())[kind]]
    assert len(set(keys)) == len(keys)


PAIR = ReferencePair(
    key="pair",
    name="Pair",
    target_shape="big",
    draft_shape="small",
    acceptance=(
        ReferenceAcceptance((0.8, 0.1), "a test", True, temperature=0.0),
        ReferenceAcceptance((0.7, 0.1), "a test", True, temperature=1.0),
    ),
)


FIGURE = {"value": 1.0, "source": "x", "is_measured": True}
SLOT = {"generation": 4, "lanes": 16, "source": "x"}
ACCEPTED = {"by_rank": [0.9], "source": "x", "is_measured": True, "temperature": None}
NAMES = {"key": "x", "name": "x", "target_shape": "x", "draft_shape": "x"}


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (Figure, {**FIGURE, "value": 0}, "value is 0; expected a number, above 0"),
        (Figure, {**FIGURE, "value": math.nan}, "value is nan"),
        (Figure, {**FIGURE, "source": ""}, "source is ''"),
        (Figure, {**FIGURE, "is_measured": 1}, "is_measured is 1"),
        (PcieSlot, {**SLOT, "generation": 6}, "generation is 6; expected one of 3, 4, 5"),
        (PcieSlot, {**SLOT, "lanes": 12}, "lanes is 12; expected one of 1, 2, 4, 8, 16"),
        (PcieSlot, {**SLOT, "lanes": True}, "lanes is True; expected"),
        (PcieSlot, {**SLOT, "generation": []}, r"generation is \[\]; expected"),
        (PcieSlot, {**SLOT, "source": ""}, "source is ''"),
        (ReferenceAcceptance, {**ACCEPTED, "by_rank": []}, r"by_rank is \[\]; expected a list that is not empty"),
        (ReferenceAcceptance, {**ACCEPTED, "temperature": -1.0}, r"temperature is -1\.0"),
        (ReferencePair, {**NAMES, "key": "", "acceptance": [ACCEPTED]}, "key is ''"),
        (ReferencePair, {**NAMES, "acceptance": None}, "acceptance is None"),
        (ReferencePair, {**NAMES, "acceptance": []}, r"acceptance is \[\]; expected a list that is not empty"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        read_value(kind, record)


@pytest.mark.parametrize(("temperature", "first"), [(0.0, 0.8), (0.4, 0.8), (0.6, 0.7), (2.0, 0.7)])
def test_the_nearest_temperature_answers(temperature: float, first: float) -> None:
    assert PAIR.acceptance_near(temperature).by_rank[0] == first


def test_an_unknown_temperature_answers_for_all() -> None:
    unknown = ReferenceAcceptance((0.5,), "x", True, temperature=None)
    assert replace(PAIR, acceptance=(unknown,)).acceptance_near(0.6) == unknown
