"""Connects to a Ray cluster, or starts one that listens on this machine's loopback alone. Ray is optional."""

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from profiles.errors import quote
from runtime.errors import OptionError

LOCAL = "local"
"""The address that stands for a cluster of this machine alone."""
_LOCAL_ENVIRONMENT = {
    # Makes 127.0.0.1 the address of this machine's node, on which all its processes then listen: the setting with which
    # Ray keeps other systems' firewalls from asking. It is read when Ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else processes are ended where little memory is free, and an engine takes what is free.
    "RAY_memory_monitor_refresh_ms": "0",
    # Only who has the token may run something on the cluster: not whoever else uses this machine.
    "RAY_AUTH_MODE": "token",
}
_LOCAL_STORE_BYTES = 256 << 20
"""Of the local cluster's object store, where requests wait; Ray's own choice is a third of all memory."""

_PATIENCE_SECONDS = 5.0
_HOW_TO_JOIN = (
    "make this machine a node of the cluster with ray start --head, or ray start --address HOST:PORT, or give "
    f"--ray {LOCAL}"
)


@contextmanager
def open_cluster(address: str) -> Iterator[None]:
    """Connect to the cluster at `address`, HOST:PORT or LOCAL, until the context ends.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address, or this machine is none of its nodes.
    """
    if "://" in address:
        raise OptionError(
            f"--ray is {quote(address)}, and through Ray's client results do not come one by one; run this on a "
            "machine of the cluster, with --ray HOST:PORT"
        )
    _check_that_it_listens(address)
    if address != LOCAL:
        with _connect(address):
            yield
        return
    with (
        _environment({**_LOCAL_ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}),
        _connect(address, include_dashboard=False, object_store_memory=_LOCAL_STORE_BYTES),
    ):
        yield


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set the variables that are not set, until the context ends."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _connect(address: str, **options: Any) -> Iterator[None]:
    try:
        import ray
    except ImportError as error:
        raise OptionError("--ray needs Ray; install it with: pip install 'overstory[ray]'") from error
    on_termination = signal.getsignal(signal.SIGTERM)
    # Only results may stand on standard output, where Ray tells of processes that have ended, up to its own end.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            ray.init(address, **options, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            advice = "run without --ray" if address == LOCAL else _HOW_TO_JOIN
            raise OptionError(f"--ray {quote(address)}: {reason}; {advice}") from error
        finally:
            signal.signal(signal.SIGTERM, on_termination)  # Ray's own has taken its place
        try:
            yield
        finally:
            ray.shutdown()


def _check_that_it_listens(address: str) -> None:
    """Raise OptionError where nothing listens at HOST:PORT: Ray itself would go on asking for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise OptionError(f"--ray {quote(address)}: no cluster is there ({error}); {_HOW_TO_JOIN}") from error
