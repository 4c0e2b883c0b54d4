"""Loads a session: from folders and budgets to models in memory and a ring that streams.

The order matters: every folder is checked, every byte planned and the budget held against it before the first weight
is read. Then the layers get their memory, which a thread fills in order, embeddings and draft are read beside it, and
the ring starts: a first pass may follow at the heels of the reading. A load is a generator that says how far it is;
closing it, or an error, frees everything again.
"""

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from offload.checkpoint.gguf_config import end_token_ids
from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.accelerator_engine import Accelerator, AcceleratorCopyEngine
from offload.copying.copy_engine import CopyEngine, CopySource, HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.copying.staged_engine import StagedCopyEngine
from offload.device import device_memory, keep_sums_in_float32, release_cached_memory
from offload.free_memory import free_memory_bytes
from offload.layer_filling import LayerFilling
from offload.layer_placement import LayerPlacer, PlacedLayers
from offload.layer_slabs import slab_views
from offload.layer_streamer import LayerStreamer, ResidentLayer
from offload.memory import allocate_read_slab, allocate_slab, explained_shortage, release_freed_memory
from offload.pinning.pin_budget import PinningPlan, describe_pinning, has_room_for_rows, plan_pinned_layers
from offload.pinning.pinned_memory import HostPinner, open_pinner, wait_until_unpinned
from offload.residency_plan import ResidencyPlan, Tier
from offload.stage_ring import StageRing, plan_stages
from offload.travelling_rows import TravellingRows
from offload.units import format_bytes, parse_link
from profiles.steps import finish, relabel
from runtime.config import EngineConfig, ReadPath, parse_prefix_cache
from runtime.engine.drafter import Drafter
from runtime.engine.engine import Engine
from runtime.engine.kept_prefixes import KeptPrefixes
from runtime.engine.load_plan import LoadPlan
from runtime.engine.packing import packing_of
from runtime.engine.prefix_store import PrefixStore
from runtime.engine.session import Session
from runtime.events import LoadProgress
from runtime.fit.place import Placement
from runtime.model.draft_cache import DraftCache
from runtime.model.generation_config import token_ids_of
from runtime.model.layer_binding import ComputePlan
from runtime.model.model_loader import ModelFiles, SharedLayers, load_draft, open_streamed, read_others
from runtime.model.streamed_model import StreamedModel
from runtime.model.tree_cache import CacheShape
from runtime.planner.initial_plan import (
    NO_DRAFT,
    InitialPlan,
    plan_session,
    stream_shape,
)
from runtime.planner.known_pairs import model_digest
from runtime.planner.planner import TreePlanner
from runtime.planner.prefill import PassWidths, PrefillPlanner
from runtime.prompts.prompt_file import PromptRequest

