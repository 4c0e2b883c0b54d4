"""Servers that run on this machine, so that other commands find them: a private file for each, removed at its end.

Whoever may read the file may use the server, since its key stands there. A record whose process has ended is no server.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from profiles.files import parse_json_text, read_regular_file
from tui.chat.store.private_files import replace_private_file
from tui.chat.store.writers import is_writing, writer_token
from tui.environment import cache_folder

SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 1 << 16
_FILE_NAME = re.compile(r"[0-9]{1,5}\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """One server, as its clients need it."""

    host: str
    """127.0.0.1 or ::1."""
    port: int
    model: str
    """What /v1/models calls the model that it answers with."""
    target: str = ""
    """The model as the server was asked for it, see `found_anywhere`; empty for the demo model."""
    api_key: str | None = None
    """What a client has to send as its bearer; None is nothing."""
    process: str = ""
    """Names the process that serves; that of the writer where it is empty."""
    schema_version: int = SCHEMA_VERSION

    @property
    def base_url(self) -> str:
        """What clients are told, without the /v1 that some want behind it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def found_anywhere(target: str | None) -> str:
    """Return a target as commands of other folders find it: a folder or file by its whole path, a name as it is."""
    return str(Path(target).resolve()) if target and Path(target).exists() else target or ""


def servers_folder() -> Path:
    """Return the folder of the records; it may not exist yet."""
    return cache_folder() / "servers"


@contextmanager
def announced(server: RunningServer, *, folder: Path | None = None) -> Iterator[None]:
    """Let other commands find a server while the context lasts. Raises OSError where that cannot be written."""
    path = (servers_folder() if folder is None else folder) / f"{server.port}.json"
    server = replace(server, process=server.process or writer_token())
    replace_private_file(path, msgspec.json.encode(server))
    try:
        yield
    finally:
        if _read(path) == server:  # and not that of a later one on the same port
            with suppress(OSError):
                path.unlink()


def running_servers(*, folder: Path | None = None) -> list[RunningServer]:
    """Return the servers whose processes run, the one that began last in front; what is no record is passed over."""
    folder = servers_folder() if folder is None else folder
    found: list[tuple[float, RunningServer]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            server = _read(path) if _FILE_NAME.fullmatch(path.name) else None
            if server is not None and is_writing(server.process):
                with suppress(OSError):
                    found.append((path.stat().st_mtime, server))
    return [server for _, server in sorted(found, key=lambda each: each[0], reverse=True)]


def _read(path: Path) -> RunningServer | None:
    try:
        record = parse_json_text(read_regular_file(path, max_bytes=MAX_RECORD_BYTES))
        server = msgspec.convert(record, RunningServer)
    except (OSError, ValueError):
        return None
    is_ours = server.schema_version == SCHEMA_VERSION and server.host in ("127.0.0.1", "::1")
    return server if is_ours and 0 < server.port < 1 << 16 else None
