"""The settings of this run: what is remembered, with what the command line says instead for this time.

A setting that is changed in the app is remembered, and no longer what the command line said. Knows no widget.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

from tui.chat.settings.chat_settings import ChatSettings
from tui.chat.settings.settings_file import write_settings

_CONFIG_NAMES = {"device_memory": "device_memory_bytes", "host_memory": "host_memory_bytes"}
_MAX_SEED = 2**31


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

    @property
    def system_prompt(self) -> str:
        """What a new conversation tells the model first."""
        return self.settings.system_prompt if self._system_prompt is None else self._system_prompt

    def params(self) -> dict[str, Any]:
        """Fields of `SamplingParams` for the next answer."""
        return self.settings.to_params_fields(random_seed=self._draw_seed()) | self._params

    def config(self) -> dict[str, Any]:
        """Fields of `EngineConfig` for the next load."""
        return self.settings.to_config_fields() | self._config

    def replace(self, settings: ChatSettings) -> None:
        """Let these hold and remember them. Raises WriteError; they hold all the same."""
        for name in changed_names(self.settings, settings):
            self._config.pop(_CONFIG_NAMES.get(name, name), None)
            self._params.pop(name, None)
            if name == "system_prompt":
                self._system_prompt = None
        self.settings = settings
        if self._path is not None:
            write_settings(self._path, settings)

    def choose_model(self, target: str, *, draft: str) -> None:
        """Let the next load be of this model and draft, whatever the command line said. Raises WriteError."""
        self._config.pop("target", None)
        self._config.pop("draft", None)
        self.replace(replace(self.settings.with_target(target), draft=draft))


def changed_names(before: ChatSettings, after: ChatSettings) -> tuple[str, ...]:
    """Names of the settings that differ."""
    return tuple(name for name in ChatSettings.__dataclass_fields__ if getattr(before, name) != getattr(after, name))
