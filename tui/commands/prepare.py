"""The command `prepare`: write a quantized copy of a model that this program and transformers both load.

Draws progress on stderr and ends with one JSON line on stdout.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tui.interruption import CommandInterruptedError
from tui.options import Quiet
from tui.printing import measurement_tables, progress_console, show_load


def prepare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name of the bf16, fp16 or fp32 model.")],
    *,
    weight_format: Annotated[
        str, typer.Option("--format", help="int8 (rows, half the bytes of bf16) or nf4 (4-bit blocks, a quarter).")
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
    """Write a quantized copy of a model that transformers itself loads, layer by layer; run again to go on."""
    from runtime.fit.startup import check_startup

    check_startup(None)
    from runtime.prepare.preparation import prepare_model

    console = progress_console(is_quiet=quiet)
    steps = prepare_model(model, output, weight_format=weight_format, is_double=double_quant)
    try:
        record = show_load(steps, console, doing="preparing")
    except KeyboardInterrupt:
        raise CommandInterruptedError("run the same command again to go on where it stopped") from None
    console.print(*measurement_tables(record, title="prepared"))
    sys.stdout.write(json.dumps(record) + "\n")
    return 0
