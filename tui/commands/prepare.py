"""The command `prepare`: write a copy of a model, quantized for this program and transformers, or packed bit for bit.

Draws progress on stderr and ends with one JSON line on stdout.
"""

import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tui.interruption import CommandInterruptedError
from tui.options import Quiet
from tui.printing import measurement_tables, progress_console, show_load

if TYPE_CHECKING:
    from runtime.events import LoadProgress


def prepare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name of the bf16, fp16 or fp32 model.")],
    *,
    weight_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="int8 (rows, half the bytes of bf16), nf4 (4-bit blocks, a quarter) or packed (bf16 bit for bit in "
            "three quarters, which only this program reads). Of an image-text model int8 and nf4 hold the text part "
            "alone.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to be made.")],
    double_quant: Annotated[
        bool,
        typer.Option(
            "--double-quant/--no-double-quant", help="nf4 only: quantize the scales too (0.4 bits a weight less)."
        ),
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Write a quantized copy of a model that transformers itself loads, or a packed one; run again to go on."""
    from runtime.fit.startup import check_startup

    check_startup(None)
    from runtime.prepare.preparation import prepare_model

    steps = prepare_model(model, output, weight_format=weight_format, is_double=double_quant)
    return write_model(steps, doing="preparing", title="prepared", is_quiet=quiet)


def write_model(
    steps: "Generator[str | LoadProgress, None, dict[str, Any]]", *, doing: str, title: str, is_quiet: bool
) -> int:
    """Run the steps that write a model's folder, and end with their record."""
    console = progress_console(is_quiet=is_quiet)
    try:
        record = show_load(steps, console, doing=doing)
    except KeyboardInterrupt:
        raise CommandInterruptedError("run the same command again to go on where it stopped") from None
    console.print(*measurement_tables(record, title=title))
    sys.stdout.write(json.dumps(record) + "\n")
    return 0
