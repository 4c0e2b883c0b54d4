"""What a session will hold and where, decided before the first weight is read.

Opens and checks the folders, chooses device, compute dtype and context, lists every fixed cost, and holds the budgets
against them: the rest of the device's memory is filled with layers. Reads headers only.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from offload.device import device_name, select_device
from offload.errors import BudgetError, CheckpointError
from offload.formats.draft_weight import HeldFormat
from offload.free_memory import resident_memory_bytes
from offload.residency_plan import ResidencyPlan, Tier, plan_residency
from offload.stage_ring import StageRing, plan_stages
from offload.units import format_bytes, parse_link
from runtime.config import (
    DEFAULT_CONTEXT_TOKENS,
    PREFILL_CHUNK_TOKENS,
    DraftFormat,
    EngineConfig,
)
from runtime.engine.draft_choice import FoundDraft, take_draft
from runtime.engine.model_folders import model_name
from runtime.engine.need_of_files import compute_dtype, draft_device_of, draft_need, need_of_files
from runtime.engine.packing import NOTHING_PACKS, packing_note, with_packing
from runtime.engine.session import format_prompt
from runtime.errors import OptionError
from runtime.fit.advice import Advice, advise
from runtime.fit.machine import Basis, Link, Machine, usable_bytes
from runtime.fit.models import shape_of_folder
from runtime.fit.place import MemoryNeed, Placement
from runtime.fit.plan import held_format
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.probes import find_memory
from runtime.fit.request import PlanRequest
from runtime.model.architecture import max_positions
from runtime.model.generation_config import GenerationConfig, read_generation_config
from runtime.model.layer_binding import HOST_DEVICE
from runtime.model.model_loader import ModelFiles
from runtime.prompts.prompt_file import PromptRequest
from runtime.tokenizer.box import Tokenizer
from runtime.tokenizer.match import check_draft_tokenizer

logger = logging.getLogger(__name__)

MOST_TEXTS = 32
"""That `auto` answers together."""
TEXTS_SHARE = 0.25
"""Of the layers' bytes, and of the device's memory, what their keys and values may take."""
MOST_RESIDENT_TEXTS = 8
"""That `auto` answers together because they fit beside a model of which every layer stays in memory."""
_IN_MEMORY = (
    "everything stays in memory, where a session loads no draft unless a calibration promises much of it: here the "
    "model's own substitute drafts"
)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Every decision that memory depends on."""

    config: EngineConfig
    device: torch.device
    draft_device: torch.device
    """Where the draft is: the same, or another one."""
    dtype: torch.dtype
    """Type of activations, caches and widened weights."""
    target: ModelFiles
    draft: ModelFiles | None
    """A separate draft; None for a substitute or none."""
    tokenizer: Tokenizer
    """The target's."""
    generation: GenerationConfig
    """The target's own generation settings."""
    need: MemoryNeed
    placement: Placement
    baseline_bytes: int
    """What the process held before any of this: Python, torch and the libraries."""
    advice: Advice
    draft_note: str | None = None
    """Which draft `auto` took and why, or which it would have liked; None where there is nothing to say."""

    @classmethod
    def build(
        cls,
        config: EngineConfig,
        *,
        requests: Sequence[PromptRequest] = (),
        needs_draft: bool = False,
        most_texts: int = MOST_TEXTS,
    ) -> "LoadPlan":
        """Check the folders that `config` names and hold the budgets against what is needed. Raises BadInputError.

        The plan's own config has no draft `auto` any more: that is none where everything stays in memory, in which a
        draft gains little or nothing, and what `choose_drafts` finds where layers stream or a tree is asked for. With
        `needs_draft` there is always one: also where everything stays, and an OptionError where none can be had. Where
        the number of texts is left open there are at most `most_texts`.
        """
        assert config.target is not None, "the models have been located"
        asked = config
        device = select_device(config.device)
        draft_device = draft_device_of(config, device)
        if config.share_layers and draft_device != device:
            raise OptionError(
                f"a draft on {draft_device} cannot share layers that are on {device}; leave out --share-layers or "
                "--draft-device"
            )
        target = ModelFiles.open(Path(config.target))
        generation = read_generation_config(
            target.checkpoint.folder,
            config.generation,
            vocab_size=target.config.vocab_size,
            model_config=target.checkpoint.config,
        )
        tokenizer = Tokenizer(target.checkpoint.folder)
        draft = None
        if config.draft_model is not None:
            draft = ModelFiles.open(Path(config.draft_model))
            check_draft_tokenizer(tokenizer, target=target.checkpoint.folder, draft=draft.checkpoint.folder)
        usual_context = _wanted_tokens(tokenizer, requests) or DEFAULT_CONTEXT_TOKENS
        is_open = config.draft == "auto"
        if is_open:
            config = replace(config, draft="none")
        config = _with_texts(
            config,
            target,
            len(requests),
            usual_context_tokens=usual_context,
            most_texts=most_texts,
            device=device,
        )
        try:
            config = packed_config(config, target, draft, usual_context_tokens=usual_context, device=device)
            config = with_held(config, target, draft, usual_context_tokens=usual_context, device=device)
            need, advice, placement = _placed(config, target, draft, usual_context_tokens=usual_context, device=device)
        except BudgetError as error:
            fewer = (config.num_texts or 1) // 2
            if asked.num_texts is None and fewer:  # their keys and values may fit
                return cls.build(asked, requests=requests, needs_draft=needs_draft, most_texts=fewer)
            if config.draft != "substitute":
                raise
            raise BudgetError(f"{error}; --draft auto takes a smaller model of its family, if one is here") from error
        plan = cls(
            config=config,
            device=device,
            draft_device=draft_device,
            dtype=compute_dtype(config, target, device),
            target=target,
            draft=draft,
            tokenizer=tokenizer,
            generation=generation,
            need=need,
            placement=placement,
            baseline_bytes=resident_memory_bytes(),
            advice=advice,
        )
        if is_open and needs_draft:
            return plan._with_needed_draft()
        return (
            plan._with_found_draft() if is_open and (plan.residency.streamed_layers or config.tree != "auto") else plan
        )

    def _with_needed_draft(self) -> "LoadPlan":
        """Return the plan with the draft of a session that streams, or the only one that one in memory ever takes.

        Raises OptionError where none can be had.
        """
        if not self.residency.streamed_layers and self.config.tree == "auto":
            with suppress(BudgetError):
                drafted = self.with_substitute()
                if not drafted.residency.streamed_layers:
                    return replace(drafted, draft_note=_IN_MEMORY)
        found = self._with_found_draft()
        if found.config.is_plain:
            reason = found.draft_note or "the model's own substitute does not fit"
            raise OptionError(
                f"a draft is needed here, but {reason}; give --draft the folder or hub name of a smaller model "
                "with the same tokenizer"
            )
        return found

    def _with_found_draft(self) -> "LoadPlan":
        """Return the plan with the best draft that can be had, or the plain one with a sentence on what was missing."""

        def use(found: FoundDraft) -> LoadPlan:
            return self._with_draft(None if found.is_substitute else ModelFiles.open(Path(found.draft)), found.draft)

        try:
            question = question_of(self.config, self.target, None, context_tokens=self.need.context_tokens)
        except CheckpointError as error:  # a model that runs, but that no plan can be made for
            logger.debug("no draft is looked for: %s", error)
            with suppress(BudgetError):
                return self.with_substitute()
            return self
        machine = _machine_with_link(self.config, self.device)
        drafted, sentence = take_draft(question, machine, use, lambda: self.tokenizer)
        return replace(drafted or self, draft_note=sentence)

    def _with_draft(self, draft: ModelFiles | None, name: str) -> "LoadPlan":
        """Return the plan of the same session with this draft, or the substitute for None. Raises BudgetError."""
        config, context_tokens = replace(self.config, draft=name), self.need.context_tokens
        config = with_held(config, self.target, draft, usual_context_tokens=context_tokens, device=self.device)
        need, advice, placement = _placed(
            config, self.target, draft, usual_context_tokens=context_tokens, device=self.device
        )
        return replace(self, config=config, draft=draft, need=need, advice=advice, placement=placement)

    def with_substitute(self) -> "LoadPlan":
        """Return the plan of the same session with the target as its own draft. Raises BudgetError."""
        return self._with_draft(None, "substitute")

    @property
    def target_name(self) -> str:
        return model_name(self.target.checkpoint.folder)

    @property
    def draft_name(self) -> str:
        """What people call the draft, or `substitute` or `none`."""
        return self.config.draft if self.draft is None else model_name(self.draft.checkpoint.folder)

    @property
    def draft_files(self) -> ModelFiles:
        """What the draft is made of; a substitute is made of the target."""
        return self.draft or self.target

    @property
    def draft_held(self) -> HeldFormat:
        wanted, is_substitute = self.config.draft_format, self.draft is None
        return self.draft_files.held_format(wanted, self.draft_dtype, self.draft_device, is_substitute=is_substitute)

    @property
    def draft_dtype(self) -> torch.dtype:
        """Type that the draft computes in, on its device."""
        return compute_dtype(self.config, self.target, self.draft_device)

    @property
    def dtype_note(self) -> str | None:
        """What to know where the device lacks the type that the model was made in."""
        is_replaced = self.config.compute_dtype == "auto" and self.target.stored_dtype == torch.bfloat16
        if not is_replaced or self.dtype != torch.float16:
            return None
        return (
            f"{device_name(self.device)} does not multiply bfloat16, so that the model computes in float16, which ends "
            "at 65504: if it writes nonsense, give --compute-dtype float32"
        )

    @property
    def packing_note(self) -> str | None:
        """What to know of layers that lie packed; None where none do and none should."""
        if self.config.pack == "on" and self.need.stored is None:
            return NOTHING_PACKS
        return packing_note(self.need, self.placement)

    @property
    def residency(self) -> ResidencyPlan:
        return self.placement.residency

    @property
    def row_bytes(self) -> dict[int, int]:
        """Bytes of each token's keys and values, by layer, where they travel with it."""
        sizes = self.need.row_layer_bytes or self.need.cache_layer_bytes
        return {index: sizes[index] for index in self.residency.travelling}

    @property
    def disk_ring(self) -> StageRing:
        """The host stages that layers from disk go through; none where they go straight to the ring."""
        return _disk_ring(self.config, self.residency, device=self.device)

    def with_fewer_residents(self, num_layers: int) -> "LoadPlan":
        """Return the plan with so many of the resident layers in host memory, as far as that has room, or on disk."""
        placement, residency = self.placement, self.residency
        need = replace(self.need, has_wide_slots=Tier.DISK in residency.tiers)
        saved = need.saved_bytes or (0,) * len(residency.layer_bytes)
        costs = [size - less for size, less in zip(self.need.layers.layer_bytes, saved, strict=True)]
        kept_bytes = sum(costs[index] for index in residency.resident_layers) - num_layers * max(costs)
        kept_bytes += residency.kept_cache_bytes
        fewer = plan_residency(
            need.layers.layer_bytes,
            num_slots=residency.num_slots,
            device_budget_bytes=residency.ring_bytes + max(0, kept_bytes),
            host_budget_bytes=placement.host_budget_bytes,
            saved_bytes=need.saved_bytes,
            cache_bytes=residency.cache_bytes,
            row_bytes=residency.row_bytes,
            disk_bytes=need.disk_layer_bytes,
        )
        if need.stored is not None and not need.has_wide_slots and fewer.disk_bytes:
            return self  # its slots would not hold what comes from disk
        fixed = need.fixed_entries(fewer.resident_layers, travelling=fewer.travelling)
        stages = _disk_ring(self.config, fewer, device=self.device)
        placement = replace(
            placement,
            residency=fewer,
            payload_bytes=need.payload_bytes(fewer.tiers),
            fixed=fixed,
            stage_bytes=stages.num_bytes,
        )
        return replace(self, placement=placement)

    @property
    def is_host(self) -> bool:
        return self.device.type == "cpu"


