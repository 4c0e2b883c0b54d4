"""What the chat app remembers between starts: how answers are chosen, which model, which memory, how it looks.

Most settings are options of `runtime.config`, which states their kind, what is allowed and what people are told of
them; a few are the app's own. What people call them and may want to try stands here too.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, get_args

import msgspec

from offload.units import format_bytes
from profiles.errors import quote
from runtime.config import ANSWERS, DEFAULT_CONTEXT_TOKENS, MODELS, EngineConfig, Option, SamplingParams, options_of
from runtime.errors import OptionError
from tui.terminal_text import one_line

MAX_RECENT_TARGETS = 10
NOT_TYPED = ("recent_targets", "show_panel")
"""Settings that the app itself keeps: they change by use, not by what is typed."""

_MEMORY, _LOOKS = "Memory", "Looks"
CHAT_DEFAULTS: Mapping[str, float] = {
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""What answers are sampled with where neither a person nor the model says so."""
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {"default": None, "word": "auto", "unset": f"the model's own, else {value:g}"}
        for name, value in CHAT_DEFAULTS.items()
    },
    "seed": {"default": None, "word": "random", "unset": "another one for each answer"},
    "max_new_tokens": {"default": 1024},
    "draft": {"default": "auto"},
    "lookup": {"default": "on", "group": MODELS},  # the model is loaded with room for it
    "generation": {"default": "auto", "group": MODELS},
    "context_tokens": {"unset": f"{DEFAULT_CONTEXT_TOKENS}, or what the model has if that is less"},
    "prefix_cache": {"default": "auto", "group": _MEMORY},
    **{name: {"group": _MEMORY} for name in ("device", "device_memory_bytes", "kv_format", "host_memory_bytes")},
}
"""What is different about options in a conversation."""
_LABELS: Mapping[str, str] = {
    "top_p": "Top-p",
    "top_k": "Top-k",
    "min_p": "Min-p",
    "max_new_tokens": "Most new tokens",
    "thinking_budget": "Thinking",
    "context_tokens": "Context",
    "kv_format": "Keys and values",
    "target": "Model",
}
_SUGGESTIONS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("auto", "0", "0.6", "0.7", "1"),
    "top_p": ("auto", "0.9", "0.95", "1"),
    "top_k": ("auto", "0", "20", "50"),
    "min_p": ("auto", "0", "0.05", "0.1"),
    "repetition_penalty": ("auto", "1", "1.05", "1.1"),
    "seed": ("random", "0"),
    "max_new_tokens": ("256", "1024", "4096"),
    "thinking_budget": ("auto", "on", "off", "500", "2000"),
    "draft": ("auto", "substitute", "none"),
    "tree": ("auto", "16x6", "32x8", "64x10", "128x12"),
    "context_tokens": ("auto", "2048", "4096", "8192"),
    "device": ("auto", "cpu"),
    "device_memory": ("free", "min"),
    "host_memory": ("free", "min"),
    "prefix_cache": ("auto", "off", "20GB"),
}
_OTHER_NAMES: Mapping[str, str] = {
    "system": "system_prompt",
    "max_tokens": "max_new_tokens",
    "think": "thinking_budget",
    "thinking": "thinking_budget",
    "model": "target",
    "context": "context_tokens",
}


