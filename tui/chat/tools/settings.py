"""Which servers of tools the settings file names: `[mcp.NAME]` with a command, as other programs have them.

It starts nothing. A table with a mistake in it is no server, and is told in one sentence.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from offload.errors import WriteError
from profiles.errors import quote
from profiles.files import read_regular_file
from tui.chat.store.private_files import replace_private_file
from tui.terminal_text import one_line

SERVERS = "mcp"
"""The table of servers in the settings file."""
CALL_SECONDS = 60.0
_MAX_SECONDS = 86_400.0
_MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_-]{0,31}(?<!_)")
_HOW = 'command = "PROGRAM" and args = ["ARGUMENT"]'


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One server, as the settings name it."""

    name: str
    command: str
    """What starts it; it is spoken to over its standard streams."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """What it finds in its environment besides PATH, HOME and the like."""
    enabled: bool = True
    timeout_seconds: float = CALL_SECONDS
    """How long one call may take."""
    off: frozenset[str] = frozenset()
    """Its tools that no model is told of."""


def read_servers(path: Path) -> tuple[tuple[ServerSettings, ...], tuple[str, ...]]:
    """Return the servers that the settings file names, and what is wrong with the others, a sentence each.

    Nothing where it cannot be read, which is told elsewhere.
    """
    try:
        text = read_regular_file(path, max_bytes=_MAX_FILE_BYTES).decode("utf-8-sig")
        return parse_servers(tomllib.loads(text).get(SERVERS, {}))
    except (OSError, ValueError, RecursionError):
        return (), ()


def parse_servers(tables: object) -> tuple[tuple[ServerSettings, ...], tuple[str, ...]]:
    """Return the servers in `[mcp]`, and what is wrong with the others, a sentence each."""
    if not isinstance(tables, Mapping):
        return (), (f"mcp in the settings is no table; begin each server with [mcp.NAME], then {_HOW}",)
    servers, problems = [], []
    for name, table in tables.items():
        try:
            servers.append(_server(name, table))
        except ValueError as error:
            problems.append(f"[mcp.{one_line(name)}] in the settings: {error}; the server is left out")
    return tuple(servers), tuple(problems)


def keep_server(path: Path, server: ServerSettings) -> None:
    """Write whether a server is enabled and which of its tools are off; the rest of the file stays. Raises WriteError.

    What the file does not name any more is left alone.
    """
    try:
        document = tomlkit.parse(read_regular_file(path, max_bytes=_MAX_FILE_BYTES).decode("utf-8-sig"))
        tables = document.get(SERVERS)
        table = tables.get(server.name) if isinstance(tables, Mapping) else None
        if not isinstance(table, Table):
            return
        if server.enabled != table.get("enabled", True):
            table["enabled"] = server.enabled
        if server.off or "off" in table:
            table["off"] = sorted(server.off)
        replace_private_file(path, document.as_string().encode())
    except (OSError, ValueError, TOMLKitError) as error:
        raise WriteError(
            f"what is on and off cannot be written to {one_line(str(path))} ({one_line(str(error))}); it holds until "
            "the app is closed; make the file writable, or set OVERSTORY_CONFIG"
        ) from error


def _server(name: str, table: object) -> ServerSettings:
    """Raise ValueError, which says what is wrong."""
    if not _NAME.fullmatch(name):
        raise ValueError("a server's name is 1 to 32 letters, digits, - and single _, such as files")
    if not isinstance(table, Mapping):
        raise ValueError(f"it is {quote(table)} and must be a table: {_HOW}")
    readers: Mapping[str, Callable[[object], object]] = {
        "command": _command,
        "args": _texts,
        "env": _environment,
        "enabled": _switch,
        "timeout_seconds": _seconds,
        "off": lambda value: frozenset(_texts(value)),
    }
    for key in table:
        if key not in readers:
            near = get_close_matches(key, readers, n=1)
            hint = "only servers that a command starts are known" if key in ("url", "type", "headers") else ""
            raise ValueError(
                f"{quote(key)} is none of {', '.join(readers)}"
                + (f"; did you mean {near[0]}?" if near else f"; {hint}" if hint else "")
            )
    if "command" not in table:
        raise ValueError(f"it has no command; give it {_HOW}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"{key} is {quote(value)} and must be {error}") from error
    return ServerSettings(name=name, **values)


def _command(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("the name or the path of a program")
    return str(Path(value).expanduser()) if value.startswith("~") else value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise ValueError('a list of texts, such as ["--root", "."]')
    return tuple(value)


def _environment(value: object) -> dict[str, str]:
    is_table = isinstance(value, Mapping) and all(
        isinstance(text, str) and "\0" not in name + text and name and "=" not in name for name, text in value.items()
    )
    if not isinstance(value, Mapping) or not is_table:
        raise ValueError('a table of texts, such as { KEY = "value" }')
    return dict(value)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_SECONDS:
        raise ValueError(f"a number of seconds above 0, at most {_MAX_SECONDS:,.0f}")
    return float(value)
