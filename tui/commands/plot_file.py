"""Drawings in files: checked before anything is measured, and there complete or not at all. matplotlib is optional."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.files import replace_content
from runtime.errors import OptionError
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".svg")


def check_plot_path(path: Path) -> None:
    """Raise OptionError for a file that could not be drawn: before anything is measured."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise OptionError(f"--plot {one_line(str(path))!r} must end in {' or '.join(PLOT_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError("--plot needs matplotlib; install it with: pip install 'overstory[plot]'") from error


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the drawing. Raises OptionError."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower().removeprefix("."))
    try:
        replace_content(path, drawn.getvalue())
    except OSError as error:
        raise OptionError(f"--plot {one_line(str(path))!r} cannot be written: {error.strerror or error}") from error
