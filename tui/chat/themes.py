"""The app's own colours, dark and light, and which of them a terminal gets unless one was chosen."""

from collections.abc import Container, Mapping

from textual.theme import Theme

AUTO = "auto"
DARK = Theme(
    name="overstory-dark",
    primary="#7aa2f7",
    secondary="#bb9af7",
    accent="#e0af68",
    foreground="#d5daf0",
    background="#14161f",
    surface="#191c27",
    panel="#222635",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    dark=True,
)
LIGHT = Theme(
    name="overstory-light",
    primary="#2f5fd0",
    secondary="#7a3fb8",
    accent="#9a5b00",
    foreground="#1d2230",
    background="#fbfbf8",
    surface="#f3f3ee",
    panel="#e6e7e2",
    success="#2f7d32",
    warning="#9a5b00",
    error="#c0283f",
    dark=False,
)
THEMES = (DARK, LIGHT)


def theme_name(wanted: str, environment: Mapping[str, str], *, known: Container[str]) -> str:
    """Return the theme to show: the one that is wanted, or ours for the background that the terminal tells of."""
    if wanted != AUTO and wanted in known:
        return wanted
    return LIGHT.name if has_light_background(environment) else DARK.name


def has_light_background(environment: Mapping[str, str]) -> bool:
    """Read COLORFGBG, which rxvt, Konsole and others set as in `0;15`: the last number is the background's colour."""
    background = environment.get("COLORFGBG", "").split(";")[-1]
    return background.isdigit() and (background == "7" or 9 <= int(background) <= 15)
