"""What people call the settings, what they may want to try, and which take effect only with another load.

Beside `chat_settings`, which knows the settings themselves: their kinds, what is allowed and what they become.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from runtime.errors import OptionError
from tui.chat.settings.chat_settings import SETTINGS, ChatSettings, Setting

NOT_TYPED = ("recent_targets", "show_panel")
"""Settings that the app itself keeps: they change by use, not by what is typed."""
TYPED_SETTINGS: tuple[Setting, ...] = tuple(setting for setting in SETTINGS if setting.name not in NOT_TYPED)
"""All others, in the order in which files and screens show them."""

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


def setting_label(setting: Setting) -> str:
    """As a screen calls it: `Top-p`, `Device memory`."""
    return _LABELS.get(setting.name, setting.name.replace("_", " ").capitalize())


def suggested_values(setting: Setting) -> tuple[str, ...]:
    """Texts to try: all that are allowed, if they are few."""
    return setting.choices or _SUGGESTIONS.get(setting.name, ())


def find_setting(name: str) -> Setting:
    """The setting of that name, `top-p` as good as `top_p`. Raises OptionError, with a near name where there is one."""
    wanted = name.lower().replace("-", "_")
    by_name = {setting.name: setting for setting in TYPED_SETTINGS}
    if found := by_name.get(_OTHER_NAMES.get(wanted, wanted)):
        return found
    near = get_close_matches(wanted, [*by_name, *_OTHER_NAMES], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(by_name)}"
    raise OptionError(f"there is no setting {name!r}; {hint}")


def changes_that_reload(before: ChatSettings, after: ChatSettings) -> tuple[str, ...]:
    """Names of the settings that differ and take effect only when the model is loaded again."""
    return tuple(
        setting.name
        for setting in TYPED_SETTINGS
        if needs_reload(setting) and getattr(before, setting.name) != getattr(after, setting.name)
    )


def needs_reload(setting: Setting) -> bool:
    """Whether the model is loaded with it."""
    return bool({setting.name, f"{setting.name}_bytes"} & ChatSettings().to_config_fields().keys())
