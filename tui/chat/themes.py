"""The app's own colours, dark and light, and which of them a terminal gets unless one was chosen."""

from collections.abc import Container, Mapping
from typing import Any

from textual.theme import Theme

AUTO = "auto"
_COLORS: dict[str, tuple[str, str]] = {
    "primary": ("#7aa2f7", "#2f5fd0"),
    "secondary": ("#bb9af7", "#7a3fb8"),
    "accent": ("#e0af68", "#9a5b00"),
    "foreground": ("#d5daf0", "#1d2230"),
    "background": ("#14161f", "#fbfbf8"),
    "surface": ("#191c27", "#f3f3ee"),
    "panel": ("#222635", "#e6e7e2"),
    "success": ("#9ece6a", "#2f7d32"),
    "warning": ("#e0af68", "#9a5b00"),
    "error": ("#f7768e", "#c0283f"),
}
"""Dark and light."""


def _theme(name: str, *, is_dark: bool) -> Theme:
    colors: dict[str, Any] = {role: dark if is_dark else light for role, (dark, light) in _COLORS.items()}
    return Theme(name, dark=is_dark, **colors)


DARK, LIGHT = _theme("overstory-dark", is_dark=True), _theme("overstory-light", is_dark=False)
THEMES = (DARK, LIGHT)


def theme_name(
    wanted: str, environment: Mapping[str, str], *, known: Container[str], is_light: bool | None = None
) -> str:
    """Return the theme to show: the one that is wanted, or ours for the terminal's background.

    `is_light` is what the terminal said of it; as long as it has not, the environment may know.
    """
    if wanted != AUTO and wanted in known:
        return wanted
    return LIGHT.name if (has_light_background(environment) if is_light is None else is_light) else DARK.name


def has_light_background(environment: Mapping[str, str]) -> bool:
    """Read COLORFGBG, which rxvt, Konsole and others set as in `0;15`: the last number is the background's colour."""
    background = environment.get("COLORFGBG", "").split(";")[-1]
    return background.isdigit() and (background == "7" or 9 <= int(background) <= 15)
