"""The command `prepare`: write a quantized copy of a model that this program and transformers both load.

Draws progress on stderr and ends with one JSON line on stdout.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tui.options import Quiet
from tui.printing import measurement_table, progress_console
from tui.terminal_text import one_line


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
    from runtime.prepare.preparation import PreparationRequest, PreparedModel, prepare_model

    request = PreparationRequest(model=model, output=output, format=weight_format, is_double=double_quant)
    console = progress_console(is_quiet=quiet)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=console.quiet,
    )
    task: TaskID | None = None
    try:
        with bar:
            for event in prepare_model(request):
                if isinstance(event, str):
                    console.print(one_line(event), markup=False)
                elif isinstance(event, PreparedModel):
                    record = {**asdict(event), "folder": str(event.folder), "format": request.format}
                    record["double_quant"] = request.is_double
                    console.print(measurement_table(record, title="prepared"))
                    sys.stdout.write(json.dumps(record) + "\n")
                else:
                    at = "embeddings and head" if event.layer_index is None else f"layer {event.layer_index + 1}"
                    words = f"{at} of {event.num_layers} layers{', kept' if event.is_kept else ''}"
                    task = bar.add_task(words, total=event.total_bytes) if task is None else task
                    bar.update(task, description=words, completed=event.done_bytes)
    except KeyboardInterrupt:
        sys.stderr.write("overstory: interrupted; run the same command again to go on where it stopped\n")
        raise SystemExit(130) from None
    return 0
