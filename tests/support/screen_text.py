"""The screen of an app as plain text, and its comparison with a stored one.

OVERSTORY_UPDATE_SNAPSHOTS=1 stores what is shown instead of comparing.
"""

import os
import re
from pathlib import Path

import tui.chat

STYLES = Path(tui.chat.__file__).with_name("chat.tcss")
"""The chat's own, for apps that show a part of it."""
FOLDER = Path(__file__).parent / "snapshots"


def screen_rows(app) -> list[str]:
    """Every row of the top screen without the spaces at its end."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def screen_text(app) -> str:
    """Those rows as lines."""
    return "\n".join(screen_rows(app)) + "\n"


def places_of(app, word: str) -> list[tuple[int, int]]:
    """Column and row of each place where a word stands on the screen, from the top."""
    rows = enumerate(screen_rows(app))
    return [(found.start(), y) for y, row in rows for found in re.finditer(rf"\b{re.escape(word)}\b", row)]


def assert_snapshot(app, name: str) -> None:
    """The screen is what it was when `name` was stored."""
    path = FOLDER / f"{name}.txt"
    shown = screen_text(app)
    if os.environ.get("OVERSTORY_UPDATE_SNAPSHOTS") == "1":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), f"the screen differs from {path.name}"
