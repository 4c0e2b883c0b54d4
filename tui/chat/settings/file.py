"""The settings of this run, and the person's own TOML file that remembers them.

What changes in the app changes only its own line: comments, order and unknown keys stay as they are. Nothing
in the file keeps the app from starting: a bad value gives way to its default, a file that is no TOML is set aside, and
each is told in one sentence. What the command line says comes before what is remembered, this time only and until the
app changes it. A model is remembered once it could be loaded: as the default if it was chosen in the app.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from random import SystemRandom
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from offload.errors import WriteError
from profiles.errors import quote
from profiles.files import read_regular_file
from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.errors import OptionError
from tui.chat.settings.settings import CHAT_DEFAULTS, SETTINGS, ChatSettings, changed_names
from tui.chat.store.private_files import replace_private_file, set_aside
from tui.chat.store.records import storable
from tui.chat.tools.settings import SERVERS
from tui.terminal_text import one_line

MAX_FILE_BYTES = 1 << 20

_MAX_SEED = 2**31

_HEADER = """\
# Settings of `overstory chat`. A setting that changes in the app changes only its own line here; what you
# change takes effect at the next start. A line that is missing stands for the default.
"""
KEYS = "keys"
"""The table of keys: names of bindings, which the help lists, and what to press."""
_KEYS_COMMENT = """
# ---- Keys ----

# Other keys, by the names that /help shows; "none" takes a key away. Without the first # of each line:
# [keys]
# new = "ctrl+n"
# regenerate = "alt+r, f12"
"""


class RememberedSettings:
    """What holds now, and the file that remembers it."""

    def __init__(
        self,
        settings: ChatSettings,
        *,
        path: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        draw_seed: Callable[[], int] = lambda: SystemRandom().randrange(_MAX_SEED),
    ) -> None:
        """`path` is the file to write; None remembers nothing.

        `overrides` is what the command line says for this run: fields of `EngineConfig` and `SamplingParams`, and the
        `system_prompt` of new conversations.
        """
        self.settings = settings
        self.own: Mapping[str, float] = {}
        """What the open model samples with by its own settings, by fields of `SamplingParams`."""
        self._path = path
        self._overrides = dict(overrides or {})
        self._draw_seed = draw_seed
        self._unwritten: set[str] = set()
        self._choice: tuple[str, str] | None = None  # target and draft that are to be loaded, and may turn out not to
        self._context: int | str | None = None  # the same of the context

    @property
    def shown(self) -> ChatSettings:
        """The settings with what the command line says instead, as they hold now."""
        said = {
            name: setting.typed_value(self._overrides[setting.field_name])
            for name, setting in SETTINGS.items()
            if setting.field_name in self._overrides
        }
        return self.settings.replace(**said)

    @property
    def system_prompt(self) -> str:
        """What a new conversation tells the model first."""
        prompt: str = self._overrides.get("system_prompt", self.settings["system_prompt"])
        return prompt

    @property
    def is_raw(self) -> bool:
        """Whether the command line wants texts to be written on, whatever the model is made for."""
        return bool(self._overrides.get("raw"))

    def params(self) -> SamplingParams:
        """Return how the next answer is sampled, as far as the model's own settings do not fill what is `unchosen`."""
        return SamplingParams(**({"seed": self._draw_seed(), **CHAT_DEFAULTS} | self._fields_of(SamplingParams)))

    @property
    def is_greedy(self) -> bool:
        """Whether the next answer takes the likeliest token each time."""
        params = self.params()
        return (
            (self.own["temperature"] == 0) if "temperature" in self.own.keys() & self.unchosen() else params.is_greedy
        )

    def unchosen(self) -> frozenset[str]:
        """Return the fields of `params` that are left to the model: how long an answer may be is not among them."""
        return frozenset({*CHAT_DEFAULTS, "stop"} - self._fields_of(SamplingParams).keys())

    def described(self, name: str) -> str:
        """Return a setting's value and, where the settings themselves do not say it, where it comes from."""
        setting = SETTINGS[name]
        if setting.field_name in self._overrides:
            return f"{self.shown[name]}, from the command line, this time only"
        if self.settings[name] != setting.word or name not in CHAT_DEFAULTS:
            return str(self.settings[name]) or "empty"
        if name in self.own:
            return f"{setting.word}: {self.own[name]:g}, the model's own"
        return f"{setting.word}: {CHAT_DEFAULTS[name]:g}, as the model has none of its own"

    def config(self) -> EngineConfig:
        """Return what the next load is of."""
        chosen = {} if self._choice is None else {"target": self._choice[0] or None, "draft": self._choice[1]}
        if self._context is not None:
            chosen["context_tokens"] = SETTINGS["context_tokens"].engine_value(self._context)
        return EngineConfig(**(self._fields_of(EngineConfig) | chosen))

    def _fields_of(self, owner: type[SamplingParams] | type[EngineConfig]) -> dict[str, Any]:
        known = options_of(owner)
        overrides = {name: value for name, value in self._overrides.items() if name in known}
        return self.settings.fields_of(owner) | overrides

    def described_elsewhere(self) -> dict[str, str]:
        """Return the settings whose values come from elsewhere than the settings, each as `described`."""
        found = {name: self.described(name) for name in SETTINGS}
        return {name: words for name, words in found.items() if words != (str(self.settings[name]) or "empty")}

    def replace(self, settings: ChatSettings, *, chosen: Iterable[str] = ()) -> None:
        """Let these hold and remember them, before what the command line says for those that change or are `chosen`.

        Raises WriteError; they hold all the same.
        """
        changed = changed_names(self.settings, settings)
        for name in (*changed, *chosen):
            self._overrides.pop(SETTINGS[name].field_name, None)
        self.settings = settings
        self._unwritten.update(changed)
        if self._path is not None and self._unwritten:
            write_settings(self._path, settings, self._unwritten)
            self._unwritten.clear()

    def choose_model(self, target: str, *, draft: str) -> None:
        """Let the next load be of this model and draft, whatever was said before; nothing is remembered of it yet."""
        self._choice = (target, draft)

    def choose_context(self, context_tokens: int | str) -> None:
        """Let the next load have that context, a number or `auto`; it is remembered once the model is loaded."""
        self._context = context_tokens

    def forget_choice(self) -> None:
        """Let loads be as before: of the model, or with the context, that was chosen none can be."""
        self._choice = self._context = None

    def keep_model(self) -> None:
        """Remember the model that could be loaded: as the default if it was chosen here, always among the recent ones.

        Raises WriteError.
        """
        choice, self._choice = self._choice, None
        if (context_tokens := self._context) is not None:
            self._context = None
            self.replace(self.settings.replace(context_tokens=context_tokens), chosen=("context_tokens",))
        if choice is not None:
            target, draft = choice
            self.replace(self.settings.with_target(target).replace(draft=draft), chosen=("target", "draft"))
        else:
            self.replace(self.settings.with_recent(self.config().target or ""))

    def forget_recent(self, target: str) -> None:
        """Take a model off the recent ones. Raises WriteError."""
        self.replace(self.settings.without_recent(target))


