"""`overstory serve` answers the clients of OpenAI's and Anthropic's APIs on this machine."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.errors import OptionError
from runtime.prompts.prompt_file import LineDefaults
from tui.environment import load_models
from tui.interruption import CommandInterruptedError
from tui.options import Quiet, ServingConfig, ServingParams, TurnOptions, typed_fields, with_option_groups
from tui.printing import load_in_sight, progress_console

if TYPE_CHECKING:
    from tui.server.running import RunningServer

USUAL_PORT = 8000
_KEY_VARIABLE = "OVERSTORY_API_KEY"


@with_option_groups
def serve(
    command_line: typer.Context,
    config: ServingConfig,
    params: ServingParams,
    turns: TurnOptions,
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="127.0.0.1|::1", help="Where to listen: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes any that is free.")] = USUAL_PORT,
    idle_unload: Annotated[
        float | None,
        typer.Option(
            "--idle-unload",
            min=0.001,
            metavar="SECONDS",
            help="Free the model's memory after so long without a request; the next one loads it again.",
            show_default="never",
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue", min=1, metavar="N", help="Answers that may wait; more are refused, with the time to retry."
        ),
    ] = 64,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            help=f"Answer only clients that send this key; better given as {_KEY_VARIABLE}, which no list of processes "
            "shows.",
            show_default="none",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients are told that the model is called.", show_default="the target's"),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Answer clients of OpenAI's and Anthropic's APIs on this machine: /v1/chat/completions, /v1/completions,
    /v1/responses, /v1/messages, /v1/models.

    Tell a client the base URL that the first line shows, http://127.0.0.1:8000/v1, and any key unless --api-key
    is given. Requests that come together share passes; clients take turns, and one that goes away ends its
    answers. A line on stderr tells of each answer what it took, and never its text, and of each refusal; --quiet leaves
    that out. /health and /metrics say how it goes. Web pages are refused, and so are other machines.

    The options of answers hold where a request says nothing.
    """
    key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
    if key is not None and not key.strip():
        raise OptionError(f"the API key is empty; give another --api-key or {_KEY_VARIABLE}, or leave it out")
    from runtime.serving.dispatcher import Dispatcher
    from tui.server.app import build_app
    from tui.server.exchange import Service
    from tui.server.listening import listen, serve_until_end
    from tui.server.log import ServerLog, WaitingLines
    from tui.server.running import RunningServer, announced, found_anywhere

    def write(sentence: str) -> None:
        with suppress(OSError, ValueError):  # whoever read stderr may be gone, and the server goes on
            sys.stderr.write(f"overstory: {sentence}\n")
            sys.stderr.flush()

    lines = WaitingLines(write)
    console, log = progress_console(is_quiet=quiet), ServerLog() if quiet else ServerLog(lines.add)
    with closing(listen(host, port)) as listening:
        dispatcher = Dispatcher(
            lambda stack: load_in_sight(load_models(config, stack), console),
            most_waiting=max_queue,
            idle_seconds=idle_unload,
            tell=log.tell,
        )
        unchosen = options_of(SamplingParams).keys() - typed_fields(command_line, SamplingParams)
        common = LineDefaults(params=params, unchosen=frozenset(unchosen), system=turns.system, is_raw=turns.raw)
        model = name or model_name(config)
        service = Service(dispatcher=dispatcher, common=common, model=model, created=int(time.time()), log=log)
        target = found_anywhere(config.target)
        record = RunningServer(host=host, port=listening.getsockname()[1], model=model, target=target, api_key=key)
        try:
            with lines, log.with_the_library():
                for line in _first_lines(record):
                    log.write(line)
                with announced(record):
                    asyncio.run(serve_until_end(build_app(service, api_key=key), dispatcher, listening))
        except KeyboardInterrupt as error:
            raise CommandInterruptedError("the server has ended, and with it the answers under way") from error
    return 0


def _first_lines(server: "RunningServer") -> Iterator[str]:
    """Yield what a person needs to begin with."""
    url, whose = server.base_url, "your" if server.api_key else "any"
    yield f"serving {server.model} at {url}/v1 while it loads; requests wait for it; {_end()} ends the server"
    yield f"tell clients the base URL {url}/v1 (Anthropic's: {url}) and {whose} API key"


def _end() -> str:
    """Return what ends the server: a shell's background job ignores Ctrl-C."""
    return "SIGTERM" if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else "Ctrl-C"


def model_name(config: EngineConfig) -> str:
    """Return what a model is called where nobody says: its name as typed, of a folder or file the last part."""
    target = config.target or "demo"
    is_path = PurePath(target).is_absolute() or target.startswith((".", "~")) or target.endswith(".gguf")
    return PurePath(target).name or target if is_path else target
