"""Checked records: frozen dataclasses as JSON objects and back, strictly, with one sentence for whatever is wrong.

The types of the fields say what may stand there, bounds included, and msgspec checks them. What several fields must
keep together a dataclass checks itself, in __post_init__, with a ValueError.
"""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec
from msgspec import Meta

from profiles.errors import ProfileError, StaleProfileError, quote
from profiles.files import parse_json_text

LARGEST = 1 << 60
"""A damaged figure must not become an allocation: no machine has an exbibyte of memory or of bandwidth."""

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
CountFromZero = Annotated[int, Meta(ge=0, le=LARGEST)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
"""Of one step, pass or copy: at most eleven days."""
Rate = Annotated[float, Meta(gt=0, le=LARGEST)]


class Versioned(Protocol):
    """A dataclass that files hold."""

    SCHEMA_VERSION: ClassVar[int]


Record = TypeVar("Record", bound=Versioned)

_PLACED = re.compile(r"(.*) - at `\$\.?([\w.\[\]]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_EXPECTED = re.compile(r"Expected `([\w |]+)`(?:, got `\w+`| of length (>=) (1)| ([<>]=?) (.+))")
_IN_WORDS = {
    **{"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"},
    **{"date": "a date such as 2026-01-31", "array": "a list", "object": "an object"},
    **{"null": "null where it is not known"},
    **{">": "above", ">=": "at least", "<=": "at most"},
}


def to_record(value: Versioned) -> dict[str, Any]:
    """Return the dataclass `value` as the JSON object that `from_record` reads."""
    return {"schema_version": value.SCHEMA_VERSION, **msgspec.to_builtins(value)}


def from_record(kind: type[Record], record: Mapping[str, Any]) -> Record:
    """Return the `kind` that `to_record` turned into `record`; a field that has a default must be there too.

    Raises:
        StaleProfileError: the record has an older schema version.
        ProfileError: anything else is wrong; the message begins with where it is, such as "acceptance[1].by_rank".
    """
    found, version = record.get("schema_version"), kind.SCHEMA_VERSION
    if type(found) is not int or found != version:
        is_older = type(found) is int and 0 < found < version
        error = StaleProfileError if is_older else ProfileError
        raise error(f"schema_version is {quote(found)}; this program reads version {version}")
    values = {name: value for name, value in record.items() if name != "schema_version"}
    read: Record = read_value(kind, values)
    _check_keys(values, msgspec.to_builtins(read), "", version=version)
    return read


def read_value(kind: Any, value: object, *, where: str = "") -> Any:
    """Return `value`, of JSON's own kinds, as the dataclass or annotated type `kind`; `where` is its name in errors.

    Raises ProfileError if it is something else.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ProfileError(_sentence(str(error), kind, value, where)) from error


def parse_record(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that `raw` holds, read strictly. Raises ProfileError, whose message begins with "it"."""
    try:
        parsed = parse_json_text(raw)
    except ValueError as error:
        raise ProfileError(f"it is not valid JSON ({quote(str(error))})") from error
    if not isinstance(parsed, dict):
        raise ProfileError("it does not hold a JSON object")
    return parsed


def check_ascending(name: str, keys: Sequence[Any]) -> None:
    """Raise ValueError unless each key is above the one before it."""
    if any(later <= earlier for earlier, later in pairwise(keys)):
        raise ValueError(f"{name} is not in ascending order, each size once")


def check_probabilities(name: str, values: Sequence[float]) -> None:
    """Raise ValueError if these probabilities add up to more than 1."""
    if (total := sum(values)) > 1 + 1e-6:
        raise ValueError(f"{name} adds up to {total:.4f}; expected at most 1, since one child at most is accepted")


def _sentence(message: str, kind: Any, value: Any, where: str) -> str:
    """Say what msgspec's `message` says, with the place and what was found there."""
    placed = _PLACED.fullmatch(message)
    message, place = placed.groups() if placed else (message, "")
    for step in re.findall(r"\w+", place):
        value = value[int(step) if step.isdigit() else step]
        kind = _inner(kind, step)
    where = f"{where}.{place}".replace(".[", "[").strip(".")
    if missing := _MISSING.fullmatch(message):
        return f"{where}.{missing[1]} is missing".lstrip(".")
    if expected := _EXPECTED.fullmatch(message):
        words = " or ".join(_IN_WORDS[name] for name in expected[1].split(" | "))
        if expected[2]:
            words += " that is not empty"
        elif expected[4]:
            words += f", {_IN_WORDS[expected[4]]} {float(expected[5]):g}"
    elif message.startswith("Invalid enum value"):
        words = f"one of {', '.join(map(str, typing.get_args(kind) or kind))}"
    elif message.startswith("Invalid RFC3339"):
        words = _IN_WORDS["date"]
    elif message == "Number out of range":
        words = "a smaller number"
    else:  # a dataclass's own sentence
        return f"{where}: {message}" if where else message
    return f"{where} is {quote(value)}; expected {words}"


def _inner(kind: Any, step: str) -> Any:
    """Return the type of a dataclass's field of that name, or of the entries of a list."""
    inner = typing.get_args(kind)[0] if step.isdigit() else typing.get_type_hints(kind)[step]
    choices = typing.get_args(inner)
    return choices[0] if types.NoneType in choices else inner


def _check_keys(found: Any, known: Any, where: str, *, version: int) -> None:
    """Refuse keys that nothing was read from, and those that are missing, however deep."""
    if isinstance(known, tuple):
        for index, entry in enumerate(known):
            _check_keys(found[index], entry, f"{where}[{index}]", version=version)
    elif isinstance(known, dict):
        prefix = f"{where}." if where else ""
        if missing := [name for name in known if name not in found]:
            raise ProfileError(f"{prefix}{missing[0]} is missing")
        if unknown := [name for name in found if name not in known]:
            raise ProfileError(f"{quote(prefix + unknown[0])} is not a field of schema version {version}")
        for name, value in found.items():
            _check_keys(value, known[name], prefix + name, version=version)
