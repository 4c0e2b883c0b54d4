"""Options of commands: flags derive from the fields of the runtime's own records, beside those of the terminal alone.

A command takes a record as one parameter, and `with_option_groups` shows the command line one flag per option of it.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import ParameterInfo

from profiles.errors import quote
from runtime.config import ANSWERS, DEFAULT_CONTEXT_TOKENS, EngineConfig, Option, SamplingParams, options_of
from runtime.errors import OptionError, OptionValueError

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
    """Show the command line one flag per option wherever `command` takes a dataclass of options.

    Whatever is wrong with a value is told of the option as it is typed: numbers are read here rather than by the
    library, and errors of records, which know their fields, get the flags of these.
    """
    groups: dict[str, Callable[[dict[str, Any]], object]] = {}
    flags: dict[str, str] = {}
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        kind, *notes = get_args(parameter.annotation) or (parameter.annotation,)
        if isinstance(kind, type) and is_dataclass(kind):
            shown = next((note for note in notes if isinstance(note, Shown)), Shown())
            groups[parameter.name], members = _flags(kind, shown)
            parameters += members
            flags |= {name: flag_of(option.typed_name) for name, option in options_of(kind).items()}
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_checked(parameter)))
            flags[parameter.name] = flag_of(parameter.name)

    @wraps(command)
    def flat_command(**values: Any) -> int | None:
        try:
            collected = {name: group(values) for name, group in groups.items()}
            return command(**collected, **values)
        except OptionValueError as error:
            raise error.called(flags.get(error.option, error.option)) from error

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
    shown: Any = True if option.unset is None else option.unset
    flag = typer.Option(flag_of(name), help=option.help, rich_help_panel=option.group, show_default=shown)
    return Annotated[kind, _reading_numbers(kind, flag, flag_of(name))]


def _checked(parameter: inspect.Parameter) -> Any:
    """Return the annotation of an option of one command alone, whose numbers are read by us."""
    kind, *notes = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
    infos = [note for note in notes if isinstance(note, ParameterInfo)]
    if not infos:
        return parameter.annotation
    flag = next((name for name in infos[0].param_decls or () if name.startswith("--")), flag_of(parameter.name))
    return Annotated[kind, _reading_numbers(kind, infos[0], flag)]


def _reading_numbers(kind: Any, info: ParameterInfo, flag: str) -> ParameterInfo:
    """Return what typer is told of an option, with a reader of our own where its values are numbers."""
    number = next((each for each in _NUMBERS if each in (kind, *_members(kind))), None)
    if number is None:
        return info
    info = copy(info)
    info.parser = partial(_read_number, number, flag=flag, least=info.min, most=info.max)
    info.metavar = info.metavar or f"<{number.__name__}>"
    return info


_NUMBERS: Mapping[type[int | float], str] = {int: "a whole number", float: "a number"}


def _members(kind: Any) -> tuple[Any, ...]:
    """Return what a union or a list is of, at any depth."""
    return tuple(found for member in get_args(kind) for found in (member, *_members(member)))


def _read_number(
    number: type[int | float], typed: Any, *, flag: str, least: float | None, most: float | None
) -> int | float:
    """Return the number that was typed, or that a default is. Raises OptionError."""
    try:
        value = number(typed)
    except ValueError as error:  # also of thousands of digits
        raise OptionError(f"{flag} is {quote(typed)}; it must be {_NUMBERS[number]}") from error
    is_in_range = (least is None or value >= least) and (most is None or value <= most)
    if not is_in_range:
        bounds = f"{least:g} or more" if most is None else f"from {least:g} to {most:g}"
        raise OptionError(f"{flag} is {value}; it must be {bounds}")
    return value


def flag_of(name: str) -> str:
    """Return how an option is typed, by the name of its parameter."""
    return f"--{name}".replace("_", "-")


def _value(option: Option, typed: Any) -> Any:
    if isinstance(option.default, tuple):
        return tuple(typed or ())
    if option.parse is not None and isinstance(typed, str):
        return option.parse(typed, flag_of(option.typed_name))
    return typed
