"""The app's own colours, dark and light, and which of them a terminal gets unless one was chosen."""

from collections.abc import Container, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from textual.theme import Theme

from runtime.errors import OptionError
from tui.terminal_text import one_line

AUTO = "auto"
_COLORS: dict[str, tuple[str, str]] = {
    "primary": ("#7aa2f7", "#2f5fd0"),
    "secondary": ("#bb9af7", "#7a3fb8"),
    "accent": ("#e0af68", "#8f5400"),
    "foreground": ("#d5daf0", "#1d2230"),
    "background": ("#14161f", "#fbfbf8"),
    "surface": ("#191c27", "#f3f3ee"),
    "panel": ("#222635", "#e6e7e2"),
    "success": ("#9ece6a", "#28712b"),
    "warning": ("#e0af68", "#8f5400"),
    "error": ("#f7768e", "#c0283f"),
}
"""Dark and light."""


def _theme(name: str, *, is_dark: bool) -> Theme:
    colors: dict[str, Any] = {role: dark if is_dark else light for role, (dark, light) in _COLORS.items()}
    return Theme(name, dark=is_dark, **colors)


DARK, LIGHT = _theme("overstory-dark", is_dark=True), _theme("overstory-light", is_dark=False)
THEMES = (DARK, LIGHT)
_SHORT_NAMES: Mapping[str, str] = {"dark": DARK.name, "light": LIGHT.name}
"""What people call ours, beside the themes that come with Textual."""


def theme_choices(known: Iterable[str]) -> tuple[str, ...]:
    """Return what may be chosen of the themes that are known: ours first, by their short names."""
    return (AUTO, *_SHORT_NAMES, *sorted(set(known).difference(_SHORT_NAMES.values())))


def find_theme(typed: str, known: Iterable[str]) -> str:
    """Return the choice that somebody typed, in any case and also by its long name.

    Raises OptionError, with a near name where there is one.
    """
    choices, wanted = theme_choices(known), short_name(typed.strip().lower())
    if wanted in choices:
        return wanted
    near = get_close_matches(wanted, choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(choices)}"
    raise OptionError(f"there is no theme {one_line(typed)}; {hint}")


def short_name(name: str) -> str:
    """Return what people call a theme."""
    return next((short for short, long in _SHORT_NAMES.items() if long == name), name)


def theme_name(
    wanted: str, environment: Mapping[str, str], *, known: Container[str], is_light: bool | None = None
) -> str:
    """Return the theme to show: the one that is wanted, or ours for the terminal's background.

    `is_light` is what the terminal said of it; as long as it has not, the environment may know.
    """
    if is_theme(wanted, known=known):
        return _SHORT_NAMES.get(wanted, wanted)
    return LIGHT.name if (has_light_background(environment) if is_light is None else is_light) else DARK.name


def is_theme(wanted: str, *, known: Container[str]) -> bool:
    """Return whether that is one theme, which the terminal's background does not change."""
    return wanted in _SHORT_NAMES or (wanted != AUTO and wanted in known)


def has_light_background(environment: Mapping[str, str]) -> bool:
    """Read COLORFGBG, which rxvt, Konsole and others set as in `0;15`: the last number is the background's colour."""
    background = environment.get("COLORFGBG", "").split(";")[-1]
    return background.isdigit() and (background == "7" or 9 <= int(background) <= 15)
