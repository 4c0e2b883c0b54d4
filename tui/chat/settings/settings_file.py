"""The settings as a TOML file in which every setting has its comment; nothing in it can keep the app from starting.

A single bad value gives way to its default, a file that is no TOML is set aside, and each is told in one sentence.
Written anew each time: comments of the user's own do not stay. Does not know what the settings mean.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from offload.errors import WriteError
from profiles.errors import quote
from profiles.files import read_regular_file
from runtime.errors import OptionError
from tui.chat.settings.chat_settings import SETTINGS, ChatSettings, Setting
from tui.chat.store.private_files import replace_private_file, set_aside
from tui.chat.store.records import storable
from tui.terminal_text import one_line

MAX_FILE_BYTES = 1 << 20

# What TOML wants escaped in a string between quotes, and the controls that a terminal would obey.
_ESCAPED = re.compile(r'["\\\x00-\x08\x0a-\x1f\x7f-\x9f]')

_HEADER = """\
# Settings of `overstory chat`. The app writes this file anew whenever a setting changes there;
# edit it while the app is closed. A line that is missing stands for the default.
"""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """The settings, and what the user should know about the file."""

    settings: ChatSettings
    notices: tuple[str, ...] = ()
    """One sentence each."""


def read_settings(path: Path) -> ReadSettings:
    """The settings in the file, or the defaults for what it does not say; never raises for what the file holds."""
    try:
        values = _read(path)
    except FileNotFoundError:
        return ReadSettings(ChatSettings())
    except OSError as error:
        reason = (
            f"{one_line(str(path))} cannot be read ({error.strerror or error}), so all settings have their defaults"
        )
        return ReadSettings(ChatSettings(), (reason,))
    except ValueError as error:
        return ReadSettings(ChatSettings(), (_set_aside(path, one_line(str(error))),))
    return _from_values(values, where=one_line(str(path)))


def write_settings(path: Path, settings: ChatSettings) -> None:
    """Replace the file in one step; makes its folder if need be. Raises WriteError."""
    try:
        replace_private_file(path, format_settings(settings).encode())
    except OSError as error:
        raise WriteError(
            f"the settings cannot be written to {one_line(str(path))} ({error.strerror or error}); they hold until the "
            "app is closed; make room, make the folder writable, or set OVERSTORY_CONFIG"
        ) from error


def format_settings(settings: ChatSettings) -> str:
    """The text of the file."""
    lines = [_HEADER]
    group = ""
    for setting in SETTINGS:
        if setting.group != group:
            group = setting.group
            lines.append(f"\n# ---- {group} ----\n\n")
        lines.append(f"# {setting.help}\n{setting.name} = {_to_toml(getattr(settings, setting.name))}\n")
    return "".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """Raises OSError, or ValueError for content that is not TOML."""
    try:
        return tomllib.loads(read_regular_file(path, max_bytes=MAX_FILE_BYTES).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _set_aside(path: Path, reason: str) -> str:
    begin = f"{one_line(str(path))} is no settings file ({reason}), so all settings have their defaults"
    try:
        aside = set_aside(path, now=datetime.now())
    except OSError as error:
        return f"{begin}; it could not be renamed ({error.strerror or error})"
    return f"{begin}; it was renamed to {one_line(aside.name)}"


def _from_values(values: Mapping[str, Any], *, where: str) -> ReadSettings:
    sound: dict[str, Any] = {}
    notices = []
    for setting in SETTINGS:
        if setting.name not in values:
            continue
        value = _from_toml(values[setting.name])
        try:
            ChatSettings(**{setting.name: value})
            sound[setting.name] = value
        except OptionError as error:
            notices.append(f"{where}: {one_line(str(error)).rstrip('.')}; {_default_in_words(setting)} is used instead")
    if unknown := [quote(name) for name in values if name not in {setting.name for setting in SETTINGS}]:
        verb = "is no setting and is" if len(unknown) == 1 else "are no settings and are"
        notices.append(f"{where}: {', '.join(unknown)} {verb} ignored; the next change of a setting removes that")
    return ReadSettings(ChatSettings(**sound), tuple(notices))


def _default_in_words(setting: Setting) -> str:
    return f"the default, {_to_toml(setting.default)},"


def _from_toml(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_quoted(item) for item in value)}]"
    if isinstance(value, str):
        return _on_lines(value) if "\n" in value else _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(_escape, storable(text)) + '"'


def _on_lines(text: str) -> str:
    """Between three quotes; a newline right after them does not count."""
    lines = (_ESCAPED.sub(_escape, line) for line in storable(text).split("\n"))
    return '"""\n' + "\n".join(lines) + '"""'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