_DIRECT: Mapping[ReadPath, bool | None] = {"auto": None, "direct": True, "buffered": False}
"""What the ways to read files mean to those that read them."""
_CACHE_RESERVE_BYTES = 2 << 30
"""Of free memory, left to others where files are read through the page cache."""
_MOST_TRADED_LAYERS = 8
"""Residents that may be given up for pinned memory; a ring of stages is never more than one of them."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is ready, and what it holds."""

    session: Session
    plan: LoadPlan
    """What was decided before anything was read."""
    placement: Placement
    """Where its bytes really lie: memory may have run out on the way."""
    filling: LayerFilling
    """Brings the layers; done, unless the session was opened early."""
    streamer: LayerStreamer
    link: CopyEngine
    """Feeds the ring."""
    reader: HostCopyEngine
    """Reads files; the same as `link` where none is emulated and the device is the processor."""
    _path: "_StreamPath"
    _placed: PlacedLayers
    _planning_notes: tuple[str, ...]
    _reading: "_Reading"

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as planned, a sentence each: memory that ran out, and once all layers are there pinning.

        A draft whose passes cannot be recorded says so when the first of them is to be.
        """
        pinning = self._path.pinning_notes(self._placed) if self.filling.is_done else ()
        drafter = self.session.engine.drafter
        drafting = () if drafter is None else drafter.model.notices
        prefixes = self.session.engine.prefixes
        keeping = () if prefixes is None or prefixes.store.notice is None else (prefixes.store.notice,)
        return (*self._placed.notes, *pinning, *self._planning_notes, *drafting, *keeping)

    @property
    def load_progress(self) -> LoadProgress | None:
        """How far the load is of a session that was opened early; None once every layer is there."""
        if self.filling.is_done:
            return None
        num_done_bytes = self._reading.num_bytes - self.filling.num_coming_bytes
        return LoadProgress("layers", num_done_bytes, self._reading.num_bytes)


@contextmanager
def open_session(
    config: EngineConfig, *, requests: Sequence[PromptRequest] = (), state_folder: Path | None = None
) -> Generator[OpenSession, None, None]:
    """`load_session` in one go; the session is closed with the context."""
    with ExitStack() as stack:
        yield finish(load_session(config, stack, requests=requests, state_folder=state_folder))


def load_session(
    config: EngineConfig,
    stack: ExitStack,
    *,
    requests: Sequence[PromptRequest] = (),
    state_folder: Path | None = None,
    is_early: bool = False,
) -> Generator[LoadProgress, None, OpenSession]:
    """Load the models in the folders that `config` names (see `locate_models`) within the budgets.

    `requests` that will be asked size the caches. In `state_folder` this machine's pinning budget is remembered, and
    the profiles that calibrating left there say which tree is the first; without them it is a modest one. What was
    opened is closed with `stack`, whether the load ends or not. With `is_early` the session is returned while layers
    are still being read: its first pass waits for each of them, and so is no measure of anything.

    Raises:
        BadInputError: a folder, a budget or a pair of tokenizers cannot be used; nothing has been read then.
        LinkError: reading failed.
    """
    # What an earlier session held must be free before free memory is counted: models are cyclic, pinned slabs wait, and
    # torch keeps what was freed.
    wait_until_unpinned()
    gc.collect()
    release_cached_memory()
    plan, start, is_undrafted = plan_session(config, requests, state_folder)
    keep_sums_in_float32(plan.device)
    config, target, end_token_ids = plan.config, plan.target, _end_token_ids(plan)
    reader = stack.enter_context(HostCopyEngine(num_threads=config.num_reader_threads, direct=_DIRECT[config.io]))
    loader = stack.enter_context(_open_loader(plan))
    plan, pinning = _with_pinning(plan, state_folder)
    path = _StreamPath(plan, reader, stack, pinning)
    reading = _Reading(_bytes_to_read(plan))
    yield reading.add("embeddings, norm and head", 0)
    with explained_shortage("the embeddings, norm and head"):
        others = read_others(target, loader, device=plan.device)
    yield reading.add("layers", target.other_layout.payload_bytes)
    placed = path.place()
    filling = stack.enter_context(LayerFilling(placed.homes, loader, path.pinner, device=plan.device))
    drafter = cache = None
    if not config.is_plain:
        if config.share_layers:  # the draft's own layers are among them
            yield from relabel(filling.steps(), partial(reading.add, "layers"))
        with explained_shortage("the draft"):
            cache = _draft_cache(plan, state_folder)
            drafter = yield from _load_drafter(plan, loader, reading, others, placed, cache)
    release_freed_memory()  # of conversions
    streamer, link = path.open(placed, filling)
    stack.callback(filling.close)  # first of all: what still comes is not wanted any more
    compute = ComputePlan(plan.dtype, device=plan.device)
    need = plan.need
    widths = PassWidths(need.slice_width, need.pass_tokens)
    model = open_streamed(
        target,
        compute,
        streamer,
        others=others,
        capacity=need.capacity_tokens,
        num_lanes=need.num_texts,
        widened=path.widened,
        widths=widths,
        packed=placed.packed,
    )
    prefill = _prefill_planner(plan, streamer, can_slice=model.can_slice)
    engine = Engine(
        model,
        drafter,
        _planner(plan, start, placed, link),
        prefill,
        context_tokens=plan.need.context_tokens,
        num_graft_nodes=config.num_graft_nodes,
        prefixes=_open_prefixes(plan, model, drafter, prefill, stack, state_folder, is_shared_only=len(requests) > 1),
    )
    session = Session(engine, plan.tokenizer, end_token_ids=end_token_ids, generation=plan.generation)
    on_draft = [NO_DRAFT] if is_undrafted else [] if plan.draft_note is None else [plan.draft_note]
    if cache is not None and cache.damaged:
        on_draft.append(f"the draft's NF4 copy in {cache.model_folder} was damaged and has been made again")
    on_type = tuple(note for note in (plan.dtype_note, plan.packing_note) if note is not None)
    planned = start.notes(plan, is_planned=engine.planner.choice is not None)
    notes = (*on_type, *on_draft, *_cache_notes(plan), *planned)
    if not is_early:
        yield from relabel(filling.steps(), partial(reading.add, "layers"))
    placement = plan.placement.with_tiers(placed.tiers)
    return OpenSession(session, plan, placement, filling, streamer, link, reader, path, placed, notes, reading)


def _open_loader(plan: LoadPlan) -> HostCopyEngine:
    """Return what reads every file once.

    Where memory is left for them all beside the session they are read through the page cache, where the next start
    finds them; else past it, but for what it holds already.
    """
    placement, direct = plan.placement, _DIRECT[plan.config.io]
    held_bytes = placement.host_bytes + placement.stage_bytes + (placement.device_bytes if plan.is_host else 0)
    is_room = free_memory_bytes() - held_bytes > _bytes_to_read(plan) + _CACHE_RESERVE_BYTES
    return HostCopyEngine(
        num_threads=plan.config.num_reader_threads,
        direct=False if direct is None and is_room else direct,
        cached_first=direct is None,
    )


def _with_pinning(plan: LoadPlan, state_folder: Path | None) -> tuple[LoadPlan, PinningPlan | None]:
    """Return what is pinned, and the plan with as many residents as are best beside it; None where nothing is.

    `state_folder`: where a driver's answer is remembered; None: nowhere.
    """
    if plan.is_host:
        return plan, None
    most = min(_MOST_TRADED_LAYERS, len(plan.residency.resident_layers)) if plan.residency.streamed_layers else 0
    plans = [plan]

    def choices() -> Iterator[tuple[ResidencyPlan, int]]:
        for number in range(most + 1):
            plans.extend([plan.with_fewer_residents(number)] if number else [])
            yield plans[number].residency, plans[number].placement.device_bytes

    best, pinning = plan_pinned_layers(plan.device, choices(), state_folder=state_folder)
    return plans[best], pinning


def _cache_notes(plan: LoadPlan) -> tuple[str, ...]:
    """Return a sentence where keys and values travel, which costs bytes of every pass, or where they should have."""
    travelling, is_exact = plan.residency.travelling, plan.config.kv_format == "exact"
    if not travelling:
        return (
            ()
            if is_exact
            else (f"no keys and values travel, so that --kv-format {plan.config.kv_format} does nothing",)
        )
    layers = "one layer wait" if len(travelling) == 1 else f"{len(travelling)} layers wait"
    size = f"{format_bytes(plan.placement.travelling_bytes)} once the context is full"
    note = f"keys and values of {layers} in host memory and cross the link with their weights, {size}"
    return (note if is_exact else f"{note}; they are {plan.config.kv_format}, with which the text may differ",)


class _StreamPath:
    """The way of a session's layers to its device: pinned slabs, stages, and the engines that drive the links.

    Takes the memory that must not be missing first (slots, then pinned stages). What did not go as planned is kept as
    sentences; what it opens is closed with `stack`.
    """

    def __init__(
        self, plan: LoadPlan, reader: HostCopyEngine, stack: ExitStack, pinning: PinningPlan | None = None
    ) -> None:
        """`pinning`: None where no device would notice."""
        self._plan = plan
        self._reader = reader
        self._stack = stack
        self._pinning = pinning
        self._pinner: HostPinner = HostPinner()
        self._pageable: set[int] = set()
        """Host layers beyond the budget; one that was meant for the device and found no room there is none of them."""
        if pinning is not None:
            self._pinner = open_pinner(plan.device, pinning.budget_bytes)
            hosts = [index for index, tier in enumerate(plan.residency.tiers) if tier is Tier.HOST]
            self._pageable = set(hosts) - {hosts[place] for place in pinning.pinned_slabs}
        stack.enter_context(self._pinner)
        with explained_shortage(f"a ring of {plan.residency.num_slots} layer slots"):
            self._ring = [self._empty_slot(plan.residency.slot_bytes) for _ in range(plan.residency.num_slots)]
        ring = plan.disk_ring
        if pinning is not None and pinning.ring.num_stages:  # else of pageable memory
            ring = pinning.ring
        with explained_shortage("the keys and values beside the ring's slots"):
            self._ring[:0] = [
                self._empty_slot(plan.residency.row_slot_bytes) for _ in plan.residency.travelling and self._ring
            ]
            widened_bytes = plan.residency.widened_bytes
            self._widened = self._empty_slot(widened_bytes) if widened_bytes else None
        # Before any layer: a driver that has refused memory once pins nothing more.
        self._stages = self._pinned_stages(ring)
        self._rows = self._travelling_rows()

    @property
    def pinner(self) -> HostPinner:
        return self._pinner

    @property
    def widened(self) -> torch.Tensor | None:
        """Memory of the device in which narrow keys and values are widened; None where none travel."""
        return self._widened

    def place(self) -> PlacedLayers:
        """Give every layer memory in its tier, or a tier down; reads nothing."""
        plan = self._plan
        placer = LayerPlacer(
            pinner=self._pinner,
            host_budget_bytes=plan.placement.host_budget_bytes,
            allocate_on_device=self._allocate_resident,
            is_pinned=lambda index: index not in self._pageable,
        )
        with explained_shortage("the layers on their way to the device"):
            return placer.place(plan.target.layouts, plan.residency, packed=packing_of(plan.config, plan.target) or ())

    def open(self, placed: PlacedLayers, filling: LayerFilling) -> tuple[LayerStreamer, CopyEngine]:
        """The ring over the placed layers, and the engine that feeds it."""
        link = self._open_link(placed)
        streamer = LayerStreamer(
            placed.layers,
            link,
            num_slots=self._plan.config.ring_slots,
            allocate_slot=lambda num_bytes: self._ring.pop() if self._ring else self._empty_slot(num_bytes),
            disk=link.reader if isinstance(link, StagedCopyEngine) else None,
            filling=filling,
            rows=self._rows,
        )
        return self._stack.enter_context(streamer), link

    def pinning_notes(self, placed: PlacedLayers) -> tuple[str, ...]:
        """What of the placed layers is pinned, once all are there; nothing where no device would notice."""
        if self._pinning is None:
            return ()
        slabs = [layer.slab for layer in placed.layers if isinstance(layer, HostSource)]
        is_pinned = bool(self._stages) and all(map(self._pinner.is_pinned, self._stages))
        pinning = describe_pinning(
            [slab.numel() for slab in slabs],
            [place for place, slab in enumerate(slabs) if self._pinner.is_pinned(slab)],
            ring=StageRing(len(self._stages), self._stages[0].numel()) if is_pinned else StageRing(),
            num_disk_layers=sum(isinstance(layer, LayerLayout) for layer in placed.layers),
            refused=self._pinner.refused,
        )
        return (pinning,)

    def _allocate_resident(self, num_bytes: int) -> torch.Tensor:
        """Memory for a layer that stays; none if draft, caches or activations would then miss it."""
        memory = None if self._plan.is_host else device_memory(self._plan.device)
        late_bytes = self._plan.placement.late_bytes
        if memory is not None and memory.free_bytes < num_bytes + late_bytes:
            raise torch.OutOfMemoryError(f"{memory.free_bytes} bytes are free, and {late_bytes} will be wanted later")
        return allocate_slab(num_bytes) if self._plan.is_host else self._empty_slot(num_bytes)

    def _empty_slot(self, num_bytes: int) -> torch.Tensor:
        if self._plan.is_host:
            return allocate_read_slab(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._plan.device)

    def _pinned_stages(self, ring: StageRing) -> list[torch.Tensor]:
        with explained_shortage("the stages of layers from disk"):
            stages = [self._pinner.allocate(ring.stage_bytes, huge_pages=True) for _ in range(ring.num_stages)]
            for stage in stages:
                stage.fill_(0)  # touched, or the driver would have to do it page by page
                self._pinner.filled(stage)
            self._pinner.finish()
        return stages

    def _travelling_rows(self) -> TravellingRows | None:
        """Host memory for the keys and values that travel; pinned like a layer where the budget has much more."""
        plan = self._plan
        if not plan.residency.travelling:
            return None
        budget = None if self._pinning is None else self._pinning.budget_bytes
        is_pinned = not plan.is_host and (budget is None or has_room_for_rows(budget, plan.residency))

        def allocate(num_bytes: int) -> torch.Tensor:
            if not is_pinned:
                return allocate_slab(num_bytes)
            slab = self._pinner.allocate(num_bytes)
            slab.fill_(0)  # touched, as the stages
            self._pinner.filled(slab)
            return slab

        with explained_shortage("the keys and values that wait in host memory"):
            rows = TravellingRows(
                plan.row_bytes,
                capacity=plan.need.capacity_tokens,
                allocate=allocate,
            )
            self._pinner.finish()
        return rows

    def _open_link(self, placed: PlacedLayers) -> CopyEngine:
        plan, config = self._plan, self._plan.config
        reader: CopyEngine = self._reader
        if config.disk_link:
            reader = EmulatedLink(reader, parse_link(config.disk_link))
        late = [layer.slab_bytes for layer in placed.layers if isinstance(layer, LayerLayout)]
        if late and not self._stages and not plan.is_host:  # memory ran out, and layers stay on disk after all
            self._stages = self._pinned_stages(plan_stages(max(late)))
        stages = self._stages
        link: CopyEngine = self._reader
        if not plan.is_host:
            link = self._stack.enter_context(AcceleratorCopyEngine(Accelerator(plan.device)))
        elif stages:
            link = self._stack.enter_context(HostCopyEngine(num_threads=1))
        if config.link:
            link = EmulatedLink(link, parse_link(config.link))
        if not stages:
            return link
        return self._stack.enter_context(StagedCopyEngine(reader, link, stages, needs_stage=self._needs_stage))

    def _needs_stage(self, source: CopySource) -> bool:
        """Files always; pageable memory where a pinned ring is there for it."""
        if isinstance(source, LayerLayout):
            return True
        if source.is_companion:
            return False
        return (
            self._pinning is not None
            and not self._pinner.is_pinned(source.slab)
            and self._pinner.is_pinned(self._stages[0])
        )


@dataclass(slots=True)
class _Reading:
    """How far a load is."""

    num_bytes: int
    num_done_bytes: int = 0

    def add(self, what: str, num_bytes: int) -> LoadProgress:
        self.num_done_bytes += num_bytes
        return LoadProgress(what, self.num_done_bytes, self.num_bytes)


def _bytes_to_read(plan: LoadPlan) -> int:
    payloads = plan.target.payload_bytes
    total = plan.target.other_layout.payload_bytes
    total += sum(size for size, tier in zip(payloads, plan.residency.tiers, strict=True) if tier is not Tier.DISK)
    if plan.draft is not None:
        total += plan.draft.other_layout.payload_bytes + sum(plan.draft.payload_bytes)
    elif not plan.config.is_plain:
        shared = plan.residency.resident_layers if plan.config.share_layers else ()
        total += sum(size for index, size in enumerate(payloads) if index not in shared)
    return total


def _draft_cache(plan: LoadPlan, state_folder: Path | None) -> DraftCache | None:
    """Return where the session's draft is kept in NF4, if it is to be quantized at all."""
    files = plan.draft_files
    if state_folder is None or plan.draft_held != "nf4" or files.is_quantized:
        return None
    return DraftCache(state_folder / "drafts", model_digest(files.checkpoint.folder))


