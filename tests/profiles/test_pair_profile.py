"""A pair profile holds what can be, and names the field that cannot."""

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from profiles.errors import ProfileError, StaleProfileError
from profiles.pair_profile import AcceptanceTable, PairProfile
from profiles.records import from_record, to_record
from tests.support.profile_factory import PAIR


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AcceptanceTable(0.0, (0.6, 0.6), (0.1, None), (3, 1), (), (), 2), "adds up to 1.2"),
        (lambda: AcceptanceTable(0.0, (0.6, 0.1), (0.1,), (3, 1), (), (), 2), "expected as many"),
        (lambda: AcceptanceTable(0.0, (0.6,), (0.1,), (3,), ((0.5, 0.1),), (3,), 2), "has 2 ranks; expected 1"),
        (lambda: AcceptanceTable(0.0, (0.6,), (0.1,), (3,), ((0.5,),), (), 2), "1 rows but 0"),
        (
            lambda: AcceptanceTable(0.0, (0.6,), (0.1,), (3,), (), (), 2, by_confidence=((0.5,), (0.5, 0.1))),
            "row of by_confidence has 2 ranks; expected 1",
        ),
    ],
)
def test_tables_that_contradict_themselves_cannot_be_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def record() -> dict[str, Any]:
    return json.loads(json.dumps(to_record(PAIR), allow_nan=False))  # type: ignore[no-any-return]


def read(record: dict[str, Any]) -> PairProfile:
    return from_record(PairProfile, record)


def test_a_profile_survives_json() -> None:
    assert read(record()) == PAIR


def test_the_record_is_plain_json_with_a_version_of_its_own() -> None:
    written = record()
    assert list(written)[:4] == ["schema_version", "device", "target", "draft"]
    assert written["schema_version"] == PairProfile.SCHEMA_VERSION == 3
    assert written["pass_costs"][1] == {"num_tokens": 64, "context_tokens": 128, "seconds": 0.2, "is_fitted": True}
    assert written["acceptance"][1]["by_rank_errors"] == [0.01, None]
    assert written["measured_at"] == "2026-01-31"


def test_an_older_version_is_stale() -> None:
    """Version 1 asked for acceptance by depth behind any accepted child, and knew no number of texts."""
    with pytest.raises(StaleProfileError, match="schema_version is 2; this program reads version 3"):
        read({**record(), "schema_version": 2})


Path = tuple[str | int, ...]


