"""The command `unpack`: restore the original of a folder that `prepare --format packed` wrote.

Draws progress on stderr and ends with one JSON line on stdout.
"""

from pathlib import Path
from typing import Annotated

import typer

from tui.commands.prepare import write_model
from tui.options import Quiet


def unpack(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder that prepare --format packed wrote.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to be made.")],
    quiet: Quiet = False,
) -> int:
    """Restore the original of a packed folder, each tensor bit for bit and checked; run again to go on."""
    from runtime.fit.startup import check_startup

    check_startup(None)
    from runtime.prepare.preparation import unpack_model

    return write_model(unpack_model(model, output), doing="unpacking", title="unpacked", is_quiet=quiet)