def _open_prefixes(
    plan: LoadPlan,
    target: StreamedModel,
    drafter: Drafter | None,
    prefill: PrefillPlanner,
    stack: ExitStack,
    state_folder: Path | None,
    *,
    is_shared_only: bool,
) -> KeptPrefixes | None:
    """Return what keeps the beginnings of texts for later sessions; None where that is switched off.

    A block is named by all that its bytes depend on; another draft's could only cost acceptance.
    """
    max_bytes = parse_prefix_cache(plan.config.prefix_cache)
    if state_folder is None or max_bytes == 0:
        return None
    store = PrefixStore(state_folder / "prefixes", max_bytes=max_bytes)
    travelling = sorted(plan.residency.travelling) if plan.config.kv_format != "exact" else []

    def describe(files: ModelFiles, dtype: torch.dtype, device: torch.device, **how: object) -> dict[str, object]:
        digest = model_digest(files.checkpoint.folder)
        shapes = [[*shape.keys, *shape.values] for shape in files.cache_shapes if isinstance(shape, CacheShape)]
        return {"digest": digest, "dtype": str(dtype), "device": device.type, "shapes": shapes, **how}

    shared = plan.residency.resident_layers if plan.config.share_layers else ()
    draft = (plan.draft_files, plan.draft_dtype, plan.draft_device)
    prefixes = KeptPrefixes(
        store,
        target,
        drafter,
        prefill,
        describe_target=partial(describe, plan.target, plan.dtype, plan.device, int8=travelling),
        describe_draft=lambda: describe(*draft, held=plan.draft_held, shared=list(shared)),
        is_shared_only=is_shared_only,
    )
    return stack.enter_context(prefixes)


