"""What this machine is and can do, and whether a model would run on it; every probe may fail by itself.

The 70B model of the paper is known by its shape, the user's by its headers: no weight is read, nothing is downloaded.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch

from offload import llama_cpp
from offload.checkpoint.hub_download import cached_model
from offload.checkpoint.model_places import find_place
from offload.device import select_device
from offload.errors import BudgetError, CheckpointError
from offload.units import format_bytes
from profiles.errors import OverstoryError, quote
from runtime.config import DEFAULT_CONTEXT_TOKENS, DraftFormat, EngineConfig
from runtime.engine.draft_choice import FoundDraft, take_draft
from runtime.engine.load_plan import packed_config, question_of, with_held
from runtime.engine.model_folders import model_name
from runtime.engine.need_of_files import need_of_files
from runtime.engine.packing import packing_note
from runtime.fit.advice import Advice, advise
from runtime.fit.first_token import PROMPT_TOKENS, FirstToken, context_for, predict_first_token, seconds_by_speed
from runtime.fit.machine import DeviceSpeed, Machine
from runtime.fit.models import known_shapes, shape_of_folder
from runtime.fit.place import MemoryNeed, Placement, kv_cache_on, place
from runtime.fit.probes import MachineProbes
from runtime.fit.reference_costs import reference_costs
from runtime.fit.shapes import ModelShape
from runtime.model.model_loader import ModelFiles
from runtime.planner.initial_plan import NO_DRAFT
from runtime.planner.tree_choice import TreeChoice
from runtime.speculation.token_tree import TreeTopology
from runtime.tokenizer.box import Tokenizer

SCHEMA_VERSION = 2
_SLOW = {
    "pinning": "asking how much memory can be pinned",
    "link": "measuring copies",
    "disk": "measuring the disk",
    "computing": "measuring products",
}
"""What is said before a probe that takes time."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one probe found, or why it found nothing."""

    label: str
    value: Any
    """As the probe returned it; None if it failed."""
    problem: str | None = None
    """One line; None if it did not fail."""

    @property
    def texts(self) -> list[str]:
        if self.problem is not None:
            return [f"not found out: {self.problem}"]
        if isinstance(self.value, Machine):
            return _memory_texts(self.value)
        if isinstance(self.value, DeviceSpeed):
            return [self.value.source]
        if isinstance(self.value, Mapping):
            return [", ".join(f"{name} {text}" for name, text in self.value.items())]
        return list(map(str, self.value)) if isinstance(self.value, list) else [str(self.value)]


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """A model that might be run here, and how it would run."""

    name: str
    draft: str
    """What drafts for it; `none` while an open one has not been chosen."""
    need: MemoryNeed
    """What it takes, in the first of its formats."""
    streamed_need: MemoryNeed | None = None
    """What it takes where layers stream, if a draft is loaded only then."""
    shape: ModelShape | None = None
    """Its sizes, for what it computes; None where they are not known."""
    open_draft: "OpenDraft | None" = None
    """What chooses the draft once the machine is known; None where it is given."""
    draft_note: str | None = None
    """What a session says of the draft that it chose, or of one that it lacks; None where there is nothing to say."""
    fits: tuple[Advice, ...] = ()
    """In each of its formats, the largest first; none before the machine is known."""

    @property
    def can_run(self) -> bool:
        return any(fit.placement.can_run for fit in self.fits)

    @property
    def packing_note(self) -> str | None:
        """What a session says of layers that it keeps packed; None where there is nothing to say."""
        return packing_note(self.need, self.fits[0].placement) if self.fits else None