@dataclass(frozen=True, slots=True)
class Setting(Option):
    """An option as it is remembered: a size is a text, as it was typed, and a word stands for None."""

    owner: type[SamplingParams] | type[EngineConfig] | None = None
    """What it is an option of; None for the app's own."""

    @property
    def field_name(self) -> str:
        """What `owner` calls it."""
        is_own = self.owner is None or self.name in options_of(self.owner)
        return self.name if is_own else f"{self.name}_bytes"

    @property
    def label(self) -> str:
        return _LABELS.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def suggestions(self) -> tuple[str, ...]:
        """Texts to try: all that are allowed, if they are few."""
        return self.choices or _SUGGESTIONS.get(self.name, ())

    @property
    def needs_reload(self) -> bool:
        """Whether the model is loaded with it."""
        return self.owner is EngineConfig

    def check_kind(self, value: object) -> None:
        """Raise OptionError for a value of another kind; whether it is in range is for the engine to say."""
        if self.word is not None and value == self.word:
            return
        try:
            msgspec.convert(value, self.kind)
        except msgspec.ValidationError as error:
            words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
            expected = words.get(self.kind, "a list of texts")
            if self.word and self.kind is not str:
                expected = f"{expected} or {self.word}"
            raise OptionError(f"{self.name} is {quote(value)}; it must be {expected}") from error

    def parsed(self, text: str) -> Any:
        """Return the value that a person means; if the text means none of that kind, the text, which is refused."""
        if self.kind is str:
            return text
        with suppress(ValueError):
            return self.kind(text.strip())
        return text.strip()

    def typed_value(self, value: Any) -> Any:
        """Return what a person types for what the engine takes, the other way round of `engine_value`."""
        if value is None:
            return self.word
        if self.parse is None:
            return value
        words = ("min", "on", "off", format_bytes(value))
        return next((word for word in words if self._means(word, value)), str(value))

    def _means(self, word: str, value: Any) -> bool:
        with suppress(OptionError):
            return self.parse is not None and bool(self.parse(word, self.name) == value)
        return False

    def chosen(self, value: Any) -> str:
        """Return what was chosen as a text; empty where that is left open."""
        return "" if value == self.word else str(value)

    def engine_value(self, value: Any) -> Any:
        """Return what the engine takes for a value of the right kind. Raises OptionError."""
        if value == self.word:
            return None
        return value if self.parse is None else self.parse(value, self.name)


def _describe_settings() -> list[Setting]:
    """Return all settings, each group together."""
    prompt_help = "What new conversations tell the model first; empty is the model's own."
    recent_help = f"Models used, the last one first; at most {MAX_RECENT_TARGETS}."
    theme_help = "Colours: auto (as the terminal is), dark, light, or another name that /theme shows."
    done_help = (
        "How the end of an answer is told that nobody watches: bell (and the title), title (of the terminal), or off."
    )
    panel_help = "Whether the panel of the machine at work is open: true or false."
    settings = (
        *(_remembered(option, SamplingParams) for option in options_of(SamplingParams).values() if option.is_setting),
        Setting(prompt_help, ANSWERS, name="system_prompt", kind=str, default=""),
        *(_remembered(option, EngineConfig) for option in options_of(EngineConfig).values() if option.is_setting),
        Setting(recent_help, MODELS, name="recent_targets", kind=tuple[str, ...], default=()),
        Setting(theme_help, _LOOKS, name="theme", kind=str, default="auto"),
        Setting(done_help, _LOOKS, name="when_done", kind=str, default="title", choices=("bell", "title", "off")),
        Setting(panel_help, _LOOKS, name="show_panel", kind=bool, default=False),
    )
    return sorted(settings, key=lambda setting: (ANSWERS, MODELS, _MEMORY, _LOOKS).index(setting.group))


def _remembered(option: Option, owner: type[SamplingParams] | type[EngineConfig]) -> Setting:
    values = {field.name: getattr(option, field.name) for field in fields(option)}
    values.update(_CHANGES.get(option.name, {}))
    is_text = option.choices or option.parse is not None
    values["kind"] = str if is_text else (*get_args(option.kind), option.kind)[0]  # of int | None, int
    values["name"] = option.name.removesuffix("_bytes")
    word = values["word"]
    if word is not None:
        values["help"] = f"{option.help.removesuffix('.')}; {word or 'empty'} takes {values['unset']}."
    if values["default"] is None:
        values["default"] = word
    return Setting(**values, owner=owner)


SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _describe_settings()}
"""All of them by name, in the order in which files and screens show them."""
TYPED_SETTINGS: Mapping[str, Setting] = {name: each for name, each in SETTINGS.items() if name not in NOT_TYPED}
"""Those that a person types, in the same order."""


class ChatSettings(Mapping[str, Any]):
    """Values of all settings by name, also as attributes; raises OptionError, which names the setting, for a wrong one.

    They are checked by the rules of `SamplingParams` and `EngineConfig`, which they become. Where the engine's own
    value may be None, a word stands here, as a person types it: `random`, `auto` or `free`.
    """

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        self._values: dict[str, Any] = {name: setting.default for name, setting in SETTINGS.items()} | values
        for name, value in self._values.items():
            if name not in SETTINGS:
                raise OptionError(f"{quote(name)} is no setting; choose one of {', '.join(SETTINGS)}")
            SETTINGS[name].check_kind(value)
        if not self._values["theme"].strip():
            raise OptionError("theme is empty; give a name that the list of themes shows")
        if self._values["when_done"] not in SETTINGS["when_done"].choices:
            choices = " or ".join(SETTINGS["when_done"].choices)
            raise OptionError(f"when_done is {quote(self._values['when_done'])}; it must be {choices}")
        for owner in (SamplingParams, EngineConfig):
            owner(**self.fields_of(owner))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name not in SETTINGS:
            raise AttributeError(f"there is no setting {name!r}", name=name, obj=self)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ChatSettings({self._values})"

    def replace(self, **values: Any) -> "ChatSettings":
        """Return the settings with these values instead. Raises OptionError."""
        return ChatSettings(**(self._values | values))

    def fields_of(self, owner: type[SamplingParams] | type[EngineConfig]) -> dict[str, Any]:
        """Return fields of `owner`, without those that are left to the engine."""
        members = (setting for setting in SETTINGS.values() if setting.owner is owner)
        values = {setting.field_name: setting.engine_value(self[setting.name]) for setting in members}
        return {name: value for name, value in values.items() if value is not None}

    def with_target(self, target: str) -> "ChatSettings":
        """Return the settings after that model was chosen and loaded."""
        return self.with_recent(target).replace(target=target)

    def with_recent(self, target: str) -> "ChatSettings":
        """Return the settings after that model was loaded: it leads the recent ones, unless it is the demo model."""
        others = tuple(name for name in self.recent_targets if name != target)
        return self.replace(recent_targets=(target, *others)[:MAX_RECENT_TARGETS] if target else others)

    def without_recent(self, target: str) -> "ChatSettings":
        """Return the settings without a model among the recent ones; the one that is open stays it."""
        return self.replace(recent_targets=tuple(name for name in self.recent_targets if name != target))

    def with_text(self, name: str, text: str) -> "ChatSettings":
        """Return the settings with one changed to what a person typed. Raises OptionError for a wrong value."""
        try:
            return self.replace(**{name: SETTINGS[name].parsed(text)})
        except OptionError as error:
            raise OptionError(one_line(str(error))) from error


def find_setting(name: str) -> Setting:
    """Return the setting of that name, `top-p` as good as `top_p`.

    Raises OptionError, with a near name where there is one.
    """
    wanted = name.lower().replace("-", "_")
    if found := TYPED_SETTINGS.get(_OTHER_NAMES.get(wanted, wanted)):
        return found
    near = get_close_matches(wanted, [*TYPED_SETTINGS, *_OTHER_NAMES], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TYPED_SETTINGS)}"
    raise OptionError(f"there is no setting {name!r}; {hint}")


def changed_names(before: ChatSettings, after: ChatSettings) -> tuple[str, ...]:
    """Return the names of the settings that differ."""
    return tuple(name for name in before if before[name] != after[name])


def changes_that_reload(before: ChatSettings, after: ChatSettings) -> tuple[str, ...]:
    """Return the names of those that differ and take effect only when the model is loaded again."""
    return tuple(name for name in changed_names(before, after) if SETTINGS[name].needs_reload)
