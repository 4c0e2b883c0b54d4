"""Turns what `plan` is asked from names into numbers: the machine, target and draft, formats, context, and the tree.

Opens at most a config.json and safetensors headers; imports torch only where this machine is to be measured.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.units import format_link
from runtime.config import DEFAULT_CONTEXT_TOKENS, Pack, TreeKind, parse_tree
from runtime.errors import OptionError
from runtime.fit.file_formats import FILE_FORMATS, GGUF_MIXES
from runtime.fit.machine import Basis, Link, Machine, reference_machine
from runtime.fit.models import find_model, usual_draft
from runtime.fit.request import MachineRequest, PlanRequest
from runtime.fit.shapes import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """A `PlanRequest` whose names have been looked up."""

    request: PlanRequest
    """The choices as typed."""
    target: ModelShape
    draft: ModelShape | None
    """For a substitute the target itself; None for plain streaming."""
    is_substitute: bool
    """Whether the target's own layers draft."""
    context_tokens: int
    """Most tokens of prompt and answer."""
    notes: tuple[str, ...] = ()
    """What there is to say about the names, the sizes and what was measured."""

    @property
    def draft_name(self) -> str:
        return "none" if self.draft is None else "substitute" if self.is_substitute else self.draft.name

    @property
    def format_names(self) -> tuple[str, ...]:
        """The target's formats, the published one first."""
        return tuple(one.name for one in self.target.formats)

    @property
    def format_name(self) -> str:
        return self.format_names[0] if self.request.format == "auto" else self.request.format

    @property
    def is_packed(self) -> bool:
        """Whether its layers lie packed in memory, where the format that is run is one that packs."""
        return self.request.pack == "on"

    def with_packing(self, pack: Pack) -> "PlanQuestion":
        """Return the same with that choice of packing."""
        return replace(self, request=replace(self.request, pack=pack))

    @property
    def held_formats(self) -> tuple[str, ...]:
        """How the draft may be held: the user's choice, or all that make sense."""
        if (self.draft or self.target).formats[0].name in QUANTIZED_FORMATS:
            return ("stored",)
        if self.is_substitute and self.request.draft_format == "stored":
            return ("int8",)  # as a session: held like the target it would be the target itself
        if self.request.draft_format != "auto":
            return (self.request.draft_format,)
        return QUANTIZED_FORMATS if self.is_substitute else ("stored", *QUANTIZED_FORMATS)

    @property
    def tree_kind(self) -> TreeKind:
        return parse_tree(self.request.tree)[0]

    @property
    def tree_shape(self) -> tuple[int, int] | None:
        return parse_tree(self.request.tree)[1]


def resolve_question(request: PlanRequest) -> PlanQuestion:
    """Find the models.

    Raises:
        OptionError: a name that nothing has, or a format that the model does not have.
        CheckpointError: a folder or a hub's config.json that cannot be used.
    """
    target = find_model(request.target, what="the target")
    if request.format in FILE_FORMATS and request.format != target.formats[0].name:
        target = target.stored_as(request.format)
    draft: ModelShape | None = None
    if request.draft == "auto":
        draft = usual_draft(target.name) or target
    elif request.draft != "none":
        draft = target if request.draft == "substitute" else find_model(request.draft, what="the draft")
    notes = list(dict.fromkeys(shape.note for shape in (target, draft) if shape is not None and shape.note))
    if target.recurrence is not None and target.formats[0].name in GGUF_MIXES:
        notes.append(
            "GGUF files of models with Gated DeltaNet cannot be read yet: these are the figures that one would have"
        )
    context_tokens = request.context_tokens or DEFAULT_CONTEXT_TOKENS
    limit = target.max_context_tokens
    if limit is not None and context_tokens > limit:
        context_tokens = max(2, limit)
        if request.context_tokens:
            notes.append(f"{target.name} has {limit} positions, so the context is that")
    question = PlanQuestion(
        request=request,
        target=target,
        draft=draft,
        is_substitute=request.draft == "substitute" or (request.draft == "auto" and draft is target),
        context_tokens=context_tokens,
        notes=tuple(notes),
    )
    if question.format_name not in question.format_names:
        raise OptionError(
            f"format is {question.format_name!r}, but {target.name} has {', '.join(question.format_names)}; "
            "name one of these"
        )
    return question


def find_machine(
    request: MachineRequest, *, cache_folder: Path, model_folder: Path | None = None
) -> Generator[str, None, Machine]:
    """Return the machine that is asked about; yield what is about to be measured, the disk with `model_folder`'s files.

    Raises:
        ProfileError: there is no built-in machine of that name.
        BadInputError: this machine has no such device, or a device that does not say how much memory it has.
    """
    if request.machine is not None:
        machine = reference_machine(request.machine)
    else:
        from runtime.fit import probes

        machine = yield from probes.this_machine(request.device, cache_folder=cache_folder, model_folder=model_folder)
    return under_request(machine, request)


def under_request(machine: Machine, request: MachineRequest) -> Machine:
    """Return the machine as the user says it is; in front of a processor a link is an emulated one."""
    if request.link is not None:
        link = Link(request.link, Basis.GIVEN, f"--link {format_link(request.link)}")
        machine = replace(machine, link=link, pcie_generation=None, is_link_emulated=machine.is_cpu)
    if request.disk is not None:
        machine = replace(machine, disk=Link(request.disk, Basis.GIVEN, f"--disk {format_link(request.disk)}"))
    return replace(
        machine,
        device_budget_bytes=request.device_memory_bytes,
        host_budget_bytes=request.host_memory_bytes,
        is_host_assumed=machine.is_host_assumed and request.host_memory_bytes is None,
    )
