"""Puts a session together: from names and budgets to models in memory and a ring that streams.

The order matters: every folder is checked, every byte planned and the budget held against it before the first weight
is read; then embeddings, draft and resident layers are read, and the ring starts. Knows no prompts beyond how long
they are.
"""

import gc
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from offload.copy_engine import CopyEngine
from offload.emulated_link import EmulatedLink
from offload.errors import BudgetError
from offload.host_copy_engine import HostCopyEngine
from offload.layer_streamer import LayerStreamer
from offload.memory_budget import free_memory_bytes, process_memory
from offload.residency_plan import ResidencyPlan, Tier, plan_residency
from offload.units import parse_link
from offload.weight_format import CHUNK_ELEMENTS, MatmulPolicy, measure_direct_max_rows
from offload.weight_store import place_layers
from runtime.accounting import Accounting, MemoryEntry
from runtime.drafter import Drafter
from runtime.engine import PREFILL_CHUNK_TOKENS, Engine
from runtime.engine_config import EngineConfig
from runtime.model.architecture import max_positions
from runtime.model.model_loader import ComputePlan, EmptyModel, ModelFiles, read_others
from runtime.model.tokenizer_match import check_tokenizers_match, load_tokenizer
from runtime.planner import TreePlanner
from runtime.prompt_file import PromptRequest
from runtime.session import Session, format_prompt
from runtime.speculation.acceptance import BUILTIN_ACCEPTANCE, SUBSTITUTE_ACCEPTANCE

DEFAULT_CONTEXT_TOKENS = 4096
DEFAULT_MAX_NODES = 256
"""Largest tree that `auto` considers: on a CPU a larger one computes longer than any disk reads."""
RESERVED_SHARE = 0.03
RESERVED_BYTES = 192 << 20
"""Free memory that the default budget leaves alone: this much and this share of it."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is ready, and what it holds."""

    session: Session
    """Answers requests."""
    accounting: Accounting
    """Every byte it planned."""
    streamer: LayerStreamer
    """The ring."""
    link: CopyEngine
    """The engine that feeds it."""
    reader: HostCopyEngine
    """What reads files; the same as `link` where none is emulated."""


@contextmanager
def open_session(
    config: EngineConfig, *, target: Path, draft: Path | None = None, requests: Sequence[PromptRequest] = ()
) -> Generator[OpenSession, None, None]:
    """Load the models in the folders `target` and `draft` (None: substitute or none) within the budgets.

    `requests` that will be asked size the caches.

    Raises:
        BadInputError: a folder, a budget or a pair of tokenizers cannot be used; nothing has been read then.
        LinkError: reading failed.
    """
    gc.collect()  # models are cyclic: what an earlier session held must be free before free memory is counted
    with ExitStack() as stack:
        yield _Assembly(config, target, draft, requests).open(stack)


def plan_memory(
    config: EngineConfig, *, target: Path, draft: Path | None = None, requests: Sequence[PromptRequest] = ()
) -> Accounting:
    """What `open_session` would hold with the same arguments; reads no weights. Raises BadInputError."""
    return _Assembly(config, target, draft, requests).plan()[1]