@dataclass(frozen=True, slots=True)
class OpenDraft:
    """The choice of a draft that `auto` leaves to a session."""

    config: EngineConfig
    files: ModelFiles
    device: torch.device

    def settle(self, outlook: ModelOutlook, machine: Machine) -> ModelOutlook:
        """Return the outlook with the draft of a session in its first format that runs here."""
        placements = [place(outlook.need.in_format(layers.name), machine) for layers in outlook.need.formats]
        runs = [placement for placement in placements if placement.can_run]
        if not runs:
            return outlook
        if not runs[0].residency.streamed_layers:
            return replace(outlook, draft_note=NO_DRAFT)
        name, context_tokens = runs[0].format_name, outlook.need.context_tokens
        question = question_of(self.config, self.files, None, context_tokens=context_tokens)
        if name != outlook.need.layers.name:
            question = replace(question, request=replace(question.request, format=name))

        def use(found: FoundDraft) -> tuple[str, MemoryNeed]:
            need = self._need(found)
            if not place(need.in_format(name), machine).can_run:
                raise BudgetError(f"{found.draft} does not fit as a draft")
            return "substitute" if found.is_substitute else model_name(Path(found.draft)), need

        folder = self.files.checkpoint.folder
        taken, sentence = take_draft(question, machine, use, lambda: Tokenizer(folder))
        draft, need = ("none", None) if taken is None else taken
        return replace(outlook, draft=draft, streamed_need=need, draft_note=sentence)

    def _need(self, found: FoundDraft) -> MemoryNeed:
        """Return what a session with this draft takes. Raises CheckpointError if its files cannot be used."""
        draft = None if found.is_substitute else ModelFiles.open(Path(found.draft))
        config = replace(self.config, draft=found.draft)
        if self.device.type != "cpu":  # where `auto` is not what was measured to be fastest
            config = replace(config, draft_format=cast("DraftFormat", found.held))
        return need_of_files(config, self.files, draft, device=self.device)


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything that was found."""

    rows: Mapping[str, Row]
    """By the probe's name in JSON."""
    machine: Machine | None
    """With the links that were measured; None where its memory is not known."""
    models: tuple[ModelOutlook, ...]
    """One for each question; none where the memory is not known."""

    @property
    def can_run(self) -> bool:
        return bool(self.models) and all(model.can_run for model in self.models)

    def to_record(self) -> dict[str, Any]:
        models = [
            {
                "name": model.name,
                "draft": model.draft,
                "draft_note": model.draft_note,
                "packing_note": model.packing_note,
                "elsewhere_note": self.elsewhere_note(model),
                "context_tokens": model.need.context_tokens,
                "can_run": model.can_run,
                "formats": [self._fit_record(fit) | self._first_token_record(model, fit) for fit in model.fits],
            }
            for model in self.models
        ]
        rows = {
            name: {"value": msgspec.to_builtins(row.value), "problem": row.problem} for name, row in self.rows.items()
        }
        return {"schema_version": SCHEMA_VERSION, **rows, "models": models, "can_run": self.can_run}

    def _fit_record(self, fit: Advice) -> dict[str, Any]:
        return {
            "format": fit.placement.format_name,
            "can_run": fit.placement.can_run,
            "runs_well": fit.placement.runs_well,
            "bytes_per_pass": round(fit.placement.usual_pass_bytes),
            "seconds_per_pass": self.seconds_per_pass(fit.placement),
            "placement": fit.placement.to_record(),
            "sentence": fit.sentence,
            "changes": [
                {
                    "words": change.words,
                    "kind": change.kind,
                    "runs_well": change.placement.runs_well,
                    "placement": change.placement.to_record(),
                }
                for change in fit.changes
            ],
        }

    def _first_token_record(self, model: ModelOutlook, fit: Advice) -> dict[str, Any]:
        return {"first_token": [found.to_record() for found in self.first_tokens(model, fit)]}

    def first_tokens(self, model: ModelOutlook, fit: Advice) -> list[FirstToken]:
        """Return what prompts of a few lengths take until their answer begins, without a draft's part.

        Of those that the model has positions and the machine has memory for; none where a speed that counts is unknown.
        """
        machine, target, found = self.machine, model.shape, []
        if machine is None or machine.speed is None or target is None or not fit.placement.can_run:
            return []
        name = fit.placement.format_name
        for num_tokens in PROMPT_TOKENS:
            with suppress(BudgetError):
                context_tokens = context_for(num_tokens, model.need.context_tokens, target)
                need = replace(model.streamed_need or model.need, context_tokens=context_tokens).in_format(name)
                placed = place(need, machine)
                is_known = machine.disk is not None or not placed.disk_bytes
                is_known &= machine.is_cpu or machine.link is not None or not placed.streamed_bytes
                if placed.can_run and is_known:
                    found.append(_first_token(num_tokens, target, need, placed, machine))
        return found

    def elsewhere_note(self, model: ModelOutlook) -> str | None:
        """Return what would serve as well or better; None where this runtime is the right choice."""
        placed = model.fits[0].placement if model.fits else None
        if placed is None or self.machine is None or not placed.can_run:
            return None
        file = None if model.shape is None else model.shape.gguf_file
        return llama_cpp.for_model(file, streams=placed.streamed_bytes > 0, is_cpu=self.machine.is_cpu)

    def seconds_per_pass(self, placement: Placement) -> float | None:
        """Return the least that moving a pass's bytes takes; None if nothing moves, or a rate that counts is unknown.

        Keys and values that travel are among them, as many as there are where the context is half full.
        """
        machine = self.machine
        if machine is None or not placement.can_run:
            return None
        over_link = 0 if machine.is_cpu else round(placement.usual_pass_bytes)
        ways = [(placement.disk_bytes, machine.disk), (over_link, machine.link)]
        links = [(num_bytes, link) for num_bytes, link in ways if num_bytes]
        seconds = [link.speed.copy_seconds(num_bytes) for num_bytes, link in links if link is not None]
        return max(seconds) if seconds and len(seconds) == len(links) else None


