"""Options of commands: flags derive from the fields of the runtime's own records, beside those of the terminal alone.

A command takes a record as one parameter, and `with_option_groups` shows the command line one flag per option of it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import wraps
from typing import Annotated, Any, get_args, get_origin

import typer

from runtime.config import ANSWERS, DEFAULT_CONTEXT_TOKENS, EngineConfig, Option, SamplingParams, options_of

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


@dataclass(frozen=True, slots=True)
class Shown:
    """On the annotation of a record: what of it a command shows otherwise."""

    hidden: tuple[str, ...] = ()
    """Fields without a flag."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of fields that have another one here."""
    unset: Mapping[str, str] = field(default_factory=dict)
    """Of fields that are taken from elsewhere while they have no flag: what is told of that instead of the default."""


_ANSWERING = {"draft": "auto", "lookup": "on", "generation": "auto", "prefix_cache": "auto"}
AnsweringConfig = Annotated[EngineConfig, Shown(hidden=("num_texts",), defaults=_ANSWERING)]
"""Of commands that answer prompts."""
BatchConfig = Annotated[EngineConfig, Shown(defaults={**_ANSWERING, "num_texts": None})]
"""Of those that answer many together."""
ServingConfig = Annotated[
    EngineConfig,
    Shown(defaults={**_ANSWERING, "num_texts": None}, unset={"context_tokens": str(DEFAULT_CONTEXT_TOKENS)}),
]
"""Of a server, which does not know what will be asked."""
ServingParams = Annotated[
    SamplingParams,
    Shown(
        unset={
            "temperature": "the request's, else the model's, else 1",
            "seed": "the request's, else a new one",
            "max_new_tokens": "the request's, else the context's end; in /v1/completions 16",
        }
    ),
]
"""Of answers of a server: what holds where a request says nothing."""
ComparingConfig = Annotated[
    EngineConfig, Shown(hidden=("num_texts", "prefix_cache"), defaults={"draft": "auto", "lookup": "on"})
]
"""Of those that answer them to measure, without the model's own generation settings unless asked."""
DraftingConfig = Annotated[
    EngineConfig, Shown(hidden=("num_texts", "lookup", "generation", "prefix_cache"), defaults={"draft": "auto"})
]
"""Of commands that count and time the draft's own trees."""
BatchDraftingConfig = Annotated[
    EngineConfig,
    Shown(hidden=("lookup", "generation", "prefix_cache"), defaults={"draft": "auto", "num_texts": None}),
]
"""Of those among them that answer many prompts together."""
PlainConfig = Annotated[
    EngineConfig,
    Shown(
        hidden=(
            *("num_texts", "draft", "draft_format", "draft_device", "share_layers", "tree", "lookup", "generation"),
            "prefix_cache",
        ),
        defaults={"draft": "none"},
    ),
]
"""Of commands without a draft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """What stands around a prompt."""

    system: Annotated[str | None, Option("System turn of every prompt.", ANSWERS, unset="the model's")] = None
    raw: Annotated[bool, Option("Send prompts as they are, without chat template.", ANSWERS)] = False


def typed_fields(command_line: typer.Context, owner: type[Any]) -> frozenset[str]:
    """Return the fields of `owner` whose options stand on the command line."""
    sources = {name: command_line.get_parameter_source(each.typed_name) for name, each in options_of(owner).items()}
    return frozenset(name for name, source in sources.items() if source and source.name != "DEFAULT")


def with_option_groups(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Show the command line one flag per option wherever `command` takes a dataclass of options."""
    groups: dict[str, Callable[[dict[str, Any]], object]] = {}
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        kind, *notes = get_args(parameter.annotation) or (parameter.annotation,)
        if isinstance(kind, type) and is_dataclass(kind):
            shown = next((note for note in notes if isinstance(note, Shown)), Shown())
            groups[parameter.name], members = _flags(kind, shown)
            parameters += members
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def flat_command(**values: Any) -> int | None:
        collected = {name: group(values) for name, group in groups.items()}
        return command(**collected, **values)

    flat_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat_command


def _flags(owner: type[Any], shown: Shown) -> tuple[Callable[[dict[str, Any]], object], list[inspect.Parameter]]:
    """Return what takes an `owner`'s values out of those typed and makes it of them, and one parameter per option."""
    options = {
        option.typed_name: replace(
            option,
            default=shown.defaults.get(name, option.default),
            unset=shown.unset.get(name, option.unset),
        )
        for name, option in options_of(owner).items()
        if name not in shown.hidden
    }

    def collect(values: dict[str, Any]) -> object:
        typed = {option.name: _value(option, values.pop(name, option.default)) for name, option in options.items()}
        return owner(**{**shown.defaults, **typed})

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if isinstance(option.default, tuple) else option.default,
            annotation=_annotation(name, option),
        )
        for name, option in options.items()
    ]
    return collect, parameters


def _annotation(name: str, option: Option) -> Any:
    """Return the type that typer parses, with what `--help` says; a value is checked by the option's owner."""
    kind = option.kind
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]] | None  # type: ignore[misc]
    elif option.choices:
        kind = str
    elif option.parse is not None:
        kind = str | None
    names = (f"--{name}".replace("_", "-"),) if kind is bool else ()
    shown: Any = True if option.unset is None else option.unset
    return Annotated[kind, typer.Option(*names, help=option.help, rich_help_panel=option.group, show_default=shown)]


def _value(option: Option, typed: Any) -> Any:
    if isinstance(option.default, tuple):
        return tuple(typed or ())
    if option.parse is not None and isinstance(typed, str):
        return option.parse(typed, f"--{option.typed_name}".replace("_", "-"))
    return typed