def _load_drafter(
    plan: LoadPlan,
    loader: HostCopyEngine,
    reading: _Reading,
    others: dict[str, torch.Tensor],
    placed: PlacedLayers,
    cache: DraftCache | None,
) -> Generator[LoadProgress, None, Drafter]:
    """Load a separate draft, or a substitute, which may use the target's resident layers as they are."""
    shared: SharedLayers | None = None
    if plan.draft is not None:
        others = read_others(plan.draft, loader, device=plan.draft_device)
        yield reading.add("draft", plan.draft.other_layout.payload_bytes)
    else:
        if plan.draft_device != plan.device:
            others = read_others(plan.target, loader, device=plan.draft_device)
        packed = placed.packed
        shared = {
            index: (packed[index].tensors(layer.slab), packed[index].formats)
            if index in packed
            else (slab_views(plan.target.layouts[index], layer.slab), {})
            for index, layer in enumerate(placed.layers)
            if plan.config.share_layers and isinstance(layer, ResidentLayer)
        }
    compute = ComputePlan(plan.draft_dtype, is_fast=True, device=plan.draft_device)
    files, held, capacity = plan.draft_files, plan.draft_held, plan.need.capacity_tokens
    loading = load_draft(
        files,
        compute,
        held,
        loader,
        others=others,
        capacity=capacity,
        num_lanes=plan.need.num_texts,
        shared=shared,
        cache=cache,
    )
    model = yield from relabel(loading, partial(reading.add, "draft"))
    return Drafter(model, target_vocab_size=plan.target.config.vocab_size)


