"""What a benchmark ends with, and its figures: the fields of a dataclass, and what properties derive from them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


class Report:
    """What a benchmark returns: a dataclass of measurements."""

    __slots__ = ()

    def to_record(self) -> dict[str, Any]:
        """Return all figures as one JSON object."""
        return _figures_of(self)

    def lines(self) -> list[str]:
        """Return what people read beside the single figures."""
        return []


def to_json(value: Any) -> Any:
    """Return a measurement as JSON has it, measurements within it included."""
    if isinstance(value, Report):
        return value.to_record()
    if is_dataclass(value):
        return _figures_of(value)
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    return list(map(to_json, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _figures_of(measurement: Any) -> dict[str, Any]:
    """The properties and the fields by name, properties first."""
    derived = [
        name for name, member in vars(type(measurement)).items() if isinstance(member, property) and name[0] != "_"
    ]
    names = (*derived, *(field.name for field in fields(measurement)))
    return {name: to_json(getattr(measurement, name)) for name in names}
