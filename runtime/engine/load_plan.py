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
from offload.residency_plan import NUM_STAGES, ResidencyPlan, Tier, plan_residency
from runtime.config import ACCELERATOR_MAX_NODES, DEFAULT_CONTEXT_TOKENS, DEFAULT_MAX_NODES, EngineConfig
from runtime.engine.model_folders import model_name
from runtime.engine.session import format_prompt
from runtime.fit.advice import Advice, advise, with_nearest_change
from runtime.fit.file_need import need_of_files
from runtime.fit.machine import Machine
from runtime.fit.need import MemoryNeed
from runtime.fit.place import Placement
from runtime.fit.probes import find_memory
from runtime.model.architecture import max_positions
from runtime.model.model_loader import ModelFiles
from runtime.model.tokenizer_match import check_draft_tokenizer, load_tokenizer
from runtime.prompts.prompt_file import PromptRequest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    fit: Advice
    """Whether it fits well, and what would make it fit better."""

    @classmethod
    def build(cls, config: EngineConfig, *, requests: Sequence[PromptRequest] = ()) -> "LoadPlan":
        """Check the folders that `config` names and hold the budgets against what is needed. Raises BadInputError."""
        return _Planning(config, requests).plan()

    @property
    def target_name(self) -> str:
        """What people call the target, see `model_name`."""
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
        """How the draft's layers are held."""
        is_substitute = self.draft is None
        return self.draft_files.held_format(
            self.config.draft_format, self.dtype, self.device, is_substitute=is_substitute
        )

    @property
    def capacity(self) -> int:
        """Slots of the caches: the context and one tree."""
        return self.context_tokens + self.max_nodes + self.config.num_graft_nodes

    @property
    def residency(self) -> ResidencyPlan:
        """A tier for every layer of the target."""
        return self.placement.residency

    @property
    def is_host(self) -> bool:
        """Whether the device is the processor itself."""
        return self.device.type == "cpu"


def default_max_nodes(device: torch.device) -> int:
    """Return the size of the largest tree that `auto` considers on this device."""
    return DEFAULT_MAX_NODES if device.type == "cpu" else ACCELERATOR_MAX_NODES


class _Planning:
    """The steps of `LoadPlan.build` and what they share."""

    def __init__(self, config: EngineConfig, requests: Sequence[PromptRequest]) -> None:
        assert config.target is not None, "the models have been located"
        self._config = config
        self._device = select_device(config.device)
        target = Path(config.target)
        self._target = ModelFiles.open(target)
        self._tokenizer = load_tokenizer(target)
        self._draft: ModelFiles | None = None
        if config.draft not in ("none", "substitute"):
            draft = Path(config.draft)
            self._draft = ModelFiles.open(draft)
            check_draft_tokenizer(self._tokenizer, target=target, draft=draft)
        self._context_tokens = self._choose_context(requests)
        shape = config.tree_shape
        self._max_nodes = 1 if config.is_plain else max(shape[0] if shape else default_max_nodes(self._device), 1)
        self._dtype = _DTYPES.get(config.compute_dtype) or self._default_dtype()

    def plan(self) -> LoadPlan:
        """Hold the budgets against what is needed. Raises BudgetError."""
        need = need_of_files(
            self._config,
            self._target,
            self._draft,
            compute_dtype=self._dtype,
            context_tokens=self._context_tokens,
            max_nodes=self._max_nodes,
            device=self._device,
        )
        machine = self._machine()
        device_budget, host_budget = machine.budgets(need)
        try:
            residency = self._choose_tiers(need, device_budget, host_budget)
        except BudgetError as error:
            raise BudgetError(with_nearest_change(str(error), need, machine)) from error
        fit = advise(need, machine)
        return LoadPlan(
            config=self._config,
            device=self._device,
            dtype=self._dtype,
            target=self._target,
            draft=self._draft,
            tokenizer=self._tokenizer,
            context_tokens=self._context_tokens,
            max_nodes=self._max_nodes,
            placement=replace(fit.placement, residency=residency, stage_bytes=self._stage_bytes(residency)),
            baseline_bytes=resident_memory_bytes(),
            fit=fit,
        )

    def _machine(self) -> Machine:
        """Return what there is, and what the user allows of it. Raises BudgetError if an accelerator hides its own."""
        config = self._config
        return replace(
            find_memory(self._device, budget_bytes=config.device_memory_bytes),
            host_budget_bytes=config.host_memory_bytes,
            is_link_emulated=self._device.type == "cpu" and config.link is not None,
        )

    def _choose_tiers(self, need: MemoryNeed, device_budget: int, host_budget: int) -> ResidencyPlan:
        if need.fixed_bytes > device_budget:
            needed = ", ".join(f"{entry.label} {entry.num_bytes / 1e6:.0f} MB" for entry in need.fixed_entries())
            raise BudgetError(
                f"the device budget of {device_budget / 1e6:.0f} MB is less than the {need.fixed_bytes / 1e6:.0f} MB "
                f"that stay resident ({needed}); give a larger --device-memory, a smaller draft or a shorter --context"
            )
        return plan_residency(
            need.layers.layer_bytes,
            num_slots=self._config.ring_slots,
            device_budget_bytes=device_budget - need.fixed_bytes,
            host_budget_bytes=host_budget,
            saved_bytes=need.saved_bytes,
        )

    def _choose_context(self, requests: Sequence[PromptRequest]) -> int:
        """Return the user's choice, enough for the longest request, or a default; at most the model's positions."""
        limit = max_positions(self._target.config) or (1 << 30)
        if self._config.context_tokens is not None:
            return min(self._config.context_tokens, limit)
        needed = [len(format_prompt(self._tokenizer, request)) + request.params.max_new_tokens for request in requests]
        return min(max(needed) + 1 if needed else DEFAULT_CONTEXT_TOKENS, limit)

    def _default_dtype(self) -> torch.dtype:
        """Return float32 on a CPU, so that no text depends on its tree; on an accelerator what the files hold."""
        return torch.float32 if self._device.type == "cpu" else self._target.stored_dtype

    def _stage_bytes(self, residency: ResidencyPlan) -> int:
        """Return the bytes of the host stages that layers from disk go through; 0 where they go straight to the ring.

        An accelerator's layers need them, and an emulated one's beside layers in host memory.
        """
        config, tiers = self._config, zip(residency.layer_bytes, residency.tiers, strict=True)
        from_disk = [size for size, tier in tiers if tier is Tier.DISK]
        is_behind_link = config.disk_link is not None or (config.link is not None and Tier.HOST in residency.tiers)
        is_staged = self._device.type != "cpu" or is_behind_link
        return NUM_STAGES * max(from_disk) if from_disk and is_staged else 0