def _planner(plan: LoadPlan, start: InitialPlan, placed: PlacedLayers, link: CopyEngine) -> TreePlanner:
    """Return a planner for the tiers and stages that there are: memory that ran out may have changed them."""
    config = plan.config
    has_substitute = plan.draft is None and not config.is_plain
    ring = link.ring if isinstance(link, StagedCopyEngine) else StageRing()
    stream = stream_shape(
        placed.tiers,
        [0 if isinstance(layer, ResidentLayer) else layer.payload_bytes for layer in placed.layers],
        num_slots=config.ring_slots,
        num_stages=ring.num_stages,
        num_pieces=[ring.num_pieces(layout.slab_bytes) for layout in plan.target.layouts],
        row_bytes=plan.row_bytes,
        is_host=plan.is_host,
    )
    return TreePlanner(
        start.prior(substitute_held=plan.draft_held if has_substitute else None),
        stream,
        max_nodes=plan.need.max_nodes,
        text_nodes=plan.need.text_nodes,
        fixed_shape=(1, 1) if config.is_plain else config.tree_shape,
        initial_costs=start.costs(placed.tiers, stream, plan),
        kind=config.tree_kind,
    )


def _prefill_planner(plan: LoadPlan, streamer: LayerStreamer, *, can_slice: bool) -> PrefillPlanner:
    """Return a planner that cuts prompts where layers stream; it takes an accelerator to outrun any link at first."""
    need, is_streamed = plan.need, streamer.num_streamed_layers > 0
    most_tokens = min(need.prefill_tokens, need.context_tokens) if is_streamed and can_slice else need.slice_width
    return PrefillPlanner(
        slice_tokens=need.slice_width,
        most_tokens=most_tokens,
        first_tokens=2 * need.slice_width if plan.is_host else most_tokens,
        is_streamed=is_streamed,
    )


def _end_token_ids(plan: LoadPlan) -> list[int]:
    """Return the ids that end an answer: of generation_config.json or a GGUF file, of the config and the tokenizer."""
    found = set(plan.generation.eos_token_ids)
    checkpoint = plan.target.checkpoint
    if checkpoint.gguf is not None:
        found.update(end_token_ids(checkpoint.gguf))
    folder, whole = checkpoint.folder, checkpoint.config
    sources: list[tuple[object, str]] = [
        (whole.get("eos_token_id"), "config.json"),  # of a composite model: its text part may say something else
        (getattr(plan.target.config, "eos_token_id", None), "config.json"),
        (plan.tokenizer.eos_token_id, "tokenizer_config.json"),
    ]
    for value, name in sources:
        settings = {"eos_token_id": value}
        found.update(token_ids_of(settings, "eos_token_id", where=f"{folder}/{name}"))
    return sorted(found)
