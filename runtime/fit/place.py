"""What a session must hold, as numbers, where its bytes lie on a machine, and what is missing there.

Needs are built from a checked folder's headers (`need_of_files`) or from a shape alone (`ModelShape.need`); no weight
is read. A session that streams from disk runs, but not well.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offload.formats.stored_sizes import PACKED, QUANTIZED_FORMATS, int8_rows_bytes, nf4_bytes
from offload.residency_plan import ResidencyPlan, Tier, plan_residency
from offload.stage_ring import plan_stages
from offload.units import round_up_to_page
from runtime.config import (
    ACCELERATOR_SLICE_TOKENS,
    LEAST_MAX_NODES,
    MOST_MAX_NODES,
    PACKED_SLICE_TOKENS,
    PREFILL_CHUNK_TOKENS,
    KvCache,
)
from runtime.errors import OptionError
from runtime.fit.machine import RESERVED_BYTES, Machine, usable_bytes
from runtime.fit.workspace import Workspace
from runtime.model.pass_shapes import (
    MARK_TOKENS,
    MARKS_OF_PASS,
    MOST_MARKS,
    WALK_ROWS,
    most_ranked,
    widest_level,
)

OTHERS, HEAD = "target's embeddings, norm and head", "target's norm and head"
"""What is allocated before the layers; draft and first pass allocate everything else after them."""
KEYS_AND_VALUES = "keys and values"
"""What the caches' entry begins with."""
USUAL_FILL = 0.5
"""Of the context, over the passes of a conversation: what travels then."""
TREE_SHARE = 0.04
"""Of the layers' bytes, what keys and values of the largest tree may take on a processor. Twice the nodes bring a tenth
more tokens where a pass waits for its copies."""
_LEAST_SAVING = 0.05
"""Of a pass's bytes, below which caches stay on the device: travelling has costs of its own."""


@dataclass(frozen=True, slots=True)
class LayerFormat:
    """The decoder layers in one storage format."""

    name: str
    """bfloat16, float16, float32, int8, nf4, or PACKED."""
    layer_bytes: tuple[int, ...]
    """Bytes of each layer as allocated, in whole pages."""
    payload_bytes: tuple[int, ...] = ()
    """Bytes of each layer's weights, where files say so; empty if all are."""

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_bytes)