def check_up(config: EngineConfig, *, cache_folder: Path) -> Generator[str, None, DoctorReport]:
    """Examine this machine for a 70B model and for the config's target, if it names one.

    Yields what it is about to do.

    Raises:
        BadInputError: the target or the draft cannot be used; nothing has been measured then.
    """
    device = select_device(config.device)
    questions, folder = [question_of_shapes(device)], None
    if config.target is not None:
        folder = find_folder(config.target)
        draft = None if config.draft_model is None else find_folder(config.draft_model)
        questions.append(question_of_files(device, config, folder, draft))
    return (yield from examine(MachineProbes(device, cache_folder, model_folder=folder), questions))


def examine(probes: MachineProbes, questions: Sequence[ModelOutlook]) -> Generator[str, None, DoctorReport]:
    """Ask every probe once and hold each model in each format against the memory found.

    Yields what it is about to do before what takes time.
    """
    asked: dict[str, tuple[str, Callable[[], Any]]] = {
        "system": ("system", probes.system),
        "devices": ("device", probes.devices),
        "driver": ("driver", probes.driver),
        "memory": ("memory", probes.memory),
        "pinning": ("pinned memory", probes.pinning),
        "link": ("link", probes.links),
        "disk": ("disk", probes.disk),
        "computing": ("computing", probes.speed),
        "caches": ("caches", probes.caches),
        "versions": ("versions", probes.versions),
        "setup": ("to set up", probes.setup),
    }
    rows = {}
    for name, (label, probe) in asked.items():
        if name in _SLOW:
            yield _SLOW[name]
        rows[name] = _ask(label, probe)
    machine, links = rows["memory"].value, rows["link"].value
    if machine is None:
        return DoctorReport(rows, None, ())
    link = links[0] if links and not machine.is_cpu else None
    machine = replace(machine, disk=rows["disk"].value, link=link, speed=rows["computing"].value)
    return DoctorReport(rows, machine, tuple(_look(question, machine) for question in questions))


def _first_token(
    num_tokens: int, target: ModelShape, need: MemoryNeed, placed: Placement, machine: Machine
) -> FirstToken:
    name, context_tokens = placed.format_name, need.context_tokens // 2
    costs = reference_costs(
        target, placed.residency, None, format_name=name, context_tokens=context_tokens, machine=machine
    )
    assert machine.speed is not None
    target_seconds, _ = seconds_by_speed(target, name, None, machine.speed)
    plain = TreeChoice(1, 1, 1.0, 0.0, 0.0, "link", TreeTopology.single)
    return predict_first_token(num_tokens, need, costs, plain, target_seconds=target_seconds, reading_seconds=None)


