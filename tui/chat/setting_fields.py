"""The settings that a person can change while chatting: names, words, and what text means which value.

What is allowed is what `SamplingParams` and `EngineConfig` allow, in their own sentences. Knows no file and no widget.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from runtime.engine_config import EngineConfig, format_bytes, parse_memory
from runtime.errors import OptionError
from runtime.sampling_params import VERIFICATIONS, SamplingParams

SettingKind = Literal["number", "integer", "size", "choice", "words", "theme", "system"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingField:
    """One setting."""

    name: str
    """As in the settings file, in `/set` and in sentences about it."""
    label: str
    """As the settings screen calls it."""
    help: str
    """What it does, in one sentence."""
    kind: SettingKind
    """How its text is read."""
    choices: tuple[str, ...] = ()
    """All that are allowed for a `choice`, else suggestions."""
    needs_reload: bool = False
    """Whether a change takes effect only when the model is loaded again."""


SETTING_FIELDS: tuple[SettingField, ...] = (
    SettingField(
        name="temperature",
        label="Temperature",
        help="0 always takes the likeliest token; higher is more varied.",
        kind="number",
        choices=("0", "0.6", "1"),
    ),
    SettingField(
        name="top_p",
        label="Top-p",
        help="Keep the fewest tokens that reach this share of the probability; 1 keeps all.",
        kind="number",
        choices=("0.9", "0.95", "1"),
    ),
    SettingField(
        name="top_k",
        label="Top-k",
        help="Keep this many of the likeliest tokens; 0 keeps all.",
        kind="integer",
        choices=("0", "20", "50"),
    ),
    SettingField(
        name="min_p",
        label="Min-p",
        help="Drop tokens below this share of the likeliest one's probability; 0 drops none.",
        kind="number",
        choices=("0", "0.05", "0.1"),
    ),
    SettingField(
        name="seed",
        label="Seed",
        help="The same seed, prompt and trees bring the same tokens.",
        kind="integer",
        choices=("0",),
    ),
    SettingField(
        name="max_new_tokens",
        label="Most tokens",
        help="An answer ends after this many tokens.",
        kind="integer",
        choices=("256", "512", "1024"),
    ),
    SettingField(
        name="verification",
        label="Verification",
        help="How drafted tokens are judged above temperature 0.",
        kind="choice",
        choices=VERIFICATIONS,
    ),
    SettingField(
        name="tree",
        label="Tree",
        help="auto, or nodes x levels as in 64x10, the root counted in both.",
        kind="words",
        choices=("auto", "16x6", "32x8", "64x10", "128x12"),
        needs_reload=True,
    ),
    SettingField(
        name="lookup",
        label="Lookup",
        help="Also propose what once followed in the text itself.",
        kind="choice",
        choices=("on", "off"),
        needs_reload=True,
    ),
    SettingField(
        name="draft",
        label="Draft",
        help="substitute (the target's own layers), none (plain streaming), a folder or a hub name.",
        kind="words",
        choices=("substitute", "none"),
        needs_reload=True,
    ),
    SettingField(
        name="device_memory",
        label="Device memory",
        help="Budget such as 2.2GB for all that the runtime holds; min keeps no layer resident, auto is what is free.",
        kind="size",
        choices=("auto", "min"),
        needs_reload=True,
    ),
    SettingField(
        name="host_memory",
        label="Host memory",
        help="Budget such as 16GB for layers that wait in host memory; auto is what is free.",
        kind="size",
        choices=("auto",),
        needs_reload=True,
    ),
    SettingField(name="theme", label="Theme", help="The colours.", kind="theme"),
    SettingField(
        name="system",
        label="System prompt",
        help="What the model is told before the conversation begins; empty for nothing.",
        kind="system",
    ),
)
"""In the order of the settings screen."""


def find_setting(name: str) -> SettingField:
    """The setting of that name, `top-p` as good as `top_p`. Raises OptionError, with a near name where there is one."""
    wanted = name.lower().replace("-", "_")
    by_name = {field.name: field for field in SETTING_FIELDS}
    if wanted in by_name:
        return by_name[wanted]
    near = get_close_matches(wanted, by_name, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(by_name)}"
    raise OptionError(f"there is no setting {name!r}; {hint}")


def parse_setting(field: SettingField, text: str) -> Any:
    """The value that `text` means: str, int, float, or bytes (None for auto) of a size. Raises OptionError."""
    stripped = text if field.kind == "system" else text.strip()
    value = _READERS[field.kind](field.name, stripped)
    _check(field.name, value)
    return value


def setting_text(field: SettingField, value: Any) -> str:
    """What a person would write for `value`; `parse_setting` reads it back."""
    if field.kind == "size":
        return "auto" if value is None else "min" if value == 0 else _exact_size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def changes_that_reload(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the settings that differ and take effect only when the model is loaded again."""
    return tuple(
        field.name for field in SETTING_FIELDS if field.needs_reload and before.get(field.name) != after.get(field.name)
    )


def _exact_size(num_bytes: int) -> str:
    short = format_bytes(num_bytes).replace(" ", "")
    return short if parse_memory(short, "size") == num_bytes else str(num_bytes)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{name} is {text!r}; it must be a number") from None


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"{name} is {text!r}; it must be a whole number") from None


def _size(name: str, text: str) -> int | None:
    return None if text in ("", "auto") else parse_memory(text, name)


def _words(_name: str, text: str) -> str:
    return text


_READERS: Mapping[SettingKind, Callable[[str, str], Any]] = {
    "number": _number,
    "integer": _integer,
    "size": _size,
    "choice": _words,
    "words": _words,
    "theme": _words,
    "system": _words,
}
_SAMPLING_NAMES = {field.name for field in fields(SamplingParams)}
_ENGINE_NAMES = {field.name for field in fields(EngineConfig)}


def _check(name: str, value: Any) -> None:
    """Raises OptionError in the runtime's own words, by building what the runtime will build."""
    if name in _SAMPLING_NAMES:
        SamplingParams(**{name: value})
    elif name in _ENGINE_NAMES:
        EngineConfig(**{name: value})
