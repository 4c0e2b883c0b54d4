"""Bars and curves made of characters, which say the same without colour.

Every function gives text of exactly the width that was asked for.
"""

from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def progress_bar(share: float, width: int) -> str:
    """A heavy line on a light one: `━━━━╸─────`."""
    halves = round(_within(share) * width * 2)
    full, half = divmod(halves, 2)
    return ("━" * full + "╸" * half).ljust(width, "─")


def share_bar(share: float, width: int) -> str:
    """A block from the left, in eighths of a character: `████▌     `."""
    full, eighths = divmod(round(_within(share) * width * 8), 8)
    return ("█" * full + (_EIGHTHS[eighths] if eighths else "")).ljust(width)


def spark_line(values: Sequence[float], width: int, *, top: float | None = None) -> str:
    """The last `width` values as columns from 0 to `top`, or to their own largest; what is missing is blank."""
    shown = list(values)[-width:] if width > 0 else []
    highest = max(shown, default=0.0) if top is None else top
    return "".join(_column(value, highest) for value in shown).rjust(width)


def _column(value: float, highest: float) -> str:
    if highest <= 0:
        return _LEVELS[0]
    return _LEVELS[round(_within(value / highest) * (len(_LEVELS) - 1))]


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
