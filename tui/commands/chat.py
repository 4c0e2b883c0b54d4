"""`overstory chat`: opens conversations and settings, and runs the terminal app over them.

Options are those of `run`; one that is given holds for this run instead of what is remembered. Imports Textual only
when the command runs, and never torch: that lives in the engine's process.
"""

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import OptionError
from tui.command_options import AnswerOptions, DraftOptions, EngineOptions, with_option_groups
from tui.environment import conversation_database, export_folder, settings_file

if TYPE_CHECKING:
    from tui.chat.settings.remembered_settings import Overrides
    from tui.chat.store.store import ConversationStore

_CONFIG_FIELDS = {
    **{name: name for name in ("target", "draft", "draft_format", "share_layers", "tree", "compute_dtype", "device")},
    **{name: name for name in ("ring_slots", "io", "lookup")},
    "context": "context_tokens",
    "device_memory": "device_memory_bytes",
    "host_memory": "host_memory_bytes",
    "emulate_link": "link",
    "emulate_disk": "disk_link",
    "reader_threads": "num_reader_threads",
}
"""Options by the field of `EngineConfig` that they become."""
_PARAMS_FIELDS = {
    **{name: name for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: name for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "verification")},
    "ban_token": "banned_tokens",
    "force_token": "forced_tokens",
}
"""Options by the field of `SamplingParams` that they become."""


@with_option_groups
def chat(
    command_line: typer.Context,
    engine: EngineOptions,
    drafting: DraftOptions,
    answers: AnswerOptions,
    *,
    conversation: Annotated[
        int | None, typer.Option(help="Open this conversation, by its number.", show_default="a new one")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Open the conversation used last.")] = False,
    mouse: Annotated[bool, typer.Option(help="Let the app see the mouse.")] = True,
) -> int:
    """Chat in the terminal; an option that is left out is as remembered in the settings, not as its default here."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OptionError("chat needs a terminal; answer a prompt file with overstory run instead")
    if os.name == "posix" and not sys.stderr.isatty():
        raise OptionError("chat draws on stderr, which is redirected; leave it on the terminal")
    overrides = typed_overrides(command_line, engine=engine, drafting=drafting, answers=answers)
    return run_chat(overrides, conversation_id=conversation, is_last=last, has_mouse=mouse)


def typed_overrides(
    command_line: typer.Context, *, engine: EngineOptions, drafting: DraftOptions, answers: AnswerOptions
) -> "Overrides":
    """Return what was typed, checked, as fields of the runtime, without what was left out. Raises OptionError."""
    from tui.chat.settings.remembered_settings import Overrides

    if answers.raw:
        raise OptionError("--raw sends prompts without chat template, which a chat needs; use overstory run")
    config, params = answers.applied_to(engine.to_config(drafting)), answers.to_params()
    typed = {name for name in command_line.params if _is_typed(command_line, name)}
    return Overrides(
        config={field: getattr(config, field) for name, field in _CONFIG_FIELDS.items() if name in typed},
        params={field: getattr(params, field) for name, field in _PARAMS_FIELDS.items() if name in typed},
        system_prompt=answers.system,
    )


def run_chat(overrides: "Overrides", *, conversation_id: int | None, is_last: bool, has_mouse: bool) -> int:
    """Open what is kept, run the app until it ends, and return the exit code."""
    from tui.chat.app import ChatApp
    from tui.chat.display import ChatServices
    from tui.chat.engine.client import EngineClient
    from tui.chat.settings.remembered_settings import RememberedSettings
    from tui.chat.settings.settings_file import read_settings

    with ExitStack() as stack:
        store, notices = open_conversations()
        stack.enter_context(store)
        read = read_settings(settings_file())
        latest = store.list_conversations(limit=1) if is_last else []
        if conversation_id is None and latest:
            conversation_id = latest[0].id
        if conversation_id is not None:
            store.conversation(conversation_id)
        app = ChatApp(
            ChatServices(
                store=store,
                engine=EngineClient(),
                settings=RememberedSettings(read.settings, path=settings_file(), overrides=overrides),
                conversation_id=conversation_id,
                notices=(*notices, *read.notices),
                environment=os.environ,
                export_folder=export_folder(),
            )
        )
        app.collector.take_over()
        return app.run(mouse=has_mouse) or app.return_code or 0


def open_conversations() -> tuple["ConversationStore", tuple[str, ...]]:
    """Open the conversations, or an empty store where they cannot be kept; return also what the user must know."""
    from tui.chat.errors import ConversationStoreError
    from tui.chat.store.store import ConversationStore

    try:
        store = ConversationStore(conversation_database())
    except ConversationStoreError as error:
        return ConversationStore(None), (f"nothing that is said now will be kept: {error}",)
    return store, ((store.notice,) if store.notice else ())


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
