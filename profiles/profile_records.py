"""Frozen dataclasses as JSON objects and back, strictly: a field more, a field less or another kind is named.

The types of the fields say how to read them: dataclasses are objects, tuples lists, dates and StrEnums texts. Numbers
and texts are handed on as found, for the dataclass itself to check. Knows neither files nor what the figures mean.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from enum import StrEnum
from typing import Any, TypeVar

from profiles.errors import ProfileError, StaleProfileError, quote
from profiles.json_text import parse_json_text

Record = TypeVar("Record")


def to_record(value: object) -> Any:
    """The dataclass `value` as what json.dumps takes."""
    if is_dataclass(value):
        return {field.name: to_record(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_record(entry) for entry in value]
    if isinstance(value, date):
        return value.isoformat()
    return value.value if isinstance(value, StrEnum) else value


def from_record(kind: type[Record], record: Mapping[str, Any], *, version: int, needs_all: bool = True) -> Record:
    """The `kind` that `to_record` turned into `record`, less its "schema_version".

    With `needs_all` every field must be there; without, those that have a default may be left out.

    Raises:
        StaleProfileError: the record has an older schema version.
        ProfileError: anything else is wrong; the message begins with where it is, such as "acceptance[1].by_rank".
    """
    check_version(record, version=version)
    values = {name: value for name, value in record.items() if name != "schema_version"}
    return _Reader(version, needs_all).dataclass(kind, values, where="")


def parse_record(raw: bytes) -> dict[str, Any]:
    """The JSON object that `raw` holds, read strictly. Raises ProfileError, whose message begins with "it"."""
    try:
        parsed = parse_json_text(raw)
    except ValueError as error:
        raise ProfileError(f"it is not valid JSON ({quote(str(error))})") from error
    if not isinstance(parsed, dict):
        raise ProfileError("it does not hold a JSON object")
    return parsed


def check_version(record: Mapping[str, Any], *, version: int) -> None:
    """Whether "schema_version" is `version`. Raises StaleProfileError for an older one, ProfileError for any other."""
    found = record.get("schema_version")
    if type(found) is not int or found != version:
        is_older = type(found) is int and 0 < found < version
        kind = StaleProfileError if is_older else ProfileError
        raise kind(f"schema_version is {quote(found)}; this program reads version {version}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` before the message of a ProfileError, unless it says so itself."""
    try:
        yield
    except ProfileError as error:
        if not where or str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error


class _Reader:
    """Reads values by their types."""

    def __init__(self, version: int, needs_all: bool) -> None:
        self._version = version
        self._needs_all = needs_all

    def dataclass(self, kind: type[Record], values: object, *, where: str) -> Record:
        """The object of that kind; `where` is its path in the record, empty for the whole of it."""
        if not isinstance(values, dict):
            raise ProfileError(f"{where} is {quote(values)}; expected an object")
        prefix = f"{where}." if where else ""
        self._check_keys(kind, values, prefix)
        hints = typing.get_type_hints(kind)
        read = {name: self._value(hints[name], value, where=prefix + name) for name, value in values.items()}
        with located(where):
            return kind(**read)

    def _check_keys(self, kind: Any, values: dict[str, Any], prefix: str) -> None:
        known = {field.name: self._needs_all or not _has_default(field) for field in fields(kind)}
        if missing := [name for name, is_needed in known.items() if is_needed and name not in values]:
            raise ProfileError(f"{prefix}{missing[0]} is missing")
        if unknown := [name for name in values if name not in known]:
            raise ProfileError(f"{quote(prefix + unknown[0])} is not a field of schema version {self._version}")

    def _value(self, hint: Any, found: object, *, where: str) -> object:
        choices = typing.get_args(hint)
        if isinstance(hint, types.UnionType):  # only "X | None" is used
            return None if found is None else self._value(choices[0], found, where=where)
        if typing.get_origin(hint) is tuple:
            if not isinstance(found, list):
                raise ProfileError(f"{where} is {quote(found)}; expected a list")
            return tuple(self._value(choices[0], item, where=f"{where}[{i}]") for i, item in enumerate(found))
        if is_dataclass(hint):
            return self.dataclass(typing.cast(type[Any], hint), found, where=where)
        return _scalar(hint, found)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _scalar(hint: Any, found: object) -> object:
    """The date or the named choice, or what was found, for the dataclass to refuse."""
    if not isinstance(found, str) or not issubclass(hint, date | StrEnum):
        return found
    try:
        return date.fromisoformat(found) if issubclass(hint, date) else hint(found)
    except ValueError:
        return found
