"""What the chat app is given: where conversations and settings are kept, and the engine. Opens nothing itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tui.chat.engine.client import EngineLink
from tui.chat.models import LocalModelSource
from tui.chat.settings.remembered_settings import RememberedSettings
from tui.chat.store.store import ConversationStore
from tui.chat.widgets.picker import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatServices:
    """Everything outside the screen that the app works with; who makes it closes the store."""

    store: ConversationStore
    """The conversations."""
    engine: EngineLink
    """The engine, not started yet; the app closes it."""
    settings: RememberedSettings
    """What is remembered, and what the command line said instead."""
    conversation_id: int | None = None
    """Which conversation to open; None begins a new one."""
    has_model: bool = True
    """Whether to load a model at once; else one is to be chosen."""
    notices: tuple[str, ...] = ()
    """What the user must know first: one sentence each."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that say how the terminal looks."""
    export_folder: Path = Path()
    """Where conversations are exported to if nobody says where."""
    models: Callable[[Mapping[str, Any], Sequence[str]], ModelSource] = LocalModelSource
    """What there is to choose from, given fields of `EngineConfig` and the recent targets."""