def read_settings(path: Path) -> tuple[ChatSettings, tuple[str, ...]]:
    """Return the settings in the file, or the defaults for what it does not say; never raise for what it holds.

    Return also what the user should know about the file, in sentences.
    """
    where = one_line(str(path))
    try:
        return _from_values(tomllib.loads(_read_text(path)), where=where)
    except FileNotFoundError:
        return ChatSettings(), ()
    except OSError as error:
        reason = f"{where} cannot be read ({error.strerror or error}), so all settings have their defaults"
        return ChatSettings(), (reason,)
    except RecursionError:
        return ChatSettings(), (_set_aside(path, "it is nested too deeply"),)
    except ValueError as error:
        return ChatSettings(), (_set_aside(path, one_line(str(error))),)


def read_keys(path: Path) -> object:
    """Return what the file says under `[keys]`, unchecked; nothing where it cannot be read, which is told elsewhere."""
    try:
        return tomllib.loads(_read_text(path)).get(KEYS, {})
    except (OSError, ValueError, RecursionError):
        return {}


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
    for group, members in groupby(SETTINGS.values(), key=attrgetter("group")):
        lines.append(f"\n# ---- {group} ----\n\n")
        lines += [f"# {each.help}\n{each.name} = {_to_toml(settings[each.name])}\n" for each in members]
    return "".join((*lines, _KEYS_COMMENT))


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


def _set_aside(path: Path, reason: str) -> str:
    begin = f"{one_line(str(path))} is no settings file ({reason}), so all settings have their defaults"
    try:
        aside = set_aside(path, now=datetime.now())
    except OSError as error:
        return f"{begin}; it could not be renamed ({error.strerror or error})"
    return f"{begin}; it was renamed to {one_line(aside.name)}"


def _from_values(values: Mapping[str, Any], *, where: str) -> tuple[ChatSettings, tuple[str, ...]]:
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
    if unknown := [quote(name) for name in values if name not in (*SETTINGS, KEYS, SERVERS)]:
        verb = "is no setting and is" if len(unknown) == 1 else "are no settings and are"
        notices.append(f"{where}: {', '.join(unknown)} {verb} ignored")
    return ChatSettings(**sound), tuple(notices)


def _to_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_to_toml, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    lines = "\n".join(map(_escaped, value.split("\n")))
    # A newline right after three quotes does not count.
    return f'"""\n{lines}"""' if "\n" in value else f'"{lines}"'


def _escaped(text: str) -> str:
    """Return the text as it stands between quotes, without what a terminal would obey and no file can hold."""
    in_json = json.dumps(storable(text), ensure_ascii=False)[1:-1]  # which escapes as TOML does
    return re.sub(r"[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", in_json)
