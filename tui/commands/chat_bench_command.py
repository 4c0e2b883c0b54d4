"""`overstory bench chat`: key-to-screen latency of the chat app, and its first paint."""

import json
import os
import sys
from typing import Annotated

import typer

from runtime.errors import OptionError
from tui.command_options import Quiet
from tui.report import measurement_table, progress_console


def chat_latency(
    *,
    target: Annotated[
        str | None, typer.Option(help="Folder or hub name of the model to run.", show_default="the demo model")
    ] = None,
    draft: Annotated[str, typer.Option(help="As for chat.")] = "substitute",
    device_memory: Annotated[str | None, typer.Option(help="As for chat.", show_default="what is free")] = None,
    emulate_link: Annotated[str | None, typer.Option(help="As for chat.", show_default="the real link")] = None,
    keys: Annotated[int, typer.Option(help="Keys at rest, and as many while it computes.", min=2)] = 200,
    quiet: Quiet = False,
) -> int:
    """How soon the chat app draws a typed letter, at rest and while an answer is computed; ends with one JSON line.

    The whole app in a terminal of its own, with folders of its own: your conversations are not touched.
    """
    if os.name != "posix":
        raise OptionError("this measurement needs a pseudo-terminal, which this system does not have")
    from tui.chat.latency_benchmark import ChatLatencyReport, run_latency_benchmark

    given = {"target": target, "draft": draft, "device-memory": device_memory, "emulate-link": emulate_link}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    console = progress_console(is_quiet=quiet)
    for step in run_latency_benchmark([*options, "--max-new-tokens=1024"], num_keys=keys):
        if isinstance(step, ChatLatencyReport):
            for title in ("at_rest", "while_computing"):
                console.print(measurement_table(step.to_record()[title], title=title.replace("_", " ")))
            sys.stdout.write(json.dumps(step.to_record()) + "\n")
        else:
            console.print(step, markup=False)
    return 0
