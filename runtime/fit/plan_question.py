"""Turns what `plan` is asked from names into numbers: the machine, target and draft, formats, context, and the tree.

Opens at most a config.json and safetensors headers; imports torch only where this machine is to be measured.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from runtime.config import DEFAULT_CONTEXT_TOKENS, TreeKind, parse_tree
from runtime.errors import OptionError
from runtime.fit.machine import Machine, reference_machine
from runtime.fit.models import FoundShape, find_model, find_shape, usual_draft
from runtime.fit.request import HELD_FORMATS, MachineRequest, PlanRequest
from runtime.fit.shapes import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """A `PlanRequest` whose names have been looked up."""

    request: PlanRequest
    """The choices as typed."""
    target: ModelShape
    """The model whose text is wanted."""
    draft: ModelShape | None
    """A separate draft; None for a substitute or none."""
    is_substitute: bool
    """Whether the target's own layers draft."""
    target_folder: Path | None = None
    """Where the target's files are; None if they are not on this machine."""
    draft_folder: Path | None = None
    """Where those of a separate draft are."""
    context_tokens: int
    """Most tokens of prompt and answer."""
    notes: tuple[str, ...] = field(default=())
    """What there is to say about the names, the sizes and what was measured."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing drafts."""
        return self.draft is None and not self.is_substitute

    @property
    def draft_name(self) -> str:
        """For the user."""
        return "none" if self.is_plain else "substitute" if self.draft is None else self.draft.name

    @property
    def format_names(self) -> tuple[str, ...]:
        """The target's formats, the published one first."""
        return tuple(one.name for one in self.target.formats)

    @property
    def format_name(self) -> str:
        """The one that is asked about."""
        return self.format_names[0] if self.request.format == "auto" else self.request.format

    @property
    def held_formats(self) -> tuple[str, ...]:
        """How the draft may be held: the user's choice, or all that make sense."""
        quantized = (self.draft or self.target).formats[0].name in QUANTIZED_FORMATS
        if quantized:
            return ("stored",)
        if self.is_substitute and self.request.draft_format == "stored":
            return ("int8",)  # as a session: held like the target it would be the target itself
        if self.request.draft_format != "auto":
            return (self.request.draft_format,)
        return QUANTIZED_FORMATS if self.is_substitute else HELD_FORMATS

    @property
    def tree_kind(self) -> TreeKind:
        """Which kinds of trees are considered."""
        return parse_tree(self.request.tree)[0]

    @property
    def tree_shape(self) -> tuple[int, int] | None:
        """(nodes, levels) of the tree to be priced; None where it is chosen."""
        return parse_tree(self.request.tree)[1]


def resolve_question(request: PlanRequest) -> PlanQuestion:
    """Find the models.

    Raises:
        OptionError: a name that nothing has, or a format that the model does not have.
        CheckpointError: a folder or a hub's config.json that cannot be used.
    """
    target = find_model(request.target, what="the target")
    notes = [] if target.note is None else [target.note]
    draft: FoundShape | None = None
    is_substitute = request.draft == "substitute"
    if request.draft == "auto":
        usual = usual_draft(find_shape(request.target) or target.shape)
        draft = None if usual is None else FoundShape(usual)
        is_substitute = usual is None
    elif request.draft not in ("none", "substitute"):
        draft = find_model(request.draft, what="the draft")
        notes += [] if draft.note is None else [draft.note]
    context_tokens, context_note = _context(request, target.shape)
    question = PlanQuestion(
        request=request,
        target=target.shape,
        draft=None if draft is None else draft.shape,
        is_substitute=is_substitute,
        target_folder=target.folder,
        draft_folder=None if draft is None else draft.folder,
        context_tokens=context_tokens,
        notes=(*notes, *context_note),
    )
    if question.format_name not in question.format_names:
        raise OptionError(
            f"format is {question.format_name!r}, but {target.shape.name} has {', '.join(question.format_names)}; "
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
    if request.link is not None:
        machine = machine.with_link(request.link)
    if request.disk is not None:
        machine = machine.with_disk(request.disk)
    return machine.with_budgets(device_bytes=request.device_memory_bytes, host_bytes=request.host_memory_bytes)


def _context(request: PlanRequest, target: ModelShape) -> tuple[int, tuple[str, ...]]:
    """(tokens, what to say about them)."""
    limit = target.max_context_tokens
    wanted = request.context_tokens or DEFAULT_CONTEXT_TOKENS
    if limit is None or wanted <= limit:
        return wanted, ()
    note = f"{target.name} has {limit} positions, so the context is that" if request.context_tokens else None
    return max(2, limit), (() if note is None else (note,))