@dataclass(frozen=True, slots=True)
class DraftNeed:
    """What a draft holds on the device."""

    label: str
    """What a person calls it."""
    num_bytes: int
    """Bytes of its weights."""
    cache_bytes_per_token: int
    """Bytes of a token's keys and values."""
    table_bytes: int = 0
    """Bytes of its input embeddings that wait in host memory, not among `num_bytes`."""
    workspace: Workspace | None = None
    """What its passes hold; None: nothing beside what the target's do."""
    scratch_bytes: int = 0
    """Bytes in which it widens narrow weights; 0 where it has none."""
    is_recorded: bool = False
    """Whether its passes are recorded, in memory that stays."""
    shared_layer_bytes: tuple[int, ...] = ()
    """Bytes per layer of the target that the draft does not hold if that layer is resident; empty if it shares none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one session needs, whatever the machine."""

    formats: tuple[LayerFormat, ...]
    """The format that would be run, then the smaller ones it could be converted to."""
    others_bytes: int
    """Final norm, head, and embeddings unless they wait in host memory: always resident, never quantized."""
    table_bytes: int = 0
    """Bytes of input embeddings that wait in host memory, beside an accelerator."""
    draft: DraftNeed | None
    """None: plain streaming."""
    cache_bytes_per_token: int
    """Bytes of a token's keys and values in the target."""
    context_tokens: int
    """Most tokens of prompt and answer together."""
    max_nodes: int
    """Most nodes of a pass, those of all texts' trees together; 1 for each without a draft."""
    num_texts: int = 1
    """Texts that are decoded together; each has a lane of the caches."""
    workspace: Workspace
    """What the target's passes hold."""
    scratch_bytes: int
    """Bytes in which the target's narrow weights are widened, if there are any in the format that is run."""
    head_scratch_bytes: int = 0
    """The same of its head."""
    is_widened: bool = False
    """Whether the target's matrices are widened even where they are not quantized."""
    num_slots: int = 2
    """Slots of the ring."""
    num_graft_nodes: int = 0
    """Nodes that may be added to the largest tree."""
    slice_tokens: int | None = PREFILL_CHUNK_TOKENS
    """Prompt tokens that a layer computes at once; None: as many as the largest tree's pass has room for."""
    prefill_tokens: int = 0
    """Most prompt tokens of one pass over layers that stream; others compute no more than a slice."""
    file_bytes: int = 0
    """Bytes of disk that files still to be downloaded or written will take."""
    kv_cache: KvCache = "device"
    """Where the target's keys and values may be; `auto` is for `place` to decide."""
    cache_layer_bytes: tuple[int, ...] = ()
    """Of `cache_bytes_per_token`, what each layer has; empty: equal shares."""
    row_layer_bytes: tuple[int, ...] = ()
    """Bytes of a token's keys and values in each layer where they travel; empty: the same as on the device."""
    stored: LayerFormat | None = None
    """The layers as their files have them, where memory holds them packed: those on disk stream so."""
    has_wide_slots: bool = False
    """Whether some do, so that every slot has room for a layer that is not packed."""
    escape_bytes: int = 0
    """Bytes of what packed layers have no codes for."""
    narrow_scratch_bytes: int = 0
    """Bytes in which packed layers are unpacked, where that is not to the type of the products."""
    are_marks_apart: bool = False
    """Whether earlier states of recurrent layers wait in other memory than the states: beside an accelerator."""

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer's keys and values for all tokens where they travel, if that is another number."""
        return tuple(self.cached_tokens * size for size in self.row_layer_bytes)

    @property
    def cache_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer's keys and values, for all tokens."""
        num_layers = len(self.layers.layer_bytes)
        each = self.cache_layer_bytes or (self.cache_bytes_per_token // num_layers,) * num_layers
        return tuple(self.cached_tokens * size for size in each)

    @property
    def layers(self) -> LayerFormat:
        """The decoder layers as they would be run."""
        return self.formats[0]

    def payload_bytes(self, tiers: Sequence[Tier]) -> tuple[int, ...]:
        """Return the bytes of each layer's weights where it lies."""
        in_memory, on_disk = (
            layers.payload_bytes or layers.layer_bytes for layers in (self.layers, self.stored or self.layers)
        )
        return tuple(
            read if tier is Tier.DISK else held for held, read, tier in zip(in_memory, on_disk, tiers, strict=True)
        )

    @property
    def capacity_tokens(self) -> int:
        """Tokens of each text that the caches have room for: the context and one tree."""
        return self.context_tokens + self.text_nodes + self.num_graft_nodes

    @property
    def text_nodes(self) -> int:
        """Most nodes of one text's tree: twice its share, since not all texts are decoded all of the time."""
        share = -(-self.max_nodes // self.num_texts)
        return share if self.num_texts == 1 else min(self.max_nodes, 2 * share)

    @property
    def cached_tokens(self) -> int:
        """Tokens that the caches have room for, of all texts."""
        return self.num_texts * self.capacity_tokens

    @property
    def pass_tokens(self) -> int:
        """Most tokens that a layer computes at once: the end of a prompt and the largest tree, or a slice of one."""
        least = self.slice_tokens or ACCELERATOR_SLICE_TOKENS
        return min(max(least, PREFILL_CHUNK_TOKENS + self._tree_tokens), self.cached_tokens)

    @property
    def slice_width(self) -> int:
        """Prompt tokens that a layer computes at once."""
        return self.slice_tokens or self.pass_tokens

    @property
    def long_pass_tokens(self) -> int:
        """Most tokens of a pass that is computed in slices, the tree included; 0 where no pass is."""
        longest = max(self.slice_width, min(self.prefill_tokens, self.num_texts * self.context_tokens))
        longest += self._tree_tokens
        longest = min(longest, self.cached_tokens)
        return longest if longest > self.pass_tokens else 0

    @property
    def _tree_tokens(self) -> int:
        return self.max_nodes + self.num_texts * self.num_graft_nodes

    @property
    def disk_layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer in a slot that it came to from disk; empty if that is what it takes anywhere."""
        return self.stored.layer_bytes if self.stored is not None and self.has_wide_slots else ()

    @property
    def ring_bytes(self) -> int:
        slot_bytes = max(self.disk_layer_bytes or self.layers.layer_bytes)
        if self.kv_cache != "host":
            return self.num_slots * slot_bytes
        widened_bytes = max(self.cache_bytes) if self.row_bytes else 0
        return self.num_slots * (slot_bytes + max(self.row_bytes or self.cache_bytes)) + widened_bytes

    @property
    def stage_bytes(self) -> int:
        """Bytes of host memory through which layers reach a device that cannot fetch them itself."""
        return plan_stages(max(self.disk_layer_bytes or self.layers.layer_bytes)).num_bytes

    @property
    def host_side_bytes(self) -> int:
        """Bytes of host memory that an accelerator's session takes beside the layers that wait there."""
        return self.stage_bytes + self.host_table_bytes + (self.mark_bytes if self.are_marks_apart else 0)

    @property
    def mark_bytes(self) -> int:
        """Bytes of earlier states that texts can be cut back to, in both models; 0 where no layer is recurrent.

        Those that a pass makes stand beside those that they replace until it ends.
        """
        num_bytes = self._num_marks(max(self.pass_tokens, self.long_pass_tokens)) * self.workspace.state_bytes
        if self.draft is not None and (drafting := self.draft.workspace) is not None:
            num_bytes += self._num_marks(PREFILL_CHUNK_TOKENS) * drafting.state_bytes
        return num_bytes

    def _num_marks(self, num_tokens: int) -> int:
        """Return how many earlier states there are at most, at the end of a pass of so many tokens."""
        kept = MOST_MARKS // self.num_texts * self.num_texts
        between = min(num_tokens // MARK_TOKENS + self.num_texts, MARKS_OF_PASS * self.num_texts)
        made = between + self.num_texts  # at borders
        return kept + made if kept else 0

    @property
    def host_table_bytes(self) -> int:
        """Bytes of both models' input embeddings that wait in host memory."""
        return self.table_bytes + (0 if self.draft is None else self.draft.table_bytes)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all fixed entries, with no layer resident."""
        return sum(self.fixed_entries().values())

    @property
    def least_bytes(self) -> int:
        """Bytes that must be on the device: all fixed entries, and a ring or all layers."""
        if self.kv_cache == "auto":
            return min(replace(self, kv_cache=where).least_bytes for where in ("device", "host"))
        all_resident = self.layers.total_bytes - sum(self.saved_bytes or ())
        if self.kv_cache == "host":
            all_resident += sum(self.cache_bytes)
        return self.fixed_bytes + min(self.ring_bytes, all_resident)

    @property
    def saved_bytes(self) -> tuple[int, ...] | None:
        """Bytes per layer that its residency saves in the draft; None if nothing is shared."""
        return (self.draft.shared_layer_bytes or None) if self.draft is not None else None

    def fixed_entries(
        self, residents: Iterable[int] = (), *, travelling: Iterable[int] | None = None
    ) -> dict[str, int]:
        """Return the bytes beside decoder layers and ring by purpose; a draft may share the `residents`.

        `travelling`: layers whose keys and values are not on the device; None: all of those that may be elsewhere.
        """
        entries = {HEAD if self.table_bytes else OTHERS: self.others_bytes}
        if travelling is None:
            travelling = range(len(self.layers.layer_bytes)) if self.kv_cache == "host" else ()
        cached_bytes, cache_bytes = self.cached_tokens * self.cache_bytes_per_token, self.cache_bytes
        cached_bytes -= sum(cache_bytes[index] for index in travelling)
        if self.draft is not None:
            shared = self.draft.shared_layer_bytes
            entries[self.draft.label] = self.draft.num_bytes - sum(shared[index] for index in residents if shared)
            cached_bytes += self.cached_tokens * self.draft.cache_bytes_per_token
        entries[f"{KEYS_AND_VALUES} of {self.cached_tokens} tokens"] = cached_bytes
        if states_bytes := self._states_bytes:
            entries["states of recurrent layers"] = states_bytes
        if scratch_bytes := self._all_scratch_bytes:
            entries["upcast scratch"] = scratch_bytes
        if self.escape_bytes:
            entries["escapes of packed layers"] = self.escape_bytes
        entries["activations and logits"] = max(self._phases())
        if self.draft is not None and self.draft.is_recorded and self.draft.workspace is not None:
            entries["recorded draft passes"] = self.draft.workspace.recorded_bytes(self.capacity_tokens)
        return entries

    @property
    def _states_bytes(self) -> int:
        held = self.workspace.states_bytes(num_texts=self.num_texts, num_nodes=self._tree_tokens)
        if self.draft is not None and (drafting := self.draft.workspace) is not None:
            held += drafting.states_bytes(num_texts=self.num_texts, num_nodes=self.max_nodes, is_grown=True)
        return held + (0 if self.are_marks_apart else self.mark_bytes)

    @property
    def _all_scratch_bytes(self) -> int:
        is_widened = self.is_widened or self.layers.name in (PACKED, *QUANTIZED_FORMATS)
        of_draft = 0 if self.draft is None else self.draft.scratch_bytes
        widening_bytes = self.scratch_bytes if is_widened else 0
        return widening_bytes + self.narrow_scratch_bytes + self.head_scratch_bytes + of_draft

    def _phases(self) -> Iterator[int]:
        """Yield the bytes that each phase of a round holds; one ends before the next begins."""
        yield self.workspace.pass_bytes(self.pass_tokens, self.capacity_tokens, num_nodes=self._tree_tokens)
        if self.long_pass_tokens > self.pass_tokens:
            yield self.workspace.sliced_bytes(
                self.long_pass_tokens,
                self.capacity_tokens,
                slice_tokens=min(self.slice_width, self.pass_tokens),
                last_tokens=self.pass_tokens,
                num_nodes=self._tree_tokens,
            )
        yield self.workspace.logits_bytes(WALK_ROWS)
        if self.draft is not None and (drafting := self.draft.workspace) is not None:
            widest = max(PREFILL_CHUNK_TOKENS, widest_level(self.max_nodes))
            num_tokens = min(widest, self.cached_tokens)
            yield drafting.pass_bytes(num_tokens, self.capacity_tokens, num_nodes=self.max_nodes)
            yield drafting.ranking_bytes(most_ranked(self.max_nodes))

    def with_largest_tree(self, *, is_cpu: bool) -> "MemoryNeed":
        """Return the same with room for the largest tree that `auto` considers for these layers."""
        node_bytes = self.cache_bytes_per_token + (0 if self.draft is None else self.draft.cache_bytes_per_token)
        drafting = None if self.draft is None else self.draft.workspace
        rows = [2 * each.delta.row_bytes(each.item_bytes) for each in (self.workspace, drafting) if each and each.delta]
        node_bytes += sum(rows)
        num_nodes, is_bounded = MOST_MAX_NODES, is_cpu or bool(rows)  # what states make of a node takes much anywhere
        while (
            is_bounded and num_nodes > LEAST_MAX_NODES and num_nodes * node_bytes > TREE_SHARE * self.layers.total_bytes
        ):
            num_nodes //= 2
        return replace(self, max_nodes=num_nodes)

    def without_draft(self) -> "MemoryNeed":
        return replace(self, draft=None, max_nodes=self.num_texts, num_graft_nodes=0)

    def in_format(self, name: str) -> "MemoryNeed":
        """Return the same with the layers in that one of `formats`, in files still to be written.

        int8 rows are made from the original, which needs its place as well; NF4 folders are also published.
        """
        names = [layers.name for layers in self.formats]
        rest = self.formats[names.index(name) :]
        if rest == self.formats:
            return self
        file_bytes = rest[0].total_bytes + self.others_bytes + self.table_bytes
        file_bytes += self.file_bytes if name == "int8" else 0
        unpacked = replace(self, stored=None, has_wide_slots=False, escape_bytes=0, narrow_scratch_bytes=0)
        return replace(unpacked, formats=rest, file_bytes=file_bytes)

    def packed(self, layers: LayerFormat, *, escape_bytes: int, narrow_scratch_bytes: int) -> "MemoryNeed":
        """Return the same with layers that lie packed in memory, and in their files as before."""
        return replace(
            self,
            formats=(layers, *self.formats[1:]),
            slice_tokens=self.slice_tokens or PACKED_SLICE_TOKENS,
            stored=self.layers,
            escape_bytes=escape_bytes,
            narrow_scratch_bytes=narrow_scratch_bytes,
        )


def quantized_layers(name: str, shapes: Sequence[Iterable[Sequence[int]]], vector_bytes: Sequence[int]) -> LayerFormat:
    """Return layers whose matrices have these shapes, in int8 or nf4, with vectors of `vector_bytes` as they are."""
    size = {"int8": int8_rows_bytes, "nf4": nf4_bytes}[name]
    payloads = [sum(map(size, matrices)) + rest for matrices, rest in zip(shapes, vector_bytes, strict=True)]
    return LayerFormat(name, tuple(map(round_up_to_page, payloads)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a session's bytes lie, each with its purpose, and what is missing."""

    format_name: str
    residency: ResidencyPlan
    payload_bytes: tuple[int, ...]
    """Weights of each layer, which cross the link if it streams."""
    fixed: Mapping[str, int]
    """Bytes held on the device beside layers and ring, by purpose."""
    device_budget_bytes: int
    host_budget_bytes: int
    """What host memory may hold of the layers."""
    stage_bytes: int = 0
    """Host memory through which layers from disk pass on their way to the device."""
    table_bytes: int = 0
    """Host memory of input embeddings, whose rows are gathered there."""
    missing_device_bytes: int = 0
    """Bytes by which the least that must be on the device exceeds what it may hold."""
    missing_host_bytes: int = 0
    """Bytes by which a host budget of the user's own exceeds what is free."""
    missing_disk_bytes: int = 0
    """Bytes by which the files to be written exceed the free disk."""

    @property
    def can_run(self) -> bool:
        return not (self.missing_device_bytes or self.missing_host_bytes or self.missing_disk_bytes)

    @property
    def runs_well(self) -> bool:
        """Whether it runs without reading weights from disk in every pass."""
        return self.can_run and self.disk_bytes == 0

    @property
    def fixed_bytes(self) -> int:
        return sum(self.fixed.values())

    @property
    def late_bytes(self) -> int:
        """Bytes of the fixed ones that are allocated after the layers, which have to leave room for them."""
        return sum(size for purpose, size in self.fixed.items() if purpose not in (OTHERS, HEAD))

    @property
    def ring_bytes(self) -> int:
        return self.residency.ring_bytes

    @property
    def resident_bytes(self) -> int:
        return self.residency.resident_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes that the device's budget pays for."""
        return self.fixed_bytes + self.ring_bytes + self.resident_bytes

    @property
    def host_bytes(self) -> int:
        return self.residency.host_bytes

    @property
    def disk_bytes(self) -> int:
        return self.residency.disk_bytes

    @property
    def travelling_bytes(self) -> int:
        """Bytes of keys and values in host memory, which cross the link in every pass once the context is full."""
        return self.residency.travelling_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes of keys and values on the device, the draft's included."""
        return sum(size for purpose, size in self.fixed.items() if purpose.startswith(KEYS_AND_VALUES))

    @property
    def usual_pass_bytes(self) -> float:
        """Bytes that cross the link in a pass with the context as full as it usually is."""
        return self.streamed_bytes + USUAL_FILL * self.travelling_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that cross the link in every pass."""
        return sum(self.payload_bytes[index] for index in self.residency.streamed_layers)

    @property
    def num_resident_layers(self) -> int:
        return self.residency.tiers.count(Tier.RESIDENT)

    @property
    def num_host_layers(self) -> int:
        return self.residency.tiers.count(Tier.HOST)

    @property
    def num_disk_layers(self) -> int:
        return self.residency.tiers.count(Tier.DISK)

    def with_tiers(self, tiers: Sequence[Tier]) -> "Placement":
        """Return the same with the layers in these tiers, as where memory ran out while they were loaded."""
        return replace(self, residency=replace(self.residency, tiers=tuple(tiers)))

    def to_record(self) -> dict[str, Any]:
        budgets = ("device_budget_bytes", "host_budget_bytes")
        missing = ("missing_device_bytes", "missing_host_bytes", "missing_disk_bytes")
        held = ("fixed_bytes", "ring_bytes", "resident_bytes", "host_bytes", "disk_bytes", "travelling_bytes")
        names = (*held, *budgets, *missing)
        counts = [self.num_resident_layers, self.num_host_layers, self.num_disk_layers]
        return {
            "format_name": self.format_name,
            "num_layers": counts,
            **{name: getattr(self, name) for name in names},
        }

    def entries(self) -> dict[str, int]:
        """Return the device's bytes by purpose."""
        layers = {f"resident layers ({self.num_resident_layers})": self.resident_bytes}
        return {**self.fixed, "ring of layer slots": self.ring_bytes, **layers}


def kv_cache_on(wanted: KvCache, *, is_apart: bool, has_states: bool = False) -> KvCache:
    """Return where keys and values may be; without memory or a link of the device's own they have nowhere to go.

    Beside layers that keep states they stay on the device: they are few. Raises OptionError where they are to travel.
    """
    if has_states and wanted == "host":
        raise OptionError(
            "--kv-cache host does not go with a model of which most layers keep states instead of keys and values; "
            "leave it out: what is kept of tokens is little"
        )
    if has_states:
        return "device"
    return wanted if is_apart or wanted != "auto" else "device"


def place(need: MemoryNeed, machine: Machine) -> Placement:
    """Return where the bytes would lie, with each layer where it would be if what is missing were there.

    Keys and values that may travel do where that moves clearly fewer bytes, or where the device does not hold them.
    Long passes over a prompt are for layers that stream: where none does without them, no room is kept for them.
    """
    if need.prefill_tokens > need.slice_width:
        whole = place(replace(need, prefill_tokens=0), machine)
        if not whole.residency.streamed_layers and whole.can_run:
            return whole
    budgets = _budgets(need, machine)
    if need.kv_cache != "auto":
        return _place(need, machine, budgets)
    resident, travelling = (_place(replace(need, kv_cache=where), machine, budgets) for where in ("device", "host"))
    if resident.missing_device_bytes:
        is_better = travelling.missing_device_bytes < resident.missing_device_bytes
    elif machine.holds_least:
        is_better = False
    else:
        is_saving = travelling.usual_pass_bytes < (1 - _LEAST_SAVING) * resident.usual_pass_bytes
        is_better = travelling.can_run and travelling.disk_bytes <= resident.disk_bytes and is_saving
    return travelling if is_better else resident


def _place(need: MemoryNeed, machine: Machine, budgets: tuple[int, int]) -> Placement:
    placement = _place_in(need, machine, budgets)
    if need.stored is None or need.has_wide_slots or not placement.disk_bytes:
        return placement
    wide = replace(need, has_wide_slots=True)
    return _place_in(wide, machine, _budgets(wide, machine))


def _place_in(need: MemoryNeed, machine: Machine, budgets: tuple[int, int]) -> Placement:
    device_budget, host_budget = budgets
    plan = plan_residency(
        need.layers.layer_bytes,
        num_slots=need.num_slots,
        device_budget_bytes=max(device_budget, need.least_bytes) - need.fixed_bytes,
        host_budget_bytes=host_budget,
        saved_bytes=need.saved_bytes,
        cache_bytes=need.cache_bytes if need.kv_cache == "host" else (),
        row_bytes=need.row_bytes if need.kv_cache == "host" else (),
        disk_bytes=need.disk_layer_bytes,
    )
    placement = Placement(
        format_name=need.layers.name,
        residency=plan,
        payload_bytes=need.payload_bytes(plan.tiers),
        fixed=need.fixed_entries(plan.resident_layers, travelling=plan.travelling),
        device_budget_bytes=device_budget,
        host_budget_bytes=host_budget,
        table_bytes=need.host_table_bytes,
    )
    free_disk_bytes = need.file_bytes if machine.disk_free_bytes is None else machine.disk_free_bytes
    # A budget that the user chose may be more than there is: then what is there decides.
    held_bytes = placement.device_bytes + (plan.host_bytes if machine.is_cpu else 0)
    return replace(
        placement,
        missing_device_bytes=max(0, need.least_bytes - device_budget, held_bytes - machine.free_bytes),
        missing_host_bytes=0
        if machine.is_cpu
        else max(0, plan.host_bytes + need.host_table_bytes - machine.host_free_bytes),
        missing_disk_bytes=max(0, need.file_bytes - free_disk_bytes),
    )


def _budgets(need: MemoryNeed, machine: Machine) -> tuple[int, int]:
    """Return the bytes that a session may hold on the device and, for layers, in host memory."""
    device = machine.device_budget_bytes
    if machine.holds_least:
        device = need.fixed_bytes + need.ring_bytes
    elif device is None:
        device = usable_bytes(machine.free_bytes)
    if machine.host_budget_bytes is not None:
        return device, machine.host_budget_bytes
    if not machine.is_cpu:
        return device, usable_bytes(machine.host_free_bytes - need.host_side_bytes, is_pinned=True)
    return device, max(0, machine.host_free_bytes - device - RESERVED_BYTES) if machine.is_link_emulated else 0
