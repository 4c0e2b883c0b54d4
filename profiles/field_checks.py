"""One sentence for every field that cannot be: texts, counts, numbers, seconds, days, orders.

Each check takes the field's name and the value, says nothing if it is sound, and raises ProfileError otherwise. They
run when an object is made, so it makes no difference whether somebody measured the value or a file holds it. Knows not
what a profile is.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

from profiles.errors import ProfileError, quote

LARGEST = 1 << 60
"""A damaged figure must not become an allocation: no machine has an exbibyte of memory or of bandwidth."""
MOST_SECONDS = 1e6
"""Of one step, pass or copy: eleven days."""


def check_text(name: str, value: object, *, can_be_empty: bool = False) -> None:
    """A text, and not an empty one."""
    if not isinstance(value, str) or not (value or can_be_empty):
        raise ProfileError(f"{name} is {quote(value)}; expected a text")


def check_flag(name: str, value: object) -> None:
    """True or false, and nothing that only counts as such."""
    if not isinstance(value, bool):
        raise ProfileError(f"{name} is {quote(value)}; expected true or false")


def check_day(name: str, value: object) -> None:
    """A date; a datetime is one too, but would not be read back as the same."""
    if type(value) is not date:
        raise ProfileError(f"{name} is {quote(value)}; expected a date such as 2026-01-31")


def check_bytes(name: str, value: object) -> None:
    """A whole number of bytes that some machine could have."""
    if type(value) is not int or not 0 <= value <= LARGEST:  # True is an int too
        raise ProfileError(f"{name} is {quote(value)}; expected a whole number of bytes, at least 0")


def check_count(name: str, value: object, *, minimum: int) -> None:
    """A whole number from `minimum` on."""
    if type(value) is not int or not minimum <= value <= LARGEST:
        raise ProfileError(f"{name} is {quote(value)}; expected a whole number, at least {minimum}")


def check_number(name: str, value: object, *, maximum: float) -> float:
    """A number from 0 to `maximum`, which is returned."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= maximum:  # nor NaN
        raise ProfileError(f"{name} is {quote(value)}; expected a number from 0 to {maximum:g}")
    return float(value)


def check_seconds(name: str, value: object) -> None:
    """A time that something took."""
    if check_number(name, value, maximum=MOST_SECONDS) == 0:
        raise ProfileError(f"{name} is 0; expected more")


def check_rate(name: str, value: object, *, can_be_zero: bool) -> None:
    """A number that may be unknown: None passes."""
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not _is_rate(value, can_be_zero=can_be_zero):  # type: ignore[arg-type]
        expected = "at least 0" if can_be_zero else "above 0"
        raise ProfileError(f"{name} is {quote(value)}; expected a number {expected}, or null where not measured")


def check_entries(name: str, values: object, kind: type) -> None:
    """A tuple of objects of `kind`."""
    if not isinstance(values, tuple):
        raise ProfileError(f"{name} is {quote(values)}; expected a list")
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise ProfileError(f"{name}[{index}] is {quote(value)}; expected an object")


def check_ascending(name: str, keys: Sequence[Any]) -> None:
    """Each key above the one before it."""
    if any(later <= earlier for earlier, later in pairwise(keys)):
        raise ProfileError(f"{name} is not in ascending order, each size once")


def check_not_empty(name: str, values: Sequence[object]) -> None:
    """At least one entry."""
    if not values:
        raise ProfileError(f"{name} is empty; expected at least one entry")


def check_probabilities(name: str, values: object) -> None:
    """A tuple of probabilities of which one at most comes true."""
    if not isinstance(values, tuple):
        raise ProfileError(f"{name} is {quote(values)}; expected a list")
    total = sum(_probabilities(name, values))
    if total > 1 + 1e-6:
        raise ProfileError(f"{name} adds up to {total:.4f}; expected at most 1, since one child at most is accepted")


def _probabilities(name: str, values: Iterable[object]) -> Iterable[float]:
    return [check_number(f"an entry of {name}", value, maximum=1.0) for value in values]


def _is_rate(number: float, *, can_be_zero: bool) -> bool:
    return 0 <= number <= LARGEST and (number > 0 or can_be_zero)  # NaN is neither