class _Assembly:
    """The steps of `open_session` and what they share."""

    def __init__(
        self, config: EngineConfig, target: Path, draft: Path | None, requests: Sequence[PromptRequest]
    ) -> None:
        self._config = config
        self._target = ModelFiles.open(target)
        self._tokenizer = load_tokenizer(target)
        self._draft: ModelFiles | None = None
        if draft is not None:
            self._draft = ModelFiles.open(draft)
            check_tokenizers_match(self._tokenizer, load_tokenizer(draft))
        self._context_tokens = self._choose_context(requests)
        shape = config.tree_shape
        self._max_nodes = 1 if config.is_plain else max(shape[0] if shape else DEFAULT_MAX_NODES, 1)
        self._capacity = self._context_tokens + self._max_nodes
        self._dtype = torch.bfloat16 if config.compute_dtype == "bfloat16" else torch.float32

    def open(self, stack: ExitStack) -> OpenSession:
        """Plan, read, and start the ring."""
        plan, accounting = self.plan()
        reader = stack.enter_context(
            HostCopyEngine(
                num_threads=self._config.num_reader_threads,
                direct={"auto": None, "direct": True, "buffered": False}[self._config.io],
            )
        )
        others = read_others(self._target, reader)
        drafter = self._open_drafter(reader, others)
        layers = place_layers(self._target.slabs, plan, reader)
        link = EmulatedLink(reader, parse_link(self._config.link)) if self._config.link else reader
        streamer = stack.enter_context(LayerStreamer(layers, link, num_slots=self._config.ring_slots))
        empty = EmptyModel.build(self._target, ComputePlan(self._dtype), others=others)
        target = empty.streamed(self._target.slabs, streamer, capacity=self._capacity)
        engine = Engine(target, drafter, self._planner(plan), context_tokens=self._context_tokens)
        session = Session(engine, self._tokenizer, end_token_ids=_end_token_ids(self._target, self._tokenizer))
        return OpenSession(session, accounting, streamer, link, reader)

    def _choose_context(self, requests: Sequence[PromptRequest]) -> int:
        """The user's choice, or enough for the longest request, or a default; at most the model's positions."""
        limit = max_positions(self._target.config) or (1 << 30)
        if self._config.context_tokens is not None:
            return min(self._config.context_tokens, limit)
        needed = [len(format_prompt(self._tokenizer, request)) + request.params.max_new_tokens for request in requests]
        return min(max(needed) + 1 if needed else DEFAULT_CONTEXT_TOKENS, limit)

    def plan(self) -> tuple[ResidencyPlan, Accounting]:
        """Hold the budgets against what is needed. Raises BudgetError."""
        fixed = self._fixed_memory()
        fixed_bytes = sum(entry.num_bytes for entry in fixed)
        slab_bytes = [layout.slab_bytes for layout in self._target.slabs.layouts]
        ring_bytes = self._config.ring_slots * max(slab_bytes)
        free = free_memory_bytes()
        budget = self._config.device_memory_bytes
        if budget == 0 or (budget is None and self._config.link):  # an emulated device has no free memory to measure
            budget = fixed_bytes + ring_bytes
        elif budget is None:
            budget = max(0, free - RESERVED_BYTES - int(RESERVED_SHARE * free))
        if fixed_bytes > budget:
            needed = ", ".join(f"{entry.label} {entry.num_bytes / 1e6:.0f} MB" for entry in fixed)
            raise BudgetError(
                f"the device budget of {budget / 1e6:.0f} MB is less than the {fixed_bytes / 1e6:.0f} MB that stay "
                f"resident ({needed}); give a larger --device-memory, a smaller draft or a shorter --context"
            )
        plan = plan_residency(
            slab_bytes,
            num_slots=self._config.ring_slots,
            device_budget_bytes=budget - fixed_bytes,
            host_budget_bytes=self._host_budget(free - budget),
        )
        return plan, self._account(plan, fixed, budget)

    def _host_budget(self, remaining_bytes: int) -> int:
        """Layers wait in host memory only where a link is emulated; without one, residents are the better use."""
        if self._config.host_memory_bytes is not None:
            return self._config.host_memory_bytes
        return max(0, remaining_bytes - RESERVED_BYTES) if self._config.link else 0

    def _fixed_memory(self) -> tuple[MemoryEntry, ...]:
        target, draft = self._target, self._draft
        pass_tokens = PREFILL_CHUNK_TOKENS + self._max_nodes
        cache_bytes = self._capacity * target.cache_bytes_per_token(self._dtype)
        entries = [MemoryEntry("target's embeddings, norm and head", target.other_layout.slab_bytes)]
        if draft is not None:
            is_int8 = self._config.draft_format == "int8"
            layer_bytes = draft.int8_bytes if is_int8 else sum(layout.slab_bytes for layout in draft.slabs.layouts)
            label = "draft model (int8 rows)" if is_int8 else "draft model"
            entries.append(MemoryEntry(label, layer_bytes + draft.other_layout.slab_bytes))
            cache_bytes += self._capacity * draft.cache_bytes_per_token(self._dtype)
        elif not self._config.is_plain:
            entries.append(MemoryEntry("substitute draft (int8 rows)", target.int8_bytes))
            cache_bytes += self._capacity * target.cache_bytes_per_token(self._dtype)
        entries.append(MemoryEntry(f"keys and values of {self._capacity} tokens", cache_bytes))
        entries.append(MemoryEntry("upcast scratch", 2 * CHUNK_ELEMENTS * self._dtype.itemsize))
        workspace_tokens = min(pass_tokens, self._capacity)
        entries.append(MemoryEntry("activations", target.workspace_bytes(workspace_tokens, self._dtype)))
        return tuple(entries)

    def _account(self, plan: ResidencyPlan, fixed: tuple[MemoryEntry, ...], budget: int) -> Accounting:
        payloads = self._target.slabs.payload_bytes
        by_tier = {tier: [payloads[i] for i, t in enumerate(plan.tiers) if t is tier] for tier in Tier}
        return Accounting(
            budget_bytes=budget,
            fixed=fixed,
            ring_bytes=plan.ring_bytes,
            resident_bytes=plan.resident_bytes,
            num_resident_layers=len(by_tier[Tier.RESIDENT]),
            num_host_layers=len(by_tier[Tier.HOST]),
            host_bytes=sum(by_tier[Tier.HOST]),
            num_disk_layers=len(by_tier[Tier.DISK]),
            disk_bytes=sum(by_tier[Tier.DISK]),
            baseline_bytes=process_memory().resident_bytes,
        )

    def _open_drafter(self, reader: CopyEngine, others: dict[str, torch.Tensor]) -> Drafter | None:
        if self._config.is_plain:
            return None
        storage = torch.bfloat16
        policy = MatmulPolicy(direct_max_rows=measure_direct_max_rows(storage, self._dtype))
        compute = ComputePlan(self._dtype, policy)
        if self._draft is None:
            empty = EmptyModel.build(self._target, compute, others=others)
            model = empty.quantized(self._target.slabs, reader, capacity=self._capacity)
        else:
            empty = EmptyModel.build(self._draft, compute, others=read_others(self._draft, reader))
            load = empty.quantized if self._config.draft_format == "int8" else empty.resident
            model = load(self._draft.slabs, reader, capacity=self._capacity)
        return Drafter(model, target_vocab_size=self._target.config.vocab_size)

    def _planner(self, plan: ResidencyPlan) -> TreePlanner:
        payloads = self._target.slabs.payload_bytes
        return TreePlanner(
            np.asarray(SUBSTITUTE_ACCEPTANCE if self._draft is None else BUILTIN_ACCEPTANCE),
            streamed_bytes=[
                None if tier is Tier.RESIDENT else size for tier, size in zip(plan.tiers, payloads, strict=True)
            ],
            num_slots=self._config.ring_slots,
            max_nodes=self._max_nodes,
            fixed_shape=(1, 1) if self._config.is_plain else self._config.tree_shape,
        )


def _end_token_ids(files: ModelFiles, tokenizer: Any) -> list[int]:
    """Ids that end an answer: those of generation_config.json, of the model's config and of the tokenizer."""
    found: set[int] = set()
    generation: Any = None
    with suppress(OSError, ValueError):  # many folders have no generation_config.json
        generation = GenerationConfig.from_pretrained(files.checkpoint.folder, local_files_only=True)
    for source in (generation, files.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return sorted(found)
