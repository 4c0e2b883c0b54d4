"""The root of every error tree, and what can go wrong with stored facts.

    OverstoryError                  exit code 1: something failed while running
    └── BadInputError               exit code 2: what the user gave cannot be used
        └── ProfileError            a stored profile that cannot be read, believed or written
            └── StaleProfileError   a sound profile of another device, driver, machine or model, or of an older version

The roots stand on the lowest floor because every floor derives from them. Every message is one sentence: what, where,
found, expected, next step; `quote` shows in it what was found.
"""

import reprlib

_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = _quoter.maxlong = 80


def quote(value: object) -> str:
    """Return `value` as a short single line that is safe to print, whatever a file put into it."""
    return _quoter.repr(value)


class OverstoryError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 1


class BadInputError(OverstoryError):
    """What the user gave cannot be used; nothing has been written."""

    exit_code = 2


class ProfileError(BadInputError):
    """A stored profile cannot be read, is damaged, holds nonsense, or cannot be written."""


class StaleProfileError(ProfileError):
    """The profile is sound, but describes another device, driver, machine or model, or is of an older version."""
