"""Puts a session together: from names and budgets to models in memory and a ring that streams.

The order matters: every folder is checked, every byte planned and the budget held against it before the first weight
is read; then embeddings, draft and resident layers are read, and the ring starts. A load is a generator that says how
far it is; closing it, or an error, frees everything again. Knows no prompts beyond how long they are.
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

from offload.accelerator_copy_engine import AcceleratorCopyEngine, TorchAccelerator
from offload.copy_engine import CopyEngine, DiskSource
from offload.emulated_link import EmulatedLink
from offload.host_copy_engine import HostCopyEngine
from offload.host_pinner import HostPinner
from offload.layer_placement import LayerPlacer, Placement
from offload.layer_streamer import LayerStreamer
from offload.pinned_memory import open_pinner
from offload.residency_plan import Tier
from offload.slab_memory import allocate_slab
from offload.staged_copy_engine import StagedCopyEngine
from offload.units import parse_link
from offload.weight_format import MatmulPolicy, measure_direct_max_rows
from runtime.accounting import Accounting
from runtime.drafter import Drafter
from runtime.engine import Engine
from runtime.engine_config import EngineConfig
from runtime.events import LoadProgress
from runtime.model.model_loader import ComputePlan, EmptyModel, ModelFiles, read_others
from runtime.planner import TreePlanner
from runtime.prompt_file import PromptRequest
from runtime.session import Session
from runtime.session_plan import NUM_STAGES, SessionPlan
from runtime.speculation.acceptance import BUILTIN_ACCEPTANCE, SUBSTITUTE_ACCEPTANCE


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is ready, and what it holds."""

    session: Session
    """Answers requests."""
    plan: SessionPlan
    """What was decided before anything was read."""
    accounting: Accounting
    """Every byte that it holds."""
    notes: tuple[str, ...]
    """What did not go as planned, a sentence each: memory that ran out, pinning that was refused."""
    streamer: LayerStreamer
    """The ring."""
    link: CopyEngine
    """The engine that feeds it."""
    reader: HostCopyEngine
    """What reads files; the same as `link` where none is emulated and the device is the processor."""


@contextmanager
def open_session(
    config: EngineConfig, *, target: Path, draft: Path | None = None, requests: Sequence[PromptRequest] = ()
) -> Generator[OpenSession, None, None]:
    """`load_session` in one go; the session is closed with the context."""
    with ExitStack() as stack:
        loading = load_session(config, stack, target=target, draft=draft, requests=requests)
        while True:
            try:
                next(loading)
            except StopIteration as end:
                opened: OpenSession = end.value
                break
        yield opened


def load_session(
    config: EngineConfig,
    stack: ExitStack,
    *,
    target: Path,
    draft: Path | None = None,
    requests: Sequence[PromptRequest] = (),
) -> Generator[LoadProgress, None, OpenSession]:
    """Load the models in the folders `target` and `draft` (None: substitute or none) within the budgets.

    `requests` that will be asked size the caches. What was opened is closed with `stack`, whether the load ends or not.

    Raises:
        BadInputError: a folder, a budget or a pair of tokenizers cannot be used; nothing has been read then.
        LinkError: reading failed.
    """
    gc.collect()  # models are cyclic: what an earlier session held must be free before free memory is counted
    plan = SessionPlan.build(config, target=target, draft=draft, requests=requests)
    return (yield from _Load(plan, stack).run())


def plan_memory(
    config: EngineConfig, *, target: Path, draft: Path | None = None, requests: Sequence[PromptRequest] = ()
) -> Accounting:
    """What `open_session` would hold with the same arguments; reads no weights. Raises BadInputError."""
    return SessionPlan.build(config, target=target, draft=draft, requests=requests).accounting


