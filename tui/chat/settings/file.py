"""The settings of this run, and the person's own TOML file that remembers them.

What changes in the app changes only its own line: comments, order and unknown keys stay as they are. Nothing
in the file keeps the app from starting: a bad value gives way to its default, a file that is no TOML is set aside, and
each is told in one sentence. What the command line says comes before what is remembered, until the app changes it.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from random import SystemRandom
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from offload.errors import WriteError
from profiles.errors import quote
from profiles.files import read_regular_file
from runtime.errors import OptionError
from tui.chat.settings.settings import SETTINGS, ChatSettings, changed_names
from tui.chat.store.private_files import replace_private_file, set_aside
from tui.chat.store.records import storable
from tui.terminal_text import one_line

MAX_FILE_BYTES = 1 << 20

_MAX_SEED = 2**31
# What TOML wants escaped in a string between quotes, and the controls that a terminal would obey.
_ESCAPED = re.compile(r'["\\\x00-\x08\x0a-\x1f\x7f-\x9f]')

_HEADER = """\
# Settings of `overstory chat`. A setting that changes in the app changes only its own line here; what you
# change takes effect at the next start. A line that is missing stands for the default.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says for this run."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `EngineConfig`."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SamplingParams`."""
    system_prompt: str | None = None
    """Of new conversations; None is the one that is remembered."""


class RememberedSettings:
    """What holds now, and the file that remembers it."""

    def __init__(
        self,
        settings: ChatSettings,
        *,
        path: Path | None = None,
        overrides: Overrides | None = None,
        draw_seed: Callable[[], int] = lambda: SystemRandom().randrange(_MAX_SEED),
    ) -> None:
        """`path` is the file to write; None remembers nothing."""
        overrides = Overrides() if overrides is None else overrides
        self.settings = settings
        self._path = path
        self._config, self._params = dict(overrides.config), dict(overrides.params)
        self._system_prompt = overrides.system_prompt
        self._draw_seed = draw_seed
        self._unwritten: set[str] = set()

    @property
    def system_prompt(self) -> str:
        """What a new conversation tells the model first."""
        prompt: str = self.settings.system_prompt
        return prompt if self._system_prompt is None else self._system_prompt

    def params(self) -> dict[str, Any]:
        """Return fields of `SamplingParams` for the next answer."""
        return self.settings.to_params_fields(random_seed=self._draw_seed()) | self._params

    def config(self) -> dict[str, Any]:
        """Return fields of `EngineConfig` for the next load."""
        return self.settings.to_config_fields() | self._config

    def replace(self, settings: ChatSettings) -> None:
        """Let these hold and remember them. Raises WriteError; they hold all the same."""
        changed = changed_names(self.settings, settings)
        for name in changed:
            self._config.pop(SETTINGS[name].option.name, None)
            self._params.pop(name, None)
            if name == "system_prompt":
                self._system_prompt = None
        self.settings = settings
        self._unwritten.update(changed)
        if self._path is not None and self._unwritten:
            write_settings(self._path, settings, self._unwritten)
            self._unwritten.clear()

    def choose_model(self, target: str, *, draft: str) -> None:
        """Let the next load be of this model and draft, whatever the command line said. Raises WriteError."""
        self._config.pop("target", None)
        self._config.pop("draft", None)
        self.replace(self.settings.with_target(target).replace(draft=draft))


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """The settings, and what the user should know about the file."""

    settings: ChatSettings
    notices: tuple[str, ...] = ()
    """One sentence each."""


def read_settings(path: Path) -> ReadSettings:
    """Return the settings in the file, or the defaults for what it does not say; never raise for what it holds."""
    where = one_line(str(path))
    try:
        return _from_values(_parsed(_read_text(path)), where=where)
    except FileNotFoundError:
        return ReadSettings(ChatSettings())
    except OSError as error:
        reason = f"{where} cannot be read ({error.strerror or error}), so all settings have their defaults"
        return ReadSettings(ChatSettings(), (reason,))
    except ValueError as error:
        return ReadSettings(ChatSettings(), (_set_aside(path, one_line(str(error))),))


def write_settings(path: Path, settings: ChatSettings, changed: Iterable[str]) -> None:
    """Change these settings in the file, in one step; a new file gets all of them. Raises WriteError.

    The file is read anew first, so that what a person changed in it meanwhile stays.
    """
    try:
        try:
            text = _with_changes(_read_text(path), settings, changed)
        except FileNotFoundError:
            text = format_settings(settings)
        replace_private_file(path, text.encode())
    except OSError as error:
        raise WriteError(
            f"the settings cannot be written to {one_line(str(path))} ({error.strerror or error}); they hold until the "
            "app is closed; make room, make the folder writable, or set OVERSTORY_CONFIG"
        ) from error
    except (ValueError, TOMLKitError) as error:
        raise WriteError(
            f"the settings are not written to {one_line(str(path))}, which is no settings file now "
            f"({one_line(str(error))}); they hold until the app is closed; mend the file or move it away"
        ) from error


def format_settings(settings: ChatSettings) -> str:
    """Return the text of a new file: every setting under its comment."""
    lines = [_HEADER]
    for group, members in groupby(SETTINGS.values(), key=lambda setting: setting.group):
        lines.append(f"\n# ---- {group} ----\n\n")
        lines += [f"# {each.help}\n{each.name} = {_to_toml(settings[each.name])}\n" for each in members]
    return "".join(lines)


def _with_changes(text: str, settings: ChatSettings, changed: Iterable[str]) -> str:
    document = tomlkit.parse(text)
    for name in sorted(changed, key=list(SETTINGS).index):
        item = tomlkit.value(_to_toml(settings[name]))
        if isinstance(document.get(name), dict | AoT):
            document.remove(name)
        if name not in document:
            # A comment of its own would land behind the last table, where the value does not.
            item.trivia.indent = f"# {SETTINGS[name].help}\n"
        document[name] = item
    return document.as_string()


def _read_text(path: Path) -> str:
    """Raise OSError, or ValueError for content that is no text or too much of it."""
    return read_regular_file(path, max_bytes=MAX_FILE_BYTES).decode("utf-8-sig")


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
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
    for name in (name for name in SETTINGS if name in values):
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        try:
            ChatSettings(**{name: value})
            sound[name] = value
        except OptionError as error:
            default = _to_toml(SETTINGS[name].default)
            told = one_line(str(error)).rstrip(".")
            notices.append(f"{where}: {told}; the default, {default}, is used instead")
    if unknown := [quote(name) for name in values if name not in SETTINGS]:
        verb = "is no setting and is" if len(unknown) == 1 else "are no settings and are"
        notices.append(f"{where}: {', '.join(unknown)} {verb} ignored")
    return ReadSettings(ChatSettings(**sound), tuple(notices))


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_quoted(item) for item in value)}]"
    if isinstance(value, str):
        # A newline right after three quotes does not count.
        return '"""\n' + "\n".join(map(_escaped, value.split("\n"))) + '"""' if "\n" in value else _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Return the text as it stands between quotes, without what a terminal would obey and no file can hold."""
    return _ESCAPED.sub(
        lambda match: f"\\{match[0]}" if match[0] in '"\\' else f"\\u{ord(match[0]):04x}", storable(text)
    )