def places(value: object, path: Path = ()) -> Iterator[Path]:
    """Every place in a record, from the outside in."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def put(path: Path, value: object) -> dict[str, Any]:
    changed = record()
    at(changed, path[:-1])[path[-1]] = value
    return changed


def spelled(path: Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


TEXTS = ("device_type", "name", "driver_version", "content_digest", "held", "compute_dtype")
EVERY_PLACE = list(places(record()))


def test_no_place_of_a_record_takes_another_kind() -> None:
    """Whatever stands where a figure, a text or a list belongs: one sentence that names at least its outermost part."""
    kinds = ({}, {"x": 1}, [[]], [None], math.nan, -1, True, math.inf, 10**400, "\x1b[31m\n" * 99)
    for path, nonsense in itertools.product(EVERY_PLACE, kinds):
        changed = put(path, nonsense)
        if (path[-1] in TEXTS and isinstance(nonsense, str)) or (path[-1] == "is_fitted" and nonsense is True):
            continue
        with pytest.raises(ProfileError) as caught:
            read(changed)
        message = str(caught.value)
        assert str(path[0]) in message and "\n" not in message and "\x1b" not in message and len(message) < 400


def at(record: dict[str, Any], path: Path) -> Any:
    inner: Any = record
    for key in path:
        inner = inner[key]
    return inner


def test_a_missing_key_is_named_with_its_place() -> None:
    for path in (path for path in EVERY_PLACE if isinstance(path[-1], str)):
        changed = record()
        del at(changed, path[:-1])[path[-1]]
        expected = "schema_version is None" if path == ("schema_version",) else f"{spelled(path)} is missing"
        with pytest.raises(ProfileError) as caught:
            read(changed)
        assert str(caught.value).startswith(expected)


def test_an_unknown_key_is_named_with_its_place() -> None:
    for path in [(), *(path for path in EVERY_PLACE if isinstance(at(record(), path), dict))]:
        changed = record()
        at(changed, path)["secnds"] = 1
        with pytest.raises(ProfileError) as caught:
            read(changed)
        name = ".".join(filter(None, [spelled(path), "secnds"]))
        assert str(caught.value) == f"{name!r} is not a field of schema version 3"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("acceptance", 1, "by_rank"), 5, r"acceptance\[1\]\.by_rank is 5; expected a list"),
        (("acceptance", 1, "by_rank", 0), 1.2, r"acceptance\[1\]\.by_rank\[0\] is 1\.2; expected a number, at most 1"),
        (("acceptance", 1, "by_rank", 1), 0.4, r"acceptance\[1\]: by_rank adds up to 1\.1000; expected at most 1"),
        (("acceptance", 0, "by_depth", 1), 0.5, r"acceptance\[0\]\.by_depth\[1\] is 0\.5; expected a list"),
        (("acceptance", 0, "temperature"), 1.0, "acceptance is not in ascending order"),
        (("acceptance", 0, "temperature"), math.inf, r"acceptance\[0\]\.temperature is inf; expected a number"),
        (("acceptance", 0, "spread"), 0.0, r"acceptance\[0\]\.spread is 0\.0; expected a number, above 0"),
        (
            ("acceptance", 0, "by_confidence"),
            [[]],
            r"acceptance\[0\]\.by_confidence\[0\] is \[\]; expected a list",
        ),
        (("pass_costs", 0, "seconds"), -0.1, r"pass_costs\[0\]\.seconds is -0\.1; expected a number, above 0"),
        (("pass_costs", 0, "is_fitted"), 1, r"pass_costs\[0\]\.is_fitted is 1; expected true or false"),
        (("walk_costs", 1, "seconds"), math.nan, r"walk_costs\[1\]\.seconds is nan; expected a number, above 0"),
        (("walk_costs", 1, "num_nodes"), 1, "walk_costs is not in ascending order"),
        (("target", "held"), "", "target.held is ''; expected a text"),
        (("device", "name"), 7, r"device\.name is 7; expected a text"),
        (("draft_steps",), [], r"draft_steps is \[\]; expected a list that is not empty"),
        (("copy_slowdown",), -0.1, r"copy_slowdown is -0\.1; expected a number, at least 0"),
        (("measured_at",), "soon", "measured_at is 'soon'; expected a date"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(path: Path, value: object, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        read(put(path, value))


def test_random_damage_is_either_refused_or_read_as_it_stands() -> None:
    """Two places of a record swapped, 2000 times with seed 5: never another exception, never a silent change."""
    generator = random.Random(5)
    num_read = 0
    for _ in range(2000):
        first, second = generator.sample(EVERY_PLACE, 2)
        if first[: len(second)] == second or second[: len(first)] == first:
            continue
        changed = put(first, at(record(), second))
        try:
            profile = read(changed)
        except ProfileError:
            continue
        num_read += 1
        assert json.loads(json.dumps(to_record(profile))) == changed
    assert num_read > 0


def test_tables_of_a_few_positions_give_way_to_those_of_many() -> None:
    greedy, warm = PAIR.acceptance
    rough = replace(greedy, num_positions=(29, 29))
    assert rough.is_rough and not greedy.is_rough
    assert PAIR.acceptance_near(0.4) is greedy
    assert replace(PAIR, acceptance=(rough, warm)).acceptance_near(0.0) is warm
    only_rough = replace(PAIR, acceptance=(rough,))
    assert only_rough.believed_acceptance == ()
    assert only_rough.acceptance_near(1.0) is rough
