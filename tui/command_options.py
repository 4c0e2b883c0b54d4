"""The options that several commands share, each written down once with its default and its help.

A group of options is a frozen dataclass; a command takes the group as one parameter, and `with_option_groups` shows
the command line one option per field. Does not act on any option.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from runtime.engine_config import ComputeDtype, DraftFormat, EngineConfig, Lookup, ReadPath, parse_memory
from runtime.errors import OptionError
from runtime.sampling_params import SamplingParams

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
_MODELS, _MEMORY, _ANSWERS = "Models", "Memory and link", "Answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What proposes tokens, as typed."""

    draft: Annotated[
        str,
        typer.Option(
            help="substitute (the target itself, quantized), none (plain streaming), or a folder or hub name.",
            rich_help_panel=_MODELS,
        ),
    ] = "substitute"
    draft_format: Annotated[
        str,
        typer.Option(
            help="How a draft is held: int8, nf4, stored as in its files, or auto, the fastest here.",
            rich_help_panel=_MODELS,
        ),
    ] = "auto"
    share_layers: Annotated[
        bool,
        typer.Option(
            "--share-layers",
            help="A substitute uses the target's resident layers as they are, and copies only the others.",
            rich_help_panel=_MODELS,
        ),
    ] = False
    tree: Annotated[
        str,
        typer.Option(
            help="auto; nodes x levels as in 64x10, the root counted; dynamic or dynamic:64x10, shaped by context; or "
            "static, never shaped by context.",
            rich_help_panel=_MODELS,
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The target, memory and link, as typed."""

    target: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of the model to run.", show_default="the demo model", rich_help_panel=_MODELS
        ),
    ] = None
    context: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of prompt and answer together.",
            show_default="what the prompts need",
            rich_help_panel=_MODELS,
        ),
    ] = None
    compute_dtype: Annotated[
        str, typer.Option(help="Type of the matmuls: auto, float32, bfloat16 or float16.", rich_help_panel=_MODELS)
    ] = "auto"
    device: Annotated[
        str,
        typer.Option(
            help="auto (an accelerator if torch finds one), cpu, or a type and index as in cuda:0.",
            rich_help_panel=_MEMORY,
        ),
    ] = "auto"
    device_memory: Annotated[
        str | None,
        typer.Option(
            help="Budget of the device, as in 2.2GB, or min: no layer stays resident.",
            show_default="what is free",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    host_memory: Annotated[
        str | None,
        typer.Option(
            help="Budget of host memory for streamed layers.",
            show_default="what is free for an accelerator or an emulated link, else none",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    emulate_link: Annotated[
        str | None,
        typer.Option(
            help="Stream over a link of this speed and latency, as in 25GB/s,10us.",
            show_default="the real link",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    emulate_disk: Annotated[
        str | None,
        typer.Option(
            help="Read layers for the emulated link from a disk of this speed, as in 3GB/s,100us.",
            show_default="the real disk",
            rich_help_panel=_MEMORY,
        ),
    ] = None
    ring_slots: Annotated[
        int, typer.Option(help="Device slots that streamed layers share, 2 or more.", rich_help_panel=_MEMORY)
    ] = 2
    io: Annotated[
        str,
        typer.Option(help="Disk reads: auto, direct (past the page cache) or buffered.", rich_help_panel=_MEMORY),
    ] = "auto"
    reader_threads: Annotated[
        int, typer.Option(help="Threads that read one layer from disk together.", rich_help_panel=_MEMORY)
    ] = 6

    def to_config(self, drafting: DraftOptions | None = None) -> EngineConfig:
        """The same choices, checked; without `drafting`, plain streaming. Raises OptionError."""
        return EngineConfig(
            target=self.target,
            draft="none" if drafting is None else drafting.draft,
            share_layers=drafting is not None and drafting.share_layers,
            tree="auto" if drafting is None else drafting.tree,
            draft_format="auto" if drafting is None else cast(DraftFormat, drafting.draft_format),
            device_memory_bytes=_memory(self.device_memory, "--device-memory"),
            host_memory_bytes=_memory(self.host_memory, "--host-memory"),
            device=self.device,
            link=self.emulate_link,
            disk_link=self.emulate_disk,
            ring_slots=self.ring_slots,
            context_tokens=self.context,
            compute_dtype=cast(ComputeDtype, self.compute_dtype),
            io=cast(ReadPath, self.io),
            num_reader_threads=self.reader_threads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How prompts become answers, where a line of the prompt file does not say otherwise."""

    max_new_tokens: Annotated[
        int, typer.Option(help="An answer ends after this many tokens.", rich_help_panel=_ANSWERS)
    ] = 256
    temperature: Annotated[
        float, typer.Option(help="0 is greedy; higher is more varied.", rich_help_panel=_ANSWERS)
    ] = 0.0
    top_p: Annotated[
        float, typer.Option(help="Keep the most likely tokens up to this mass.", rich_help_panel=_ANSWERS)
    ] = 1.0
    top_k: Annotated[
        int, typer.Option(help="Keep this many most likely tokens; 0 keeps all.", rich_help_panel=_ANSWERS)
    ] = 0
    min_p: Annotated[
        float,
        typer.Option(
            help="Drop tokens below this share of the likeliest one's probability; 0 drops none.",
            rich_help_panel=_ANSWERS,
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            help="Above 1, tokens of prompt and answer become less likely; 1 is off.", rich_help_panel=_ANSWERS
        ),
    ] = 1.0
    presence_penalty: Annotated[
        float,
        typer.Option(help="Subtracted from the logit of tokens that the answer holds.", rich_help_panel=_ANSWERS),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        typer.Option(help="The same, once for each time the answer holds the token.", rich_help_panel=_ANSWERS),
    ] = 0.0
    ban_token: Annotated[
        list[int] | None,
        typer.Option(
            help="Never emit this token id; may be given again.", show_default="none", rich_help_panel=_ANSWERS
        ),
    ] = None
    force_token: Annotated[
        list[int] | None,
        typer.Option(
            help="Begin the answer with this token id; given again, with these in their order.",
            show_default="none",
            rich_help_panel=_ANSWERS,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            help="Same seed, same tokens; sampled ones if trees are the same too, or with --verification coupled.",
            rich_help_panel=_ANSWERS,
        ),
    ] = 0
    verification: Annotated[
        str,
        typer.Option(
            help="How sampled tokens are verified: auto, sequoia, coupled (the seed alone decides the text), "
            "specinfer or top-k.",
            rich_help_panel=_ANSWERS,
        ),
    ] = "auto"
    lookup: Annotated[
        str,
        typer.Option(
            help="Also propose what followed earlier in the text itself: on or off.",
            rich_help_panel=_ANSWERS,
        ),
    ] = "on"
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be given again.", show_default="none", rich_help_panel=_ANSWERS),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(help="System turn of every prompt.", show_default="the model's", rich_help_panel=_ANSWERS),
    ] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Send prompts as they are, without chat template.", rich_help_panel=_ANSWERS)
    ] = False

    def applied_to(self, config: EngineConfig) -> EngineConfig:
        """The config with what the answers want of the engine, checked; raises OptionError."""
        return dataclasses.replace(config, lookup=cast(Lookup, self.lookup))

    def to_params(self) -> SamplingParams:
        """The sampling choices, checked; raises OptionError."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            banned_tokens=tuple(self.ban_token or ()),
            forced_tokens=tuple(self.force_token or ()),
            seed=self.seed,
            verification=self.verification,
            max_new_tokens=self.max_new_tokens,
            stop=tuple(self.stop or ()),
        )


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
    """Show the command line one parameter per field wherever `command` takes a dataclass."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in dataclasses.fields(parameter.annotation)
        ]

    @wraps(command)
    def flat_command(**values: Any) -> int:
        collected = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        return command(**collected, **values)

    flat_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat_command


def _memory(text: str | None, option: str) -> int | None:
    return None if text is None else parse_memory(text, option)