def question_of_shapes(device: torch.device) -> ModelOutlook:
    """Return the paper's model, which is not here, with a draft in int8 rows; the files are still to be downloaded."""
    target, draft = known_shapes()["Llama-3-70B"], known_shapes()["Llama-3-8B"]
    item_bytes = 4 if device.type == "cpu" else target.item_bytes  # as a session computes: see LoadPlan
    need = target.need(
        draft.as_draft(item_bytes, is_cpu=device.type == "cpu"),
        context_tokens=DEFAULT_CONTEXT_TOKENS,
        max_nodes=1,
        compute_item_bytes=item_bytes,
        is_cpu=device.type == "cpu",
    ).with_largest_tree(is_cpu=device.type == "cpu")
    need = replace(need, kv_cache=kv_cache_on("auto", is_apart=device.type != "cpu"))
    return ModelOutlook(target.name, f"{draft.name} in int8 rows", need, shape=target)


def question_of_files(device: torch.device, config: EngineConfig, target: Path, draft: Path | None) -> ModelOutlook:
    """Return the model in the folder `target`, with the draft in `draft` or the one that the config names.

    Raises:
        CheckpointError: a folder cannot be used.
    """
    draft_files = None if draft is None else ModelFiles.open(draft)
    files = ModelFiles.open(target)
    shape = shape_of_folder(target)
    chosen = replace(config, draft="none") if config.draft == "auto" else config
    with suppress(BudgetError):  # a device that does not say how much memory it has
        usual = DEFAULT_CONTEXT_TOKENS
        chosen = packed_config(chosen, files, draft_files, usual_context_tokens=usual, device=device)
    config = replace(config, pack=chosen.pack)
    if config.draft != "auto":
        with suppress(BudgetError):  # a device that does not say how much memory it has
            config = with_held(config, files, draft_files, usual_context_tokens=DEFAULT_CONTEXT_TOKENS, device=device)
        need = need_of_files(config, files, draft_files, device=device)
        return ModelOutlook(str(target), config.draft, need, shape=shape)
    plain = replace(config, draft="none")
    need = need_of_files(plain, files, None, device=device)
    return ModelOutlook(str(target), plain.draft, need, shape=shape, open_draft=OpenDraft(plain, files, device))


def find_folder(name_or_path: str, *, asking: str = "doctor") -> Path:
    """Return the model of that path, or what the hub's cache holds under that name.

    Raises CheckpointError, which says that who is `asking` downloads nothing.
    """
    found = find_place(name_or_path)
    if isinstance(found, Path):
        return found
    try:
        return cached_model(found)
    except Exception as error:  # the hub's client and the file system each raise their own
        raise CheckpointError(
            f"the model {quote(name_or_path)} is not on this machine, and {asking} downloads nothing; name its folder, "
            "or fetch it first"
        ) from error


def _ask(label: str, probe: Callable[[], Any]) -> Row:
    try:
        return Row(label, probe())
    except Exception as error:  # drivers and libraries raise anything, and what else there is must still be told
        text = str(error) if isinstance(error, OverstoryError) else f"{type(error).__name__}: {error}"
        return Row(label, None, " ".join(text.split()))


def _look(question: ModelOutlook, machine: Machine) -> ModelOutlook:
    if question.open_draft is not None:
        question = question.open_draft.settle(question, machine)
    fits = [advise(question.need.in_format(layers.name), machine) for layers in question.need.formats]
    if (drafted := question.streamed_need) is not None:  # no session takes a draft that does not fit
        drafted_fits = [advise(drafted.in_format(layers.name), machine) for layers in drafted.formats]
        fits = [
            found if fit.placement.residency.streamed_layers and found.placement.can_run else fit
            for found, fit in zip(drafted_fits, fits, strict=True)
        ]
    return replace(question, fits=tuple(fits))


def _memory_texts(machine: Machine) -> list[str]:
    lines = [f"{format_bytes(machine.host_free_bytes)} usable of {format_bytes(machine.host_total_bytes)}"]
    if machine.group_left_bytes is not None:
        lines.append(f"a memory control group leaves {format_bytes(machine.group_left_bytes)}")
    return lines
