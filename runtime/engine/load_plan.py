"""What a session will hold and where, decided before the first weight is read.

Opens and checks the folders, chooses device, compute dtype and context, lists every fixed cost, and holds the budgets
against them: the rest of the device's memory is filled with layers. Reads headers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from offload.device import select_device
from offload.errors import BudgetError
from offload.formats.draft_weight import HeldFormat
from offload.memory import resident_memory_bytes
from offload.residency_plan import NUM_STAGES, ResidencyPlan, Tier
from offload.units import format_bytes
from runtime.config import ACCELERATOR_MAX_NODES, DEFAULT_CONTEXT_TOKENS, DEFAULT_MAX_NODES, EngineConfig
from runtime.engine.model_folders import model_name
from runtime.engine.session import format_prompt
from runtime.fit.advice import Advice, advise
from runtime.fit.file_need import need_of_files
from runtime.fit.place import Placement
from runtime.fit.probes import find_memory
from runtime.model.architecture import max_positions
from runtime.model.model_loader import ModelFiles
from runtime.model.tokenizer_match import check_draft_tokenizer, load_tokenizer
from runtime.prompts.prompt_file import PromptRequest


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Every decision that memory depends on."""

    config: EngineConfig
    device: torch.device
    dtype: torch.dtype
    """Type of activations, caches and widened weights."""
    target: ModelFiles
    draft: ModelFiles | None
    """A separate draft; None for a substitute or none."""
    tokenizer: Any
    """The target's."""
    context_tokens: int
    """Most tokens of prompt and answer."""
    max_nodes: int
    """Largest tree of drafts; what `config` lets be added to it comes on top."""
    placement: Placement
    """Where every byte is to lie, by name."""
    baseline_bytes: int
    """What the process held before any of this: Python, torch and the libraries."""
    advice: Advice
    """Whether it fits well, and what would make it fit better."""

    @classmethod
    def build(cls, config: EngineConfig, *, requests: Sequence[PromptRequest] = ()) -> "LoadPlan":
        """Check the folders that `config` names and hold the budgets against what is needed. Raises BadInputError."""
        assert config.target is not None, "the models have been located"
        device = select_device(config.device)
        target = ModelFiles.open(Path(config.target))
        tokenizer = load_tokenizer(target.checkpoint.folder)
        draft = None
        if config.draft not in ("none", "substitute"):
            draft = ModelFiles.open(Path(config.draft))
            check_draft_tokenizer(tokenizer, target=target.checkpoint.folder, draft=draft.checkpoint.folder)
        # float32 on a processor, so that no text depends on its tree
        dtype = torch.float32 if device.type == "cpu" else target.stored_dtype
        if config.compute_dtype != "auto":
            dtype = getattr(torch, config.compute_dtype)
        context_tokens = _choose_context(config, target, tokenizer, requests)
        shape = (1, 1) if config.is_plain else config.tree_shape
        max_nodes = shape[0] if shape else default_max_nodes(device)
        need = need_of_files(
            config,
            target,
            draft,
            compute_dtype=dtype,
            context_tokens=context_tokens,
            max_nodes=max_nodes,
            device=device,
        )
        machine = replace(
            find_memory(device, budget_bytes=config.device_memory_bytes),
            host_budget_bytes=config.host_memory_bytes,
            is_link_emulated=device.type == "cpu" and config.link is not None,
        )
        advice = advise(need, machine)
        placement = advice.placement
        if placement.device_budget_bytes < need.least_bytes:
            fixed = ", ".join(f"{label} {format_bytes(size)}" for label, size in need.fixed_entries().items())
            raise BudgetError(f"{advice.sentence}; beside {need.num_slots} slots for layers it holds {fixed}")
        return cls(
            config=config,
            device=device,
            dtype=dtype,
            target=target,
            draft=draft,
            tokenizer=tokenizer,
            context_tokens=context_tokens,
            max_nodes=max_nodes,
            placement=replace(placement, stage_bytes=_stage_bytes(config, placement.residency, device=device)),
            baseline_bytes=resident_memory_bytes(),
            advice=advice,
        )

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
        return self.draft_files.held_format(wanted, self.dtype, self.device, is_substitute=is_substitute)

    @property
    def capacity(self) -> int:
        """Slots of the caches: the context and one tree."""
        return self.context_tokens + self.max_nodes + self.config.num_graft_nodes

    @property
    def residency(self) -> ResidencyPlan:
        return self.placement.residency

    @property
    def is_host(self) -> bool:
        return self.device.type == "cpu"


def default_max_nodes(device: torch.device) -> int:
    """Return the size of the largest tree that `auto` considers on this device."""
    return DEFAULT_MAX_NODES if device.type == "cpu" else ACCELERATOR_MAX_NODES


def _choose_context(config: EngineConfig, target: ModelFiles, tokenizer: Any, requests: Sequence[PromptRequest]) -> int:
    """Return the user's choice, enough for the longest request, or a default; at most the model's positions."""
    needed = [len(format_prompt(tokenizer, request)) + request.params.max_new_tokens + 1 for request in requests]
    wanted = config.context_tokens or max(needed, default=DEFAULT_CONTEXT_TOKENS)
    return min(wanted, max_positions(target.config) or wanted)


def _stage_bytes(config: EngineConfig, residency: ResidencyPlan, *, device: torch.device) -> int:
    """Return the bytes of the host stages that layers from disk go through; 0 where they go straight to the ring.

    An accelerator's layers need them, and an emulated one's beside layers in host memory.
    """
    tiers = zip(residency.layer_bytes, residency.tiers, strict=True)
    from_disk = [size for size, tier in tiers if tier is Tier.DISK]
    is_behind_link = config.disk_link is not None or (config.link is not None and Tier.HOST in residency.tiers)
    is_staged = device.type != "cpu" or is_behind_link
    return NUM_STAGES * max(from_disk) if from_disk and is_staged else 0
