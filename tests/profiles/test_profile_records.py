"""Dataclasses there and back, on kinds made up for it; the profiles' own tests cover what they hold."""

import json
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

import pytest

from profiles.errors import ProfileError, StaleProfileError
from profiles.field_checks import check_count, check_text
from profiles.profile_records import check_version, from_record, located, parse_record, to_record


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Leaf:
    size: int
    colour: Colour = Colour.RED

    def __post_init__(self) -> None:
        check_count("size", self.size, minimum=1)


@dataclass(frozen=True)
class Tree:
    name: str
    planted: date
    rows: tuple[tuple[float | None, ...], ...]
    leaves: tuple[Leaf, ...] = ()
    top: Leaf | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)


OAK = Tree("oak", date(2026, 1, 31), ((1.5, None), ()), (Leaf(1), Leaf(2)), Leaf(3))
RECORD: dict[str, Any] = {"schema_version": 4, **to_record(OAK)}


def read(record: dict[str, Any], *, needs_all: bool = True) -> Tree:
    return from_record(Tree, record, version=4, needs_all=needs_all)


def test_what_was_written_is_read() -> None:
    assert read(json.loads(json.dumps(RECORD))) == OAK
    assert RECORD["leaves"] == [{"size": 1, "colour": "red"}, {"size": 2, "colour": "red"}]
    assert RECORD["planted"] == "2026-01-31"


def test_what_has_a_default_may_be_left_out_only_where_that_is_said() -> None:
    short = {"schema_version": 4, "name": "oak", "planted": "2026-01-31", "rows": [], "top": {"size": 1}}
    assert read(short, needs_all=False) == Tree("oak", date(2026, 1, 31), (), (), Leaf(1))
    with pytest.raises(ProfileError, match=r"^leaves is missing$"):
        read(short)
    with pytest.raises(ProfileError, match=r"^name is missing$"):
        read({"schema_version": 4}, needs_all=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaves": {}}, "leaves is {}; expected a list"),
        ({"leaves": [{"size": 0, "colour": "red"}]}, r"leaves\[0\]: size is 0; expected a whole number"),
        ({"leaves": [{"size": 1}]}, r"leaves\[0\]\.colour is missing"),
        ({"leaves": [None]}, r"leaves\[0\] is None; expected an object"),
        ({"rows": [3]}, r"rows\[0\] is 3; expected a list"),
        ({"top": []}, r"top is \[\]; expected an object"),
        ({"top": {"size": 1, "colour": "red", "x": 1}}, r"'top\.x' is not a field of schema version 4"),
        ({"name": ""}, "name is ''; expected a text"),
        ({"schema_version": 5}, "schema_version is 5; this program reads version 4"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        read({**RECORD, **changes})


def test_dates_and_choices_that_cannot_be_are_left_for_the_dataclass_to_refuse() -> None:
    found = read({**RECORD, "planted": "soon", "top": {"size": 1, "colour": "blue"}})
    assert (found.planted, found.top and found.top.colour) == ("soon", "blue")  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(("version", "is_stale"), [(1, True), (3, True), (5, False), (0, False), (None, False)])
def test_only_an_older_version_is_stale(version: Any, is_stale: bool) -> None:
    with pytest.raises(ProfileError) as caught:
        check_version({"schema_version": version}, version=4)
    assert isinstance(caught.value, StaleProfileError) is is_stale


def test_a_place_is_said_once_and_the_kind_of_error_kept() -> None:
    with pytest.raises(StaleProfileError, match=r"^a: b$"), located("a"):
        raise StaleProfileError("b")
    with pytest.raises(ProfileError, match=r"^a\.b is 1$"), located("a"):
        raise ProfileError("a.b is 1")


@pytest.mark.parametrize(
    ("raw", "message"), [(b"{", "it is not valid JSON"), (b"[1]", "it does not hold a JSON object")]
)
def test_a_text_that_is_no_object_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ProfileError, match=f"^{message}"):
        parse_record(raw)
    assert parse_record(b'{"a": 1}') == {"a": 1}
