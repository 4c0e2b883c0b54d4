"""What `plan` is asked: a machine, a target, a draft, formats, context and perhaps a tree, from names to numbers.

Names are matched loosely, and a slip gets the near names. Opens at most a config.json and safetensors headers; knows
no torch.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.units import LinkSpeed, parse_link
from profiles.errors import BadInputError
from runtime.config import DEFAULT_CONTEXT_TOKENS, TreeKind, parse_memory, parse_tree
from runtime.errors import OptionError
from runtime.fit.machine import Machine, reference_machine
from runtime.fit.models import FoundShape, find_model, find_shape, usual_draft
from runtime.fit.shapes import ModelShape
from runtime.planner.tree_choice import CostModel, SearchMethod

HELD_FORMATS = ("stored", "int8", "nf4")
"""How a draft can be held."""
LARGEST_CONTEXT_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """The choices as typed; raises OptionError for a value outside its range."""

    target: str = "llama-3-70b"
    """A folder, a known model or a hub name."""
    draft: str = "auto"
    """`auto`, `substitute`, `none`, or as `target`."""
    format: str = "auto"
    """Of the target's layers: `auto` is as published."""
    draft_format: str = "auto"
    """How the draft is held: `auto` is what plans best."""
    context_tokens: int | None = None
    """Most tokens of prompt and answer; None is the default, or what the model can."""
    temperature: float = 0.0
    """Of the text."""
    tree: str = "auto"
    """`auto`, a kind, or nodes x levels of a tree to be priced; see `EngineConfig.tree`."""
    search: str = "best-first"
    """How trees are searched."""
    cost: str = "pipeline"
    """What a round is taken to cost."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, ("auto", "bfloat16", "float16", "float32", *QUANTIZED_FORMATS)),
            ("draft_format", self.draft_format, ("auto", *HELD_FORMATS)),
            ("search", self.search, tuple(SearchMethod)),
            ("cost", self.cost, tuple(CostModel)),
        ):
            if value not in allowed:
                raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if self.context_tokens is not None and not 2 <= self.context_tokens <= LARGEST_CONTEXT_TOKENS:
            raise OptionError(f"context_tokens is {self.context_tokens}; it must be 2 to {LARGEST_CONTEXT_TOKENS}")
        if not 0 <= self.temperature <= 100:  # NaN is neither
            raise OptionError(f"temperature is {self.temperature}; it must be 0 (greedy) or more, at most 100")
        parse_tree(self.tree)
        if self.tree != "auto" and self.draft == "none":
            raise OptionError("a tree needs a draft; leave out --tree or --draft none")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """Which machine `plan` is asked about, as typed; raises OptionError for a value outside its range."""

    name: str | None = None
    """A built-in machine; None is this one."""
    device: str = "auto"
    """Of this machine."""
    device_memory: str | None = None
    """Budget as in `2.2GB`, or `min`; None is what is free."""
    host_memory: str | None = None
    """Budget for layers that wait; None is what is free."""
    link: str | None = None
    """Rate and latency as in `25GB/s,10us`; None is the machine's own."""
    disk: str | None = None
    """Rate as in `3.5GB/s`; None is the machine's own."""

    def __post_init__(self) -> None:
        if self.name is not None and self.device != "auto":
            raise OptionError("--device is of this machine; leave out --machine or --device")
        self.limit(Machine(host_total_bytes=0, host_free_bytes=0))

    def limit(self, machine: Machine) -> Machine:
        """Return the machine with the user's links and under the user's budgets."""
        if self.link is not None:
            machine = machine.with_link(_parse_link(self.link, "--link"))
        if self.disk is not None:
            machine = machine.with_disk(_parse_link(self.disk, "--disk"))
        device, host = self.device_memory, self.host_memory
        return machine.with_budgets(
            device_bytes=None if device is None else parse_memory(device, "--device-memory"),
            host_bytes=None if host is None else parse_memory(host, "--host-memory"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """The same as numbers."""

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
    def search(self) -> SearchMethod:
        """How trees are searched."""
        return SearchMethod(self.request.search)

    @property
    def cost(self) -> CostModel:
        """What a round is taken to cost."""
        return CostModel(self.request.cost)

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
    if request.name is not None:
        return request.limit(reference_machine(request.name))
    from runtime.fit import probes

    machine = yield from probes.this_machine(request.device, cache_folder=cache_folder, model_folder=model_folder)
    return request.limit(machine)


def _context(request: PlanRequest, target: ModelShape) -> tuple[int, tuple[str, ...]]:
    """(tokens, what to say about them)."""
    limit = target.max_context_tokens
    wanted = request.context_tokens or DEFAULT_CONTEXT_TOKENS
    if limit is None or wanted <= limit:
        return wanted, ()
    note = f"{target.name} has {limit} positions, so the context is that" if request.context_tokens else None
    return max(2, limit), (() if note is None else (note,))


def _parse_link(text: str, option: str) -> LinkSpeed:
    try:
        return parse_link(text)
    except BadInputError as error:
        raise OptionError(f"{option}: {error}") from error
