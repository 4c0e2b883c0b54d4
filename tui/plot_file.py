"""Drawings in files: checked before anything is measured, and there complete or not at all. matplotlib is optional."""

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

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
        _replace(path, drawn.getvalue())
    except OSError as error:
        raise OptionError(f"--plot {one_line(str(path))!r} cannot be written: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    neighbour = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise
