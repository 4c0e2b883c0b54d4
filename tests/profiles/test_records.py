"""Dataclasses there and back, on kinds made up for it; the profiles' own tests cover what they hold."""

import json
import math
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

import pytest
from msgspec import Meta

from profiles.errors import ProfileError, StaleProfileError
from profiles.records import (
    LARGEST,
    Count,
    CountFromZero,
    Probability,
    Rate,
    Seconds,
    Text,
    check_ascending,
    check_probabilities,
    from_record,
    parse_record,
    read_value,
    to_record,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Leaf:
    size: Count
    colour: Colour = Colour.RED
    sides: Literal[3, 4] = 3

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("a size of 13 brings bad luck")


@dataclass(frozen=True, slots=True)
class Tree:
    SCHEMA_VERSION: ClassVar[int] = 4
    name: Text
    planted: date
    rows: tuple[tuple[Probability | None, ...], ...]
    leaves: Annotated[tuple[Leaf, ...], Meta(min_length=1)] = (Leaf(1),)
    top: Leaf | None = None
    is_old: bool = False

    def __post_init__(self) -> None:
        check_ascending("leaves", [leaf.size for leaf in self.leaves])


OAK = Tree("oak", date(2026, 1, 31), ((0.5, None), ()), (Leaf(1), Leaf(2)), Leaf(3))
RECORD: dict[str, Any] = json.loads(json.dumps(to_record(OAK)))
LEAF = RECORD["top"]


def read(record: dict[str, Any]) -> Tree:
    return from_record(Tree, record)


def test_what_was_written_is_read() -> None:
    assert read(RECORD) == read(to_record(OAK)) == OAK
    assert list(RECORD) == ["schema_version", "name", "planted", "rows", "leaves", "top", "is_old"]
    assert RECORD["leaves"][0] == {"size": 1, "colour": "red", "sides": 3}
    assert (RECORD["planted"], type(read(RECORD).planted)) == ("2026-01-31", date)


def test_what_has_a_default_may_not_be_left_out_either() -> None:
    short = {"schema_version": 4, "name": "oak", "planted": "2026-01-31", "rows": [], "top": {"size": 1}}
    with pytest.raises(ProfileError, match=r"^leaves is missing$"):
        read(short)
    with pytest.raises(ProfileError, match=r"^top\.colour is missing$"):
        read({**RECORD, "top": {"size": 1}})
    with pytest.raises(ProfileError, match=r"^name is missing$"):
        read({"schema_version": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaves": {}}, "leaves is {}; expected a list"),
        ({"leaves": []}, "leaves is []; expected a list that is not empty"),
        ({"leaves": [LEAF, {**LEAF, "size": 0}]}, "leaves[1].size is 0; expected a whole number, at least 1"),
        ({"leaves": [{**LEAF, "size": True}]}, "leaves[0].size is True; expected a whole number"),
        ({"leaves": [{**LEAF, "size": 1.0}]}, "leaves[0].size is 1.0; expected a whole number"),
        ({"leaves": [{"colour": "red", "sides": 3}]}, "leaves[0].size is missing"),
        ({"leaves": [{"size": 1, "sides": 3}]}, "leaves[0].colour is missing"),
        ({"leaves": [{**LEAF, "size": 13}]}, "leaves[0]: a size of 13 brings bad luck"),
        ({"leaves": [{**LEAF, "colour": "green"}]}, "leaves[0].colour is 'green'; expected one of red, blue"),
        ({"leaves": [{**LEAF, "sides": 5}]}, "leaves[0].sides is 5; expected one of 3, 4"),
        ({"leaves": [LEAF, LEAF]}, "leaves is not in ascending order, each size once"),
        ({"leaves": [None]}, "leaves[0] is None; expected an object"),
        ({"rows": [3]}, "rows[0] is 3; expected a list"),
        ({"rows": [[], [0, 1.5]]}, "rows[1][1] is 1.5; expected a number, at most 1"),
        ({"rows": [[True]]}, "rows[0][0] is True; expected a number or null where it is not known"),
        ({"top": []}, "top is []; expected an object or null where it is not known"),
        ({"top": {**LEAF, "colour": "green"}}, "top.colour is 'green'; expected one of red, blue"),
        ({"top": {**LEAF, "x": 1}}, "'top.x' is not a field of schema version 4"),
        ({"name": ""}, "name is ''; expected a text that is not empty"),
        ({"name": None}, "name is None; expected a text"),
        ({"is_old": 1}, "is_old is 1; expected true or false"),
        ({"planted": "soon"}, "planted is 'soon'; expected a date such as 2026-01-31"),
        ({"planted": 20260131}, "planted is 20260131; expected a date such as 2026-01-31"),
        ({"planted": "2026-01-31T00:00"}, "planted is '2026-01-31T00:00'; expected a date such as 2026-01-31"),
        ({"schema_version": 5}, "schema_version is 5; this program reads version 4"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read({**RECORD, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "sound", "message_of_nonsense"),
    [
        (Text, ["a"], {"": "a text that is not empty", None: "a text"}),
        (Count, [1, LARGEST], {0: "a whole number, at least 1", LARGEST + 1: "a whole number, at most 1.15292e+18"}),
        (CountFromZero, [0], {-1: "a whole number, at least 0", 10**400: "a whole number, at most 1.15292e+18"}),
        (Probability, [0, 1, 0.5], {-1e-300: "a number, at least 0", math.nan: "a number", "0.1": "a number"}),
        (Seconds, [1e-9], {0: "a number, above 0", math.inf: "a number, at most 1e+06", 10**400: "a smaller number"}),
        (Rate, [1, 1e18], {0.0: "a number, above 0", math.nan: "a number", True: "a number"}),
    ],
)
def test_every_kind_of_figure_has_its_bounds(kind: Any, sound: list[Any], message_of_nonsense: dict[Any, str]) -> None:
    assert [read_value(kind, value, where="x") for value in sound] == sound
    for value, message in message_of_nonsense.items():
        with pytest.raises(ProfileError, match=r"^x is .*; expected ") as caught:
            read_value(kind, value, where="x")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_orders_and_sums_are_checked_across_figures() -> None:
    check_ascending("x", [(0, 2), (1, 1)])
    check_ascending("x", [])
    check_probabilities("x", (0.5, 0.5, 1e-7))
    check_probabilities("x", ())
    with pytest.raises(ValueError, match=r"^x is not in ascending order"):
        check_ascending("x", [1, 1])
    with pytest.raises(ValueError, match=r"^x adds up to 1\.1000; expected at most 1"):
        check_probabilities("x", (0.7, 0.4))


@pytest.mark.parametrize(
    ("version", "is_stale"),
    [(1, True), (3, True), *((version, False) for version in (0, 5, -1, "4", True, 4.0, None, [4]))],
)
def test_only_an_older_version_is_stale(version: Any, is_stale: bool) -> None:
    """Another one may be a newer program's, whose figures are not this one's to replace."""
    with pytest.raises(ProfileError, match=r"^schema_version is .*; this program reads version 4$") as caught:
        read({**RECORD, "schema_version": version})
    assert isinstance(caught.value, StaleProfileError) is is_stale


@pytest.mark.parametrize(
    ("raw", "message"), [(b"{", "it is not valid JSON"), (b"[1]", "it does not hold a JSON object")]
)
def test_a_text_that_is_no_object_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        parse_record(raw)
    assert parse_record(b'{"a": 1}') == {"a": 1}
