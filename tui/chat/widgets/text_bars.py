"""Bars and curves made of characters, which say the same without colour.

Bars and curves are exactly as wide as was asked for.
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


def column_chart(values: Sequence[float | None], *, height: int, step: int, width: int) -> tuple[str, ...]:
    """Columns from 0 to 1, one every `step` characters, in `height` rows from the top; None is a dot at the foot."""
    rows = []
    for row in reversed(range(height)):
        signs = "".join(_block(value, row, height).ljust(step) for value in values)
        rows.append(signs[:width].rstrip())
    return tuple(rows)


def _block(value: float | None, row: int, height: int) -> str:
    if value is None:
        return "·" if row == 0 else " "
    eighths = round(_within(value) * height * 8) - row * 8
    lowest = 1 if row == 0 else 0  # so that a depth where nothing was ever accepted is seen to have been tried
    return (" " + _LEVELS)[min(8, max(lowest, eighths))]


def _column(value: float, highest: float) -> str:
    if highest <= 0:
        return _LEVELS[0]
    return _LEVELS[round(_within(value / highest) * (len(_LEVELS) - 1))]


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
