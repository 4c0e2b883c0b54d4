"""`overstory ask`: one question, answered by a running server with the model or by one that is loaded for it.

The question and its answer are kept among the chat's conversations, where `--continue` goes on with them.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import OverstoryError
from runtime.config import EngineConfig, SamplingParams, options_of
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.ask.pieces import Ended, Piece, Pieces, pieces_of
from tui.ask.question import build_question, read_piped
from tui.environment import config_folder
from tui.interruption import CommandInterruptedError
from tui.options import AnsweringConfig, Quiet, Shown, TurnOptions, typed_fields, with_option_groups
from tui.terminal_text import counted, one_line

if TYPE_CHECKING:
    from tui.ask.kept import KeptConversation
    from tui.server.running import RunningServer

MAX_NEW_TOKENS = 1024
_CUT = ("length", "context")
"""How an answer ends that the model would have gone on with."""
_OF_SERVERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "max_new_tokens": "max_tokens",
    **{name: name for name in ("top_k", "min_p", "repetition_penalty", "thinking_budget")},
}
"""Options of an answer that our server takes, and what it calls them."""


@with_option_groups
def ask(
    command_line: typer.Context,
    config: AnsweringConfig,
    params: Annotated[SamplingParams, Shown(defaults={"max_new_tokens": MAX_NEW_TOKENS})],
    turns: TurnOptions,
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION]", help="What to ask; @FILE in it attaches a text file, @@ is a plain @."),
    ] = None,
    goes_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Ask further in the last conversation of `ask`.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: text, reasoning, finish_reason, usage, seconds, model.")
    ] = False,
    shows_thinking: Annotated[
        bool, typer.Option("--show-thinking", help="Show what is thought before the answer, not only for how long.")
    ] = False,
    server: Annotated[
        bool, typer.Option(help="Let a running `overstory serve` with the same model answer, if there is one.")
    ] = True,
    keep: Annotated[bool, typer.Option(help="Keep question and answer among the chat's conversations.")] = True,
    quiet: Quiet = False,
) -> int:
    """Answer one question: overstory ask "What is new?" < CHANGELOG.md

    Text on standard input, and files named by @, go along with the question. On a terminal the answer is shown as
    Markdown while it comes; on a pipe stdout has its text alone.

    Without --target it is answered by a running server, whatever its model, else by the model chosen last in the
    chat, else by the demo model.
    """
    from tui.ask.display import display_for  # here, since every command imports this module
    from tui.ask.kept import kept_conversation
    from tui.ask.server_client import ServerClient

    question = build_question(words or (), read_piped())
    begun = time.perf_counter()
    with ExitStack() as stack:
        kept = stack.enter_context(kept_conversation(goes_on=goes_on, is_kept=keep))
        messages = kept.messages(question, system=turns.system)
        typed = _Typed.of(command_line, config, params, turns)
        request = _request(messages, typed)
        found = _find_server(typed) if server else None
        facts = _Facts(found.base_url if found else None, begun)
        display = display_for(as_json=as_json, is_quiet=quiet, shows_thinking=shows_thinking, facts=facts.record)
        if found is not None:
            facts.model = found.model
            _tell(f"answered by {found.model} of the server at {found.base_url}", is_quiet=quiet)
            pieces = ServerClient(found).ask(_body(request, typed))
        else:
            facts.model, pieces = _loaded(stack, typed, request, is_quiet=quiet)
        kept.begin(question, system=turns.system, model=facts.model)
        with display:
            ended = _show_all(pieces, display.show, kept)
        if ended is not None and ended.finish_reason in _CUT:
            _tell(_cut_words(ended, params.max_new_tokens), is_quiet=quiet)
    return 0


def _cut_words(ended: Ended, most: int) -> str:
    """Return what cut the answer; a server says the same of its limit of tokens and of its context."""
    num_new = ended.usage.get("completion_tokens")
    if isinstance(num_new, int) and num_new < most:
        return "the answer was cut, as the context is full; a larger --context has room for more"
    return f"the answer was cut at {counted(most, 'token')}; a larger --max-new-tokens lets it go on"


def _show_all(pieces: Pieces, show: Callable[[Piece], None], kept: "KeptConversation") -> Ended | None:
    """Show and keep an answer, and return how it ended; what came stays where it is broken off."""
    ended = None
    try:
        for piece in pieces:
            kept.add(piece)
            show(piece)
            ended = piece if isinstance(piece, Ended) else ended
    except KeyboardInterrupt as interrupt:
        pieces.close()
        kept.end("stopped")
        raise CommandInterruptedError("what came of the answer is kept") from interrupt
    except OverstoryError as error:
        kept.end("failed", error=str(error))
        raise
    return ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _Typed:
    """What the command line says, and which of it was typed."""

    config: EngineConfig
    params: SamplingParams
    turns: TurnOptions
    config_fields: frozenset[str]
    params_fields: frozenset[str]

    @classmethod
    def of(
        cls, command_line: typer.Context, config: EngineConfig, params: SamplingParams, turns: TurnOptions
    ) -> "_Typed":
        fields = typed_fields(command_line, EngineConfig)
        return cls(
            config=config if "target" in fields else _with_model_of_chat(config, fields),
            params=params,
            turns=turns,
            config_fields=fields,
            params_fields=typed_fields(command_line, SamplingParams),
        )

    @property
    def needs_own_session(self) -> bool:
        """Whether something was typed that a server is not told."""
        of_answers = self.params_fields - _OF_SERVERS.keys()
        return bool(self.config_fields - {"target"} or of_answers or self.turns.raw)


def _with_model_of_chat(config: EngineConfig, typed: frozenset[str]) -> EngineConfig:
    """Return the config with the model that the chat opens, and its draft, where nobody named one here."""
    from tui.chat.settings.file import read_settings

    settings, _ = read_settings(config_folder() / "settings.toml")
    draft = config.draft if "draft" in typed else settings["draft"]
    return replace(config, target=settings["target"] or None, draft=draft)


def _request(messages: tuple[Message, ...], typed: _Typed) -> PromptRequest:
    from tui.chat.store.records import raw_text

    unchosen = options_of(SamplingParams).keys() - typed.params_fields
    common: dict[str, Any] = {"id": "ask", "params": typed.params, "unchosen": frozenset(unchosen)}
    if typed.turns.raw:
        return PromptRequest(prompt=raw_text(messages), **common)
    return PromptRequest(messages=messages, wants_parts=True, **common)


def _find_server(typed: _Typed) -> "RunningServer | None":
    """Return a running server that may answer: one with the target that was typed, or any where none was."""
    if typed.needs_own_session:
        return None
    from tui.ask.server_client import ServerClient
    from tui.server.running import running_servers

    wanted = typed.config.target if "target" in typed.config_fields else None
    servers = (each for each in running_servers() if wanted is None or _is_same_model(wanted, each.target))
    return next((each for each in servers if ServerClient(each).has_model()), None)


def _is_same_model(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _body(request: PromptRequest, typed: _Typed) -> dict[str, Any]:
    """Return what is asked of a server: the turns, and the options that were typed."""
    assert request.messages is not None
    turns = [{"role": each.role, "content": each.content} for each in request.messages]
    chosen = {
        name: getattr(typed.params, field_name)
        for field_name, name in _OF_SERVERS.items()
        if field_name in typed.params_fields
    }
    return {"messages": turns, "max_tokens": typed.params.max_new_tokens, **chosen}


def _loaded(stack: ExitStack, typed: _Typed, request: PromptRequest, *, is_quiet: bool) -> tuple[str, Pieces]:
    """Load the model in sight of the user; return its name, and what it answers."""
    from tui.environment import load_models
    from tui.printing import progress_console, show_load

    console = progress_console(is_quiet=is_quiet)
    opened = show_load(load_models(typed.config, stack, requests=[request], is_early=True), console)
    _tell(f"answered by {opened.plan.target_name}, loaded here", is_quiet=is_quiet)
    if "thinking_budget" in typed.params_fields and not opened.session.can_think:
        _tell(f"{opened.plan.target_name} marks no thinking, so --think changes nothing", is_quiet=is_quiet)
    return opened.plan.target_name, pieces_of(opened.session, request)


def _tell(sentence: str, *, is_quiet: bool) -> None:
    if not is_quiet:
        sys.stderr.write(f"overstory: {one_line(sentence)}\n")
        sys.stderr.flush()


@dataclass(slots=True)
class _Facts:
    """What is known of an answer beside its text."""

    server: str | None
    begun: float
    model: str = ""

    def record(self) -> dict[str, Any]:
        return {
            "seconds": round(time.perf_counter() - self.begun, 3),
            "model": self.model,
            "server": self.server,
        }
