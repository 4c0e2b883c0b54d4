"""What the chat app remembers between starts: how answers are chosen, which model, which memory, how it looks.

The values are checked by the rules of `SamplingParams` and `EngineConfig`, which they become. Knows no file, and not
which themes there are; a setting's help is its comment in the file too.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from profiles.errors import quote
from runtime.config import VERIFICATIONS, DraftFormat, EngineConfig, Lookup, SamplingParams, parse_memory
from runtime.errors import OptionError
from tui.terminal_text import one_line

MAX_RECENT_TARGETS = 10


@dataclass(frozen=True, slots=True)
class Choices:
    """The only values of a setting, for a list to choose from."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.values[:-1])} or {self.values[-1]}"


_VERIFICATIONS, _DRAFT_FORMATS, _LOOKUPS = (
    Choices(VERIFICATIONS),
    Choices(get_args(DraftFormat)),
    Choices(get_args(Lookup)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """All settings; raises OptionError, which names the setting, for a value outside its range.

    Where the engine's own value may be None, a word stands here, as a person types it: `random`, `auto` or `free`.
    """

    temperature: Annotated[float, "0 is greedy: the likeliest token each time; higher is more varied."] = 0.7
    top_p: Annotated[float, "Keep the likeliest tokens up to this mass: above 0, at most 1; 1 keeps all."] = 0.95
    top_k: Annotated[int, "Keep this many of the likeliest tokens; 0 keeps all."] = 0
    min_p: Annotated[float, "Drop tokens below this share of the likeliest one's probability; 0 drops none."] = 0.0
    repetition_penalty: Annotated[float, "Above 1, tokens that were there become less likely; 1 is off."] = 1.0
    seed: Annotated[int | Literal["random"], "A number, for the same answer each time, or random."] = "random"
    max_new_tokens: Annotated[int, "An answer ends after this many tokens."] = 1024
    verification: Annotated[str, f"How drafted tokens are accepted: {_VERIFICATIONS}.", _VERIFICATIONS] = "auto"
    system_prompt: Annotated[str, "What new conversations tell the model first; empty is the model's own."] = ""

    target: Annotated[str, "The model used last, a folder or hub name; empty is the demo model."] = ""
    recent_targets: Annotated[tuple[str, ...], f"Models used, the last one first; at most {MAX_RECENT_TARGETS}."] = ()
    draft: Annotated[str, "substitute (the model itself, quantized), none, or a folder or hub name."] = "substitute"
    draft_format: Annotated[str, f"How a draft is held: {_DRAFT_FORMATS}.", _DRAFT_FORMATS] = "auto"
    lookup: Annotated[str, f"Also propose what followed earlier in the text itself: {_LOOKUPS}.", _LOOKUPS] = "on"
    tree: Annotated[str, "auto, or nodes x levels as in 64x10, the root counted in both."] = "auto"
    context_tokens: Annotated[int | Literal["auto"], "Most tokens of prompt and answer: a number, or auto."] = "auto"

    device: Annotated[str, "auto (an accelerator if there is one), cpu, or a type and index as in cuda:0."] = "auto"
    device_memory: Annotated[str, "Budget of the device: free, min (no layer stays there), or as in 2.2GB."] = "free"
    host_memory: Annotated[str, "Budget of host memory for streamed layers: free, min, or as in 16GB."] = "free"

    theme: Annotated[str, "Colours: auto (dark or light as the terminal is), or a name that /theme shows."] = "auto"
    show_panel: Annotated[bool, "Whether the panel of the machine at work is open: true or false."] = False

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if not _is_of_kind(value, setting.kind):
                raise OptionError(f"{setting.name} is {quote(value)}; it must be {_kind_in_words(setting.kind)}")
        if not self.theme.strip():
            raise OptionError("theme is empty; give a name that the list of themes shows")
        SamplingParams(**self.to_params_fields(random_seed=0))
        EngineConfig(**self.to_config_fields())

    def to_params_fields(self, *, random_seed: int) -> dict[str, Any]:
        """Fields of `SamplingParams` for one answer; `random_seed` is taken where no seed is set."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": random_seed if self.seed == "random" else self.seed,
            "max_new_tokens": self.max_new_tokens,
            "verification": self.verification,
        }

    def to_config_fields(self) -> dict[str, Any]:
        """Fields of `EngineConfig`; another value of one of them takes effect when the model is loaded again."""
        return {
            "target": self.target or None,
            "draft": self.draft,
            "draft_format": self.draft_format,
            "lookup": self.lookup,
            "tree": self.tree,
            "context_tokens": None if self.context_tokens == "auto" else self.context_tokens,
            "device": self.device,
            "device_memory_bytes": _memory_bytes(self.device_memory, "device_memory"),
            "host_memory_bytes": _memory_bytes(self.host_memory, "host_memory"),
        }

    def with_target(self, target: str) -> "ChatSettings":
        """The settings after that model was chosen: it is first among the recent ones, unless it is the demo model."""
        others = tuple(name for name in self.recent_targets if name != target)
        recent = (target, *others)[:MAX_RECENT_TARGETS] if target else others
        return dataclasses.replace(self, target=target, recent_targets=recent)

    def with_text(self, name: str, text: str) -> "ChatSettings":
        """The settings with one changed to what a person typed. Raises OptionError for a wrong name or value."""
        setting = next((setting for setting in SETTINGS if setting.name == name), None)
        if setting is None:
            names = ", ".join(setting.name for setting in SETTINGS)
            raise OptionError(f"{quote(name)} is no setting; choose one of {names}")
        try:
            return dataclasses.replace(self, **{name: _parsed(text, setting.kind)})
        except OptionError as error:
            raise OptionError(one_line(str(error))) from error

    def text_of(self, name: str) -> str:
        """What `with_text` would take for the value that is set."""
        value = getattr(self, name)
        if isinstance(value, bool):
            return "true" if value else "false"
        return "\n".join(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What there is to say about one setting."""

    name: str
    """The field of ChatSettings."""
    kind: Any
    """Its type: float, int, str, bool, a tuple of texts, or int | Literal[WORD]."""
    default: Any
    """Its value where nobody chose one."""
    help: str
    """One sentence: what it does and which values it takes."""
    choices: tuple[str, ...]
    """The only values, if they are few; else empty."""
    group: str
    """Heading under which it stands."""


_GROUP_STARTS = {"temperature": "Answers", "target": "Models", "device": "Memory", "theme": "Looks"}


def _describe_settings() -> tuple[Setting, ...]:
    hints = get_type_hints(ChatSettings, include_extras=True)
    settings = []
    group = ""
    for field in dataclasses.fields(ChatSettings):
        kind, text, *choices = get_args(hints[field.name])
        group = _GROUP_STARTS.get(field.name, group)
        settings.append(
            Setting(
                name=field.name,
                kind=kind,
                default=field.default,
                help=text,
                choices=choices[0].values if choices else (),
                group=group,
            )
        )
    return tuple(settings)


SETTINGS: tuple[Setting, ...] = _describe_settings()
"""All of them, in the order in which files and screens show them."""


def _is_of_kind(value: object, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):  # True counts as 1 elsewhere
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    if kind in (int, str):
        return isinstance(value, kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, int) or value == _word(kind)


def _kind_in_words(kind: Any) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if get_origin(kind) is tuple:
        return "a list of texts"
    return words[kind] if kind in words else f"a whole number or {_word(kind)}"


def _word(kind: Any) -> str:
    """`int | Literal["auto"]` -> auto."""
    (word,) = get_args(get_args(kind)[1])
    return str(word)


def _parsed(text: str, kind: Any) -> Any:
    """The value that a person means; the text itself if it means none of that kind, for the check to refuse."""
    if kind is str:
        return text
    word = text.strip()
    if kind is bool:
        return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(word, text)
    if get_origin(kind) is tuple:
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        return float(word) if kind is float else int(word)
    except ValueError:
        return word


def _memory_bytes(text: str, name: str) -> int | None:
    return None if text == "free" else parse_memory(text, name)
