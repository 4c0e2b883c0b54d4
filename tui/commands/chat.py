"""`overstory chat`: opens conversations and settings, and runs the terminal app over them.

Options are those of `run`; one that is given holds for this run instead of what is remembered. Imports Textual only
when the command runs, and never torch: that lives in the engine's process.
"""

import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.config import EngineConfig, SamplingParams
from runtime.errors import OptionError
from tui.chat.settings.settings import SETTINGS
from tui.environment import cache_folder, config_folder, data_folder
from tui.options import Shown, TurnOptions, typed_fields, with_option_groups

if TYPE_CHECKING:
    from tui.chat.store.store import ConversationStore


def _remembered(owner: type[EngineConfig] | type[SamplingParams]) -> dict[str, str]:
    """Return what holds in a chat until somebody changes it, by the names of `owner`'s fields."""
    settings = (setting for setting in SETTINGS.values() if setting.owner is owner)
    return {setting.field_name: setting.unset or str(setting.default) or "none" for setting in settings}


@with_option_groups
def chat(
    command_line: typer.Context,
    config: Annotated[
        EngineConfig, Shown(defaults={"lookup": "on", "prefix_cache": "auto"}, unset=_remembered(EngineConfig))
    ],
    params: Annotated[SamplingParams, Shown(unset=_remembered(SamplingParams))],
    turns: TurnOptions,
    *,
    conversation: Annotated[
        int | None,
        typer.Option(help="Open the conversation of this number: # in title and list.", show_default="a new one"),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Open the conversation used last.")] = False,
    mouse: Annotated[bool, typer.Option(help="Let the app see the mouse.")] = True,
) -> int:
    """Chat in the terminal; what is left out is as the settings remember it (F5), at first as its default here."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OptionError("chat needs a terminal; answer a prompt file with overstory run instead")
    if os.name == "posix" and not sys.stderr.isatty():
        raise OptionError("chat draws on stderr, which is redirected; leave it on the terminal")
    overrides = typed_overrides(command_line, config, params, turns)
    return run_chat(overrides, conversation_id=conversation, is_last=last, has_mouse=mouse)


def typed_overrides(
    command_line: typer.Context, config: EngineConfig, params: SamplingParams, turns: TurnOptions
) -> dict[str, Any]:
    """Return the choices that were typed, as `RememberedSettings` takes them."""

    def typed(choices: EngineConfig | SamplingParams) -> dict[str, Any]:
        return {name: getattr(choices, name) for name in typed_fields(command_line, type(choices))}

    system = {} if turns.system is None else {"system_prompt": turns.system}
    return typed(config) | typed(params) | system | ({"raw": True} if turns.raw else {})


def run_chat(overrides: dict[str, Any], *, conversation_id: int | None, is_last: bool, has_mouse: bool) -> int:
    """Open what is kept, run the app until it ends, and return the exit code."""
    from runtime.engine.demo_model import is_demo_model_here
    from tui.chat.app import ChatApp, collect_rarely
    from tui.chat.commands.keymap import make_keymap
    from tui.chat.display import ChatServices
    from tui.chat.engine.client import EngineClient
    from tui.chat.settings.file import RememberedSettings, read_keys, read_settings
    from tui.chat.terminal_input import repair_terminal_input
    from tui.chat.tools.servers import ToolServers
    from tui.chat.tools.settings import keep_server, read_servers

    with ExitStack() as stack:
        store, notices = open_conversations()
        stack.enter_context(store)
        settings_file = config_folder() / "settings.toml"
        settings, damages = read_settings(settings_file)
        keys = make_keymap(read_keys(settings_file))
        servers, tool_problems = read_servers(settings_file)
        latest = store.list_conversations(limit=1) if is_last else []
        if conversation_id is None and latest:
            conversation_id = latest[0].id
        if conversation_id is not None:
            store.conversation(conversation_id)
        app = ChatApp(
            ChatServices(
                store=store,
                engine=EngineClient(),
                settings=RememberedSettings(settings, path=settings_file, overrides=overrides),
                conversation_id=conversation_id,
                notices=(*notices, *damages, *keys.problems, *tool_problems),
                tools=ToolServers(servers),
                tool_problems=tool_problems,
                keep_server=partial(keep_server, settings_file),
                keys=keys,
                environment=os.environ,
                export_folder=data_folder() / "exports",
                is_demo_missing=lambda: not is_demo_model_here(cache_folder()),
            )
        )
        collect_rarely()
        repair_terminal_input()
        try:
            return app.run(mouse=has_mouse) or app.return_code or 0
        finally:
            if farewell := app.farewell():
                sys.stderr.write(farewell)
                sys.stderr.flush()


def open_conversations() -> tuple["ConversationStore", tuple[str, ...]]:
    """Open the conversations, or an empty store where they cannot be kept; return also what the user must know."""
    from tui.chat.store.database import ConversationStoreError
    from tui.chat.store.store import ConversationStore

    try:
        store = ConversationStore(data_folder() / "conversations.db")
    except ConversationStoreError as error:
        return ConversationStore(None), (f"nothing that is said now will be kept: {error}",)
    return store, ((store.notice,) if store.notice else ())
