"""Groups of command-line options: flags derive from the fields of `runtime.config`, beside those of the terminal alone.

A command takes a group as one parameter, and `with_option_groups` shows the command line one flag per option of it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer

from runtime.config import ANSWERS, EngineConfig, Option, SamplingParams, options_of
from runtime.errors import OptionError

ValidationPrompts = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPTS]", help="A .txt or .jsonl prompt file.", show_default="the validation prompts"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

_CONFIG_OPTIONS, _PARAMS_OPTIONS = options_of(EngineConfig), options_of(SamplingParams)
_DRAFT_NAMES = ("draft", "draft_format", "share_layers", "tree")


def _by_typed_name(members: Iterable[Option]) -> Mapping[str, Option]:
    return {option.typed_name: option for option in members}


class OptionGroup:
    """Options that become fields of the runtime's choices."""

    members: ClassVar[Mapping[str, Option]]
    """The fields by the name of the command's parameter, in the order of `--help`."""

    def __init__(self, **typed: Any) -> None:
        """Take values as typed, by parameter; those left out have their defaults. Raises OptionError."""
        self.values: dict[str, Any] = {option.name: option.default for option in self.members.values()}
        for name, value in typed.items():
            self.values[self.members[name].name] = _value(self.members[name], value)

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return one keyword-only parameter for each option, annotated for typer."""
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if isinstance(option.default, tuple) else option.default,
                annotation=_annotation(name, option),
            )
            for name, option in cls.members.items()
        ]


class DraftOptions(OptionGroup):
    """What proposes tokens."""

    members = _by_typed_name(_CONFIG_OPTIONS[name] for name in _DRAFT_NAMES)


class EngineOptions(OptionGroup):
    """The target, memory and link."""

    members = _by_typed_name(
        option for option in _CONFIG_OPTIONS.values() if option.name not in _DRAFT_NAMES and option.group != ANSWERS
    )

    def to_config(self, drafting: DraftOptions | None = None) -> EngineConfig:
        """Return the same choices, checked; without `drafting`, plain streaming. Raises OptionError."""
        return EngineConfig(**self.values, **({"draft": "none"} if drafting is None else drafting.values))


class AnswerOptions(OptionGroup):
    """How prompts become answers, where a line of the prompt file does not say otherwise."""

    members = _by_typed_name([*_PARAMS_OPTIONS.values(), dataclasses.replace(_CONFIG_OPTIONS["lookup"], default="on")])

    def to_params(self) -> SamplingParams:
        """Return the sampling choices, checked. Raises OptionError."""
        return SamplingParams(**{name: value for name, value in self.values.items() if name in _PARAMS_OPTIONS})

    def applied_to(self, config: EngineConfig) -> EngineConfig:
        """Return the config with what the answers want of the engine, checked. Raises OptionError."""
        return dataclasses.replace(config, lookup=self.values["lookup"])


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """What stands around a prompt."""

    system: Annotated[
        str | None,
        typer.Option(help="System turn of every prompt.", show_default="the model's", rich_help_panel=ANSWERS),
    ] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Send prompts as they are, without chat template.", rich_help_panel=ANSWERS)
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Where results and progress go."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Append results to this file.", show_default="stdout")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Skip ids that --output already answers.")] = False
    quiet: Quiet = False

    def __post_init__(self) -> None:
        if self.resume and self.output is None:
            raise OptionError("--resume needs the file to go on with; add --output FILE")


def with_option_groups(command: Callable[..., int]) -> Callable[..., int]:
    """Show the command line one parameter per option wherever `command` takes an OptionGroup or a dataclass."""
    groups: dict[str, tuple[Callable[..., object], list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        found = _group(parameter.annotation)
        if found is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group, members = found
        groups[parameter.name] = group, [member.name for member in members]
        parameters += members

    @wraps(command)
    def flat_command(**values: Any) -> int:
        collected = {
            name: group(**{member: values.pop(member) for member in members})
            for name, (group, members) in groups.items()
        }
        return command(**collected, **values)

    flat_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat_command


def _group(kind: Any) -> tuple[Callable[..., object], list[inspect.Parameter]] | None:
    """Return what makes the group from values as typed, and its parameters; None for a parameter that is no group."""
    if isinstance(kind, type) and issubclass(kind, OptionGroup):
        return kind, kind.parameters()
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    hints = get_type_hints(kind, include_extras=True)
    if any(isinstance(option, Option) for hint in hints.values() for option in getattr(hint, "__metadata__", ())):

        class Members(OptionGroup):
            members = _by_typed_name(options_of(kind).values())

        return (lambda **typed: kind(**Members(**typed).values)), Members.parameters()
    return kind, [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]


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
