"""What `plan` is asked, before any name is looked up: which models and trees, and on which machine."""

from dataclasses import dataclass
from typing import Annotated

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.units import LinkSpeed
from runtime.config import (
    MODELS,
    MOST_BATCH,
    CostModel,
    DraftFormat,
    KvCache,
    KvFormat,
    Option,
    Pack,
    SamplingParams,
    TreeSearch,
    check_choices,
    parse_memory,
    parse_speed,
    parse_tree,
)
from runtime.errors import OptionError, OptionValueError
from runtime.fit.file_formats import FILE_FORMATS, canonical_format

LARGEST_CONTEXT_TOKENS = 1 << 24
_TARGET_FORMATS = ("auto", "bfloat16", "float16", "float32", *QUANTIZED_FORMATS, *FILE_FORMATS)


def _parse_format(text: str, option: str) -> str:
    """Return the format that is spelt in any case; `check_choices` tells of others."""
    return canonical_format(text)


ANSWER, _MACHINE = "Answer", "Machine"
"""Headings of the options, beside MODELS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Models and trees; raises OptionError for a value outside its range."""

    target: Annotated[
        str,
        Option(
            "A known model (llama-3.3-70b, qwen3-32b, gemma-3-27b ...), a folder, GGUF file or hub name; a format may "
            "follow: llama-3.3-70b:Q4_K_M.",
            MODELS,
        ),
    ] = "llama-3-70b"
    draft: Annotated[
        str,
        Option(
            "auto (beside a folder what run takes, else the usual small model of a known one), substitute, none, or as "
            "--target.",
            MODELS,
        ),
    ] = "auto"
    format: Annotated[
        str,
        Option(
            "Of the target's layers: auto is as published; int8, nf4; or as files to download have them: "
            f"{', '.join(FILE_FORMATS)}.",
            MODELS,
            choices=_TARGET_FORMATS,
            parse=_parse_format,
        ),
    ] = "auto"
    draft_format: Annotated[
        DraftFormat, Option("How the draft is held: stored, int8, nf4, or auto: the fastest.", MODELS)
    ] = "auto"
    context_tokens: Annotated[
        int | None, Option("Most tokens of prompt and answer.", MODELS, flag="context", unset="4096")
    ] = None
    kv_cache: Annotated[
        KvCache,
        Option(
            "Where keys and values are: device, host (those of streamed layers wait in host memory and cross the link "
            "with them), or auto.",
            MODELS,
        ),
    ] = "auto"
    kv_format: Annotated[
        KvFormat,
        Option(
            "How keys and values travel, where any do: exact, or int8, half the bytes, with which the text may differ.",
            MODELS,
        ),
    ] = "exact"
    pack: Annotated[
        Pack,
        Option(
            "Keep bfloat16 layers in memory in 12 bits an element, bit for bit: on, off, or auto, where it is faster.",
            MODELS,
        ),
    ] = "auto"
    temperature: Annotated[float, Option("0 is greedy.", MODELS)] = 0.0
    tree: Annotated[str, Option("auto, or nodes x levels of a tree to be priced, as in 768x18.", MODELS)] = "auto"
    num_prompts: Annotated[
        int, Option("Prompts that are answered together and share each pass, as run --batch.", ANSWER)
    ] = 1
    search: Annotated[TreeSearch, Option("best-first, or dp: the paper's dynamic program.", ANSWER)] = "best-first"
    cost: Annotated[CostModel, Option("pipeline, or paper: the paper's own cost model.", ANSWER)] = "pipeline"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.context_tokens is not None and not 2 <= self.context_tokens <= LARGEST_CONTEXT_TOKENS:
            raise OptionValueError(
                "context_tokens", f" is {self.context_tokens}; it must be from 2 to {LARGEST_CONTEXT_TOKENS}"
            )
        if not 1 <= self.num_prompts <= MOST_BATCH:
            raise OptionValueError("num_prompts", f" is {self.num_prompts}; it must be from 1 to {MOST_BATCH}")
        SamplingParams(temperature=self.temperature)  # which knows the range
        parse_tree(self.tree)
        if self.tree != "auto" and self.draft == "none":
            raise OptionError("a tree needs a draft; leave out --tree or --draft none")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """A built-in machine or this one, under the user's limits; raises OptionError for both."""

    machine: Annotated[
        str | None, Option("A built-in machine: l40, rtx-4090, rtx-4060-ti-16gb ...", _MACHINE, unset="this one")
    ] = None
    device: Annotated[str, Option("Of this machine: auto, cpu, or TYPE[:INDEX] as in cuda:0.", _MACHINE)] = "auto"
    device_memory_bytes: Annotated[
        int | None,
        Option(
            "Budget of the device, as in 8GB, or min: no layer stays.",
            _MACHINE,
            unset="all",
            parse=parse_memory,
        ),
    ] = None
    host_memory_bytes: Annotated[
        int | None,
        Option(
            "Budget of host memory for layers, as in 64GB.",
            _MACHINE,
            unset="what is free; enough, where nobody knows",
            parse=parse_memory,
        ),
    ] = None
    link: Annotated[
        LinkSpeed | None,
        Option("Rate to the device, as in 25GB/s.", _MACHINE, unset="the machine's", parse=parse_speed),
    ] = None
    disk: Annotated[
        LinkSpeed | None,
        Option("Rate of the disk, as in 3.5GB/s.", _MACHINE, unset="the machine's", parse=parse_speed),
    ] = None

    def __post_init__(self) -> None:
        if self.machine is not None and self.device != "auto":
            raise OptionError("--device is of this machine; leave out --machine or --device")