class _Load:
    """The steps of `load_session` and what they share."""

    def __init__(self, plan: SessionPlan, stack: ExitStack) -> None:
        self._plan = plan
        self._config = plan.config
        self._stack = stack
        self._reader = stack.enter_context(
            HostCopyEngine(
                num_threads=self._config.num_reader_threads,
                direct={"auto": None, "direct": True, "buffered": False}[self._config.io],
            )
        )

    def run(self) -> Generator[LoadProgress, None, OpenSession]:
        """Read, place, and start the ring; memory that must not be missing is taken first."""
        plan, target = self._plan, self._plan.target
        pinner = self._stack.enter_context(open_pinner(plan.device, None))
        ring = [self._empty_slot(plan.residency.slot_bytes) for _ in range(plan.residency.num_slots)]
        stages = self._allocate_stages(pinner)
        total_bytes = self._bytes_to_read()
        yield LoadProgress("embeddings, norm and head", 0, total_bytes)
        others = read_others(target, self._reader, device=plan.device)
        num_read = target.other_layout.payload_bytes
        yield LoadProgress("draft", num_read, total_bytes)
        drafter = self._open_drafter(others)
        num_read = total_bytes - self._bytes_to_place()
        placement = yield from self._place(pinner, num_read, total_bytes)
        pinner.finish()
        link = self._open_link(placement, pinner, stages)
        streamer = self._stack.enter_context(
            LayerStreamer(
                placement.layers,
                link,
                num_slots=self._config.ring_slots,
                allocate_slot=lambda num_bytes: ring.pop() if ring else self._empty_slot(num_bytes),
                disk=link.reader if isinstance(link, StagedCopyEngine) else None,
            )
        )
        empty = EmptyModel.build(target, ComputePlan(plan.dtype, device=plan.device), others=others)
        model = empty.streamed(target.slabs, streamer, capacity=plan.capacity)
        engine = Engine(model, drafter, self._planner(placement), context_tokens=plan.context_tokens)
        session = Session(engine, plan.tokenizer, end_token_ids=_end_token_ids(target, plan.tokenizer))
        notes = placement.notes if pinner.refused is None else (*placement.notes, pinner.refused)
        return OpenSession(session, plan, self._account(placement), notes, streamer, link, self._reader)

    def _empty_slot(self, num_bytes: int) -> torch.Tensor:
        if self._plan.is_host:
            return allocate_slab(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._plan.device)

    def _allocate_stages(self, pinner: HostPinner) -> list[torch.Tensor]:
        """Before any layer: a driver that has refused memory once pins nothing more."""
        if not self._plan.has_stages:
            return []
        stages = [pinner.allocate(self._plan.accounting.stage_bytes // NUM_STAGES) for _ in range(NUM_STAGES)]
        for stage in stages:
            stage.fill_(0)  # touched, or the driver would have to do it page by page
            pinner.filled(stage)
        return stages

    def _bytes_to_read(self) -> int:
        plan = self._plan
        total = plan.target.other_layout.payload_bytes + self._bytes_to_place()
        if plan.draft is not None:
            total += plan.draft.other_layout.payload_bytes + sum(plan.draft.slabs.payload_bytes)
        elif not self._config.is_plain:
            total += sum(plan.target.slabs.payload_bytes)
        return total

    def _bytes_to_place(self) -> int:
        payloads = self._plan.target.slabs.payload_bytes
        tiers = self._plan.residency.tiers
        return sum(size for size, tier in zip(payloads, tiers, strict=True) if tier is not Tier.DISK)

    def _place(self, pinner: HostPinner, num_read: int, total_bytes: int) -> Generator[LoadProgress, None, Placement]:
        plan = self._plan
        placer = LayerPlacer(self._reader, pinner=pinner, host_budget_bytes=plan.host_budget_bytes, device=plan.device)
        placing = placer.place(plan.target.slabs.layouts, plan.residency)
        while True:
            try:
                yield LoadProgress("layers", num_read + next(placing), total_bytes)
            except StopIteration as end:
                placement: Placement = end.value
                return placement

    def _open_link(self, placement: Placement, pinner: HostPinner, stages: list[torch.Tensor]) -> CopyEngine:
        """What feeds the ring; closed with the stack."""
        plan, config = self._plan, self._config
        unfetchable = [source for source in placement.layers if isinstance(source, DiskSource)]
        reader: CopyEngine = self._reader
        if config.disk_link:
            reader = EmulatedLink(reader, parse_link(config.disk_link))
        if plan.is_host and not (stages or config.link):
            return reader
        link: CopyEngine = self._reader
        if not plan.is_host:
            link = self._stack.enter_context(AcceleratorCopyEngine(TorchAccelerator(plan.device)))
        elif stages:
            link = self._stack.enter_context(HostCopyEngine(num_threads=1))
        if config.link:
            link = EmulatedLink(link, parse_link(config.link))
        if not stages and (plan.is_host or not unfetchable):
            return link
        if not stages:  # nothing was to be staged, but memory ran out
            largest = max(source.slot_bytes for source in unfetchable)
            stages = [pinner.allocate(largest) for _ in range(NUM_STAGES)]
        return self._stack.enter_context(
            StagedCopyEngine(reader, link, stages, needs_stage=lambda source: isinstance(source, DiskSource))
        )

    def _account(self, placement: Placement) -> Accounting:
        """The planned accounting, with the layers where they really are."""
        plan, planned = self._plan, self._plan.accounting
        residents = [
            size
            for size, tier in zip(plan.residency.layer_bytes, placement.tiers, strict=True)
            if tier is Tier.RESIDENT
        ]
        return Accounting.of_tiers(
            placement.tiers,
            plan.target.slabs.payload_bytes,
            budget_bytes=planned.budget_bytes,
            fixed=planned.fixed,
            ring_bytes=planned.ring_bytes,
            resident_bytes=sum(residents),
            stage_bytes=planned.stage_bytes,
            baseline_bytes=planned.baseline_bytes,
        )

    def _open_drafter(self, others: dict[str, torch.Tensor]) -> Drafter | None:
        plan = self._plan
        if self._config.is_plain:
            return None
        policy = MatmulPolicy()
        if plan.is_host:
            policy = MatmulPolicy(direct_max_rows=measure_direct_max_rows(torch.bfloat16, plan.dtype))
        compute = ComputePlan(plan.dtype, policy, plan.device)
        if plan.draft is None:
            empty = EmptyModel.build(plan.target, compute, others=others)
            model = empty.quantized(plan.target.slabs, self._reader, capacity=plan.capacity)
        else:
            own = read_others(plan.draft, self._reader, device=plan.device)
            empty = EmptyModel.build(plan.draft, compute, others=own)
            load = empty.quantized if self._config.draft_format == "int8" else empty.resident
            model = load(plan.draft.slabs, self._reader, capacity=plan.capacity)
        return Drafter(model, target_vocab_size=plan.target.config.vocab_size)

    def _planner(self, placement: Placement) -> TreePlanner:
        plan, payloads = self._plan, self._plan.target.slabs.payload_bytes
        tiers = placement.tiers
        return TreePlanner(
            np.asarray(SUBSTITUTE_ACCEPTANCE if plan.draft is None else BUILTIN_ACCEPTANCE),
            streamed_bytes=[
                None if tier is Tier.RESIDENT else size for tier, size in zip(tiers, payloads, strict=True)
            ],
            read_bytes=[size if tier is Tier.DISK else None for tier, size in zip(tiers, payloads, strict=True)]
            if plan.has_stages
            else (),
            num_stages=NUM_STAGES,
            num_slots=self._config.ring_slots,
            max_nodes=plan.max_nodes,
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
