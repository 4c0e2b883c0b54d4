"""What the chat app remembers between starts: how answers are chosen, which model, which memory, how it looks.

Most settings are options of `runtime.config`, which states their kind, what is allowed and what people are told of
them; a few are the app's own. What people call them and may want to try stands here too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from profiles.errors import quote
from runtime.config import (
    ANSWERS,
    DEFAULT_CONTEXT_TOKENS,
    MEMORY,
    MODELS,
    EngineConfig,
    Option,
    SamplingParams,
    options_of,
)
from runtime.errors import OptionError
from tui.terminal_text import one_line

MAX_RECENT_TARGETS = 10
NOT_TYPED = ("recent_targets", "show_panel")
"""Settings that the app itself keeps: they change by use, not by what is typed."""

_LOOKS = "Looks"
_DEFAULTS: Mapping[str, Any] = {"temperature": 0.7, "top_p": 0.95, "seed": None, "max_new_tokens": 1024, "lookup": "on"}
"""Of options that a conversation wants otherwise than a prompt file."""
_OPTION_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "seed": {"word": "random", "unset": "another one for each answer"},
    "context_tokens": {"unset": f"{DEFAULT_CONTEXT_TOKENS}, or what the model has if that is less"},
}
"""What else is different about them."""
_LABELS: Mapping[str, str] = {
    "top_p": "Top-p",
    "top_k": "Top-k",
    "min_p": "Min-p",
    "max_new_tokens": "Most new tokens",
    "context_tokens": "Context",
    "target": "Model",
}
_SUGGESTIONS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("0", "0.6", "0.7", "1"),
    "top_p": ("0.9", "0.95", "1"),
    "top_k": ("0", "20", "50"),
    "min_p": ("0", "0.05", "0.1"),
    "repetition_penalty": ("1", "1.05", "1.1"),
    "seed": ("random", "0"),
    "max_new_tokens": ("256", "1024", "4096"),
    "draft": ("substitute", "none"),
    "tree": ("auto", "16x6", "32x8", "64x10", "128x12"),
    "context_tokens": ("auto", "2048", "4096", "8192"),
    "device": ("auto", "cpu"),
    "device_memory": ("free", "min"),
    "host_memory": ("free", "min"),
}
_OTHER_NAMES: Mapping[str, str] = {
    "system": "system_prompt",
    "max_tokens": "max_new_tokens",
    "model": "target",
    "context": "context_tokens",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to say about one setting."""

    option: Option
    group: str
    """Heading under which it stands."""
    owner: type[SamplingParams] | type[EngineConfig] | None = None
    """What `option` belongs to; None for the app's own."""

    @property
    def name(self) -> str:
        """What it is called in the file and by `/set`."""
        return self.option.name.removesuffix("_bytes")

    @property
    def kind(self) -> type:
        """Type of its value: float, int, str, bool, or tuple for texts; a size is a text, as it was typed."""
        if self.choices or self.option.parse is not None:
            return str
        if get_origin(self.option.kind) is tuple:
            return tuple
        kind: type = (*get_args(self.option.kind), self.option.kind)[0]  # of int | None, int
        return kind

    @property
    def word(self) -> str | None:
        """What stands for the engine's None."""
        return self.option.word

    @property
    def default(self) -> Any:
        """Its value where nobody chose one."""
        return self.word if self.option.default is None else self.option.default

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values, if they are few; else empty."""
        return self.option.choices

    @property
    def help(self) -> str:
        """One sentence: what it does and which values it takes."""
        option = self.option
        if option.word is None:
            return option.help
        return f"{option.help.removesuffix('.')}; {option.word or 'empty'} takes {option.unset}."

    @property
    def label(self) -> str:
        """What a screen calls it: `Top-p`, `Device memory`."""
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
        if isinstance(value, bool) or self.kind is bool:  # True counts as 1 elsewhere
            is_fine = isinstance(value, bool) and self.kind is bool
        elif self.kind is tuple:
            is_fine = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        else:
            is_number = self.kind is float and isinstance(value, int)
            is_fine = is_number or isinstance(value, self.kind) or (value is not None and value == self.word)
        if not is_fine:
            words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
            expected = words.get(self.kind, "a list of texts")
            if self.word and self.kind is not str:
                expected = f"{expected} or {self.word}"
            raise OptionError(f"{self.name} is {quote(value)}; it must be {expected}")

    def parsed(self, text: str) -> Any:
        """Return the value that a person means; if the text means none of that kind, the text, which is refused."""
        word = text.strip()
        if self.kind is str:
            return text
        if self.kind is bool:
            return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(word, text)
        if self.kind is tuple:
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        try:
            return self.kind(word)
        except ValueError:
            return word

    def engine_value(self, value: Any) -> Any:
        """Return what the engine takes for a value of the right kind. Raises OptionError."""
        if value == self.word:
            return None
        parse = self.option.parse
        return value if parse is None else parse(value, self.name)


def _describe_settings() -> tuple[Setting, ...]:
    """Return all settings, each group together."""
    answers = [Setting(option, "Answers", SamplingParams) for option in _remembered(SamplingParams)]
    engine = _remembered(EngineConfig)
    target, *models = [Setting(option, "Models", EngineConfig) for option in engine if option.group != MEMORY]
    memory = [Setting(option, "Memory", EngineConfig) for option in engine if option.group == MEMORY]
    prompt_help = "What new conversations tell the model first; empty is the model's own."
    recent_help = f"Models used, the last one first; at most {MAX_RECENT_TARGETS}."
    theme_help = "Colours: auto (dark or light as the terminal is), or a name that /theme shows."
    panel_help = "Whether the panel of the machine at work is open: true or false."
    return (
        *(*answers, _own("system_prompt", str, "", Option(prompt_help, ANSWERS))),
        *(target, _own("recent_targets", tuple[str, ...], (), Option(recent_help, MODELS)), *models),
        *memory,
        _own("theme", str, "auto", Option(theme_help, _LOOKS)),
        _own("show_panel", bool, False, Option(panel_help, _LOOKS)),
    )


def _own(name: str, kind: Any, default: Any, option: Option) -> Setting:
    return Setting(replace(option, name=name, kind=kind, default=default), option.group)


def _remembered(owner: type[SamplingParams] | type[EngineConfig]) -> list[Option]:
    changes = {name: {"default": default} for name, default in _DEFAULTS.items()}
    return [
        replace(option, **changes.get(name, {}), **_OPTION_CHANGES.get(name, {}))
        for name, option in options_of(owner).items()
        if option.is_setting
    ]


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
        SamplingParams(**self.to_params_fields(random_seed=0))
        EngineConfig(**self.to_config_fields())

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

    def to_params_fields(self, *, random_seed: int) -> dict[str, Any]:
        """Return fields of `SamplingParams` for one answer; `random_seed` is taken where no seed is set."""
        fields = self._fields_of(SamplingParams)
        return fields | ({"seed": random_seed} if fields["seed"] is None else {})

    def to_config_fields(self) -> dict[str, Any]:
        """Return fields of `EngineConfig`; another value of one takes effect when the model is loaded again."""
        return self._fields_of(EngineConfig)

    def with_target(self, target: str) -> "ChatSettings":
        """Return the settings after that model was chosen: it leads the recent ones, unless it is the demo model."""
        others = tuple(name for name in self.recent_targets if name != target)
        recent = (target, *others)[:MAX_RECENT_TARGETS] if target else others
        return self.replace(target=target, recent_targets=recent)

    def with_text(self, name: str, text: str) -> "ChatSettings":
        """Return the settings with one changed to what a person typed. Raises OptionError for a wrong value."""
        try:
            return self.replace(**{name: SETTINGS[name].parsed(text)})
        except OptionError as error:
            raise OptionError(one_line(str(error))) from error

    def text_of(self, name: str) -> str:
        """Return what `with_text` would take for the value that is set."""
        value = self[name]
        if isinstance(value, bool):
            return "true" if value else "false"
        return "\n".join(value) if isinstance(value, tuple) else str(value)

    def _fields_of(self, owner: type[SamplingParams] | type[EngineConfig]) -> dict[str, Any]:
        members = (setting for setting in SETTINGS.values() if setting.owner is owner)
        return {setting.option.name: setting.engine_value(self[setting.name]) for setting in members}


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
