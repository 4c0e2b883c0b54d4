"""Listens on loopback and nowhere else, and serves until it is asked to end."""

import asyncio
import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from runtime.errors import OptionError
from runtime.serving.dispatcher import Dispatcher

HOSTS = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
"""Where a server may listen: whoever reaches another machine's address does not reach these."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 5
"""For answers that are told of the end."""
_SENTENCES = {
    errno.EADDRINUSE: "is in use already; give another --port, or 0 for any that is free",
    errno.EACCES: "is one that only root may use; give a --port from 1024 on",
    errno.EADDRNOTAVAIL: "cannot be had: this machine has no such address; give --host 127.0.0.1",
}


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a loopback address. Raises OptionError."""
    if host not in HOSTS:
        raise OptionError(
            f"--host is {host!r}; it must be {' or '.join(HOSTS)}, as the server is for programs of this machine alone"
        )
    if not 0 <= port < 1 << 16:
        raise OptionError(f"--port is {port}; it must be from 0 (any that is free) to 65535")
    listening = socket.socket(HOSTS[host], socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno in _SENTENCES:
            raise OptionError(f"port {port} of {host} {_SENTENCES[error.errno]}") from error
        raise OptionError(f"port {port} of {host} cannot be had: {error.strerror}; give another --port") from error
    return listening


class _Server(uvicorn.Server):
    """Tells the answers under way of the end before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear the signals that ask for the end, but for those that whoever started this process lets it ignore."""
        ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers, then the connections."""
        self._dispatcher.end()
        await super().shutdown(sockets)


async def serve_until_end(app: ASGIApp, dispatcher: Dispatcher, listening: socket.socket) -> None:
    """Load the model and answer until a signal or a load that fails.

    Raises the error of a first load, and KeyboardInterrupt after a signal.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config, dispatcher)
    dispatcher.start()
    watching = asyncio.ensure_future(_watch_load(server, dispatcher))
    try:
        await server.serve(sockets=[listening])
    finally:
        if server.started and not server.should_exit:  # cancelled
            await server.shutdown([listening])
        dispatcher.end()
        dispatcher.join()
        watching.cancel()
        if dispatcher.first_load.done():
            dispatcher.first_load.result()


async def _watch_load(server: uvicorn.Server, dispatcher: Dispatcher) -> None:
    loading = asyncio.wrap_future(dispatcher.first_load)
    await asyncio.wait({loading})
    if loading.exception() is not None:
        server.should_exit = True