def _wanted_tokens(tokenizer: Tokenizer, requests: Sequence[PromptRequest]) -> int:
    """Return what the longest of the requests takes with its answer; one that is refused costs its own answer later.

    Raises OptionError if none can be answered for want of a chat template.
    """
    if not tokenizer.has_chat_template and requests and all(request.prompt is None for request in requests):
        format_prompt(tokenizer, requests[0])
    wanted = 0
    for request in requests:
        with suppress(OptionError):
            wanted = max(wanted, len(format_prompt(tokenizer, request)) + request.params.max_new_tokens + 1)
    return wanted


def _with_texts(
    config: EngineConfig,
    target: ModelFiles,
    num_requests: int,
    *,
    usual_context_tokens: int,
    most_texts: int,
    device: torch.device,
) -> EngineConfig:
    """Return the config with as many texts at a time as there are requests, and no more than are wanted.

    `auto` takes as many as have keys and values in a small share of the layers' bytes and of the memory that is free,
    since every text more adds its tokens to each pass, and may take the room of a layer. Where all layers stay with no
    draft beside them, some more may take a share of what is left. Raises OptionError where those of several are to
    travel.
    """
    wanted = most_texts if config.num_texts is None else config.num_texts
    most = max(1, min(wanted, num_requests or wanted))
    if most > 1 and config.kv_cache == "host":
        if config.num_texts is not None:
            raise OptionError(
                f"--kv-cache host with --batch {config.num_texts}: keys and values that wait in host memory are those "
                "of one prompt; leave one of the two out"
            )
        most = 1
    if config.num_texts is None:
        context_tokens = config.context_tokens or usual_context_tokens
        dtype = compute_dtype(config, target, device)
        text_bytes = context_tokens * target.cache_bytes_per_token(dtype) + 2 * target.workspace(dtype).state_bytes
        layer_bytes = sum(layout.slab_bytes for layout in target.layouts)
        machine = machine_of(config, device)
        room_bytes = machine.device_budget_bytes
        if room_bytes is None:
            room_bytes = usable_bytes(machine.free_bytes)
        share = TEXTS_SHARE * (layer_bytes if machine.holds_least else min(layer_bytes, room_bytes))
        fitting = int(share // max(1, text_bytes))
        if config.draft == "none" and not machine.holds_least:
            left = TEXTS_SHARE * (room_bytes - layer_bytes)
            fitting = max(fitting, min(MOST_RESIDENT_TEXTS, int(left // max(1, text_bytes))))
        most = max(1, min(most, fitting))
    return replace(config, num_texts=most)


def packed_config(
    config: EngineConfig,
    target: ModelFiles,
    draft: ModelFiles | None,
    *,
    usual_context_tokens: int,
    device: torch.device,
) -> EngineConfig:
    """Return the config with what `auto` decides on packing the target's layers; see `packing_settled`."""
    question = partial(question_beside, config, target, draft, usual_context_tokens=usual_context_tokens)
    return with_packing(config, target, question, partial(_machine_with_link, config, device))


def with_held(
    config: EngineConfig,
    target: ModelFiles,
    draft: ModelFiles | None,
    *,
    usual_context_tokens: int,
    device: torch.device,
) -> EngineConfig:
    """Return the config with the format that `auto` holds its draft in on this accelerator, as `plan` says it.

    On a processor `auto` is measured (see `fastest_format`), and what is quantized already stays as it is.
    """
    files = draft or target
    if config.draft_format != "auto" or config.is_plain or device.type == "cpu" or files.keeps_format:
        return config
    if draft_device_of(config, device) != device:  # no layer of the target has to make room for it
        return config
    question = question_beside(config, target, draft, usual_context_tokens=usual_context_tokens)
    held = held_format(question, machine_of(config, device))
    return replace(config, draft_format=cast("DraftFormat", held))


def question_beside(
    config: EngineConfig, target: ModelFiles, draft: ModelFiles | None, *, usual_context_tokens: int
) -> PlanQuestion:
    """Return the question of a session with this draft, with its substitute where there is none, or with neither."""
    context_tokens = config.context_tokens or usual_context_tokens
    context_tokens = min(context_tokens, max_positions(target.config) or context_tokens)
    drafting = None if config.is_plain else draft or target
    asked = question_of(config, target, drafting, context_tokens=context_tokens)
    return replace(asked, is_substitute=drafting is target)


def question_of(
    config: EngineConfig, target: ModelFiles, draft: ModelFiles | None, *, context_tokens: int
) -> PlanQuestion:
    """Return what `plan` would be asked about a session. Raises CheckpointError for a model that has no plan."""
    return PlanQuestion(
        request=PlanRequest(
            draft_format=config.draft_format,
            kv_cache=config.kv_cache,
            kv_format=config.kv_format,
            pack=config.pack,
            tree=config.tree,
            num_prompts=config.num_texts or 1,
        ),
        target=shape_of_folder(target.checkpoint.folder),
        draft=None if draft is None else shape_of_folder(draft.checkpoint.folder),
        is_substitute=False,
        context_tokens=context_tokens,
    )


def _machine_with_link(config: EngineConfig, device: torch.device) -> Machine:
    """Return this machine's memory, and the links that the config emulates. Raises BudgetError."""
    machine = machine_of(config, device)
    if config.link is not None:
        machine = replace(machine, link=Link(parse_link(config.link), Basis.GIVEN, "emulated"))
    if config.disk_link is not None:
        machine = replace(machine, disk=Link(parse_link(config.disk_link), Basis.GIVEN, "emulated"))
    draft_device = draft_device_of(config, device)
    if machine.device_free_bytes is not None and draft_device not in (device, HOST_DEVICE):
        more = find_memory(
            draft_device
        ).free_bytes  # the draft's own; whether it fits there is checked when it is taken
        machine = replace(machine, device_free_bytes=machine.device_free_bytes + more)
    return machine


def machine_of(config: EngineConfig, device: torch.device) -> Machine:
    """Return this machine's memory as the config allows it. Raises BudgetError."""
    return replace(
        find_memory(device, budget_bytes=config.device_memory_bytes),
        host_budget_bytes=config.host_memory_bytes,
        is_link_emulated=device.type == "cpu" and config.link is not None,
    )


def check_plan(config: EngineConfig, *, held_bytes: int = 0) -> None:
    """Raise BadInputError where a load would, as far as the models' files, their tokenizers and the budgets tell.

    `held_bytes` of the device are in use now and will be free by then; a budget that was chosen holds all the same.
    """
    try:
        LoadPlan.build(config)
    except BudgetError:
        if config.device_memory_bytes is not None or not held_bytes:
            raise
        free_bytes = find_memory(select_device(config.device)).free_bytes
        LoadPlan.build(replace(config, device_memory_bytes=usable_bytes(free_bytes) + held_bytes))


def _placed(
    config: EngineConfig,
    target: ModelFiles,
    draft: ModelFiles | None,
    *,
    usual_context_tokens: int,
    device: torch.device,
) -> tuple[MemoryNeed, Advice, Placement]:
    """Return what the session needs, what is to be said of it, and where it lies. Raises BudgetError."""
    need = need_of_files(config, target, draft, usual_context_tokens=usual_context_tokens, device=device)
    machine = machine_of(config, device)
    if not config.is_plain and (draft_device := draft_device_of(config, device)) != device:
        draft_bytes = _check_draft_device(config, target, draft, need, device=draft_device)
        if draft_device.type == "cpu":  # layers that wait in host memory leave it room
            machine = replace(machine, host_free_bytes=machine.host_free_bytes - draft_bytes)
    advice = advise(need, machine)
    placement = advice.placement
    # What stays whole needs no long passes, and less than what streams at least.
    if placement.missing_device_bytes and placement.device_budget_bytes < need.least_bytes:
        fixed = ", ".join(f"{label} {format_bytes(size)}" for label, size in need.fixed_entries().items())
        raise BudgetError(f"{advice.sentence}; beside {need.num_slots} slots for layers it holds {fixed}")
    stages = _disk_ring(config, placement.residency, device=device)
    return need, advice, replace(placement, stage_bytes=stages.num_bytes)


def _check_draft_device(
    config: EngineConfig, target: ModelFiles, draft: ModelFiles | None, need: MemoryNeed, *, device: torch.device
) -> int:
    """Return the bytes of a draft on a device of its own. Raises BudgetError if they do not fit there."""
    files, dtype = draft or target, compute_dtype(config, target, device)
    found = draft_need(config, target, draft, dtype=dtype, device=device)
    assert found is not None, "a session with a draft"
    num_tokens = min(PREFILL_CHUNK_TOKENS + need.max_nodes, need.cached_tokens)
    num_bytes = found.num_bytes + need.cached_tokens * found.cache_bytes_per_token
    num_bytes += files.workspace(dtype).states_bytes(num_texts=need.num_texts, num_nodes=need.max_nodes, is_grown=True)
    num_bytes += 0 if draft is not None else files.other_bytes(device)
    num_bytes += files.workspace(dtype).pass_bytes(num_tokens, need.capacity_tokens, num_nodes=need.max_nodes)
    num_bytes += found.scratch_bytes
    usable = usable_bytes(find_memory(device).free_bytes)
    if num_bytes > usable:
        raise BudgetError(
            f"the {found.label} takes {format_bytes(num_bytes)} on {device}, where {format_bytes(usable)} are usable; "
            "give --draft-format nf4 or a smaller --draft, or leave out --draft-device"
        )
    return num_bytes


def _disk_ring(config: EngineConfig, residency: ResidencyPlan, *, device: torch.device) -> StageRing:
    """See `LoadPlan.disk_ring`: an accelerator's layers need it, and an emulated one's beside layers in host memory."""
    tiers = zip(residency.layer_bytes, residency.tiers, strict=True)
    from_disk = [size for size, tier in tiers if tier is Tier.DISK]
    is_behind_link = config.disk_link is not None or (config.link is not None and Tier.HOST in residency.tiers)
    is_staged = device.type != "cpu" or is_behind_link
    return plan_stages(max(from_disk)) if from_disk and is_staged else StageRing()
